"""Training with parameters and optimizer state sharded over the devices."""

import jax
import numpy as np
import pytest
import runs

from ssl_jax.experiments import pretrain
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime.checkpoints import restore_raw

pytestmark = pytest.mark.slow
CONFIG = f"{runs.ROOT / 'configs' / 'jigsaw_rl.py'}:smoke"
SMALL = runs.SMALL_PUZZLES | {
    "probe.enabled": False,
    "train.steps": 4,
    "train.validate_every": 2,
    "train.log_every": 1,
}


def test_a_sharded_run_is_the_replicated_run(tmp_path, atari_tiny_dir, monkeypatch, little_optimization):
    monkeypatch.setenv("TFDS_DATA_DIR", atari_tiny_dir)

    def run(name, **overrides):
        given = {key: str(value) for key, value in (SMALL | overrides).items()}
        config = config_lib.load(CONFIG, given)
        pretrain.run(config, tmp_path / name)
        return pretrain.setup_from_config(config)

    run("whole")
    setup = run("parts", **{"mesh.fsdp": True})
    state = jax.eval_shape(lambda: pretrain.create_state(setup, jax.random.PRNGKey(0)))
    shardings = mesh_lib.state_sharding(state, mesh_lib.make(), setup.layout)
    assert any(not sharding.is_fully_replicated for sharding in jax.tree.leaves(shardings.params))
    whole, parts = (runs.numbers(tmp_path / name) for name in ("whole", "parts"))
    for a, b in zip(whole, parts, strict=True):
        assert [*a] == [*b]
        np.testing.assert_allclose([*b.values()], [*a.values()], rtol=1e-4, atol=1e-5)
    whole, parts = (restore_raw(tmp_path / name / "checkpoints")["params"] for name in ("whole", "parts"))
    # 4 steps of AdamW at up to 1e-3, which blows up rounding where a gradient is near zero.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), parts, whole)
