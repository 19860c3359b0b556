"""Action values from frame stacks: the network of DQN and its dueling form; their errors are in `losses`.

    frame stack [B, 84, 84, 4] -> trunk -> features [B, 3136] -+-> value     [B, 1] -+-> q [B, A]
                                                               +-> advantage [B, A] -+
                                                               +-> auxiliary logits [B, classes]

Sources: Mnih et al., "Human-level control through deep reinforcement learning", Nature 2015 (trunk); Wang et
al., "Dueling network architectures", arXiv 1511.06581.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssl_jax.networks.layers import Conv, asked_for, check_input
from ssl_jax.runtime.errors import InputError

# U(-1 / sqrt(fan in), 1 / sqrt(fan in)), with which DQN has been trained since its Torch original.
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class NatureTrunk(nn.Module):
    """The convolutions of Mnih et al. 2015 (Methods, model architecture), 84 x 84 x c -> 7 x 7 x 64.

    Parameters: conv1, conv2, conv3, each with kernel and bias.

    Attributes:
      dtype: of the computation; parameters are float32.
    """

    # What a caller can ask for: convolutions after their ReLU.
    layers: ClassVar[tuple[str, ...]] = ("conv1", "conv2", "conv3")

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, layer: str | None = None) -> jax.Array:
        """The map of a layer, for pictures of any number of channels.

        Args:
          x: [N, h, w, c], uint8, which is scaled by 1 / 255, or float, which is taken as it is.
          train: changes nothing; encoders are called with it.
          layer: one of `layers`; None is the last.

        Returns:
          [N, h', w', channels of the layer] of `dtype`, not negative; of [N, 84, 84, c], conv1 to conv3 are
          [N, 20, 20, 32], [N, 9, 9, 64] and [N, 7, 7, 64].

        Raises:
          InputError: an unknown layer, or pictures of fewer than 36 x 36 pixels, which leave none in conv3.
        """
        del train
        layer = asked_for(layer, self.layers)
        check_input(x, 36, "the Nature trunk")
        pixels = x.dtype == jnp.uint8
        x = x.astype(self.dtype)
        if pixels:
            x = x / 255
        # The faster form for layers of so few channels, also under vmap over parameters, where a program is
        # compiled with `layers.compiler_options`.
        conv = functools.partial(Conv, kernel_init=KERNEL_INIT, dtype=self.dtype, form="blocks")
        x = nn.relu(conv(32, window=8, stride=4, name="conv1")(x))
        if layer == "conv1":
            return x
        x = nn.relu(conv(64, window=4, stride=2, name="conv2")(x))
        if layer == "conv2":
            return x
        return nn.relu(conv(64, window=3, name="conv3")(x))


class Head(nn.Module):
    """One hidden layer with ReLU, and linear outputs in float32.

    Attributes:
      outputs: their number.
      hidden: units of the hidden layer.
      dtype: of the computation; parameters are float32.
    """

    outputs: int
    hidden: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        """Float [B, d] -> float32 [B, outputs]."""
        dense = lambda units, name: nn.Dense(units, dtype=self.dtype, kernel_init=KERNEL_INIT, name=name)
        hidden = nn.relu(dense(self.hidden, "hidden")(features))
        return dense(self.outputs, "output")(hidden).astype(jnp.float32)


class QNetwork(nn.Module):
    """Action values, and the answers of an auxiliary task, on one trunk.

    Parameters: trunk; value_head and advantage_head, or q_head; auxiliary_head. One call makes them all:
    `network.init(key, s, method="initialize")`.

    Attributes:
      num_actions: A.
      dueling: whether value and advantages have streams of their own (Wang et al. 2015), or q has one.
      hidden: units of the hidden layer of every stream.
      auxiliary_classes: of the auxiliary task; 0: there is no such head.
      motion_gain: what differs in a frame from the mean of its stack is shown so many times as strong, see
        `amplify_motion`; 1: frames as they are.
      dtype: of the computation; parameters and outputs are float32.
    """

    num_actions: int
    dueling: bool = True
    hidden: int = 512
    auxiliary_classes: int = 0
    motion_gain: float = 1.0
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Names the parts."""
        self.trunk = NatureTrunk(self.dtype)
        if self.dueling:
            self.value_head = Head(1, self.hidden, self.dtype)
            self.advantage_head = Head(self.num_actions, self.hidden, self.dtype)
        else:
            self.q_head = Head(self.num_actions, self.hidden, self.dtype)
        if self.auxiliary_classes:
            self.auxiliary_head = Head(self.auxiliary_classes, self.hidden, self.dtype)

    def features(self, s: jax.Array) -> jax.Array:
        """Frame stacks uint8 [B, 84, 84, stack] -> what the heads see, [B, 3136] of `dtype`."""
        if self.motion_gain != 1:
            s = amplify_motion(s.astype(self.dtype) / 255, self.motion_gain)
        return self.trunk(s).reshape(len(s), -1)

    def __call__(self, s: jax.Array) -> jax.Array:
        """Frame stacks uint8 [B, 84, 84, stack] -> action values float32 [B, A]."""
        features = self.features(s)
        if not self.dueling:
            return self.q_head(features)
        # Two streams send gradients into one trunk (Wang et al. 2015, Sec. 4.2).
        features = scale_gradient(features, 1 / math.sqrt(2))
        advantage = self.advantage_head(features)
        # Equation 9: without the mean, value and advantage could trade any constant.
        return self.value_head(features) + advantage - advantage.mean(-1, keepdims=True)

    def auxiliary(self, s: jax.Array) -> jax.Array:
        """Frame stacks uint8 [B, 84, 84, stack] -> float32 logits [B, auxiliary_classes > 0]."""
        return self.auxiliary_head(self.features(s))

    def initialize(self, s: jax.Array) -> jax.Array:
        """Reaches every parameter, for `init`; returns the action values."""
        if self.auxiliary_classes:
            self.auxiliary(s)
        return self(s)


