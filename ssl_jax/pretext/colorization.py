"""Colorization: which colours has a grey picture? (Zhang, Isola and Efros, ECCV 2016, arXiv 1603.08511)

    picture        what is seen: lightness L       what is asked: a, b          classes: cells of 10 x 10
    +------+       +------+  encoder,  h' x w'     +------+ area   h' x w'         ..###..   of the ab plane
    | sRGB | ----> |  L   |  -------->  map,       | a, b | mean   cells           .#####.   that sRGB has:
    +------+       +------+  head       logits     +------+ ---->          ---->   ..####.   261
                                          |                                           |
                                          +---- cross-entropy, rare colours weighted -+

Differs from the paper: the target is the nearest class alone, not a mixture of the five nearest; and there
are 261 classes, the cells in which at least one of the 256^3 colours of sRGB lies, where the paper has 313.
Everything is pure, jittable and works on whole batches on the device.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax.pretext import augment, jigsaw
from ssl_jax.runtime.errors import InputError

CELL = 10  # width of a class in a and in b
# In each column of cells, around a, sRGB reaches those from the first b to the last without a hole.
# A test finds them again from the colours.
_GAMUT = {
    -90: (80, 80), -80: (40, 80), -70: (20, 90), -60: (0, 90), -50: (-20, 90),
    -40: (-30, 90), -30: (-40, 90), -20: (-40, 90), -10: (-50, 90), 0: (-60, 90),
    10: (-70, 80), 20: (-70, 80), 30: (-80, 80), 40: (-90, 80), 50: (-90, 70),
    60: (-100, 70), 70: (-110, 70), 80: (-110, 70), 90: (-90, 0), 100: (-70, -50),
}  # fmt: skip
BINS = np.array(
    [(a, b) for a, (first, last) in _GAMUT.items() for b in range(first, last + 1, CELL)], np.float32
)  # [261, 2], the a and b of every class
_REACH = 11  # cells from 0 to the farthest a or b
_CELLS = np.mgrid[-_REACH : _REACH + 1, -_REACH : _REACH + 1] * CELL
_NEAREST = np.argmin(((_CELLS[..., None] - BINS.T[:, None, None]) ** 2).sum(0), axis=-1).astype(np.int32)

# IEC 61966-2-1, linear sRGB to XYZ; rows divided by their sums, the white point D65.
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_TO_XYZ /= _TO_XYZ.sum(1, keepdims=True)
_DELTA = 6 / 29  # CIE 15: below its cube, the cube root of Lab is a straight line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Colorization:
    """A task about the colours of a grey picture, and how the picture is shown.

    Attributes:
      window: height and width in pixels of the random part of the picture that is shown, `size` times an
        integer by which it is scaled down, block by block to the mean; None: all of the picture.
      size: height and width in pixels of what the network sees.
      uniform: lambda, share of the uniform distribution in what rare colours are weighted by, see
        `class_weights`; 1: all colours weigh the same.
      normalize: whether the lightness gets mean 0 and deviation 1 (else it is scaled to [-1, 1]).
    """

    window: tuple[int, int] | None = None
    size: tuple[int, int]
    uniform: float = 0.5
    normalize: bool = True

    num_classes: ClassVar[int] = len(BINS)
    num_parts: ClassVar[int] = 1

    def __post_init__(self):
        if not 0 < self.uniform <= 1:
            raise InputError(f"uniform must lie in (0, 1], not {self.uniform}.")

    @property
    def part_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the network sees."""
        return self.size

    def check(self, image_size: tuple[int, int]) -> None:
        """Raises InputError unless the window fits the images, and the size the window."""
        augment.check_window(self.window, self.size, image_size)


