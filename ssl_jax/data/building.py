"""What those share who make a data set on disk: a lock, and a bar that counts."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator

import rich.console
import rich.progress

from ssl_jax.runtime import files


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[None]:
    """Holds an exclusive lock on the file `WHAT.lock`; the system frees it however the process ends."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = os.fspath(path).removesuffix(".lock")
            logging.info("Another process is at work in %s; waiting for it.", what)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in files.NO_LOCKS:
                raise
            logging.warning("%s: the file system has no locks; do not build here in two processes.", path)
        yield


def progress_bar() -> rich.progress.Progress:
    """A bar that counts, on the standard error stream."""
    return rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=rich.console.Console(stderr=True),
    )
