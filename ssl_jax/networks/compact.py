"""A small encoder for small tiles on small machines."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.networks.layers import Conv, asked_for, check_input


class Compact(nn.Module):
    """Three strided convolutions with ReLU, 32 x 32 x 3 -> 4 x 4 x width.

    Attributes:
      width: channels of the last two layers; the first has half as many.
      dtype: of the computation; parameters are float32.
    """

    # What a caller can ask for: convolutions after their ReLU.
    layers: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "conv3")

    width: int = 64
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, layer: str | None = None) -> jax.Array:
        """The map of a layer.

        Args:
          x: float [N, h, w, 3].
          train: makes no difference here.
          layer: one of `layers`; None is the last.

        Returns:
          [N, h', w', channels of the layer] of `dtype`, not negative; of [N, 32, 32, 3], conv1 to conv3 are
          [N, 16, 16, width / 2], [N, 8, 8, width] and [N, 4, 4, width].

        Raises:
          InputError: an unknown layer, or images too small to leave a pixel in conv3.
        """
        del train
        layer = asked_for(layer, self.layers)
        check_input(x, 4, "the compact encoder")
        x = x.astype(self.dtype)
        for name, features, window in (
            ("conv1", self.width // 2, 4),
            ("conv2", self.width, 4),
            ("conv3", self.width, 3),
        ):
            conv = Conv(
                features,
                window,
                stride=2,
                padding=1,
                kernel_init=nn.initializers.lecun_normal(),
                dtype=self.dtype,
                name=name,
            )
            x = nn.relu(conv(x))
            if name == layer:
                break
        return x
