"""Standard output and error that end no run when nobody takes what is written: a `head` or `tee` that has
ended, a terminal that was closed, a full disk.
"""

import contextlib
import io
import os
import select
import sys

from absl import logging


class LostOutput(Exception):
    """What a program is run for cannot be written to standard output.

    Attributes:
      error: the OSError of the first attempt.
    """

    def __init__(self, error: OSError):
        super().__init__(str(error))
        self.error = error


class _Descriptor(io.FileIO):
    """A descriptor that drops what it cannot write.

    Args:
      descriptor: a file that is open for writing, and stays open.
      required: whether the first loss raises `LostOutput`.
    """

    def __init__(self, descriptor: int, required: bool):
        super().__init__(descriptor, "w", closefd=False)
        self._required = required

    def write(self, data) -> int:
        data = memoryview(data).cast("B")
        rest = data
        try:
            while rest:
                written = super().write(rest)
                if written is None:  # another program has made the terminal or pipe non-blocking
                    poll = select.poll()
                    poll.register(self, select.POLLOUT)
                    poll.poll()
                rest = rest[written or 0 :]
        except OSError as error:
            if self._required:
                self._required = False
                raise LostOutput(error) from None
        return len(data)


def guard(*, required: bool = False) -> None:
    """Puts streams that end no run in place of `sys.stdout` and `sys.stderr`, unless others are there.

    Characters that the encoding does not have are escaped. Where a program was started without standard
    streams, no file that it opens takes their descriptors.

    Args:
      required: whether standard output is what the program is run for; then its loss raises `LostOutput`,
        once, where something is written or flushed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest descriptor that is free
            os.set_inheritable(descriptor, True)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is not getattr(sys, f"__{name}__"):
            continue  # of a notebook or a test
        new = _stream(descriptor, old, required and name == "stdout")
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    logging.get_absl_handler().python_handler.setStream(sys.stderr)


def _stream(descriptor: int, old: io.TextIOWrapper | None, required: bool) -> io.TextIOWrapper:
    if old is None:  # closed when the program was started; whatever has the descriptor now is no stream
        nowhere = _Descriptor(os.open(os.devnull, os.O_WRONLY), required)
        return io.TextIOWrapper(nowhere, encoding="utf-8", errors="backslashreplace")
    with contextlib.suppress(OSError):
        old.flush()
    raw = _Descriptor(descriptor, required)
    return io.TextIOWrapper(
        raw if old.write_through else io.BufferedWriter(raw),
        encoding=old.encoding,
        errors="backslashreplace",
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )
