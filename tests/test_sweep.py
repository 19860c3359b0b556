"""Sweeps: what is run, and what failing, stopping and running twice do to it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_evaluate import RUN, make_run

from launch import sweep
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime.errors import InputError

ROOT = Path(__file__).parents[1]
# An experiment beside the config, which takes no time, stands in for pre-training.
BASE = """
import os

import ssl_jax.experiments
from ml_collections import ConfigDict
from ssl_jax.runtime.config import parse_arg

ssl_jax.experiments.__path__.insert(0, os.path.join(os.path.dirname(__file__), "experiments"))


def get_config(arg=None):
    preset, options = parse_arg(
        arg, presets=("smoke",), tasks=("spatial", "temporal"), policy=("uniform", "exp3", "slow")
    )
    return ConfigDict(
        {
            "experiment": "pretrain",
            "seed": 0,
            "train": {"steps": {"default": 3, "smoke": 2}[preset] + (options.policy == "slow")},
            "spatial": {"puzzle": {}, "period": 8},
            "tasks": options.tasks,
            "policy": options.policy,
            "mode": "done",
        }
    )
"""
# A run with seed 1 waits for another one with seed 1 to have begun. Modes: "once" fails until there is a file
# `mended`; "wait" goes on until it is told to stop; "deaf" does not stop when it is told.
EXPERIMENT = """
import json
import os
import pathlib
import signal
import sys
import time

from ssl_jax.runtime.config import claim_workdir
from ssl_jax.runtime.errors import InputError


