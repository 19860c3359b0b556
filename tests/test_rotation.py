import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import accuracy_after_training, named

from ssl_jax.networks import Compact
from ssl_jax.networks.heads import JigsawHead, PuzzleNetwork
from ssl_jax.pretext import rotation
from ssl_jax.pretext.rotation import Rotation
from ssl_jax.runtime.errors import InputError

KEY = jax.random.key(0)
PLAIN = {"color_jitter": 0.0, "grey": 0.0, "normalize": False}


def pictures(num, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, 3), np.uint8)


def test_without_defences_the_picture_is_turned_as_numpy_does():
    images, index = pictures(8, 12, 12), np.arange(8) % 4
    task = Rotation(size=(12, 12), **PLAIN)
    shown = rotation.puzzle(KEY, jnp.asarray(images), jnp.asarray(index), task, train=True)
    assert shown.shape == (8, 1, 12, 12, 3)
    for i in range(8):
        np.testing.assert_allclose(shown[i, 0], np.rot90(images[i], index[i]) / 127.5 - 1, atol=1e-5)


def test_windows_are_cut_anywhere_and_scaled_down_by_the_mean_of_blocks():
    images = pictures(40, 14, 12)
    task = Rotation(window=(9, 9), size=(3, 3), **PLAIN)
    task.check((14, 12))
    shown = rotation.puzzle(KEY, jnp.asarray(images), jnp.zeros(40, jnp.int32), task, train=True)[:, 0]
    windows = np.lib.stride_tricks.sliding_window_view(images, (9, 9), axis=(1, 2))  # [B, 6, 4, 3, 9, 9]
    means = windows.reshape(40, 6, 4, 3, 3, 3, 3, 3).mean((-3, -1)) / 127.5 - 1
    found = np.isclose(means, np.moveaxis(shown, -1, 1)[:, None, None], atol=1e-5).all((-3, -2, -1))
    assert (found.sum((1, 2)) == 1).all()
    assert found.any(0).sum() > 12  # of 24 places


def test_a_turn_changes_nothing_but_the_orientation():
    """The class must not tell anything else: same key, same window, same colours."""
    task = Rotation(window=(16, 16), size=(8, 8))
    images = jnp.asarray(pictures(6, 20, 24))
    upright = rotation.puzzle(KEY, images, jnp.zeros(6, jnp.int32), task, train=True)[:, 0]
    for turns in range(4):
        shown = rotation.puzzle(KEY, images, jnp.full(6, turns), task, train=True)[:, 0]
        np.testing.assert_allclose(jnp.rot90(shown, -turns, axes=(1, 2)), upright, atol=1e-5)


@pytest.mark.parametrize(("defence", "value"), [("color_jitter", 0.4), ("grey", 1.0), ("normalize", True)])
def test_each_defence_can_be_switched_on_and_off(defence, value):
    images, index = jnp.asarray(pictures(3, 12, 12)), jnp.arange(3)
    ask = lambda train, **options: rotation.puzzle(
        KEY, images, index, Rotation(size=(12, 12), **PLAIN | options), train=train
    )
    assert not np.allclose(ask(True), ask(True, **{defence: value}))
    changed_in_tests = not np.allclose(ask(False), ask(False, **{defence: value}))
    assert changed_in_tests == (defence == "normalize")  # colours are left alone outside training


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"window": (160, 170)}, r"window=\(160, 170\) is larger than the pictures, .*\(210, 160\)"),
        ({"window": (160, 128)}, "integer multiple"),
        ({"window": (72, 72)}, "integer multiple"),
        ({"window": (16, 16)}, "integer multiple"),
        ({}, r"window=None, 210 x 160 pixels, must be .*size=\(32, 32\)"),
        ({"size": (32, 40)}, "must be square"),
        ({"grey": 1.5}, r"grey must lie in \[0, 1\]"),
        ({"color_jitter": -0.1}, r"color_jitter must lie in \[0, 1\]"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options, sentence):
    with pytest.raises(InputError, match=sentence):
        Rotation(**{"size": (32, 32)} | options).check((210, 160))


def arrowheads(key, num):
    """uint8 [B, 20, 20, 3]: a triangle on its base, in any place, size and colour, on any ground."""
    place_key, size_key, color_key = jax.random.split(key, 3)
    place = jax.random.uniform(place_key, (2, num, 1, 1), minval=7, maxval=13)
    half = jax.random.uniform(size_key, (num, 1, 1), minval=4, maxval=6)
    row, column = (line[None] for line in jnp.mgrid[:20, :20])
    from_top = row - place[0] + half
    inside = (from_top > 0) & (from_top < 2 * half) & (jnp.abs(column - place[1]) < from_top / 2)
    colors = jax.random.randint(color_key, (2, num, 1, 1, 3), 0, 256)
    return jnp.where(inside[..., None], colors[0], colors[1]).astype(jnp.uint8)


def test_how_arrowheads_are_turned_is_learned():
    task = Rotation(window=(16, 16), size=(16, 16))
    head = JigsawHead(task.num_classes, fc6=32, fc7=32, dropout=0.0)
    network = PuzzleNetwork(Compact(width=16), {"task": head})
    question = named(arrowheads, rotation.puzzle, task)
    assert accuracy_after_training(network, question, steps=300) > 0.8  # chance is 0.25
