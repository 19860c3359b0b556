"""Weights of encoders, in from other people's files and out to files that PyTorch loads.

What a file can be, and how its tensors can be named, are two questions:

    .safetensors, .npz, .h5, .hdf5, a run's directory      the container, see `read`
    params/conv1/kernel   [h, w, in, out]                  our names: paths in the encoder's variables
    layer1.0.conv1.weight [out, in, h, w]                  torchvision's and timm's (AlexNet, ResNets)
    conv1/0, conv1.weight, conv1_w, ... [out, in, h, w]    Caffe's (CaffeNet)

A prefix that all names share, such as `module.` of DataParallel or `backbone.` of a wrapper, is taken off
where the names then fit. Numbers that are not finite are refused.

In the variables, a classifier stands beside the encoder's layers, under the names of
`alexnet.AlexNetClassifier`: fc6, fc7 and classifier. A ResNet has a classifier alone, a product with the
means of block4.

Everything that is not layout is the same on both sides, so that answers agree: padding is given in pixels
and not as "SAME", which differs with a stride of 2; batch normalisation adds 1e-5 to the running variance;
local response normalisation divides alpha by its size. In float32 and the plain form, logits of a few units
agree with PyTorch's to 1e-4 (on a GPU or TPU under `jax.default_matmul_precision("highest")`); the cpu form
rounds two to three times as much (see `layers`). Three things the weights do not say:

- How pictures become numbers: `IMAGENET` for torchvision, `CAFFE` for Caffe.
- The stride of CaffeNet's conv1, which is 4 for Caffe's weights.
- That Caffe's pooling rounds up where windows do not fit. Ours rounds down: of pictures of 227 x 227, or any
  other size whose maps before pooling are odd, both make the same.

No file is ever unpickled.
"""

import dataclasses
import difflib
import functools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from ssl_jax.networks.alexnet import AlexNet
from ssl_jax.networks.caffenet import CaffeNet
from ssl_jax.networks.resnet import ResNet
from ssl_jax.runtime import files
from ssl_jax.runtime.checkpoints import restore_raw
from ssl_jax.runtime.errors import InputError

Tensors = dict[str, np.ndarray]

# Layers that a file may have and an encoder has not: they are read where the template asks for them.
CLASSIFIER = ("fc6", "fc7", "classifier")
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
TORCHVISION_ALEXNET = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "classifier": "classifier.6",
}
POOL5_CHANNELS = 256  # of AlexNet and CaffeNet, whose fc6 sees a map

