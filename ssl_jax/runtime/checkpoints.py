"""Checkpoints that are written beside training, checked when read, and never half there."""

import contextlib
import errno
import functools
import json
import logging as standard_logging
import os
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from ssl_jax.runtime import distributed, files
from ssl_jax.runtime.errors import InputError

Tree = TypeVar("Tree")
Leaves = dict[tuple[str, ...], Any]


class _BrokenCheckpoint(Exception):
    """What is on disk is not what was saved."""


class Checkpoints:
    """The checkpoints of one run, in one directory: the newest `keep`, and the best.

    A checkpoint holds a state (any pytree of arrays, replicated or sharded over the devices), the state of
    the data pipeline, and a checksum of every array. Arrays are stored by their names and without
    their sharding, so that a run may go on with another number of devices. All processes of a run
    make the same calls; process 0 writes.

    Args:
      directory: where the checkpoints are; created if need be.
      keep: how many of the newest checkpoints are kept.
      best_metric: the name among the metrics given to `save` by which a checkpoint is best (the
        higher the better); the best one is kept besides the newest, and so is any whose metrics are lost.

    Raises:
      InputError: the checkpoints that are there cannot be read now, or the directory cannot be made.
    """

    def __init__(self, directory: str | Path, *, keep: int = 2, best_metric: str | None = None):
        self._directory = Path(directory).absolute()
        self._keep = keep
        self._best_metric = best_metric
        self._saving: int | None = None  # the step that is being written in the background
        try:
            self._manager = _manager(self._directory, self._should_preserve)
        except OSError as error:
            raise InputError(
                f"the checkpoints in {self._directory} cannot be used ({files.explain(error)}); nothing was "
                "changed, so correct that and run this again"
            ) from None
        self._scores: dict[int, float] = {}
        self._unknown: set[int] = set()  # steps whose metrics are lost
        with _failing_together():
            for step in _steps(self._directory) if best_metric is not None else []:
                try:
                    self._remember_score(step, _read_manifest(self._directory / str(step))["metrics"])
                except _BrokenCheckpoint:
                    self._unknown.add(step)

    @property
    def latest_step(self) -> int | None:
        """The newest step that has a checkpoint, or None."""
        return max(_steps(self._directory), default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the highest `best_metric` among those on disk, or None."""
        scores = {step: self._scores[step] for step in _steps(self._directory) if step in self._scores}
        return max(scores, key=scores.__getitem__, default=None)

    def save(
        self,
        step: int,
        state: Any,
        data_state: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Copies a state to the host and writes it in the background.

        The state may be donated or changed as soon as this returns. A step that has a checkpoint
        already keeps the one it has. Waits for a save that is still going on.

        Args:
          step: the number of steps made.
          state: a pytree of arrays.
          data_state: the state of the data pipeline, as JSON knows it.
          metrics: named numbers, among them the `best_metric` (a NaN is never the best).

        Raises:
          InputError: there is no disk space for this checkpoint, or was none for the one before, or the
            directory has become read-only; those before that are intact.
        """
        self.wait()
        if step in _steps(self._directory):
            return
        leaves = jax.device_get({name: _whole(leaf) for name, leaf in _leaves_by_name(state).items()})
        manifest = {
            "leaves": {"/".join(name): _describe(leaf) for name, leaf in leaves.items()},
            "data_state": data_state,
            "metrics": dict(metrics or {}),
        }
        self._remember_score(step, manifest["metrics"])
        self._saving = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_nest(_without_empty(leaves))),
                    manifest=ocp.args.JsonSave(_seal(manifest)),
                ),
                force=True,
            )
        except (OSError, ValueError, NotImplementedError) as error:
            self._raise_if_disk_refuses(error)
            raise

    def restore(self, template: Tree) -> tuple[int, Tree, dict[str, Any]] | None:
        """Reads the newest checkpoint that is whole.

        A broken one (cut short, or with a bit turned over) is reported and set aside under
        another name, and the one before it is taken. One that the system cannot read now, even at a second
        try, is not broken: it stays where it is, and no other takes its place.

        Args:
          template: a state with the structure, shapes, dtypes and shardings that are wanted; its
            values do not matter.

        Returns:
          The step, the state and the state of the data pipeline; None if there is no checkpoint.

        Raises:
          InputError: the checkpoint is of another structure than the template (the first leaf
            that differs is named), cannot be read now, or there are checkpoints and all are broken; or
            processes see different ones.
        """
        self.wait()
        broken: dict[int, str] = {}
        for step in reversed(self._common_steps()):
            path = self._directory / str(step)
            try:
                manifest, leaves = _read_together(path, template)
                state = _fill(template, leaves)
            except _BrokenCheckpoint as error:
                broken[step] = str(error)
                continue
            if broken:
                self._set_aside(broken, step)
            return step, state, manifest["data_state"]
        if broken:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in broken.items())
            raise InputError(
                f"all checkpoints in {self._directory} are broken ({reasons}); remove them to "
                "start again from step 0"
            )
        return None

    def wait(self) -> None:
        """Blocks until the last save is on disk.

        Raises:
          InputError: there was no disk space for it, or no right to write it; the checkpoints before it
            are intact.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, NotImplementedError) as error:
            self._raise_if_disk_refuses(error)
            raise
        self._saving = None

    def close(self) -> None:
        """Waits for the last save and stops the background threads."""
        self.wait()
        self._manager.close()

    def _common_steps(self) -> list[int]:
        """The steps on disk, as all processes of the run see them."""
        with _failing_together():
            steps = _steps(self._directory)
        for process, others in enumerate(distributed.gather(steps)):
            if others != steps:
                raise InputError(
                    f"process {process} of the run sees the checkpoints {others} in {self._directory}, and "
                    f"process {jax.process_index()} sees {steps}; put the work directory on a file system "
                    "that all share"
                )
        return steps

    def _should_preserve(self, steps: Sequence[int]) -> list[bool]:
        scored = [step for step in steps if step in self._scores]
        best = max(scored, key=self._scores.__getitem__, default=None)
        kept = {*steps[-self._keep :], best, *self._unknown}
        return [step in kept for step in steps]

    def _remember_score(self, step: int, metrics: Mapping[str, float]) -> None:
        self._unknown.discard(step)
        score = metrics.get(self._best_metric, np.nan)
        if not np.isnan(score):
            self._scores[step] = float(score)

    def _set_aside(self, broken: Mapping[int, str], good_step: int) -> None:
        """Moves broken checkpoints out of the way of those that will be saved at their steps."""
        # Not before all have found them broken: who missed them would not come to this place.
        multihost_utils.sync_global_devices("broken checkpoints are known")
        for step, reason in broken.items():
            if jax.process_index() != 0:
                break
            aside = tempfile.mkdtemp(prefix=f"broken-{step}-", dir=self._directory)
            os.replace(self._directory / str(step), aside)
            logging.warning(
                "checkpoint %d is broken (%s) and was moved to %s; going on from checkpoint %d",
                step,
                reason,
                aside,
                good_step,
            )
        multihost_utils.sync_global_devices("broken checkpoints are set aside")
        self._manager.reload()

    def _raise_if_disk_refuses(self, error: BaseException) -> None:
        # tensorstore knows no errno: its errors are ValueErrors with the words of the system.
        says = lambda *numbers: any(os.strerror(number) in str(error) for number in numbers)
        try:
            steps = _steps(self._directory)
            intact = f"the checkpoints of steps {steps} are intact" if steps else "there is none before it"
        except InputError:
            intact = "those before it were not touched"
        if says(errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"no disk space for checkpoint {self._saving} in {self._directory}; {intact}, so free some "
                "space and run this again"
            ) from None
        # tensorstore insists on fsync, and orbax does not let us ask for less.
        if says(errno.EROFS, errno.EFBIG) or files.unavailable(error) or "fsync" in str(error):
            reason = " ".join(str(error).partition(" [")[0].split())[-200:]  # what follows is for developers
            raise InputError(
                f"checkpoint {self._saving} cannot be written in {self._directory} "
                f"({reason}); {intact}, so correct that and run this again"
            ) from None


def restore_raw(directory: str | Path, step: int | None = None) -> dict[str, Any]:
    """Reads a state without knowing its structure, for evaluation and export.

    Args:
      directory: the directory of the checkpoints. A run may be writing there.
      step: which checkpoint; the newest by default.

    Returns:
      The arrays (numpy, on the host) in nested dicts, by the names of the fields and keys of the
      state that was saved: `restore_raw(...)["params"]["conv1"]["kernel"]`. Items of tuples and
      lists are under "0", "1", ....

    Raises:
      InputError: there is no such checkpoint, it is broken, or it cannot be read now.
    """
    directory = Path(directory).absolute()
    steps = _steps(directory)
    if not steps or (step is not None and step not in steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint {step}"
        raise InputError(f"there is {wanted} in {directory}; there are: {steps or 'none'}")
    path = directory / str(steps[-1] if step is None else step)
    try:
        leaves = _read_manifest(path)["leaves"]
        targets = {
            tuple(name.split("/")): np.empty(shape, dtype) for name, (dtype, shape, _) in leaves.items()
        }
        read = _read_leaves(path, targets)
        if wrong := _find_wrong(read, leaves):
            raise _BrokenCheckpoint(wrong)
        return _nest(targets | read)
    except _BrokenCheckpoint as error:
        raise InputError(f"checkpoint {path} is broken ({error})") from None


def _steps(directory: Path) -> list[int]:
    """The steps on disk, ascending: all that look like checkpoints, be they whole or not.

    Raises:
      InputError: the directory cannot be read now.
    """
    try:
        names = files.try_twice(lambda: os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        files.check_reached(f"the checkpoints in {directory}", error)
        raise
    return sorted(int(name) for name in names if name.isdigit())


def _manager(directory: Path, should_preserve: Any) -> ocp.CheckpointManager:
    class NewestAndBest(ocp.checkpoint_managers.PreservationPolicy):
        """Orbax's own BestN reads the metrics of all checkpoints, and fails if one is broken."""

        def should_preserve(self, checkpoints, *, context):
            del context
            return should_preserve([checkpoint.step for checkpoint in checkpoints])

    options = ocp.CheckpointManagerOptions(
        preservation_policy=NewestAndBest(),
        cleanup_tmp_directories=True,  # what a killed run has left
        lightweight_initialize=True,
        # Where a directory cannot be made, its threads would wait for it, and the program's end for them.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    logging.get_absl_logger().addFilter(_is_no_error_of_orbax)
    _hide_orphans()
    return ocp.CheckpointManager(directory, options=options)


def _is_no_error_of_orbax(record: Any) -> bool:
    """Orbax logs every error, traceback and all, which it then raises to us as well."""
    return record.levelno < logging.converter.STANDARD_ERROR or "orbax" not in record.pathname


# --- The arrays of a state, by name


def _leaves_by_name(tree: Any) -> Leaves:
    """{("params", "conv1", "kernel"): array, ...}; a typed PRNG key becomes its uint32 data."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        if _is_typed_key(leaf):
            leaves[name] = jax.random.key_data(leaf)
        else:
            is_array = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
            leaves[name] = leaf if is_array else np.asarray(leaf)
    return leaves


def _is_typed_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _nest(leaves: Leaves) -> dict[str, Any]:
    """Nested dicts, which is how orbax names files."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        branch = tree
        for key in name[:-1]:
            branch = branch.setdefault(key, {})
        branch[name[-1]] = leaf
    return tree


def _without_empty(leaves: Leaves) -> Leaves:
    """Orbax stores no array of size zero, and there is nothing in it to store."""
    return {name: leaf for name, leaf in leaves.items() if 0 not in leaf.shape}


def _whole(leaf: Any) -> Any:
    """An array that this process can read, also where its shards are on devices of other processes."""
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return multihost_utils.process_allgather(leaf, tiled=True)
    return leaf


def _describe(leaf: np.ndarray) -> tuple[str, list[int], int]:
    """What the manifest says of an array: dtype, shape, checksum."""
    leaf = np.asarray(leaf)
    data = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    return leaf.dtype.name, list(leaf.shape), zlib.crc32(data)


def _check_same_leaves(path: Path, saved: Mapping[str, Any], template: Any) -> None:
    """Raises InputError naming the first leaf in which a checkpoint and a template differ."""
    wanted = {"/".join(name): leaf for name, leaf in _leaves_by_name(template).items()}
    for name in [*wanted, *saved]:
        here = _spell(wanted[name].dtype.name, wanted[name].shape) if name in wanted else "absent"
        there = _spell(*saved[name][:2]) if name in saved else "absent"
        if here != there:
            raise InputError(
                f"checkpoint {path} is of another network or optimizer: {name} is {there} in the "
                f"checkpoint and {here} in this run"
            )


def _spell(dtype: str, shape: Sequence[int]) -> str:
    return f"{dtype}{list(shape)}"


# --- Reading and checking


def _seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    text = json.dumps(manifest)
    return {"text": text, "crc32": zlib.crc32(text.encode())}


@functools.cache
def _hide_orphans() -> None:
    """Hides, from now on, what becomes of the reads and writes that orbax gave up.

    When one array is broken, or finds no space, orbax leaves the others while they are read or written, and
    closes their event loop. Each of them prints a traceback of its own, at a time of its own, so the hook is
    never taken away. The error that made orbax give up is raised.
    """
    hook = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        said = str(unraisable.exc_value)
        if said != "Event loop is closed" and not said.startswith("Encountered error while"):
            hook(unraisable)

    sys.unraisablehook = quiet
    lost = lambda record: "exception was never retrieved" not in record.getMessage()
    standard_logging.getLogger("asyncio").addFilter(lost)
    warnings.filterwarnings("ignore", r"coroutine '_deserialize_arrays\b.* was never awaited", RuntimeWarning)


def _read(path: Path, **items: Any) -> ocp.args.Composite:
    """Reads items of a checkpoint, in this process alone; other processes need not do the same.

    Raises:
      InputError: the system cannot read it now, which says nothing of the bytes.
      _BrokenCheckpoint: whatever is wrong with the bytes.
    """
    _hide_orphans()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=None,
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"p{jax.process_index()}",
    )
    for last in (False, True):
        try:
            handler = ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
            )
            with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
                return reader.restore(path, args=ocp.args.Composite(**items))
        except MemoryError:
            raise
        except Exception as error:  # orbax, tensorstore, zstd and json each have errors of their own
            if last:
                raise _verdict(path, error) from None
            if files.unavailable(error):
                time.sleep(files.PAUSE_SECONDS)
    raise AssertionError


