import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ssl_jax.networks import ENCODERS
from ssl_jax.networks.alexnet import AlexNet, AlexNetClassifier, adaptive_mean
from ssl_jax.runtime import config
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("little_optimization")

KEY = jax.random.key(0)
# Of torchvision: [k, k, channels in, channels out], stride, padding, and whether pooling follows.
CONVOLUTIONS = {
    "conv1": ((11, 11, 3, 64), 4, 2, True),
    "conv2": ((5, 5, 64, 192), 1, 2, True),
    "conv3": ((3, 3, 192, 384), 1, 1, False),
    "conv4": ((3, 3, 384, 256), 1, 1, False),
    "conv5": ((3, 3, 256, 256), 1, 1, True),
}
MAPS = {  # image: sides of conv1 to conv5 and pool5
    (224, 224): [(55, 55), (27, 27), (13, 13), (13, 13), (13, 13), (6, 6)],
    (64, 96): [(15, 23), (7, 11), (3, 5), (3, 5), (3, 5), (1, 2)],
    (63, 63): [(15, 15), (7, 7), (3, 3), (3, 3), (3, 3), (1, 1)],
}


def shapes(network, *inputs, **kwargs):
    """Shapes and dtypes of what a network gives and of its parameters; nothing is computed."""
    inputs = [jnp.zeros(shape) for shape in inputs]
    y, variables = jax.eval_shape(lambda key: network.init_with_output(key, *inputs, **kwargs), KEY)
    return y, variables["params"]


def num_parameters(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_parameters_are_as_many_as_torchvision_counts():
    y, params = shapes(AlexNet(), (2, 224, 224, 3))
    assert {name: layer["kernel"].shape for name, layer in params.items()} == {
        name: layer[0] for name, layer in CONVOLUTIONS.items()
    }
    assert num_parameters(params) == 2_469_696
    logits, classifier = shapes(AlexNetClassifier(num_classes=1000), y.shape)
    assert num_parameters(params) + num_parameters(classifier) == 61_100_840
    assert {name: layer["kernel"].shape for name, layer in classifier.items()} == {
        "fc6": (9216, 4096),
        "fc7": (4096, 4096),
        "classifier": (4096, 1000),
    }
    assert (logits.shape, logits.dtype) == ((2, 1000), jnp.float32)


@pytest.mark.parametrize("image", MAPS)
def test_maps_have_the_sizes_of_torchvisions(image):
    for layer, side, depth in zip(AlexNet.layers, MAPS[image], (64, 192, 384, 256, 256, 256), strict=True):
        assert shapes(AlexNet(), (2, *image, 3), layer=layer)[0].shape == (2, *side, depth)
    assert shapes(AlexNet(), (2, *image, 3))[0].shape == (2, *side, depth)  # pool5 unless asked otherwise


@pytest.mark.parametrize("form", ["plain", "cpu"])
def test_every_layer_equals_its_definition(form):
    rng = np.random.default_rng(0)
    params = {
        name: {
            "kernel": np.float32(rng.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape)),
            "bias": np.float32(rng.normal(0, 0.3, shape[-1])),
        }
        for name, (shape, *_) in CONVOLUTIONS.items()
    }
    images = np.float32(rng.normal(size=(2, 64, 96, 3)))
    network = AlexNet(form=form)
    maps = jax.jit(
        lambda x: {layer: network.apply({"params": params}, x, layer=layer) for layer in AlexNet.layers}
    )(images)

    x = images
    for name, (_, stride, padding, pooled) in CONVOLUTIONS.items():
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        margins = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        x = lax.conv_general_dilated(
            np.pad(x, margins), kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = np.maximum(x + bias[None, None, None], 0)
        np.testing.assert_allclose(maps[name], x, rtol=0, atol=1e-4 * x.max())
        assert (x > 0).any()
        if pooled:
            x = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2].max((-1, -2))
    np.testing.assert_allclose(maps["pool5"], x, rtol=0, atol=1e-4 * x.max())


@pytest.mark.parametrize("size", [(6, 6), (1, 2), (4, 7), (13, 12)])
def test_maps_are_averaged_to_regions(size):
    maps = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    actual = adaptive_mean(maps, 6)
    for i, j in np.ndindex(6, 6):
        rows, columns = (
            slice(int(np.floor(k * n / 6)), int(np.ceil((k + 1) * n / 6)))
            for k, n in zip((i, j), size, strict=True)
        )
        np.testing.assert_allclose(actual[:, i, j], maps[:, rows, columns].mean((1, 2)), rtol=1e-5, atol=1e-6)
    if size == (6, 6):
        np.testing.assert_array_equal(actual, maps)


def test_the_classifier_equals_its_definition_and_drops_in_training_only():
    rng = np.random.default_rng(1)
    maps = np.float32(rng.uniform(size=(3, 6, 6, 2)))
    head = AlexNetClassifier(num_classes=4, width=5)
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes(head, maps.shape)[1])
    x = maps.reshape(3, -1)
    for name in ("fc6", "fc7"):
        x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
    expected = x @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(head.apply({"params": params}, maps), expected, rtol=1e-4, atol=1e-4)
    dropped = head.apply({"params": params}, maps, train=True, rngs={"dropout": KEY})
    assert not np.allclose(dropped, expected, atol=0.1)


def test_bfloat16_is_for_computing_only():
    y, params = shapes(AlexNet(dtype=jnp.bfloat16), (2, 64, 64, 3))
    logits, classifier = shapes(AlexNetClassifier(num_classes=2, dtype=jnp.bfloat16), y.shape)
    assert (y.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, classifier))} == {jnp.dtype("float32")}


def test_images_too_small_name_the_smallest_that_work():
    with pytest.raises(InputError, match=r"images of 62 x 224 pixels .* AlexNet; .* are 63 x 63"):
        shapes(AlexNet(), (1, 62, 224, 3))
    with pytest.raises(InputError, match="unknown layer 'conv6', did you mean 'conv"):
        shapes(AlexNet(), (1, 64, 64, 3), layer="conv6")


def test_a_config_makes_the_encoder():
    section = {"form": "plain"}
    options = config.unpack(section, ENCODERS["alexnet"], path="encoder", ignore=("dtype", "parent", "name"))
    assert ENCODERS["alexnet"](**options) == AlexNet(form="plain")
