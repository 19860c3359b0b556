"""The players in their experiment: their sections of the config, and whole small runs."""

import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest

from ssl_jax.experiments import pretrain
from ssl_jax.runtime import config as config_lib
from ssl_jax.selection import PLAYERS

CONFIG = Path(__file__).parents[1] / "configs" / "jigsaw_rl.py"


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
