"""Runs one run as several processes on this machine.

python -m launch.local --processes=2 -- --config=configs/jigsaw_rl.py --workdir=runs/jigsaw
python -m launch.local --processes=8 --gpus_per_process=1 -- --config=configs/jigsaw_rl.py:paper
python -m launch.local --processes=2 --dry_run -- --config=configs/jigsaw_rl.py   # prints the commands

Each line of output begins with the number of the process that wrote it. When one process fails, all are
ended. SIGTERM or Ctrl-C lets all of them save and stop at the same step, as they also do when this program
is killed; a second Ctrl-C kills them. The same command again goes on.

Exit status: 0 if all processes have ended well, 1 if one has failed, 2 for bad input, 128 + the signal's
number if the run was told to stop.
"""

import collections
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from absl import flags

from launch import command as command_lib
from ssl_jax.runtime import children
from ssl_jax.runtime.errors import InputError
from ssl_jax.runtime.interruption import StopSignal

LAST_LINES = 8  # of a failed process, shown to the person
GRACE_SECONDS = 10  # for the others, when one has failed
DRY_PORT = 8476


def environment(index: int, processes: int, port: int, gpus_per_process: int = 0) -> dict[str, str]:
    """What tells process `index` its place; with GPUs, also which are its own.

    Raises:
      InputError: CUDA_VISIBLE_DEVICES names fewer GPUs than are needed.
    """
    address = f"localhost:{port}"
    variables = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
    }
    if gpus_per_process:
        needed = processes * gpus_per_process
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = visible.split(",") if visible else [str(gpu) for gpu in range(needed)]
        if len(gpus) < needed:
            raise InputError(
                f"{needed} GPUs are needed, but CUDA_VISIBLE_DEVICES={visible} names {len(gpus)}"
            )
        own = gpus[index * gpus_per_process : (index + 1) * gpus_per_process]
        variables["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    return variables


class Process:
    """One process of the run, whose lines are printed with its number before them."""

    def __init__(self, index: int, command: Sequence[str], variables: dict[str, str]):
        self.index = index
        self.last_lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        # In a session of its own, lest Ctrl-C reach it twice: from the terminal and from here.
        self.process = subprocess.Popen(
            children.following([sys.executable, *command[1:]]),
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.last_lines.append(line)
            # One write a line, or those of two processes would mix.
            sys.stdout.write(f"[{self.index}] {line.rstrip()}\n")
            sys.stdout.flush()

    def end(self) -> None:
        """Kills it if it lives, and waits for what it has written."""
        self.process.kill()
        self.process.wait()
        self._reader.join(timeout=1)


def run(command: Sequence[str], places: Sequence[dict[str, str]]) -> None:
    """Makes the command a process for each place; ends all when one fails, and passes a signal on to all.

    Args:
      command: with its program, which is replaced by this Python.
      places: the `environment` of each process.

    Raises:
      SystemExit: one has failed, or the run was told to stop.
    """
    processes, failed, told_since = [], None, None
    try:
        with StopSignal() as stop:
            for index, variables in enumerate(places):
                processes.append(Process(index, command, variables))
            while any(one.process.poll() is None for one in processes):
                time.sleep(0.05)
                wrong = [one for one in processes if one.process.poll()]
                if told_since is None and (stop.received or wrong):
                    told_since = time.monotonic()
                    failed = None if stop.received else wrong[0]
                    for one in processes:
                        one.process.terminate()
                if failed and time.monotonic() - told_since > GRACE_SECONDS:
                    break
    finally:
        for one in processes:
            one.end()
    failed = failed or next((one for one in processes if one.process.returncode), None)
    if stop.received:
        command = shlex.join(["python", *sys.orig_argv[1:]])
        print(f"Stopped; to go on: {command}", file=sys.stderr)
        sys.exit(128 + stop.received)
    if failed:
        _complain(failed)
        sys.exit(1)


def _complain(failed: Process) -> None:
    status = failed.process.returncode
    how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    print(f"process {failed.index} FAILED ({how}), and all were ended; its last lines:", file=sys.stderr)
    print(
        "".join(f"    {line.rstrip()}\n" for line in failed.last_lines or ["(nothing)"]),
        end="",
        file=sys.stderr,
    )


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def main(command: list[str]) -> None:
    """Starts the processes that the flags ask for."""
    values = flags.FLAGS
    port = DRY_PORT if values.dry_run else free_port()
    each = [
        environment(index, values.processes, port, values.gpus_per_process)
        for index in range(values.processes)
    ]
    if values.dry_run:
        for variables in each:
            settings = " ".join(f"{name}={value}" for name, value in variables.items())
            print(f"{settings} {shlex.join(command)}")
        return
    run(command, each)


def define_flags() -> None:
    """The flags of the program. Not defined on import, for other programs have flags of the same names."""
    flags.DEFINE_integer("processes", 2, "How many processes make the run.", lower_bound=1)
    flags.DEFINE_integer("gpus_per_process", 0, "GPUs of each process; 0: all see all.", lower_bound=0)
    command_lib.define_dry_run()


if __name__ == "__main__":
    define_flags()
    command_lib.run_app(main)
