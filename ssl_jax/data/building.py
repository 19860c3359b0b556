"""What those share who make a data set on disk: a lock, and a bar that counts."""

import contextlib
import fcntl
import logging
import os
import stat as stat_lib
from collections.abc import Iterator

import rich.console
import rich.progress
from etils.epath import backend
from etils.epath import stat_utils as epath_stat

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


@contextlib.contextmanager
def owners_may_lack_names() -> Iterator[None]:
    """Lets tfds write files under a user or group that is a bare number, as in many containers.

    tfds asks for the sizes of its files by etils, which also looks up the names of their owners and raises
    KeyError where there are none (etils 1.15). Nobody here needs the names.
    """
    state_of = backend.os_backend.stat

    def stat(path: os.PathLike | str) -> epath_stat.StatResult:
        try:
            return state_of(path)
        except KeyError:
            found = os.stat(path)
            return epath_stat.StatResult(
                is_directory=stat_lib.S_ISDIR(found.st_mode),
                length=found.st_size,
                mtime=int(found.st_mtime),
                mode=found.st_mode,
            )

    backend.os_backend.stat = stat
    try:
        yield
    finally:
        backend.os_backend.stat = state_of


def progress_bar() -> rich.progress.Progress:
    """A bar that counts, on the standard error stream."""
    return rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=rich.console.Console(stderr=True),
    )