def _verdict(path: Path, error: Exception) -> Exception:
    """What an error at reading a checkpoint means."""
    # Orbax takes what it cannot reach for missing, so the error itself does not tell.
    refusal = files.refusal(path) or files.unavailable(error)
    if refusal is not None:
        return files.out_of_reach(f"checkpoint {path}", refusal)
    return _BrokenCheckpoint(f"{type(error).__name__}: {' '.join(str(error).split())[:100]}")


@contextlib.contextmanager
def _failing_together() -> Iterator[None]:
    """Raises in all processes of a run, which all come here, the InputError that is raised in one."""
    refusal = None
    try:
        yield
    except InputError as error:
        refusal = str(error)
    for said in distributed.gather(refusal):
        if said is not None:
            raise InputError(said)


def _read_manifest(path: Path) -> dict[str, Any]:
    sealed = _read(path, manifest=ocp.args.JsonRestore()).manifest
    try:
        if zlib.crc32(sealed["text"].encode()) == sealed["crc32"]:
            return json.loads(sealed["text"])
    except (KeyError, TypeError):
        pass
    raise _BrokenCheckpoint("the manifest does not match its checksum")


def _read_together(path: Path, template: Any) -> tuple[dict[str, Any], Leaves]:
    """Reads a manifest and arrays in all processes of a run; what one cannot use, none does.

    Raises:
      InputError: see `_read`, and `_check_same_leaves`.
      _BrokenCheckpoint: it is broken.
    """
    broken = None
    with _failing_together():
        try:
            manifest = _read_manifest(path)
            _check_same_leaves(path, manifest["leaves"], template)
            targets = {name: _target(leaf) for name, leaf in _leaves_by_name(template).items()}
            leaves = _read_leaves(path, targets)
        except _BrokenCheckpoint as error:
            broken = str(error)
    _break_together(broken)
    _break_together(_find_wrong(leaves, manifest["leaves"]))
    return manifest, leaves


