"""A small encoder for small tiles on small machines."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.networks.layers import Conv


class Compact(nn.Module):
    """Three strided convolutions with ReLU, 32 x 32 x 3 -> 4 x 4 x width.

    Attributes:
      width: channels of the last two layers; the first has half as many.
      dtype: of the computation; parameters are float32.
    """

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Float [N, h, w, 3] -> [N, h / 8, w / 8, width]."""
        del train
        conv = lambda name, features, window: Conv(
            features,
            window,
            stride=2,
            padding=1,
            kernel_init=nn.initializers.lecun_normal(),
            dtype=self.dtype,
            name=name,
        )
        x = nn.relu(conv("conv1", self.width // 2, 4)(x.astype(self.dtype)))
        x = nn.relu(conv("conv2", self.width, 4)(x))
        return nn.relu(conv("conv3", self.width, 3)(x))
