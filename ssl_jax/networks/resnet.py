"""Residual networks: ResNet-18 and ResNet-50, for photographs and for small pictures and tiles.

He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385 (Sec. 3.3 and 4, Table 1), with
the stride of a bottleneck in its 3 x 3 convolution ("v1.5", as torchvision has it) and every residual branch
silent at the start (Goyal et al. 2017, arXiv 1706.02677, Sec. 5.1).
"""

import functools
import typing
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.networks.layers import Form, asked_for, check_input, conv, max_pool
from ssl_jax.runtime.config import check_known

# He normal for what comes back (He et al. 2015, arXiv 1502.01852, Sec. 2.2), as torchvision's start.
KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvNorm(nn.Module):
    """A convolution without bias, and batch normalisation of what it gives.

    Parameters: kernel [k, k, channels in, features]; norm, with scale and bias [features]. The collection
    batch_stats has the running mean and variance of norm: 0.9 of the old and 0.1 of the batch's.

    Attributes:
      features: channels out.
      window: k, odd, height and width of the kernel in pixels; k // 2 zeros go on each of the four sides.
      stride: pixels.
      scale_init: of the normalisation.
      dtype: of the computation; parameters and statistics are float32.
      form: see `layers.fast_on_cpu`.
    """

    features: int
    window: int
    stride: int = 1
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    dtype: Any = jnp.float32
    form: Form = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Float [N, h, w, c] -> [N, ceil(h / stride), ceil(w / stride), features] of `dtype`."""
        shape = (self.window, self.window, x.shape[-1], self.features)
        kernel = self.param("kernel", KERNEL_INIT, shape).astype(self.dtype)
        x = conv(x.astype(self.dtype), kernel, stride=self.stride, padding=self.window // 2, form=self.form)
        norm = nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            scale_init=self.scale_init,
            dtype=self.dtype,
            name="norm",
        )
        return norm(x)


class ResidualUnit(nn.Module):
    """What the convolutions say, added to what they were given; ReLU after the sum.

    Parameters: conv1 and conv2, or conv1 to conv3; projection, where input and sum differ in shape.

    Attributes:
      features: channels of the 3 x 3 convolutions.
      stride: pixels, of the first 3 x 3 convolution.
      bottleneck: whether there are convolutions of 1 x 1, 3 x 3 and 1 x 1, the last with four times the
        channels, or two of 3 x 3.
      dtype: of the computation; parameters and statistics are float32.
      form: see `layers.fast_on_cpu`.
    """

    features: int
    stride: int = 1
    bottleneck: bool = False
    dtype: Any = jnp.float32
    form: Form = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Float [N, h, w, c] -> [N, ceil(h / stride), ceil(w / stride), features or four times that]."""
        conv = functools.partial(ConvNorm, dtype=self.dtype, form=self.form)
        silent = nn.initializers.zeros
        if self.bottleneck:
            y = nn.relu(conv(self.features, 1, name="conv1")(x, train=train))
            y = nn.relu(conv(self.features, 3, stride=self.stride, name="conv2")(y, train=train))
            y = conv(4 * self.features, 1, scale_init=silent, name="conv3")(y, train=train)
        else:
            y = nn.relu(conv(self.features, 3, stride=self.stride, name="conv1")(x, train=train))
            y = conv(self.features, 3, scale_init=silent, name="conv2")(y, train=train)
        if x.shape != y.shape:
            x = conv(y.shape[-1], 1, stride=self.stride, name="projection")(x, train=train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The convolutions of a residual network, up to the map that a classifier would average.

    The structure is torchvision's, so that its weights would fit: explicit padding, no bias before a
    normalisation. The running variance is that of the batch as it is, where PyTorch takes n / (n - 1) of it.

    In training, normalisation takes the statistics of all pictures, tiles or frames of the batch, on all
    devices; with `train=False` the running ones, so that the map of a picture depends on nothing else.

    Parameters: conv1, and block1_unit1, block1_unit2, ..., block4_unit1, ....

    Attributes:
      units: residual units of each of the four blocks.
      bottleneck: the kind of unit, see `ResidualUnit`.
      width: channels of conv1 and of block1's 3 x 3 convolutions; each block has twice those before it.
      stem: "standard", a convolution of 7 x 7 and pooling, each with stride 2; or "small", a convolution of
        3 x 3 with stride 1, for pictures and tiles of 32 to 64 pixels.
      remat: whether the gradient is computed from what goes into the units, and what is inside of them is
        computed again (Chen et al. 2016, arXiv 1604.06174, Sec. 4): less memory, up to a third more work,
        the same numbers.
      dtype: of the computation; parameters and statistics are float32.
      form: of the layers, see `layers.fast_on_cpu`.
    """

    # What a caller can ask for: conv1 after its ReLU and before pooling, and what each block gives.
    layers: ClassVar[tuple[str, ...]] = ("conv1", "block1", "block2", "block3", "block4")

    units: tuple[int, int, int, int]
    bottleneck: bool
    width: int = 64
    stem: Literal["standard", "small"] = "standard"
    remat: bool = False
    dtype: Any = jnp.float32
    form: Form = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, layer: str | None = None) -> jax.Array:
        """The map of a layer.

        Args:
          x: float [N, h, w, 3].
          train: whether to normalise by the batch; its statistics then enter the collection batch_stats,
            which must be mutable.
          layer: one of `layers`; None is the last.

        Returns:
          [N, h', w', channels of the layer] of `dtype`, not negative. Of [N, 224, 224, 3] and the standard
          stem, the sides of conv1 and block1 to block4 are 112, 56, 28, 14 and 7; of [N, 32, 32, 3] and the
          small one 32, 32, 16, 8 and 4. Channels are `width` in conv1, and in the blocks 1, 2, 4 and 8 times
          that, or with bottlenecks 4, 8, 16 and 32 times.

        Raises:
          InputError: an unknown layer or stem; images smaller than the stride of block4, of whose one pixel
            most would be padding.
        """
        layer = asked_for(layer, self.layers)
        check_known("stem", self.stem, ("standard", "small"))
        standard = self.stem == "standard"
        smallest = 32 if standard else 8
        check_input(x, smallest, f"a ResNet with the {self.stem} stem")

        options = {"dtype": self.dtype, "form": self.form}
        window, stride = (7, 2) if standard else (3, 1)
        x = nn.relu(ConvNorm(self.width, window, stride, name="conv1", **options)(x, train=train))
        if layer == "conv1":
            return x
        if standard:
            # No value is negative: zeros around the map are no one's maximum but their own.
            x = max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2, form=self.form)
        for block, units in enumerate(self.units):
            for unit in range(units):
                stride = 2 if block and not unit else 1
                name = f"block{block + 1}_unit{unit + 1}"
                residual = ResidualUnit(self.width * 2**block, stride, self.bottleneck, name=name, **options)
                apply = lambda unit, x: unit(x, train=train)
                x = (nn.remat(apply) if self.remat else apply)(residual, x)
            if layer == f"block{block + 1}":
                return x
        return x


ResNet18 = functools.partial(ResNet, units=(2, 2, 2, 2), bottleneck=False)
"""11,176,512 parameters; with a classifier of 1,000 classes on the 512 means of block4, 11,689,512."""

ResNet50 = functools.partial(ResNet, units=(3, 4, 6, 3), bottleneck=True)
"""23,508,032 parameters; with a classifier of 1,000 classes on the 2,048 means of block4, 25,557,032."""

for _partial in (ResNet18, ResNet50):
    # By which `runtime.config.unpack` checks the options of a config.
    _partial.__annotations__ = typing.get_type_hints(ResNet)
