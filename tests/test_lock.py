"""One run at a time in a work directory, whoever died in it before."""

import contextlib
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import processes
import pytest

from ssl_jax.runtime import lock
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.fast

# An owner in a process of its own: prints that it has the lock, and keeps it.
OWNER = """
    import sys, time
    from ssl_jax.runtime import lock
    with lock.workdir_lock(sys.argv[1]):
        print("mine", flush=True)
        sys.stdin.read()
"""


@contextlib.contextmanager
def owner(workdir: Path, code: str = OWNER):
    command = [sys.executable, "-c", textwrap.dedent(code), str(workdir)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(processes.ROOT)}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout.readline() == "mine\n"
        yield process
        process.kill()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.5)


def write_owner(workdir: Path, beats: int, **facts) -> dict:
    """A lock's file as an owner on another machine writes it."""
    facts = {"pid": 123, "host": "node7", "machine": "another", "since": "2020-02-02 02:02:02"} | facts
    (workdir / lock.LOCK_FILE).write_text(json.dumps(facts | {"beats": f"{beats:012d}"}) + "\n")
    return facts


def test_a_second_run_is_refused_and_a_dead_one_is_not(tmp_path):
    with owner(tmp_path) as process:
        with pytest.raises(InputError) as error, lock.workdir_lock(tmp_path):
            raise AssertionError
        sentence = str(error.value)
        assert sentence.startswith(f"work directory {tmp_path} is in use by pid {process.pid} on host ")
        assert os.uname().nodename in sentence
        assert "\n" not in sentence
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / lock.LOCK_FILE).exists()
        start = time.monotonic()
        with lock.workdir_lock(tmp_path):
            assert json.loads((tmp_path / lock.LOCK_FILE).read_text())["pid"] == os.getpid()
        assert time.monotonic() - start < 10  # the system knows; nobody had to be watched
    assert list(tmp_path.iterdir()) == []


def test_children_that_outlive_their_run_hold_no_lock(tmp_path):
    code = """
        import os, sys, time
        from ssl_jax.runtime import lock
        with lock.workdir_lock(sys.argv[1]):
            child = os.fork()
            if child:
                print("mine", flush=True)
                print(child, flush=True)
            time.sleep(100)
    """
    with owner(tmp_path, code) as process:
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        with lock.workdir_lock(tmp_path):
            os.kill(child, signal.SIGKILL)


def test_nothing_is_left_of_a_run_that_came_to_nothing(tmp_path):
    with pytest.raises(InputError, match="bad config"), lock.workdir_lock(tmp_path / "a" / "b"):
        raise InputError("bad config")
    assert not (tmp_path / "a" / "b").exists()
    (tmp_path / "empty").mkdir()
    with lock.workdir_lock(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").exists()  # it was there before


def test_an_owner_on_another_machine_that_has_died_is_recognised(tmp_path, impatient, capsys):
    write_owner(tmp_path, 7)
    with lock.workdir_lock(tmp_path):
        pass
    assert "was last used by pid 123 on node7; watching for" in capsys.readouterr().err


def no_locks(*args):
    raise OSError(errno.ENOLCK, "No locks available")


# Where the system's locks do not reach from machine to machine, or where there are none at all.
@pytest.mark.parametrize(("machine", "lockf"), [("another", lock.fcntl.lockf), (lock._machine(), no_locks)])
def test_an_owner_that_no_lock_shows_is_respected_while_it_lives(
    tmp_path, impatient, monkeypatch, machine, lockf
):
    monkeypatch.setattr(lock.fcntl, "lockf", lockf)
    write_owner(tmp_path, 0, machine=machine)
    dead = threading.Event()

    def live():
        for beats in itertools.count(1):
            if dead.wait(0.1):
                return
            write_owner(tmp_path, beats, machine=machine)

    # In this process, where opening and closing the file takes away our own lock: which here is of no use.
    life = threading.Thread(target=live)
    life.start()
    with (
        pytest.raises(InputError, match=r"is in use by pid 123 on host node7 since 2020-02-02"),
        lock.workdir_lock(tmp_path),
    ):
        raise AssertionError
    dead.set()
    life.join()
    with lock.workdir_lock(tmp_path):
        pass


def test_an_owner_whose_lock_was_taken_ends_at_once(tmp_path):
    code = OWNER.replace("with lock", "lock.BEAT_SECONDS = 0.1\n    with lock")
    with owner(tmp_path, code) as process:
        (tmp_path / lock.LOCK_FILE).unlink()
        write_owner(tmp_path, 0)
        assert process.wait(timeout=30) == 2
    assert json.loads((tmp_path / lock.LOCK_FILE).read_text())["host"] == "node7"


def test_a_directory_that_was_removed_is_no_reason_to_end(tmp_path, impatient):
    with lock.workdir_lock(tmp_path / "run"):
        (tmp_path / "run" / lock.LOCK_FILE).unlink()
        (tmp_path / "run").rmdir()
        time.sleep(0.4)


def test_a_place_that_cannot_be_used_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/run"):
        with (
            pytest.raises(InputError, match=r"cannot be used: (File exists|Not a directory)"),
            lock.workdir_lock(tmp_path / place),
        ):
            raise AssertionError


@pytest.mark.slow
def test_one_process_holds_the_lock_of_a_run_of_two(tmp_path):
    code = f"""
        from ssl_jax.runtime import lock
        from ssl_jax.runtime.errors import InputError
        for _ in range(2):
            try:
                with lock.workdir_lock({str(tmp_path)!r}):
                    print("mine")
            except InputError as error:
                print(error)
    """
    last_lines = [output.splitlines()[-2:] for output in processes.run(code)]
    assert last_lines == [["mine", "mine"]] * 2
    with owner(tmp_path) as process:
        first, second = (output.splitlines()[-1] for output in processes.run(code))
        assert first == second
        assert f"is in use by pid {process.pid}" in first
