"""Paths of a user: every flag, key and variable that is one is read alike, and homes that are not there."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT
from runs import SMALL_PUZZLES

from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import paths
from ssl_jax.runtime.errors import InputError

# The flags of each program whose value is a string, by whether it is a path. `config` is read by itself.
PATH_FLAGS = {
    "ssl_jax.main": {"workdir"},
    "ssl_jax.export": {"run", "weights"},
    "ssl_jax.benchmark": {"json"},
    "ssl_jax.report.comparison": {"runs", "output", "sweep"},
    "launch.sweep": {"workdir"},
    "launch.slurm": {"logs"},
    "launch.local": set(),
    "launch.kubernetes.__main__": set(),
}
OTHER_FLAGS = {"coordinator", "only", "compare", "baseline", "name", "partition", "account", "image", "claim"}
# Keys of configs whose value is a string, by whether it is a path.
PATH_KEYS = {
    "pretrain": {
        "data.path",
        "data.data_dir",
        "data.annotations",
        "spatial.permutations.path",
        "temporal.permutations.path",
    },
    "deepfake": {
        "data.path",
        "data.data_dir",
        "data.cache_dir",
        "init.path",
        "init.weights",
        "init.runs",
    },
    "dueling_dqn": {"network.start_from"},
    "evaluate": {"checkpoint", "data.path", "data.data_dir", "data.annotations"},
}
OTHER_KEYS = {
    *("crop", "draws", "experiment", "from_layer", "game", "keys", "label", "layer", "method", "name"),
    *("normalise", "optimizer", "place", "precision", "queries", "schedule", "selection", "solver", "source"),
    *("split", "stem", "test", "train", "validation", "what", "which"),
}
CONFIGS = {
    "pretrain": "configs/spatiotemporal_rl.py:smoke,tasks=both",
    "deepfake": "configs/deepfake.py:smoke",
    "dueling_dqn": "configs/dueling_dqn.py:smoke",
    "evaluate": "configs/evaluate.py",
}
KEYS = [(experiment, key) for experiment, keys in PATH_KEYS.items() for key in sorted(keys)]
NO_NAME = 54321  # no machine has a name for a user or a group of this number


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# --- One function


def test_home_of_the_user_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.read("~/runs/a", "--workdir") == f"{tmp_path}/runs/a"
    assert paths.read("~root", "--workdir") == os.path.expanduser("~root") != "~root"
    for plain in ("runs/~", "a~", "/x/~/y", "c:/x", "name:part", "-"):
        assert paths.read(plain, "--workdir") == plain
    monkeypatch.setenv("PLACE", "~/b")
    assert paths.variable("PLACE") == f"{tmp_path}/b"
    monkeypatch.setenv("PLACE", "")
    assert paths.variable("PLACE") is None


@pytest.mark.parametrize("path", ["gs://b/x", "s3://b", "file:///x", "hdfs://a:1/x", "~no_such_user/x"])
def test_path_that_means_nothing_here_is_refused_by_name(path):
    with pytest.raises(InputError, match=f"^--workdir={path} "):
        paths.read(path, "--workdir")


def test_cache_is_that_of_the_base_directory_specification(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert paths.cache() == Path("/elsewhere/ssl_jax")
    for ignored in ("", "relative", "~/x"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert paths.cache() == tmp_path / ".cache" / "ssl_jax"


# --- Every flag


def flags_of(program: str) -> dict[str, list[str]]:
    """The flags that a program defines itself: those that are paths, and what else is a string."""
    code = f"""if True:
        import importlib, json
        from absl import flags
        module = importlib.import_module({program!r})
        if hasattr(module, "define_flags"):
            module.define_flags()
        kinds = {{"paths": [], "strings": []}}
        for flag in flags.FLAGS.flags_by_module_dict()[{program!r}]:
            if type(flag.parser).__module__ == "ssl_jax.runtime.paths":
                kinds["paths"].append(flag.name)
            elif "string" in flag.flag_type():
                kinds["strings"].append(flag.name)
        print(json.dumps(kinds))
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("program", PATH_FLAGS)
def test_flag_that_is_a_path_is_read_as_one(program):
    kinds = flags_of(program)
    assert set(kinds["paths"]) == PATH_FLAGS[program]
    assert set(kinds["strings"]) <= OTHER_FLAGS  # a new flag is a path or not: say so above


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("ssl_jax.main", ["--config=configs/jigsaw_rl.py", "--workdir=gs://bucket/a"]),
        ("ssl_jax.main", ["--config=gs://bucket/a.py"]),
        ("ssl_jax.main", ["--config", "~no_such_user/a.py"]),
        ("ssl_jax.main", ["--config=configs/evaluate.py", "--config.checkpoint=gs://bucket/a"]),
        ("ssl_jax.report.comparison", ["--runs=a,gs://bucket/a"]),
        ("launch.sweep", ["--config=configs/ablation.py", "--workdir=~no_such_user/a"]),
        ("launch.local", ["--", "--config=configs/jigsaw_rl.py", "--workdir=gs://bucket/a"]),
    ],
)
def test_program_given_no_path_of_a_file_system_says_so_and_writes_nothing(module, arguments, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert "gs://bucket/a" in done.stderr or "~no_such_user/a" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["configs"]


# --- Every key


@pytest.mark.parametrize("file", config_lib.list_configs(ROOT / "configs"))
def test_key_of_a_config_that_is_a_string_is_known_to_be_a_path_or_not(file):
    config = config_lib.load(file)
    if "axes" in config:  # a sweep: its runs read their own keys
        return
    strings = {
        key
        for key, value in leaves(config.to_dict())
        if isinstance(value, str) or (value is None and _type_at(config, key) is str)
    }
    known = PATH_KEYS[config.experiment]
    assert {key for key in strings - known if key.split(".")[-1] not in OTHER_KEYS} == set()


def _type_at(config, key: str) -> type:
    *above, name = key.split(".")
    for part in above:
        config = config[part]
    return config.get_type(name)


@pytest.mark.parametrize("given", ["gs://bucket/a", "~no_such_user/a"])
@pytest.mark.parametrize(("experiment", "key"), KEYS)
def test_key_that_is_a_path_is_read_as_one(experiment, key, given):
    module = importlib.import_module(f"ssl_jax.experiments.{experiment}")
    config = config_lib.load(str(ROOT / CONFIGS[experiment]), {key: given})
    with pytest.raises(InputError, match=f"^config.{key}={given} "):
        module.setup_from_config(config)


def test_file_that_a_sweep_needs_is_read_as_a_path(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HOME", str(tmp_path))
    sweep = importlib.import_module("launch.sweep")
    config = config_lib.load("configs/deepfake_table.py", {"needs.imagenet": "~/{model}.safetensors"})
    runs = sweep.plan(sweep.Sweep(**config_lib.unpack(config, sweep.Sweep, path="")))
    assert f"{tmp_path}/alexnet.safetensors" in {run.needs for run in runs}


def test_home_in_flags_and_keys_makes_no_folder_called_tilde(tmp_path):
    home, place = tmp_path / "home", tmp_path / "place"
    place.mkdir()
    shutil.copytree(ROOT / "configs", home / "configs")
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "ssl_jax.main",
                "--config=~/configs/jigsaw_rl.py:smoke",
                "--workdir=~/run",
            ),
            *("--config.data.name=mnist", "--config.data.data_dir=~/sets"),
        ],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"mnist is not prepared in {home}/sets" in done.stderr
    assert (home / "run" / "config.json").exists()
    assert list(place.iterdir()) == []


