"""Runs one experiment: a config file goes in, a work directory comes out.

python -m ssl_jax.main --config=configs/jigsaw_rl.py
python -m ssl_jax.main --config=configs/jigsaw_rl.py:paper,policy=uniform --workdir=/tmp/paper
python -m ssl_jax.main --config=configs/jigsaw_rl.py --config.train.steps=100
python -m ssl_jax.main --config=... --coordinator=node1:8476 --num_processes=2 --process_id=0  # and 1 there

The same command again goes on from the last checkpoint.
"""

import contextlib
import importlib
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from ssl_jax import experiments
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import paths
from ssl_jax.runtime.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and what it takes after a colon; --config.key=value overrides."
)
_WORKDIR = paths.define_flag("workdir", None, "Where a run writes and resumes; by default runs/CONFIG[-ARG].")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0 in a run of several; SLURM and TPU pods tell it themselves."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes make the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of the processes this is, from 0.")


def main(argv: list[str]) -> None:
    """Imports and runs the experiment that the config names."""
    del argv
    config = _CONFIG.value
    if config is None:
        known = " or ".join(config_lib.list_configs()) or "a config file"
        raise InputError(f"give an experiment by --config=FILE: {known}; --help says more")
    if "axes" in config:
        file = flags.FLAGS["config"].config_filename
        raise InputError(f"{file} is a sweep of many runs; run it by python -m launch.sweep --config={file}")
    config_lib.check_known("experiment", config.get("experiment"), experiments.EXPERIMENTS)
    default = config_lib.default_workdir(flags.FLAGS["config"].config_filename)
    # Imported only now: jax takes seconds to start, and a mistyped flag should not wait for it.
    try:
        importlib.import_module("jax")
    except ValueError as error:  # of a variable such as JAX_NUM_CPU_DEVICES
        raise InputError(f"JAX refuses a variable of the environment: {error}") from None
    distributed, lock, mesh, watching = (
        importlib.import_module(f"ssl_jax.runtime.{name}")
        for name in ("distributed", "lock", "mesh", "watching")
    )
    workdir = _WORKDIR.value or default
    watch = {key: config[key] for key in config_lib.WATCH_KEYS if key in config}
    distributed.start(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    try:
        with contextlib.ExitStack() as around:
            around.enter_context(distributed.ending_together())
            mesh.start_devices()
            around.enter_context(lock.workdir_lock(workdir))
            around.enter_context(watching.under_watch(workdir, **watch))
            experiment = importlib.import_module(f"ssl_jax.experiments.{config.experiment}")
            experiment.run(config, workdir)
    except KeyboardInterrupt:
        command = shlex.join(["python", "-m", "ssl_jax.main", *sys.argv[1:]])
        print(f"\ninterrupted; to go on from the last checkpoint: {command}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    config_lib.run_app(main)
