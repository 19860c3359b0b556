import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from ssl_jax.networks.heads import FrameOrderHead, PuzzleNetwork
from ssl_jax.networks.layers import Conv
from ssl_jax.pretext import augment, frame_order, jigsaw, permutations
from ssl_jax.pretext.frame_order import FrameOrder
from ssl_jax.runtime.errors import InputError

HEIGHT, WIDTH, FRAMES = 40, 50, 4

window = jax.jit(frame_order.window, static_argnames="task")
puzzle = jax.jit(frame_order.puzzle, static_argnames=("task", "train"))


def mapped_clips(pixels):
    """Clips whose red and green are row and column, and whose blue flickers at one pixel of each, [B, 2]."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    picture = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    clips = np.tile(picture, (len(pixels), FRAMES, 1, 1, 1))
    for clip, (row, column) in zip(clips, pixels, strict=True):
        clip[1::2, row, column, 2] = 255
    return clips


def corners(windows):
    """Where windows of `mapped_clips` were cut: [B, u, 2]."""
    return np.asarray(windows)[:, :, 0, 0, :2].astype(int)


# Where the window is


def test_motion_energy_is_summed_over_frames_and_channels():
    clip = np.zeros((1, 3, 1, 2, 3), np.uint8)
    clip[0, 1, 0, 0] = [255, 3, 0]
    clip[0, 2, 0, 0] = [0, 4, 0]
    np.testing.assert_array_equal(frame_order.motion_energy(clip), [[[255 + 3 + 255 + 1, 0]]])


def test_pixels_are_drawn_in_proportion_to_their_weights():
    weights = np.zeros((1, 3, 4), np.float32)
    weights[0, 0, 1], weights[0, 2, 0], weights[0, 2, 3] = 1, 2, 5
    draw = jax.jit(frame_order.draw_pixels)
    pixels = np.asarray(draw(jax.random.key(0), np.tile(weights, (8000, 1, 1))))
    shares = np.zeros((3, 4))
    np.add.at(shares, tuple(pixels.T), 1 / 8000)
    np.testing.assert_allclose(shares, weights[0] / 8, atol=0.02)  # 3.6 deviations
    np.testing.assert_array_equal(shares[weights[0] == 0], 0)
    still = np.asarray(draw(jax.random.key(0), np.zeros((8000, 3, 4), np.float32)))
    shares = np.zeros((3, 4))
    np.add.at(shares, tuple(still.T), 1 / 8000)
    np.testing.assert_allclose(shares, 1 / 12, atol=0.02)


def test_the_window_lies_around_what_moves():
    task = FrameOrder(size=(10, 16), window=(10, 16), jitter=0)
    pixels = np.random.default_rng(0).integers([HEIGHT, WIDTH], size=(60, 2))
    cut = corners(window(jax.random.key(0), mapped_clips(pixels), task))
    expected = np.clip(pixels - [5, 8], 0, [HEIGHT - 10, WIDTH - 16])
    np.testing.assert_array_equal(cut, np.broadcast_to(expected[:, None], cut.shape))


@pytest.mark.parametrize("around_motion", [True, False])
def test_jitter_is_the_same_for_every_frame_and_place(around_motion):
    """Its law does not depend on the frame: so it says nothing of time. Nor on the edges."""
    task = FrameOrder(size=(10, 16), window=(20, 32), jitter=3, around_motion=around_motion)
    pixels = np.random.default_rng(0).integers([HEIGHT, WIDTH], size=(600, 2))
    cut = corners(window(jax.random.key(1), mapped_clips(pixels), task))
    if around_motion:
        base = np.clip(pixels - [10, 16], 3, np.array([HEIGHT - 23, WIDTH - 35]))
        moves = cut - base[:, None]
        for frame in range(FRAMES):
            for axis in range(2):
                shares = np.bincount(moves[:, frame, axis] + 3, minlength=7) / 600
                np.testing.assert_allclose(shares, 1 / 7, atol=0.06)  # 4.2 deviations
        correlation = np.corrcoef(moves.reshape(600, -1).T) - np.eye(2 * FRAMES)
        assert np.abs(correlation).max() < 0.2  # 4.9 deviations
    else:
        moved = cut - cut[:, :1]
        assert (moved.min(), moved.max()) == (-6, 6)
        assert (cut.min((0, 1)) == 0).all()
        assert (cut.max((0, 1)) == [HEIGHT - 20, WIDTH - 32]).all()
    assert cut.min() >= 0
    assert (cut <= [HEIGHT - 20, WIDTH - 32]).all()


def test_windows_are_scaled_down_by_the_mean_of_blocks():
    frames = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(1, 1, 4, 6, 3)
    small = np.asarray(augment.shrink(frames, (2, 3))) * 255
    # The block of rows 2 and 3, columns 4 and 5: of red 48, 51, 66 and 69.
    np.testing.assert_allclose(small[0, 0, 1, 2], [58.5, 59.5, 60.5], rtol=1e-5)
    assert small.shape == (1, 1, 2, 3, 3)
    whole = FrameOrder(size=(20, 25), around_motion=False, normalize=False)
    clips = np.random.default_rng(0).integers(256, size=(2, FRAMES, 40, 50, 3), dtype=np.uint8)
    shown = puzzle(jax.random.key(0), clips, whole, train=True)
    np.testing.assert_allclose(shown, 2 * augment.shrink(clips, (20, 25)) - 1, atol=1e-6)


# Colours


@hypothesis.settings(max_examples=8)
@hypothesis.given(seed=st.integers(0, 99))
def test_all_frames_of_a_clip_are_coloured_alike(seed):
    options = {"color_jitter": 0.4, "grey": 0.4, "channel_drop": 0.4, "normalize": False}
    task = FrameOrder(size=(6, 5), window=(6, 5), **options)
    pictures = np.random.default_rng(seed).integers(256, size=(8, 1, 6, 5, 3), dtype=np.uint8)
    clips = np.repeat(pictures, FRAMES, axis=1)
    shown = np.asarray(puzzle(jax.random.key(seed), clips, task, train=True))
    np.testing.assert_allclose(shown, np.broadcast_to(shown[:, :1], shown.shape), atol=1e-6)
    plain = np.asarray(puzzle(jax.random.key(seed), clips, task, train=False))
    np.testing.assert_allclose(plain, 2 * (clips / 255) - 1, atol=1e-6)
    assert np.abs(shown - plain).max((1, 2, 3, 4)).min() > 0.01


def test_a_dropped_clip_shows_one_of_its_channels():
    clips = jnp.asarray(np.random.default_rng(0).random((200, 2, 2, 3, 3), np.float32))
    dropped = np.asarray(jax.jit(frame_order.drop_channels)(jax.random.key(0), clips, 0.5))
    of = np.stack([(dropped == clips[..., i, None]).all((1, 2, 3, 4)) for i in range(3)], axis=1)
    kept = (dropped == clips).all((1, 2, 3, 4))
    np.testing.assert_array_equal(of.sum(1) + kept, 1)
    np.testing.assert_allclose([*of.mean(0), kept.mean()], [1 / 6, 1 / 6, 1 / 6, 1 / 2], atol=0.11)


def test_a_fade_gives_no_order_away():
    """The same picture ever darker and flatter: normalised frame by frame, its frames are all alike."""
    picture = np.random.default_rng(0).integers(256, size=(12, 12, 3))
    clips = np.stack([picture * share + 20 * share for share in (0.8, 0.7, 0.6, 0.5)])[None].astype(np.uint8)
    seen = {
        normalize: np.asarray(
            puzzle(jax.random.key(0), clips, FrameOrder(size=(12, 12), normalize=normalize), train=False)
        )
        for normalize in (True, False)
    }
    differences = {name: np.abs(frames[0, 1:] - frames[0, :1]).mean() for name, frames in seen.items()}
    assert differences[True] < 0.02
    assert differences[False] > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (30, 30), "window": (60, 90)}, r"^window=\(60, 90\).*multiple"),
        ({"size": (30, 30), "window": (20, 20)}, "multiple"),
        ({"size": (30, 30)}, r"^window=\(210, 160\)"),
        ({"size": (110, 80), "window": (220, 160)}, "larger than the pictures"),
        (
            {"size": (70, 70), "window": (140, 140), "jitter": 11},
            "jitter=11.*larger than the pictures",
        ),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(InputError, match=message):
        FrameOrder(**options).check((210, 160))


def test_sizes_that_fit():
    FrameOrder(size=(70, 70), window=(140, 140), jitter=10).check((210, 160))
    FrameOrder(size=(105, 80)).check((210, 160))
    task = FrameOrder(frames=8, size=(30, 32))
    assert (task.num_parts, task.part_size) == (8, (30, 32))


@pytest.mark.parametrize(
    "options", [{"grey": 1.1}, {"color_jitter": -1}, {"channel_drop": 2}, {"jitter": -1}, {"frames": 1}]
)
def test_options_out_of_range(options):
    with pytest.raises(InputError, match=f"^{next(iter(options))}"):
        FrameOrder(size=(8, 8), **options)


# Learning


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.relu(Conv(8, 4, stride=4, padding=1)(x))


def flying_dots(key, num):
    """Clips uint8 [B, 4, 16, 16, 3] of a dot that flies straight on, in any direction, as fast as all."""
    angle_key, start_key = jax.random.split(key)
    angle = jax.random.uniform(angle_key, (num, 1, 1), maxval=2 * jnp.pi)
    velocity = 2.5 * jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    start = 8 + jax.random.uniform(start_key, (num, 1, 2), minval=-1.5, maxval=1.5)
    place = start + velocity * (jnp.arange(4) - 1.5)[None, :, None]
    pixels = jnp.stack(jnp.meshgrid(jnp.arange(16), jnp.arange(16), indexing="ij"), axis=-1)
    distance = ((pixels[None, None] - place[:, :, None, None]) ** 2).sum(-1)
    return jnp.repeat((255 * jnp.exp(-distance / 2))[..., None], 3, axis=-1).astype(jnp.uint8)


def test_the_order_of_flying_dots_is_learned():
    """Backwards they fly as well as forwards: with orders and their reverses merged, 12 are to be told."""
    task = FrameOrder(size=(14, 14), window=(14, 14), around_motion=False, jitter=1)
    orders = jnp.asarray(permutations.make(num=12, length=4, include_identity=True, merge_reversed=True))
    network = PuzzleNetwork(Encoder(), {"temporal": FrameOrderHead(12, fc6=32, lstm=32, dropout=0.0)})
    optimizer = optax.adam(1e-2)

    def example(key, num):
        clip_key, index_key, puzzle_key = jax.random.split(key, 3)
        index = jax.random.randint(index_key, (num,), 0, 12)
        frames = frame_order.puzzle(puzzle_key, flying_dots(clip_key, num), task, train=True)
        return jigsaw.shuffle(frames, orders[index]), index

    def answer(params, inputs):
        return network.apply(params, inputs, "temporal", train=False)

    @jax.jit
    def step(params, opt_state, key):
        inputs, index = example(key, 48)
        loss = lambda params: optax.softmax_cross_entropy_with_integer_labels(
            answer(params, inputs), index
        ).mean()
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    @jax.jit
    def create(key):
        inputs, index = example(jax.random.fold_in(key, 1), 400)
        params = network.init(key, inputs[:1], "temporal", train=False)
        return params, optimizer.init(params), inputs, index

    params, opt_state, inputs, index = create(jax.random.key(0))
    for key in jax.random.split(jax.random.key(2), 300):
        params, opt_state = step(params, opt_state, key)
    accuracy = (jax.jit(answer)(params, inputs).argmax(-1) == index).mean()
    assert accuracy > 0.5  # chance is 0.08
