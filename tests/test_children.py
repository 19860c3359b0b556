"""Processes end with the program that started them, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import runs

from ssl_jax.runtime import children

PATIENCE = 60  # seconds for what ought to happen at once, on a machine with other work
CONFIG = f"{runs.ROOT / 'configs' / 'jigsaw_rl.py'}:smoke,policy=uniform"
WITH_WORKERS = runs.SMALL_PUZZLES | {
    "data.workers": 2,
    "probe.enabled": False,
    "train.steps": 100_000,
    "train.log_every": 1,
    "train.validate_every": 100_000,
    "train.checkpoint_every": 100_000,
}


def descendants(pid: int) -> set[int]:
    """The processes below one, by Linux."""
    found = set()
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found |= set(map(int, file.read_text().split()))
        except OSError:  # The thread has ended.
            continue
    return found.union(*(descendants(child) for child in found))


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition) -> None:
    last = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < last
        time.sleep(0.02)


def start(workdir: Path, data_dir: str, shared_memory: Path) -> subprocess.Popen:
    """Starts a run with workers in a group of its own, with a directory for its shared memory."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs unshare, and namespaces of users and mounts")
    shared_memory.mkdir()
    script = 'mount --bind "$0" /dev/shm && exec "$@"'
    overrides = [f"--config.{key}={value}" for key, value in WITH_WORKERS.items()]
    return subprocess.Popen(
        [
            *("unshare", "-rm", "sh", "-c", script, shared_memory),
            *(sys.executable, "-m", "ssl_jax.main", f"--config={CONFIG}", f"--workdir={workdir}", *overrides),
        ],
        env=os.environ | {"PYTHONPATH": str(runs.ROOT), "TFDS_DATA_DIR": data_dir, "XLA_FLAGS": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_workers_of_a_run_that_is_killed_end_and_free_their_memory(number, tmp_path, atari_tiny_dir):
    process = start(tmp_path / "run", atari_tiny_dir, tmp_path / "shm")
    runs.wait_until(process, lambda: runs.progress(tmp_path / "run") >= 2)
    below = descendants(process.pid)
    assert len(below) >= 3  # two workers, and what keeps count of shared memory
    assert list((tmp_path / "shm").iterdir())
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    wait_for(lambda: not any(map(lives, below)))
    assert list((tmp_path / "shm").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signal_to_a_group_lets_the_run_save_and_its_workers_end_quietly(number, tmp_path, atari_tiny_dir):
    process = start(tmp_path / "run", atari_tiny_dir, tmp_path / "shm")
    runs.wait_until(process, lambda: runs.progress(tmp_path / "run") >= 2)
    below = descendants(process.pid)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + number
    assert errors.startswith("Stopped at step "), errors
    assert errors.count("\n") == 1, errors
    wait_for(lambda: not any(map(lives, below)))
    assert list((tmp_path / "shm").iterdir()) == []


def test_interrupt_while_workers_start_prints_none_of_their_tracebacks(tmp_path, atari_tiny_dir):
    process = start(tmp_path / "run", atari_tiny_dir, tmp_path / "shm")
    runs.wait_until(process, lambda: len(descendants(process.pid)) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "leaked" not in errors
    assert list((tmp_path / "shm").iterdir()) == []


def test_command_that_follows_is_told_to_stop_when_its_parent_is_killed(tmp_path):
    child = f"""if True:
        import pathlib, signal, sys, time
        def save(*_):
            pathlib.Path({str(tmp_path / "saved")!r}).touch()
            sys.exit()
        signal.signal(signal.SIGTERM, save)
        print("ready", flush=True)
        time.sleep(1000)
    """
    parent = f"""if True:
        import subprocess, sys
        from ssl_jax.runtime import children
        subprocess.run(children.following([sys.executable, "-c", {child!r}]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(parent)], cwd=runs.ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    below = descendants(process.pid)
    assert len(below) == 1
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(lives, below)))
    assert (tmp_path / "saved").exists()
    process.stdout.close()


def test_run_that_saves_when_its_parent_is_killed_saves_to_the_end(tmp_path):
    child = f"""if True:
        import os, pathlib, time
        from ssl_jax.runtime import interruption
        parent = os.getppid()
        with interruption.StopSignal() as stop:
            print("ready", flush=True)
            while not stop.received:
                time.sleep(0.01)
            print("saving", flush=True)
            while os.getppid() == parent:
                time.sleep(0.01)
            time.sleep(0.5)  # in which a signal of the parent's end would come
            pathlib.Path({str(tmp_path / "saved")!r}).write_text(stop.received.name)
    """
    parent = f"""if True:
        import subprocess, sys
        from ssl_jax.runtime import children
        process = subprocess.Popen(
            children.following([sys.executable, "-c", {child!r}]), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\\n"
        process.terminate()
        print(process.stdout.readline(), end="", flush=True)
        process.wait()
    """
    process = subprocess.Popen(
        [sys.executable, "-c", parent],
        cwd=runs.ROOT,
        env=os.environ | {"PYTHONPATH": str(runs.ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "saving\n"
    below = descendants(process.pid)
    assert len(below) == 1
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(lives, below)))
    assert (tmp_path / "saved").read_text() == "SIGTERM"
    process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ignored_signal_stays_ignored(number):
    code = f"""if True:
        import os, signal
        from ssl_jax.runtime import interruption
        with interruption.StopSignal() as stop:
            os.kill(os.getpid(), {int(number)})
            print(stop.received)
            os.kill(os.getpid(), signal.SIGTERM)
            print(stop.received.name)
    """
    shell = f'trap "" {number.name.removeprefix("SIG")}; exec "$0" -c "$1"'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, code], cwd=runs.ROOT, capture_output=True, text=True
    )
    assert done.stdout == "None\nSIGTERM\n", done.stderr


def test_command_that_follows_a_parent_that_is_gone_does_not_begin():
    command = children.following([sys.executable, "-c", "print('begun')"])
    assert subprocess.run(command, capture_output=True, text=True).stdout == "begun\n"
    orphan = [*command[:2], str(2**22 + 1), *command[3:]]
    done = subprocess.run(orphan, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")
