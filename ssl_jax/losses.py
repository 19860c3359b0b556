"""What Q-learning minimises, and how its actions are chosen: pure functions of action values.

Used where games are played and where permutations are chosen. Sources: Mnih et al., "Human-level control
through deep reinforcement learning", Nature 2015 (clipped errors, epsilon-greedy); van Hasselt et al., "Deep
reinforcement learning with double Q-learning", arXiv 1509.06461.
"""

import jax
import jax.numpy as jnp
from jax import lax


def double_q_errors(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t_value: jax.Array,
    q_t_selector: jax.Array,
) -> jax.Array:
    """Temporal difference errors of double Q-learning (van Hasselt et al. 2015, Equation 4).

    Args:
      q_tm1: float [B, A], of the network that learns; the only argument with a gradient.
      a_tm1: int [B], the actions taken.
      r_t: float [B], what came of them, over n steps.
      discount_t: float [B], gamma^n; 0 where the episode was over.
      q_t_value: float [B, A], of the target network; `q_t_selector` again gives plain Q-learning.
      q_t_selector: float [B, A], of the network that learns, where the next action is chosen.

    Returns:
      float [B], target - q_tm1[a_tm1]. Their loss is `optax.losses.huber_loss`, whose gradient is the error
      clipped to [-1, 1] (Mnih et al. 2015).
    """
    best = q_t_selector.argmax(-1)[:, None]
    value = jnp.take_along_axis(q_t_value, best, axis=-1)[:, 0]
    target = lax.stop_gradient(r_t + discount_t * value)
    return target - jnp.take_along_axis(q_tm1, a_tm1[:, None], axis=-1)[:, 0]


def epsilon_greedy(key: jax.Array, q: jax.Array, epsilon: jax.Array | float) -> jax.Array:
    """The best actions, or, each with probability `epsilon`, any action at all.

    Args:
      key: PRNG key of this step.
      q: float [N, A].
      epsilon: in [0, 1], a scalar or [N].

    Returns:
      int32 [N].
    """
    explore_key, action_key = jax.random.split(key)
    explore = jax.random.uniform(explore_key, q.shape[:1]) < epsilon
    anything = jax.random.randint(action_key, q.shape[:1], 0, q.shape[1])
    return jnp.where(explore, anything, q.argmax(-1)).astype(jnp.int32)
