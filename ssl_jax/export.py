"""Writes the encoder of a run to a file that PyTorch, or numpy, loads.

Of a classification that is the best one, which its scores are of; of a pre-training the newest.

python -m ssl_jax.export --run=runs/jigsaw_rl --weights=encoder.safetensors
python -m ssl_jax.export --run=runs/jigsaw_rl --weights=encoder.npz --step=1000

See `networks.weights.save` for the names and the layout of the tensors.
"""

import json
from pathlib import Path

from absl import flags

from ssl_jax.networks import ENCODERS, weights
from ssl_jax.runtime import checkpoints, paths
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime.errors import InputError

_RUN = paths.define_flag("run", None, "Work directory of a run of pre-training or of classification.")
_WEIGHTS = paths.define_flag("weights", None, "The file to write: .safetensors for PyTorch, or .npz.")
_STEP = flags.DEFINE_integer("step", None, "Of the checkpoint; by default that of the scores, or the newest.")


def export(
    run: str | Path, file: str | Path, step: int | None = None
) -> tuple[int, dict[str, tuple[int, ...]]]:
    """Writes the encoder of a checkpoint, without heads.

    Args:
      run: work directory.
      file: see `weights.save`.
      step: which checkpoint; by default the best where the run's results name one, else the newest.

    Returns:
      The step, and the shapes of the tensors that the file has, by their names in it.

    Raises:
      InputError: `run` is no work directory, or of an experiment without an encoder; there is no such
        checkpoint, it is broken, or holds numbers that are not finite; or the file cannot be written.
    """
    run = Path(run)
    path = run / config_lib.CONFIG_FILE
    if not path.is_file():
        raise InputError(f"--run={run} is not the work directory of a run: it has no {path.name}.")
    name = config_lib.read(path).get("encoder", {}).get("name")
    if name not in ENCODERS:
        raise InputError(f"--run={run} has no encoder; give a run of pre-training or of classification.")
    results = run / config_lib.RESULTS_FILE
    if step is None and results.is_file():
        step = json.loads(results.read_text()).get("best_step")
    state = checkpoints.restore_raw(run / "checkpoints", step)
    variables = {kind: state.get(kind, {}).get("encoder", {}) for kind in ("params", "batch_stats")}
    if not variables["params"]:
        raise InputError(f"the checkpoint of step {state['step']} in {run} holds no encoder.")
    weights.check_finite(weights.flatten(variables), f"the checkpoint of step {state['step']} in {run}")
    weights.save(file, ENCODERS[name](), variables)
    return int(state["step"]), {tensor: array.shape for tensor, array in weights.read(file).items()}


def main(argv: list[str]) -> None:
    """Exports what the flags name, and prints it."""
    del argv
    if _RUN.value is None or _WEIGHTS.value is None:
        raise InputError(
            "give the work directory of a run by --run=DIR, and the file to write by --weights=FILE."
        )
    mesh_lib.start_devices()
    step, shapes = export(_RUN.value, _WEIGHTS.value, _STEP.value)
    for name, shape in shapes.items():
        print(f"{name} {list(shape)}")
    print(f"Weights of step {step}: {_WEIGHTS.value}")


if __name__ == "__main__":
    config_lib.run_app(main)