def _break_together(broken: str | None) -> None:
    for said in distributed.gather(broken):
        if said is not None:
            raise _BrokenCheckpoint(said)


def _read_leaves(path: Path, targets: Leaves) -> Leaves:
    """Reads arrays onto targets (numpy arrays or ShapeDtypeStructs)."""
    return _leaves_by_name(_read(path, state=ocp.args.StandardRestore(_nest(_without_empty(targets)))).state)


def _find_wrong(leaves: Leaves, described: Mapping[str, Any]) -> str | None:
    """What is wrong with arrays by the manifest that describes them, or None."""
    wrong = None  # All are looked at, for to see shards of other processes takes all processes.
    for name, leaf in leaves.items():
        if list(_describe(jax.device_get(_whole(leaf)))) != described["/".join(name)]:
            wrong = wrong or f"{'/'.join(name)} does not match its checksum"
    return wrong


def _fill(template: Tree, restored: Leaves) -> Tree:
    """The restored arrays in the structure of a template."""
    old_leaves, structure = jax.tree.flatten(template)
    new_leaves = []
    for name, old in zip(_leaves_by_name(template), old_leaves, strict=True):
        new = restored.get(name, old)  # of size zero where there is none
        if _is_typed_key(old):
            new = jax.random.wrap_key_data(new, impl=jax.random.key_impl(old))
        new_leaves.append(new)
    return jax.tree.unflatten(structure, new_leaves)


def _target(leaf: Any) -> np.ndarray | jax.ShapeDtypeStruct:
    if isinstance(leaf, np.ndarray):
        return leaf  # stays on the host, where it may have 64 bits
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
