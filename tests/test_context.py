import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import accuracy_after_training, named

from ssl_jax.networks import Compact
from ssl_jax.networks.heads import JigsawHead, PuzzleNetwork
from ssl_jax.pretext import context
from ssl_jax.pretext.context import Context
from ssl_jax.runtime.errors import InputError

KEY = jax.random.key(0)
PLAIN = {"color_jitter": 0.0, "grey": 0.0, "channel_shift": 0, "color_drop": 0.0, "normalize": False}


def numbered(num, height, width):
    """Images whose pixel (y, x) is [y, x, 0]: a patch tells where it is from."""
    row, column = np.mgrid[:height, :width]
    image = np.stack([row, column, np.zeros_like(row)], axis=-1).astype(np.uint8)
    return jnp.asarray(np.broadcast_to(image, (num, *image.shape)))


def places(task, index, image_size=(60, 50), key=KEY):
    """Upper left corners, int [B, 2, 2], as read from what is shown."""
    shown = context.puzzle(key, numbered(len(index), *image_size), jnp.asarray(index), task, train=True)
    shown = np.rint((np.asarray(shown) + 1) * 127.5).astype(int)
    corner = shown[:, :, 0, 0, :2]
    size = np.stack(np.mgrid[: task.patch[0], : task.patch[1]], axis=-1)
    np.testing.assert_array_equal(shown[..., :2], corner[:, :, None, None] + size)  # one piece each
    return corner


def test_without_jitter_neighbours_are_a_patch_and_a_gap_away_row_by_row():
    task = Context(patch=(10, 8), gap=3, **PLAIN)
    centre, neighbour = np.moveaxis(places(task, np.arange(8)), 1, 0)
    expected = [[-13, -11], [-13, 0], [-13, 11], [0, -11], [0, 11], [13, -11], [13, 0], [13, 11]]
    np.testing.assert_array_equal(neighbour - centre, expected)


def test_patches_are_jittered_never_touch_each_other_and_stay_in_the_picture():
    task = Context(patch=(10, 8), gap=4, jitter=2, **PLAIN)
    index = np.arange(800) % 8
    corners = places(task, index, image_size=(44, 40))  # an extent of 42 x 36
    assert corners.min() == 0
    assert (corners.max((0, 1)) == [44 - 10, 40 - 8]).all()
    away = corners[:, 1] - corners[:, 0] - np.array(context.NEIGHBOURS)[index] * [14, 12]
    assert (away.min(0) == -4).all()
    assert (away.max(0) == 4).all()
    apart = np.abs(corners[:, 1] - corners[:, 0])
    assert ((apart[:, 0] >= 10) | (apart[:, 1] >= 8)).all()


def test_where_the_centre_is_tells_nothing_about_the_class():
    task = Context(patch=(10, 8), gap=4, jitter=2, **PLAIN)
    centres = [places(task, np.full(50, number))[:, 0] for number in range(8)]
    for other in centres[1:]:
        np.testing.assert_array_equal(other, centres[0])
    assert len(np.unique(centres[0], axis=0)) > 30


def test_a_drop_leaves_one_channel_of_a_patch_and_a_little_noise():
    patches = jax.random.normal(KEY, (300, 2, 12, 12, 3))
    shown = np.asarray(context.drop_colors(jax.random.key(1), patches, 0.5))
    same = (shown == np.asarray(patches)).all((2, 3))  # [B, 2, channel]
    whole, one = same.all(-1), same.sum(-1) == 1
    assert (whole | one).all()
    assert 0.4 < whole.mean() < 0.6
    kept = same[one].mean(0)
    assert (np.abs(kept - 1 / 3) < 0.1).all()
    noise = np.moveaxis(shown, -1, 2)[~same]
    assert 0.009 < noise.std() < 0.011
    assert len(np.unique(noise)) > 1000
    assert (whole[:, 0] != whole[:, 1]).any()  # each patch its own draw


@pytest.mark.parametrize(
    ("defence", "value"),
    [("color_jitter", 0.4), ("grey", 1.0), ("channel_shift", 2), ("color_drop", 1.0), ("jitter", 3),
     ("normalize", True)],
)  # fmt: skip
def test_each_defence_can_be_switched_on_and_off(defence, value):
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 60, 60, 3), np.uint8))
    ask = lambda train, **options: context.puzzle(
        KEY, images, jnp.arange(4), Context(patch=(12, 12), gap=6, **PLAIN | options), train=train
    )
    assert not np.allclose(ask(True), ask(True, **{defence: value}))
    changed_in_tests = not np.allclose(ask(False), ask(False, **{defence: value}))
    assert changed_in_tests == (defence in ("jitter", "normalize"))  # colours are left alone there


def test_both_patches_of_a_pair_have_the_same_change_of_colours():
    images = jnp.full((20, 40, 40, 3), jnp.array([200, 100, 50], jnp.uint8))
    task = Context(patch=(10, 10), gap=2, **PLAIN | {"color_jitter": 0.4})
    shown = np.asarray(context.puzzle(KEY, images, jnp.arange(20) % 8, task, train=True))
    np.testing.assert_allclose(shown[:, 0], shown[:, 1], atol=1e-5)
    assert len(np.unique(shown[:, 0, 0, 0, 0].round(4))) == 20


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"patch": (48, 52)}, r"takes \(168, 180\) pixels of the images, .*\(210, 160\)"),
        ({"jitter": 5}, "jitter=5 must be at most half of .*gap=8"),
        ({"gap": -1}, "gap must be a number of pixels or 0"),
        ({"channel_shift": -1}, "channel_shift must be a number of pixels or 0"),
        ({"color_drop": 2.0}, r"color_drop must lie in \[0, 1\]"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, sentence):
    with pytest.raises(InputError, match=sentence):
        Context(**{"patch": (32, 32), "gap": 8, "jitter": 4} | options).check((210, 160))


def cones(key, num):
    """uint8 [B, 64, 64, 3]: a cone of any colour seen from above, somewhere around the middle."""
    place_key, color_key = jax.random.split(key)
    place = 32 + jax.random.uniform(place_key, (2, num, 1, 1), minval=-4, maxval=4)
    row, column = (line[None] for line in jnp.mgrid[:64, :64])
    distance = jnp.hypot(row - place[0], column - place[1])
    color = jax.random.uniform(color_key, (num, 1, 1, 3), minval=2, maxval=5)
    return (distance[..., None] * color).astype(jnp.uint8)


def test_where_a_neighbour_lies_on_a_cone_is_learned():
    task = Context(patch=(16, 16), gap=4, jitter=2, color_drop=0.3)
    head = JigsawHead(task.num_classes, fc6=32, fc7=32, dropout=0.0)
    network = PuzzleNetwork(Compact(width=16), {"task": head})
    question = named(cones, context.puzzle, task)
    assert accuracy_after_training(network, question, steps=200) > 0.7  # chance is 0.125
