"""Rotation by quarter turns (Gidaris, Singh and Komodakis, ICLR 2018, arXiv 1803.07728).

    picture 210 x 160      window 160 x 160     scaled down by      turned counter-clockwise
    +--------------+       +-----------+        an integer          0      1      2      3
    | .----------. |       |     ^     |         +---+             +---+  +---+  +---+  +---+
    | |    ^     | | crop  |    /|\\    | shrink  | ^ |             | ^ |  | < |  | v |  | > |
    | '----------' | ----> |   /_|_\\   | ---->   +---+    ---->    +---+  +---+  +---+  +---+
    +--------------+       +-----------+

Quarter turns move pixels and compute none, so that no trace of interpolation tells them.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ssl_jax.pretext import augment, jigsaw
from ssl_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotation:
    """A task about the orientation of a picture, and how the picture is shown.

    Attributes:
      window: height and width in pixels of the random part of the picture that is shown, `size` times an
        integer by which it is scaled down, block by block to the mean; None: all of the picture.
      size: height and width in pixels of what the network sees; equal, or a quarter turn would tell.
      color_jitter: strength in [0, 1) of random brightness, contrast and saturation; 0 is off.
      grey: share of the pictures shown in grey, where no blue above tells what is up; 0 is off.
      normalize: whether the picture gets mean 0 and deviation 1 (else pixels are 2 x - 1).
    """

    window: tuple[int, int] | None = None
    size: tuple[int, int]
    color_jitter: float = 0.4
    grey: float = 0.5
    normalize: bool = True

    num_classes: ClassVar[int] = 4
    num_parts: ClassVar[int] = 1

    def __post_init__(self):
        augment.check_shares(color_jitter=self.color_jitter, grey=self.grey)
        if self.size[0] != self.size[1]:
            raise InputError(f"size={self.size} must be square, or its shape tells a quarter turn.")

    @property
    def part_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the network sees."""
        return self.size

    def check(self, image_size: tuple[int, int]) -> None:
        """Raises InputError unless the window fits the images, and the size the window."""
        augment.check_window(self.window, self.size, image_size)


def puzzle(key: jax.Array, images: jax.Array, index: jax.Array, task: Rotation, *, train: bool) -> jax.Array:
    """What the network sees of turned images.

    Args:
      key: PRNG key of this batch.
      images: uint8 [B, H, W, 3].
      index: int32 [B], quarter turns, the classes to be named.
      task: sizes and defences.
      train: whether colours are augmented; windows are random in any case, from the key.

    Returns:
      float32 [B, 1, h, h, 3].
    """
    window_key, jitter_key, grey_key = jax.random.split(key, 3)
    windows = jigsaw.window(window_key, images, task)
    pixels = augment.shrink(windows, task.size)
    if train and task.color_jitter:
        pixels = augment.color_jitter(jitter_key, pixels, task.color_jitter)
    if train and task.grey:
        pixels = augment.random_grey(grey_key, pixels, task.grey)
    return rotate(augment.scale(pixels, task.normalize), index)[:, None]


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