def puzzle(
    key: jax.Array, images: jax.Array, task: Colorization, *, map_size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Grey pictures, and which colours they have. Nothing is augmented but the place of the window.

    Args:
      key: PRNG key of this batch.
      images: uint8 [B, H, W, 3].
      task: sizes.
      map_size: height h' and width w' of the encoder's map for a picture of `task.size`, any; each cell
        of the map is asked for its share of the picture.

    Returns:
      float32 [B, 1, h, w, 3], the lightness in three equal channels, and classes int32 [B, h', w'].
    """
    lab = rgb_to_lab(view(key, images, task))
    shown = augment.scale(lab[..., :1] / 100, task.normalize)
    targets = quantize(area_mean(lab[..., 1:], map_size))
    return jnp.broadcast_to(shown, lab.shape)[:, None], targets


def view(key: jax.Array, images: jax.Array, task: Colorization) -> jax.Array:
    """The part of images uint8 [B, H, W, 3] of which `puzzle`, with this key, shows the lightness.

    Returns:
      sRGB float32 [B, h, w, 3] in [0, 1].
    """
    return augment.shrink(jigsaw.window(key, images, task), task.size)


def lightness(pixels: jax.Array) -> jax.Array:
    """The lightness of sRGB float [..., 3] in [0, 1], in [0, 1] too and in three equal channels."""
    return jnp.broadcast_to(rgb_to_lab(pixels)[..., :1] / 100, pixels.shape)


def class_weights(prior: jax.Array, uniform: float = 0.5) -> jax.Array:
    """How much each class counts in the loss (Zhang et al. 2016, Sec. 2.2).

    ((1 - uniform) smoothed prior + uniform / Q)^-1, smoothed by a Gaussian of deviation 5 in the ab plane.

    Args:
      prior: float [Q], how often each class is the answer.
      uniform: lambda, in (0, 1].

    Returns:
      float32 [Q], with mean 1 over the answers (the paper: over the smoothed ones), so that the size of the
      loss is that of the unweighted one.
    """
    kernel = np.exp(-((BINS[:, None] - BINS[None]) ** 2).sum(-1) / (2 * 5**2))
    kernel /= kernel.sum(1, keepdims=True)  # each class gives away all that it has
    smoothed = jnp.einsum("p,pq->q", prior, jnp.asarray(kernel), precision="highest")
    weights = 1 / ((1 - uniform) * smoothed + uniform / len(BINS))
    return weights / (prior * weights).sum()


def loss(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted cross-entropy, the mean over each map.

    Args:
      logits: float [B, h', w', Q].
      targets: int32 [B, h', w'].
      weights: float [Q], see `class_weights`.

    Returns:
      float32 [B].
    """
    errors = optax.losses.softmax_cross_entropy_with_integer_labels(logits, targets)
    return (weights[targets] * errors).mean((1, 2))


# --- From answers to pictures


def annealed_mean(logits: jax.Array, temperature: float = 0.38) -> jax.Array:
    """One colour for each distribution over classes (Zhang et al. 2016, Sec. 2.3).

    Args:
      logits: float [..., Q].
      temperature: 1 gives the mean, which is pale; near 0 the mode, which is spotty.

    Returns:
      float32 [..., 2], a and b.
    """
    probabilities = jax.nn.softmax(logits / temperature)
    return jnp.einsum("...q,qc->...c", probabilities, jnp.asarray(BINS), precision="highest")


def paint(pictures: jax.Array, ab: jax.Array) -> jax.Array:
    """Gives pictures other colours, and leaves their lightness.

    Args:
      pictures: sRGB float [B, h, w, 3] in [0, 1], as from `view`.
      ab: float [B, h', w', 2], brought to the size of the pictures by linear interpolation.

    Returns:
      sRGB float32 [B, h, w, 3]; colours out of reach are clipped to [0, 1].
    """
    lightness = rgb_to_lab(pictures)[..., :1]
    ab = jax.image.resize(ab, (*lightness.shape[:3], 2), "linear")
    return jnp.clip(lab_to_rgb(jnp.concatenate([lightness, ab], axis=-1)), 0, 1)


# --- Colours


def quantize(ab: jax.Array) -> jax.Array:
    """Colours [..., 2] -> class int32 [...]: their cell, or the class nearest to it where sRGB has none."""
    cell = jnp.clip(jnp.round(ab / CELL).astype(jnp.int32), -_REACH, _REACH) + _REACH
    return jnp.asarray(_NEAREST)[cell[..., 0], cell[..., 1]]


def area_mean(maps: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The mean over each of h' x w' equal areas: float [B, h, w, C] -> [B, h', w', C].

    Sizes need not divide: a pixel on a border counts for both sides by its parts.
    """
    rows, columns = (jnp.asarray(_shares(*pair)) for pair in zip(maps.shape[1:3], size, strict=True))
    return jnp.einsum("ih,bhwc,jw->bijc", rows, maps, columns, precision="highest")


def _shares(num, parts):
    """float32 [parts, num], the share of each of `num` pixels in each of the equal parts of a line."""
    borders, pixels = np.arange(parts + 1)[:, None] * num / parts, np.arange(num)[None]
    common = np.minimum(borders[1:], pixels + 1) - np.maximum(borders[:-1], pixels)
    return (np.maximum(common, 0) * parts / num).astype(np.float32)


def rgb_to_lab(rgb: jax.Array) -> jax.Array:
    """sRGB float [..., 3] in [0, 1] -> CIE L*a*b* of white point D65: L in [0, 100], a and b in +-110."""
    linear = jnp.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = jnp.einsum("...c,xc->...x", linear, jnp.asarray(_TO_XYZ, rgb.dtype), precision="highest")
    x, y, z = jnp.moveaxis(jnp.where(xyz > _DELTA**3, jnp.cbrt(xyz), xyz / (3 * _DELTA**2) + 4 / 29), -1, 0)
    return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lab_to_rgb(lab: jax.Array) -> jax.Array:
    """The inverse of `rgb_to_lab`; colours that sRGB does not reach come out of [0, 1]."""
    y = (lab[..., 0] + 16) / 116
    root = jnp.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = jnp.where(root > _DELTA, root**3, 3 * _DELTA**2 * (root - 4 / 29))
    matrix = jnp.asarray(np.linalg.inv(_TO_XYZ), lab.dtype)
    linear = jnp.einsum("...x,cx->...c", xyz, matrix, precision="highest")
    power = jnp.maximum(linear, 0.0031308) ** (1 / 2.4)
    return jnp.where(linear <= 0.0031308, 12.92 * linear, 1.055 * power - 0.055)
