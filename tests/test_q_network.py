"""Action values and their networks, against numbers worked out by hand."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.networks import q_network
from ssl_jax.networks.q_network import NatureTrunk, QNetwork, trunk_from_encoder
from ssl_jax.runtime.errors import InputError

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("little_optimization")
STACKS = np.random.default_rng(0).integers(256, size=(2, 84, 84, 4), dtype=np.uint8)


@pytest.fixture(scope="module")
def dueling():
    """A network and its parameters."""
    network = QNetwork(num_actions=6, hidden=32, auxiliary_classes=24)
    return network, jax.jit(lambda s: network.init(KEY, s, method="initialize"))(STACKS)["params"]


@pytest.fixture(scope="module")
def plain(dueling):
    """As `dueling`, with q in the place of the advantages."""
    network, params = dueling
    params = {"q_head" if name == "advantage_head" else name: part for name, part in params.items()}
    del params["value_head"]
    return network.clone(dueling=False), params


def apply(network, params, s, method=None):
    return network.apply({"params": params}, s, method=method)


@functools.partial(jax.jit, static_argnames="network")
def answers(network, params, s):
    """Action values, auxiliary logits and features; compiled once a network."""
    return tuple(apply(network, params, s, method) for method in (None, "auxiliary", "features"))


def head(params, x):
    """A head, layer by layer."""
    hidden = jnp.maximum(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None], 0)
    return hidden @ params["output"]["kernel"] + params["output"]["bias"][None]


def norm(tree) -> float:
    return math.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in jax.tree.leaves(tree)))


def relative_error(tree, other) -> float:
    return norm(jax.tree.map(np.subtract, tree, other)) / norm(other)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes_of(**options):
    """Shapes of the parameters, without computing them."""
    network = QNetwork(num_actions=6, **options)
    return jax.eval_shape(lambda s: network.init(KEY, s, method="initialize"), STACKS)["params"]


# --- The network


def test_parameters_of_the_dueling_network_by_hand():
    params = shapes_of()
    trunk = (8 * 8 * 4 + 1) * 32 + (4 * 4 * 32 + 1) * 64 + (3 * 3 * 64 + 1) * 64
    assert trunk == 77_984
    assert {name: count(part) for name, part in params.items()} == {
        "trunk": trunk,
        "value_head": 3136 * 512 + 512 + 512 + 1,
        "advantage_head": 3136 * 512 + 512 + 512 * 6 + 6,
    }
    assert count(params) == 3_293_863


def test_parameters_of_plain_dqn_with_an_auxiliary_task_by_hand():
    params = shapes_of(dueling=False, auxiliary_classes=24)
    assert {name: count(part) for name, part in params.items()} == {
        "trunk": 77_984,
        "q_head": 3136 * 512 + 512 + 512 * 6 + 6,
        "auxiliary_head": 3136 * 512 + 512 + 512 * 24 + 24,
    }
    assert {name: layer["kernel"].shape for name, layer in params["trunk"].items()} == {
        "conv1": (8, 8, 4, 32),
        "conv2": (4, 4, 32, 64),
        "conv3": (3, 3, 64, 64),
    }


def test_weights_start_uniform_by_fan_in(dueling):
    _, params = dueling
    for layer, fan_in in ((params["trunk"]["conv1"], 256), (params["value_head"]["hidden"], 3136)):
        kernel, bound = np.asarray(layer["kernel"]), 1 / math.sqrt(fan_in)
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        assert abs(kernel.std() * math.sqrt(3) / bound - 1) < 0.05
        assert (layer["bias"] == 0).all()


@pytest.mark.parametrize("kind", ["dueling", "plain"])
def test_shapes_and_dtypes(kind, request):
    network, params = request.getfixturevalue(kind)
    q, logits, features = answers(network, params, STACKS)
    assert (q.shape, q.dtype) == ((2, 6), jnp.float32)
    assert (logits.shape, logits.dtype) == ((2, 24), jnp.float32)
    assert (features.shape, features.dtype) == ((2, 3136), jnp.float32)
    assert len(np.unique(q)) == 12  # it looks at the stacks


def test_bfloat16_computes_the_same_roughly(dueling):
    network, params = dueling
    half = network.clone(dtype=jnp.bfloat16)
    results = answers(half, params, STACKS)
    assert [result.dtype for result in results] == [jnp.float32, jnp.float32, jnp.bfloat16]
    for result, expected in zip(results, answers(network, params, STACKS), strict=True):
        np.testing.assert_allclose(np.float32(result), expected, atol=0.01)


def test_the_trunk_is_three_convolutions_of_pixels_in_zero_to_one(dueling):
    network, params = dueling
    x = STACKS.astype(np.float32) / 255
    for name, stride in (("conv1", 4), ("conv2", 2), ("conv3", 1)):
        layer = params["trunk"][name]
        x = jax.lax.conv_general_dilated(
            x, layer["kernel"], (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.maximum(x + layer["bias"][None, None, None], 0)
    assert x.shape == (2, 7, 7, 64)
    _, _, features = answers(network, params, STACKS)
    np.testing.assert_allclose(features, x.reshape(2, 3136), rtol=1e-4, atol=1e-5)


def test_the_trunk_alone_takes_any_channels_and_float():
    trunk = NatureTrunk()
    maps_of = jax.jit(functools.partial(trunk.apply, train=True))
    pictures = np.random.default_rng(1).integers(256, size=(1, 36, 44, 3), dtype=np.uint8)
    params = jax.jit(trunk.init)(KEY, pictures)
    maps = maps_of(params, pictures)
    assert maps.shape == (1, 1, 2, 64)
    scaled = maps_of(params, pictures.astype(np.float32) / 255)
    np.testing.assert_allclose(maps, scaled, rtol=1e-5, atol=1e-6)


def test_layers_of_the_trunk_are_what_the_next_one_reads():
    params = made_up_trunk(3)
    pictures = np.float32(np.random.default_rng(4).uniform(size=(1, 36, 44, 3)))
    apply = lambda layer: NatureTrunk().apply({"params": params}, pictures, layer=layer)
    maps = jax.jit(lambda: {layer: apply(layer) for layer in NatureTrunk.layers})()
    assert [y.shape for y in maps.values()] == [(1, 8, 10, 32), (1, 3, 4, 64), (1, 1, 2, 64)]
    x = pictures
    for (name, y), stride in zip(maps.items(), (4, 2, 1), strict=True):
        x = jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (stride,) * 2, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.maximum(x + params[name]["bias"][None, None, None], 0)
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)


def test_the_trunk_refuses_unknown_layers_and_small_pictures():
    trunk = lambda layer, *image: NatureTrunk().apply({}, jnp.zeros((1, *image, 3)), layer=layer)
    with pytest.raises(InputError, match=r"unknown layer 'conv4', did you mean 'conv"):
        trunk("conv4", 84, 84)
    with pytest.raises(InputError, match=r"images of 84 x 35 pixels .* smallest it takes are 36 x 36"):
        trunk(None, 84, 35)


def test_parameters_of_a_trunk_fit_into_the_network(dueling):
    network, params = dueling
    trunk = NatureTrunk()
    other = jax.tree.map(lambda leaf: 0.5 * leaf, params["trunk"])
    alone = jax.eval_shape(trunk.init, KEY, STACKS)["params"]
    assert jax.tree.map(jnp.shape, alone) == jax.tree.map(jnp.shape, other)
    maps = jax.jit(trunk.apply)({"params": other}, STACKS)
    _, _, features = answers(network, {**params, "trunk": other}, STACKS)
    np.testing.assert_allclose(features, maps.reshape(2, -1), rtol=1e-5, atol=1e-6)


def made_up_trunk(channels):
    """An encoder's parameters: noise of the size of fresh ones."""
    rng = np.random.default_rng(channels)
    shapes = {"conv1": (8, 8, channels, 32), "conv2": (4, 4, 32, 64), "conv3": (3, 3, 64, 64)}
    draw = lambda *shape: rng.normal(0, math.prod(shape[:-1]) ** -0.5, shape).astype(np.float32)
    return {name: {"kernel": draw(*shape), "bias": draw(1, shape[-1])[0]} for name, shape in shapes.items()}


