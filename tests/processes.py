"""Programs that a test starts as several processes of one run, with collectives of CPUs between them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from launch import local

ROOT = Path(__file__).parents[1]


def start(command: list[str], processes: int = 2, **variables: str) -> list[subprocess.Popen]:
    """Starts `python COMMAND` in as many processes, each with one device."""
    port = local.free_port()
    common = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | variables
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=common | local.environment(index, processes, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]


def outputs(started: list[subprocess.Popen]) -> list[str]:
    """What each process has printed, once all have ended well."""
    said = [process.communicate(timeout=240) for process in started]
    for process, (_, errors) in zip(started, said, strict=True):
        assert process.returncode == 0, errors
    return [output for output, _ in said]


def joined(code: str) -> list[str]:
    """Arguments of python: runs code in a process that knows the others."""
    head = "from ssl_jax.runtime import distributed\ndistributed.start()\n"
    return ["-c", head + textwrap.dedent(code)]


def run(code: str, processes: int = 2) -> list[str]:
    """Runs code in as many processes that know each other; returns what each has printed."""
    return outputs(start(joined(code), processes))
