import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_jax.pretext import jigsaw, permutations
from ssl_jax.runtime.errors import InputError

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("little_optimization")
PLAIN = {"color_jitter": 0.0, "grey": 0.0, "channel_shift": 0}


def pictures(batch, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, 3), np.uint8)


@pytest.mark.parametrize("grid", [(3, 3), (2, 2), (2, 4)])
def test_tiles_permutation_and_crops_rebuild_the_image(grid):
    """Every tile, put back where its number and its crop say, shows the pixels of the image."""
    rows, columns = grid
    images, tile = pictures(4, 26 * rows + 1, 24 * columns, seed=1), (20, 17)
    tiles, offsets = jigsaw.cut(KEY, jnp.asarray(images), grid=grid, tile=tile, jitter=True)
    orders = permutations.make(num=8, length=rows * columns)
    index = np.array([3, 0, 7, 5])
    shown = np.asarray(jigsaw.shuffle(tiles, jnp.asarray(orders[index])))

    for picture in range(4):
        rebuilt = np.zeros_like(images[picture], np.int32) - 1
        for position, number in enumerate(orders[index[picture]]):
            top = number // columns * 26 + int(offsets[picture, number, 0])
            left = number % columns * 24 + int(offsets[picture, number, 1])
            rebuilt[top : top + tile[0], left : left + tile[1]] = shown[picture, position]
        covered = rebuilt >= 0
        assert covered.sum() == rows * columns * tile[0] * tile[1] * 3
        np.testing.assert_array_equal(rebuilt[covered], images[picture][covered])
    room = np.asarray(offsets).reshape(-1, 2)
    assert room.min() >= 0
    assert (room.max(0) <= [6, 7]).all()
    assert len(np.unique(room, axis=0)) > 5  # the gap is random


@settings(max_examples=15)
@given(st.integers(0, 99), st.integers(0, 2**31 - 1))
def test_shuffling_by_a_permutation_and_its_inverse_changes_nothing(row, seed):
    order = permutations.make(num=100, length=9)[row]
    tiles = np.random.default_rng(seed).random((1, 9, 4, 5, 3), np.float32)
    shuffled = jigsaw.shuffle(jnp.asarray(tiles), jnp.asarray(order)[None])
    back = jigsaw.shuffle(shuffled, jnp.asarray(permutations.invert(order))[None])
    np.testing.assert_array_equal(back, tiles)
    for position, number in enumerate(order):
        np.testing.assert_array_equal(shuffled[0, position], tiles[0, number])


def test_without_jitter_tiles_lie_in_the_middle_of_their_cells():
    images = pictures(1, 90, 90)
    tiles, offsets = jigsaw.cut(KEY, jnp.asarray(images), grid=(3, 3), tile=(24, 24), jitter=False)
    assert (np.asarray(offsets) == 3).all()
    np.testing.assert_array_equal(tiles[0, 5], images[0, 33:57, 63:87])


def test_tiles_that_cover_an_image_join_to_it_with_its_edge_repeated():
    images = pictures(2, 50, 40)
    tiles = jigsaw.cover(jnp.asarray(images), (20, 16))
    assert tiles.shape == (2, 3, 3, 20, 16, 3)
    np.testing.assert_array_equal(tiles[1, 1, 2, :, :8], images[1, 20:40, 32:40])
    expected = np.pad(images, [(0, 0), (0, 10), (0, 8), (0, 0)], mode="edge")
    np.testing.assert_array_equal(jigsaw.join(tiles), expected)


def test_puzzle_without_defences_is_the_picture():
    task = jigsaw.Jigsaw(tile=(30, 30), gap_jitter=False, normalize=False, **PLAIN)
    images = pictures(2, 90, 90)
    tiles = np.asarray(jigsaw.puzzle(KEY, jnp.asarray(images), task, train=True))
    assert tiles.shape == (2, 9, 30, 30, 3)
    np.testing.assert_allclose(tiles[1, 4], images[1, 30:60, 30:60] / 127.5 - 1, atol=1e-5)


@pytest.mark.parametrize(
    ("defence", "value"),
    [("color_jitter", 0.4), ("grey", 1.0), ("channel_shift", 2), ("gap_jitter", True),
     ("normalize", True), ("window", (60, 60))],
)  # fmt: skip
def test_each_defence_can_be_switched_on_and_off(defence, value):
    plain = {"tile": (20, 20), "gap_jitter": False, "normalize": False, **PLAIN}
    images = jnp.asarray(pictures(2, 90, 90))
    off = jigsaw.puzzle(KEY, images, jigsaw.Jigsaw(**plain), train=True)
    on = jigsaw.puzzle(KEY, images, jigsaw.Jigsaw(**plain | {defence: value}), train=True)
    assert on.shape == off.shape
    assert not np.allclose(on, off)


def test_colours_are_left_alone_outside_training_and_the_same_key_gives_the_same_puzzle():
    task = jigsaw.Jigsaw(window=(60, 60), tile=(16, 16))
    still = jigsaw.Jigsaw(window=(60, 60), tile=(16, 16), **PLAIN)
    images = jnp.asarray(pictures(3, 90, 80))
    held_out = jigsaw.puzzle(KEY, images, task, train=False)
    np.testing.assert_array_equal(held_out, jigsaw.puzzle(KEY, images, still, train=True))
    np.testing.assert_array_equal(held_out, jigsaw.puzzle(KEY, images, task, train=False))
    assert not np.allclose(held_out, jigsaw.puzzle(jax.random.key(1), images, task, train=False))


def test_windows_lie_at_an_edge_a_quarter_of_the_time():
    rows, columns = np.mgrid[:40, :31].astype(np.uint8)
    pictures = jnp.broadcast_to(jnp.asarray(np.stack([rows, columns, rows], -1)), (4000, 40, 31, 3))
    task = jigsaw.Jigsaw(window=(24, 31), tile=(8, 8))
    windows = np.asarray(jigsaw.window(jax.random.key(0), pictures, task))
    assert windows.shape == (4000, 24, 31, 3)
    np.testing.assert_array_equal(windows[0] - windows[0, 0, 0], pictures[0, :24])  # cut, not changed
    share = np.bincount(windows[:, 0, 0, 0], minlength=17) / 4000
    np.testing.assert_allclose(share[[0, 16]], 9 / 33, atol=0.03)  # 8 of the 33 places lie beyond, 1 at it
    np.testing.assert_allclose(share[1:16], 1 / 33, atol=0.015)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tile": (41, 32)}, r"cells of \(40, 40\)"),
        ({"window": (300, 120)}, r"larger than the images"),
        ({"grid": (1, 1)}, "at least two tiles"),
        ({"grey": 1.5}, r"grey must lie in \[0, 1\]"),
        ({"color_jitter": -0.1}, r"color_jitter must lie in \[0, 1\]"),
        ({"channel_shift": -1}, "channel_shift must be a number of pixels, or 0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        jigsaw.Jigsaw(**{"window": (120, 120), "tile": (32, 32)} | changes).check((210, 160))
