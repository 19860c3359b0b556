import contextlib
import functools
import json
import os
import pickle
import re
import subprocess
import sys

import h5py
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ssl_jax import export
from ssl_jax.networks import weights
from ssl_jax.networks.alexnet import AlexNet, AlexNetClassifier
from ssl_jax.networks.caffenet import CaffeNet
from ssl_jax.networks.compact import Compact
from ssl_jax.networks.resnet import ResNet, ResNet18, ResNet50
from ssl_jax.runtime.checkpoints import Checkpoints
from ssl_jax.runtime.errors import InputError
from tests.runs import ROOT

pytestmark = pytest.mark.usefixtures("little_optimization")

KEY = jax.random.key(0)
# As small as a residual network of each kind can be.
SMALL = ResNet(units=(1, 2, 1, 1), bottleneck=False, width=2, stem="small")
BOTTLENECK = ResNet(units=(1, 1, 1, 1), bottleneck=True, width=2)


@functools.cache
def shapes_of(encoder, size):
    return jax.eval_shape(encoder.init, KEY, jnp.zeros((1, size, size, 3)))


def template(encoder, size=75, **classifier):
    """Shapes of an encoder's variables; of a classifier's layers, (inputs, features) each."""
    variables = shapes_of(encoder, size)
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    dense = {name: {"kernel": shape(*sizes), "bias": shape(sizes[1])} for name, sizes in classifier.items()}
    return {**variables, "params": {**variables["params"], **dense}}


