import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.networks import layers
from ssl_jax.networks.caffenet import CaffeNet
from ssl_jax.runtime.errors import InputError

# Of the reference network, as [k, k, channels in / groups, channels out].
KERNELS = {
    "conv1": (11, 11, 3, 96),
    "conv2": (5, 5, 48, 256),
    "conv3": (3, 3, 256, 384),
    "conv4": (3, 3, 192, 384),
    "conv5": (3, 3, 192, 256),
}
MAPS = {  # (image size, stride): sides of conv1 to conv5 and pool5
    (75, 2): (33, 16, 7, 7, 7, 3),
    (64, 2): (27, 13, 6, 6, 6, 2),
    (227, 4): (55, 27, 13, 13, 13, 6),
    (39, 2): (15, 7, 3, 3, 3, 1),
    (67, 4): (15, 7, 3, 3, 3, 1),
}


def shapes(image, layer=None, **kwargs):
    """Shapes and dtypes of a map and of the parameters; nothing is computed."""
    x = jnp.zeros((2, *image, 3))
    init = lambda key: CaffeNet(**kwargs).init_with_output(key, x, layer=layer)
    y, variables = jax.eval_shape(init, jax.random.key(0))
    return y, variables["params"]


@pytest.mark.parametrize(("size", "stride"), MAPS)
def test_maps_have_the_sizes_of_the_reference_network(size, stride):
    for layer, side in zip(CaffeNet.layers, MAPS[size, stride], strict=True):
        channels = KERNELS[layer.replace("pool", "conv")][-1]
        y, _ = shapes((size, size), layer, stride=stride)
        assert y.shape == (2, side, side, channels)
    assert shapes((size, size), stride=stride)[0].shape == y.shape  # pool5 unless asked otherwise


def test_parameters_are_those_of_the_reference_network():
    _, params = shapes((75, 75))
    assert {name: layer["kernel"].shape for name, layer in params.items()} == KERNELS
    assert {name: layer["bias"].shape for name, layer in params.items()} == {
        name: shape[-1:] for name, shape in KERNELS.items()
    }
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 2_334_080


def test_bfloat16_is_for_computing_only():
    y, params = shapes((75, 75), dtype=jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.fixture(scope="module")
def small():
    """Images of the smallest size, 39 x 39, and He normal parameters."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 39, 39, 3))
    params = {
        name: {
            "kernel": rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:3])),
            "bias": 0.1 * rng.normal(size=shape[3]),
        }
        for name, shape in KERNELS.items()
    }
    return jax.tree.map(jnp.float32, (x, {"params": params}))


def test_forms_agree(small):
    x, variables = small

    def values_and_gradients(form):
        def loss(variables, x):
            y = CaffeNet(form=form).apply(variables, x)
            return (y**2).mean(), y

        gradients, y = jax.jit(jax.grad(loss, has_aux=True))(variables, x)
        return [y, *jax.tree.leaves(gradients)]

    (y, *gradients), (y_cpu, *gradients_cpu) = map(values_and_gradients, ("plain", "cpu"))
    np.testing.assert_allclose(y_cpu, y, rtol=0, atol=1e-4 * y.max())
    # Where a number next to zero is rounded to the other side, ReLU lets another gradient pass.
    for expected, actual in zip(gradients, gradients_cpu, strict=True):
        assert np.linalg.norm(actual - expected) < 0.03 * np.linalg.norm(expected)


def test_a_named_layer_is_what_the_next_one_reads(small):
    x, variables = small

    @jax.jit
    def maps(variables, x):
        return [CaffeNet().apply(variables, x, layer=layer) for layer in ("conv1", "conv4", "conv5", "pool5")]

    conv1, conv4, conv5, pool5 = maps(variables, x)
    for y in (conv1, conv4, conv5, pool5):
        assert (y >= 0).all()
        assert (y > 0).any()
    conv = jax.jit(functools.partial(layers.conv, padding=1, groups=2))
    conv = conv(conv4, variables["params"]["conv5"]["kernel"])
    bias = variables["params"]["conv5"]["bias"][None, None, None]
    np.testing.assert_allclose(jnp.maximum(conv + bias, 0), conv5, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(layers.max_pool)(conv5), pool5, rtol=1e-5)


def test_an_unknown_layer_names_the_closest():
    with pytest.raises(InputError, match=r"unknown layer 'conv6', did you mean 'conv"):
        shapes((75, 75), "conv6")


@pytest.mark.parametrize(("image", "stride", "smallest"), [((38, 75), 2, 39), ((75, 66), 4, 67)])
def test_images_too_small_name_the_smallest_that_work(image, stride, smallest):
    with pytest.raises(InputError, match=f"smallest it takes are {smallest} x {smallest}"):
        shapes(image, stride=stride)
