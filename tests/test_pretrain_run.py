"""Whole runs: what they leave in a work directory, and what stopping, killing and breaking do to them."""

import functools
import json
import math
import os
import random
import shutil
import signal
import time

import jax
import numpy as np
import pytest
import runs

from ssl_jax.data import sources
from ssl_jax.experiments import pretrain
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.checkpoints import Checkpoints, restore_raw
from ssl_jax.runtime.errors import InputError

CONFIG = f"{runs.ROOT / 'configs' / 'jigsaw_rl.py'}:smoke"
STEPS = 24
# The probe is the longest part of a smoke run, and changes nothing in training.
NO_PROBE = {"probe.enabled": False}
# For runs in this process: everything small.
SMALL = NO_PROBE | runs.SMALL_PUZZLES


start, finish = (functools.partial(function, CONFIG) for function in (runs.start, runs.finish))


@pytest.fixture(scope="module", autouse=True)
def _settings(atari_tiny_dir):
    """What the runs of this file find in their environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", atari_tiny_dir)
        yield


def load(overrides):
    return config_lib.load(CONFIG, {key: str(value) for key, value in overrides.items()})


def run_here(workdir, **overrides):
    """A run in this process, on the four devices of the tests."""
    return pretrain.run(load(SMALL | overrides), workdir)


def steps_being_saved(workdir) -> list[int]:
    """The steps of checkpoints that are half written."""
    names = [path.name for path in (workdir / "checkpoints").glob("*tmp*")]
    return [int(name.partition(".")[0]) for name in names]


def saved(workdir):
    """All of the last checkpoint: step, state, and where the data is."""
    setup = pretrain.setup_from_config(load(NO_PROBE))
    checkpoints = Checkpoints(workdir / "checkpoints")
    template = jax.eval_shape(functools.partial(pretrain.create_state, setup), jax.random.PRNGKey(0))
    step, state, data = checkpoints.restore(template)
    checkpoints.close()
    return step, state, data["batches"]


def assert_same_end(last, other) -> None:
    """The same bits: parameters, optimizer, player, key and place in the data."""
    (step, state, data), (other_step, other_state, other_data) = last, other
    assert step == other_step == STEPS
    assert jax.tree.structure(state) == jax.tree.structure(other_state)
    for leaf, other_leaf in zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True):
        np.testing.assert_array_equal(leaf, other_leaf)
    # The count of pictures read has those in it that a resumed run reads again for its evaluations.
    assert data["image"] | {"read": None} == other_data["image"] | {"read": None}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The smoke preset as it is, from a first start to the report."""
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    output, _ = finish(workdir, {})
    assert str(workdir / "report.html") in output
    return workdir


