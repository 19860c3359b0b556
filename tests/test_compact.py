import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ssl_jax.networks.compact import Compact
from ssl_jax.runtime.errors import InputError


@pytest.fixture(scope="module")
def variables():
    init = jax.eval_shape(lambda: Compact(width=4).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
    rng = np.random.default_rng(0)
    draw = lambda leaf: np.float32(rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])))
    return jax.tree.map(draw, init)


def test_layers_are_the_convolutions_one_after_the_other(variables):
    x = np.float32(np.random.default_rng(1).normal(size=(2, 20, 32, 3)))
    apply = lambda layer: Compact(width=4).apply(variables, x, layer=layer)
    *maps, last = jax.jit(lambda: [apply(layer) for layer in (*Compact.layers, None)])()
    shapes = {"conv1": (2, 10, 16, 2), "conv2": (2, 5, 8, 4), "conv3": (2, 3, 4, 4)}
    for (layer, shape), y in zip(shapes.items(), maps, strict=True):
        params = variables["params"][layer]
        x = lax.conv_general_dilated(
            x, params["kernel"], (2, 2), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.maximum(x + params["bias"][None, None, None], 0)
        assert x.shape == shape
        np.testing.assert_allclose(y, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(last, y)


def test_tiles_of_32_pixels_keep_4_x_4_x_width():
    x = jnp.zeros((2, 32, 32, 3))
    y, variables = jax.eval_shape(lambda: Compact().init_with_output(jax.random.key(0), x))
    assert y.shape == (2, 4, 4, 64)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 1568 + 32832 + 36928


def test_an_unknown_layer_names_the_closest(variables):
    with pytest.raises(InputError, match=r"unknown layer 'conv4', did you mean 'conv"):
        Compact(width=4).apply(variables, jnp.zeros((1, 8, 8, 3)), layer="conv4")


def test_images_too_small_name_the_smallest_that_work(variables):
    apply = lambda *image: Compact(width=4).apply(variables, jnp.zeros((1, *image, 3)))
    with pytest.raises(InputError, match=r"images of 8 x 3 pixels .* smallest it takes are 4 x 4"):
        apply(8, 3)
    assert jax.eval_shape(lambda: apply(4, 4)).shape == (1, 1, 1, 4)