def made_up(shapes, seed=0):
    """Variables in which no two numbers are alike, nor is one zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype), shapes)


def flat(variables):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }


def assert_equal_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


# --- Out, and in again


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
@pytest.mark.parametrize(
    ("encoder", "classifier"),
    [
        (SMALL, {}),
        (SMALL, {"classifier": (16, 5)}),
        (BOTTLENECK, {"classifier": (64, 2)}),
        (AlexNet(), {"fc6": (2 * 2 * 256, 6), "fc7": (6, 4), "classifier": (4, 3)}),
        (CaffeNet(), {"fc6": (3 * 3 * 256, 6)}),
        (Compact(width=4), {}),
    ],
    ids=["basic", "basic, classifier", "bottleneck", "alexnet", "caffenet", "compact"],
)
def test_what_goes_out_comes_in_bit_for_bit(tmp_path, encoder, classifier, suffix):
    variables = made_up(template(encoder, **classifier))
    path = tmp_path / f"weights{suffix}"
    weights.save(path, encoder, jax.device_put(variables))
    assert_equal_bits(weights.load(path, encoder, template(encoder, **classifier)), variables)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if "batch_stats" not in variables:
        assert weights.load(path, encoder, {**variables, "batch_stats": {}})["batch_stats"] == {}
    # Nobody's classifier is in the way of an encoder.
    alone = template(encoder)
    kept = {**variables, "params": {name: variables["params"][name] for name in alone["params"]}}
    assert_equal_bits(weights.load(path, encoder, alone), kept)


def test_the_newest_checkpoint_of_a_run_comes_in(tmp_path):
    variables = made_up(template(SMALL))
    state = {name: {"encoder": tree, "heads_spatial": {}} for name, tree in variables.items()} | {"step": 7}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(7, state, {})
    checkpoints.close()
    for directory in (tmp_path, tmp_path / "checkpoints"):
        assert_equal_bits(weights.load(directory, SMALL, template(SMALL)), variables)
    with pytest.raises(
        InputError, match=r"missing are .*params/conv2/bias.*not known are params/block1_unit1"
    ):
        weights.load(tmp_path, AlexNet(), template(AlexNet()))
    for state, name in (
        ({"params": {"agent": {"a": np.zeros(2)}}}, "agent"),
        ({"step": np.zeros(2)}, "none"),
    ):
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(1, state, {})
        checkpoints.close()
        with pytest.raises(InputError, match="holds no encoder; give that of a pre-training run"):
            weights.read(tmp_path / name)


def test_the_encoder_of_a_run_goes_out_in_torchvisions_names(tmp_path):
    variables = made_up(shapes_of(ResNet18(width=2, stem="small"), 32))
    run = write_run(tmp_path / "run", "resnet18", variables)
    step, shapes = export.export(run, tmp_path / "encoder.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "encoder.safetensors")
    assert (step, shapes) == (7, {name: tensor.shape for name, tensor in tensors.items()})
    kernel = variables["params"]["block2_unit1"]["conv1"]["kernel"]
    np.testing.assert_array_equal(tensors["layer2.0.conv1.weight"], kernel.transpose(3, 2, 0, 1))
    assert not any(name.startswith("heads") for name in tensors)
    export.export(run, tmp_path / "encoder.npz", step=7)
    assert_equal_bits(weights.load(tmp_path / "encoder.npz", ResNet18(width=2), variables), variables)


def test_of_a_classification_the_best_encoder_goes_out(tmp_path):
    one = lambda value: {"params": {"conv1": {"kernel": np.full((1, 1, 3, 2), value, np.float32)}}}
    run = write_run(tmp_path / "run", "compact", one(1.0), step=5)
    write_run(run, "compact", one(2.0), step=7)
    (run / "results.json").write_text('{"best_step": 5}')
    for asked, (found, value) in {None: (5, 1.0), 7: (7, 2.0)}.items():
        assert export.export(run, tmp_path / "a.npz", asked)[0] == found
        assert weights.read(tmp_path / "a.npz")["params/conv1/kernel"].max() == value


def test_bfloat16_goes_out_to_numpy_as_float32(tmp_path):
    kernel = np.arange(6).reshape(1, 1, 3, 2).astype(ml_dtypes.bfloat16)
    export.export(
        write_run(tmp_path / "run", "compact", {"params": {"conv1": {"kernel": kernel}}}), tmp_path / "a.npz"
    )
    np.testing.assert_array_equal(
        weights.read(tmp_path / "a.npz")["params/conv1/kernel"], kernel.astype(np.float32)
    )


@pytest.mark.parametrize(
    ("encoder", "file", "step", "said"),
    [
        (None, "a.npz", None, "has no encoder; give a run of pre-training or of classification"),
        ("compact", "a.pth", None, r"are written to .safetensors or .npz files, not to .*a.pth"),
        ("compact", "a.npz", 8, r"there is no checkpoint 8 in .*there are: \[7\]"),
        ("compact", "absent/a.npz", None, "cannot be written: No such file or directory"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(tmp_path, encoder, file, step, said):
    run = write_run(tmp_path / "run", encoder, {"params": {"conv1": {"kernel": np.ones((1, 1, 3, 2))}}})
    with pytest.raises(InputError, match=said):
        export.export(run, tmp_path / file, step)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with pytest.raises(InputError, match=r"is not the work directory of a run: it has no config.json"):
        export.export(tmp_path, tmp_path / file)


def test_a_checkpoint_without_an_encoder_is_not_exported(tmp_path):
    run = write_run(tmp_path / "run", "compact", {})
    with pytest.raises(InputError, match=r"the checkpoint of step 7 in .* holds no encoder"):
        export.export(run, tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()


def test_the_command_prints_what_it_wrote(tmp_path):
    run = write_run(tmp_path / "run", "compact", {"params": {"conv1": {"kernel": np.ones((1, 1, 3, 2))}}})
    command = lambda *flags: subprocess.run(
        [sys.executable, "-m", "ssl_jax.export", *flags], capture_output=True, text=True, cwd=ROOT
    )
    done = command(f"--run={run}", f"--weights={tmp_path / 'a.safetensors'}")
    assert done.stdout.splitlines() == [
        "conv1.weight [2, 3, 1, 1]",
        f"Weights of step 7: {tmp_path / 'a.safetensors'}",
    ]
    done = command(f"--run={run}")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: give the work directory of a run by --run=DIR, and the file to write by --weights=FILE."
    ]


def write_run(directory, encoder, variables, step=7):
    checkpoints = Checkpoints(directory / "checkpoints", keep=2)
    state = {name: {"encoder": tree, "heads_spatial": {"a": np.ones(2)}} for name, tree in variables.items()}
    checkpoints.save(step, state | {"step": np.int32(step)}, {})
    checkpoints.close()
    config = {"experiment": "pretrain"} | ({"encoder": {"name": encoder}} if encoder else {})
    (directory / "config.json").write_text(json.dumps(config))
    return directory


# --- Names and layout


def test_names_are_torchvisions():
    names = lambda encoder, **classifier: [
        weights.torch_name(encoder, name) for name in flat(template(encoder, **classifier))
    ]
    statistics = [f"bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    actual = names(ResNet50(), classifier=(2048, 1000))
    assert len(actual) == len(set(actual)) == 53 + 4 * 53 + 2
    assert {"conv1.weight", *statistics, "fc.weight", "fc.bias"} <= set(actual)
    assert {"layer1.0.downsample.0.weight", "layer1.0.downsample.1.running_var"} <= set(actual)
    assert {"layer3.5.conv3.weight", "layer3.5.bn3.running_mean", "layer4.2.bn1.bias"} <= set(actual)
    assert {name.split(".")[0] for name in actual} == {
        "conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc",
    }  # fmt: skip
    actual = names(ResNet18(), classifier=(512, 1000))
    assert len(actual) == len(set(actual)) == 20 + 4 * 20 + 2
    assert "layer1.0.downsample.0.weight" not in actual
    assert "layer4.0.downsample.1.weight" in actual
    layers = {"fc6": (9216, 4096), "fc7": (4096, 4096), "classifier": (4096, 1000)}
    modules = [f"features.{i}" for i in (0, 3, 6, 8, 10)] + [f"classifier.{i}" for i in (1, 4, 6)]
    expected = {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}
    assert set(names(AlexNet(), **layers)) == expected
    modules = [f"conv{i}" for i in range(1, 6)] + ["fc6", "fc7", "fc8"]
    expected = {f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")}
    assert set(names(CaffeNet(), **layers)) == expected


def test_kernels_have_the_layout_of_pytorch(tmp_path):
    path = tmp_path / "weights.safetensors"
    shapes = template(AlexNet(), fc6=(2 * 2 * 256, 3), fc7=(3, 5))
    variables = made_up(shapes)
    weights.save(path, AlexNet(), variables)
    tensors, params = safetensors.numpy.load_file(path), variables["params"]
    assert tensors["features.3.weight"].shape == (192, 64, 5, 5)
    assert tensors["features.3.weight"][7, 11, 1, 4] == params["conv2"]["kernel"][1, 4, 11, 7]
    np.testing.assert_array_equal(tensors["classifier.4.weight"], params["fc7"]["kernel"].T)
    # The same names and layout in another container.
    np.savez(tmp_path / "weights.npz", **tensors)
    assert_equal_bits(weights.load(tmp_path / "weights.npz", AlexNet(), shapes), variables)
    # A map of one pixel that is not zero, flattened here and there.
    y, x, channel = 1, 0, 200
    map_here, map_there = np.zeros((2, 2, 256), np.float32), np.zeros((256, 2, 2), np.float32)
    map_here[y, x, channel] = map_there[channel, y, x] = 1
    np.testing.assert_array_equal(
        map_here.reshape(-1) @ params["fc6"]["kernel"], tensors["classifier.1.weight"] @ map_there.reshape(-1)
    )
    # What a loader of PyTorch's own reads: little endian, row by row, after a header.
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"] == {"format": "pt"}
    start = 8 + int.from_bytes(content[:8], "little") + header["features.3.weight"]["data_offsets"][0]
    expected = params["conv2"]["kernel"].transpose(3, 2, 0, 1).astype("<f4").tobytes()
    assert content[start : start + len(expected)] == expected


def test_statistics_of_normalisation_come_with_their_count(tmp_path):
    variables = made_up(template(SMALL))
    weights.save(tmp_path / "a.safetensors", SMALL, variables)
    tensors = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    count = tensors.pop("layer2.0.downsample.1.num_batches_tracked")
    assert (count.dtype, count.shape) == (np.int64, ())
    norm = variables["batch_stats"]["block2_unit1"]["projection"]["norm"]
    np.testing.assert_array_equal(tensors["layer2.0.downsample.1.running_var"], norm["var"])
    np.testing.assert_array_equal(tensors["layer2.0.downsample.1.running_mean"], norm["mean"])
    # Files from before there was such a count fit as well, and so do floats of other precisions.
    path = tmp_path / "b.safetensors"
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        other = {name: leaf.astype(dtype) for name, leaf in tensors.items() if "num_batches" not in name}
        safetensors.numpy.save_file(other, path)
        expected = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype).astype(np.float32), variables)
        assert_equal_bits(weights.load(path, SMALL, template(SMALL)), expected)


@pytest.mark.parametrize(
    ("suffix", "spelling", "blobs"),
    [
        (".h5", "data/{}/{}", "01"),  # Caffe's own
        (".h5", "{}/{}", ("weights", "bias")),
        (".npz", "{}/{}", "01"),
        (".npz", "{}_{}", "wb"),
        (".npz", "{}.{}", ("weight", "bias")),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_dumps_of_caffe_come_in(tmp_path, suffix, spelling, blobs, legacy):
    encoder, shapes = CaffeNet(), template(CaffeNet(), fc6=(3 * 3 * 256, 4), classifier=(7, 2))
    variables, dump = made_up(shapes), {}
    for layer, params in variables["params"].items():
        kernel = params["kernel"]
        if layer == "fc6":
            kernel = kernel.reshape(3, 3, 256, 4).transpose(2, 0, 1, 3).reshape(-1, 4).T
        else:
            kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        for blob, tensor in zip(blobs, (kernel, params["bias"]), strict=True):
            if legacy:  # until 2014 Caffe had four axes, whatever was in them
                tensor = tensor.reshape((1,) * (4 - tensor.ndim) + tensor.shape)
            dump[spelling.format("fc8" if layer == "classifier" else layer, blob)] = tensor
    path = tmp_path / f"caffenet{suffix}"
    if suffix == ".npz":
        np.savez(path, **dump)
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            for name, tensor in dump.items():
                file[name] = tensor
                if name.startswith("data/"):  # gradients, which Caffe writes on request
                    file[name.replace("data/", "diff/")] = 0 * tensor
    assert_equal_bits(weights.load(path, encoder, shapes), variables)
    kept = {"params": {layer: variables["params"][layer] for layer in template(encoder)["params"]}}
    assert_equal_bits(weights.load(path, encoder, template(encoder)), kept)


def test_normalisation_is_that_of_the_other_side():
    picture = np.array([[[255, 0, 51]]], np.uint8)[None]
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(weights.IMAGENET(picture)[0, 0, 0], expected, rtol=1e-6)
    expected = [51 - 104.00698793, -116.66876762, 255 - 122.67891434]  # blue comes first
    np.testing.assert_allclose(weights.CAFFE(picture)[0, 0, 0], expected, rtol=1e-6)


# --- What does not fit is named


def spoil(change):
    """A file of SMALL's tensors after a change of them, and SMALL's template with a classifier of 5."""

    def write(path):
        weights.save(path, SMALL, made_up(template(SMALL, classifier=(16, 5))))
        tensors = safetensors.numpy.load_file(path)
        change(tensors)
        safetensors.numpy.save_file(tensors, path)

    return write


def rename(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


PROBLEMS = {
    "missing": (lambda tensors: tensors.pop("fc.bias"), "missing are fc.bias$"),
    "renamed": (
        rename("layer2.1.bn2.weight", "layer2.1.bn2.wieght"),
        r"missing are layer2.1.bn2.weight \(closest: layer2.1.bn2.wieght\); "
        r"not known are layer2.1.bn2.wieght \(closest: layer2.1.bn2.weight\)$",
    ),
    "extra": (
        lambda tensors: tensors.update({"layer2.2.conv1.weight": np.zeros(3, np.float32)}),
        r"not known are layer2.2.conv1.weight \(closest: layer2.[01].conv1.weight\)$",
    ),
    "misshapen": (
        lambda tensors: tensors.update({"fc.weight": np.zeros((1000, 16), np.float32)}),
        r"ResNet: fc.weight is float32\[1000, 16\] and should be float32\[5, 16\]$",
    ),
    "quantised": (
        lambda tensors: tensors.update({"fc.bias": np.zeros(5, np.int8)}),
        r"fc.bias is int8\[5\] and should be float32\[5\]$",
    ),
    "all at once": (
        lambda tensors: (
            rename("conv1.weight", "stem.weight")(tensors),
            tensors.update({"fc.bias": np.zeros(6, np.float32)}),
        ),
        "missing are conv1.weight.*; not known are stem.weight.*; fc.bias is",
    ),
    "another network": (
        lambda tensors: (tensors.clear(), tensors.update(a=np.zeros(3, np.float32))),
        r"missing are (\S+, ){7}\S+ and \d\d more; not known are a$",
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_tensors_that_do_not_fit_are_named(tmp_path, problem):
    change, message = PROBLEMS[problem]
    path = tmp_path / "weights.safetensors"
    spoil(change)(path)
    variables = made_up(template(SMALL, classifier=(16, 5)), seed=1)
    before = jax.tree.map(np.copy, variables)
    with pytest.raises(InputError, match=message) as refusal:
        weights.load(path, SMALL, variables)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert_equal_bits(variables, before)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".h5"])
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "backbone.", "model.encoder.", "_orig_mod.module."]
)
@pytest.mark.parametrize(
    "encoder", [SMALL, Compact(width=2), CaffeNet()], ids=["resnet", "compact", "caffenet"]
)
def test_weights_of_a_wrapped_network_are_read(tmp_path, encoder, prefix, suffix):
    variables = made_up(template(encoder))
    weights.save(tmp_path / "plain.safetensors", encoder, variables)
    tensors = safetensors.numpy.load_file(tmp_path / "plain.safetensors")
    path = tmp_path / f"wrapped{suffix}"
    write(path, {prefix + name: tensor for name, tensor in tensors.items()})
    assert_equal_bits(weights.load(path, encoder, variables), variables)


def write(path, tensors):
    """A file of tensors by name; in HDF5, a slash in a name is a group."""
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(tensors, path)
    elif path.suffix == ".npz":
        np.savez(path, **tensors)
    else:
        with h5py.File(path, "w") as file:
            for name, tensor in tensors.items():
                file["data/" + name] = tensor


def test_weights_with_a_prefix_that_do_not_fit_name_the_prefix(tmp_path):
    variables, path = made_up(template(SMALL)), tmp_path / "a.safetensors"
    weights.save(path, SMALL, variables)
    tensors = safetensors.numpy.load_file(path)
    write(path, {f"module.{name}": tensor for name, tensor in tensors.items() if name != "conv1.weight"})
    with pytest.raises(InputError, match=r"missing are conv1.weight; all names .* with 'module.', which is"):
        weights.load(path, SMALL, variables)
    write(path, {f"decoder.{number}.w": tensor for number, tensor in enumerate(tensors.values())})
    with pytest.raises(InputError, match=r"not known are .*; all names in the file begin with 'decoder.'$"):
        weights.load(path, SMALL, variables)
    # Of a network beside others only a part has the prefix; nothing is guessed.
    write(path, {f"module.{name}": tensor for name, tensor in tensors.items()} | {"head": np.zeros(3)})
    with pytest.raises(InputError, match=r"not known are head, module.*\(closest: bn1.bias\)"):
        weights.load(path, SMALL, variables)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".h5"])
def test_weights_that_are_not_finite_name_the_tensor(tmp_path, suffix, value):
    encoder = Compact(width=4)
    variables, path = made_up(template(encoder)), tmp_path / f"a{suffix}"
    weights.save(tmp_path / "a.safetensors", encoder, variables)
    tensors = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    name = next(name for name in tensors if name.endswith("weight"))
    write(path, tensors)
    weights.load(path, encoder, variables)
    tensors[name].flat[[1, 5]] = value
    write(path, tensors)
    sentence = (
        rf"{re.escape(str(path))} holds NaN or infinity in {name} \(2 of {tensors[name].size} numbers\)"
    )
    with pytest.raises(InputError, match=sentence):
        weights.load(path, encoder, variables)


def test_weights_of_bfloat16_that_are_not_finite_name_the_tensor(tmp_path):
    variables, path = made_up(template(SMALL)), tmp_path / "a.safetensors"
    weights.save(path, SMALL, variables)
    tensors = safetensors.numpy.load_file(path)
    tensors["conv1.weight"] = tensors["conv1.weight"].astype(ml_dtypes.bfloat16)
    tensors["conv1.weight"].flat[0] = np.nan
    write(path, tensors)
    with pytest.raises(InputError, match=r"NaN or infinity in conv1.weight \(1 of"):
        weights.load(path, SMALL, variables)


def test_weights_too_large_for_their_dtype_name_the_tensor(tmp_path):
    """A number of float64 that float32 does not have."""
    variables, path = made_up(template(Compact(width=2))), tmp_path / "a.npz"
    large = {name: leaf.astype(np.float64) for name, leaf in flat(variables).items()}
    large["params/conv1/bias"][0] = 1e300
    write(path, large)
    with (
        np.errstate(over="ignore"),
        pytest.raises(InputError, match=r"NaN or infinity in params/conv1/bias \(1 of"),
    ):
        weights.load(path, Compact(width=2), variables)


def test_classifier_that_is_not_finite_is_left_aside_where_nobody_reads_it(tmp_path):
    variables, path = made_up(template(SMALL, classifier=(16, 5))), tmp_path / "a.safetensors"
    variables["params"]["classifier"]["bias"][0] = np.nan
    weights.save(path, SMALL, variables)
    weights.load(path, SMALL, template(SMALL))
    with pytest.raises(InputError, match=r"in fc\.bias \(1 of 5 numbers"):
        weights.load(path, SMALL, variables)


def test_checkpoint_that_is_not_finite_is_neither_read_nor_exported(tmp_path):
    encoder = Compact(width=2)
    variables = made_up(template(encoder))
    name = next(iter(variables["params"]))
    variables["params"][name]["bias"][0] = np.inf
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(7, {"step": np.int32(7), "params": {"encoder": variables["params"]}}, {})
    checkpoints.close()
    with pytest.raises(InputError, match=f"holds NaN or infinity in params/{name}/bias"):
        weights.load(tmp_path, encoder, template(encoder))
    (tmp_path / "config.json").write_text('{"encoder": {"name": "compact"}}')
    with pytest.raises(InputError, match=f"step 7 .* holds NaN or infinity in params/{name}/bias"):
        export.export(tmp_path, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_maps_of_unknown_shape_are_not_guessed(tmp_path):
    variables = made_up(template(CaffeNet(), fc6=(2 * 3 * 256, 2)))
    with pytest.raises(InputError, match="fc6 takes 1536 numbers, which are no square map of 256 channels"):
        weights.save(tmp_path / "a.safetensors", CaffeNet(), variables)
    assert not list(tmp_path.iterdir())
    weights.save(tmp_path / "a.npz", CaffeNet(), variables)
    assert_equal_bits(weights.load(tmp_path / "a.npz", CaffeNet(), variables), variables)


def test_files_that_would_be_unpickled_are_refused_with_the_way_to_convert_them(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for name, message in {
        "resnet50.pth": r"save_file\(torch.load\('resnet50.pth', weights_only=True\), 'resnet50.safe",
        "model.PT": "convert it with PyTorch",
        "a.pkl": "convert it with numpy",
        "bvlc_alexnet.npy": r"numpy.savez\('bvlc_alexnet.npz'",
        "net.caffemodel": r"convert it with Caffe: .*save_hdf5\('net.h5'\)",
        "weights.onnx": "weights are read from .safetensors, .npz, .h5 and .hdf5 files",
        "disguised.safetensors": "is incomplete, or is not a .safetensors file",
        "disguised.npz": "is incomplete, or is not a .npz file",
    }.items():
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        with pytest.raises(InputError, match=message) as refusal:
            weights.read(tmp_path / name)
        assert "\n" not in str(refusal.value)
    np.savez(tmp_path / "objects.npz", a=np.array([Trap()], object))
    with pytest.raises(InputError, match=r"is incomplete, or is not a \.npz file"):
        weights.read(tmp_path / "objects.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_files_that_are_cut_short_or_turned_over_are_one_sentence(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    weights.save(path, Compact(width=2), made_up(template(Compact(width=2))))
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for share in (0, 0.01, 0.3, 0.9, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(
            InputError, match=f"is incomplete, or is not a {suffix} file .*; download it again$"
        ):
            weights.read(path)
    for _ in range(100):  # not all can be noticed, but none may be anything but a sentence
        spoilt = bytearray(content)
        for place in rng.integers(len(spoilt), size=3):
            spoilt[place] = rng.integers(256)
        path.write_bytes(spoilt)
        with contextlib.suppress(InputError):
            weights.read(path)


def test_absent_files_and_directories_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none.safetensors cannot be read: No such file or directory$"):
        weights.read(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="there is no checkpoint in"):
        weights.read(tmp_path)


def test_hdf5_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.h5 needs h5py to be read: pip install h5py"):
        weights.read(tmp_path / "a.h5")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    variables, path = made_up(template(Compact(width=2))), tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(InputError, match=r"a\.safetensors cannot be written: No space left on device"):
            weights.save(path, Compact(width=2), variables)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a.safetensors": b"old"}
    for wrong in (tmp_path / "none" / "a.npz", path / "a.npz"):
        with pytest.raises(InputError, match=r"a.npz cannot be written: (No such file|Not a) .*directory"):
            weights.save(wrong, Compact(width=2), variables)
    with pytest.raises(InputError, match=r"are written to \.safetensors or \.npz files, not to .*a\.pth"):
        weights.save(tmp_path / "a.pth", Compact(width=2), variables)
    weights.save(path, Compact(width=2), variables)
    assert_equal_bits(weights.load(path, Compact(width=2), template(Compact(width=2))), variables)


# --- Against PyTorch, with networks that are written down here


def picture(size):
    """What a photograph has: soft colours, edges, texture. uint8 [2, size, size, 3]."""
    rng = np.random.default_rng(5)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.fft2(rng.normal(size=(2, 3, size, size))) / frequency[None, None]  # as in nature
    images = np.fft.ifft2(noise).real.transpose(0, 2, 3, 1)
    y, x = np.mgrid[:size, :size] / size
    disc = (y - 0.4) ** 2 + (x - 0.6) ** 2 < 0.05
    images[:, disc] += 2 * images.std() * np.array([1, -0.5, 0.2])
    images[:, :, : size // 5] *= 0.3
    low, high = np.quantile(images, (0.02, 0.98))
    return np.uint8(np.clip((images - low) / (high - low), 0, 1) * 255)


WIDTH, CLASSES = 64, 20  # of fc6 and fc7, whose size proves nothing but takes seconds


def torch_alexnet(torch):
    nn = torch.nn
    conv = lambda *args, **kwargs: [nn.Conv2d(*args, **kwargs), nn.ReLU()]
    net = nn.Sequential()
    net.features = nn.Sequential(
        *conv(3, 64, 11, stride=4, padding=2), nn.MaxPool2d(3, 2),
        *conv(64, 192, 5, padding=2), nn.MaxPool2d(3, 2),
        *conv(192, 384, 3, padding=1), *conv(384, 256, 3, padding=1), *conv(256, 256, 3, padding=1),
        nn.MaxPool2d(3, 2),
    )  # fmt: skip
    net.pool = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten())
    net.classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(9216, WIDTH), nn.ReLU(), nn.Dropout(), nn.Linear(WIDTH, WIDTH), nn.ReLU(),
        nn.Linear(WIDTH, CLASSES),
    )  # fmt: skip
    return net


def torch_caffenet(torch):
    nn = torch.nn
    net = nn.Sequential()
    relu, pool, norm = nn.ReLU, lambda: nn.MaxPool2d(3, 2, ceil_mode=True), lambda: nn.LocalResponseNorm(5)
    for name, layer in {
        "conv1": nn.Conv2d(3, 96, 11, stride=4), "relu1": relu(), "pool1": pool(), "norm1": norm(),
        "conv2": nn.Conv2d(96, 256, 5, padding=2, groups=2), "relu2": relu(), "pool2": pool(),
        "norm2": norm(),
        "conv3": nn.Conv2d(256, 384, 3, padding=1), "relu3": relu(),
        "conv4": nn.Conv2d(384, 384, 3, padding=1, groups=2), "relu4": relu(),
        "conv5": nn.Conv2d(384, 256, 3, padding=1, groups=2), "relu5": relu(), "pool5": pool(),
        "flat": nn.Flatten(),
        "fc6": nn.Linear(9216, WIDTH), "relu6": relu(), "fc7": nn.Linear(WIDTH, WIDTH), "relu7": relu(),
        "fc8": nn.Linear(WIDTH, CLASSES),
    }.items():  # fmt: skip
        net.add_module(name, layer)
    return net


def torch_resnet(torch, units, bottleneck):
    nn = torch.nn

    class Unit(nn.Module):
        def __init__(self, inputs, features, stride):
            super().__init__()
            outputs = features * (4 if bottleneck else 1)
            first = [(inputs, features, 1, 1), (features, features, 3, stride), (features, outputs, 1, 1)]
            plain = [(inputs, features, 3, stride), (features, features, 3, 1)]
            self.num = 3 if bottleneck else 2
            for i, (a, b, window, step) in enumerate(first if bottleneck else plain, start=1):
                conv = nn.Conv2d(a, b, window, stride=step, padding=window // 2, bias=False)
                setattr(self, f"conv{i}", conv)
                setattr(self, f"bn{i}", nn.BatchNorm2d(b))
            if stride > 1 or inputs != outputs:
                conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
                self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

        def forward(self, x):
            y = x
            for i in range(1, self.num + 1):
                y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
                y = y.relu() if i < self.num else y
            return (y + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()

    net, channels = nn.Sequential(), 64
    net.conv1, net.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
    net.relu, net.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
    for block, number in enumerate(units):
        layers = []
        for unit in range(number):
            layers.append(Unit(channels, 64 << block, 2 if block and not unit else 1))
            channels = (64 << block) * (4 if bottleneck else 1)
        net.add_module(f"layer{block + 1}", nn.Sequential(*layers))
    net.avgpool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.fc = nn.Linear(channels, CLASSES)
    return net


def randomise(torch, net, pictures):
    """Random weights of every kind, and the statistics that normalisation has seen of the pictures."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            linear = isinstance(module, torch.nn.Linear)
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if linear else "relu")
            if module.bias is not None:
                torch.nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            module.momentum = 1.0
    with torch.no_grad():
        first = next(module for module in net.modules() if isinstance(module, torch.nn.Conv2d))
        first.weight /= pictures.std()
        if any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules()):
            net.train()(pictures)
        return net.eval()(pictures).numpy()