@pytest.fixture(scope="module")
def hard_life(tmp_path_factory):
    """The same run, killed three times, its newest checkpoint cut short, told to stop, and finished.

    Returns the work directory, the step of the checkpoint that was cut short, the step that the run
    stopped at when it was told to, and what it said from its start to there.
    """
    workdir = tmp_path_factory.mktemp("runs") / "hard life"
    kills = [
        lambda: runs.progress(workdir) >= 4,
        lambda: max(steps_being_saved(workdir), default=0) >= 8,
        lambda: runs.progress(workdir) >= 14,
    ]
    for moment, delay in zip(kills, (random.random(), 0, random.random()), strict=True):
        process = start(workdir, NO_PROBE)
        runs.wait_until(process, moment)
        time.sleep(0.02 * delay)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (workdir / "results.json").exists()

    newest = max((path for path in (workdir / "checkpoints").glob("[0-9]*") if path.name.isdigit()),
                 key=lambda path: int(path.name))  # fmt: skip
    largest = max((path for path in newest.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)

    process = start(workdir, NO_PROBE)
    # First it takes back the lines after the checkpoint that it goes on from.
    runs.wait_until(process, lambda: runs.progress(workdir) < 14)
    runs.wait_until(process, lambda: runs.progress(workdir) >= 14)
    process.terminate()
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not (workdir / "results.json").exists()
    stopped_at = int(restore_raw(workdir / "checkpoints")["step"])
    finish(workdir, NO_PROBE)
    return workdir, int(newest.name), stopped_at, errors


def test_smoke_fills_its_work_directory(uninterrupted):
    workdir = uninterrupted
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
    assert {"spatial.png", "filters.png"} <= {path.name for path in (workdir / "figures").iterdir()}

    lines = metrics_lib.read(workdir / "metrics.jsonl")
    steps = [line["step"] for line in lines]
    assert steps == sorted(steps)
    by_name = lambda name: {line["step"]: line[name] for line in lines if name in line}
    assert list(by_name("train/loss")) == list(range(2, 25, 2))
    assert list(by_name("selection/spatial/reward")) == list(range(4, 25, 4))
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
    assert results["final"]["val/spatial/chance"] == 0.05
    assert len(results["validation"]["spatial"]["class_accuracy"]) == 20
    assert results["permutations"]["spatial"]["num"] == 20
    for part in ("probe", "probe_cells"):
        assert results[part]["encoders"].keys() == {"trained", "random", "majority"}
        for scores in results[part]["encoders"].values():
            assert 0 <= scores["mean_f1"] <= 1
            assert scores["by_game"].keys() == {"breakout", "pong"}
    majority = [results[part]["encoders"]["majority"] for part in ("probe", "probe_cells")]
    assert majority[0] == majority[1]
    assert results["retrieval"].keys() == {"trained", "random"}
    assert results["final"]["retrieval/state/top1"] == results["retrieval"]["trained"]["retrieval/state/top1"]
    assert results["bad_images"] == results["split_folders"] == {}
    assert results["splits"]["validation"] == "validation"
    assert results.keys() >= {"versions", "device", "seed", "wall_seconds", "seconds"}
    report = (workdir / "report.html").read_text()
    assert "policy_gradient" in report


def test_a_run_with_a_hard_life_ends_with_the_same_bits(hard_life, uninterrupted):
    workdir, _, stopped_at, _ = hard_life
    assert_same_end(saved(workdir), saved(uninterrupted))
    assert (workdir / "selection.jsonl").read_bytes() == (uninterrupted / "selection.jsonl").read_bytes()
    # A line holds the mean of the steps since the one before; that of the stopped run starts anew.
    but_one = lambda lines: [line for line in lines if line["step"] != stopped_at + 1]
    assert but_one(runs.numbers(workdir)) == but_one(runs.numbers(uninterrupted))
    assert steps_being_saved(workdir) == []


def test_a_run_told_to_stop_says_how_to_go_on(hard_life):
    workdir, _, stopped_at, errors = hard_life
    last_line = errors.splitlines()[-1]
    assert f"Stopped at step {stopped_at} and saved; to go on: python" in last_line
    assert 14 <= stopped_at < STEPS
    assert f"--config={CONFIG} '--workdir={workdir}'" in last_line


def test_a_broken_newest_checkpoint_falls_back_and_says_so(hard_life):
    workdir, broken, _, errors = hard_life
    assert f"checkpoint {broken} is broken" in errors
    assert f"going on from checkpoint {broken - 4}" in errors
    assert "Traceback" not in errors  # of the arrays that were being read beside the broken one
    assert len(list((workdir / "checkpoints").glob(f"broken-{broken}-*"))) == 1


def test_a_finished_run_is_left_alone(hard_life):
    workdir = hard_life[0]
    names = ("config.json", "metrics.jsonl", "selection.jsonl", "results.json", "report.html")
    files = {name: (workdir / name).read_bytes() for name in names}
    finish(workdir, NO_PROBE)
    assert {name: (workdir / name).read_bytes() for name in names} == files


def test_the_directory_of_another_config_is_refused(uninterrupted):
    before = (uninterrupted / "metrics.jsonl").read_bytes()
    process = start(uninterrupted, {"spatial.permutations.num": 10})
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.startswith(f"error: work directory {uninterrupted} belongs to another config: ")
    assert "permutations.num: 20 -> 10" in errors
    assert errors.count("\n") == 1
    assert (uninterrupted / "metrics.jsonl").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(InputError) as error:
        run_here(tmp_path, **{"train.learning_rate": 1e30, "train.checkpoint_every": 1})
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
    "spatial.puzzle.window": (42, 48),
    "spatial.puzzle.tile": (12, 14),
    "train.steps": 26,
}


