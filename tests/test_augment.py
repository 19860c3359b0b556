import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_jax.pretext import augment
from ssl_jax.runtime.errors import InputError

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("little_optimization")


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def test_crop_takes_the_window_at_the_offset():
    images = pictures(2, 3, 10, 12, 3)
    offsets = np.array([[[0, 0], [1, 2], [4, 5]], [[3, 3], [6, 7], [2, 0]]])
    windows = augment.crop(jnp.asarray(images), jnp.asarray(offsets), (4, 5))
    for i in range(2):
        for j in range(3):
            row, column = offsets[i, j]
            np.testing.assert_array_equal(windows[i, j], images[i, j, row : row + 4, column : column + 5])


@settings(max_examples=20)
@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 2**31 - 1))
def test_random_offsets_cover_the_room_and_never_leave_it(rows, columns, seed):
    offsets = np.asarray(augment.random_offsets(jax.random.key(seed), (500,), (rows, columns)))
    np.testing.assert_array_equal(offsets.min(0), [0, 0])
    np.testing.assert_array_equal(offsets.max(0), [rows, columns])


def test_grey_has_the_weights_of_bt601_and_three_equal_channels():
    image = jnp.array([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 1.0]]])
    expected = np.array([0.299, 0.587, 0.5 * 0.886 + 0.114], np.float32)
    np.testing.assert_allclose(augment.to_grey(image), np.stack([expected] * 3, -1)[None], atol=1e-6)


def test_random_grey_leaves_the_other_images_alone():
    images = jnp.asarray(pictures(400, 4, 4, 3))
    grey = np.asarray(augment.random_grey(KEY, images, 0.3))
    unchanged = (grey == np.asarray(images)).all((1, 2, 3))
    np.testing.assert_allclose(grey[~unchanged], augment.to_grey(images)[~unchanged], atol=1e-6)
    assert 0.6 < unchanged.mean() < 0.8


def test_color_jitter_moves_every_image_its_own_way_and_keeps_its_pattern():
    image = np.broadcast_to(pictures(8, 8, 3), (64, 8, 8, 3))
    jittered = np.asarray(augment.color_jitter(KEY, jnp.asarray(image), 0.4))
    means = jittered.mean((1, 2, 3))
    assert len(np.unique(means.round(5))) == 64
    assert means.min() >= image.mean() - 0.45
    assert means.max() <= image.mean() + 0.45
    # Brightness, contrast and saturation are affine in the pixels: one map per image explains it.
    basis = np.c_[image[0].reshape(-1, 3), np.ones(64)]
    residual = (
        jittered[5].reshape(-1, 3) - basis @ np.linalg.lstsq(basis, jittered[5].reshape(-1, 3), rcond=None)[0]
    )
    np.testing.assert_allclose(residual, 0, atol=1e-4)


def test_no_color_jitter_at_strength_zero():
    images = jnp.asarray(pictures(4, 8, 8, 3))
    np.testing.assert_allclose(augment.color_jitter(KEY, images, 0.0), images, atol=1e-6)


@pytest.mark.parametrize("max_shift", [1, 2])
def test_shift_channels_moves_each_channel_as_a_whole(max_shift):
    tiles = pictures(2, 4, 9, 8, 3)
    shifted = np.asarray(augment.shift_channels(KEY, jnp.asarray(tiles), max_shift))
    padded = np.pad(tiles, [(0, 0)] * 2 + [(max_shift, max_shift)] * 2 + [(0, 0)], mode="edge")
    moves = set()
    for index in np.ndindex(2, 4, 3):
        channel, source = shifted[(*index[:2], ..., index[2])], padded[(*index[:2], ..., index[2])]
        found = [
            (row - max_shift, column - max_shift)
            for row in range(2 * max_shift + 1)
            for column in range(2 * max_shift + 1)
            if np.array_equal(channel, source[row : row + 9, column : column + 8])
        ]
        assert len(found) == 1
        moves |= set(found)
    assert len(moves) > 4


def test_normalize_gives_mean_zero_and_deviation_one_per_channel():
    tiles = pictures(3, 9, 16, 16, 3) * np.array([1.0, 0.5, 0.2], np.float32)
    normal = np.asarray(augment.normalize(jnp.asarray(tiles), epsilon=1e-6))
    np.testing.assert_allclose(normal.mean((2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(normal.std((2, 3)), 1, atol=1e-3)


def test_normalize_keeps_a_flat_tile_flat():
    tiles = jnp.full((1, 9, 16, 16, 3), 0.7)
    np.testing.assert_allclose(augment.normalize(tiles), 0, atol=1e-4)


def test_networks_see_pixels_normalised_or_from_minus_one_to_one():
    tiles = jnp.asarray(pictures(2, 4, 4, 3))
    np.testing.assert_array_equal(augment.scale(tiles, True), augment.normalize(tiles))
    np.testing.assert_allclose(augment.scale(tiles, False), 2 * tiles - 1)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_that_are_none_are_named(share):
    with pytest.raises(InputError, match=r"^grey must lie in \[0, 1\]"):
        augment.check_shares(color_jitter=0.0, grey=share)
    augment.check_shares(color_jitter=0.0, grey=1.0)
