"""Processes that a program starts, and that end with it, however it ends.

A program that is killed (SIGKILL, or the operating system's out-of-memory killer) cannot end its children;
they must notice by themselves. Nothing here imports jax.

As a script this file is the head of a command: `python children.py PARENT COMMAND...` becomes COMMAND, which
is sent SIGTERM when the process PARENT ends. Linux alone can do that; elsewhere it is COMMAND and no more.
"""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
GRACE_SECONDS = 60  # that a worker goes on after SIGTERM


def following(command: Sequence[str]) -> list[str]:
    """A command that is sent SIGTERM when this process ends, so that a run saves and stops.

    To be started by a thread that lives as long as this process, such as the main thread: to Linux, the
    parent of a process is the thread that started it.
    """
    return [sys.executable, __file__, str(os.getpid()), *command]


def leave_parent() -> None:
    """Lets this process go on when the parent of `following` ends; to be called in the main thread."""
    _send_when_parent_ends(0)


def _send_when_parent_ends(number: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)


def begin_worker(index: int, count: int) -> None:
    """What a worker process of `multiprocessing` does first.

    It ends as soon as its parent is gone. Signals that reach a whole group of processes, as Ctrl-C in a
    terminal and `scancel` do, are for the parent, which still needs data for the step it is at and then ends
    its workers: SIGINT is ignored, and SIGTERM ends a worker only after `GRACE_SECONDS`.
    """
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_SECONDS))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()


def _end_with_parent() -> None:
    # By a pipe and not by PR_SET_PDEATHSIG: workers are started by threads that end before the program.
    multiprocessing.parent_process().join()
    os._exit(1)


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Workers that are started inside hear of SIGINT and SIGTERM only once `begin_worker` has run."""
    resource_tracker.ensure_running()  # It unblocks these signals when it is started (CPython 3.11).
    signals = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become(parent: int, command: Sequence[str]) -> None:
    _send_when_parent_ends(signal.SIGTERM)
    if sys.platform == "linux" and os.getppid() != parent:  # It has ended already.
        os.kill(os.getpid(), signal.SIGTERM)
    os.execvp(command[0], command)


if __name__ == "__main__":
    _become(int(sys.argv[1]), sys.argv[2:])
