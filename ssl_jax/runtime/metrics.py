"""What a run says while it runs: numbers into files, a progress bar for the person who waits."""

import collections
import contextlib
import importlib.metadata
import io
import json
import math
import os
import platform
import shlex
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import ml_collections
import rich.console
import rich.progress

from ssl_jax.runtime import files, watching
from ssl_jax.runtime.checkpoints import Checkpoints
from ssl_jax.runtime.errors import InputError


@contextlib.contextmanager
def _absent(module: str) -> Iterator[None]:
    """Makes a module that was not imported yet look as if it were not installed."""
    hidden = module not in sys.modules
    if hidden:
        sys.modules[module] = None
    try:
        yield
    finally:
        if hidden:
            del sys.modules[module]


# tensorboardX imports PyTorch where it is installed, for nothing that is used here: a third of the time that
# a run takes to start.
with _absent("torch"):
    from tensorboardX import summary
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter

METRICS_FILE = "metrics.jsonl"
SELECTION_FILE = "selection.jsonl"


class Metrics:
    """Appends named numbers to `metrics.jsonl` and TensorBoard, and rows to `selection.jsonl`.

    Each line is handed to the operating system before `write` returns, so a killed run keeps its
    lines. In a run of several processes only the one with index 0 writes.

    Args:
      workdir: an existing work directory. TensorBoard files go to `workdir/tensorboard`.
      resume_step: the step that the run resumes from: later lines are dropped, for those steps
        will be made again. None for a run that starts from nothing and drops every line.

    Raises:
      InputError: the files cannot be read or written.
    """

    def __init__(self, workdir: str | Path, *, resume_step: int | None):
        self._files: dict[str, io.FileIO] = {}
        self._tensorboard = None
        if jax.process_index() != 0:
            return
        workdir = Path(workdir)
        last_step = -1 if resume_step is None else resume_step
        for name in (METRICS_FILE, SELECTION_FILE):
            try:
                _drop_lines_after(workdir / name, last_step)
                self._files[name] = open(workdir / name, "ab", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise InputError(f"{workdir / name} cannot be written: {error}") from None
        self._tensorboard = _TensorBoard(workdir / "tensorboard", last_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line {"step": step, name: value, ...}, with null for NaN and infinities.

        Args:
          step: the number of training steps made so far.
          values: scalars of any type that `float` takes, named by paths ("train/loss").

        Raises:
          InputError: the disk is full.
        """
        values = {name: float(value) for name, value in values.items()}
        self._append(METRICS_FILE, {"step": int(step), **values})
        if self._tensorboard is not None:
            self._tensorboard.write(int(step), values)

    def write_rows(self, step: int, task: str, rows: Mapping[str, Iterable[float]]) -> None:
        """Appends one line {"step": step, "task": task, name: [value of each class], ...}.

        Args:
          step: the number of training steps made so far.
          task: whose classes they are.
          rows: for each name an array or list [num_classes] of floats or ints.

        Raises:
          InputError: the disk is full.
        """
        self._append(SELECTION_FILE, {"step": int(step), "task": task, **rows})

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if name not in self._files:
            return
        try:
            files.write_through(self._files[name], f"{_to_json(row)}\n".encode())
        except OSError as error:
            raise InputError(f"{self._files[name].name} cannot be written: {error}") from None

    def close(self) -> None:
        """Closes the files; where the disk is full, that was said when they were written."""
        for file in (*self._files.values(), *([self._tensorboard] if self._tensorboard else [])):
            with contextlib.suppress(OSError):
                file.close()


class _Records(RecordWriter):
    """Records of an event file, in memory."""

    def __init__(self):
        self._writer = io.BytesIO()

    def getvalue(self) -> bytes:
        return self._writer.getvalue()


class _TensorBoard:
    """Scalars in an event file, written by the thread that has them.

    tensorboardX's own `SummaryWriter` has a thread for it, which a full disk ends with a traceback; the run
    would then wait forever to hand it more. Its writer of files asks for an fsync, which some file systems
    refuse, and its buffer, where a full disk has refused it, complains once more when it is removed.

    Args:
      directory: for event files; made if it is not there.
      first_step: values of this step and later ones in older files are dropped.
    """

    def __init__(self, directory: Path, first_step: int):
        self._path = directory / "events"
        # Two starts within a second have files of different names.
        now = time.time_ns()
        name = f"{self._path}.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now}"
        with self._refusals():
            directory.mkdir(exist_ok=True)
            self._file = open(name, "xb", buffering=0)  # noqa: SIM115
        version = Event(step=first_step, file_version="brain.Event:2")
        self._append(version, Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = time.time()
        scalars = (summary.scalar(name, value) for name, value in values.items())
        self._append(*(Event(wall_time=now, step=step, summary=scalar) for scalar in scalars))

    def _append(self, *events: Event) -> None:
        records = _Records()
        for event in events:
            records.write(event.SerializeToString())
        with self._refusals():
            files.write_through(self._file, records.getvalue())

    def close(self) -> None:
        self._file.close()

    @contextlib.contextmanager
    def _refusals(self):
        try:
            yield
        except OSError as error:
            raise InputError(f"{self._path}... cannot be written: {error}") from None


def read(path: str | Path) -> list[dict[str, Any]]:
    """Reads the lines of `metrics.jsonl` or `selection.jsonl`; null becomes NaN.

    A last line without its end, left by a run that was killed as it wrote, is passed over. A file
    that does not exist has no lines.

    Raises:
      InputError: another line is no JSON object, or the file cannot be read now.
    """
    path = Path(path)
    try:
        text = files.try_twice(lambda: path.read_text(errors="replace"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise files.out_of_reach(path, files.explain(error)) from None
    *lines, _unfinished = text.split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append({name: _with_nan(value) for name, value in json.loads(line).items()})
        except (ValueError, AttributeError):
            raise InputError(f"{path}, line {number} is no JSON object: {line[:60]!r}") from None
    return rows


def _with_nan(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value


def _drop_lines_after(path: Path, step: int) -> None:
    rows = read(path)
    kept = [row for row in rows if row["step"] <= step]
    if path.exists():
        files.write_text(path, "".join(_to_json(row) + "\n" for row in kept))


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all; arrays become lists, NaN and infinities null."""
    files.write_text(path, _to_json(value, indent=2) + "\n")


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    """Lists, dicts and Python numbers for whatever JSON knows not."""
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and jax
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


class Progress:
    """A progress bar in a terminal; elsewhere a plain line now and then.

    Shows the rate, the time left and whatever values are given. In a run of several processes only
    the one with index 0 shows anything.

        with Progress(num_steps, start=step, description="training") as progress:
            progress.update(step, {"loss": loss, "accuracy": accuracy})

    Args:
      total: the last step.
      start: the step that the run begins or resumes at.
      description: what the steps are of.
      seconds_between_lines: how often a plain line is printed where there is no terminal.
      warm_from: the step from which steps are like each other, where those before it do less: a trace
        begins after it.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        description: str = "",
        seconds_between_lines: float = 10.0,
        warm_from: int = 0,
    ):
        self._total = total
        self._description = description
        self._seconds_between_lines = seconds_between_lines
        self._warm_from = warm_from
        self._step = start
        self._values: dict[str, float] = {}
        self._shown = jax.process_index() == 0
        self._bar = None
        # The clock starts with the first update: what comes before it is compilation.
        self._first: tuple[float, int] | None = None
        self._last_line = -math.inf

    def __enter__(self) -> Self:
        if self._shown and sys.stdout.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[text]}"),
                console=rich.console.Console(file=sys.stdout),
            )
            self._task = self._bar.add_task(
                self._description, total=self._total, completed=self._step, text=""
            )
            self._bar.start()
        return self

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Shows that `step` steps are made.

        Args:
          step: the number of steps made so far.
          values: what to show beside it, by name; values that were given before stay.
        """
        watching.at_step(step, warm=step >= self._warm_from)
        now = time.monotonic()
        self._step = step
        self._values.update(values or {})
        if self._first is None:
            self._first = now, step
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=self._text(now))
        elif self._shown and now - self._last_line >= self._seconds_between_lines:
            self._print_line(now)

    def _print_line(self, now: float) -> None:
        self._last_line = now
        print(f"{self._description} {self._step}/{self._total} {self._text(now)}".strip(), flush=True)

    def _text(self, now: float) -> str:
        words = []
        first_time, first_step = self._first or (now, self._step)
        if self._step > first_step and now > first_time:
            rate = (self._step - first_step) / (now - first_time)
            left = max(self._total - self._step, 0) / rate
            words += [f"{rate:.3g} steps/s", f"{_clock(left)} left"]
        words += [f"{name} {float(value):.4g}" for name, value in self._values.items()]
        return "  ".join(words)

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and self._first is not None:
            self._print_line(time.monotonic())


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that the numbers depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "envpool")
    found = {"python": platform.python_version()}
    for name in ("ssl_jax", *names):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_description() -> str:
    """The devices of the run, for people: "8 x NVIDIA H200", "CPU AMD EPYC (2 cores)"."""
    devices = jax.devices()
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    simulated = f", {len(devices)} simulated devices" if len(devices) > 1 else ""
    if jax.process_count() > 1:
        simulated = f", {jax.process_count()} processes with {len(devices)} devices"
    return f"CPU {_cpu_model()} ({_num_cores()} cores{simulated})"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def provenance(protocol: ml_collections.ConfigDict, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What results.json says of how its numbers came about.

    Args:
      protocol: the config of the run, with its `seed`.
      seconds: part -> seconds, see `Stopwatch`.
    """
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "protocol": protocol.to_dict(),
        "versions": versions(),
        "device": device_description(),
        "seed": protocol.seed,
        "wall_seconds": sum(seconds.values()),
        "seconds": seconds,
    }


class Stopwatch:
    """Seconds spent in named parts of a run, over all its resumptions.

        with stopwatch("data"):
            batch = next(batches)

    Args:
      seconds: of the parts before.
      compiled: parts whose first run here compiles nothing.

    Attributes:
      seconds: part -> seconds; JSON, saved with every checkpoint.
      blocks: part -> how often it ran in this process.
    """

    def __init__(self, seconds: Mapping[str, float] | None = None, compiled: Iterable[str] = ()):
        self.seconds = dict(seconds or {})
        self.blocks = collections.Counter()
        self._compiled = set(compiled)
        self._lap = dict(self.seconds), self.blocks.copy()

    @contextlib.contextmanager
    def __call__(self, part: str, *, compiles: bool = False) -> Iterator[None]:
        """Adds the seconds of the block to a part; if it compiles, of its first run to "compilation"."""
        if compiles and part not in self._compiled:
            self._compiled.add(part)
            part = "compilation"
        watching.in_part(part)
        start = time.perf_counter()
        try:
            with jax.profiler.TraceAnnotation(part):
                yield
        finally:
            watching.in_part(None)
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start
            self.blocks[part] += 1

    def lap(self) -> tuple[collections.Counter, collections.Counter]:
        """Seconds and blocks of each part since the last lap."""
        seconds, blocks = self._lap
        self._lap = dict(self.seconds), self.blocks.copy()
        since = {part: value - seconds.get(part, 0.0) for part, value in self.seconds.items()}
        return collections.Counter(since), self.blocks - blocks


class Ledger:
    """The numbers of the steps since the last line of metrics, and the guard over them.

    It reads each step's numbers only when the next step has been entered, so that the device always has
    a step queued.

    Args:
      metrics: where the lines go.
      checkpoints: named to the person whose run went wrong.
      advice: what to try then.
    """

    def __init__(self, metrics: Metrics, checkpoints: Checkpoints, advice: str):
        self._metrics = metrics
        self._checkpoints = checkpoints
        self._advice = advice
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._page: list[dict[str, float]] = []

    def enter(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Takes the scalars of a step, still being computed, and reads those of the step before."""
        previous, self._pending = self._pending, (step, scalars)
        if previous is not None:
            self._read(*previous)

    def close_page(self) -> None:
        """Waits for the last step and reads it.

        Raises:
          InputError: a number is not finite.
        """
        if self._pending is not None:
            self._read(*self._pending)
            self._pending = None

    def _read(self, step: int, scalars: Mapping[str, Any]) -> None:
        values = {name: float(value) for name, value in scalars.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                self._checkpoints.wait()
                good = self._checkpoints.latest_step
                saved = (
                    "there is no checkpoint"
                    if good is None
                    else f"the last good checkpoint is of step {good}"
                )
                raise InputError(f"{name} is {value} at step {step} and {saved}: {self._advice}.")
        self._page.append(values)

    def write_page(self, step: int, more: Mapping[str, float] | None = None) -> dict[str, float]:
        """Writes the means since the last page, and `more`, as one line; returns the line.

        A number that only some of the steps had is averaged over those.
        """
        self.close_page()
        names = dict.fromkeys(name for values in self._page for name in values)
        line = {}
        for name in names:
            numbers = [values[name] for values in self._page if name in values]
            line[name] = sum(numbers) / len(numbers)
        line |= more or {}
        self._metrics.write(step, line)
        self._page = []
        return line
