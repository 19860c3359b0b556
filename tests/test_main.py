"""The front door: whatever a user mistypes ends in one line and status 2."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from ssl_jax.runtime import mesh as mesh_lib

# The experiment lives beside the config, for these tests are of the door and not of a room.
CONFIG = """
import os

import ssl_jax.experiments
from ml_collections import ConfigDict
from ssl_jax.runtime.config import parse_arg

ssl_jax.experiments.__path__.append(os.path.join(os.path.dirname(__file__), "experiments"))
ssl_jax.experiments.EXPERIMENTS += ("probe",)


def get_config(arg=None):
    preset, options = parse_arg(arg, presets=("smoke",), policy=("uniform", "gradient"))
    return ConfigDict({"experiment": "probe", "train": {"steps": 3}, "mode": "done"})
"""
SWEEP = """
from ml_collections import ConfigDict


def get_config(arg=None):
    return ConfigDict({"base": "configs/shuffle.py", "axes": {"policy": ("uniform", "gradient")}})
"""
EXPERIMENT = """
import logging
import os
import time

import absl.logging

from ssl_jax.runtime.config import claim_workdir
from ssl_jax.runtime.errors import InputError


def run(config, workdir):
    claim_workdir(workdir, config)
    absl.logging.info("noise that nobody asked for")
    print("steps", config.train.steps, "in", workdir, flush=True)
    if config.mode == "bad":
        raise InputError("the permutation file is\\nno permutation")
    if config.mode == "full":
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    if config.mode == "bug":
        raise ValueError("a bug")
    if config.mode == "wait":
        time.sleep(60)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("place")
    (place / "configs" / "experiments").mkdir(parents=True)
    (place / "configs" / "shuffle.py").write_text(CONFIG)
    (place / "sweeps.py").write_text(SWEEP)
    (place / "configs" / "experiments" / "probe.py").write_text(EXPERIMENT)
    return place


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "ssl_jax.main", *flags]


def environment() -> dict[str, str]:
    # The package may be installed or not.
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}


def run(place: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*flags), cwd=place, env=environment(), capture_output=True, text=True)


BAD_INPUT = {
    "no config": ([], "give an experiment by --config=FILE: configs/shuffle.py; --help"),
    "missing file": (["--config=configs/shufle.py"], "did you mean configs/shuffle.py?"),
    "preset": (["--config=configs/shuffle.py:smok"], "unknown preset 'smok', did you mean"),
    "option": (["--config=configs/shuffle.py:polcy=uniform"], "did you mean 'policy'?"),
    "key": (
        ["--config=configs/shuffle.py", "--config.trian.steps=3"],
        "unknown key config.trian.steps, did you mean config.train.steps?",
    ),
    "type": (
        ["--config", "configs/shuffle.py", "--config.train.steps", "many"],
        "config.train.steps must be int",
    ),
    "flag": (["--config=configs/shuffle.py", "--wrokdir=x"], "Did you mean: workdir"),
    "argument": (["--config=configs/shuffle.py", "smoke"], "unexpected argument 'smoke'"),
    "experiment": (
        ["--config=configs/shuffle.py", "--config.experiment=prob"],
        "unknown experiment 'prob', did you mean 'probe'?",
    ),
    "sweep": (["--config=sweeps.py"], "run it by python -m launch.sweep --config=sweeps.py"),
    "workdir": (
        ["--config=configs/shuffle.py", "--workdir=configs/shuffle.py"],
        "work directory configs/shuffle.py cannot be used: File exists",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_status_2(place, case):
    flags, sentence = BAD_INPUT[case]
    done = run(place, *flags)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("JAX_PLATFORMS", "cuda", '(installed: cpu); install them by pip install -e ".[cuda]"'),
        ("JAX_PLATFORMS", "gpu", 'pip install -e ".[cuda]"'),
        ("JAX_PLATFORMS", "tpu", 'pip install -e ".[tpu]"'),
        ("JAX_PLATFORMS", "cpx", "'cpx' is no platform that is known here, did you mean 'cpu'?"),
        ("JAX_NUM_CPU_DEVICES", "many", 'Invalid value "many" for JAX flag jax_num_cpu_devices'),
        ("JAX_NUM_CPU_DEVICES", "0", "JAX_NUM_CPU_DEVICES=0 must be at least 1"),
    ],
)
def test_devices_that_are_not_there_are_one_line_and_nothing_is_written(place, variable, value, sentence):
    if mesh_lib._installed_platforms() != ["cpu"]:
        pytest.skip("JAX is installed here for more than the CPU")
    variables = environment() | {"XLA_FLAGS": "", variable: value}
    done = subprocess.run(
        command("--config=configs/shuffle.py"), cwd=place, env=variables, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert sentence in done.stderr
    assert not (place / "runs").exists()


def test_extras_that_install_devices_exist():
    text = (Path(__file__).parents[1] / "setup.py").read_text()
    assert all(f'"{extra}": ["jax[' in text for extra in mesh_lib.EXTRAS)


def test_hidden_gpus_are_named(monkeypatch):
    monkeypatch.setattr(mesh_lib, "_installed_platforms", lambda: ["cpu", "cuda"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    sentence = mesh_lib._why_no_devices("cuda", "Unable to initialize backend 'cuda': no device")
    assert "CUDA_VISIBLE_DEVICES= hides all GPUs" in sentence


def test_a_run_and_its_refusals(place, tmp_path):
    shutil.copytree(place, tmp_path / "copy")
    place = tmp_path / "copy"
    config = "--config=configs/shuffle.py:smoke"
    done = run(place, config, "--config.train.steps=7")
    assert (done.returncode, done.stdout, done.stderr) == (0, "steps 7 in runs/shuffle-smoke\n", "")
    assert [path.name for path in (place / "runs" / "shuffle-smoke").iterdir()] == ["config.json"]

    (place / "runs" / "shuffle-smoke" / "metrics.jsonl").touch()
    done = run(place, config)
    assert done.returncode == 2
    assert "belongs to another config: train.steps: 7 -> 3; choose another" in done.stderr

    elsewhere = run(place, config, "--workdir=elsewhere", "--config.mode=bad")
    assert elsewhere.returncode == 2
    assert elsewhere.stderr == "error: the permutation file is no permutation\n"

    full = run(place, config, "--workdir=full", "--config.mode=full")
    assert full.returncode == 2
    assert full.stderr.startswith("error: no disk space is left")
    assert full.stderr.count("\n") == 1

    # What the user cannot mend keeps its traceback.
    bug = run(place, config, "--workdir=bug", "--config.mode=bug")
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr


def test_interrupt_says_how_to_go_on(place, tmp_path):
    flags = ("--config=configs/shuffle.py", "--config.mode=wait", f"--workdir={tmp_path / 'a b'}")
    with subprocess.Popen(
        command(*flags),
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell lets its background jobs ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout.readline().startswith("steps 3")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert errors.strip() == (
        "interrupted; to go on from the last checkpoint: python -m ssl_jax.main "
        f"--config=configs/shuffle.py --config.mode=wait '--workdir={tmp_path / 'a b'}'"
    )


def test_help_is_help(place):
    done = run(place, "--help")
    assert done.returncode == 0
    assert "python -m ssl_jax.main --config=configs/jigsaw_rl.py" in done.stdout
    assert "--workdir" in done.stdout
    assert done.stderr == ""


def test_door_opens_without_jax(place):
    code = """
        import sys
        import ssl_jax.main
        sys.exit("jax" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment())
    assert done.returncode == 0