def run(config, workdir):
    workdir = claim_workdir(workdir, config)
    with (workdir / "begun").open("a") as file:
        file.write("x")
    print("begun", config.seed)
    deadline = time.monotonic() + 60
    while config.seed == 1 and len(list(workdir.parent.glob("*seed=1/begun"))) < 2:
        if time.monotonic() > deadline:
            raise InputError("nobody came")
        time.sleep(0.01)
    if config.mode == "once" and config.policy == "exp3" and not pathlib.Path("mended").exists():
        raise InputError("the disk of exp3 is full")
    if config.mode in ("wait", "deaf"):
        stop = lambda *_: ((workdir / "saved").touch(), sys.exit(143))
        signal.signal(signal.SIGTERM, stop if config.mode == "wait" else signal.SIG_IGN)
        (workdir / "pid.partial").write_text(str(os.getpid()))
        (workdir / "pid.partial").rename(workdir / "pid")
        time.sleep(100)
    final = {"val/spatial/accuracy": 0.25 + 0.01 * config.seed + 0.1 * (config.policy == "exp3")}
    results = {"final": final, "wall_seconds": 1.0, "command": "c", "device": "d", "versions": {}}
    lines = [{"step": step, "val/spatial/accuracy": 0.1 * step} for step in (1, 2)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    (workdir / "results.json").write_text(json.dumps(results))
"""
SWEEP = """
from ml_collections import ConfigDict


def get_config():
    return ConfigDict(
        {
            "base": "configs/base.py",
            "preset": "smoke",
            "axes": {"policy": ("uniform", "exp3"), "tasks": ("spatial",)},
            "compare": "policy",
            "baseline": "uniform",
            "seeds": (0,),
            "overrides": (),
        }
    )
"""
UNIFORM, EXP3 = "tasks=spatial-policy=uniform-seed=0", "tasks=spatial-policy=exp3-seed=0"


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A directory like the repository's root, which is also the current one."""
    (tmp_path / "configs" / "experiments").mkdir(parents=True)
    (tmp_path / "configs" / "base.py").write_text(BASE)
    (tmp_path / "configs" / "experiments" / "pretrain.py").write_text(EXPERIMENT)
    (tmp_path / "configs" / "sweep.py").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def start(*given: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.sweep", "--config=configs/sweep.py", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets its background jobs ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(*given: str) -> tuple[int, str, str]:
    process = start(*given)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def mode(name: str) -> str:
    return f"--config.overrides=('mode={name}',)"


def wait_until(process: subprocess.Popen, condition) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def make(**changes) -> sweep.Sweep:
    fields = {
        "base": "configs/base.py",
        "preset": "default",
        "axes": {"policy": ("uniform", "exp3"), "tasks": ("spatial", "temporal")},
        "compare": "policy",
        "baseline": "uniform",
        "seeds": (0, 1),
        "overrides": (),
    }
    return sweep.Sweep(**fields | changes)


# What is run.


def test_plan_is_every_combination_with_every_seed_first_seeds_first(place):
    runs = sweep.plan(make(preset="smoke", overrides=("train.steps=7",)))
    assert [run.name for run in runs] == [
        f"tasks={tasks}-policy={policy}-seed={seed}"
        for seed in (0, 1)
        for tasks in ("spatial", "temporal")
        for policy in ("uniform", "exp3")
    ]
    assert runs[5].values == {"tasks": "spatial", "policy": "exp3"}
    assert runs[5].command(Path("there")) == [
        "-m",
        "ssl_jax.main",
        "--config=configs/base.py:smoke,tasks=spatial,policy=exp3",
        "--config.train.steps=7",
        "--config.seed=1",
        "--workdir=there/tasks=spatial-policy=exp3-seed=1",
    ]
    config = runs[5].config
    assert (config.seed, config.tasks, config.policy, config.train.steps) == (1, "spatial", "exp3", 7)


def test_a_value_may_bring_overrides(place):
    runs = sweep.plan(make(axes={"policy": ("uniform", "exp3", "exp3 spatial.period=16")}, seeds=(0,)))
    assert [run.name for run in runs] == [
        "policy=uniform-seed=0",
        "policy=exp3-seed=0",
        "policy=exp3+spatial.period=16-seed=0",
    ]
    assert [run.config.spatial.period for run in runs] == [8, 8, 16]
    assert {run.config.policy for run in runs[1:]} == {"exp3"}


BAD = {
    "axis": (
        {"axes": {"polcy": ("uniform",)}, "compare": "polcy"},
        "unknown option 'polcy', did you mean 'policy'",
    ),
    "player": (
        {"axes": {"policy": ("uniform", "epx3")}},
        "the run policy=epx3-seed=0 cannot be made: .* 'epx3', did you mean 'exp3'",
    ),
    "task": ({"axes": {"policy": ("uniform",), "tasks": ("spatail",)}}, "did you mean 'spatial'"),
    "compare": ({"compare": "player"}, "unknown axis of config.compare 'player'"),
    "baseline": ({"baseline": "unifrom"}, "baseline of the axis 'policy': 'unifrom', did you mean 'uniform'"),
    "preset": ({"preset": "smok"}, "unknown preset 'smok', did you mean 'smoke'"),
    "base": ({"base": "configs/bass.py"}, "did you mean configs/base.py"),
    "twice": ({"axes": {"policy": ("uniform", "uniform")}}, "config.axes.policy must be one or more values"),
    "no value": ({"axes": {"policy": ("uniform", "")}}, "config.axes.policy must be a tuple of strings"),
    "no tuple": ({"axes": {"policy": "uniform"}}, "config.axes.policy must be a tuple of strings"),
    "no seeds": ({"seeds": ()}, "config.seeds must be one or more values, each given once"),
    "seed twice": ({"seeds": (1, 1)}, "config.seeds must be"),
    "override": ({"overrides": ("train.stepz=1",)}, "config.train.stepz, did you mean config.train.steps"),
    "type of an override": ({"overrides": ("train.steps=many",)}, "config.train.steps must be int"),
    "an axis that an override undoes": (
        {"axes": {"policy": ("uniform", "exp3")}, "overrides": ("policy=exp3",)},
        "policy=uniform-seed=0 and policy=exp3-seed=0 are runs of the same config",
    ),
    "compute": (
        {"axes": {"policy": ("uniform", "slow")}},
        "do not train alike .*steps: 3 -> 4 in config.train",
    ),
    "compute by override": (
        {"axes": {"policy": ("uniform", "exp3 train.steps=30")}},
        "policy=exp3.train.steps=30-seed=0 do not train alike",
    ),
}


def test_only_what_is_compared_must_train_alike(place):
    longer = sweep.plan(
        make(axes={"policy": ("uniform", "exp3"), "tasks": ("spatial", "temporal train.steps=30")})
    )
    assert {run.values["tasks"].split()[0]: run.config.train.steps for run in longer} == {
        "spatial": 3,
        "temporal": 30,
    }


@pytest.mark.parametrize("case", BAD)
def test_bad_sweeps_are_one_sentence(place, case):
    changes, message = BAD[case]
    with pytest.raises(InputError, match=message) as error:
        sweep.plan(make(**changes))
    assert "\n" not in str(error.value)


def test_bad_input_at_the_door_starts_nothing(place):
    for given, message in (
        (["--config.baseline=exp"], "did you mean 'exp3'"),
        (["--config.sedes=(1,)"], "did you mean config.seeds?"),
        (["--parallel=0"], "--parallel=0: 0 is not a positive integer"),
    ):
        status, output, errors = finish(*given)
        assert (status, output, errors.count("\n")) == (2, "", 1)
        assert message in errors
    assert not (place / "runs").exists()


def test_the_committed_sweep_is_data(monkeypatch):
    monkeypatch.chdir(ROOT)
    for arg in (":seeds=1", ":smoke,seeds=2", ":paper,seeds=1"):
        config = config_lib.load(f"configs/ablation.py{arg}")
        made = sweep.Sweep(**config_lib.unpack(config, sweep.Sweep, path=""))
        assert made.baseline in made.axes[made.compare]
        if Path(made.base).exists():
            assert len(sweep.plan(made)) == 3 * len(made.axes["policy"]) * len(made.seeds)


# Running.


def test_dry_run_prints_commands_and_writes_nothing(place):
    status, output, _ = finish("--dry_run", "--workdir=there")
    assert status == 0
    assert output.splitlines() == [
        f"python -m ssl_jax.main --config=configs/base.py:smoke,tasks=spatial,policy={policy} "
        f"--config.seed=0 --workdir=there/tasks=spatial-policy={policy}-seed=0"
        for policy in ("uniform", "exp3")
    ]
    assert not (place / "there").exists()


def test_a_sweep_that_fails_goes_on_and_grows(place):
    # The run that fails is the first, and the other one is made all the same.
    first = "--config.axes.policy=('exp3','uniform')"
    workdir = place / "runs" / "sweep"
    status, output, errors = finish(first, mode("once"))
    assert status == 1
    assert f"{EXP3}: FAILED (exit status 2); the end of runs/sweep/logs/{EXP3}.txt:\n" in errors
    assert "    begun 0\n    error: the disk of exp3 is full\n" in errors
    assert f"1 of 2 runs failed: {EXP3}; the same command tries again" in errors
    assert f"{UNIFORM}: finished after 0:00:0" in output
    table = json.loads((workdir / "table.json").read_text())
    assert [row["seeds"] for row in table["rows"]] == [[], [0]]

    (place / "mended").touch()
    status, output, errors = finish(first, mode("once"))
    assert (status, errors) == (0, "")
    assert "2 runs, 1 of them finished" in output
    assert "Report: runs/sweep/report.html" in output
    assert [len((workdir / name / "begun").read_text()) for name in (UNIFORM, EXP3)] == [1, 2]
    gain = json.loads((workdir / "table.json").read_text())["rows"][0]["difference_to_baseline"]
    assert gain["val/spatial/accuracy"]["mean"] == pytest.approx(0.1)

    # It grows by a seed, whose runs go on at the same time, and repeats nothing.
    status, output, _ = finish(first, mode("once"), "--config.seeds=(0,1)", "--parallel=2")
    assert status == 0
    assert "4 runs, 2 of them finished" in output
    assert [len((workdir / name / "begun").read_text()) for name in (UNIFORM, EXP3)] == [1, 2]
    assert "python -m launch.sweep --config=configs/sweep.py" in (workdir / "table.md").read_text()

    # Another config under the same names is refused, finished or not.
    status, output, errors = finish(first, mode("done"))
    assert (status, output) == (2, "")
    assert (
        f'runs/sweep/{EXP3} holds a run of another config (mode: "once" -> "done"); choose another' in errors
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_passes_that_on_and_says_how_to_go_on(place, number):
    process = start(mode("wait"), "--config.seeds=(0,1)", "--parallel=2", "--workdir=w w")
    workdir = place / "w w"
    wait_until(process, lambda: len(list(workdir.glob("*/pid"))) == 2)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert len(list(workdir.glob("*/saved"))) == 2
    assert len(list(workdir.glob("*/begun"))) == 2  # no third one was started
    assert "FAILED" not in errors
    command = (
        "python -m launch.sweep --config=configs/sweep.py '--config.overrides=('\"'\"'mode=wait'\"'\"',)'"
    )
    assert f"\nStopped with 0 of 4 runs finished; to go on: {command}" in errors
    assert errors.endswith("--parallel=2 '--workdir=w w'\n")


def test_a_second_interrupt_kills_the_runs(place):
    process = start(mode("deaf"))
    path = place / "runs" / "sweep" / UNIFORM / "pid"
    wait_until(process, path.exists)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("Stopping: 1 runs")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


def test_one_sweep_at_a_time_even_when_a_run_is_left_behind(place):
    process = start(mode("deaf"))
    workdir = place / "runs" / "sweep"
    path = workdir / UNIFORM / "pid"
    wait_until(process, path.exists)
    refusal = "is at work in runs/sweep; wait for its end, or choose another --workdir"
    for _ in range(2):
        status, output, errors = finish(mode("deaf"))
        assert (status, output, errors.count("\n")) == (2, "", 1)
        assert refusal in errors
        process.kill()  # the sweep, and not its run
        process.communicate()
    os.kill(int(path.read_text()), signal.SIGKILL)
    wait_until_free(workdir)


def test_sweep_that_is_killed_lets_its_run_save_and_stop(place):
    process = start(mode("wait"))
    workdir = place / "runs" / "sweep"
    wait_until(process, (workdir / UNIFORM / "pid").exists)
    process.kill()
    process.communicate()
    wait_until_free(workdir)
    assert (workdir / UNIFORM / "saved").exists()


def wait_until_free(workdir: Path) -> None:
    deadline = time.monotonic() + 60
    while not is_free(workdir):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_free(workdir: Path) -> bool:
    try:
        with sweep.claim(workdir):
            return True
    except InputError:
        return False


def sweep_of(base: str, **changes) -> str:
    """A sweep's config file, of smoke runs of a config of this repository."""
    facts = {"base": str(ROOT / "configs" / base), "preset": "smoke", "overrides": ()} | changes
    return f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({facts!r})\n"


@pytest.fixture
def one_device(monkeypatch):
    """Four simulated devices only take turns."""
    monkeypatch.setenv("XLA_FLAGS", "")


def table_of(place: Path, config: str) -> tuple[dict, str, str]:
    """Runs a sweep of real runs; returns its table, and that as Markdown and the page."""
    (place / "configs" / "sweep.py").write_text(config)
    # Not by `finish`, which forks: this process has the threads of JAX by now.
    command = [
        sys.executable,
        "-m",
        "launch.sweep",
        "--config=configs/sweep.py",
        "--parallel=2",
        "--workdir=w",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    table, markdown, page = (place / "w" / name for name in ("table.json", "table.md", "report.html"))
    return json.loads(table.read_text()), markdown.read_text(), page.read_text()


def test_sweep_of_dueling_dqn_shows_scores_differences_and_protocol(place, one_device):
    table, markdown, page = table_of(
        place,
        sweep_of(
            "dueling_dqn.py",
            axes={"game": ("Pong",), "aux": ("none", "none network.dueling=False")},
            compare="aux",
            baseline="none",
            seeds=(0, 1),
            overrides=(
                "train.agent_steps=80",
                "train.evaluate_every=40",
                "train.target_period=2",
                "protocol.frame_size=(36,36)",
                "protocol.max_episode_frames=160",
                "protocol.evaluation_episodes=2",
                "evaluation.video_frames=0",
            ),
        ),
    )
    scores = {}
    for aux in ("none", "none+network.dueling=False"):
        for seed in (0, 1):
            path = place / "w" / f"game=Pong-aux={aux}-seed={seed}" / "results.json"
            agents = json.loads(path.read_text())["scores"]["agents"]
            scores[aux, seed] = {
                name: np.mean(agents[name]["returns"]) for name in ("last", "best", "random")
            }
    baseline, plain = table["rows"]
    for name in ("last", "best", "random"):
        expected = {str(seed): scores["none+network.dueling=False", seed][name] for seed in (0, 1)}
        assert plain["measures"][f"score/{name}"]["values"] == expected
        assert plain["measures"][f"score/{name}"]["mean"] == np.mean(list(expected.values()))
    pairs = [
        scores["none+network.dueling=False", seed]["last"] - scores["none", seed]["last"] for seed in (0, 1)
    ]
    found = plain["difference_to_baseline"]["score/last"]
    assert list(found["values"].values()) == pairs
    # Half the width is 12.7062, the quantile of t with one degree of freedom, times the standard error.
    assert found["high"] - found["mean"] == pytest.approx(12.7062 * abs(pairs[1] - pairs[0]) / 2, abs=1e-3)
    assert "score/random" not in plain["difference_to_baseline"]
    for row in table["rows"]:
        assert row["protocol"]["frames_trained"] == 4 * 80
        assert (row["protocol"]["game"], row["protocol"]["evaluation_episodes"]) == ("Pong", 2)
    assert baseline["values"] == {"game": "Pong", "aux": "none"}
    for text in (markdown, page):
        assert "score, last agent" in text.replace("<br>", " ")
        assert "Protocol of all scores" in text
        assert "80 agent steps, batches of 8" in text
        assert "validation puzzles" not in text
        assert "WARNING" not in text
    assert "frames_trained 320" in markdown


def test_sweep_of_evaluations_shows_their_numbers(place, atari_tiny_dir, one_device):
    make_run(place / "run", RUN | {"data.data_dir": atari_tiny_dir})
    off = ("linear_probe.enabled=False", "state_probe.enabled=False", "finetune.enabled=False")
    table, markdown, page = table_of(
        place,
        sweep_of(
            "evaluate.py",
            axes={"which": ("best", "random")},
            compare="which",
            baseline="random",
            seeds=(0,),
            overrides=(f"checkpoint={place / 'run'}", "baseline=False", *off),
        ),
    )
    (best, random) = table["rows"]
    results = json.loads((place / "w" / "which=best-seed=0" / "results.json").read_text())
    name = "retrieval/frame/top1"
    assert best["measures"][name]["mean"] == results["final"][name]
    gain = best["difference_to_baseline"][name]["mean"]
    assert gain == best["measures"][name]["mean"] - random["measures"][name]["mean"]
    for text in (markdown, page):
        assert "retrieval frame top-1" in text.replace("<br>", " ")
        assert "validation puzzles" not in text
