"""The table of the DeepFake experiment: which runs it makes, and what it says of them."""

import json
import re

import pytest
import runs

from launch import sweep as launch
from ssl_jax.experiments import deepfake, pretrain
from ssl_jax.report import classifying, sweep
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime.errors import InputError

CONFIG = f"{runs.ROOT / 'configs' / 'deepfake_table.py'}"


def table_of(arg="", **changes):
    config = config_lib.load(f"{CONFIG}{arg}")
    with config.unlocked():
        config.update(changes)
    return launch.Sweep(**config_lib.unpack(config, launch.Sweep, path=""))


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    """Config files are named from there."""
    monkeypatch.chdir(runs.ROOT)


def test_rows_are_networks_and_weights_on_two_splits(tmp_path):
    planned = launch.plan(table_of(), tmp_path)
    assert len(planned) == 2 * 4 * 2 * 3
    assert {tuple(run.values.values()) for run in planned if run.seed == 2} == {
        (init, model, split)
        for init in ("random", "rotation", "jigsaw", "imagenet")
        for model in ("alexnet", "resnet50")
        for split in ("random", "hard")
    }
    assert all(str(tmp_path) not in run.name for run in planned)
    assert {run.config.init.runs for run in planned} == {str(tmp_path)}


@pytest.mark.parametrize(("arg", "models"), [("", ("alexnet", "resnet50")), (":smoke", ("compact",))])
def test_pre_training_comes_first_and_fits(tmp_path, arg, models):
    """What a row begins with is made where the row looks for it, of the same encoder."""
    sweep_of = table_of(arg)
    first = {run.name: run for run in launch.plan_first(sweep_of)}
    assert first.keys() == {f"{task}-{model}" for task in ("rotation", "jigsaw") for model in models}
    for run in launch.plan(sweep_of, tmp_path):
        if run.values["init"] not in ("rotation", "jigsaw"):
            continue
        options = {key: run.config.init[key] for key in ("name", "path", "runs")}
        place = deepfake.Init(**options).place(run.config.encoder.name)
        assert place.parent == tmp_path
        trained = first[place.name].config.encoder
        assert {key: trained[key] for key in run.config.encoder} == run.config.encoder.to_dict()
    for run in first.values():
        setup = pretrain.setup_from_config(run.config)
        assert [task.name for task in setup.tasks] == [
            "spatial" if run.name.startswith("jigsaw") else "rotation"
        ]
    assert first[f"jigsaw-{models[0]}"].config.spatial.selection.name == "policy_gradient"


def test_rows_without_their_weights_are_listed_and_left_out(tmp_path, monkeypatch, capsys):
    planned = launch.plan(table_of(), tmp_path)
    monkeypatch.chdir(tmp_path)
    lacking = [run for run in planned if launch.lacks(run, tmp_path)]
    assert {run.values["init"] for run in lacking} == {"imagenet"}
    assert len(lacking) == 12
    (tmp_path / "logs").mkdir()
    launch.leave_out(lacking, tmp_path)
    said = capsys.readouterr().out
    assert "6 runs need weights/alexnet.safetensors, which is not there" in said
    log = (tmp_path / "logs" / f"{lacking[0].name}.txt").read_text()
    assert log.startswith(f"left out: {lacking[0].needs} is not there")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "alexnet.safetensors").touch()
    assert sum(launch.lacks(run, tmp_path) for run in planned) == 6


def test_a_need_of_no_row_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"unknown value of an axis in config.needs: 'imagnet'"):
        launch.plan(table_of(needs={"imagnet": "weights/x"}), tmp_path)


def finished_run(path, values, seed, accuracy):
    """A work directory as `experiments.deepfake` leaves it, with invented numbers."""
    path.mkdir(parents=True)
    config = {"experiment": "deepfake", "seed": seed, "data": {"name": "manipulated_clips"} | values}
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text(json.dumps({"step": 4, "val/accuracy": accuracy}) + "\n")
    final = {f"test/{unit}/{name}": accuracy for unit in ("frame", "video") for name in ("accuracy", "auc")}
    results = {"final": final | {"test/frame/majority": 0.5}, "stuck_at_chance": {"test": accuracy < 0.6}}
    (path / "results.json").write_text(json.dumps(results))


def test_the_table_says_what_leaks(tmp_path):
    """Random minus hard is 0.20, 0.25 and 0.30; the third row has no weights."""
    accuracy = {"random": (0.8, 0.85, 0.9), "hard": (0.6, 0.6, 0.6)}
    listed = []
    for init in ("random", "imagenet"):
        for split, by_seed in accuracy.items():
            for seed, value in enumerate(by_seed):
                name = f"init={init}-split={split}-seed={seed}"
                values = {"init": init, "split": split}
                if init == "random":
                    finished_run(tmp_path / name, values, seed, value)
                listed.append({"name": name, "values": values, "seed": seed, "command": f"run {name}"})
    facts = {"command": "sweep", "compare": "split", "baseline": "hard", "parallel": 1, "runs": listed}
    (tmp_path / "sweep.json").write_text(json.dumps(facts))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "init=imagenet-split=hard-seed=0.txt").write_text("left out: FILE is not there\n")
    report = sweep.build(tmp_path).read_text()
    markdown = (tmp_path / "table.md").read_text()
    table = json.loads((tmp_path / "table.json").read_text())
    difference = table["rows"][0]["difference_to_baseline"]["test/frame/accuracy"]
    assert difference["mean"] == pytest.approx(0.25)
    assert table["rows"][1]["measures"]["stuck_at_chance"]["mean"] == 0
    # By whether the share of right answers is below 0.6: of booleans an interval says nothing.
    assert "stuck_at_chance" not in table["rows"][0]["difference_to_baseline"]
    assert re.search(r"\| random \| hard \| 3 \|.* \| 0 of 3 \|", markdown)
    assert "imagenet-split=hard-seed=0: left out: FILE is not there" in markdown
    for text in (report, markdown):
        assert classifying.STAND_IN in text
        assert "random minus hard" in text
        assert "leakage" in text
        assert "FILE is not there" in text
        assert "player" not in re.sub("<style>.*</style>", "", text, flags=re.DOTALL)
