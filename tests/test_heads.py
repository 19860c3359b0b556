import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_jax.networks import heads
from ssl_jax.networks.caffenet import CaffeNet
from ssl_jax.networks.heads import FrameOrderHead, JigsawHead, PuzzleNetwork

TILES, IMAGES, CLASSES = 9, 12, 100


class Encoder(nn.Module):
    """As small as an encoder can be, with statistics of the batch."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(4, (2, 2), (2, 2))(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train)(x))


@pytest.fixture(scope="module")
def network():
    return PuzzleNetwork(Encoder(), {"spatial": JigsawHead(CLASSES, fc6=8, fc7=16)})


@pytest.fixture(scope="module")
def tiles():
    rng = np.random.default_rng(0)
    return np.float32(rng.normal(size=(IMAGES, TILES, 4, 4, 3)))


@pytest.fixture(scope="module")
def permutations():
    rng = np.random.default_rng(1)
    return np.stack([rng.permutation(TILES) for _ in range(CLASSES)]).astype(np.int32)


@pytest.fixture(scope="module")
def variables(network, tiles):
    """Random ones: the classifier starts at zero, where all answers are equal."""
    rng = np.random.default_rng(2)

    def draw(leaf):
        scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        return np.float32(scale * rng.normal(size=leaf.shape) + (leaf.ndim == 1))

    return jax.tree.map(
        draw, jax.eval_shape(lambda: network.init(jax.random.key(0), tiles, "spatial", train=False))
    )


@pytest.fixture(scope="module")
def naive_logits(network, variables, tiles, permutations):
    """[B, P, classes]: every image is shuffled, encoded and classified under every permutation."""
    answer = jax.jit(lambda tiles: network.apply(variables, tiles, "spatial", train=False))
    return np.stack([answer(tiles[:, permutation]) for permutation in permutations], axis=1)


def naive_sums(logits, mask, answered):
    """Sums over images, by their definition; `answered` [B, P] says who answers what."""
    sums = {name: np.zeros(CLASSES) for name in ("correct", "ratio", "count")}
    for n, p in np.argwhere(answered & mask[:, None]):
        probability = np.exp(logits[n, p]) / np.exp(logits[n, p]).sum()
        other = np.delete(probability, p).max()
        sums["correct"][p] += probability[p] > other
        sums["ratio"][p] += probability[p] / other
        sums["count"][p] += 1
    return sums


def answer_all(network, variables, tiles, permutations, mask, permutations_per_image=None):
    """Sums over a batch, as `experiments.tasks` makes them."""
    index = heads.answered(len(tiles), CLASSES, permutations_per_image)
    lead = network.apply(variables, tiles, "spatial", permutations, index, method="permutation_margins")
    return heads.answer_sums(lead, index, CLASSES, mask)


def statistics(network, variables, tiles, permutations, **kwargs):
    return jax.jit(lambda tiles: answer_all(network, variables, tiles, permutations, **kwargs))(tiles)


def assert_sums_equal(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_statistics_equal_the_naive_evaluation(
    network, variables, tiles, permutations, naive_logits, monkeypatch
):
    monkeypatch.setattr(heads, "ANSWERS_PER_STEP", 100)  # one image of each shard at a time
    mask = np.arange(IMAGES) != 3
    actual = statistics(network, variables, tiles, permutations, mask=mask)
    assert_sums_equal(actual, naive_sums(naive_logits, mask, np.ones((IMAGES, CLASSES), bool)))
    assert 0 < actual["correct"].sum() < 11 * CLASSES
    np.testing.assert_array_equal(actual["count"], 11)


@pytest.mark.parametrize(("images", "each"), [(12, 7), (5, 30), (12, 100), (12, 1000)])
def test_every_image_answers_its_block_of_permutations(
    network, variables, tiles, permutations, naive_logits, images, each
):
    answered = np.zeros((images, CLASSES), bool)
    for n in range(images):
        answered[n, (n * each + np.arange(min(each, CLASSES))) % CLASSES] = True
    mask = np.arange(images) > 0
    actual = statistics(
        network, variables, tiles[:images], permutations, mask=mask, permutations_per_image=each
    )
    assert_sums_equal(actual, naive_sums(naive_logits[:images], mask, answered))


def test_blocks_answer_every_permutation_equally_often(network, variables, tiles, permutations):
    mask = np.ones(10, bool)
    sums = statistics(network, variables, tiles[:10], permutations, mask=mask, permutations_per_image=30)
    np.testing.assert_array_equal(sums["count"], 10 * 30 / CLASSES)


def test_what_is_masked_may_be_anything(network, variables, tiles, permutations):
    mask = np.arange(IMAGES) < 4
    garbage = np.where(mask[:, None, None, None, None], tiles, np.nan)
    actual = statistics(network, variables, garbage, permutations, mask=mask)
    expected = statistics(network, variables, tiles, permutations, mask=mask)
    assert_sums_equal(actual, {name: np.asarray(value) for name, value in expected.items()})


def test_a_ratio_stays_finite(network, variables, tiles, permutations):
    sure = jax.tree.map(lambda leaf: 1000 * leaf, variables)
    sums = statistics(network, sure, tiles, permutations, mask=np.ones(IMAGES, bool))
    assert sums["ratio"].max() <= IMAGES * np.exp(20.001)
    assert sums["ratio"].max() >= np.exp(19.999)


def test_images_split_among_devices_are_never_gathered(network, variables, tiles, permutations):
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    apply = lambda variables, tiles, mask: answer_all(network, variables, tiles, permutations, mask)
    mask = np.ones(IMAGES, bool)
    everywhere = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
    args = (everywhere, jax.device_put(tiles, split), jax.device_put(mask, split))
    program = jax.jit(apply).lower(*args).compile()
    assert not re.findall(r"all-gather|all-to-all|collective-permute", program.as_text())
    expected = statistics(network, variables, tiles, permutations, mask=mask)
    assert_sums_equal(program(*args), {name: np.asarray(value) for name, value in expected.items()})


def test_all_answers_never_exist_at_once(permutations):
    head = JigsawHead(1000)
    features = jax.ShapeDtypeStruct((256, TILES, 1024), jnp.float32)
    variables = jax.eval_shape(
        lambda: head.init(jax.random.key(0), jnp.zeros(features.shape), train=False, method="classify")
    )
    orders = np.tile(permutations, (10, 1))
    margins = jax.jit(functools.partial(head.apply, method="permutation_margins"))
    index = jax.ShapeDtypeStruct((256, 1000), jnp.int32)
    program = margins.lower(variables, features, orders, index).compile()
    memory = program.memory_analysis()
    assert memory.output_size_in_bytes == 4 * 256 * 1000
    # All logits would take 1 GB, all fc7 features 4 GB. The devices hold a step each, and a copy.
    at_once = jax.device_count() * heads.ANSWERS_PER_STEP
    assert memory.temp_size_in_bytes < 3 * 4 * at_once * head.fc7


def test_gradients_dropout_and_batch_statistics(network, variables, tiles):
    @jax.jit
    def train(key):
        def loss(params):
            logits, updated = network.apply(
                {**variables, "params": params},
                tiles,
                "spatial",
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            return (logits**2).mean(), (logits, updated)

        return jax.grad(loss, has_aux=True)(variables["params"])

    gradients, (logits, updated) = train(jax.random.key(0))
    assert all((np.abs(leaf) > 0).any() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(logits, train(jax.random.key(0))[1][0])
    assert (logits != train(jax.random.key(1))[1][0]).any()
    before, after = variables["batch_stats"]["encoder"], updated["batch_stats"]["encoder"]
    assert (before["BatchNorm_0"]["mean"] != after["BatchNorm_0"]["mean"]).any()


def test_paper_size_has_the_layers_of_the_context_free_network():
    network = PuzzleNetwork(CaffeNet(), {"spatial": JigsawHead(100)})
    tiles = jnp.zeros((2, 9, 75, 75, 3))
    logits, variables = jax.eval_shape(
        lambda key: network.init_with_output(key, tiles, "spatial", train=False), jax.random.key(0)
    )
    head = variables["params"]["heads_spatial"]
    assert logits.shape == (2, 100)
    assert {name: layer["kernel"].shape for name, layer in head.items()} == {
        "fc6": (256 * 3 * 3, 1024),
        "fc7": (9 * 1024, 4096),
        "classifier": (4096, 100),
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 42_856_932


def test_bfloat16_is_for_computing_only(tiles):
    network = PuzzleNetwork(Encoder(), {"spatial": JigsawHead(CLASSES, fc6=8, fc7=16, dtype=jnp.bfloat16)})
    logits, variables = jax.eval_shape(
        lambda key: network.init_with_output(key, tiles, "spatial", train=False), jax.random.key(0)
    )
    features = jax.eval_shape(
        lambda variables: network.apply(variables, tiles, "spatial", train=False, method="part_features"),
        variables,
    )
    assert features.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_cells_are_counted_by_their_class():
    rng = np.random.default_rng(4)
    logits, classes = rng.normal(size=(5, 3, 2, 6)), rng.integers(0, 5, (5, 3, 2))  # class 5 never occurs
    mask = np.array([True, True, False, True, True])
    lead = heads.margins(jnp.asarray(logits, jnp.float32), jnp.asarray(classes))
    sums = heads.cell_sums(lead, jnp.asarray(classes), 6, jnp.asarray(mask))
    expected = {name: np.zeros(6) for name in ("correct", "ratio", "count")}
    for place in np.argwhere(np.broadcast_to(mask[:, None, None], classes.shape)):
        of_cell, right = np.exp(logits[tuple(place)]), classes[tuple(place)]
        other = np.delete(of_cell, right).max()
        expected["correct"][right] += of_cell[right] > other
        expected["ratio"][right] += of_cell[right] / other
        expected["count"][right] += 1
    assert_sums_equal(sums, expected)
    assert sums["count"][5] == 0
    assert sums["count"].sum() == 4 * 6


# The head for the order of frames


@pytest.fixture(scope="module", params=[(4, 24), (8, 100)], ids=["4 frames", "8 frames"])
def frame_order_head(request):
    """(network, random variables, frames [B, u, 4, 4, 3], orders [P, u])."""
    length, classes = request.param
    rng = np.random.default_rng(3)
    frames = np.float32(rng.normal(size=(IMAGES, length, 4, 4, 3)))
    orders = np.stack([rng.permutation(length) for _ in range(classes)]).astype(np.int32)
    network = PuzzleNetwork(Encoder(), {"temporal": FrameOrderHead(classes, fc6=8, lstm=6)})
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), frames, "temporal", train=False))
    draw = lambda leaf: np.float32(0.7 * rng.normal(size=leaf.shape) + (leaf.ndim == 1))
    return network, jax.tree.map(draw, shapes), frames, orders


def frame_order_margins(network, variables, frames, orders):
    index = jnp.broadcast_to(jnp.arange(len(orders))[None], (len(frames), len(orders)))
    return network.apply(variables, frames, "temporal", orders, index, method="permutation_margins")


def test_frame_order_margins_equal_those_of_shuffled_frames(frame_order_head, monkeypatch):
    network, variables, frames, orders = frame_order_head
    monkeypatch.setattr(heads, "ANSWERS_PER_STEP", len(orders))  # one clip of each shard at a time
    answer = jax.jit(lambda frames: network.apply(variables, frames, "temporal", train=False))
    logits = np.stack([answer(frames[:, order]) for order in orders], axis=1)
    others = np.where(np.eye(len(orders), dtype=bool)[None], -np.inf, logits).max(-1)
    expected = np.diagonal(logits, axis1=1, axis2=2) - others
    actual = jax.jit(functools.partial(frame_order_margins, network))(variables, frames, orders)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert logits.std(1).min() > 1e-3  # The order matters to every logit of every clip.


def test_clips_split_among_devices_are_never_gathered(frame_order_head):
    network, variables, frames, orders = frame_order_head
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    placed = jax.device_put(frames, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put((variables, orders), NamedSharding(mesh, PartitionSpec()))
    margins = jax.jit(
        lambda variables, frames, orders: frame_order_margins(network, variables, frames, orders)
    )
    program = margins.lower(everywhere[0], placed, everywhere[1]).compile()
    assert not re.findall(r"all-gather|all-to-all|collective-permute", program.as_text())
    np.testing.assert_allclose(
        program(everywhere[0], placed, everywhere[1]),
        margins(variables, frames, orders),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_frame_order_head_has_the_layers_it_names():
    head = FrameOrderHead(24, fc6=16, lstm=10, dtype=jnp.bfloat16)

    def apply(head, maps):
        features = head.tile_features(maps, train=False).reshape(2, 4, 16)
        return features, head.classify(features, train=False)

    (features, logits), variables = jax.eval_shape(
        lambda: head.init_with_output(jax.random.key(0), jnp.zeros((8, 3, 3, 5)), method=apply)
    )
    assert (features.dtype, logits.dtype, logits.shape) == (jnp.bfloat16, jnp.float32, (2, 24))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    params = variables["params"]
    assert params["fc6"]["kernel"].shape == (45, 16)
    assert params["classifier"]["kernel"].shape == (4 * 10, 24)
    sizes = [leaf.size for leaf in jax.tree.leaves(params["lstm"])]
    assert sum(sizes) == 4 * (16 * 10 + 10 * 10 + 10)  # four gates, each of input, state and bias


def test_what_all_frames_share_says_nothing():
    features = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    relative = np.asarray(heads.relative_to_clip(features))
    np.testing.assert_allclose(relative.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose((relative**2).mean((1, 2)), 1, rtol=1e-4)
    shifted = heads.relative_to_clip(5 * features + np.arange(3, dtype=np.float32)[None, None])
    np.testing.assert_allclose(shifted, relative, atol=1e-4)
    alike = jax.grad(lambda features: heads.relative_to_clip(features).sum())(jnp.ones((1, 4, 3)))
    assert np.isfinite(alike).all()


def test_dropout_of_the_frame_order_head_is_for_training():
    head = FrameOrderHead(24, fc6=16, lstm=10)
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 16)), jnp.float32)
    variables = head.init(jax.random.key(0), features, train=False, method="classify")
    variables["params"]["classifier"]["kernel"] += 1.0  # It starts at zero.
    classify = lambda train, key: head.apply(
        variables, features, train=train, rngs={"dropout": jax.random.key(key)}, method="classify"
    )
    np.testing.assert_array_equal(classify(False, 0), classify(False, 1))
    assert (classify(True, 0) != classify(True, 1)).any()
