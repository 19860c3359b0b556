"""What a run says while it runs: numbers into files, a progress bar for the person who waits."""

import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TextIO

import jax
import rich.console
import rich.progress
import tensorboardX

from ssl_jax.runtime import config
from ssl_jax.runtime.errors import InputError

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
        self._files: dict[str, TextIO] = {}
        self._tensorboard = None
        if jax.process_index() != 0:
            return
        workdir = Path(workdir)
        last_step = -1 if resume_step is None else resume_step
        for name in (METRICS_FILE, SELECTION_FILE):
            _drop_lines_after(workdir / name, last_step)
            self._files[name] = open(workdir / name, "a")  # noqa: SIM115
        # The name of an event file has a resolution of one second, and two starts within it would
        # share, and overwrite, one file.
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"),
            purge_step=last_step + 1,
            flush_secs=10,
            filename_suffix=f".{time.time_ns()}",
        )

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
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def write_rows(self, step: int, rows: Mapping[str, Iterable[float]]) -> None:
        """Appends one line {"step": step, name: [value of each permutation], ...}.

        Args:
          step: the number of training steps made so far.
          rows: for each name an array or list [num_permutations] of floats or ints.

        Raises:
          InputError: the disk is full.
        """
        self._append(SELECTION_FILE, {"step": int(step), **rows})

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        if name not in self._files:
            return
        try:
            self._files[name].write(_to_json(row) + "\n")
            self._files[name].flush()
        except OSError as error:
            raise InputError(f"{self._files[name].name} cannot be written: {error}") from None

    def close(self) -> None:
        """Closes the files."""
        for file in self._files.values():
            file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read(path: str | Path) -> list[dict[str, Any]]:
    """Reads the lines of `metrics.jsonl` or `selection.jsonl`; null becomes NaN.

    A last line without its end, left by a run that was killed as it wrote, is passed over. A file
    that does not exist has no lines.

    Raises:
      InputError: another line is no JSON object.
    """
    path = Path(path)
    if not path.exists():
        return []
    *lines, _unfinished = path.read_text(errors="replace").split("\n")
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
        config.write_text(path, "".join(_to_json(row) + "\n" for row in kept))


def write_json(path: str | Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all; arrays become lists, NaN and infinities null."""
    config.write_text(path, _to_json(value, indent=2) + "\n")


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
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        description: str = "",
        seconds_between_lines: float = 10.0,
    ):
        self._total = total
        self._description = description
        self._seconds_between_lines = seconds_between_lines
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
