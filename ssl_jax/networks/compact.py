"""A small encoder for small tiles on small machines."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Compact(nn.Module):
    """Three convolutions, 32 x 32 x 3 -> 4 x 4 x width, for tiles from 16 to 64 pixels.

    Attributes:
      width: channels of the last two layers.
      dtype: of the computation; parameters are float32.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Float [N, h, w, 3] -> [N, h / 8, w / 8, width]."""
        del train
        x = x.astype(self.dtype)
        x = nn.relu(nn.Conv(32, (4, 4), (2, 2), dtype=self.dtype, name="conv1")(x))
        x = nn.relu(nn.Conv(self.width, (4, 4), (2, 2), dtype=self.dtype, name="conv2")(x))
        return nn.relu(nn.Conv(self.width, (3, 3), (2, 2), dtype=self.dtype, name="conv3")(x))
