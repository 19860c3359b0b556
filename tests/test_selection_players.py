"""The rule of each player, against numbers worked out by hand; what they share is in test_selection.py."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_selection import compiled, evaluation

from ssl_jax.selection import curriculum, exp3, loss_prioritized, q_learning, round_robin

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("little_optimization")


# --- Round robin


@pytest.mark.parametrize("batch_size", [1, 3, 5, 10, 12, 33])
def test_each_epoch_has_every_permutation_once(batch_size):
    player = compiled(round_robin.make(num_permutations=10))
    state, drawn = player.init(KEY), []
    for step in range(-(-60 // batch_size)):
        state, index = player.choose(jax.random.key(step), state, batch_size)
        drawn.append(np.asarray(index))
    epochs = np.concatenate(drawn)[:60].reshape(6, 10)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 6  # shuffled anew


def test_the_first_epoch_depends_on_the_key():
    player = compiled(round_robin.make(num_permutations=10))
    orders = [player.choose(KEY, player.init(jax.random.key(seed)), 10)[1] for seed in (0, 1)]
    assert (orders[0] != orders[1]).any()


# --- Curriculum


# 2, 4, 0, 3 and 4 places differ from the identity.
SET = np.array([[1, 0, 2, 3], [1, 0, 3, 2], [0, 1, 2, 3], [1, 2, 0, 3], [3, 2, 1, 0]])


@pytest.mark.parametrize(
    ("order", "pools"),
    [
        ("easy_first", [[2], [2, 0], [2, 0, 3], [2, 0, 3, 1], [2, 0, 3, 1, 4], [2, 0, 3, 1, 4]]),
        ("hard_first", [[1], [1, 4], [1, 4, 3], [1, 4, 3, 0], [1, 4, 3, 0, 2], [1, 4, 3, 0, 2]]),
    ],
)
def test_the_pool_grows_from_its_end_of_the_set(order, pools):
    # 5 permutations from one (0.2) to all in 40 steps: one more every 10.
    options = {"num_permutations": 5, "permutations": SET, "steps": 40, "start_share": 0.2}
    player = compiled(curriculum.make(**options, order=order))
    state = player.init(KEY)
    for step in range(51):
        if step % 10 == 0:
            pool = pools[step // 10]
            wanted = np.bincount(pool, minlength=5) / len(pool)
            np.testing.assert_allclose(player.probability(state), wanted, atol=1e-6)
        state, index = player.choose(jax.random.key(step), state, 8)
        assert set(np.asarray(index).tolist()) <= set(pools[-(-step // 10)])


@pytest.mark.parametrize(
    ("step", "size"), [(0, 10), (50, 32), (100, 55), (150, 78), (200, 100), (10**6, 100)]
)
def test_sizes_of_the_pool(step, size):
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(9), (100, 1)), axis=1)
    # 10 + 90 t / 200, rounded to the nearest, and to the even one of two: 32.5 and 77.5.
    player = curriculum.make(num_permutations=100, permutations=orders, steps=200)
    assert (np.asarray(player.probability(jnp.int32(step))) > 0).sum() == size


# --- Loss prioritized


def test_draws_are_in_proportion_to_the_powers_of_the_errors():
    options = {"exponent": 2.0, "min_error": 0.1, "uniform_share": 0.2}
    player = compiled(loss_prioritized.make(num_permutations=4, period=1, **options))
    np.testing.assert_allclose(player.probability(player.init(KEY)), 0.25)
    state, metrics = player.observe(KEY, player.init(KEY), evaluation([1.0, 0.9, 0.8, 0.7]))
    # Errors with 0.1 more: 0.1, 0.2, 0.3, 0.4; their squares sum to 0.3.
    wanted = 0.8 * np.array([0.01, 0.04, 0.09, 0.16]) / 0.3 + 0.05
    np.testing.assert_allclose(player.probability(state), wanted, rtol=1e-5)
    np.testing.assert_allclose(metrics["error"], 0.15, rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], -(wanted * np.log(wanted)).sum(), rtol=1e-5)


# --- Exp3


def test_a_step_of_exp3_by_hand():
    options = {"learning_rate": 0.5, "uniform_share": 0.2, "weight_share": 0.1, "bounds_decay": 0.9}
    player = compiled(exp3.make(num_permutations=4, period=1, num_groups=2, **options))
    state = player.init(KEY).replace(
        log_weight=jnp.log(jnp.array([0.25, 0.75])),
        group=jnp.array([0, 1, 1, 1]),
        count=jnp.array([3.0, 7.0]),
        accuracy=jnp.array([0.1, 0.3, 0.4, 0.5]),
        bounds=jnp.array([0.0, 0.2]),
        evaluations=jnp.int32(5),
    )
    # A permutation weighs as its group: 0.25, 0.75, 0.75, 0.75 of 2.5.
    chance = 0.8 * np.array([0.1, 0.3, 0.3, 0.3]) + 0.05
    np.testing.assert_allclose(player.probability(state), chance, rtol=1e-5)
    state, metrics = player.observe(KEY, state, evaluation([0.15, 0.4, 0.6, 0.8]))
    # Progress 0.05, and the mean of 0.1, 0.2 and 0.3. The range [0, 0.2] shrinks to [0.01, 0.19] and grows
    # to [0.01, 0.2], for 0.2 is above it.
    reward = np.array([0.04, 0.19]) / 0.19
    estimate = np.array([0.3, 0.7]) * reward / np.array([0.13, 0.87])
    weight = np.array([0.25, 0.75]) * np.exp(0.5 * estimate)
    weight = 0.9 * weight / weight.sum() + 0.05
    np.testing.assert_allclose(np.exp(state.log_weight), weight, rtol=1e-5)
    np.testing.assert_allclose(state.bounds, [0.01, 0.2], rtol=1e-5)
    np.testing.assert_allclose(metrics["progress"], 0.3 * 0.05 + 0.7 * 0.2, rtol=1e-5)


def test_exp3_learns_nothing_from_the_first_look():
    player = compiled(exp3.make(num_permutations=6, period=1, num_groups=3, weight_share=0.0))
    state, _ = player.choose(KEY, player.init(KEY), 30)
    state, metrics = player.observe(KEY, state, evaluation([0.1, 0.2, 0.3, 0.7, 0.8, 0.9]))
    np.testing.assert_allclose(player.probability(state), 1 / 6, rtol=1e-5)
    assert metrics["progress"] == 0


def test_weights_of_exp3_stay_finite_and_can_come_back():
    options = {"learning_rate": 10.0, "bounds_decay": 1.0}
    player = compiled(exp3.make(num_permutations=4, period=1, num_groups=2, **options))
    state = player.init(KEY)
    for best in (0, 1):  # 50 looks at which one group teaches, then 50 at which the other does
        for _ in range(50):
            hard, easy = jnp.array([0.2, 0.2, 0.8, 0.8]), jnp.array([0.0, 0.0, 0.1, 0.1])
            rise = easy if best else jnp.array([0.1, 0.1, 0.0, 0.0])
            state = state.replace(accuracy=hard, group=jnp.array([0, 0, 1, 1]), count=jnp.array([5.0, 5.0]))
            state, _ = player.observe(KEY, state, evaluation(hard + rise))
        assert np.isfinite(state.log_weight).all()
        assert state.log_weight.argmax() == best


# --- Q-learning


def constant(params, values):
    """The parameters with which the network answers `values` whatever the state."""
    layer = params["params"]["Dense_1"]
    layer = {"kernel": jnp.zeros_like(layer["kernel"]), "bias": jnp.asarray(values, jnp.float32)}
    return {"params": params["params"] | {"Dense_1": layer}}


def test_a_double_q_target_by_hand():
    options = {"discount": 0.5, "updates": 1, "epsilon": 0.0, "explore": 0}
    player = compiled(q_learning.make(num_permutations=4, period=1, num_groups=2, **options))
    state = player.init(KEY)
    for error in (0.5, 0.4):
        state, metrics = player.observe(KEY, state, evaluation(np.full(4, 1 - error)))
        assert metrics["td_loss"] == 0
    state = state.replace(
        params=constant(state.params, [1.0, 2.0]),
        target_params=constant(state.params, [30.0, 20.0]),
        action=jnp.int32(0),
    )
    rows = state.rows
    state, metrics = player.observe(KEY, state, evaluation([0.7, 0.9, 0.7, 0.9]))
    # The reward, 2 * 0.4 - 0.5 - 0.2 = 0.1, is 1 in units of itself. Action 1 is best, and worth 20 in the
    # target network: 1 + 0.5 * 20 - 1 = 10, of which Huber's loss is 9.5.
    np.testing.assert_allclose(metrics["reward"], 0.1, atol=1e-6)
    np.testing.assert_allclose(metrics["td_loss"], 9.5, rtol=1e-5)
    assert state.action == 1
    np.testing.assert_allclose(state.memory["r_t"][:2], [0.1, 0], atol=1e-6)
    np.testing.assert_array_equal(state.memory["rows_tm1"][0], rows)
    np.testing.assert_array_equal(state.memory["rows_t"][0], state.rows)
    # Only the action that was taken learns, upwards. Adam has made two steps without a gradient, so that its
    # averages of this one, 0.1 and 0.001 of it and of its square, are corrected for three steps.
    rise = 0.1 / (1 - 0.9**3) / math.sqrt(0.001 / (1 - 0.999**3))
    bias = state.params["params"]["Dense_1"]["bias"]
    np.testing.assert_allclose(bias, [1 + 0.003 * rise, 2], rtol=1e-5)


@pytest.fixture(scope="module")
def short_player():
    """Q-learning with 3 transitions in memory, whose target network is copied every 3 evaluations."""
    options = {"capacity": 3, "target_period": 3}
    return compiled(q_learning.make(num_permutations=4, period=1, num_groups=2, **options))


def test_nothing_is_learned_from_an_empty_memory(short_player):
    player = short_player
    state = player.init(KEY)
    for error in (0.9, 0.8):
        before, (state, _) = state, player.observe(KEY, state, evaluation(np.full(4, 1 - error)))
        chex.assert_trees_all_equal(before.params, state.params)
        chex.assert_trees_all_equal(before.memory, state.memory)


def test_the_memory_forgets_the_oldest(short_player):
    player = short_player
    state, rewards = player.init(KEY), []
    for accuracy in (0.1, 0.2, 0.25, 0.4, 0.3, 0.35):
        state, metrics = player.observe(KEY, state, evaluation(np.full(4, accuracy)))
        rewards.append(float(metrics["reward"]))
    np.testing.assert_allclose(state.memory["r_t"], [rewards[5], rewards[3], rewards[4]], atol=1e-7)


def test_the_target_network_is_copied_on_time(short_player):
    player, state = short_player, short_player.init(KEY)
    for look in range(1, 10):
        old = state.target_params
        accuracy = np.random.default_rng(look).random(4)
        state, _ = player.observe(jax.random.key(look), state, evaluation(accuracy))
        chex.assert_trees_all_equal(state.target_params, old if look % 3 else state.params)


def test_the_action_is_drawn_beside_a_share_of_all():
    player = compiled(q_learning.make(num_permutations=4, period=1, num_groups=3, uniform_share=0.2))
    state = player.init(KEY)
    np.testing.assert_allclose(player.probability(state), 0.25)
    state = state.replace(group=jnp.array([0, 1, 1, 0]), action=jnp.int32(1))
    np.testing.assert_allclose(player.probability(state), [0.05, 0.45, 0.45, 0.05], rtol=1e-6)
    # No permutation is in group 2.
    np.testing.assert_allclose(player.probability(state.replace(action=jnp.int32(2))), 0.25)