# --- Users without a name or a home


def as_nobody(place: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs python under a user and a group that are bare numbers, without HOME."""
    nobody = ["unshare", "--user", f"--map-user={NO_NAME}", f"--map-group={NO_NAME}", "--"]
    if shutil.which("unshare") is None or subprocess.run([*nobody, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare, and namespaces of users")
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": "", "XLA_FLAGS": ""} | variables
    command = [*nobody, sys.executable, *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


def test_user_without_a_home_is_told_where_to_put_data_sets(tmp_path):
    done = as_nobody(tmp_path, "-m", "ssl_jax.main", f"--config={ROOT}/configs/jigsaw_rl.py:smoke")
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith(
        f"error: config.data: the user that runs this (number {NO_NAME}) has no home directory"
    )
    assert "TFDS_DATA_DIR" in error
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "~").exists()


def test_user_without_a_name_renders_the_data_set_and_trains(tmp_path):
    config = f"--config={ROOT}/configs/jigsaw_rl.py:smoke,policy=uniform"
    overrides = SMALL_PUZZLES | {
        "train.steps": 2,
        "train.warmup_steps": 1,
        "train.validate_every": 2,
        "probe.enabled": False,
    }
    done = as_nobody(
        tmp_path,
        *("-m", "ssl_jax.main", config, *(f"--config.{key}={value}" for key, value in overrides.items())),
        TFDS_DATA_DIR=str(tmp_path / "tfds"),
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "jigsaw_rl-smoke-policy=uniform" / "report.html").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "tfds"]


def test_user_without_a_home_has_no_cache(tmp_path):
    code = """if True:
        from ssl_jax.runtime import mesh, paths
        print(paths.home(), paths.cache(), mesh.setup_compilation_cache())
    """
    done = as_nobody(tmp_path, "-c", code)
    assert done.stdout.split() == ["None", "None", "None"], done.stderr
    assert list(tmp_path.iterdir()) == []
