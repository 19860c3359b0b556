"""Whole runs: what they leave in a work directory, and what stopping, killing and breaking do to them."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from ssl_jax.experiments import pretrain
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.checkpoints import Checkpoints, restore_raw
from ssl_jax.runtime.errors import InputError

ROOT = Path(__file__).parents[1]
CONFIG = f"{ROOT / 'configs' / 'jigsaw_rl.py'}:smoke"
STEPS = 48
# Long enough to be killed several times, and everything else small.
SMALL = {
    "data.image_size": (60, 56),
    "jigsaw.window": (54, 54),
    "jigsaw.tile": (16, 16),
    "permutations.num": 10,
    "probe.enabled": False,
    "train.steps": STEPS,
}


@pytest.fixture(scope="module", autouse=True)
def _settings(atari_tiny_dir, tmp_path_factory):
    """What the runs of this file find in their environment: the data, and one compilation cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", atari_tiny_dir)
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("xla")))
        patch.setenv("PYTHONPATH", str(ROOT))
        yield


def start(workdir, overrides) -> subprocess.Popen:
    """Starts a run by the command line, on one device: four simulated ones only take turns."""
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "ssl_jax.main", f"--config={CONFIG}", f"--workdir={workdir}", *flags],
        env=os.environ | {"XLA_FLAGS": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(workdir, overrides=SMALL) -> tuple[str, str]:
    """Runs to the end; returns what was printed."""
    process = start(workdir, overrides)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output, errors


def run_here(workdir, data_dir, **overrides):
    """A run in this process, on the four devices of the tests."""
    overrides = SMALL | {"data.data_dir": data_dir} | overrides
    config = config_lib.load(CONFIG, {key: str(value) for key, value in overrides.items()})
    return pretrain.run(config, workdir)


def wait_until(process, condition) -> None:
    """Waits for something that a living run does."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def progress(workdir) -> int:
    """The last step that has a line of metrics."""
    return max((line["step"] for line in metrics_lib.read(workdir / "metrics.jsonl")), default=0)


def steps_being_saved(workdir) -> list[int]:
    """The steps of checkpoints that are half written."""
    names = [path.name for path in (workdir / "checkpoints").glob("*tmp*")]
    return [int(name.partition(".")[0]) for name in names]


def numbers(workdir) -> list[dict]:
    """The lines of metrics without the times, which no two runs share."""
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in metrics_lib.read(workdir / "metrics.jsonl")
    ]


def saved(workdir):
    """All of the last checkpoint: step, state, and where the data is."""
    config = config_lib.load(CONFIG, {key: str(value) for key, value in SMALL.items()})
    setup = pretrain.setup_from_config(config)
    checkpoints = Checkpoints(workdir / "checkpoints")
    step, state, data = checkpoints.restore(pretrain.create_state(setup, jax.random.PRNGKey(0)))
    checkpoints.close()
    return step, state, data["batches"]


def assert_same_end(workdir, other) -> None:
    """Both runs ended with the same bits: parameters, optimizer, player, key and place in the data."""
    (step, state, data), (other_step, other_state, other_data) = saved(workdir), saved(other)
    assert step == other_step == STEPS
    assert jax.tree.structure(state) == jax.tree.structure(other_state)
    for leaf, other_leaf in zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True):
        np.testing.assert_array_equal(leaf, other_leaf)
    # How many pictures were read counts those that a resumed run reads again for its evaluations.
    for counts in (data, other_data):
        del counts["read"]
    assert data == other_data


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    finish(workdir)
    return workdir


@pytest.fixture
def copy(uninterrupted, tmp_path):
    return Path(shutil.copytree(uninterrupted, tmp_path / "copy"))


def test_smoke_fills_its_work_directory(tmp_path):
    workdir = tmp_path / "smoke"
    output, _ = finish(workdir, {})
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "selection.jsonl",
        "checkpoints",
        "figures",
        "tensorboard",
        "results.json",
        "report.html",
    }
    assert {"tiles.png", "filters.png"} <= {path.name for path in (workdir / "figures").iterdir()}

    lines = metrics_lib.read(workdir / "metrics.jsonl")
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    by_name = lambda name: {line["step"]: line[name] for line in lines if name in line}
    assert list(by_name("train/loss")) == list(range(2, 25, 2))
    assert list(by_name("selection/reward")) == list(range(4, 25, 4))
    assert list(by_name("val/accuracy")) == [12, 24]
    rows = metrics_lib.read(workdir / "selection.jsonl")
    assert [row["step"] for row in rows] == list(range(4, 25, 4))
    for row in rows:
        assert len(row["accuracy"]) == len(row["group"]) == 20
        assert sum(row["probability"]) == pytest.approx(1, abs=1e-5)

    results = json.loads((workdir / "results.json").read_text())
    assert f"--workdir={workdir}" in results["command"]
    assert results["protocol"] == json.loads((workdir / "config.json").read_text())
    assert results["final"]["val/accuracy"] == pytest.approx(by_name("val/accuracy")[24])
    assert results["final"]["val/chance"] == 0.05
    assert len(results["validation"]["permutation_accuracy"]) == results["permutations"]["num"] == 20
    assert results["probe"]["encoders"].keys() == {"trained", "random", "majority"}
    for scores in results["probe"]["encoders"].values():
        assert 0 <= scores["mean_f1"] <= 1
        assert scores["by_game"].keys() == {"breakout", "pong"}
    assert results["bad_images"] == {}
    assert results.keys() >= {"versions", "device", "seed", "wall_seconds", "seconds"}
    report = (workdir / "report.html").read_text()
    assert "policy_gradient" in report
    assert "report.html" in output
    assert "validation accuracy" in output


def test_a_finished_run_is_only_judged_again(copy, uninterrupted):
    finish(copy)
    assert numbers(copy) == numbers(uninterrupted)
    for name in ("metrics.jsonl", "selection.jsonl", "config.json"):
        assert (copy / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert_same_end(copy, uninterrupted)
    before, after = (json.loads((run / "results.json").read_text()) for run in (uninterrupted, copy))
    for results in (before, after):
        for key in ("command", "seconds", "wall_seconds"):
            del results[key]
        results["final"] = {name: value for name, value in results["final"].items() if name[:5] != "time/"}
    assert after == before


def test_killed_runs_end_like_one_that_was_not(uninterrupted, tmp_path):
    """Three kills: early, while a checkpoint is being written, and late."""
    workdir = tmp_path / "killed"
    moments = [
        lambda: progress(workdir) >= 8,
        lambda: max(steps_being_saved(workdir), default=0) >= 20,
        lambda: progress(workdir) >= 36,
    ]
    for moment, delay in zip(moments, (random.random(), 0, random.random()), strict=True):
        process = start(workdir, SMALL)
        wait_until(process, moment)
        time.sleep(0.05 * delay)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (workdir / "results.json").exists()
    finish(workdir)
    assert_same_end(workdir, uninterrupted)
    assert numbers(workdir) == numbers(uninterrupted)
    selection = "selection.jsonl"
    assert (workdir / selection).read_bytes() == (uninterrupted / selection).read_bytes()
    assert steps_being_saved(workdir) == []


def test_a_run_told_to_stop_saves_and_says_how_to_go_on(uninterrupted, tmp_path):
    workdir = tmp_path / "told to stop"
    process = start(workdir, SMALL)
    wait_until(process, lambda: progress(workdir) >= 14)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    step = int(errors.partition("Stopped at step ")[2].split()[0])
    assert 14 <= step < STEPS
    assert f"'--workdir={workdir}'" in errors.splitlines()[-1]
    assert f"--config={CONFIG}" in errors.splitlines()[-1]
    assert restore_raw(workdir / "checkpoints")["step"] == step
    finish(workdir)
    assert_same_end(workdir, uninterrupted)


def test_a_broken_newest_checkpoint_falls_back(copy, uninterrupted):
    newest = copy / "checkpoints" / str(STEPS)
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    _, errors = finish(copy)
    assert f"checkpoint {STEPS} is broken" in errors
    assert f"going on from checkpoint {STEPS - 4}" in errors
    assert_same_end(copy, uninterrupted)
    assert numbers(copy) == numbers(uninterrupted)


def test_the_directory_of_another_config_is_refused(copy, uninterrupted, atari_tiny_dir):
    with pytest.raises(InputError, match=r"another config: .*train\.learning_rate: 0\.002 -> 0\.5"):
        run_here(copy, None, **{"train.learning_rate": 0.5})
    assert (copy / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, atari_tiny_dir):
    with pytest.raises(InputError) as error:
        run_here(tmp_path, atari_tiny_dir, **{"train.learning_rate": 1e30, "train.checkpoint_every": 1})
    sentence = str(error.value)
    assert "\n" not in sentence
    step = int(sentence.partition(" at step ")[2].split()[0])
    assert sentence.startswith("train/")
    steps = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert f"the last good checkpoint is of step {max(steps)}" in sentence
    assert max(steps) < step
    for number in steps:
        raw = restore_raw(tmp_path / "checkpoints", number)
        for leaf in jax.tree.leaves(raw):
            assert np.isfinite(leaf).all()
    assert not (tmp_path / "results.json").exists()


ODD = {
    "data.name": "odd_pictures",
    "data.image_size": (44, 50),
    "jigsaw.window": (42, 48),
    "jigsaw.tile": (12, 14),
    "train.steps": 26,
}


def test_bad_pictures_are_counted(tmp_path, odd_pictures_dir):
    results = run_here(tmp_path, odd_pictures_dir, **ODD)
    # 26 batches of 8 are more than the 196 pictures of an epoch: all three bad ones were met.
    assert results["bad_images"] == {"unreadable": 2, "undersized": 1}
    assert json.loads((tmp_path / "results.json").read_text())["bad_images"] == results["bad_images"]
    assert "probe" not in results  # there are no RAM labels
    assert math.isfinite(results["final"]["val/accuracy"])


def test_too_many_bad_pictures_stop_the_run(tmp_path, odd_pictures_dir):
    with pytest.raises(InputError, match=r"could not be used .* more than the share of 0\.005"):
        run_here(tmp_path, odd_pictures_dir, **ODD, **{"data.max_bad_share": 0.005})
    assert not (tmp_path / "results.json").exists()
