import jax
import jax.numpy as jnp
import numpy as np
import pytest
from learning import accuracy_after_training, named

from ssl_jax.networks import Compact
from ssl_jax.networks.heads import FrameOrderHead, PuzzleNetwork
from ssl_jax.pretext import arrow_of_time, frame_order
from ssl_jax.pretext.arrow_of_time import ArrowOfTime
from ssl_jax.runtime.errors import InputError

KEY = jax.random.key(0)


def test_clips_run_forwards_or_backwards_and_are_the_same_otherwise():
    clips = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, 5, 20, 24, 3), np.uint8))
    options = {"frames": 5, "size": (8, 8), "window": (16, 16), "jitter": 2, "color_jitter": 0.4}
    shown = arrow_of_time.puzzle(KEY, clips, jnp.array([0, 1, 1, 0]), ArrowOfTime(**options), train=True)
    frames = frame_order.puzzle(KEY, clips, frame_order.FrameOrder(**options), train=True)
    assert shown.shape == (4, 5, 8, 8, 3)
    for clip, step in enumerate([1, -1, -1, 1]):
        np.testing.assert_array_equal(shown[clip], frames[clip, ::step])


def test_options_are_those_of_frame_order_with_two_classes():
    task = ArrowOfTime(size=(32, 32), window=(96, 96))
    assert (task.num_classes, task.num_parts, task.part_size) == (2, 4, (32, 32))
    with pytest.raises(InputError, match="larger than the pictures"):
        task.check((90, 90))


def growing_squares(key, num):
    """Clips uint8 [B, 4, 20, 20, 3]: a square somewhere, a little larger in every frame."""
    place_key, size_key = jax.random.split(key)
    place = jax.random.uniform(place_key, (2, num, 1, 1, 1), minval=8, maxval=12)
    half = (
        jax.random.uniform(size_key, (num, 1, 1, 1), minval=1, maxval=3) + jnp.arange(4)[None, :, None, None]
    )
    row, column = (line[None, None] for line in jnp.mgrid[:20, :20])
    inside = (jnp.abs(row - place[0]) < half) & (jnp.abs(column - place[1]) < half)
    return jnp.repeat(jnp.where(inside, 255, 0)[..., None], 3, axis=-1).astype(jnp.uint8)


def test_the_direction_of_growth_is_learned():
    """Where it began is random: no single frame tells."""
    task = ArrowOfTime(size=(16, 16), window=(16, 16), around_motion=False, jitter=1)
    head = FrameOrderHead(task.num_classes, fc6=16, lstm=16, dropout=0.0)
    network = PuzzleNetwork(Compact(width=16), {"task": head})
    question = named(growing_squares, arrow_of_time.puzzle, task)
    assert accuracy_after_training(network, question, steps=120) > 0.9  # chance is 0.5
