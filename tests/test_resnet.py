import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_jax.networks import ENCODERS
from ssl_jax.networks.heads import JigsawHead, PuzzleNetwork, margins
from ssl_jax.networks.resnet import ResidualUnit, ResNet, ResNet18, ResNet50
from ssl_jax.runtime import config
from ssl_jax.runtime.errors import InputError

KEY = jax.random.key(0)
# As small as a residual network of each kind can be; between them, they have all there is.
SMALL = ResNet(units=(2, 1, 1, 1), bottleneck=False, width=2, stem="small", form="plain")
BOTTLENECK = ResNet(units=(1, 2, 1, 1), bottleneck=True, width=2, stem="standard", form="cpu")
SIZE = {SMALL: (11, 8), BOTTLENECK: (35, 46)}  # odd maps and even ones


def shapes(network, image, layer=None):
    """Shapes and dtypes of a map and of the variables; nothing is computed."""
    x = jnp.zeros((2, *image, 3))
    return jax.eval_shape(lambda key: network.init_with_output(key, x, layer=layer), KEY)


def num_parameters(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    ("make", "encoder", "with_classifier", "features"),
    [(ResNet18, 11_176_512, 11_689_512, 512), (ResNet50, 23_508_032, 25_557_032, 2048)],
)
def test_parameters_are_as_many_as_torchvision_counts(make, encoder, with_classifier, features):
    y, variables = shapes(make(), (224, 224))
    assert num_parameters(variables) == encoder
    assert encoder + 1000 * y.shape[-1] + 1000 == with_classifier
    assert y.shape == (2, 7, 7, features)
    _, small = shapes(make(stem="small"), (32, 32))
    assert encoder - num_parameters(small) == (7 * 7 - 3 * 3) * 3 * 64


@pytest.mark.parametrize(
    ("stem", "image", "sides"),
    [
        ("standard", (224, 224), [(112, 112), (56, 56), (28, 28), (14, 14), (7, 7)]),
        ("standard", (75, 32), [(38, 16), (19, 8), (10, 4), (5, 2), (3, 1)]),
        ("small", (32, 32), [(32, 32), (32, 32), (16, 16), (8, 8), (4, 4)]),
        ("small", (8, 33), [(8, 33), (8, 33), (4, 17), (2, 9), (1, 5)]),
    ],
)
@pytest.mark.parametrize(("bottleneck", "expansion"), [(False, 1), (True, 4)])
def test_maps_have_the_sizes_of_the_table(bottleneck, expansion, stem, image, sides):
    network = ResNet(units=(1, 1, 1, 1), bottleneck=bottleneck, stem=stem)
    channels = (64, *(expansion * features for features in (64, 128, 256, 512)))
    for layer, side, depth in zip(network.layers, sides, channels, strict=True):
        assert shapes(network, image, layer)[0].shape == (2, *side, depth)
    assert shapes(network, image)[0].shape == (2, *side, depth)  # block4 unless asked otherwise


# --- Against a network that is written down from its definition, in float64


def windows(x, size, stride):
    """[N, h, w, c] -> [N, h', w', c, size, size]."""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]


class Reference:
    """A residual network; `updated` are the statistics that normalisation by the batch leaves behind."""

    def __init__(self, variables, train):
        self.params, self.statistics = (
            jax.tree.map(np.float64, variables[name]) for name in ("params", "batch_stats")
        )
        self.train, self.updated = train, jax.tree.map(np.copy, self.statistics)

    def conv_norm(self, x, *path, stride=1):
        params, statistics, updated = self.params, self.statistics, self.updated
        for name in path:
            params, statistics, updated = params[name], statistics[name], updated[name]
        kernel, norm = params["kernel"], params["norm"]
        p = len(kernel) // 2
        x = windows(np.pad(x, ((0, 0), (p, p), (p, p), (0, 0))), len(kernel), stride)
        x = np.einsum("nhwcij,ijcd->nhwd", x, kernel)
        mean, var = statistics["norm"]["mean"], statistics["norm"]["var"]
        if self.train:
            updated["norm"]["mean"] = 0.9 * mean + 0.1 * x.mean((0, 1, 2))
            updated["norm"]["var"] = 0.9 * var + 0.1 * x.var((0, 1, 2))
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        mean, factor = mean[None, None, None], (norm["scale"] / np.sqrt(var + 1e-5))[None, None, None]
        return (x - mean) * factor + norm["bias"][None, None, None]

    def unit(self, x, name, stride):
        strides = {"conv1": stride, "conv2": 1}
        if "conv3" in self.params[name]:  # the 3 x 3 of three convolutions, or the first of two
            strides = {"conv1": 1, "conv2": stride, "conv3": 1}
        y = x
        for conv, step in strides.items():
            y = self.conv_norm(np.maximum(y, 0), name, conv, stride=step)  # x is not negative
        if "projection" in self.params[name]:
            x = self.conv_norm(x, name, "projection", stride=stride)
        return np.maximum(x + y, 0)

    def maps(self, x, network):
        standard = network.stem == "standard"
        x = np.maximum(self.conv_norm(x, "conv1", stride=2 if standard else 1), 0)
        maps = {"conv1": x}
        if standard:
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
            x = windows(padded, 3, 2).max((-1, -2))
        for block, units in enumerate(network.units, start=1):
            for unit in range(1, units + 1):
                x = self.unit(x, f"block{block}_unit{unit}", 2 if block > 1 and unit == 1 else 1)
            maps[f"block{block}"] = x
        return maps


