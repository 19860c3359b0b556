import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver

from ssl_jax.benchmark import DQNBench, main, product_flops
from ssl_jax.experiments import dueling_dqn
from ssl_jax.networks import layers
from ssl_jax.networks.layers import conv
from ssl_jax.runtime import config as config_lib

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("little_optimization")


def benchmark(tmp_path, *flags: str, config: str = "jigsaw_rl") -> subprocess.CompletedProcess:
    # On one device: four simulated ones only take turns. Nobody asks for good numbers, but for all of them.
    environment = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(tmp_path)}
    file = ROOT / "configs" / f"{config}.py"
    command = [sys.executable, "-m", "ssl_jax.benchmark", f"--config={file}:smoke", *flags]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)


def test_every_part_is_measured(atari_tiny_dir, tmp_path):
    small = ["--config.spatial.puzzle.window=(54,54)", "--config.spatial.puzzle.tile=(16,16)"]
    file = tmp_path / "numbers.json"
    done = benchmark(
        tmp_path, "--seconds=0.1", f"--json={file}", f"--config.data.data_dir={atari_tiny_dir}", *small
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    rows = result["rows"]
    assert rows.keys() >= {
        "machine/float32_matrix_rate",
        "step/compile",
        "step/time",
        "step/rate",
        "data/image/read",
        "data/image/raw_decoder",
        "data/image/decode",
        "data/image/share_of_raw_decoder",
        "data/image/rate",
        "data/image/rate_per_core",
        "data/image/to_device",
        "overlap/rate",
        "overlap/wait_share",
        "selection/spatial/look",
        "selection/share_of_training",
        "permutations/1000 over 10, all",
    }
    for name, row in rows.items():
        assert math.isfinite(row["value"]), name
        assert row["value"] >= 0, name
        assert f"{name} " in done.stdout
        assert f" {row['unit']}" in done.stdout
    assert rows["overlap/wait_share"]["value"] <= 100
    assert result["config"]["spatial"]["permutations"]["num"] == 20
    assert result["versions"].keys() >= {"python", "jax"}
    assert result["device"] in done.stdout.replace("\n", " ")


def test_products_are_counted_in_convolutions_their_gradients_and_loops():
    images, kernel = jnp.ones((5, 8, 8, 3)), jnp.ones((2, 2, 3, 7))

    def loss(images, kernel):
        return conv(images, kernel, stride=2, form="plain").sum() ** 2

    count = lambda function, *inputs: product_flops(jax.make_jaxpr(function)(*inputs).jaxpr)
    forward = 2 * (5 * 4 * 4 * 7) * (2 * 2 * 3)
    assert count(loss, images, kernel) == forward
    assert count(jax.grad(loss, argnums=(0, 1)), images, kernel) == 3 * forward
    products = lambda matrices, vector: jax.lax.map(lambda matrix: matrix @ vector, matrices)
    assert count(jax.jit(products), jnp.ones((6, 2, 3)), jnp.ones((3,))) == 6 * 2 * 2 * 3


def test_every_part_of_dueling_dqn_is_measured(tmp_path):
    file = tmp_path / "numbers.json"
    # Two environments for an update each 4 agent steps: every other vector step has no update.
    small = ["--config.protocol.frame_size=(36,36)", "--config.environments.num=2"]
    done = benchmark(tmp_path, "--seconds=0.05", f"--json={file}", *small, config="dueling_dqn")
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    assert {name: row["unit"] for name, row in rows.items()} == {
        "machine/float32_matrix_rate": "GFLOP/s",
        "environment/rate": "agent steps/s",
        "acting/time": "s",
        "acting/rate": "agent steps/s",
        "sampling/time": "s",
        "learning/compile": "s",
        "learning/time": "s",
        "learning/rate": "updates/s",
        "learning/flops_per_update": "GFLOP",
        "learning/share_of_matrix_rate": "%",
        "loop/rate": "agent steps/s",
        "loop/updates": "updates/s",
        "loop/share_of_environment_rate": "%",
        "loop/acting_wait_share": "%",
        "loop/learner_call_share": "%",
        "loop/environment_wait_share": "%",
    }
    value = {name: row["value"] for name, row in rows.items()}
    for name in value:
        assert math.isfinite(value[name]), name
        assert value[name] > 0, name
        assert f"{name} " in done.stdout
    assert value["acting/rate"] == pytest.approx(2 / value["acting/time"])
    assert value["learning/rate"] == pytest.approx(1 / value["learning/time"])
    # An update in 4 agent steps; the loop may end between two updates.
    assert 0.249 <= value["loop/updates"] / value["loop/rate"] <= 0.301
    assert sum(value[name] for name in value if name.startswith("loop/") and name.endswith("share")) <= 100


def test_training_and_inference_of_a_classifier_are_measured(tmp_path):
    file = tmp_path / "numbers.json"
    done = benchmark(tmp_path, "--seconds=0.05", f"--json={file}", config="deepfake")
    assert done.returncode == 0, done.stderr
    rows = json.loads(file.read_text())["rows"]
    parts = ("compile", "time", "rate", "flops_per_image", "share_of_matrix_rate")
    assert rows.keys() == {"machine/float32_matrix_rate"} | {
        f"{name}/{part}" for name in ("training", "inference") for part in parts
    }
    value = {name: row["value"] for name, row in rows.items()}
    assert all(math.isfinite(number) and number > 0 for number in value.values())
    # Batches of 8. Backwards takes about twice as much as forwards.
    assert value["training/rate"] == pytest.approx(8 / value["training/time"])
    assert 2 < value["training/flops_per_image"] / value["inference/flops_per_image"] < 5


def dqn_bench(**overrides) -> DQNBench:
    """Of the smoke preset, whose batches are of 8 transitions."""
    config = config_lib.load(f"{ROOT / 'configs' / 'dueling_dqn.py'}:smoke", overrides)
    return DQNBench(dueling_dqn.setup_from_config(config), seconds=0.05)


def test_products_of_an_update_of_the_nature_network_and_of_its_task(monkeypatch):
    monkeypatch.setattr(layers, "fast_on_cpu", lambda form="auto": False)  # no Winograd: it multiplies less
    # Multiplications of one stack, forwards: outputs times inputs of each.
    conv1 = 20 * 20 * 32 * (8 * 8 * 4)
    conv2 = 9 * 9 * 64 * (4 * 4 * 32)
    conv3 = 7 * 7 * 64 * (3 * 3 * 64)
    trunk = conv1 + conv2 + conv3
    head = lambda outputs: 3136 * 32 + 32 * outputs
    heads = head(1) + head(6)  # value, and advantages of Pong's 6 actions
    # Backwards: a gradient of a kernel takes as many as the layer, and so does that of a head's input. Of a
    # convolution's input each pixel takes the whole kernel, those beyond the edge of the map included, and
    # with a stride of 2 only every fourth pixel of it. Nobody asks for the gradient of the stack.
    back = (20 * 20 * 32 * (4 * 4 * 64) // 4) + (9 * 9 * 64 * (3 * 3 * 64))
    # Forwards on s_tm1, and on s_t with both networks; then the two gradients.
    products = 3 * (trunk + heads) + (trunk + heads) + (heads + back)
    # The task, of 4 answers: forwards and backwards once more.
    products += (trunk + head(4)) + (trunk + head(4)) + (head(4) + back)
    # The cosine of both gradients: a product of two numbers for each parameter of the trunk.
    cosine = (8 * 8 * 4 + 1) * 32 + (4 * 4 * 32 + 1) * 64 + (3 * 3 * 64 + 1) * 64
    # Two agents with two updates each in a vector step, in a loop: counted for one update of one of them.
    overrides = {"num_seeds": 2, "environments.num": 8, "auxiliary.name": "rotation"}
    overrides |= {"network.hidden": 32, "protocol.frame_size": (84, 84)}
    assert dqn_bench(**overrides).update_flops == 2 * 8 * products + 2 * cosine


def test_a_filled_memory_keeps_its_size_and_can_be_drawn_from(monkeypatch):
    monkeypatch.setattr("ssl_jax.benchmark.MOST_REMEMBERED", 100)
    bench = dqn_bench(**{"replay.n_step": 1, "environments.num": 4, "protocol.frame_size": (36, 36)})
    assert bench.setup.replay.capacity == 100
    memory = jax.tree.map(np.array, bench.state.replay)  # a copy: a draw consumes the memory
    assert len(memory.frame) == 25
    assert not memory.first[1:].any()
    # All rows begin a transition but those without the 3 frames before or the row after them.
    assert memory.block_weight.sum() == 4 * (25 - 3 - 1)
    batches = bench.draw()
    assert batches.s_tm1.shape == (1, 8, 36, 36, 4)
    assert np.isin(batches.r_t, memory.reward).all()
    assert bench.state.replay.position == 1


@pytest.mark.parametrize(
    ("config", "flag", "sentence"),
    [
        ("jigsaw_rl", "--only=setp", "unknown part 'setp', did you mean 'step'?"),
        (
            "dueling_dqn",
            "--only=step",
            "unknown part 'step'; known: machine, environment, acting, sampling, learning, loop",
        ),
        ("dueling_dqn", "--config.experiment=dqn", "unknown experiment 'dqn'"),
    ],
)
def test_what_is_unknown_names_the_known(monkeypatch, capsys, config, flag, sentence):
    file = ROOT / "configs" / f"{config}.py"
    monkeypatch.setattr(sys, "argv", ["benchmark", f"--config={file}:smoke", flag])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        config_lib.run_app(main)
    output, errors = capsys.readouterr()
    assert (ended.value.code, output) == (2, "")
    assert sentence in errors
