"""Jigsaw puzzles: an image cut into a grid of tiles, to be put in order again (Noroozi and Favaro 2016).

    image 210 x 160           window 120 x 120           3 x 3 cells of 40 x 40,   order p: position i
    +--------------+          +-----------+              a 32 x 32 tile at a       shows tile p[i]
    |    .-----.   |  crop    |           |   cut        random place in each      +--+ +--+ +--+
    |    |     |   |  ---->   |           |  ----->      +--+ +--+  +--+   shuffle |p0| |p1| |p2|
    |    '-----'   |          |           |              |0 | |1 |  |2 |   ----->  +--+ +--+ +--+
    +--------------+          +-----------+              +--+ +--+  +--+            ...

Everything is pure, jittable and works on whole batches on the device. Tiles are numbered row by row.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.pretext import augment
from ssl_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Jigsaw:
    """A jigsaw task and its defences against shortcuts, each of which can be switched off.

    Attributes:
      grid: rows and columns of the puzzle.
      window: height and width in pixels of the random part of the image that is cut up; None: all of it.
      tile: height and width of a tile in pixels. A tile smaller than its cell leaves a gap.
      gap_jitter: whether a tile lies at a random place of its cell (else in its centre).
      color_jitter: strength in [0, 1) of random brightness, contrast and saturation; 0 is off.
      grey: share of the images shown in grey (literature: 0.3 to 0.66); 0 is off.
      channel_shift: largest random shift of a colour channel of a tile, in pixels; 0 is off.
      normalize: whether each tile gets mean 0 and deviation 1 (else pixels are 2 x - 1).
    """

    grid: tuple[int, int] = (3, 3)
    window: tuple[int, int] | None = None
    tile: tuple[int, int]
    gap_jitter: bool = True
    color_jitter: float = 0.4
    grey: float = 0.5
    channel_shift: int = 1
    normalize: bool = True

    def __post_init__(self):
        augment.check_shares(color_jitter=self.color_jitter, grey=self.grey)
        if self.channel_shift < 0:
            raise InputError(
                f"channel_shift must be a number of pixels, or 0 (off), not {self.channel_shift}."
            )
        if min(self.grid) < 1 or self.num_parts < 2:
            raise InputError(f"grid={self.grid} must have at least two tiles.")

    @property
    def num_parts(self) -> int:
        """Tiles of a puzzle: the length of its permutations."""
        return self.grid[0] * self.grid[1]

    @property
    def part_size(self) -> tuple[int, int]:
        """Height and width of a tile in pixels."""
        return self.tile

    def check(self, image_size: tuple[int, int]) -> None:
        """Raises InputError unless the window fits the images and the tiles fit their cells."""
        window = self.window or image_size
        if window[0] > image_size[0] or window[1] > image_size[1]:
            raise InputError(
                f"window={window} is larger than the images, config.data.image_size={image_size}; make the "
                "window smaller or the images larger."
            )
        cell = (window[0] // self.grid[0], window[1] // self.grid[1])
        if self.tile[0] > cell[0] or self.tile[1] > cell[1]:
            raise InputError(
                f"tile={self.tile} is larger than a cell: a window of {window} in a {self.grid[0]}x"
                f"{self.grid[1]} grid has cells of {cell}."
            )


def puzzle(key: jax.Array, images: jax.Array, task: Jigsaw, *, train: bool) -> jax.Array:
    """Cuts images into augmented tiles, in their original order.

    Args:
      key: PRNG key of this batch.
      images: uint8 [B, H, W, 3].
      task: sizes and defences.
      train: whether colours are augmented; windows and gaps are random in any case, from the key, so
        that a fixed key gives fixed held-out puzzles of the same kind.

    Returns:
      float32 [B, m, h, w, 3], m = task.num_parts; `shuffle` puts them in the order to be named.
    """
    window_key, tiles_key = jax.random.split(key)
    return tiles(tiles_key, window(window_key, images, task), task, train=train)


def window(key: jax.Array, images: jax.Array, task: Jigsaw) -> jax.Array:
    """The random part of each image, [B, H, W, 3], that is cut up; first half of `puzzle`.

    Places are drawn from beyond the edges, too, and moved inside: along each axis a quarter of the windows
    lie at either edge. Else what is at the edges, such as a game's score, would hardly ever be seen: of
    uniform places one in 91 has the topmost row of 210 in a window of 120.
    """
    if task.window is None:
        return images
    room = np.array(images.shape[1:3]) - task.window
    beyond = room // 2
    offsets = augment.random_offsets(key, images.shape[:1], tuple(room + 2 * beyond))
    offsets = jnp.clip(offsets - beyond[None], 0, room[None])
    return augment.crop(images, offsets, task.window)


def tiles(key: jax.Array, windows: jax.Array, task: Jigsaw, *, train: bool) -> jax.Array:
    """Windows uint8 [B, H, W, 3] -> tiles; second half of `puzzle`."""
    jitter_key, grey_key, cut_key, shift_key = jax.random.split(key, 4)
    windows = windows.astype(jnp.float32) / 255
    if train and task.color_jitter:
        windows = augment.color_jitter(jitter_key, windows, task.color_jitter)
    if train and task.grey:
        windows = augment.random_grey(grey_key, windows, task.grey)
    parts, _ = cut(cut_key, windows, grid=task.grid, tile=task.tile, jitter=task.gap_jitter)
    if train and task.channel_shift:
        parts = augment.shift_channels(shift_key, parts, task.channel_shift)
    return augment.scale(parts, task.normalize)


def cut(
    key: jax.Array, images: jax.Array, *, grid: tuple[int, int], tile: tuple[int, int], jitter: bool
) -> tuple[jax.Array, jax.Array]:
    """Cuts one tile from each cell of a grid.

    Args:
      key: PRNG key.
      images: [B, H, W, C]; rows and columns left over by the grid are dropped at the end.
      grid: rows and columns of cells.
      tile: height and width of a tile, at most those of a cell.
      jitter: whether the tile's place in its cell is random (else the centre).

    Returns:
      Tiles [B, m, h, w, C] row by row, and int32 [B, m, 2], the row and column in pixels of each tile's
      upper left corner inside its cell.
    """
    (rows, columns), cell = grid, (images.shape[1] // grid[0], images.shape[2] // grid[1])
    cells = cover(images[:, : rows * cell[0], : columns * cell[1]], cell)
    cells = cells.reshape(len(images), rows * columns, *cells.shape[3:])
    room = (cell[0] - tile[0], cell[1] - tile[1])
    if jitter:
        offsets = augment.random_offsets(key, cells.shape[:2], room)
    else:
        offsets = jnp.broadcast_to(jnp.array(room) // 2, (*cells.shape[:2], 2))
    return augment.crop(cells, offsets, tile), offsets


def shuffle(tiles: jax.Array, permutations: jax.Array) -> jax.Array:
    """Puts tiles [B, m, ...] in the order of permutations [B, m]: position i shows tile p[i]."""
    index = permutations.reshape(permutations.shape + (1,) * (tiles.ndim - 2))
    return jnp.take_along_axis(tiles, index, axis=1)


def cover(images: jax.Array, tile: tuple[int, int]) -> jax.Array:
    """Covers images [B, H, W, C] with tiles side by side: [B, rows, columns, h, w, C].

    The last row and column repeat the edge pixels where the tiles reach over the image. `join` undoes it.
    """
    batch, height, width, channels = images.shape
    rows, columns = -(-height // tile[0]), -(-width // tile[1])
    pad = [(0, 0), (0, rows * tile[0] - height), (0, columns * tile[1] - width), (0, 0)]
    cells = jnp.pad(images, pad, mode="edge")
    return cells.reshape(batch, rows, tile[0], columns, tile[1], channels).swapaxes(2, 3)


def join(tiles: jax.Array) -> jax.Array:
    """Joins tiles [B, rows, columns, h, w, C], or what became of them, to [B, rows h, columns w, C]."""
    batch, rows, columns, height, width, channels = tiles.shape
    return tiles.swapaxes(2, 3).reshape(batch, rows * height, columns * width, channels)