def trunk_from_encoder(
    encoder: Mapping[str, Mapping[str, Any]], stack: int
) -> dict[str, dict[str, jax.Array]]:
    """Parameters of a `NatureTrunk` for grey stacks, from those of one for colour pictures or for stacks.

    A kernel for c channels is summed over them, as a grey picture has the same value in all, and spread
    evenly over the frames, as Carreira and Zisserman 2017 (Sec. 2) inflate kernels in time: a stack of equal
    frames then gets the answers that the grey picture got.

    Args:
      encoder: conv1, conv2 and conv3, each with kernel and bias.
      stack: frames that the new trunk sees.

    Raises:
      InputError: the encoder is no Nature trunk.
    """
    shapes = {"conv1": (8, 8, -1, 32), "conv2": (4, 4, 32, 64), "conv3": (3, 3, 64, 64)}
    for name, wanted in shapes.items():
        shape = np.shape(encoder.get(name, {}).get("kernel", ()))
        if len(shape) != 4 or any(size not in (-1, found) for size, found in zip(wanted, shape, strict=True)):
            raise InputError(
                f"the encoder's {name} has a kernel of shape {shape}, where the trunk of a Q-network has "
                f"{wanted} (-1: any): train one with config.encoder.name=nature."
            )
    trunk = {name: dict(encoder[name]) for name in shapes}
    kernel = trunk["conv1"]["kernel"]
    if kernel.shape[2] != stack:
        trunk["conv1"]["kernel"] = np.repeat(kernel.sum(2, keepdims=True) / stack, stack, axis=2)
    return jax.tree.map(jnp.asarray, trunk)


def amplify_motion(stacks: jax.Array, gain: float) -> jax.Array:
    """The mean of a stack plus `gain` times what differs from it, float [..., stack].

    A change of coordinates that loses nothing. In a game's frames what moves is small and pale beside what
    stands still: of a stack of Pong, 23 of 2704 pixels change from a frame to the next. Without a gain the
    order of the frames is a needle that gradient descent does not find.
    """
    still = stacks.mean(-1, keepdims=True)
    return still + gain * (stacks - still)


def scale_gradient(x: jax.Array, scale: float) -> jax.Array:
    """`x`, exactly; gradients that come back through it are multiplied by `scale`."""
    constant = lax.stop_gradient(x)
    return constant + scale * (x - constant)
