import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_jax.data.atari_frames import ram_labels
from ssl_jax.evaluation import retrieval
from ssl_jax.evaluation.features import Rows, collect
from ssl_jax.runtime.errors import InputError


def naive(queries, keys, k, groups=None):
    """All similarities at once, sorted whole."""
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = unit(queries.astype(np.float64)) @ unit(keys.astype(np.float64)).T
    if groups is not None:
        cosine[groups[0][:, None] == groups[1]] = -np.inf
    index = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosine, index, 1), index


def rows(number, width=6, seed=0):
    return np.random.default_rng(seed).standard_normal((number, width)).astype(np.float32)


@settings(max_examples=12)
@given(
    sizes=st.sampled_from([(7, 23), (20, 5)]),
    k=st.sampled_from([1, 11]),
    block=st.sampled_from([(4, 5), (100, 100)]),
    groups=st.sampled_from([None, 1, 4]),
    seed=st.integers(0, 3),
)
def test_blocks_find_what_sorting_everything_finds(sizes, k, block, groups, seed):
    queries, keys = rows(sizes[0], seed=seed), rows(sizes[1], seed=seed + 10)
    if groups:  # ids beyond 32 bits
        rng = np.random.default_rng(seed)
        groups = tuple(rng.integers(0, groups, size) + 2**40 for size in sizes)
    expected_cosine, expected = naive(queries, keys, k, groups)
    cosine, index = retrieval.nearest(queries, keys, k, groups, block=block)
    assert cosine.shape == index.shape == (sizes[0], k)
    there = np.isfinite(expected_cosine)
    short = max(k - sizes[1], 0)
    there = np.pad(there, [(0, 0), (0, short)])
    np.testing.assert_array_equal(index[there], expected[np.isfinite(expected_cosine)])
    np.testing.assert_allclose(cosine[there], expected_cosine[np.isfinite(expected_cosine)], atol=1e-5)
    assert (index[~there] == -1).all()
    assert (cosine[~there] == -np.inf).all()


def test_of_equal_neighbours_the_first_comes_first():
    keys = np.array([[0, 1], [2, 0], [1, 0], [0, 3], [5, 0]], np.float32)
    _, index = retrieval.nearest(np.array([[1.0, 0.0]]), keys, 4, block=(1, 2))
    np.testing.assert_array_equal(index, [[1, 2, 4, 0]])


def test_a_query_finds_itself_unless_its_group_is_left_out():
    features = rows(30)
    episodes = np.repeat(np.arange(10), 3)
    _, index = retrieval.nearest(features, features, 1)
    np.testing.assert_array_equal(index[:, 0], np.arange(30))
    _, index = retrieval.nearest(features, features, 5, (episodes, episodes), block=(8, 8))
    assert (episodes[index] != episodes[:, None]).all()


def test_no_feature_at_all_is_near_nothing():
    cosine, _ = retrieval.nearest(np.zeros((1, 3)), rows(4, 3), 4)
    np.testing.assert_array_equal(cosine, np.zeros((1, 4)))


def test_accuracy_by_hand():
    # Classes of the neighbours: 5 5 6 | 6 7 5 | 6 none none.
    index = np.array([[0, 1, 2], [2, 3, 1], [2, -1, -1]])
    key_labels = np.array([5, 5, 6, 7])
    scores = retrieval.top_accuracy(index, np.array([5, 5, 7]), key_labels, (1, 2, 3))
    assert scores == {"top1": 1 / 3, "top2": 1 / 3, "top3": 2 / 3}


