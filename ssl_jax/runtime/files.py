"""Files that appear whole or not at all, and errors of the system that say nothing of what is in a file."""

import codecs
import contextlib
import errno
import io
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

from ssl_jax.runtime.errors import InputError

Result = TypeVar("Result")

FULL_BYTES = 1 << 20  # free on a file system that counts as full
PAUSE_SECONDS = 1.0  # before a file that could not be reached is tried again


def _numbers(*names: str) -> frozenset[int]:
    """The errnos of these names, as far as this system has them."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


NO_LOCKS = _numbers("ENOLCK", "ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EINVAL")  # of file systems without locks
_NO_SYNC = _numbers("ENOSYS", "EOPNOTSUPP", "ENOTSUP", "EINVAL", "EROFS")  # without fsync
_FORBIDDEN = _numbers("EACCES", "EPERM")
# A server that is away, or too much open here. What a disk answers for a bad sector (EIO) is among them, for
# servers answer the same.
_AWAY = _numbers(
    "EAGAIN", "EBUSY", "ECOMM", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN",
    "EHOSTUNREACH", "EINTR", "EIO", "EKEYEXPIRED", "EMFILE", "ENETDOWN", "ENETRESET", "ENETUNREACH",
    "ENFILE", "ENOBUFS", "ENODEV", "ENOKEY", "ENOLINK", "ENOMEM", "ENONET", "ENOTCONN", "ENXIO",
    "EPIPE", "EREMOTEIO", "ESHUTDOWN", "ESTALE", "ETIMEDOUT",
)  # fmt: skip


def unavailable(error: BaseException, *, forbidden: bool = True) -> str | None:
    """What the system says where a file cannot be reached now; None for an error that says something else.

    Nothing follows from it about what is in the file.

    Args:
      error: of the system; or of a library that knows no errno, such as tensorstore, and passes on the words
        of the system.
      forbidden: whether a missing right to read counts.

    Returns:
      "Stale file handle: 'PATH'", or without a path where the error has none.
    """
    numbers = _AWAY | _FORBIDDEN if forbidden else _AWAY
    if isinstance(error, OSError) and error.errno is not None:
        return explain(error) if error.errno in numbers else None
    if isinstance(error, InputError):
        return None
    return next((words for words in map(os.strerror, sorted(numbers)) if words in str(error)), None)


def explain(error: OSError) -> str:
    """What the system says and of which file, as far as the error knows: "Permission denied: 'PATH'"."""
    words = error.strerror or str(error)
    return words if error.filename is None else f"{words}: {os.fsdecode(error.filename)!r}"


def check_reached(what: object, error: BaseException, *, forbidden: bool = True) -> None:
    """Raises InputError where an error says that something cannot be read now, see `unavailable`.

    Args:
      what: a path, or what else to call it.
      error: of the attempt to read it.
      forbidden: whether a missing right to read counts.
    """
    if reason := unavailable(error, forbidden=forbidden):
        raise out_of_reach(what, reason) from None


def out_of_reach(what: object, reason: str) -> InputError:
    """The sentence for something that cannot be read now, for a reason that `unavailable` gave."""
    return InputError(
        f"{what} cannot be read now ({reason}); nothing was changed, so run this again once the file system "
        "answers and lets this user read"
    )


def try_twice(read: Callable[[], Result]) -> Result:
    """Calls a function that reads files; a second time, after a pause, where one could not be reached.

    A right that is missing does not come by waiting.
    """
    try:
        return read()
    except Exception as error:
        if not unavailable(error, forbidden=False):
            raise
    time.sleep(PAUSE_SECONDS)
    return read()


def describe_full(directories: Iterable[str | os.PathLike]) -> str:
    """Names the directories whose file systems have next to no space: ": DIR has 12 kB of 64 kB left"."""
    full = []
    for directory in directories:
        with contextlib.suppress(OSError):
            usage = shutil.disk_usage(directory)
            if usage.free < FULL_BYTES:
                kilobytes = f"{usage.free // 1000} kB of {usage.total // 1000} kB"
                full.append(f"{directory} has {kilobytes} left")
    return f": {', '.join(dict.fromkeys(full))}" if full else ""


def exists(path: str | os.PathLike) -> bool:
    """Whether there is such a file or directory.

    Raises:
      InputError: nobody knows, for the file system does not answer, even at a second try.
    """
    try:
        try_twice(lambda: os.stat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise out_of_reach(path, explain(error)) from None
    return True


def refusal(path: str | os.PathLike, *, forbidden: bool = True) -> str | None:
    """Reads a file, or all files below a directory; returns what is `unavailable` of them, if anything is."""
    try:
        if not os.path.isdir(path):
            _read_through(path)
        for directory, _, names in os.walk(path, onerror=_raise):
            for name in names:
                _read_through(os.path.join(directory, name))
    except OSError as error:
        return unavailable(error, forbidden=forbidden)
    return None


def _read_through(path: str | os.PathLike) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def _raise(error: OSError) -> None:
    raise error


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file so that a reader, or a crash, finds the old one or the new one, whole.

    Several processes may write the same file at once. A process that is killed leaves `.NAME.*.tmp`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # Not by tempfile, whose files only their owner reads: some file systems refuse to change that.
    file = open(temporary, "xb")  # noqa: SIM115
    try:
        with file:
            yield file
            file.flush()
            sync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_through(file: io.FileIO, data: bytes) -> None:
    """Hands all of the data to the system.

    Args:
      file: opened for writing with `buffering=0`: a buffer that a full disk has refused would be written once
        more, and complain, when Python removes it.
      data: what is appended.
    """
    while data:
        data = data[file.write(data) :]


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file of text; see `writing`."""
    with writing(path) as file:
        file.write(text.encode())


def decode_text(contents: bytes, path: str | os.PathLike) -> str:
    """The text of a file that a user brought, in UTF-8, with or without a byte order mark.

    Bytes that are no UTF-8, as in names of files of older systems, are kept as `os.fsdecode` keeps them.

    Args:
      contents: of the file.
      path: what to call it in a message.

    Raises:
      InputError: it is in UTF-16 or UTF-32, or no text.
    """
    if b"\0" in contents or contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path} is text in UTF-16, or no text at all; save it as UTF-8.")
    return contents.decode("utf-8-sig", "surrogateescape")


def sync(file: int) -> None:
    """Has the system bring a file (a descriptor) to its disk, where the file system knows how to."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
