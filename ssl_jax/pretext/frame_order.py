"""The order of frames in time (Misra, Zitnick and Hebert 2016; Lee et al. 2017, which order it is).

    clip: u frames          the part around what moves,         scaled down by        order p: position i
    of 210 x 160            moved a little in every frame       an integer            shows frame p[i]
    +----------+
    | .---.    |-+           +---+ +---+ +---+ +---+            +--+ +--+ +--+        +--+ +--+ +--+
    | |o  |    | |   crop    |o  | | o | | o | |  o|   shrink   |0 | |1 | |2 |        |p0| |p1| |p2|
    | '---'    | |   ---->   +---+ +---+ +---+ +---+   ------>  +--+ +--+ +--+ ...    +--+ +--+ +--+ ...
    +----------+ |
      +----------+

Everything is pure, jittable and works on whole batches on the device. `puzzle` gives a clip's frames in true
order and `jigsaw.shuffle` puts them in another; `permute` does that to the frame stacks of an agent.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ssl_jax.pretext import augment
from ssl_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameOrder:
    """A task about frames in time and its defences against shortcuts, each of which can be switched off.

    How a frame looks as a whole must not tell when it was. So the colours of all frames of a clip are
    changed alike, while each frame is normalised alone: then fades and flashes, which would order frames
    without a look at what moves, are gone. (Normalised together, frames would keep their levels.) And the
    encoder, which never sees two frames at once, meets them as it will later meet single pictures.

    Attributes:
      frames: u, frames of a clip.
      size: height and width in pixels of what the network sees of a frame.
      window: height and width in pixels of the part of the picture that is shown, `size` times an integer
        by which it is scaled down, block by block to the mean; None: all of the picture.
      around_motion: whether the window lies around a pixel drawn in proportion to how much it changes in
        the clip, as far as the picture's edges let it; else anywhere. Lee et al. look for large motion.
      jitter: pixels by which the window of every frame is moved at random, each way (as Lee et al. do):
        neither does what stands still stay in its place, nor can edges that meet tell neighbours in time.
      color_jitter: strength in [0, 1) of random brightness, contrast and saturation; 0 is off.
      grey: share of the clips that are shown in grey; 0 is off.
      channel_drop: share of the clips of which one colour channel, drawn at random, is shown in place of
        all three (the channel splitting of Lee et al.); 0 is off.
      normalize: whether each frame gets mean 0 and deviation 1 (else pixels are 2 x - 1).
    """

    frames: int = 4
    size: tuple[int, int]
    window: tuple[int, int] | None = None
    around_motion: bool = True
    jitter: int = 0
    color_jitter: float = 0.0
    grey: float = 0.0
    channel_drop: float = 0.0
    normalize: bool = True

    def __post_init__(self):
        augment.check_shares(
            color_jitter=self.color_jitter,
            grey=self.grey,
            channel_drop=self.channel_drop,
        )
        if self.jitter < 0:
            raise InputError(f"jitter must be a number of pixels, or 0 (off), not {self.jitter}.")
        if self.frames < 2:
            raise InputError(f"frames={self.frames} leaves nothing to order; at least 2 are needed.")

    @property
    def num_parts(self) -> int:
        """Frames of a clip: the length of its permutations."""
        return self.frames

    @property
    def part_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the network sees of a frame."""
        return self.size

    def check(self, image_size: tuple[int, int]) -> None:
        """Raises InputError unless window and jitter fit the pictures, and the size the window."""
        window = self.window or image_size
        augment.check_window(window, self.size, image_size, self.jitter)


def puzzle(key: jax.Array, clips: jax.Array, task: FrameOrder, *, train: bool) -> jax.Array:
    """What the network sees of clips.

    Args:
      key: PRNG key of this batch.
      clips: uint8 [B, u, H, W, 3].
      task: sizes and defences.
      train: whether colours are augmented; windows are random in any case, from the key, so that a fixed
        key gives fixed held-out clips of the same kind.

    Returns:
      float32 [B, u, h, w, 3] in the order of the clips, which `jigsaw.shuffle` changes.
    """
    window_key, colour_key = jax.random.split(key)
    return recolor(colour_key, window(window_key, clips, task), task, train=train)