def made_up(variables):
    """Variables of these shapes in which nothing is zero or one."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return np.float32(rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape))
        if name in ("scale", "var"):
            return np.float32(rng.uniform(0.5, 1.5, leaf.shape))
        return np.float32(0.3 * rng.normal(size=leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, variables)


def pictures_and_variables(network, image):
    _, variables = shapes(network, image)
    return np.float32(np.random.default_rng(1).normal(size=(4, *image, 3))), made_up(variables)


def assert_trees_close(actual, expected, tolerance=1e-4):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max()),
        actual,
        expected,
    )


@pytest.mark.parametrize("network", [SMALL, BOTTLENECK], ids=["basic", "bottleneck"])
def test_every_layer_equals_its_definition(network):
    x, variables = pictures_and_variables(network, SIZE[network])
    apply = lambda x: {layer: network.apply(variables, x, layer=layer) for layer in network.layers}
    maps = jax.jit(apply)(x)
    assert_trees_close(maps, Reference(variables, train=False).maps(x, network))
    assert all((y >= 0).all() and (y > 0).any() for y in maps.values())


@pytest.mark.parametrize("network", [SMALL, BOTTLENECK], ids=["basic", "bottleneck"])
def test_training_normalises_by_the_batch_and_remembers_a_tenth_of_it(network):
    x, variables = pictures_and_variables(network, SIZE[network])
    y, updated = jax.jit(
        lambda x: network.apply(variables, x, train=True, mutable=["batch_stats"], layer="block2")
    )(x)
    reference = Reference(variables, train=True)
    expected = reference.maps(x, network)["block2"]
    assert_trees_close(y, expected, 1e-3)
    seen = {
        name: value for name, value in reference.updated.items() if not name.startswith(("block3", "block4"))
    }
    actual = {name: updated["batch_stats"][name] for name in seen}
    assert_trees_close(actual, seen)


# --- What else it promises


@pytest.mark.parametrize("bottleneck", [False, True])
def test_residual_branches_are_silent_at_the_start(bottleneck):
    x = np.float32(np.random.default_rng(1).uniform(size=(2, 4, 4, 8)))
    unit = ResidualUnit(2 if bottleneck else 8, bottleneck=bottleneck, form="plain")
    y, variables = jax.jit(lambda: unit.init_with_output(KEY, x, train=False))()
    np.testing.assert_array_equal(y, x)
    assert all((np.abs(layer["kernel"]) > 0).all() for layer in variables["params"].values())


def test_forms_agree():
    # All kinds: a stride of 2, a projection, and a stride of 1 with many channels.
    unit = lambda form: ResidualUnit(64, stride=2, form=form)
    rng = np.random.default_rng(2)
    x, weights = (np.float32(rng.normal(size=shape)) for shape in ((4, 7, 6, 16), (4, 4, 3, 64)))
    variables = made_up(jax.eval_shape(lambda: unit("plain").init(KEY, x, train=False)))

    def values_and_gradients(form):
        def loss(params, x):
            y, updated = unit(form).apply({**variables, "params": params}, x, train=True, mutable=True)
            return (y * weights).sum(), (y, updated["batch_stats"])

        gradients, values = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables["params"], x)
        return values, gradients

    (values, gradients), (values_cpu, gradients_cpu) = map(values_and_gradients, ("plain", "cpu"))
    assert_trees_close(values_cpu, values)
    # Where a number next to zero is rounded to the other side, ReLU lets another gradient pass.
    for expected, actual in zip(*map(jax.tree.leaves, (gradients, gradients_cpu)), strict=True):
        assert np.linalg.norm(actual - expected) < 0.03 * np.linalg.norm(expected)


def test_statistics_are_those_of_the_batch_on_all_devices():
    x, variables = pictures_and_variables(SMALL, (8, 8))
    x *= np.arange(1, 5, dtype=np.float32)[:, None, None, None]  # each device has another mean
    train = jax.jit(lambda variables, x: SMALL.apply(variables, x, train=True, mutable=["batch_stats"]))
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    everywhere, split = (NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec("data")))
    args = jax.device_put(variables, everywhere), jax.device_put(x, split)
    program = train.lower(*args).compile()
    assert not re.findall(r"all-gather|all-to-all|collective-permute", program.as_text())
    assert_trees_close(program(*args), train(variables, x), 1e-3)


def test_bfloat16_is_for_computing_only():
    y, variables = shapes(ResNet18(dtype=jnp.bfloat16), (32, 32))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_all_permutations_are_answered_by_running_statistics_as_one_by_one():
    network = PuzzleNetwork(SMALL, {"spatial": JigsawHead(24, fc6=8, fc7=16)})
    rng = np.random.default_rng(3)
    tiles = np.float32(rng.normal(size=(4, 4, 8, 8, 3)))
    permutations = np.stack([rng.permutation(4) for _ in range(24)]).astype(np.int32)
    index = np.stack([rng.permutation(24)[:20] for _ in range(4)])
    variables = made_up(jax.eval_shape(lambda: network.init(KEY, tiles, "spatial", train=False)))

    answer = jax.jit(lambda tiles: network.apply(variables, tiles, "spatial", train=False))
    logits = np.stack([answer(tiles[:, permutation]) for permutation in permutations], axis=1)
    expected = margins(np.take_along_axis(logits, index[..., None], axis=1), jnp.asarray(index))
    actual = jax.jit(
        lambda: network.apply(variables, tiles, "spatial", permutations, index, method="permutation_margins")
    )()
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4)
    assert np.std(expected) > 0.1
    # The other pictures of a batch change nothing.
    others = np.concatenate([tiles[:1], 5 * tiles[1:]])
    np.testing.assert_allclose(answer(others)[0], answer(tiles)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "features"), [("resnet18", 64), ("resnet50", 256)])
def test_options_of_a_config_make_the_encoder(name, features):
    make = ENCODERS[name]
    ignore = ("dtype", "parent", "name")
    options = config.unpack({"stem": "small", "width": 8}, make, path="encoder", ignore=ignore)
    assert shapes(make(**options), (32, 32))[0].shape == (2, 4, 4, features)
    for section, message in (
        ({"stm": "small"}, r"config.encoder.stm', did you mean 'config.encoder.stem'"),
        ({"stem": "big"}, r"config.encoder.stem must be one of 'standard', 'small', not 'big'"),
        ({"units": [2, 2]}, r"config.encoder.units must be"),
    ):
        with pytest.raises(InputError, match=message):
            config.unpack(section, make, path="encoder", ignore=ignore)


@pytest.mark.parametrize(("stem", "image", "smallest"), [("standard", (31, 64), 32), ("small", (9, 7), 8)])
def test_images_too_small_name_the_smallest_that_work(stem, image, smallest):
    with pytest.raises(InputError, match=rf"{stem} stem; the smallest it takes are {smallest} x {smallest}"):
        shapes(ResNet18(stem=stem), image)
    assert shapes(ResNet18(stem=stem), (smallest, smallest))[0].shape == (2, 1, 1, 512)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_gives_its_layers_and_refuses_others(name):
    encoder = ENCODERS[name](**({"units": (1, 1, 1, 1)} if name.startswith("resnet") else {}))
    maps = {layer: shapes(encoder, (75, 75), layer)[0] for layer in (*encoder.layers, None)}
    assert maps[encoder.layers[-1]] == maps[None]
    sides = [maps[layer].shape[1] for layer in encoder.layers]
    assert sides == sorted(sides, reverse=True)
    with pytest.raises(InputError, match=f"unknown layer 'blok4'.*known: {', '.join(encoder.layers)}"):
        shapes(encoder, (75, 75), "blok4")
    with pytest.raises(InputError, match=r"the smallest it takes are (\d+) x \1") as refusal:
        shapes(encoder, (75, 1))
    smallest = int(re.search(r"are (\d+) x", str(refusal.value))[1])
    assert 0 not in shapes(encoder, (smallest, smallest))[0].shape
    with pytest.raises(InputError, match=f"images of 75 x {smallest - 1} pixels"):
        shapes(encoder, (75, smallest - 1))


def test_what_is_computed_again_is_the_same_and_need_not_be_kept(little_optimization):
    network = ResNet(units=(1, 1, 1, 1), bottleneck=False, width=2, stem="small", form="plain")
    shape = (11, 8, 3)
    variables = jax.jit(network.init)(KEY, jnp.zeros((1, *shape)))
    # The convolutions that start silent would leave nothing to compute again.
    params = jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])

    def loss(params, x, network):
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        y, updated = network.apply(given, x, train=True, mutable=["batch_stats"])
        return (y**2).mean(), updated["batch_stats"]

    def kept(network):
        """Bytes that wait for the gradient, of a batch so large that the parameters do not count."""
        forward = lambda params, x: jax.vjp(lambda p: loss(p, x, network), params, has_aux=True)
        x = jax.ShapeDtypeStruct((256, *shape), jnp.float32)
        _, backward, _ = jax.eval_shape(forward, params, x)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    again = network.clone(remat=True)
    assert kept(again) < 0.6 * kept(network)
    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
    x = jax.random.normal(KEY, (2, *shape))
    plain, remat = gradient(params, x, network), gradient(params, x, again)
    assert jax.tree.structure(plain) == jax.tree.structure(remat)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
