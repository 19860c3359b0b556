import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import accuracy_after_training

from ssl_jax.networks import Compact
from ssl_jax.networks.heads import ColorHead
from ssl_jax.pretext import colorization
from ssl_jax.pretext.colorization import BINS, Colorization
from ssl_jax.runtime.errors import InputError

KEY = jax.random.key(0)


def bin_of(a, b):
    return int(np.flatnonzero((np.array([a, b]) == BINS).all(1))[0])


# Colours


def test_lab_of_known_colours():
    """The corners of the cube, after Lindbloom; middle grey by hand: 116 (0.21404)^(1/3) - 16."""
    rgb = [[1, 1, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]]
    lab = colorization.rgb_to_lab(jnp.array(rgb, jnp.float32))
    expected = [
        [100, 0, 0],
        [0, 0, 0],
        [53.24, 80.09, 67.20],
        [87.73, -86.18, 83.18],
        [32.30, 79.19, -107.86],
        [53.39, 0, 0],
    ]
    np.testing.assert_allclose(lab, expected, atol=0.01)


def test_dark_colours_lie_on_the_straight_parts():
    """0.02 / 12.92 is below 0.0031308, and its 903.3-fold below 8, so that L is that."""
    lab = colorization.rgb_to_lab(jnp.full((1, 3), 0.02))
    np.testing.assert_allclose(lab, [[903.296 * 0.02 / 12.92, 0, 0]], atol=1e-3)


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1))
def test_colours_come_back_from_lab(seed):
    rgb = np.random.default_rng(seed).random((64, 3), np.float32) ** 3  # many dark ones
    np.testing.assert_allclose(
        colorization.lab_to_rgb(colorization.rgb_to_lab(jnp.asarray(rgb))), rgb, atol=1e-4
    )


def test_the_classes_are_the_cells_that_srgb_reaches():
    """A line of constant a and b leaves the cube of colours through its faces: they have all cells."""
    face = np.stack(np.meshgrid(*[np.arange(0, 256, 3) / 255] * 2), axis=-1).reshape(-1, 2)
    faces = np.concatenate([np.insert(face, axis, end, axis=1) for axis in range(3) for end in (0, 1)])
    ab = np.asarray(colorization.rgb_to_lab(jnp.asarray(faces, jnp.float32)))[:, 1:]
    reached = np.unique(np.round(ab / 10).astype(int) * 10, axis=0)
    np.testing.assert_array_equal(BINS, reached)
    assert len(BINS) == Colorization.num_classes == 261


def test_colours_fall_into_their_cell_or_the_nearest_class():
    np.testing.assert_array_equal(colorization.quantize(jnp.asarray(BINS + 4.9)[:130]), np.arange(130))
    outside = np.random.default_rng(0).uniform(-110, 110, (300, 2)).astype(np.float32)
    cells = np.round(outside / 10) * 10
    away = ((cells[:, None] - BINS) ** 2).sum(-1)
    found = np.asarray(colorization.quantize(jnp.asarray(outside)))
    np.testing.assert_array_equal(away[np.arange(300), found], away.min(1))


# Puzzles


def test_area_means_count_pixels_on_borders_for_both_sides():
    line = jnp.array([3.0, 6.0, 9.0])[None, None, :, None]
    np.testing.assert_allclose(colorization.area_mean(line, (1, 2))[0, 0, :, 0], [4.0, 8.0], atol=1e-6)
    maps = np.random.default_rng(0).random((2, 12, 8, 3), np.float32)
    blocks = maps.reshape(2, 3, 4, 2, 4, 3).mean((2, 4))
    np.testing.assert_allclose(colorization.area_mean(jnp.asarray(maps), (3, 2)), blocks, atol=1e-6)


def test_puzzle_shows_lightness_and_asks_for_the_mean_colour_of_each_cell():
    """Red, and a half of red and blue: a = (80.09 + 79.19) / 2, b = (67.20 - 107.86) / 2."""
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[..., 0] = 255
    image[0, :, 2, 0], image[0, :, 2, 2] = 0, 255  # the third column is blue
    task = Colorization(size=(4, 4), normalize=False)
    inputs, targets = colorization.puzzle(KEY, jnp.asarray(image), task, map_size=(1, 2))
    assert inputs.shape == (1, 1, 4, 4, 3)
    lightness = np.array([53.24, 53.24, 32.30, 53.24]) / 50 - 1
    np.testing.assert_allclose(inputs[0, 0], np.broadcast_to(lightness[None, :, None], (4, 4, 3)), atol=1e-3)
    np.testing.assert_array_equal(targets, [[[bin_of(80, 70), bin_of(80, -20)]]])
    assert targets.dtype == jnp.int32


