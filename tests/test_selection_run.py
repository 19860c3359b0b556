"""The players in their experiment: their sections of the config, and whole small runs."""

import inspect
import json
import math

import jax
import numpy as np
import pytest
import runs

from ssl_jax.experiments import pretrain
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.checkpoints import restore_raw
from ssl_jax.selection import PLAYERS

CONFIG = runs.ROOT / "configs" / "jigsaw_rl.py"


@pytest.mark.parametrize("preset", ["default", "smoke", "paper"])
@pytest.mark.parametrize("name", PLAYERS)
def test_every_players_section_names_all_its_options(name, preset):
    config = config_lib.load(f"{CONFIG}:{preset},policy={name}")
    section = {key: value for key, value in config.spatial.selection.items() if key not in ("name", "slice")}
    given = {"num_permutations", "permutations"}  # by the experiment
    options = config_lib.unpack(section, PLAYERS[name], path="spatial.selection", ignore=given)
    assert set(options) | given >= set(inspect.signature(PLAYERS[name]).parameters)
    setup = pretrain.setup_from_config(config)
    (task,) = setup.tasks
    assert task.player_name == name
    assert task.player.period == options.get("period", 0)


@pytest.mark.parametrize("name", ["round_robin", "q_learning"])
def test_a_run_with_the_player(name, tmp_path, atari_tiny_dir):
    config = config_lib.load(f"{CONFIG}:smoke,policy={name}", {"data.data_dir": atari_tiny_dir})
    config.probe.enabled = False
    pretrain.run(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses
    assert np.isfinite(losses).all()
    looks = [line["selection/spatial/entropy"] for line in lines if "selection/spatial/entropy" in line]
    assert len(looks) == (6 if name == "q_learning" else 0)  # 24 steps, a look every 4
    assert all(0 < entropy <= math.log(20) + 1e-4 for entropy in looks)


JOINT = f"{runs.ROOT / 'configs' / 'spatiotemporal_rl.py'}:smoke,tasks=both,policy=joint"


@pytest.mark.slow
def test_a_run_of_two_tasks_with_one_policy_goes_on_where_it_was_stopped(
    tmp_path, atari_tiny_dir, monkeypatch, little_optimization
):
    overrides = runs.SMALL_PUZZLES | {
        "data.data_dir": atari_tiny_dir,
        "probe.enabled": False,
        "encoder.width": 8,
        "temporal.puzzle.window": (48, 48),
        "temporal.puzzle.size": (16, 16),
        "selection.period": 2,
        "train.steps": 8,
    }
    config = config_lib.load(JOINT, {key: str(value) for key, value in overrides.items()})
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    results = pretrain.run(config, whole)
    runs.copy_before(8, whole, parted)
    monkeypatch.setattr(pretrain, "judge", lambda *_: {})  # the report is there already
    pretrain.run(config, parted)
    ends = [restore_raw(path / "checkpoints") for path in (whole, parted)]
    assert all(int(end["step"]) == 8 for end in ends)
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert (whole / "selection.jsonl").read_bytes() == (parted / "selection.jsonl").read_bytes()
    assert runs.numbers(whole) == runs.numbers(parted)

    state = ends[0]["selection"]["joint"]
    assert ends[0]["selection"].keys() == {"joint"}
    assert (state["evaluations"], state["count"].sum()) == (4, 0)
    assert np.abs(state["params"]["params"]["Dense_1"]["bias"]).min() > 0  # both heads have learned
    rows = metrics_lib.read(whole / "selection.jsonl")
    sizes = [(row["step"], row["task"], len(row["probability"])) for row in rows]
    assert sizes == [(step, *task) for step in (2, 4, 6, 8) for task in (("spatial", 10), ("temporal", 12))]
    assert all(sum(row["probability"]) == pytest.approx(1, abs=1e-5) for row in rows)
    looks = {
        task: [line for line in runs.numbers(whole) if f"selection/{task}/reward" in line]
        for task in ("spatial", "temporal")
    }
    for spatial, temporal in zip(*looks.values(), strict=True):
        assert spatial["step"] == temporal["step"]
        assert spatial["selection/spatial/reward"] == temporal["selection/temporal/reward"]
        assert 0 < spatial["selection/spatial/entropy"] <= math.log(10) + 1e-4
        assert 0 < temporal["selection/temporal/entropy"] <= math.log(12) + 1e-4
    assert results["final"]["time/policy_overhead"] > 0
    report = (whole / "report.html").read_text()
    assert "chosen by a policy that is learned beside the network, for several tasks at once" in report
    assert report.count("the mean selection error of the tasks that share the policy") == 2