def test_a_trunk_for_colours_answers_a_stack_of_equal_frames_as_the_grey_picture():
    encoder = made_up_trunk(3)
    trunk = trunk_from_encoder(encoder, 4)
    grey = np.random.default_rng(2).integers(256, size=(8, 8), dtype=np.uint8)
    colour, stack = np.repeat(grey[:, :, None], 3, 2) / 255, np.repeat(grey[:, :, None], 4, 2) / 255
    by_hand = np.einsum("hwc,hwco->o", colour, encoder["conv1"]["kernel"]) + encoder["conv1"]["bias"]
    ours = np.einsum("hwc,hwco->o", stack, trunk["conv1"]["kernel"]) + trunk["conv1"]["bias"]
    np.testing.assert_allclose(ours, by_hand, rtol=1e-4, atol=1e-5)
    for frame in range(4):  # each frame has the same share
        np.testing.assert_allclose(
            trunk["conv1"]["kernel"][:, :, frame], encoder["conv1"]["kernel"].sum(2) / 4, rtol=1e-5, atol=1e-6
        )
    for name in ("conv2", "conv3"):
        np.testing.assert_array_equal(trunk[name]["kernel"], encoder[name]["kernel"])
    pictures = np.random.default_rng(3).integers(256, size=(1, 36, 36, 1), dtype=np.uint8)
    maps = jax.jit(lambda params, x: NatureTrunk().apply({"params": params}, x))
    np.testing.assert_allclose(
        maps(trunk, pictures.repeat(4, 3)), maps(encoder, pictures.repeat(3, 3)), rtol=1e-4, atol=1e-5
    )


