"""Runs that a test starts by the command line, to watch, stop or kill them."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssl_jax.runtime import metrics as metrics_lib

ROOT = Path(__file__).parents[1]
# Keys of `configs/jigsaw_rl.py` for puzzles that take next to nothing to read and to solve.
SMALL_PUZZLES = {
    "data.image_size": (60, 56),
    "spatial.puzzle.window": (54, 54),
    "spatial.puzzle.tile": (16, 16),
    "spatial.permutations.num": 10,
}


def start(config: str, workdir: Path, overrides: Mapping[str, Any]) -> subprocess.Popen:
    """Starts a run on one device: four simulated ones only take turns."""
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "ssl_jax.main", f"--config={config}", f"--workdir={workdir}", *flags],
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(config: str, workdir: Path, overrides: Mapping[str, Any]) -> tuple[str, str]:
    """Runs to the end; returns what was printed, and what was logged."""
    process = start(config, workdir, overrides)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output, errors


def wait_until(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Waits for something that a living run does."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def progress(workdir: Path) -> int:
    """The last step that has a line of metrics."""
    return max((line["step"] for line in metrics_lib.read(workdir / "metrics.jsonl")), default=0)


def numbers(workdir: Path) -> list[dict]:
    """The lines of metrics without the times, which no two runs share."""
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in metrics_lib.read(workdir / "metrics.jsonl")
    ]


def saved_steps(workdir: Path) -> list[int]:
    """The steps of the checkpoints that are whole."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def copy_before(step: int, whole: Path, parted: Path) -> None:
    """Copies the work directory of a finished run as it was before its last checkpoint, that of `step`."""
    shutil.copytree(whole, parted)
    shutil.rmtree(parted / "checkpoints" / str(step))
    (parted / "results.json").unlink()
