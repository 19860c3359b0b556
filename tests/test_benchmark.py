import json
import math
import os
import subprocess
import sys
from pathlib import Path

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


def test_an_unknown_part_names_the_closest(tmp_path):
    done = benchmark(tmp_path, "--only=setp")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown part 'setp', did you mean 'step'?" in done.stderr
