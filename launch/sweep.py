"""Runs a sweep: each run of a config's axes and seeds in a process of its own, and all of them in one table.

python -m launch.sweep --config=configs/ablation.py                     # into runs/ablation
python -m launch.sweep --config=configs/ablation.py --workdir=results/ablation --parallel=2
python -m launch.sweep --config=configs/ablation.py:smoke --dry_run     # only prints the commands

A sweep may have runs that come first, such as a pre-training that others begin with; and runs that need a
file, such as downloaded weights: where it is missing, they are listed and left out.

The same command again repeats no run that has its results, and goes on with those that were stopped or
failed. So a sweep also grows: add a seed, a player or a task, and run it again with the same --workdir.

A run is `python -m ssl_jax.main` in `WORKDIR/NAME`; what it prints goes to `WORKDIR/logs/NAME.txt`. The
table, as `table.json`, as `table.md` and in `report.html`, is written at the end; while the sweep goes on,
`python -m ssl_jax.report.comparison --sweep=WORKDIR` writes it from the runs that have finished.

On a GPU set XLA_PYTHON_CLIENT_PREALLOCATE=false for --parallel, or the first run takes all of the memory.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import itertools
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from ssl_jax import experiments
from ssl_jax.runtime import children, files, paths
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime.errors import InputError
from ssl_jax.runtime.interruption import StopSignal

SWEEP_FILE = "sweep.json"
LAST_LINES = 8  # of a failed run's output, shown to the person


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is run: every combination of the values of the axes, with every seed.

    Attributes:
      base: config file of the runs.
      preset: of the base config; "default" for none.
      axes: option of the base config -> its values, as after the colon of `--config`. A value may bring
        overrides with it, after blanks: "policy_gradient selection.period=16".
      compare: the axis whose values are compared with each other, under all else equal.
      baseline: the value of that axis which the others are held against, seed by seed.
      seeds: of every combination.
      overrides: "key=value" for all runs, as in `--config.key=value`; {workdir} is the sweep's directory.
      first: name -> config file and overrides, after blanks, of a run that is made before all others, in
        WORKDIR/NAME, once for all seeds.
      needs: value of an axis -> file without which runs with this value cannot begin; {model} in it is
        the run's value of the axis `model`, and so on.
    """

    base: str
    preset: str
    axes: Mapping[str, tuple[str, ...]]
    compare: str
    baseline: str
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]
    first: Mapping[str, str] = dataclasses.field(default_factory=dict)
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Run(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: of its directory: "tasks=both-policy=uniform-seed=0".
      values: axis -> value; the axis that is compared comes last.
      seed: of the run.
      flags: of `python -m ssl_jax.main`, but for the work directory.
      config: what they come to.
      needs: a file without which it cannot begin, or None.
    """

    name: str
    values: dict[str, str]
    seed: int
    flags: tuple[str, ...]
    config: ConfigDict
    needs: str | None = None

    def command(self, workdir: Path) -> list[str]:
        """The command line, without the name of the interpreter."""
        return ["-m", "ssl_jax.main", *self.flags, f"--workdir={workdir / self.name}"]


# --- What is to be run


def plan(sweep: Sweep, workdir: Path = Path("runs")) -> list[Run]:
    """All runs but those of `plan_first`, each with its config loaded and so checked.

    The first seed of all comes first.

    Raises:
      InputError: an axis, value, preset or override that is not known, a baseline that is not on its axis,
        values or seeds given twice, compared runs that do not train alike (config.train differs), or runs of
        the same config.
    """
    _check_axes(sweep)
    axes = [*(axis for axis in sweep.axes if axis != sweep.compare), sweep.compare]
    combinations = list(itertools.product(*(sweep.axes[axis] for axis in axes)))
    runs = [
        _make_run(sweep, dict(zip(axes, values, strict=True)), seed, workdir)
        for seed in sweep.seeds
        for values in combinations
    ]
    _check_equal_compute(runs, sweep.compare)
    _check_different(runs)
    return runs


def plan_first(sweep: Sweep) -> list[Run]:
    """The runs that come before all others.

    Raises:
      InputError: a config or override that is not known.
    """
    runs = []
    for name, text in sweep.first.items():
        path_and_arg, *overrides = text.split()
        try:
            config = config_lib.load(path_and_arg, overrides)
        except InputError as error:
            raise InputError(f"the run {name} cannot be made: {error}") from None
        given = (f"--config={path_and_arg}", *(f"--config.{item}" for item in overrides))
        runs.append(Run(name, {}, config.get("seed", 0), given, config))
    return runs


def _check_axes(sweep: Sweep) -> None:
    config_lib.check_known("axis of config.compare", sweep.compare, sweep.axes)
    for axis, values in sweep.axes.items():
        if not isinstance(values, tuple) or not all(isinstance(v, str) and v.split() for v in values):
            raise InputError(f"config.axes.{axis} must be a tuple of strings, not {values!r}")
        _check_distinct(f"config.axes.{axis}", values)
    _check_distinct("config.seeds", sweep.seeds)
    values = sweep.axes[sweep.compare]
    config_lib.check_known(f"baseline of the axis {sweep.compare!r}:", sweep.baseline, values)
    known = {value.split()[0] for values in sweep.axes.values() for value in values}
    for value in sweep.needs:
        config_lib.check_known("value of an axis in config.needs:", value, known)


def _check_distinct(name: str, values: Sequence[object]) -> None:
    if not values or len(set(values)) < len(values):
        raise InputError(f"{name} must be one or more values, each given once, not {values!r}")


def _make_run(sweep: Sweep, values: Mapping[str, str], seed: int, workdir: Path) -> Run:
    words = {axis: value.split() for axis, value in values.items()}
    options = [f"{axis}={value}" for axis, (value, *_) in words.items()]
    preset = [sweep.preset] if sweep.preset != "default" else []
    path_and_arg = f"{sweep.base}:{','.join([*preset, *options])}"
    brought = itertools.chain(*(overrides for _, *overrides in words.values()))
    shared = [item.replace("{workdir}", str(workdir)) for item in sweep.overrides]
    overrides = [*shared, *brought, f"seed={seed}"]
    labels = [f"{axis}={value}" for axis, value in values.items()]
    name = re.sub(r"[^\w.=+-]", "_", "-".join([*labels, f"seed={seed}"]).replace(" ", "+"))
    try:
        config = config_lib.load(path_and_arg, overrides)
    except InputError as error:
        raise InputError(f"the run {name} cannot be made: {error}") from None
    given = (f"--config={path_and_arg}", *(f"--config.{item}" for item in overrides))
    chosen = {axis: value for axis, (value, *_) in words.items()}
    needs = [text.format(**chosen) for value, text in sweep.needs.items() if value in chosen.values()]
    needs = [paths.read(path, "config.needs") for path in needs]
    return Run(name, dict(values), seed, given, config, next(iter(needs), None))


def _check_equal_compute(runs: Sequence[Run], compare: str) -> None:
    """Runs that are compared, those alike on all axes but `compare`, must also train alike."""
    firsts = {}
    for run in runs:
        others = tuple(value for axis, value in run.values.items() if axis != compare)
        first = firsts.setdefault(others, run)
        lines = config_lib.difference(_training(first), _training(run))
        if lines:
            raise InputError(
                f"{first.name} and {run.name} do not train alike ({'; '.join(lines)} in config.train), and "
                "only equal compute compares; to change the training of all, use the sweep's config.overrides"
            )


def _check_different(runs: Sequence[Run]) -> None:
    """Two runs of one config say nothing of each other: something undoes what an axis chooses."""
    firsts: dict[str, Run] = {}
    for run in runs:
        first = firsts.setdefault(run.config.to_json(sort_keys=True), run)
        if first is not run:
            raise InputError(
                f"{first.name} and {run.name} are runs of the same config: something in config.overrides, or "
                "in a value of an axis, takes back what an axis or config.seeds chooses; leave it out"
            )


def _training(run: Run) -> ConfigDict:
    return run.config.get("train", ConfigDict())


def lacks(run: Run, workdir: Path) -> bool:
    """Whether the run is still to be made, and the file that it needs is missing."""
    return run.needs is not None and not is_finished(run, workdir) and not files.exists(run.needs)


def is_finished(run: Run, workdir: Path) -> bool:
    """Whether the run has its results; InputError where the file system does not tell."""
    return files.exists(workdir / run.name / config_lib.RESULTS_FILE)


def check_directories(runs: Sequence[Run], workdir: Path) -> None:
    """Raises InputError where a run's directory already belongs to another config."""
    for run in runs:
        path = workdir / run.name / config_lib.CONFIG_FILE
        if not files.exists(path) and not is_finished(run, workdir):
            continue
        may_change = experiments.MAY_CHANGE.get(run.config.get("experiment"), ())
        lines = config_lib.difference(config_lib.read(path), run.config, may_change)
        if lines:
            more = f" and {len(lines) - 8} more" if len(lines) > 8 else ""
            raise InputError(
                f"{path.parent} holds a run of another config ({'; '.join(lines[:8])}{more}); choose another "
                "--workdir for this sweep, or remove that directory"
            )


# --- Running


@contextlib.contextmanager
def claim(workdir: Path) -> Iterator[IO[str]]:
    """Makes the directory, and holds it against other sweeps; yields the file that is locked.

    The runs inherit the file, and so the lock: when a sweep is killed, the runs that it had started are told
    to save and stop, and the directory stays locked until they are gone too.

    Raises:
      InputError: the directory is held, or cannot be written.
    """
    try:
        (workdir / "logs").mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("w")
    except OSError as error:
        raise InputError(f"work directory {workdir} cannot be used: {files.explain(error)}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another sweep, or a run that one has left behind, is at work in {workdir}; wait for its "
                "end, or choose another --workdir"
            ) from None
        except OSError as error:
            if (
                error.errno not in files.NO_LOCKS
            ):  # Each run has a lock of its own, which needs none of these.
                raise
        yield file


def run_all(runs: Sequence[Run], workdir: Path, parallel: int, lock: IO[str]) -> list[str]:
    """Runs what has no results yet, up to `parallel` runs at a time; returns the names of those that failed.

    On SIGTERM or Ctrl-C no run is started any more, and those that are going on are told to save and
    stop. A second Ctrl-C kills them.

    Raises:
      SystemExit: the sweep was told to stop, and its runs have ended.
    """
    waiting = [run for run in runs if not is_finished(run, workdir)]
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished", flush=True)
    going: dict[str, tuple[Run, subprocess.Popen, float]] = {}
    failed, told = [], False
    with StopSignal() as stop:
        try:
            while going or (waiting and not stop.received):
                while waiting and len(going) < parallel and not stop.received:
                    run = waiting.pop(0)
                    going[run.name] = run, _start(run, workdir, lock), time.monotonic()
                    print(f"{run.name}: started", flush=True)
                if stop.received and not told:
                    told = True
                    _tell_to_stop([process for _, process, _ in going.values()])
                time.sleep(0.05)
                ended = [name for name, (_, process, _) in going.items() if process.poll() is not None]
                for name in ended:
                    run, process, since = going.pop(name)
                    if _has_ended_well(run, workdir):
                        took = datetime.timedelta(seconds=round(time.monotonic() - since))
                        left = len(waiting) + len(going)
                        print(f"{name}: finished after {took}, {left} left", flush=True)
                    elif not told:
                        failed.append(name)
                        _complain(run, process.returncode, workdir)
        finally:
            for _, process, _ in going.values():
                process.kill()
                process.wait()
    if stop.received:
        _leave(stop, sum(is_finished(run, workdir) for run in runs), len(runs))
    return failed


def _has_ended_well(run: Run, workdir: Path) -> bool:
    try:
        return is_finished(run, workdir)
    except InputError as error:  # which is no reason to end the other runs
        print(f"{run.name}: {error}", file=sys.stderr, flush=True)
        return False


def _start(run: Run, workdir: Path, lock: IO[str]) -> subprocess.Popen:
    # In a session of its own, lest Ctrl-C reach it twice: from the terminal and from here. A second
    # signal would end it before it has saved.
    with _log(run.name, workdir).open("w") as log:
        return subprocess.Popen(
            children.following([sys.executable, *run.command(workdir)]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )


def _tell_to_stop(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        process.terminate()
    print(
        f"Stopping: {len(processes)} runs save where they are; Ctrl-C kills them", file=sys.stderr, flush=True
    )


def _log(name: str, workdir: Path) -> Path:
    return workdir / "logs" / f"{name}.txt"


def leave_out(runs: Sequence[Run], workdir: Path) -> None:
    """Says which runs lack their files, and writes it where the report looks for what a run printed."""
    for path in dict.fromkeys(run.needs for run in runs):
        names = [run.name for run in runs if run.needs == path]
        print(f"left out: {len(names)} runs need {path}, which is not there:", *names, sep="\n  ", flush=True)
    for run in runs:
        said = f"left out: {run.needs} is not there; with it, the same command makes this run\n"
        _log(run.name, workdir).write_text(said)


def _complain(run: Run, status: int, workdir: Path) -> None:
    log = _log(run.name, workdir)
    lines = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    print(f"{run.name}: FAILED ({how}); the end of {log}:", file=sys.stderr)
    print("".join(f"    {line}\n" for line in lines or ["(nothing)"]), end="", file=sys.stderr, flush=True)


def _leave(stop: StopSignal, finished: int, total: int) -> None:
    command = shlex.join(["python", *sys.orig_argv[1:]])
    print(f"Stopped with {finished} of {total} runs finished; to go on: {command}", file=sys.stderr)
    sys.exit(128 + stop.received)


def write_plan(sweep: Sweep, first: Sequence[Run], runs: Sequence[Run], workdir: Path, parallel: int) -> None:
    """Writes `sweep.json`: what the report needs to know besides the runs' own directories."""
    command = lambda run: shlex.join(["python", *run.command(workdir)])
    listed = [
        {"name": run.name, "values": run.values, "seed": run.seed, "command": command(run)} for run in runs
    ]
    facts = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "compare": sweep.compare,
        "baseline": sweep.baseline,
        "parallel": parallel,
        "first": [{"name": run.name, "command": command(run)} for run in first],
        "runs": listed,
    }
    files.write_text(workdir / SWEEP_FILE, json.dumps(facts, indent=2) + "\n")


def main(argv: list[str]) -> None:
    """Runs the sweep that the flags name, and writes its table and page.

    Exit status: 0 if every run that lacks no file has its results, 1 if one failed, 2 for bad input, 128 +
    the signal's number if the sweep was told to stop.
    """
    del argv
    values = flags.FLAGS
    if values.config is None:
        raise InputError("give a sweep by --config=FILE, such as configs/ablation.py")
    sweep = Sweep(**config_lib.unpack(values.config, Sweep, path=""))
    workdir = Path(values.workdir or config_lib.default_workdir(values["config"].config_filename))
    first, runs = plan_first(sweep), plan(sweep, workdir)
    check_directories([*first, *runs], workdir)
    if values.dry_run:
        for run in [*first, *runs]:
            done = "  # finished" if is_finished(run, workdir) else ""
            done = f"  # needs {run.needs}" if lacks(run, workdir) else done
            print(shlex.join(["python", *run.command(workdir)]) + done)
        return
    with claim(workdir) as lock:
        write_plan(sweep, first, runs, workdir, values.parallel)
        failed = run_all(first, workdir, values.parallel, lock) if first else []
        left_out = [run for run in runs if lacks(run, workdir)]
        leave_out(left_out, workdir)
        failed += run_all([run for run in runs if run not in left_out], workdir, values.parallel, lock)
        from ssl_jax.report import sweep as report  # Here, for it imports jax and matplotlib.

        print(f"Table: {workdir / report.TABLE_FILE}\nReport: {report.build(workdir)}")
    if failed:
        sys.exit(
            f"{len(failed)} of {len(first) + len(runs)} runs failed: {', '.join(failed)}; the same command "
            "tries again"
        )


def define_flags() -> None:
    """The flags of the program. Not defined on import, for other programs have flags of the same names."""
    config_flags.DEFINE_config_file("config", None, "Sweep: a config file such as configs/ablation.py.")
    paths.define_flag("workdir", None, "Where the runs, the table and the report go.")
    flags.DEFINE_integer("parallel", 1, "How many runs go on at the same time.", lower_bound=1)
    flags.DEFINE_bool("dry_run", False, "Print the commands of the runs and start nothing.")


if __name__ == "__main__":
    define_flags()
    config_lib.run_app(main, output_required="--dry_run" in sys.argv)