# What readers raise when bytes are not what they should be; a size that was never true is a MemoryError.
UNREADABLE = (
    safetensors.SafetensorError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

# A sentence says this many names of a kind, and the number of the others.
NAMES_PER_SENTENCE = 8


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """How pictures become what a network was trained on: (picture / unit - mean) / deviation.

    Attributes:
      mean: of each channel, in units.
      deviation: of each channel, in units.
      unit: 255 where black is 0 and white 1; 1 where white is 255.
      channels: their order in the network's input, and in `mean` and `deviation`.
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    unit: float
    channels: Literal["RGB", "BGR"]

    def __call__(self, images: jax.Array) -> jax.Array:
        """RGB pictures uint8 [N, h, w, 3] -> float32 [N, h, w, 3] in the order `channels`."""
        images = images if self.channels == "RGB" else images[..., ::-1]
        mean, deviation = (
            jnp.asarray(values, jnp.float32)[None, None, None] for values in (self.mean, self.deviation)
        )
        return (images.astype(jnp.float32) / self.unit - mean) / deviation


IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 255.0, "RGB")
"""Of torchvision's weights, and of most of timm's."""

CAFFE = Normalisation((104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0), 1.0, "BGR")
"""Of Caffe's reference networks: less the mean colour of ImageNet, and not divided by anything."""


def load(path: str | Path, encoder: nn.Module, template: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of a file in the shape of an encoder's variables; nothing is changed in place.

    Args:
      path: see `read`.
      encoder: whose weights they are; decides how tensors are named in the file.
      template: arrays or `jax.ShapeDtypeStruct`s, {"params": tree, "batch_stats": tree}, for example from
        `jax.eval_shape(encoder.init, key, images)`. With fc6, fc7 or classifier among the params, those
        are read as well; otherwise the file's are left aside.

    Returns:
      A tree like the template of numpy arrays. Floats of another precision are converted to the template's.

    Raises:
      InputError: the file cannot be read, or a tensor is missing, has another shape, is not known, or has a
        number that is not finite; all such tensors are named, with the closest names on the other side.
    """
    wanted, tensors = flatten(template), read(path)
    without = lambda prefix: {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    prefixes = _common_prefixes(tensors)
    matches = {prefix: _match(encoder, wanted, without(prefix)) for prefix in prefixes}
    prefix = min(
        matches, key=lambda prefix: len(matches[prefix].found.keys() ^ matches[prefix].expected.keys())
    )
    rename, lay_back, found, expected = matches[prefix]
    if problems := _problems(found, expected):
        seen = f"; all names in the file begin with {(prefix or prefixes[1])!r}" if prefixes[1:] else ""
        seen += ", which is left out here" if prefix else ""
        raise InputError(f"{path} does not fit {type(encoder).__name__}: {'; '.join(problems)}{seen}")
    if prefix:
        logging.info("%s: %r, with which all names begin, was taken off.", path, prefix)
    leaves = {
        name: np.array(lay_back(name, found[rename(name)]), leaf.dtype, order="C")
        for name, leaf in wanted.items()
    }
    check_finite({rename(name): leaf for name, leaf in leaves.items()}, str(path))
    empty = {collection: {} for collection, tree in template.items() if not tree}
    return flax.traverse_util.unflatten_dict(leaves, sep="/") | empty


class _Match(NamedTuple):
    """Tensors of a file against those that an encoder has; names are the file's.

    Attributes:
      rename: path of a variable -> name.
      lay_back: (path, tensor) -> array as the variable has it.
      found: what the file has, without what may be left aside.
      expected: shapes that it should have.
    """

    rename: Callable[[str], str]
    lay_back: Callable[[str, np.ndarray], np.ndarray]
    found: Tensors
    expected: dict[str, jax.ShapeDtypeStruct]


def _match(encoder: nn.Module, wanted: Mapping[str, Any], tensors: Tensors) -> _Match:
    if any(name.startswith("params/") for name in tensors):
        rename, lay_out, lay_back = (lambda name: name), _as_it_is, _as_it_is
    else:
        rename, lay_out, lay_back = (
            functools.partial(function, encoder) for function in (torch_name, _to_torch, _from_torch)
        )
        if isinstance(encoder, CaffeNet):
            tensors = {_from_caffe(name): _without_unit_axes(tensor) for name, tensor in tensors.items()}
    expected = {
        rename(name): jax.eval_shape(functools.partial(lay_out, name), leaf) for name, leaf in wanted.items()
    }
    classifier = {rename(f"params/{layer}/{leaf}") for layer in CLASSIFIER for leaf in ("kernel", "bias")}
    found = {
        name: tensor
        for name, tensor in tensors.items()
        # How often statistics were updated matters only to an average over all of training.
        if name in expected or not (name in classifier or name.endswith(".num_batches_tracked"))
    }
    return _Match(rename, lay_back, found, expected)


def _common_prefixes(names: Iterable[str]) -> list[str]:
    """An empty one, and what all names begin with up to a dot or slash: "", "module.", "module.backbone."."""
    first, last = min(names, default=""), max(names, default="")  # what these share, all between them do
    if last.startswith("params/"):  # our own names
        return [""]
    begins = ["", *(first[: end.end()] for end in re.finditer(r"[./]", first))]
    return [begin for begin in begins if last.startswith(begin)]


def check_finite(tensors: Mapping[str, Any], source: str) -> None:
    """Raises InputError, with the names of the tensors, where one has a number that is NaN or infinite.

    Args:
      tensors: arrays by name, of any dtype and shape.
      source: where they are from, for the sentence.
    """
    bad = []
    for name, tensor in tensors.items():
        array = np.asarray(tensor)
        if jnp.issubdtype(array.dtype, jnp.floating) and not (finite := np.isfinite(array)).all():
            bad.append(f"{name} ({np.count_nonzero(~finite):,} of {array.size:,} numbers)")
    if bad:
        raise InputError(
            f"{source} holds NaN or infinity in {_listed(bad)}; give weights from before the training "
            "diverged, or download them again"
        )


def save(path: str | Path, encoder: nn.Module, variables: Mapping[str, Any]) -> None:
    """Writes weights; a reader, or a crash, finds the old file or the new one, whole.

    Args:
      path: .safetensors, in torchvision's names and PyTorch's layout; encoders that torchvision does not
        have are named likewise ("conv1.weight"). With a classifier among the variables, torchvision's
        model takes it by `model.load_state_dict(safetensors.torch.load_file(path))`; without one, by the
        same with `strict=False`. Or .npz, in our own names and layout.
      encoder: whose weights they are.
      variables: {"params": tree, "batch_stats": tree}; see the module for the names of a classifier.

    Raises:
      InputError: another suffix, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".npz"):
        raise InputError(f"weights are written to .safetensors or .npz files, not to {path}")
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(variables).items()}
    try:
        with files.writing(path) as file:
            if path.suffix == ".npz":
                # numpy's format knows no bfloat16.
                plain = lambda leaf: leaf.astype(np.float32) if leaf.dtype.kind == "V" else leaf
                np.savez(file, **{name: plain(leaf) for name, leaf in leaves.items()})
            else:
                file.write(safetensors.numpy.save(_torch_tensors(encoder, leaves), {"format": "pt"}))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


