"""One run at a time in a work directory."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jax

from ssl_jax.runtime import distributed, files
from ssl_jax.runtime.errors import InputError

LOCK_FILE = ".lock"
BEAT_SECONDS = 5.0  # how often an owner shows that it is alive
# How long an owner is watched that may be at work where the system's locks do not reach.
WATCH_SECONDS = 30.0


@contextlib.contextmanager
def workdir_lock(workdir: str | Path) -> Iterator[None]:
    """Keeps other runs out of a work directory, which is created if need be.

    The lock is a POSIX lock (`fcntl`) on `WORKDIR/.lock`, and the file says whose it is. The system frees it
    however its owner ends, and forked children do not hold it; so on one machine a lock that is left behind
    is known at once. Network file systems carry such locks between machines (NFS does, unless mounted with
    `nolock` or `local_lock`), but nobody can tell from inside whether this one does. Hence the owner also
    counts in the file every `BEAT_SECONDS`. Who gets a lock on a file that names an owner on another machine,
    watches for `WATCH_SECONDS`: if the count goes on, the owner is alive. No clocks are compared. An owner
    that was asleep and finds the name of another one in its file ends at once.

    In a run of several processes, process 0 holds the lock for all; all make this call.

    Raises:
      InputError: another run holds it (the sentence names its pid and host), or the directory cannot be
        used.
    """
    workdir = Path(workdir)
    lock, refusal = None, None
    if jax.process_index() == 0:
        try:
            lock = _Lock(workdir)
        except InputError as error:
            refusal = str(error)
    refusal = distributed.gather(refusal)[0]
    if refusal is not None:
        raise InputError(refusal)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


class _Lock:
    """A lock that is held until it is released.

    The file is opened once: a POSIX lock is lost when its process closes any descriptor of the file.
    """

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._path = workdir / LOCK_FILE
        self._created = [path for path in (workdir, *workdir.parents) if not path.exists()]
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._file, reaches = self._open()
            self._owner = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "machine": _machine(),
                "since": datetime.now().isoformat(" ", "seconds"),
            }
            self._take(reaches)
            self._beat(0)
        except OSError as error:
            raise InputError(f"work directory {workdir} cannot be used: {files.explain(error)}") from None
        self._released = threading.Event()
        self._beats = threading.Thread(target=self._go_on_beating, name="workdir lock", daemon=True)
        self._beats.start()

    def _open(self) -> tuple[int, bool]:
        """A descriptor with a lock, and whether the file system knows locks at all."""
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = _read(file)
                if error.errno in files.NO_LOCKS:
                    return file, False
                os.close(file)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise self._in_use(owner) from None
                raise
            # An owner that ended in the meantime has removed the file that was opened here.
            if _same_file(file, self._path):
                return file, True
            os.close(file)

    def _take(self, reaches: bool) -> None:
        """Takes over what an earlier owner has left; InputError if it is alive elsewhere."""
        owner = _read(self._file)
        if not owner or (reaches and owner.get("machine") == self._owner["machine"]):
            return
        print(
            f"{self._workdir} was last used by pid {owner.get('pid')} on {owner.get('host')}; watching for "
            f"{WATCH_SECONDS:.0f} seconds whether it still is",
            file=sys.stderr,
            flush=True,
        )
        end = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < end:
            time.sleep(min(0.2, BEAT_SECONDS))
            now = _read(self._file)
            if now != owner:
                os.close(self._file)
                raise self._in_use(now or owner)

    def _in_use(self, owner: dict[str, Any]) -> InputError:
        name = "another process"
        if owner:
            name = f"pid {owner.get('pid')} on host {owner.get('host')} since {owner.get('since')}"
        return InputError(
            f"work directory {self._workdir} is in use by {name}; wait for its end, stop it, or choose "
            "another --workdir"
        )

    def _beat(self, count: int) -> None:
        # Always of the same length, so that nobody reads half of an old one.
        text = json.dumps(self._owner | {"beats": f"{count:012d}"}) + "\n"
        os.pwrite(self._file, text.encode(), 0)
        os.ftruncate(self._file, len(text.encode()))
        files.sync(self._file)  # or a network file system keeps it to itself

    def _go_on_beating(self) -> None:
        count = 0
        while not self._released.wait(BEAT_SECONDS):
            count += 1
            try:
                if not self._is_mine():
                    print(f"error: {self._in_use(_read_path(self._path))}", file=sys.stderr, flush=True)
                    os._exit(2)
                self._beat(count)
            except OSError:
                continue  # a directory that was removed, or a server that is away for a while

    def _is_mine(self) -> bool:
        if not self._path.exists():
            return True  # removed with the directory; nobody else has it
        owner = _read(self._file) if _same_file(self._file, self._path) else _read_path(self._path)
        return {name: owner.get(name) for name in self._owner} == self._owner

    def release(self) -> None:
        """Lets others in; leaves no trace."""
        self._released.set()
        self._beats.join()
        with contextlib.suppress(OSError):
            if _same_file(self._file, self._path):
                self._path.unlink()
            for path in self._created:
                path.rmdir()  # if nothing came of it; a directory with something inside stays
        os.close(self._file)


def _machine() -> str:
    """What two processes under one kernel have in common, be they in containers or not."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return socket.gethostname()


def _same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _read(file: int) -> dict[str, Any]:
    """Who has written a lock's file; {} if nobody, or if it is being written."""
    return _parse(os.pread(file, 4096, 0))


def _read_path(path: Path) -> dict[str, Any]:
    return _parse(path.read_bytes())


def _parse(content: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(content)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}