def test_bad_pictures_are_counted(tmp_path, odd_pictures_dir):
    results = run_here(tmp_path, **ODD, **{"data.data_dir": odd_pictures_dir})
    # 26 batches of 8 are more than the 196 pictures of an epoch: all three bad ones were met.
    assert results["bad_images"] == {"unreadable": 2, "undersized": 1}
    assert json.loads((tmp_path / "results.json").read_text())["bad_images"] == results["bad_images"]
    assert "probe" not in results  # there are no RAM labels
    assert math.isfinite(results["final"]["val/accuracy"])


def test_too_many_bad_pictures_stop_the_run(tmp_path, odd_pictures_dir):
    with pytest.raises(InputError, match=r"could not be used .* more than the share of 0\.005"):
        run_here(tmp_path, **ODD, **{"data.data_dir": odd_pictures_dir, "data.max_bad_share": 0.005})
    assert not (tmp_path / "results.json").exists()


BOTH = f"{runs.ROOT / 'configs' / 'spatiotemporal_rl.py'}:smoke,tasks=both,extra=rotation"


@pytest.mark.slow
def test_a_run_of_several_tasks_goes_on_where_it_was_stopped(tmp_path, little_optimization):
    """Space, time and rotation on one encoder: stopped after a third of the steps, and finished."""
    overrides = NO_PROBE | {"data.image_size": (132, 130), "train.steps": 12, "train.validate_every": 4}
    config = config_lib.load(BOTH, {key: str(value) for key, value in overrides.items()})
    setup = pretrain.setup_from_config(config)
    assert [task.name for task in setup.tasks] == ["spatial", "temporal", "rotation"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    results = pretrain.run(config, whole)
    shutil.copytree(whole, parted)
    for late in (8, 12):
        shutil.rmtree(parted / "checkpoints" / str(late), ignore_errors=True)
    (parted / "results.json").unlink()
    pretrain.run(config, parted)
    ends = [restore_raw(path / "checkpoints") for path in (whole, parted)]
    assert all(int(end["step"]) == 12 for end in ends)
    jax.tree.map(np.testing.assert_array_equal, *ends)
    names = {f"val/{name}/accuracy" for name in ("spatial", "temporal", "rotation")}
    assert names < results["final"].keys()
    assert results["final"]["val/accuracy"] == pytest.approx(np.mean([results["final"][n] for n in names]))
    assert results["final"]["val/temporal/chance"] == pytest.approx(1 / 12)
    tasks = {line["task"] for line in metrics_lib.read(whole / "selection.jsonl")}
    assert tasks == {"spatial", "temporal"}  # rotation is drawn uniformly, without a look
    assert {path.stem for path in (whole / "figures").iterdir()} >= {"spatial", "temporal", "rotation"}


COLORS = f"{runs.ROOT / 'configs' / 'spatiotemporal_rl.py'}:smoke,tasks=none,extra=colorization"


def test_a_run_that_colours_pictures_keeps_its_prior(tmp_path, monkeypatch, little_optimization):
    """Counted in the training pictures before the first step, and read from the checkpoint after a stop."""
    overrides = NO_PROBE | {"data.image_size": (132, 130), "train.steps": 6, "train.checkpoint_every": 3}
    config = config_lib.load(COLORS, {key: str(value) for key, value in overrides.items()})
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    results = pretrain.run(config, whole)
    runs.copy_before(6, whole, parted)
    monkeypatch.delattr(pretrain, "measure_priors")
    pretrain.run(config, parted)
    ends = [restore_raw(path / "checkpoints") for path in (whole, parted)]
    assert all(int(end["step"]) == 6 for end in ends)
    jax.tree.map(np.testing.assert_array_equal, *ends)

    prior = np.asarray(ends[0]["prior"]["colorization"])
    assert (prior.shape, prior.dtype) == ((261,), np.float32)
    assert prior.sum() == pytest.approx(1, abs=1e-5)
    assert 0.2 < prior.max() < 1
    final, seen = results["final"], results["validation"]["colorization"]
    assert final["val/colorization/chance"] == pytest.approx(prior.max())
    share = np.divide(seen["class_count"], sum(seen["class_count"]))
    assert 1 < len(seen["class"]) < 261
    assert final["val/colorization/accuracy"] == pytest.approx(
        np.dot(seen["class_accuracy"], share), abs=1e-6
    )
    assert final["val/colorization/balanced_accuracy"] == pytest.approx(np.mean(seen["class_accuracy"]))
    lines = metrics_lib.read(whole / "metrics.jsonl")
    (line,) = [line for line in lines if "val/accuracy" in line]
    assert line["val/accuracy"] == line["val/colorization/balanced_accuracy"]
    losses = [line["train/colorization/loss"] for line in lines if "train/colorization/loss" in line]
    assert losses[0] == pytest.approx(np.log(261), rel=0.5)  # all colours alike, rare ones weighted up
    assert {path.stem for path in (whole / "figures").iterdir()} >= {"colorization", "filters"}


def test_clips_of_tasks_in_one_run_have_one_length():
    config = config_lib.load(f"{runs.ROOT / 'configs' / 'spatiotemporal_rl.py'}:smoke,extra=arrow_of_time")
    config.arrow_of_time.puzzle.frames = 3
    with pytest.raises(
        InputError, match=r"config\.temporal\.puzzle\.frames=4, config\.arrow_of_time\.puzzle\.frames=3"
    ):
        pretrain.setup_from_config(config)


def test_a_config_without_a_task_is_refused():
    config = config_lib.load(f"{runs.ROOT / 'configs' / 'spatiotemporal_rl.py'}:smoke,tasks=none")
    with pytest.raises(InputError, match="the config has no task; give it a section spatial or temporal"):
        pretrain.setup_from_config(config)


# --- Resuming with another config


def test_run_resumed_with_other_workers_data_directory_and_pages_ends_with_the_same_bits(
    uninterrupted, tmp_path, atari_tiny_dir
):
    parted = tmp_path / "parted"
    runs.copy_before(STEPS, uninterrupted, parted)
    before = config_lib.read(parted / "config.json")
    shutil.copytree(atari_tiny_dir, tmp_path / "moved")
    other = {
        "data.workers": 1,
        "data.threads": 1,
        "data.prefetch": 1,
        "data.data_dir": str(tmp_path / "moved"),
        "train.log_every": 3,
        "train.keep_checkpoints": 1,
    }
    given = {"probe.enabled": before.probe.enabled, **other}
    finish(parted, given)
    first, second = (restore_raw(path / "checkpoints") for path in (uninterrupted, parted))
    assert first["step"] == second["step"] == STEPS
    jax.tree.map(np.testing.assert_array_equal, first, second)
    final = [json.loads((path / "results.json").read_text())["final"] for path in (uninterrupted, parted)]
    assert final[0]["val/accuracy"] == final[1]["val/accuracy"]
    (line,) = metrics_lib.read(parted / "config_changes.jsonl")
    assert line["step"] < STEPS
    assert {key: after for key, (_, after) in line["changes"].items()} == other
    assert config_lib.difference(config_lib.read(parted / "config.json"), load(given)) == []


def test_run_resumed_on_another_data_set_is_refused_and_keeps_its_config(
    uninterrupted, tmp_path, monkeypatch
):
    parted = tmp_path / "parted"
    runs.copy_before(STEPS, uninterrupted, parted)
    before = config_lib.read(parted / "config.json")
    monkeypatch.setattr(sources, "digest", lambda parts: "of another data set")
    with pytest.raises(InputError, match="but they are others, or in another order"):
        pretrain.run(load({"probe.enabled": before.probe.enabled, "data.threads": 1}), parted)
    assert not (parted / "config_changes.jsonl").exists()
    assert config_lib.difference(before, config_lib.read(parted / "config.json")) == []
    assert runs.saved_steps(parted)


def test_run_made_longer_ends_as_one_that_was_so_from_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    config = f"{CONFIG},policy=uniform"
    little = SMALL | {"train.schedule": "constant", "train.validate_every": 2}
    long, short = tmp_path / "long", tmp_path / "short"
    runs.finish(config, long, little | {"train.steps": 4})
    runs.finish(config, short, little | {"train.steps": 2})
    before = (short / "results.json").read_text()
    runs.finish(config, short, little | {"train.steps": 4})
    assert (short / "results_2.json").read_text() == before
    first, second = (restore_raw(path / "checkpoints") for path in (long, short))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert json.loads((short / "results.json").read_text())["protocol"]["train"]["steps"] == 4


def test_run_whose_learning_rate_falls_cannot_be_made_longer(tmp_path):
    config_lib.save(tmp_path / "config.json", load(SMALL))
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(InputError, match="schedule='cosine' the learning rate of the steps already made"):
        run_here(tmp_path, **{"train.steps": 2 * STEPS})