DENSE = {"fc6": (9216, WIDTH), "fc7": (WIDTH, WIDTH), "classifier": (WIDTH, CLASSES)}
NETWORKS = {
    "alexnet": (torch_alexnet, AlexNet(form="plain"), DENSE, 224, weights.IMAGENET),
    # Maps of 4 x 3, averaged to 6 x 6.
    "alexnet on small pictures": (torch_alexnet, AlexNet(form="cpu"), DENSE, 150, weights.IMAGENET),
    "caffenet": (torch_caffenet, CaffeNet(stride=4, form="cpu"), DENSE, 227, weights.CAFFE),
    "resnet18": (
        functools.partial(torch_resnet, units=(2, 2, 2, 2), bottleneck=False),
        ResNet18(form="cpu"), {"classifier": (512, CLASSES)}, 160, weights.IMAGENET,
    ),
    "resnet50": (
        functools.partial(torch_resnet, units=(3, 4, 6, 3), bottleneck=True),
        ResNet50(form="plain"), {"classifier": (2048, CLASSES)}, 224, weights.IMAGENET,
    ),
}  # fmt: skip


def logits(encoder, variables, images):
    params = dict(variables["params"])
    classifier = {name: params.pop(name) for name in weights.CLASSIFIER if name in params}
    maps = encoder.apply({**variables, "params": params}, images)
    if isinstance(encoder, ResNet):
        dense = classifier["classifier"]
        return maps.mean((1, 2)) @ dense["kernel"] + dense["bias"][None]
    return AlexNetClassifier(num_classes=CLASSES, width=WIDTH).apply({"params": classifier}, maps)


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_are_pytorchs(tmp_path, name):
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    make, encoder, classifier, size, normalisation = NETWORKS[name]
    net, images = make(torch), normalisation(picture(size))
    expected = randomise(torch, net, torch.from_numpy(np.array(images)).permute(0, 3, 1, 2))
    state = {key: tensor.numpy() for key, tensor in net.state_dict().items()}
    safetensors.numpy.save_file(state, tmp_path / "theirs.safetensors")
    variables = weights.load(tmp_path / "theirs.safetensors", encoder, template(encoder, **classifier))
    with jax.default_matmul_precision("highest"):  # no TF32 on a GPU
        actual = jax.jit(functools.partial(logits, encoder))(variables, images)
    assert expected.std() > 0.5
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)

    weights.save(tmp_path / "ours.safetensors", encoder, variables)
    net.load_state_dict(pytest.importorskip("safetensors.torch").load_file(tmp_path / "ours.safetensors"))
    for key, tensor in net.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert tensor.numpy().tobytes() == state[key].tobytes()
