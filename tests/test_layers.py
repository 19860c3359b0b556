import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_jax.networks import layers
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("little_optimization")


def values_and_gradients(function, form, *args):
    """What `function` answers, and the gradients of a sum of its answers with random weights."""

    @jax.jit
    def both(*args):
        y, pullback = jax.vjp(lambda *args: function(*args, form=form), *args)
        weights = np.random.default_rng(9).normal(size=y.shape)
        return y, *pullback(jnp.asarray(weights, y.dtype))

    return both(*args)


def assert_forms_agree(function, *args, tolerance, form="cpu"):
    """Values and gradients of the plain form and another, to a tolerance relative to the largest."""
    plain = values_and_gradients(function, "plain", *args)
    fast = values_and_gradients(function, form, *args)
    for expected, actual in zip(plain, fast, strict=True):
        assert actual.dtype == expected.dtype
        chex.assert_shape(actual, expected.shape)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def random_conv(num, height, width, channels, features, window, groups):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, height, width, channels))
    return np.float32(x), np.float32(rng.normal(size=(window, window, channels // groups, features)))


def naive_conv(x, kernel, stride, padding, groups):
    """A convolution as its definition has it, in float64."""
    x = np.pad(np.float64(x), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    window, features = kernel.shape[0], kernel.shape[3] // groups
    y = []
    for group in range(groups):
        part = x[..., group * kernel.shape[2] :][..., : kernel.shape[2]]
        weights = np.float64(kernel)[..., group * features : (group + 1) * features]
        for i in range(0, x.shape[1] - window + 1, stride):
            for j in range(0, x.shape[2] - window + 1, stride):
                patch = part[:, i : i + window, j : j + window]
                y.append(np.tensordot(patch, weights, 3))
    size = [(n - window) // stride + 1 for n in x.shape[1:3]]
    y = np.reshape(y, (groups, *size, len(x), features))
    return y.transpose(3, 1, 2, 0, 4).reshape(len(x), *size, -1)


# --- Convolution

CONVS = {  # height, width, channels, features, window, stride, padding, groups
    "conv1": (31, 29, 3, 16, 11, 2, 0, 1),
    "conv2": (16, 13, 96, 128, 5, 1, 2, 2),
    "conv3": (7, 7, 64, 64, 3, 1, 1, 1),
    "conv4": (6, 6, 96, 96, 3, 1, 1, 2),
    "one tile": (3, 3, 64, 64, 3, 1, 0, 1),
    "few channels": (9, 11, 4, 6, 3, 1, 1, 2),
    "stride with a rest": (8, 9, 8, 4, 4, 3, 1, 1),
    "one pixel": (5, 5, 8, 4, 1, 1, 0, 1),
    "blocks": (20, 20, 4, 8, 8, 4, 0, 1),
    "blocks with a rest": (11, 14, 3, 8, 6, 3, 2, 1),
}


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "cpu") for name in CONVS), ("blocks", "blocks"), ("blocks with a rest", "blocks")],
)
def test_forms_of_conv_agree(name, form):
    height, width, channels, features, window, stride, padding, groups = CONVS[name]

    def conv(x, kernel, form):
        return layers.conv(x, kernel, stride=stride, padding=padding, groups=groups, form=form)

    args = random_conv(4, height, width, channels, features, window, groups)
    assert_forms_agree(conv, *args, tolerance=2e-5, form=form)


def test_convolutions_in_blocks_have_no_stride():
    x, kernel = random_conv(4, 20, 20, 4, 8, 8, 1)
    strided = {}
    for form in ("plain", "blocks"):
        loss = lambda x, kernel, form=form: layers.conv(x, kernel, stride=4, form=form).sum()
        program = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text("hlo")
        strided[form] = "stride=4x4" in program or "dilate=4x4" in program
    assert strided == {"plain": True, "blocks": False}


@pytest.mark.parametrize("name", CONVS)
def test_plain_conv_is_what_its_definition_says(name):
    height, width, channels, features, window, stride, padding, groups = CONVS[name]
    x, kernel = random_conv(2, height, width, channels, features, window, groups)
    expected = naive_conv(x, kernel, stride, padding, groups)
    in_parts = layers.conv(x, kernel, stride=stride, padding=padding, groups=groups, form="plain")
    in_one = layers._lax_conv(stride, padding, x, kernel, groups)
    for actual in (in_parts, in_one):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("m", "r"), [(2, 3), (3, 3), (4, 3), (2, 5), (3, 5), (4, 5)])
