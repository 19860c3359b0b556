import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from ssl_jax.benchmark import product_flops
from ssl_jax.networks.layers import conv

ROOT = Path(__file__).parents[1]


def benchmark(tmp_path, *flags: str) -> subprocess.CompletedProcess:
    # On one device: four simulated ones only take turns.
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "TFDS_DATA_DIR": str(tmp_path)}
    config = f"--config={ROOT / 'configs' / 'jigsaw_rl.py'}:smoke"
    command = [sys.executable, "-m", "ssl_jax.benchmark", config, *flags]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)


def test_every_part_is_measured(atari_tiny_dir, tmp_path):
    small = ["--config.jigsaw.window=(54,54)", "--config.jigsaw.tile=(16,16)"]
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
        "data/rate",
        "data/rate_with_step",
        "data/wait_share",
        "selection/look",
        "selection/share_of_training",
        "permutations/1000 over 10, all",
    }
    for name, row in rows.items():
        assert math.isfinite(row["value"]), name
        assert row["value"] >= 0, name
        assert f"{name} " in done.stdout
        assert f" {row['unit']}" in done.stdout
    assert rows["data/wait_share"]["value"] <= 100
    assert result["config"]["permutations"]["num"] == 20
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


def test_an_unknown_part_names_the_closest(tmp_path):
    done = benchmark(tmp_path, "--only=setp")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown part 'setp', did you mean 'step'?" in done.stderr
