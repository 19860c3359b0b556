"""Losses of Q-learning and exploration, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax import losses

KEY = jax.random.key(0)

# --- Losses


Q_TM1 = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
A_TM1 = jnp.array([0, 1, 1])
R_T = jnp.array([1.0, -1.0, 2.0])
DISCOUNT_T = jnp.array([0.5, 0.9, 0.0])
Q_T_VALUE = jnp.array([[10.0, 20.0], [30.0, 40.0], [50.0, 60.0]])
Q_T_SELECTOR = jnp.array([[2.0, 1.0], [0.0, 3.0], [0.0, 1.0]])


def test_double_q_errors_by_hand():
    errors = losses.double_q_errors(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T_VALUE, Q_T_SELECTOR)
    # 1 + 0.5 * 10 - 1, -1 + 0.9 * 40 - 4, 2 + 0 - 6
    np.testing.assert_allclose(errors, [5, 31, -4], rtol=1e-6)
    single = losses.double_q_errors(Q_TM1, A_TM1, R_T, DISCOUNT_T, Q_T_VALUE, Q_T_VALUE)
    np.testing.assert_allclose(single, [10, 31, -4], rtol=1e-6)  # 1 + 0.5 * 20 - 1 in the first


def test_only_the_action_that_was_taken_learns():
    def total(q_tm1, r_t, q_t_value, q_t_selector):
        return losses.double_q_errors(q_tm1, A_TM1, r_t, DISCOUNT_T, q_t_value, q_t_selector).sum()

    taken, *others = jax.grad(total, (0, 1, 2, 3))(Q_TM1, R_T, Q_T_VALUE, Q_T_SELECTOR)
    np.testing.assert_array_equal(taken, [[-1, 0], [0, -1], [0, -1]])
    assert not any(gradient.any() for gradient in others)


def test_huber_by_hand():
    huber, errors = optax.losses.huber_loss, jnp.array([0.0, 0.5, -1.0, 3.0, -4.0])
    np.testing.assert_allclose(huber(errors), [0, 0.125, 0.5, 2.5, 3.5])
    np.testing.assert_allclose(huber(errors, delta=2.0), [0, 0.125, 0.5, 4, 6])
    gradient = jax.grad(lambda errors: huber(errors).sum())(errors)
    np.testing.assert_allclose(gradient, [0, 0.5, -1, 1, -1])


# --- Exploration


Q = np.tile(np.float32([0, 3, 1, 2]), (8000, 1))


def explored(epsilon, key=KEY):
    return np.asarray(jax.jit(losses.epsilon_greedy)(key, Q, epsilon))


def test_epsilon_zero_is_greedy_and_one_is_uniform():
    assert explored(0.0).dtype == np.int32
    assert (explored(0.0) == 1).all()
    shares = np.bincount(explored(1.0), minlength=4) / 8000
    np.testing.assert_allclose(shares, 0.25, atol=0.02)  # four standard deviations


def test_some_explored_actions_are_the_best_by_chance():
    actions = explored(0.4)
    assert abs((actions != 1).mean() - 0.4 * 3 / 4) < 0.02
    np.testing.assert_array_equal(actions, explored(0.4))
    assert (actions != explored(0.4, jax.random.key(1))).any()


def test_each_environment_may_have_an_epsilon_of_its_own():
    actions = explored(np.repeat(np.float32([0, 1]), 4000))
    assert (actions[:4000] == 1).all()
    assert abs((actions[4000:] == 1).mean() - 0.25) < 0.03