def test_targets_belong_to_the_window_that_is_seen():
    images = np.random.default_rng(0).integers(0, 256, (3, 30, 26, 3), np.uint8)
    task = Colorization(window=(24, 24), size=(12, 12))
    task.check((30, 26))
    inputs, targets = colorization.puzzle(KEY, jnp.asarray(images), task, map_size=(3, 3))
    shown = colorization.view(KEY, jnp.asarray(images), task)
    lab = colorization.rgb_to_lab(shown)
    light = np.asarray(lab[..., 0]).reshape(3, -1)
    seen = np.asarray(inputs[:, 0]).reshape(3, -1, 3)
    normal = (light - light.mean(1, keepdims=True)) / (light.std(1, keepdims=True) + 1)  # epsilon 0.01 of 100
    np.testing.assert_allclose(seen, np.repeat(normal[..., None], 3, axis=-1), atol=1e-4)
    mean_ab = np.asarray(lab[..., 1:]).reshape(3, 3, 4, 3, 4, 2).mean((2, 4))
    np.testing.assert_array_equal(targets, colorization.quantize(jnp.asarray(mean_ab)))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"window": (300, 100)}, "^window=.* is larger than the pictures"),
        ({"window": (100, 100)}, "integer multiple"),
        ({"uniform": 0.0}, r"uniform must lie in \(0, 1\]"),
    ],
)
def test_options_that_do_not_fit_are_named(options, sentence):
    with pytest.raises(InputError, match=sentence):
        Colorization(**{"size": (32, 32)} | options).check((210, 160))


# Rare colours


def test_weights_follow_the_formula_and_have_mean_one_over_the_answers():
    """Far from each other, two colours are smoothed alike: most stays, e^-2 of it goes to each neighbour."""
    grey, red = bin_of(0, 0), bin_of(80, 60)
    prior = np.zeros(261)
    prior[grey], prior[red] = 0.9, 0.1
    weights = np.asarray(colorization.class_weights(jnp.asarray(prior), uniform=0.5))
    smoothed = np.zeros(261)
    for source in (grey, red):
        near = np.array([np.exp(-((BINS[source] - other) ** 2).sum() / 50) for other in BINS])
        smoothed += prior[source] * near / near.sum()
    expected = 1 / (0.5 * smoothed + 0.5 / 261)
    np.testing.assert_allclose(weights, expected / (prior * expected).sum(), rtol=1e-4)
    assert weights[red] > 5 * weights[grey]
    np.testing.assert_allclose((prior * weights).sum(), 1, atol=1e-5)


def test_without_rebalancing_all_colours_weigh_the_same():
    prior = jnp.zeros(261).at[jnp.array([3, 50])].set(0.5)
    np.testing.assert_allclose(colorization.class_weights(prior, uniform=1.0), 1, atol=1e-5)


def test_the_loss_of_a_picture_is_the_weighted_mean_of_its_cells():
    """Equal logits: each cell costs log 261 times its weight."""
    targets = jnp.array([[[0, 1], [2, 2]], [[2, 2], [2, 2]]])
    weights = jnp.ones(261).at[:3].set(jnp.array([4.0, 2.0, 0.5]))
    loss = colorization.loss(jnp.zeros((2, 2, 2, 261)), targets, weights)
    np.testing.assert_allclose(loss, np.log(261) * np.array([7 / 4, 0.5]), rtol=1e-5)


# Back to pictures


def test_the_annealed_mean_lies_between_mean_and_mode():
    logits = jnp.full(261, -1e9).at[bin_of(0, 0)].set(jnp.log(0.7)).at[bin_of(60, 40)].set(jnp.log(0.3))
    mean = lambda temperature: np.asarray(colorization.annealed_mean(logits, temperature))
    np.testing.assert_allclose(mean(1.0), [18, 12], atol=1e-3)
    share = 0.3 ** (1 / 0.38) / (0.3 ** (1 / 0.38) + 0.7 ** (1 / 0.38))
    np.testing.assert_allclose(mean(0.38), [60 * share, 40 * share], atol=1e-3)
    np.testing.assert_allclose(mean(0.02), [0, 0], atol=1e-3)