def test_means_over_groups():
    features = np.array([[1.0, 10], [3, 30], [5, 50], [7, 70]], np.float32)
    means, first = retrieval.group_means(features, np.array([9, 4, 9, 9]))
    np.testing.assert_allclose(means, [[3, 30], [13 / 3, 130 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(first, [1, 0])


def groups_of(ids):
    return {tuple(np.flatnonzero(ids == value)) for value in np.unique(ids)}


def test_clips_are_successive_frames_of_one_video():
    videos = np.array([7, 7, 7, 3, 3, 3, 3, 5])
    #                   the frame 12 was not read
    index = np.array([0, 1, 2, 10, 11, 13, 14, 15])
    ids = retrieval.clips(videos, index, 2)
    assert groups_of(ids) == {(0, 1), (2,), (3, 4), (5, 6), (7,)}


@given(
    frames=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=30),
    length=st.integers(1, 5),
)
def test_clips_are_those_of_a_loop(frames, length):
    videos = np.sort([video for video, _ in frames])
    index = np.cumsum([step for _, step in frames])
    expected, clip = [], []
    for place in range(len(videos)):
        goes_on = clip and videos[place] == videos[clip[-1]] and index[place] == index[clip[-1]] + 1
        if not goes_on or len(clip) == length:
            expected.append(clip)
            clip = []
        clip = [*clip, place]
    expected = {tuple(clip) for clip in [*expected, clip] if clip}
    assert groups_of(retrieval.clips(videos, index, length)) == expected


def test_frames_spread_over_videos_make_no_clips():
    """Ten frames of each video, evenly spaced: they are seconds apart, and a mean over them is no clip."""
    episode = np.repeat(np.arange(4), 10)
    features = {"any": np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)}
    apart = split(features, episode % 2, episode, index=20 * np.arange(40))
    ((_, scores),) = retrieval.evaluate(apart, apart, retrieval.Protocol(top=(1,)), label="label")
    assert scores.keys() == {"retrieval/frame/top1", "retrieval/video/top1"}


def split(features, label, episode, **fields):
    number = len(label)
    return Rows(features, {"label": label, "episode": episode, "index": np.arange(number)} | fields)


def test_frames_clips_and_videos_are_named_apart():
    """Frames are too noisy to tell the class; means over clips tell more, means over videos all."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((2, 32))
    sides = []
    for first in (0, 100):
        episode = np.repeat(np.arange(10), 40)
        label = episode % 2
        noisy = centres[label] + 6 * rng.standard_normal((400, 32))
        sides.append(split({"noisy": noisy.astype(np.float32)}, label, episode + first))
    protocol = retrieval.Protocol(top=(1, 5, 20), clip_frames=8)
    ((name, scores),) = retrieval.evaluate(*sides, protocol, label="label")
    assert name == "noisy"
    assert scores.keys() == {f"retrieval/{unit}/top{k}" for unit in ("frame", "clip") for k in (1, 5, 20)} | {
        "retrieval/video/top1",  # there are 10 videos, hence no top 20
        "retrieval/video/top5",
    }
    frame, clip, video = (scores[f"retrieval/{unit}/top1"] for unit in ("frame", "clip", "video"))
    assert 0.45 < frame < clip < video
    assert video == 1


def test_fewer_keys_than_the_smallest_top_names_both():
    features = {"exact": np.eye(3, dtype=np.float32)}
    whole = split(features, np.arange(3), np.arange(3))
    protocol = retrieval.Protocol(top=(5, 10))
    with pytest.raises(InputError, match=r"^top=\(5, 10\) .* at least 5 .* there are 3 keys"):
        list(retrieval.evaluate(whole, whole, protocol, label="label"))


def test_tops_that_can_be_computed_are_given():
    """Six frames of two videos: no five videos to search, and no ten frames."""
    features = {"exact": np.repeat(np.eye(2, dtype=np.float32), 3, 0)}
    episode = np.repeat(np.arange(2), 3)
    sides = [split(features, episode, episode + first) for first in (0, 10)]
    ((_, scores),) = retrieval.evaluate(*sides, retrieval.Protocol(top=(5, 10), clip_frames=8), label="label")
    assert scores == {"retrieval/frame/top5": 1.0}


def test_a_split_searched_for_itself_leaves_out_what_is_the_same():
    """Every episode is a class of its own: without its own frames nothing can be found."""
    episode = np.repeat(np.arange(6), 5)
    features = {"exact": np.repeat(np.eye(6, dtype=np.float32), 5, 0)}
    whole = split(features, episode, episode)
    ((_, scores),) = retrieval.evaluate(whole, whole, retrieval.Protocol(top=(1, 5)), label="label")
    assert scores["retrieval/frame/top1"] == scores["retrieval/video/top1"] == 0
    # Pictures without videos leave out only themselves; another split has other pictures of the same numbers.
    pictures = Rows(features, {"label": episode, "index": np.arange(30)})
    other = Rows(features, {"label": episode, "index": np.arange(30)})
    lone = retrieval.Protocol(top=(1,))
    assert dict(retrieval.evaluate(pictures, pictures, lone, label="label"))["exact"] == {
        "retrieval/frame/top1": 1
    }
    np.testing.assert_array_equal(
        retrieval.nearest(features["exact"], features["exact"], 1, (np.arange(30), np.arange(30)))[1][:2, 0],
        [1, 0],
    )
    assert (
        dict(retrieval.evaluate(pictures, other, lone, label="label"))["exact"]["retrieval/frame/top1"] == 1
    )


def test_a_million_keys_never_need_the_whole_matrix():
    """Against a million keys one block of queries alone would need 4 GB; only compiled, not run."""
    blocks = -(-1_000_000 // retrieval.KEYS)
    array = lambda *shape, dtype=np.float32: jax.ShapeDtypeStruct(shape, dtype)
    number = array(blocks, retrieval.KEYS, dtype=np.int32)
    query_group = array(retrieval.QUERIES, dtype=np.int32)
    program = retrieval._search.lower(
        array(retrieval.QUERIES, 16), query_group, array(blocks, retrieval.KEYS, 16), number, number, k=50
    )
    memory = program.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2 * 4 * retrieval.QUERIES * retrieval.KEYS


# --- The state of a game


def state_of(values, game=0):
    """RAM [N, 128] of breakout in which ball_x takes given values and nothing else moves."""
    ram = np.zeros((len(values), 128), np.uint8)
    ram[:, ram_labels("breakout")["ball_x"]] = values
    return {"ram": ram, "game": np.full(len(values), game)}


def test_state_by_hand():
    # Keys take the values 1, 2, 3, 4 equally often. The neighbours of the queries 1, 2, 9 are keys of the
    # values 1, 4 and 4; 9 is in the bin of 4, for there is none above. So two of three agree; a random key
    # would agree with each in one of four.
    keys = {"all": np.eye(4, dtype=np.float32)}
    queries = {"all": np.eye(4, dtype=np.float32)[[0, 3, 3]]}
    ((_, scores),) = retrieval.evaluate(
        split(queries, np.zeros(3, int), np.array([1, 1, 2]), **state_of([1, 2, 9])),
        split(keys, np.zeros(4, int), np.array([5, 5, 6, 6]), **state_of([1, 2, 3, 4])),
        retrieval.Protocol(top=(1,)),
        label="label",
        games=("breakout",),
    )
    assert scores["retrieval/state/top1"] == pytest.approx(2 / 3)
    assert scores["retrieval/state/chance"] == pytest.approx(1 / 4)


def test_state_is_compared_with_other_episodes_of_the_same_game():
    """Features name game and episode exactly, and nothing of the state: agreement is chance."""
    rng = np.random.default_rng(0)
    number = 400
    game, episode = np.arange(number) % 2, np.arange(number) % 20
    exact = np.eye(20)[episode] + np.eye(20)[game] + 1e-3 * rng.standard_normal((number, 20))
    state = state_of(rng.integers(0, 4, number)) | {"game": game}
    whole = split({"exact": exact.astype(np.float32)}, game, episode, **state)
    ((_, scores),) = retrieval.evaluate(
        whole, whole, retrieval.Protocol(top=(1,)), label="label", games=("breakout", "breakout")
    )
    assert scores["retrieval/frame/top1"] == 1
    assert scores["retrieval/state/chance"] == pytest.approx(0.25, abs=0.02)
    assert scores["retrieval/state/top1"] == pytest.approx(0.25, abs=0.06)


def test_a_state_that_never_moves_says_nothing():
    whole = split({"all": np.eye(4)}, np.zeros(4, int), np.arange(4), **state_of([3, 3, 3, 3]))
    scores = dict(
        retrieval.evaluate(
            whole, whole, retrieval.Protocol(top=(1,)), label="label", games=("breakout", "pong")
        )
    )
    assert scores["all"].keys() >= {"retrieval/frame/top1"}
    assert not any("state" in name for name in scores["all"])


def test_many_values_fall_into_bins_equally_full():
    reference = np.repeat(np.arange(100), 3)
    (bins,) = retrieval._bins(reference, [reference], 5)
    np.testing.assert_array_equal(np.bincount(bins), [60] * 5)
    (few,) = retrieval._bins(np.array([0, 0, 0, 0, 0, 0, 0, 0, 9]), [np.array([0, 9, 4])], 4)
    assert few[0] != few[1]


# --- Reading


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("layer", "at"), [("conv3", " at the layer 'conv3'"), (None, "")])
def test_features_that_are_not_finite_name_layer_and_share(value, layer, at):
    features = np.zeros((8, 5), np.float32)
    features[6, :2] = value
    batches = [{"image": np.zeros((4, 2, 2, 3), np.uint8), "mask": np.ones(4, bool), "row": np.arange(4)}] * 2
    rows = iter(np.split(features, 2))
    sentence = f"5.0% of the numbers that the network 'trained' gives{at}, in 12.5% of the examples, are NaN"
    with pytest.raises(InputError) as error:
        collect(batches, {"trained": lambda images: next(rows)}, layer=layer)
    assert sentence in str(error.value)


def test_features_of_padding_that_are_not_finite_do_not_matter():
    batch = {"image": np.zeros((2, 2, 2, 3), np.uint8), "mask": np.array([True, False])}
    rows = collect([batch], {"trained": lambda images: np.float32([[1], [np.nan]])})
    np.testing.assert_array_equal(rows.features["trained"], [[1]])


def test_rows_without_a_mask_are_left_out():
    batches = [
        {
            "image": np.full((3, 2, 2, 3), number, np.uint8),
            "mask": np.array([True, number == 0, False]),
            "index": np.array([number, number + 10, -1]),
        }
        for number in range(2)
    ]
    got = collect(batches, {"mean": lambda images: images.mean((1, 2))})
    np.testing.assert_array_equal(got.fields["index"], [0, 10, 1])
    np.testing.assert_array_equal(got.features["mean"][:, 0], [0, 0, 1])
    assert "mask" not in got.fields
    with pytest.raises(InputError, match="no example"):
        collect([batches[0] | {"mask": np.zeros(3, bool)}], {})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"top": ()}, "top"),
        ({"top": (0, 1)}, "from 1 on"),
        ({"clip_frames": 0}, "clip_frames must be at least 1"),
        ({"state_bins": 1}, "state_bins must be at least 2"),
    ],
)
def test_protocols_that_cannot_be(options, sentence):
    with pytest.raises(InputError, match=sentence):
        retrieval.Protocol(**options)