def test_minimal_filtering_is_correlation(m, r):
    output, filters, data = map(np.float64, layers._minimal_filtering(m, r))
    rng = np.random.default_rng(0)
    d, g = rng.normal(size=m + r - 1), rng.normal(size=r)
    np.testing.assert_allclose(output @ (filters @ g * (data @ d)), np.correlate(d, g), atol=1e-5)


def test_conv_computes_no_gradient_that_nobody_reads(all_optimizations):
    x, kernel = random_conv(4, 21, 21, 3, 8, 11, 1)

    def loss(kernel, x):
        return layers.conv(x, kernel, stride=2, form="cpu").sum()

    first = jax.jit(jax.grad(loss)).lower(kernel, x).compile(all_optimizations).as_text()
    later = jax.jit(jax.grad(loss, (0, 1))).lower(kernel, x).compile(all_optimizations).as_text()
    assert " convolution(" not in first
    assert " convolution(" in later


def test_conv_module_keeps_parameters_in_float32():
    x, _ = random_conv(2, 8, 8, 4, 6, 3, 2)
    module = layers.Conv(6, 3, padding=1, groups=2, dtype=jnp.bfloat16)
    y, variables = jax.jit(module.init_with_output)(jax.random.key(1), x)
    params = variables["params"]
    assert y.dtype == jnp.bfloat16
    assert jax.tree.map(jnp.shape, params) == {"kernel": (3, 3, 2, 6), "bias": (6,)}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    deviation = params["kernel"].std()
    assert abs(deviation / np.sqrt(2 / (3 * 3 * 2)) - 1) < 0.2
    exact = jax.jit(layers.Conv(6, 3, padding=1, groups=2).apply)(variables, x)
    np.testing.assert_allclose(np.float32(y), exact, rtol=0, atol=0.02 * np.abs(exact).max())


@settings(max_examples=50)
@given(num=st.integers(1, 500), most=st.integers(0, 40))
def test_loop_shape_divides_every_batch(num, most):
    shards, n, steps = layers.loop_shape(num, most)
    assert shards * n * steps == num
    assert shards in (1, jax.device_count())
    assert 1 <= n <= max(most, 1)


@pytest.mark.parametrize(
    ("name", "form"),
    [("conv1", "plain"), ("conv1", "cpu"), ("conv2", "plain"), ("conv2", "cpu"), ("blocks", "blocks")],
)
def test_a_batch_split_among_devices_is_never_gathered(name, form, all_optimizations):
    height, width, channels, features, window, stride, padding, groups = CONVS[name]
    x, kernel = random_conv(8, height, width, channels, features, window, groups)
    mesh = Mesh(np.asarray(jax.devices()), ("data",))
    split, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], []))

    def loss(kernel, x):
        y = layers.conv(x, kernel, stride=stride, padding=padding, groups=groups, form=form)
        y = layers.local_response_norm(layers.max_pool(y, form=form))
        return (y**2).sum()

    gradient = jax.jit(jax.grad(loss))
    lowered = gradient.lower(jax.device_put(kernel, everywhere), jax.device_put(x, split))
    program = lowered.compile(all_optimizations)
    assert not re.findall(r"all-gather|all-to-all|collective-permute", program.as_text())
    expected = gradient(kernel, x)
    actual = program(jax.device_put(kernel, everywhere), jax.device_put(x, split))
    assert np.linalg.norm(actual - expected) < 1e-3 * np.linalg.norm(expected)


