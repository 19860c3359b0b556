"""Lets a run end at a step of its own choice when it is told to stop."""

import shlex
import signal
import sys
from typing import NoReturn, Self

from ssl_jax.runtime import children


class StopSignal:
    """Turns the first SIGTERM, SIGINT (Ctrl-C) or SIGHUP into a flag; the second acts as usual.

        with StopSignal() as stop:
            while not stop.received:
                ...

    SIGHUP comes when the terminal is closed. Where it or SIGINT is ignored, as under nohup or in the
    background of a script, it stays so. A process that was told to stop is not told again by the end of its
    parent (see `children.following`), which would end it before it has saved. Only the main thread of a
    process can be told; elsewhere (a notebook's worker) nothing changes.

    Attributes:
      received: the signal that came (`signal.SIGTERM`, `signal.SIGINT`, `signal.SIGHUP`), or None.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._before = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGTERM and signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._before[number] = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread
                break
        return self

    def _receive(self, number, frame):
        del frame
        self.received = signal.Signals(number)
        children.leave_parent()  # before the next signal acts as usual
        self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def leave(self, step: int) -> NoReturn:
        """Ends a program that was told to stop and has saved its state of that step."""
        command = shlex.join(["python", *sys.orig_argv[1:]])
        print(f"Stopped at step {step} and saved; to go on: {command}", file=sys.stderr)
        sys.exit(128 + self.received)

    def __exit__(self, *exception) -> None:
        self._restore()
