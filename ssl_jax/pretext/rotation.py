"""Rotation by quarter turns (Gidaris, Singh and Komodakis, ICLR 2018, arXiv 1803.07728)."""

import jax
import jax.numpy as jnp


def rotate(images: jax.Array, quarter_turns: jax.Array) -> jax.Array:
    """Turns each image counter-clockwise, as `np.rot90` does.

    Args:
      images: [B, H, H, C] of any dtype.
      quarter_turns: int [B]; 4 is a full turn.

    Returns:
      [B, H, H, C], image b turned by 90 degrees * quarter_turns[b].
    """
    turns = quarter_turns[:, None, None, None]
    images = jnp.where(turns & 2 != 0, images[:, ::-1, ::-1], images)
    return jnp.where(turns & 1 != 0, jnp.rot90(images, axes=(1, 2)), images)