# --- Pooling


@pytest.mark.parametrize(
    ("height", "width", "window", "stride"),
    [(9, 8, 3, 2), (5, 7, 2, 2), (6, 6, 3, 1), (11, 8, 2, 3), (9, 10, 4, 3)],
)
def test_forms_of_max_pool_agree_even_where_maxima_are_equal(height, width, window, stride):
    x = np.float32(np.random.default_rng(0).integers(-2, 3, size=(2, height, width, 3)))
    pool = lambda x, form: layers.max_pool(x, window, stride, form=form)
    assert_forms_agree(pool, x, tolerance=1e-6)


@pytest.mark.parametrize("form", ["plain", "cpu"])
def test_max_pool_and_its_gradient_by_hand(form):
    x = jnp.array([[1.0, 2, 0, 3, 0], [2, 2, 0, 0, 0], [0, 0, 5, 0, 0]])[None, :, :, None]
    y, pullback = jax.vjp(lambda x: layers.max_pool(x, form=form), x)
    np.testing.assert_array_equal(y[0, ..., 0], [[5, 5]])
    np.testing.assert_array_equal(pullback(y)[0][0, ..., 0], [[0] * 5, [0] * 5, [0, 0, 10, 0, 0]])
    y, pullback = jax.vjp(lambda x: layers.max_pool(x, 2, 2, form=form), x)
    np.testing.assert_array_equal(y[0, ..., 0], [[2, 3]])
    expected = [[0, 2, 0, 3, 0], [0] * 5, [0] * 5]  # the first of three twos
    np.testing.assert_array_equal(pullback(y)[0][0, ..., 0], expected)


# --- Normalisation


@pytest.mark.parametrize(("size", "alpha", "beta", "k"), [(5, 1e-4, 0.75, 1.0), (3, 0.5, 0.6, 2.0)])
def test_local_response_norm_is_that_of_caffe(size, alpha, beta, k):
    x = np.float32(30 * np.random.default_rng(0).normal(size=(2, 3, 3, 16)))
    expected = np.empty_like(x)
    for channel in range(16):
        around = x[..., max(0, channel - size // 2) : channel + size // 2 + 1]
        expected[..., channel] = x[..., channel] / (k + alpha / size * (around**2).sum(-1)) ** beta
    actual = layers.local_response_norm(jnp.asarray(x), size, alpha, beta, k)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


# --- The choice


def test_the_form_is_chosen_by_the_backend():
    assert layers.fast_on_cpu("auto") == (jax.default_backend() == "cpu")
    assert layers.fast_on_cpu("cpu")
    assert not layers.fast_on_cpu("plain")


def test_the_compiler_knows_its_options_and_answers_the_same(monkeypatch):
    options = layers.compiler_options()
    assert options  # on a CPU; if XLA no longer knows them, a Q-network's updates are slower
    x = jax.random.normal(jax.random.PRNGKey(0), (3, 20, 20, 8))
    kernel = jax.random.normal(jax.random.PRNGKey(1), (4, 4, 8, 16))
    gradient = jax.grad(lambda kernel, x: (layers.conv(x, kernel, stride=2, form="plain") ** 2).sum())
    ours, plain = jax.jit(gradient, compiler_options=options), jax.jit(gradient)
    np.testing.assert_allclose(ours(kernel, x), plain(kernel, x), rtol=1e-4, atol=1e-2)

    def refuse(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("No such compile option")

    monkeypatch.setattr(layers.jax, "jit", refuse)
    assert layers.compiler_options.__wrapped__() == {}


def test_an_unknown_form_names_the_closest():
    with pytest.raises(InputError, match=r"unknown form 'plane', did you mean 'plain'"):
        layers.max_pool(jnp.zeros((1, 5, 5, 1)), form="plane")
