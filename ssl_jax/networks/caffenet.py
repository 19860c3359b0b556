"""CaffeNet's convolutions: the encoder of the jigsaw papers."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.networks.layers import Conv, Form, asked_for, check_input, local_response_norm, max_pool


class CaffeNet(nn.Module):
    """The convolutions of CaffeNet to pool5: conv, ReLU, pool, local response normalisation.

    The reference network of Jia et al. 2014 (arXiv 1408.5093), which is that of Krizhevsky et al. 2012
    with pooling before normalisation and in one piece; with stride 2 in conv1 it is the context-free
    network of Noroozi and Favaro 2016 (Sec. 3.2). Tiles of 75 x 75 pixels give maps of 3 x 3 x 256.

    Kernels start He normal and biases at zero. Caffe's own start, normal with deviation 0.01 and some
    biases at one, needs thousands of steps before the loss moves.

    Attributes:
      stride: of conv1 in pixels: 2 for tiles, 4 for full images.
      dtype: of the computation; parameters are float32.
      form: of the layers, see `layers.fast_on_cpu`.
    """

    # What a caller can ask for: convolutions after their ReLU, and the output.
    layers: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")

    stride: int = 2
    dtype: Any = jnp.float32
    form: Form = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, layer: str | None = None) -> jax.Array:
        """The map of a layer.

        Args:
          x: float [N, h, w, 3].
          train: makes no difference here.
          layer: one of `layers`; None is the last.

        Returns:
          [N, h', w', channels of the layer] of `dtype`; of [N, 75, 75, 3] and stride 2, conv1 to pool5
          are [N, 33, 33, 96], [N, 16, 16, 256], [N, 7, 7, 384], [N, 7, 7, 384], [N, 7, 7, 256] and
          [N, 3, 3, 256].

        Raises:
          InputError: an unknown layer, or images too small to leave a pixel in pool5.
        """
        del train
        layer = asked_for(layer, self.layers)
        smallest = 11 + 14 * self.stride  # 15 pixels of conv1, 7 of conv2, 3 of conv5, 1 of pool5
        check_input(x, smallest, f"CaffeNet with stride {self.stride}")

        x = self._conv(x, "conv1", 96, 11, stride=self.stride)
        if layer == "conv1":
            return nn.relu(x)
        x = self._conv(local_response_norm(self._relu_pool(x)), "conv2", 256, 5, padding=2, groups=2)
        if layer == "conv2":
            return nn.relu(x)
        x = nn.relu(self._conv(local_response_norm(self._relu_pool(x)), "conv3", 384, 3, padding=1))
        if layer == "conv3":
            return x
        x = nn.relu(self._conv(x, "conv4", 384, 3, padding=1, groups=2))
        if layer == "conv4":
            return x
        x = self._conv(x, "conv5", 256, 3, padding=1, groups=2)
        return nn.relu(x) if layer == "conv5" else self._relu_pool(x)

    def _conv(self, x, name, features, window, **kwargs):
        return Conv(features, window, dtype=self.dtype, form=self.form, name=name, **kwargs)(x)

    def _relu_pool(self, x):
        """ReLU, then pooling. The two commute, and this way ReLU has a quarter of the work."""
        return nn.relu(max_pool(x, 3, 2, form=self.form))
