"""A run by two processes is the run by one with as many devices, also when it was stopped between."""

import functools
import json
import signal

import jax
import numpy as np
import processes
import pytest
import runs

from ssl_jax.runtime import checkpoints
from ssl_jax.runtime import metrics as metrics_lib

pytestmark = pytest.mark.slow
STEPS, BATCH = 6, 8
SMALL = runs.SMALL_PUZZLES | {
    "probe.enabled": False,
    "spatial.validation.examples": 13,  # so that the processes have unlike shares
    "train.steps": STEPS,
    "train.batch_size": BATCH,
    "train.log_every": 1,
    "train.validate_every": 3,
    "train.checkpoint_every": 2,
    "train.keep_checkpoints": 9,
}


def command(workdir) -> list[str]:
    flags = [f"--config.{key}={value}" for key, value in SMALL.items()]
    config = f"--config={runs.ROOT / 'configs' / 'jigsaw_rl.py'}:smoke"
    return ["-m", "ssl_jax.main", config, f"--workdir={workdir}", *flags]


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory, atari_tiny_dir):
    """Of a run by one process, and of one by two that were stopped."""
    place = tmp_path_factory.mktemp("runs")
    variables = {"TFDS_DATA_DIR": atari_tiny_dir, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    two_devices = variables | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes.outputs(processes.start(command(place / "one"), 1, **two_devices))

    stopped = processes.start(command(place / "two"), **variables)
    while not (place / "two" / "config.json").exists():  # from then on they stop together
        assert stopped[0].poll() is None, stopped[0].communicate()
    stopped[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=240) for process in stopped]
    assert [process.returncode for process in stopped] == [128 + signal.SIGTERM] * 2, said
    saved = runs.saved_steps(place / "two")
    assert len(saved) == 1
    assert saved[0] < STEPS
    first, second = processes.outputs(processes.start(command(place / "two"), **variables))
    assert "Report:" in first
    assert "Report:" not in second
    return place / "one", place / "two"


def test_losses_and_evaluations_are_the_same(workdirs):
    one, two = (runs.numbers(workdir) for workdir in workdirs)
    assert [(line["step"], sorted(line)) for line in two] == [(line["step"], sorted(line)) for line in one]
    assert sum("train/loss" in line for line in two) == STEPS
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose([b[name] for name in a], [*a.values()], rtol=1e-4, atol=1e-5)
        for name in a:
            if name.startswith("val/"):
                assert b[name] == pytest.approx(a[name], abs=1e-6)
    one, two = (metrics_lib.read(workdir / "selection.jsonl") for workdir in workdirs)
    assert [line["step"] for line in two] == [line["step"] for line in one]


def test_each_example_is_read_by_one_process_and_all_are_counted(workdirs):
    for workdir in workdirs:
        for step in runs.saved_steps(workdir):
            manifest = checkpoints._read_manifest(workdir / "checkpoints" / str(step))
            assert manifest["data_state"]["batches"]["image"]["read"] == step * BATCH


def test_parameters_and_results_are_the_same(workdirs):
    one, two = (checkpoints.restore_raw(workdir / "checkpoints")["params"] for workdir in workdirs)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), two, one)
    one, two = (json.loads((workdir / "results.json").read_text()) for workdir in workdirs)
    assert two["final"]["val/accuracy"] == pytest.approx(one["final"]["val/accuracy"], abs=1e-6)
    assert two["bad_images"] == one["bad_images"] == {}
    assert (workdirs[1] / "report.html").exists()
