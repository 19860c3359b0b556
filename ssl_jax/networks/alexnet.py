"""AlexNet in one tower, as torchvision has it, and the classifier on top of it."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.networks.layers import Conv, Form, asked_for, check_input, max_pool

SMALLEST = 63  # 15 pixels of conv1, 7 of conv2, 3 of conv3 to conv5, 1 of pool5


class AlexNet(nn.Module):
    """The convolutions of AlexNet to pool5: conv, ReLU, pool, without groups or normalisation.

    Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997, as
    torchvision's weights want it. What `caffenet.CaffeNet` is of the network of 2012, with 64 channels in
    conv1 and 192 in conv2, and padding around the picture. Kernels start He normal, biases at zero.

    Parameters: conv1 to conv5, each kernel and bias; 2,469,696 numbers, and with `AlexNetClassifier` of
    1,000 classes 61,100,840.

    Attributes:
      dtype: of the computation; parameters are float32.
      form: of the layers, see `layers.fast_on_cpu`.
    """

    # What a caller can ask for: convolutions after their ReLU, and the output.
    layers: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")

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
          [N, h', w', channels of the layer] of `dtype`, not negative; of [N, 224, 224, 3], conv1 to pool5
          are [N, 55, 55, 64], [N, 27, 27, 192], [N, 13, 13, 384], [N, 13, 13, 256], [N, 13, 13, 256] and
          [N, 6, 6, 256].

        Raises:
          InputError: an unknown layer, or images too small to leave a pixel in pool5.
        """
        del train
        layer = asked_for(layer, self.layers)
        check_input(x, SMALLEST, "AlexNet")
        for name, features, window, stride, padding in (
            ("conv1", 64, 11, 4, 2),
            ("conv2", 192, 5, 1, 2),
            ("conv3", 384, 3, 1, 1),
            ("conv4", 256, 3, 1, 1),
            ("conv5", 256, 3, 1, 1),
        ):
            options = {"stride": stride, "padding": padding, "dtype": self.dtype, "form": self.form}
            x = Conv(features, window, name=name, **options)(x)
            if name == layer:
                return nn.relu(x)
            if name in ("conv1", "conv2", "conv5"):
                x = max_pool(x, 3, 2, form=self.form)  # commutes with ReLU, which then has less work
            x = nn.relu(x)
        return x


class AlexNetClassifier(nn.Module):
    """fc6, fc7 and a linear classifier on maps averaged to 6 x 6; also CaffeNet's, whose maps are 6 x 6.

    Parameters: fc6, fc7 and classifier, each kernel and bias.

    Attributes:
      num_classes: classes.
      width: features of fc6 and fc7.
      dropout: rate before fc6 and fc7, in training; from the random stream "dropout". Caffe has it after
        fc6 and fc7.
      dtype: of the computation; parameters and logits are float32.
    """

    num_classes: int
    width: int = 4096
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps [N, h, w, c] of the encoder -> float32 logits [N, num_classes]."""
        dense = lambda features, init, name: nn.Dense(features, dtype=self.dtype, kernel_init=init, name=name)
        he_normal = nn.initializers.he_normal()
        x = adaptive_mean(maps.astype(self.dtype), 6).reshape(len(maps), -1)
        for name in ("fc6", "fc7"):
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
            x = nn.relu(dense(self.width, he_normal, name)(x))
        return dense(self.num_classes, nn.initializers.zeros, "classifier")(x).astype(jnp.float32)


def adaptive_mean(maps: jax.Array, side: int) -> jax.Array:
    """Means over side x side regions: [N, h, w, c] -> [N, side, side, c], for h and w of any size.

    Region i spans pixels floor(i h / side) to ceil((i + 1) h / side), as in PyTorch: regions overlap where
    h is no multiple of `side`, and repeat pixels where it is smaller.
    """
    rows, columns = (_regions(size, side).astype(maps.dtype) for size in maps.shape[1:3])
    return jnp.einsum("ih,nhwc,jw->nijc", rows, maps, columns)


def _regions(size, side):
    """The share of each pixel in each region's mean: float32 [side, size]."""
    i, pixel = np.arange(side)[:, None], np.arange(size)[None]
    inside = (pixel >= i * size // side) & (pixel < -(-(i + 1) * size // side))
    return np.float32(inside / inside.sum(1, keepdims=True))