def test_lightness_is_what_is_left_of_a_picture_without_colours():
    pictures = jnp.asarray(np.random.default_rng(0).random((2, 6, 5, 3), np.float32))
    seen = colorization.lightness(pictures)
    np.testing.assert_allclose(seen[..., 1], colorization.rgb_to_lab(pictures)[..., 0] / 100, atol=1e-6)
    np.testing.assert_array_equal(seen, seen[..., ::-1])


def test_painting_with_its_own_colours_gives_the_picture_again():
    pictures = jnp.asarray(np.random.default_rng(0).random((2, 6, 5, 3), np.float32))
    own = colorization.rgb_to_lab(pictures)[..., 1:]
    np.testing.assert_allclose(colorization.paint(pictures, own), pictures, atol=1e-4)
    grey = colorization.paint(pictures, jnp.zeros((2, 3, 2, 2)))
    np.testing.assert_allclose(grey, jnp.broadcast_to(grey[..., :1], grey.shape), atol=1e-3)
    same = [colorization.rgb_to_lab(array)[..., 0] for array in (grey, pictures)]
    np.testing.assert_allclose(*same, atol=1e-2)


# Learning


class Painter(nn.Module):
    encoder: nn.Module
    head: ColorHead

    @nn.compact
    def __call__(self, parts, task, *, train):
        maps = self.encoder(parts[:, 0], train=train)
        return self.head.classify(self.head.tile_features(maps, train=train)[:, None], train=train)


def test_the_head_answers_each_cell_from_its_own_place_in_the_map():
    head, maps = ColorHead(261, hidden=16), np.random.default_rng(0).random((2, 4, 3, 8), np.float32)
    answer = lambda head, maps: head.classify(head.tile_features(maps, train=False)[:, None], train=False)
    logits, variables = head.init_with_output(KEY, jnp.asarray(maps), method=answer)
    assert logits.shape == (2, 4, 3, 261)
    np.testing.assert_array_equal(logits, 0)  # and the loss begins at log 261
    kernel = jax.random.normal(KEY, (16, 261))
    variables = {"params": {**variables["params"], "classifier": {"kernel": kernel, "bias": jnp.zeros(261)}}}
    logits = head.apply(variables, jnp.asarray(maps), method=answer)
    maps[1, 2, 1] += 1
    changed = head.apply(variables, jnp.asarray(maps), method=answer)
    assert np.argwhere(np.abs(changed - logits).max(-1) > 1e-3).tolist() == [[1, 2, 1]]


def striped(key, num):
    """uint8 [B, 32, 32, 3]: 2 x 2 squares with stripes, reddish across and bluish along."""
    square_key, phase_key = jax.random.split(key)
    across = jax.random.bernoulli(square_key, 0.5, (num, 2, 2)).repeat(16, axis=1).repeat(16, axis=2)
    phase = jax.random.randint(phase_key, (num, 1, 1), 0, 4)
    row, column = (line[None] for line in jnp.mgrid[:32, :32])
    light = jnp.where((jnp.where(across, row, column) + phase) % 4 < 2, 40.0, 60.0)
    ab = jnp.where(across[..., None], jnp.array([40.0, 20.0]), jnp.array([10.0, -40.0]))
    rgb = colorization.lab_to_rgb(jnp.concatenate([light[..., None], ab], axis=-1))
    return jnp.rint(255 * rgb).astype(jnp.uint8)


def test_the_colours_of_stripes_are_learned_from_their_lightness():
    task = Colorization(size=(32, 32))
    answers = jax.jit(lambda key: colorization.puzzle(key, striped(key, 64), task, map_size=(4, 4))[1])(KEY)
    prior = np.float32(np.bincount(np.ravel(answers), minlength=len(BINS)) / answers.size)
    assert set(np.flatnonzero(prior)) == {bin_of(40, 20), bin_of(10, -40)}
    weights = colorization.class_weights(prior, task.uniform)

    def question(key, num, train):
        picture_key, puzzle_key = jax.random.split(key)
        return colorization.puzzle(puzzle_key, striped(picture_key, num), task, map_size=(4, 4))

    accuracy = accuracy_after_training(
        Painter(Compact(width=16), ColorHead(261, hidden=32)),
        question,
        steps=80,
        loss=lambda logits, targets: colorization.loss(logits, targets, weights),
    )
    assert accuracy > 0.9  # always the same answer: 0.5
