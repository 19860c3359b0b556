"""Data parallelism: one mesh axis over all devices, batches split, state replicated or sharded."""

import contextlib
import dataclasses
import difflib
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssl_jax.runtime import paths
from ssl_jax.runtime.errors import InputError

DATA_AXIS = "data"
MIN_SHARDED = 2**14  # numbers in an array; parts of a smaller one cost more messages than they save memory
EXTRAS = ("cuda", "tpu")  # platforms that an extra of this package (setup.py) installs
Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Section `mesh` of a config: what of a state each device holds.

    Attributes:
      fsdp: fully sharded data parallelism (Rajbhandari et al., "ZeRO", SC 2020, stage 3): each device
        holds a part of every large array, parameters and optimizer state alike, and is sent the rest while
        it computes. Saves memory on several devices and costs time; the numbers are the same to rounding.
    """

    fsdp: bool = False


def start_devices() -> None:
    """Lets JAX find the devices of this process; to be called once a run's processes know each other.

    Raises:
      InputError: JAX finds none, as where JAX_PLATFORMS asks for a platform that is not installed.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        # Of a platform that is not installed JAX 0.10 says nothing (AssertionError).
        raise InputError(_why_no_devices(jax.config.jax_platforms or "", str(error))) from None


def _why_no_devices(asked: str, reason: str) -> str:
    reason = reason.partition(" (you may need")[0].partition(" (set JAX_PLATFORMS")[0]
    told = f": {reason}" if reason else ""
    number = os.environ.get("JAX_NUM_CPU_DEVICES")
    if number == "0":
        return f"JAX_NUM_CPU_DEVICES={number} must be at least 1"
    if not asked:
        return f"JAX finds no devices{told}; JAX_PLATFORMS=cpu uses the processor alone"
    here = _installed_platforms()
    sentence = f"JAX_PLATFORMS={asked} asks for devices that JAX does not find here"
    for name in (name.strip().lower() for name in asked.split(",")):
        platform = "cuda" if name == "gpu" else name
        if platform in here:
            continue
        if platform in EXTRAS:
            how = f'install them by pip install -e ".[{platform}]" in the directory of setup.py'
        else:
            close = difflib.get_close_matches(name, ["cpu", "gpu", *EXTRAS], n=1)
            meant = f", did you mean {close[0]!r}?" if close else ""
            how = f"{name!r} is no platform that is known here{meant}; correct it"
        return f"{sentence} (installed: {', '.join(here)}); {how}, or leave JAX_PLATFORMS out"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        told = f": CUDA_VISIBLE_DEVICES={hidden} hides all GPUs"
    return f"{sentence}{told}; mend that, or leave JAX_PLATFORMS out to use what there is"


def _installed_platforms() -> list[str]:
    """The platforms that JAX has been installed for, whether or not there are such devices."""
    plugins = [point.name for point in importlib.metadata.entry_points(group="jax_plugins")]
    names = {"cuda" if "cuda" in name else name.removeprefix("xla_") for name in plugins}
    names |= {"tpu"} if importlib.util.find_spec("libtpu") else set()
    return ["cpu", *sorted(names - {"cpu"})]