# --- Names and layout


def torch_name(encoder: nn.Module, name: str) -> str:
    """The name that PyTorch knows a variable by: "params/conv1/kernel" -> "conv1.weight".

    Args:
      encoder: AlexNet and ResNets are named as torchvision does, CaffeNet as Caffe does (with fc8 for the
        classifier), others by their own paths.
      name: a path in the variables.
    """
    module, _, leaf = name.partition("/")[2].rpartition("/")
    if isinstance(encoder, AlexNet):
        module = TORCHVISION_ALEXNET.get(module, module)
    elif isinstance(encoder, ResNet):
        block = lambda match: f"layer{match[1]}.{int(match[2]) - 1}."
        module = re.sub(r"block(\d+)_unit(\d+)/", block, module)
        module = re.sub(r"conv(\d)/norm", r"bn\1", module)
        module = module.replace("projection/norm", "downsample.1").replace("projection", "downsample.0")
        module = module.replace("classifier", "fc")
    elif isinstance(encoder, CaffeNet):
        module = module.replace("classifier", "fc8")
    return f"{module.replace('/', '.')}.{LEAVES.get(leaf, leaf)}"


def _to_torch(encoder, name, leaf):
    """Kernels [h, w, in, out] -> [out, in, h, w], [in, out] -> [out, in]; others as they are."""
    if not name.endswith("/kernel"):
        return leaf
    if _sees_map(encoder, name):
        side = _side(leaf.shape[0])
        leaf = leaf.reshape(side, side, -1, leaf.shape[1])
        return leaf.transpose(3, 2, 0, 1).reshape(leaf.shape[-1], -1)
    return leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf.T


def _from_torch(encoder, name, tensor):
    """The other way."""
    if not name.endswith("/kernel"):
        return tensor
    if _sees_map(encoder, name):
        side = _side(tensor.shape[1])
        tensor = tensor.reshape(len(tensor), -1, side, side)
        return tensor.transpose(2, 3, 1, 0).reshape(-1, len(tensor))
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def _as_it_is(name, tensor):
    return tensor


def _sees_map(encoder, name):
    """Whether a dense layer is given a map, which PyTorch flattens as [c, h, w] and we as [h, w, c]."""
    return isinstance(encoder, AlexNet | CaffeNet) and name.endswith("fc6/kernel")


def _side(inputs):
    """Pixels along a side of the square map that fc6 sees."""
    side = round((inputs / POOL5_CHANNELS) ** 0.5)
    if side * side * POOL5_CHANNELS != inputs:
        raise InputError(
            f"fc6 takes {inputs} numbers, which are no square map of {POOL5_CHANNELS} channels, so that "
            "their order in PyTorch is not known"
        )
    return side


