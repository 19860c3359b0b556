"""The relative position of two patches (Doersch, Gupta and Efros, ICCV 2015, arXiv 1505.05192).

    picture 210 x 160          3 x 3 patches of 32 x 32,      the centre and one of its
    +---------------+          8 pixels apart, as one block    neighbours: which?
    |  .---------.  |          anywhere in the picture
    |  |         |  |           +--+ +--+ +--+
    |  |         |  |           |0 | |1 | |2 |                 +--+  +--+
    |  |         |  |   ---->   +--+ +--+ +--+       ---->     |  |  |  |  -> 4
    |  '---------'  |           |3 | |  | |4 |                 +--+  +--+
    |               |           +--+ +--+ +--+                centre, patch 4
    +---------------+           |5 | |6 | |7 |
                                +--+ +--+ +--+

Everything is pure, jittable and works on whole batches on the device.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from ssl_jax.pretext import augment
from ssl_jax.runtime.errors import InputError

NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))  # rows and columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """A task about where a patch lies from another, and its defences against shortcuts.

    Room is always kept for all eight neighbours, so that the place of the centre (at an edge, in a corner)
    tells nothing about which of them is shown.

    Attributes:
      patch: height and width of a patch in pixels.
      gap: pixels between patches, so that no line or pattern goes on from one to the other. Half a patch in
        the paper.
      jitter: pixels by which every patch is moved at random, each way: 2 jitter <= gap. Paper: 7 of 96.
      color_jitter: strength in [0, 1) of random brightness, contrast and saturation of both; 0 is off.
      grey: share of the pairs shown in grey; 0 is off.
      channel_shift: largest random shift of a colour channel of a patch, in pixels; 0 is off.
      color_drop: share of the patches that keep one colour channel, drawn at random, and have noise instead
        of the others. Like the shift a defence against chromatic aberration; all patches in the paper, but
        features from a share of 1 have never seen colour. 0 is off.
      normalize: whether each patch gets mean 0 and deviation 1 (else pixels are 2 x - 1).
    """

    patch: tuple[int, int]
    gap: int
    jitter: int = 0
    color_jitter: float = 0.4
    grey: float = 0.0
    channel_shift: int = 1
    color_drop: float = 0.5
    normalize: bool = True

    num_classes: ClassVar[int] = len(NEIGHBOURS)
    num_parts: ClassVar[int] = 2

    def __post_init__(self):
        augment.check_shares(color_jitter=self.color_jitter, grey=self.grey, color_drop=self.color_drop)
        for name in ("gap", "jitter", "channel_shift"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be a number of pixels or 0, not {getattr(self, name)}.")
        if 2 * self.jitter > self.gap:
            raise InputError(
                f"jitter={self.jitter} must be at most half of gap={self.gap}, or patches that overlap tell "
                "the answer."
            )

    @property
    def part_size(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return self.patch

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width in pixels of the block of 3 x 3 patches, with room for the jitter."""
        around = 2 * (self.gap + self.jitter)
        return 3 * self.patch[0] + around, 3 * self.patch[1] + around

    def check(self, image_size: tuple[int, int]) -> None:
        """Raises InputError unless a patch and its eight neighbours fit the images."""
        if self.extent[0] > image_size[0] or self.extent[1] > image_size[1]:
            raise InputError(
                f"patch={self.patch} is too large: with its neighbours, gap and jitter "
                f"it takes {self.extent} pixels of the images, config.data.image_size={image_size}."
            )


def puzzle(key: jax.Array, images: jax.Array, index: jax.Array, task: Context, *, train: bool) -> jax.Array:
    """What the network sees of two patches of each image.

    Args:
      key: PRNG key of this batch.
      images: uint8 [B, H, W, 3].
      index: int32 [B], the classes to be named: which of the neighbours is shown, row by row.
      task: sizes and defences.
      train: whether colours are augmented; places are random in any case, from the key, and that of the
        centre does not depend on the class.

    Returns:
      float32 [B, 2, h, w, 3], the centre and its neighbour.
    """
    place_key, jitter_key, grey_key, shift_key, drop_key = jax.random.split(key, 5)
    places = corners(place_key, index, images.shape[1:3], task)
    patches = jnp.stack([augment.crop(images, places[:, part], task.patch) for part in range(2)], axis=1)
    patches = patches.astype(jnp.float32) / 255
    if train and task.color_jitter:
        patches = augment.color_jitter_together(jitter_key, patches, task.color_jitter)
    if train and task.grey:
        patches = augment.random_grey(grey_key, patches, task.grey)
    if train and task.channel_shift:
        patches = augment.shift_channels(shift_key, patches, task.channel_shift)
    patches = augment.scale(patches, task.normalize)
    if train and task.color_drop:
        patches = drop_colors(drop_key, patches, task.color_drop)
    return patches


def corners(key: jax.Array, index: jax.Array, image_size: tuple[int, int], task: Context) -> jax.Array:
    """Where the upper left pixels of the centre and of neighbour `index` [B] are: int32 [B, 2, 2]."""
    block_key, jitter_key = jax.random.split(key)
    room = (image_size[0] - task.extent[0], image_size[1] - task.extent[1])
    pitch = jnp.array([[task.patch[0] + task.gap, task.patch[1] + task.gap]])
    centre = augment.random_offsets(block_key, index.shape, room) + pitch
    neighbour = centre + jnp.array(NEIGHBOURS)[index] * pitch
    # From 0 to 2 jitter: the block's extent has the room.
    moves = augment.random_offsets(jitter_key, (*index.shape, 2), (2 * task.jitter, 2 * task.jitter))
    return jnp.stack([centre, neighbour], axis=1) + moves


def drop_colors(key: jax.Array, patches: jax.Array, probability: float) -> jax.Array:
    """Replaces two of the three colour channels of a patch by noise, with this probability.

    The noise is Gaussian around 0 with 1/100 of the deviation of the channel that stays (Doersch et al. 2015,
    Sec. 3.1). Patches are float [B, m, h, w, 3] as the network sees them.
    """
    drop_key, channel_key, noise_key = jax.random.split(key, 3)
    kept = jax.random.randint(channel_key, (*patches.shape[:2], 1, 1, 1), 0, 3)
    deviation = jnp.take_along_axis(patches.std((2, 3), keepdims=True), kept, axis=-1)
    noise = 0.01 * deviation * jax.random.normal(noise_key, patches.shape)
    dropped = jnp.where(kept == jnp.arange(3)[None, None, None, None], patches, noise)
    return jnp.where(jax.random.bernoulli(drop_key, probability, kept.shape), dropped, patches)