def test_a_trunk_for_stacks_of_that_length_is_taken_as_it_is():
    encoder = made_up_trunk(4)
    for name, layer in trunk_from_encoder(encoder, 4).items():
        np.testing.assert_array_equal(layer["kernel"], encoder[name]["kernel"])
        np.testing.assert_array_equal(layer["bias"], encoder[name]["bias"])


def test_an_encoder_of_another_shape_is_no_trunk():
    encoder = made_up_trunk(3)
    wrong = {
        r"conv1 has a kernel of shape \(11, 11, 3, 96\)": {"conv1": {"kernel": np.zeros((11, 11, 3, 96))}},
        r"conv2 has a kernel of shape \(3, 3, 32, 64\)": {"conv2": {"kernel": np.zeros((3, 3, 32, 64))}},
        r"conv3 has a kernel of shape \(0,\)": {"conv3": {}},
    }
    for sentence, layers in wrong.items():
        with pytest.raises(InputError, match=sentence + r".*config\.encoder\.name=nature\.$"):
            trunk_from_encoder(encoder | layers, 4)


def q_loss(q):
    return jnp.sum(jnp.cos(jnp.arange(12.0)).reshape(2, 6) * q**2)


def auxiliary_loss(logits):
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([3, 11])).mean()


@functools.partial(jax.jit, static_argnames="network")
def losses_and_gradients(network, params, s):
    """Of both losses: through the network, and, without any scaling of gradients, written out."""

    def q_by_hand(p):
        features = apply(network, p, s, "features")
        if not network.dueling:
            return head(p["q_head"], features)
        advantage = head(p["advantage_head"], features)
        return head(p["value_head"], features) + advantage - advantage.mean(1, keepdims=True)

    losses = {
        "q": lambda p: q_loss(apply(network, p, s)),
        "q by hand": lambda p: q_loss(q_by_hand(p)),
        "auxiliary": lambda p: auxiliary_loss(apply(network, p, s, "auxiliary")),
        "auxiliary by hand": lambda p: auxiliary_loss(
            head(p["auxiliary_head"], apply(network, p, s, "features"))
        ),
    }
    return {name: jax.value_and_grad(loss)(params) for name, loss in losses.items()}


