"""Watches a run from beside: says when it hangs, and where; traces a few of its steps.

`main` puts every experiment under watch. What all of them pass through as they go, `metrics.Progress` and
`metrics.Stopwatch` and the loops of evaluations, tells the watch that they do; where there is none, that is
nothing.
"""

import contextlib
import faulthandler
import math
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from ssl_jax.runtime.errors import InputError

WARM_UP, TRACED = 5, 5  # steps before a trace, and in it


@contextlib.contextmanager
def under_watch(
    workdir: str | Path, *, watchdog_seconds: float = 600.0, profile: bool = False
) -> Iterator[None]:
    """Watches what is inside, the only run of this process.

    Args:
      workdir: a trace goes to `workdir/profile`.
      watchdog_seconds: after so many without progress the stacks of all threads are printed, again when the
        silence is twice as long, and so on; the run goes on waiting. 0: never.
      profile: whether process 0 writes a trace of `TRACED` steps, for TensorBoard and Perfetto.

    Raises:
      InputError: `watchdog_seconds` is negative, or no number.
    """
    global _watchdog, _trace
    if not 0 <= watchdog_seconds < math.inf:
        raise InputError(f"config.watchdog_seconds must be 0 or more seconds, not {watchdog_seconds}")
    _watchdog = _Watchdog(watchdog_seconds) if watchdog_seconds else None
    _trace = _Trace(Path(workdir) / "profile") if profile and jax.process_index() == 0 else None
    try:
        yield
    finally:
        watchdog, trace = _watchdog, _trace
        _watchdog = _trace = None
        if watchdog is not None:
            watchdog.close()
        if trace is not None:
            trace.close()


def in_part(part: str | None) -> None:
    """Tells the watch that the run is in a part from now on; None: in none that has a name."""
    if _watchdog is not None:
        _watchdog.part = part
        _watchdog.feed()


def at_step(step: int, *, warm: bool = True) -> None:
    """Tells the watch that so many steps are made; `warm`: those to come are like the last one."""
    if _watchdog is not None:
        _watchdog.step = step
        _watchdog.feed()
    if _trace is not None and warm:
        _trace.at_step(step)


class _Watchdog:
    """A thread that prints all stacks when nobody has fed it for some seconds."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._fed = time.monotonic()
        self.part: str | None = None
        self.step: int | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def feed(self) -> None:
        self._fed = time.monotonic()

    def _watch(self) -> None:
        fed, patience = self._fed, self._seconds
        while True:
            if self._fed != fed:
                fed, patience = self._fed, self._seconds
            silence = time.monotonic() - fed
            if silence >= patience:
                self._report(silence)
                patience = 2 * silence
            # Where C code does not let go of the interpreter, this thread is stuck as well. The timer of
            # faulthandler, a thread of C, is not.
            wait = patience - silence
            faulthandler.dump_traceback_later(wait + self._seconds, file=sys.__stderr__)
            if self._closed.wait(wait):
                faulthandler.cancel_dump_traceback_later()
                return

    def _report(self, silence: float) -> None:
        where = "before the first step" if self.step is None else f"after step {self.step}"
        part = f", in {self.part!r}" if self.part else ""
        print(
            f"no progress for {silence:.0f} seconds {where}{part}, in process {jax.process_index()}; it goes "
            "on waiting. What its threads are doing:",
            file=sys.__stderr__,
            flush=True,
        )
        faulthandler.dump_traceback(file=sys.__stderr__)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()


class _Trace:
    """A trace of some steps, once."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._steps: list[int] = []  # those that were seen, until the last that is traced

    def at_step(self, step: int) -> None:
        if step in self._steps[-1:] or len(self._steps) > WARM_UP + TRACED:
            return
        self._steps.append(step)
        if len(self._steps) == WARM_UP + 1:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # every call of every function: the parts of a step drown in them
            jax.profiler.start_trace(self._directory, create_perfetto_trace=True, profiler_options=options)
        elif len(self._steps) > WARM_UP + TRACED:
            self._stop()

    def close(self) -> None:
        if len(self._steps) <= WARM_UP:
            print(f"no trace: the run made no more than {WARM_UP} steps", file=sys.stderr)
        elif len(self._steps) <= WARM_UP + TRACED:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        print(
            f"A trace from the end of step {self._steps[WARM_UP]} to that of step {self._steps[-1]} is in "
            f"{self._directory}: TensorBoard with the plugin xprof shows it, and https://ui.perfetto.dev its "
            "perfetto_trace.json.gz",
            flush=True,
        )


_watchdog: _Watchdog | None = None
_trace: _Trace | None = None
