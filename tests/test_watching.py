"""What watches a run: stacks of one that hangs, a trace of a few steps."""

import gzip
import json
import os
import re
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import processes
import pytest

from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime import watching
from ssl_jax.runtime.errors import InputError


def said_by(code: str) -> str:
    """What a program says on the standard error stream."""
    environment = os.environ | {"PYTHONPATH": str(processes.ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stderr


def test_an_input_that_hangs_is_reported_with_all_stacks_until_it_goes_on():
    said = said_by(
        """
        import threading, time
        from ssl_jax.runtime import watching
        from ssl_jax.runtime.metrics import Progress, Stopwatch

        def read_a_broken_disk():
            time.sleep(3.5)

        with watching.under_watch(".", watchdog_seconds=1), Progress(9) as progress:
            stopwatch = Stopwatch()
            for step in range(8):  # longer than a second, but each of them shorter
                time.sleep(0.2)
                progress.update(step)
            with stopwatch("data"):
                threading.Thread(target=read_a_broken_disk, name="reader").start()
                read_a_broken_disk()
            progress.update(8)
        """
    )
    # After a second, and when the silence is twice as long; the next would be after four.
    reports = re.findall(r"no progress for (\d) seconds (.*), in process 0; it goes on waiting", said)
    assert reports == [("1", "after step 7, in 'data'"), ("2", "after step 7, in 'data'")]
    assert said.count("in read_a_broken_disk") == 4  # in two threads, twice


def test_code_that_never_lets_go_of_the_interpreter_is_reported_as_well():
    said = said_by(
        """
        import ctypes, ctypes.util
        from ssl_jax.runtime import watching

        def decode_forever():
            ctypes.PyDLL(ctypes.util.find_library("c")).usleep(900_000)  # PyDLL keeps the lock

        with watching.under_watch(".", watchdog_seconds=0.3):
            decode_forever()
        """
    )
    assert said.startswith("Timeout (0:00:00.")
    assert "in decode_forever" in said


@pytest.mark.slow
def test_a_collective_that_waits_for_a_process_is_reported():
    code = """
        import jax, time
        from jax.experimental import multihost_utils
        from ssl_jax.runtime import watching
        multihost_utils.sync_global_devices("all are here")
        with watching.under_watch(".", watchdog_seconds=0.5):
            if jax.process_index() == 1:
                time.sleep(2)  # what the other one does not know
                watching.in_part(None)
            multihost_utils.sync_global_devices("the next step")
    """
    started = processes.start(processes.joined(code))
    said = [process.communicate(timeout=240)[1] for process in started]
    assert "before the first step, in process 0; it goes on waiting" in said[0]
    assert "in sync_global_devices" in said[0]


def test_nothing_is_said_of_a_run_that_goes_on(capfd):
    with watching.under_watch(".", watchdog_seconds=1), metrics_lib.Progress(9) as progress:
        for step in range(8):
            time.sleep(0.2)
            progress.update(step)
    with watching.under_watch(".", watchdog_seconds=0):
        time.sleep(0.1)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_seconds_that_cannot_be_are_refused(seconds):
    with (
        pytest.raises(InputError, match=r"config\.watchdog_seconds must be 0 or more seconds"),
        watching.under_watch(".", watchdog_seconds=seconds),
    ):
        raise AssertionError


def run_steps(workdir, number, **options):
    """Steps that compute, under a watch that traces."""
    square = jax.jit(lambda x: (x @ x) / 2)
    x = jnp.eye(64)
    stopwatch = metrics_lib.Stopwatch()
    with (
        watching.under_watch(workdir, profile=True),
        metrics_lib.Progress(number, **options) as progress,
    ):
        for step in range(1, number + 1):
            with stopwatch("step"):
                x = square(x).block_until_ready()
            progress.update(step, {"sum": 1.0})
            progress.update(step)  # as runs do that have something to show


def test_a_trace_has_the_steps_after_the_warm_up(tmp_path, capsys):
    run_steps(tmp_path, 40, warm_from=20)
    assert (
        f"from the end of step 25 to that of step 30 is in {tmp_path / 'profile'}" in capsys.readouterr().out
    )
    (trace,) = (tmp_path / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert names.count("step") == watching.TRACED
    assert any("fusion" in name or "dot" in name for name in names)  # what the device did
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))  # TensorBoard's


def test_a_run_that_ends_early_leaves_what_there_is_of_a_trace(tmp_path, capsys):
    run_steps(tmp_path / "short", 7)
    assert "from the end of step 6 to that of step 7 is in" in capsys.readouterr().out
    assert list((tmp_path / "short").rglob("perfetto_trace.json.gz"))
    run_steps(tmp_path / "shorter", 5)
    assert "no trace: the run made no more than 5 steps" in capsys.readouterr().err
    assert not (tmp_path / "shorter").exists()
