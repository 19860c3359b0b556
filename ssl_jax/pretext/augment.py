"""Defences against shortcuts: low-level cues that would solve a puzzle without looking at its content.

All functions are pure, work on whole batches on the device, and take an explicit key. Sources: Doersch,
Gupta and Efros 2015 (chromatic aberration), Noroozi and Favaro 2016 (gap, normalisation, grey images).
"""

import dm_pix
import jax
import jax.numpy as jnp

from ssl_jax.runtime.errors import InputError

GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


def check_shares(**shares: float) -> None:
    """Raises InputError unless every option lies in [0, 1]."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise InputError(f"{name} must lie in [0, 1], not {share}.")


def check_window(
    window: tuple[int, int] | None,
    size: tuple[int, int],
    image_size: tuple[int, int],
    jitter: int = 0,
) -> None:
    """Raises InputError unless a part of the images, `window`, shrinks to `size` by an integer factor.

    Args:
      window: height and width in pixels; None: those of the images.
      size: height and width of what the network sees.
      image_size: height and width of the images.
      jitter: pixels for which there must be room on every side of the window.
    """
    shown = window or image_size
    if min(image_size[0] - shown[0], image_size[1] - shown[1]) < 2 * jitter:
        around = f", with jitter={jitter} on every side," if jitter else ""
        raise InputError(
            f"window={window}{around} is larger than the pictures, config.data.image_size={image_size}; make "
            "the window smaller or the pictures larger."
        )
    factor = shown[0] // size[0]
    if factor < 1 or (factor * size[0], factor * size[1]) != tuple(shown):
        raise InputError(
            f"window={window}, {shown[0]} x {shown[1]} pixels, must be size={size} or an integer multiple of "
            "it, the same in height and width."
        )


def crop(images: jax.Array, offsets: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Cuts one window from each image.

    Args:
      images: [..., H, W, C].
      offsets: int32 [..., 2], row and column of the window's upper left pixel.
      size: height and width of the window, in pixels.

    Returns:
      [..., size[0], size[1], C].
    """
    height, width, channels = images.shape[-3:]
    leading = images.shape[:-3]
    if size == (height, width):
        return images

    def one(image, offset):
        return jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), (*size, channels))

    windows = jax.vmap(one)(images.reshape(-1, height, width, channels), offsets.reshape(-1, 2))
    return windows.reshape(*leading, *size, channels)


def random_offsets(key: jax.Array, shape: tuple[int, ...], room: tuple[int, int]) -> jax.Array:
    """Uniform offsets int32 [*shape, 2] with 0 <= offset <= room, in pixels."""
    limit = jnp.broadcast_to(jnp.array(room) + 1, (*shape, 2))
    return jax.random.randint(key, (*shape, 2), 0, limit)


def shrink(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """uint8 [..., H, W, 3] -> float32 [..., h, w, 3] in [0, 1], the mean of each block of pixels."""
    *leading, height, width, channels = images.shape
    if (height, width) == size:
        return images.astype(jnp.float32) / 255
    rows, columns = height // size[0], width // size[1]
    blocks = images.astype(jnp.int32).reshape(*leading, size[0], rows, size[1], columns, channels)
    # Sums of integers: XLA's CPU backend takes tens of times as long for a mean of floats over two axes.
    return blocks.sum((-4, -2)) / (255.0 * rows * columns)


def color_jitter(key: jax.Array, images: jax.Array, strength: float) -> jax.Array:
    """Random brightness, contrast and saturation, one draw per image.

    Args:
      key: PRNG key.
      images: float [B, H, W, 3] in [0, 1].
      strength: brightness moves by up to +-strength, contrast and saturation are scaled by a factor in
        [1 - strength, 1 + strength]; 0 <= strength < 1.
    """

    def one(key, image):
        keys = jax.random.split(key, 3)
        image = dm_pix.random_brightness(keys[0], image, strength)
        image = dm_pix.random_contrast(keys[1], image, lower=1 - strength, upper=1 + strength)
        return _adjust_saturation(
            image, jax.random.uniform(keys[2], (), minval=1 - strength, maxval=1 + strength)
        )

    return jax.vmap(one)(jax.random.split(key, images.shape[0]), images)


def color_jitter_together(key: jax.Array, parts: jax.Array, strength: float) -> jax.Array:
    """`color_jitter` with one draw for all parts of an example, float [B, m, h, w, 3]."""
    stacked = parts.reshape(len(parts), -1, *parts.shape[3:])  # one picture, one part above the other
    return color_jitter(key, stacked, strength).reshape(parts.shape)


def _adjust_saturation(image, factor):
    # Towards or away from its grey version: linear, where a detour over HSV costs ten times as much.
    grey = to_grey(image)
    return grey + factor * (image - grey)


def to_grey(images: jax.Array) -> jax.Array:
    """The grey version of float [..., 3], again with three (equal) channels."""
    grey = images @ jnp.array(GREY_WEIGHTS, images.dtype)
    return jnp.broadcast_to(grey[..., None], images.shape)


def random_grey(key: jax.Array, images: jax.Array, probability: float) -> jax.Array:
    """Turns each of the images, float [B, H, W, 3], grey with this probability."""
    shape = (images.shape[0],) + (1,) * (images.ndim - 1)
    return jnp.where(jax.random.bernoulli(key, probability, shape), to_grey(images), images)


def shift_channels(key: jax.Array, images: jax.Array, max_shift: int) -> jax.Array:
    """Moves every colour channel of every tile by its own offset, up to +-max_shift pixels each way.

    A lens bends colours by different amounts, and the amount grows with the distance from the optical
    centre: it tells where a tile came from. Random shifts larger than that make it useless. Edge pixels
    are repeated. Images are [..., H, W, C].
    """
    height, width = images.shape[-3:-1]
    pad = [(0, 0)] * (images.ndim - 3) + [(max_shift, max_shift), (max_shift, max_shift), (0, 0)]
    padded = jnp.moveaxis(jnp.pad(images, pad, mode="edge"), -1, -3)[..., None]  # [..., C, H', W', 1]
    offsets = random_offsets(key, padded.shape[:-3], (2 * max_shift, 2 * max_shift))
    return jnp.moveaxis(crop(padded, offsets, (height, width))[..., 0], -3, -1)


def normalize(images: jax.Array, epsilon: float = 0.01) -> jax.Array:
    """Mean 0 and deviation 1 per image and channel; float [..., H, W, C] in [0, 1].

    Levels and contrast of neighbouring tiles match, which would give their order away. epsilon (in units
    of full scale) keeps a flat tile flat.
    """
    mean = images.mean((-3, -2), keepdims=True)
    deviation = images.std((-3, -2), keepdims=True)
    return (images - mean) / (deviation + epsilon)


def scale(pixels: jax.Array, normalized: bool) -> jax.Array:
    """Pixels float [..., h, w, 3] in [0, 1] as networks see them: normalised, or 2 x - 1."""
    return normalize(pixels) if normalized else 2 * pixels - 1
