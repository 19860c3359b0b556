"""A run that is killed at thirty random moments, and one whose disk is full, end as if nothing had been."""

import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import jax
import numpy as np
import pytest
import runs

from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.checkpoints import restore_raw

pytestmark = pytest.mark.slow
CONFIG = f"{runs.ROOT / 'configs' / 'jigsaw_rl.py'}:smoke"
STEPS, KILLS = 60, 30
# A checkpoint after every second step, so that many of the kills are in the midst of one.
SMALL = runs.SMALL_PUZZLES | {
    "probe.enabled": False,
    "train.steps": STEPS,
    "train.log_every": 1,
    "train.validate_every": 20,
    "train.checkpoint_every": 2,
}


@pytest.fixture(scope="module", autouse=True)
def _settings(atari_tiny_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", atari_tiny_dir)
        yield


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    runs.finish(CONFIG, workdir, SMALL)
    return workdir


def assert_same_end(workdir, other) -> None:
    """The same bits of parameters, optimizer, player, key and statistics; the same numbers on the way."""
    jax.tree.map(
        np.testing.assert_array_equal, *(restore_raw(w / "checkpoints", STEPS) for w in (workdir, other))
    )
    assert runs.numbers(workdir) == runs.numbers(other)
    selections = [metrics_lib.read(w / "selection.jsonl") for w in (workdir, other)]
    assert selections[0] == selections[1]


def half_saved(workdir) -> set[str]:
    return {path.name for path in (workdir / "checkpoints").glob("*tmp*")}


def starts(workdir) -> int:
    """How often the run has come to its first step: what lives before have left is put in order by then."""
    return len(list((workdir / "tensorboard").glob("events*")))


def moment_of(rng: random.Random, workdir):
    """A random moment of a life: what it is, and whether it has come."""
    begun, start, before = starts(workdir), time.monotonic(), max(runs.saved_steps(workdir), default=0)
    what = rng.choice(["starting", "training", "saving", "saving"])
    delay, step = rng.uniform(0, 10), before + rng.randint(1, 8)

    def has_come():
        if what == "starting":  # imports, the lock, config.json, restoring, compiling
            return time.monotonic() - start > delay
        if starts(workdir) == begun or runs.progress(workdir) < step:
            return False
        return what == "training" or half_saved(workdir)

    return what, has_come


def live(rng: random.Random, workdir) -> str | None:
    """Starts the run and kills it at a random moment; returns which, or None if it came to its end."""
    what, has_come = moment_of(rng, workdir)
    process = runs.start(CONFIG, workdir, SMALL)
    while process.poll() is None and not has_come():
        time.sleep(0.001)
    if what != "starting":
        time.sleep(rng.uniform(0, 0.02))
    process.kill()
    _, errors = process.communicate()
    if process.returncode == 0:
        return None
    assert process.returncode == -signal.SIGKILL, errors
    return f"{what}, half a checkpoint" if what != "starting" and half_saved(workdir) else what


def test_thirty_kills_at_random_moments_change_no_bit(tmp_path, uninterrupted, capsys):
    seed = random.SystemRandom().randrange(10**6)
    rng, kills, start = random.Random(seed), [], time.monotonic()
    for life in itertools.count():
        workdir = tmp_path / str(life)
        while len(kills) < KILLS:
            killed = live(rng, workdir)
            if killed is None:
                break
            kills.append(killed)
        runs.finish(CONFIG, workdir, SMALL)
        assert_same_end(workdir, uninterrupted)
        assert not half_saved(workdir)
        assert not list((workdir / "checkpoints").glob("broken-*"))  # a kill leaves none that looks whole
        if len(kills) == KILLS:
            break
    with capsys.disabled():
        counts = {what: kills.count(what) for what in sorted(set(kills))}
        print(f"\nseed {seed}: {counts}, {life + 1} runs, {time.monotonic() - start:.0f} seconds")


def test_a_full_disk_stops_a_run_with_a_sentence_and_costs_no_bit(tmp_path, uninterrupted):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("a small file system of our own cannot be mounted here")
    (tmp_path / "disk").mkdir()
    # In a space of its own with a disk of 20 MB: the run is finished there and copied out.
    code = f"""
        import pathlib, shutil, sys
        import runs
        disk, config, overrides = pathlib.Path(sys.argv[1]), {CONFIG!r}, {SMALL!r}
        process = runs.start(config, disk / "run", overrides)
        runs.wait_until(process, lambda: len(runs.saved_steps(disk / "run")) == 2)
        with open(disk / "filler", "wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(4096))
            except OSError:
                pass
        _, errors = process.communicate()
        print(process.returncode, errors.replace("\\n", " "))
        (disk / "filler").unlink()
        runs.finish(config, disk / "run", overrides)
        shutil.copytree(disk / "run", disk.parent / "run")
    """
    mount = 'mount -t tmpfs -o size=20m tmpfs "$2" && exec "$0" -c "$1" "$2"'
    command = ["unshare", "-rm", "sh", "-c", mount, sys.executable, textwrap.dedent(code)]
    environment = os.environ | {"PYTHONPATH": f"{runs.ROOT}:{runs.ROOT / 'tests'}"}
    done = subprocess.run([*command, str(tmp_path / "disk")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("2 error: ")
    assert line.count("error") == 1
    assert "no disk space" in line or "No space left on device" in line
    assert_same_end(tmp_path / "run", uninterrupted)