def make(num_devices: int | None = None) -> Mesh:
    """A mesh with the one axis "data", over the first `num_devices` devices or over all.

    Raises:
      InputError: more devices than there are, or none.
    """
    devices = jax.devices()
    if num_devices is None:
        num_devices = len(devices)
    if not 1 <= num_devices <= len(devices):
        raise InputError(
            f"{num_devices} devices were asked for, but there are {len(devices)} ({devices[0].platform})"
        )
    # Mesh and not jax.make_mesh: there, axes are of the type Explicit from JAX 0.9 on, and every
    # operation on a batch would have to say how its result is sharded.
    return Mesh(np.asarray(devices[:num_devices]), (DATA_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a state: the same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: axis 0 is divided among the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Places every array of a tree on every device of the mesh.

    The result may share memory with arrays that are on a device already: a jitted function that
    is given the result as a donated argument may consume those too.
    """
    return jax.device_put(tree, replicated(mesh))


def state_sharding(tree: Any, mesh: Mesh, layout: Layout) -> Any:
    """The sharding of every array of a state: a tree of the same structure.

    With `layout.fsdp` arrays of at least `MIN_SHARDED` numbers are divided along their longest axis of
    those that the number of devices divides; others, and without it all, are replicated.

    A jitted update is given it as `out_shardings`, or XLA may choose others for its results.

    Args:
      tree: arrays or ShapeDtypeStructs.
      mesh: the mesh whose devices share them.
      layout: whether they are sharded.
    """

    def sharding(leaf):
        shape = np.shape(leaf)
        axes = [axis for axis, length in enumerate(shape) if length % mesh.size == 0]
        if not layout.fsdp or not axes or np.prod(shape) < MIN_SHARDED:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: shape[axis])
        return NamedSharding(mesh, PartitionSpec(*[None] * longest, DATA_AXIS))

    return jax.tree.map(sharding, tree)


def place(tree: Tree, mesh: Mesh, layout: Layout) -> Tree:
    """Places a state on the devices of the mesh, replicated or sharded; see `replicate` on shared memory."""
    return jax.device_put(tree, state_sharding(tree, mesh, layout))


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays, split along axis 0, of the rows that this process has read.

    Args:
      batch: arrays [local rows, ...]; with several processes, each has its own rows.
      mesh: the mesh whose devices share the rows.

    Returns:
      Arrays [rows of all processes, ...] of the same dtypes, under the same names.

    Raises:
      InputError: the rows cannot be divided evenly among the devices of this process.
    """
    sharding = split(mesh)
    num_devices = len(mesh.local_devices)
    for name, array in batch.items():
        if len(array) % num_devices:
            raise InputError(
                f"a batch of {len(array)} ({name}) cannot be divided among {num_devices} devices; "
                f"make the batch size a multiple of {num_devices}"
            )
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def setup_compilation_cache(directory: str | Path | None = None) -> Path | None:
    """Keeps compiled programs on disk, so that a second start reaches its first step sooner.

    To be called before anything is compiled, and after `jax.distributed.initialize` where that is
    used. A program that is found gives the same bits as the one that was compiled.

    Args:
      directory: where to; by default $JAX_COMPILATION_CACHE_DIR, else `xla` in `paths.cache()`.

    Returns:
      The directory, or None where there is no cache, and programs are compiled as ever: the
      directory cannot be written, the user has no home directory, or this is an Intel CPU. None also where
      JAX_COMPILATION_CACHE_DIR is an address such as gs://bucket, which JAX sees to by itself.

    Raises:
      InputError: JAX_COMPILATION_CACHE_DIR begins with a home directory that is not known.
    """
    if jax.default_backend() == "cpu" and _is_intel_cpu():
        # On some of them XLA refuses to load what it wrote, with pages of errors
        # (openxla/xla#44565), and there is no telling which.
        return None
    if directory is None:
        cache = paths.cache()
        if paths.is_url(os.environ.get("JAX_COMPILATION_CACHE_DIR", "")):
            return None
        directory = paths.variable("JAX_COMPILATION_CACHE_DIR") or (cache and cache / "xla")
    if directory is None:
        return None
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(directory, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # JAX leaves out what compiles within a second, and a start compiles dozens of such programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return directory


def _is_intel_cpu() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False


def free_bytes(device: jax.Device) -> int | None:
    """Memory that is left on a device, in bytes; None where nobody says.

    Of a CPU it is what the operating system, or the container the process runs in, has to give.
    """
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        limit = stats.get("bytes_limit")
        return None if limit is None else limit - stats.get("bytes_in_use", 0)
    free = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError, KeyError):  # without a limit, "max" stands there
        group = Path("/sys/fs/cgroup")
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free.append(int((group / "memory.max").read_text()) - int(statistics["anon"]))
    return min(free, default=None)
