"""Questions about frame stacks: what is shown, and that the label says how to undo it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_jax.pretext import auxiliary, frame_order, permutations, rotation
from ssl_jax.runtime.errors import InputError

KEY = jax.random.key(0)
CLASSES = {"rotation": 4, "sequence": 24, "arrow_of_time": 2, "jigsaw": 24}


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


STACKS = noise(16, 84, 84, 4)


def asked(name, stacks=STACKS, key=KEY, **options):
    """The answers as numpy, from a jitted call."""
    task = auxiliary.make(name=name, **options)
    inputs, labels = map(np.asarray, jax.jit(task.function)(key, stacks))
    return task, inputs, labels


def moved(tiles, order):
    """Tiles of an image by rows of tiles: position i shows tile order[i]."""
    rows, columns = tiles
    parts = [part for row in np.split(columns, rows[0], 0) for part in np.split(row, rows[1], 1)]
    shown = [parts[j] for j in order]
    lines = [np.concatenate(shown[i : i + rows[1]], 1) for i in range(0, len(shown), rows[1])]
    return np.concatenate(lines, 0)


# --- The transformations


def test_quarter_turns_by_hand():
    image = np.array([[1, 2], [3, 4]])[None, :, :, None]
    turned = [rotation.rotate(image, jnp.array([k]))[0, :, :, 0].tolist() for k in range(5)]
    assert turned == [
        [[1, 2], [3, 4]],
        [[2, 4], [1, 3]],
        [[4, 3], [2, 1]],
        [[3, 1], [4, 2]],
        [[1, 2], [3, 4]],
    ]


@settings(max_examples=20)
@given(turns=st.lists(st.integers(0, 3), min_size=6, max_size=6), seed=st.integers(0, 99))
def test_rotation_is_that_of_numpy_and_is_undone(turns, seed):
    images, turns = noise(6, 5, 5, 3, seed=seed), np.array(turns)
    turned = jax.jit(rotation.rotate)(images, turns)
    assert turned.dtype == np.uint8
    np.testing.assert_array_equal(turned, [np.rot90(x, k) for x, k in zip(images, turns, strict=True)])
    np.testing.assert_array_equal(jax.jit(rotation.rotate)(turned, 4 - turns), images)


def test_frames_in_another_order_by_hand():
    stack = np.array([10, 11, 12], np.uint8)[None, None, None]
    assert frame_order.permute(stack, jnp.array([[2, 0, 1]])).tolist() == [[[[12, 10, 11]]]]


@settings(max_examples=20)
@given(seed=st.integers(0, 999))
def test_the_inverse_order_brings_the_frames_back(seed):
    stacks = noise(6, 3, 2, 5, seed=seed)
    orders = np.random.default_rng(seed).permuted(np.tile(np.arange(5), (6, 1)), axis=1)
    shown = jax.jit(frame_order.permute)(stacks, orders)
    expected = [permutations.apply(p, x.transpose(2, 0, 1)) for p, x in zip(orders, stacks, strict=True)]
    np.testing.assert_array_equal(np.moveaxis(shown, 3, 1), expected)
    np.testing.assert_array_equal(jax.jit(frame_order.permute)(shown, permutations.invert(orders)), stacks)


# --- The tasks


@pytest.mark.parametrize("name", auxiliary.NAMES)
def test_inputs_look_like_the_stacks(name):
    task, inputs, labels = asked(name)
    assert task.num_classes == CLASSES[name]
    assert (inputs.shape, inputs.dtype) == (STACKS.shape, np.uint8)
    assert (labels.shape, labels.dtype) == ((16,), np.int32)
    # The same pixels, elsewhere.
    np.testing.assert_array_equal(np.sort(inputs.reshape(16, -1)), np.sort(STACKS.reshape(16, -1)))


@pytest.mark.parametrize("name", auxiliary.NAMES)
def test_the_key_is_the_question(name):
    _, inputs, labels = asked(name)
    for key, same in ((KEY, True), (jax.random.key(1), False)):
        _, again, other = asked(name, key=key)
        assert (labels == other).all() == same
        assert (inputs == again).all() == same


@pytest.mark.parametrize("name", auxiliary.NAMES)
def test_labels_are_uniform(name):
    num = 400 * CLASSES[name]
    task, _, labels = asked(name, np.zeros((num, 6, 6, 4), np.uint8), frame_size=(6, 6))
    counts = np.bincount(labels, minlength=task.num_classes)
    assert len(counts) == task.num_classes
    assert abs(counts - 400).max() < 100  # five standard deviations


def test_rotation_turns_the_whole_stack_by_its_label():
    _, inputs, labels = asked("rotation")
    assert set(labels) == {0, 1, 2, 3}
    for shown, label, stack in zip(inputs, labels, STACKS, strict=True):
        np.testing.assert_array_equal(shown, np.rot90(stack, label))


def test_sequence_has_all_orders_and_the_label_names_one():
    stacks = np.tile(np.arange(4, dtype=np.uint8), (1200, 2, 2, 1))  # frame t shows the number t
    _, inputs, labels = asked("sequence", stacks)
    assert (inputs == inputs[:, :1, :1]).all()
    orders = {int(label): tuple(shown[0, 0].tolist()) for label, shown in zip(labels, inputs, strict=True)}
    assert all(orders[label] == tuple(shown[0, 0]) for label, shown in zip(labels, inputs, strict=True))
    assert len(orders) == len(set(orders.values())) == 24
    assert (orders[0], orders[1], orders[23]) == ((0, 1, 2, 3), (0, 1, 3, 2), (3, 2, 1, 0))


def test_sequence_of_another_stack():
    task, _, labels = asked("sequence", noise(64, 2, 2, 3), stack=3)
    assert task.num_classes == 6
    assert set(labels) == set(range(6))


def test_the_arrow_of_time():
    _, inputs, labels = asked("arrow_of_time")
    assert set(labels) == {0, 1}
    for shown, label, stack in zip(inputs, labels, STACKS, strict=True):
        np.testing.assert_array_equal(shown, stack[..., ::-1] if label else stack)


def test_a_jigsaw_by_hand():
    # Two frames; pixels of tile i of frame t show 10 t + i.
    frame = np.kron(np.array([[0, 1], [2, 3]], np.uint8), np.ones((3, 3), np.uint8))
    stacks = np.tile(np.stack([frame, frame + 10], -1)[None], (600, 1, 1, 1))
    _, inputs, labels = asked("jigsaw", stacks, frame_size=(6, 6))
    shown = inputs[:, ::3, ::3].reshape(600, 4, 2)
    np.testing.assert_array_equal(shown[..., 1], shown[..., 0] + 10)  # alike in both frames
    np.testing.assert_array_equal(inputs, np.kron(inputs[:, ::3, ::3], np.ones((1, 3, 3, 1), np.uint8)))
    pairs = {(int(label), tuple(order.tolist())) for label, order in zip(labels, shown[..., 0], strict=True)}
    assert len(pairs) == 24
    assert (1, (0, 1, 3, 2)) in pairs


@pytest.mark.parametrize(("grid", "classes"), [((2, 2), 24), ((3, 3), 100), ((1, 3), 6), ((2, 3), 100)])
def test_the_label_says_how_the_tiles_were_moved(grid, classes):
    task, inputs, labels = asked("jigsaw", grid=grid)
    assert task.num_classes == classes
    # The order of each class, from a stack that shows its own tile numbers.
    rows, columns = grid
    tiles = math.prod(grid)
    numbers = np.arange(tiles, dtype=np.uint8).reshape(1, rows, columns, 1)
    _, order, same = asked("jigsaw", np.tile(numbers, (16, 1, 1, 1)), grid=grid, frame_size=grid)
    np.testing.assert_array_equal(labels, same)
    order = order.reshape(16, tiles)
    for shown, p, stack in zip(inputs, order, STACKS, strict=True):
        np.testing.assert_array_equal(shown, moved((grid, stack), p))
        np.testing.assert_array_equal(moved((grid, shown), permutations.invert(p)), stack)


def test_a_large_jigsaw_takes_its_orders_from_a_maximal_hamming_set():
    numbers = np.tile(np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1), (400, 1, 1, 1))
    options = {"grid": (3, 3), "frame_size": (3, 3), "max_permutations": 12}
    _, inputs, labels = asked("jigsaw", numbers, seed=3, **options)
    expected = permutations.make(num=12, length=9, seed=3)
    np.testing.assert_array_equal(inputs.reshape(400, 9), expected[labels])
    _, other, _ = asked("jigsaw", numbers, seed=4, **options)
    assert (inputs != other).any()


# --- What does not fit


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "sequense"}, "unknown auxiliary task 'sequense', did you mean 'sequence'"),
        ({"name": "sequence", "stack": 1}, "^name='sequence' does not fit a stack of 1 frame"),
        ({"name": "arrow_of_time", "stack": 1}, "^name='arrow_of_time' does not fit a stack of 1 frame"),
        (
            {"name": "rotation", "frame_size": (84, 60)},
            "^name='rotation' does not fit frames of 84 x 60",
        ),
        (
            {"name": "jigsaw", "grid": (5, 2)},
            r"^grid=\(5, 2\) .* 84 x 84 pixels do not divide",
        ),
        ({"name": "jigsaw", "grid": (2, 9)}, "84 x 84 pixels do not divide into a grid of 2 x 9"),
        ({"name": "jigsaw", "grid": (1, 1)}, "^grid must have at least two tiles, not 1 x 1"),
        ({"name": "jigsaw", "grid": (0, 3)}, "at least two tiles, not 0 x 3"),
        (
            {"name": "jigsaw", "grid": (3, 3), "max_permutations": 1},
            "^max_permutations must be at least 2",
        ),
    ],
)
def test_bad_input(options, sentence):
    with pytest.raises(InputError, match=sentence):
        auxiliary.make(**options)


@pytest.mark.parametrize("name", ["rotation", "jigsaw"])
def test_a_stack_of_one_frame_is_a_picture(name):
    _, inputs, _ = asked(name, STACKS[..., :1], stack=1)
    assert inputs.shape == (16, 84, 84, 1)