def _torch_tensors(encoder: nn.Module, leaves: Tensors) -> Tensors:
    """What PyTorch would have in its state_dict."""
    tensors = {}
    for name, leaf in leaves.items():
        theirs = torch_name(encoder, name)
        # safetensors writes memory as it lies, whatever the strides say.
        tensors[theirs] = np.array(_to_torch(encoder, name, leaf), order="C")
        if name.endswith("/var"):
            tensors[theirs.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    return tensors


def _from_caffe(name):
    """Names of Caffe's own HDF5 files ("conv1/0") and of common dumps ("conv1_w") as "conv1.weight"."""
    spelt = re.fullmatch(r"(\w+?)[/._](?:(0|w|weights?)|1|b|bias|biases)", name, re.IGNORECASE)
    return f"{spelt[1]}.{'weight' if spelt[2] else 'bias'}" if spelt else name


def _without_unit_axes(tensor):
    """Caffe's older files have four axes everywhere: [1, 1, 4096, 9216] and [1, 1, 1, 96]."""
    while tensor.ndim > 1 and tensor.shape[0] == 1:
        tensor = tensor[0]
    return tensor


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays of a tree by their paths: {"params/conv1/kernel": array, ...}."""
    return flax.traverse_util.flatten_dict(dict(variables), sep="/")


# --- What a file has against what is wanted


def _problems(found: Tensors, wanted: Mapping[str, Any]) -> list[str]:
    """Phrases that name tensors missing, not known and misshapen."""
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} is {_spell(found[name])} and should be {_spell(leaf)}"
        for name, leaf in wanted.items()
        if name in found and not _fits(found[name], leaf)
    ]
    problems = []
    if missing:
        problems.append("missing are " + _listed(_with_closest(missing, extra)))
    if extra:
        problems.append("not known are " + _listed(_with_closest(extra, missing or wanted)))
    if misshapen:
        problems.append(_listed(misshapen))
    return problems


def _fits(tensor, leaf):
    return tensor.shape == leaf.shape and jnp.issubdtype(tensor.dtype, jnp.floating)


def _spell(leaf):
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


def _with_closest(names: list[str], others: Iterable[str]) -> list[str]:
    others = list(others)
    spelt = []
    for name in names[:NAMES_PER_SENTENCE]:  # comparing all with all would take minutes
        close = difflib.get_close_matches(name, others, n=1)
        spelt.append(f"{name} (closest: {close[0]})" if close else name)
    return spelt + names[NAMES_PER_SENTENCE:]


def _listed(phrases: list[str]) -> str:
    more = f" and {len(phrases) - NAMES_PER_SENTENCE} more" if len(phrases) > NAMES_PER_SENTENCE else ""
    return ", ".join(phrases[:NAMES_PER_SENTENCE]) + more


# --- Containers


def read(path: str | Path) -> Tensors:
    """All tensors of a file by their names in it.

    Args:
      path: a .safetensors, .npz, .h5 or .hdf5 file; or the directory of a run (or its checkpoints), whose
        newest checkpoint's encoder is read, as "params/..." and "batch_stats/...". Of Caffe's HDF5 files,
        which hold data and perhaps gradients, the data.

    Raises:
      InputError: there is no such file; its kind is unknown, or one that would be unpickled (with how to
        convert it); it is cut short or corrupt; or h5py is not installed.
    """
    path = Path(path)
    if path.is_dir():
        return _read_checkpoint(path)
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz, ".h5": _read_hdf5, ".hdf5": _read_hdf5}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(_how_to_convert(path))
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    return reader(path)


def _how_to_convert(path: Path) -> str:
    """Why a file of this suffix is not read, and what to do."""
    suffix = path.suffix.lower()
    never = f"{path} is not read, since such files can run code when they are unpickled; where you trust it,"
    if suffix in (".pth", ".pt", ".bin", ".ckpt", ".tar", ".th"):
        return (
            f"{never} convert it with PyTorch: safetensors.torch.save_file(torch.load({path.name!r}, "
            f"weights_only=True), {path.stem + '.safetensors'!r})"
        )
    if suffix in (".pkl", ".pickle", ".npy", ".joblib"):
        return (
            f"{never} convert it with numpy: numpy.savez({path.stem + '.npz'!r}, **tensors), with a name and "
            "an array for each tensor"
        )
    if suffix in (".caffemodel", ".binaryproto"):
        return (
            f"{path} is not read; convert it with Caffe: caffe.Net('deploy.prototxt', {path.name!r}, "
            f"caffe.TEST).save_hdf5({path.stem + '.h5'!r})"
        )
    return (
        "weights are read from .safetensors, .npz, .h5 and .hdf5 files and from the directory of a run, not "
        f"from {path}"
    )


def _corrupt(path, error):
    if reason := files.refusal(path) or files.unavailable(error):
        return files.out_of_reach(path, reason)
    said = " ".join(str(error).split()).partition(". ")[0][:100]
    return InputError(f"{path} is incomplete, or is not a {path.suffix} file ({said}); download it again")


def _read_safetensors(path: Path) -> Tensors:
    try:
        return dict(safetensors.numpy.load_file(path))
    except UNREADABLE as error:
        raise _corrupt(path, error) from None


def _read_npz(path: Path) -> Tensors:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except UNREADABLE as error:
        raise _corrupt(path, error) from None


def _read_hdf5(path: Path) -> Tensors:
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path} needs h5py to be read: pip install h5py") from None
    tensors = {}

    def take(name, item):
        if isinstance(item, h5py.Dataset):
            tensors[name] = item[()]

    try:
        with h5py.File(path, "r") as file:
            # Links that lead out of the file are not followed.
            file.get("data", file).visititems(take)
    except UNREADABLE as error:
        raise _corrupt(path, error) from None
    return tensors


def _read_checkpoint(path: Path) -> Tensors:
    inside = path / "checkpoints"
    state = restore_raw(inside if inside.is_dir() else path)
    encoder = {name: state.get(name, {}).get("encoder", {}) for name in ("params", "batch_stats")}
    if not encoder["params"]:
        raise InputError(f"the newest checkpoint in {path} holds no encoder; give that of a pre-training run")
    return flatten(encoder)
