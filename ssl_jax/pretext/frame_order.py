"""The order of frames in time (Misra, Zitnick and Hebert 2016; Lee et al. 2017, which order it is)."""

import jax
import jax.numpy as jnp


def permute(stacks: jax.Array, permutations: jax.Array) -> jax.Array:
    """Puts the frames of each stack in another order.

    Args:
      stacks: [B, H, W, T] of any dtype, grey frames on the last axis.
      permutations: int [B, T].

    Returns:
      [B, H, W, T]; position i of stack b shows frame permutations[b, i].
    """
    return jnp.take_along_axis(stacks, permutations[:, None, None, :], axis=3)
