"""Submits one run to SLURM, through submitit: a process for each GPU, on as many nodes as are asked for.

python -m launch.slurm --nodes=2 --gpus_per_node=8 --partition=gpu -- --config=configs/jigsaw_rl.py:paper
python -m launch.slurm --nodes=2 --gpus_per_node=8 --dry_run -- --config=...      # only prints the script

Before its time is up, or when it is preempted, the run saves and stops, the job is put back into the queue,
and the same command goes on from there, as often as need be. `scancel` ends it for good. The workdir must be
on a file system that all nodes share. Needs submitit: pip install -e ".[slurm]".
"""

import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from absl import flags

from launch import command as command_lib
from ssl_jax.runtime import children, paths
from ssl_jax.runtime.errors import InputError

SAVE_SECONDS = 180  # before the end of the job's time, when the run is told to save
HOLD_SECONDS = 900  # how long a run that was stopped waits for SLURM to end its job


class Task:
    """What submitit calls in each task of the job: the command of the run, as a process of its own."""

    def __init__(self, command: list[str]):
        self.command = command
        self._child = None
        self._status = None

    def __call__(self) -> None:
        """Runs the command.

        Raises:
          RuntimeError: it has failed, or was stopped by something other than SLURM.
        """
        # SLURM tells every process of a job; the run itself need not hear what is meant for submitit.
        quiet = ["bash", "-c", 'trap "" USR1 USR2; exec "$@"', "bash"]
        self._child = subprocess.Popen([*quiet, *children.following([sys.executable, *self.command[1:]])])
        threading.Thread(target=self._wait_for_child, daemon=True).start()
        self._sleep_until_ended()
        if self._status == 128 + signal.SIGTERM:
            # Preempted: SLURM, or submitit upon its signal, requeues a job only while it lives.
            time.sleep(HOLD_SECONDS)
        if self._status:
            raise RuntimeError(f"{shlex.join(self.command)} ended with status {self._status}")

    def _wait_for_child(self):
        self._status = self._child.wait()

    def _sleep_until_ended(self):
        # No lock: the handler of a signal waits here as well, in the midst of the other wait.
        while self._status is None:
            time.sleep(0.1)

    def checkpoint(self) -> Any:
        """What submitit asks for in task 0 before it requeues the job: lets all processes save and stop."""
        from submitit.helpers import DelayedSubmission

        if self._child is not None:
            self._child.terminate()  # jax passes it on to the other processes
            self._sleep_until_ended()
        return DelayedSubmission(Task(self.command))


def parameters(values: flags.FlagValues) -> dict[str, Any]:
    """The job as `submitit.SlurmExecutor.update_parameters` takes it."""
    asked = {
        "job_name": values.name,
        "nodes": values.nodes,
        "ntasks_per_node": max(values.gpus_per_node, 1),
        "gpus_per_node": values.gpus_per_node or None,
        "cpus_per_task": values.cpus_per_task,
        "time": round(60 * values.hours),  # minutes
        "partition": values.partition,
        "account": values.account,
        "signal_delay_s": SAVE_SECONDS,
        "stderr_to_stdout": True,
        # jax picks the GPU of a process from all of its node's, by SLURM_LOCALID.
        "srun_args": ["--kill-on-bad-exit=1", *(["--gpu-bind=none"] if values.gpus_per_node else [])],
        "additional_parameters": {"requeue": True},
    }
    return {name: value for name, value in asked.items() if value is not None}


def main(command: list[str]) -> None:
    """Submits the job, or prints its script.

    Raises:
      InputError: submitit is not installed, or this machine has no SLURM.
    """
    values = flags.FLAGS
    try:
        import submitit
        from submitit.slurm.slurm import _make_sbatch_string
    except ImportError:
        raise InputError('submitit is not installed; install it by pip install -e ".[slurm]"') from None
    logs = Path(values.logs)
    if values.dry_run:
        print(_make_sbatch_string(f"python -m submitit.core._submit {logs}", logs, **parameters(values)))
        print(f"# each task: {shlex.join(command)}")
        return
    try:
        executor = submitit.SlurmExecutor(folder=logs, max_num_timeout=10_000)
    except RuntimeError as error:
        raise InputError(f"this machine cannot submit to SLURM ({error}); use a login node") from None
    executor.update_parameters(**parameters(values))
    job = executor.submit(Task(command))
    print(f"job {job.job_id}: {shlex.join(command)}\noutput: {job.paths.stdout}")


def define_flags() -> None:
    """The flags of the program. Not defined on import, for other programs have flags of the same names."""
    flags.DEFINE_string("name", "ssl_jax", "Name of the job.")
    flags.DEFINE_integer("nodes", 1, "Nodes.", lower_bound=1)
    flags.DEFINE_integer("gpus_per_node", 1, "GPUs, and processes, of each node; 0: CPUs.", lower_bound=0)
    flags.DEFINE_integer("cpus_per_task", 8, "CPU cores of each process.", lower_bound=1)
    flags.DEFINE_float("hours", 24.0, "Time after which the job is requeued.", lower_bound=0.1)
    flags.DEFINE_string("partition", None, "Partition; None: the cluster's own choice.")
    flags.DEFINE_string("account", None, "Account that pays.")
    paths.define_flag("logs", "runs/slurm", "Directory for the job's script and output.")
    command_lib.define_dry_run()


if __name__ == "__main__":
    define_flags()
    command_lib.run_app(main)