def window(key: jax.Array, clips: jax.Array, task: FrameOrder) -> jax.Array:
    """The part of the clips' frames, uint8 [B, u, H', W', 3], that is shown; first half of `puzzle`."""
    place_key, jitter_key = jax.random.split(key)
    height, width = task.window or clips.shape[2:4]
    room = (clips.shape[2] - height, clips.shape[3] - width)
    # Not nearer to the edges than the jitter reaches, so that it is the same everywhere.
    if task.around_motion:
        corners = draw_pixels(place_key, motion_energy(clips)) - jnp.array([[height // 2, width // 2]])
        corners = jnp.clip(corners, task.jitter, jnp.array([room]) - task.jitter)
    else:
        free = (room[0] - 2 * task.jitter, room[1] - 2 * task.jitter)
        corners = task.jitter + augment.random_offsets(place_key, clips.shape[:1], free)
    moves = augment.random_offsets(jitter_key, clips.shape[:2], (2 * task.jitter, 2 * task.jitter))
    return augment.crop(clips, corners[:, None] + moves - task.jitter, (height, width))


def recolor(key: jax.Array, windows: jax.Array, task: FrameOrder, *, train: bool) -> jax.Array:
    """Windows uint8 [B, u, H', W', 3] -> what the network sees of them; second half of `puzzle`."""
    jitter_key, grey_key, channel_key = jax.random.split(key, 3)
    pixels = augment.shrink(windows, task.size)
    if train and task.color_jitter:
        pixels = augment.color_jitter_together(jitter_key, pixels, task.color_jitter)
    if train and task.grey:
        pixels = augment.random_grey(grey_key, pixels, task.grey)
    if train and task.channel_drop:
        pixels = drop_channels(channel_key, pixels, task.channel_drop)
    return augment.scale(pixels, task.normalize)


def motion_energy(clips: jax.Array) -> jax.Array:
    """How much each pixel changes: uint8 [B, u, H, W, 3] -> float32 [B, H, W].

    The absolute differences of consecutive frames, summed over frames and channels.
    """
    levels = clips.astype(jnp.int16)
    return jnp.abs(levels[:, 1:] - levels[:, :-1]).sum((1, 4), dtype=jnp.int32).astype(jnp.float32)


def draw_pixels(key: jax.Array, weights: jax.Array) -> jax.Array:
    """Draws a pixel of each picture in proportion to weights.

    Args:
      key: PRNG key.
      weights: float [B, H, W], not negative; where all of a picture are zero, all pixels are alike.

    Returns:
      int32 [B, 2], row and column.
    """
    row_key, column_key = jax.random.split(key)
    weights = jnp.where((weights > 0).any((1, 2), keepdims=True), weights, 1.0)
    rows = _draw(row_key, weights.sum(2))
    columns = _draw(column_key, jnp.take_along_axis(weights, rows[:, None, None], axis=1)[:, 0])
    return jnp.stack([rows, columns], axis=1)


def _draw(key, weights):
    """One index of each row of weights [B, n]."""
    cumulative = jnp.cumsum(weights, axis=1)
    level = jax.random.uniform(key, (len(weights), 1)) * cumulative[:, -1:]
    index = (cumulative <= level).sum(1, dtype=jnp.int32)
    return jnp.minimum(index, weights.shape[1] - 1)  # A level may be rounded up to the sum.


def drop_channels(key: jax.Array, clips: jax.Array, probability: float) -> jax.Array:
    """With this probability, shows one colour channel of a clip, [B, u, h, w, 3], in place of all three."""
    drop_key, channel_key = jax.random.split(key)
    shape = (len(clips), 1, 1, 1, 1)
    channel = jnp.take_along_axis(clips, jax.random.randint(channel_key, shape, 0, 3), axis=-1)
    return jnp.where(jax.random.bernoulli(drop_key, probability, shape), channel, clips)


def permute(stacks: jax.Array, permutations: jax.Array) -> jax.Array:
    """Puts the frames of each stack in another order.

    Args:
      stacks: [B, H, W, T] of any dtype, grey frames on the last axis.
      permutations: int [B, T].

    Returns:
      [B, H, W, T]; position i of stack b shows frame permutations[b, i].
    """
    return jnp.take_along_axis(stacks, permutations[:, None, None, :], axis=3)