@pytest.mark.parametrize(("kind", "scale"), [("dueling", 1 / math.sqrt(2)), ("plain", 1.0)])
def test_gradients_of_both_losses(kind, scale, request):
    network, params = request.getfixturevalue(kind)
    results = losses_and_gradients(network, params, STACKS)
    q_heads = {"value_head", "advantage_head"} if kind == "dueling" else {"q_head"}
    for name, heads, factor in (("q", q_heads, scale), ("auxiliary", {"auxiliary_head"}, 1.0)):
        (value, gradients), (expected_value, expected) = results[name], results[f"{name} by hand"]
        np.testing.assert_allclose(value, expected_value, rtol=1e-4)
        expected["trunk"] = jax.tree.map(lambda g, factor=factor: factor * g, expected["trunk"])
        for part, gradient in gradients.items():
            if part in heads | {"trunk"}:
                assert relative_error(gradient, expected[part]) < 1e-4
            else:
                assert norm(gradient) == 0


def test_the_mean_advantage_is_taken_out(dueling):
    network, params = dueling
    output = params["advantage_head"]["output"]
    raised = {**params["advantage_head"], "output": {**output, "bias": output["bias"] + 5}}
    q, _, _ = answers(network, {**params, "advantage_head": raised}, STACKS)
    expected, _, features = answers(network, params, STACKS)
    np.testing.assert_allclose(q, expected, atol=1e-5)
    value = head(params["value_head"], features)
    np.testing.assert_allclose(q.mean(1), value[:, 0], atol=1e-5)


def test_several_networks_side_by_side(dueling):
    network, params = dueling
    other = jax.tree.map(lambda leaf: 0.9 * leaf, params)
    both = jax.tree.map(lambda *leaves: np.stack(leaves), params, other)
    gradient = jax.grad(lambda p, s: q_loss(apply(network, p, s)))
    together = jax.jit(jax.vmap(gradient))(both, np.stack([STACKS, STACKS[::-1]]))
    for i, (one, s) in enumerate(((params, STACKS), (other, STACKS[::-1]))):
        _, alone = losses_and_gradients(network, one, s)["q"]
        assert relative_error(jax.tree.map(lambda g, i=i: g[i], together), alone) < 1e-4


def test_scaled_gradients_leave_values_alone():
    x = jnp.array([1e-8, 3.3, -1e8])
    np.testing.assert_array_equal(q_network.scale_gradient(x, 0.1), x)
    gradient = jax.grad(lambda x: jnp.sum(q_network.scale_gradient(x, 0.25) ** 2))(jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(gradient, [0.5, 1.5])


def test_motion_is_amplified_around_what_stands_still(dueling):
    """Of (0, 0, 0, 1) the mean is 1/4: three times the differences give -1/2, -1/2, -1/2 and 5/2."""
    stack = jnp.zeros((1, 1, 1, 4)).at[..., 3].set(1)
    shown = q_network.amplify_motion(stack, 3.0)
    np.testing.assert_allclose(shown.ravel(), [-0.5, -0.5, -0.5, 2.5])
    np.testing.assert_allclose(q_network.amplify_motion(shown, 1 / 3), stack, atol=1e-7)
    network, params = dueling
    loud = network.clone(motion_gain=3.0)
    still = np.repeat(STACKS[..., :1], 4, axis=-1)
    np.testing.assert_allclose(apply(loud, params, still), apply(network, params, still), rtol=1e-4)
    assert not np.allclose(apply(loud, params, STACKS), apply(network, params, STACKS), rtol=1e-2)
