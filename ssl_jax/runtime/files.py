"""Files that appear whole or not at all."""

import codecs
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ssl_jax.runtime.errors import InputError


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file so that a reader, or a crash, finds the old one or the new one, whole.

    Several processes may write the same file at once. A process that is killed leaves `.NAME.*.tmp`.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files that only their owner reads
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a file of text; see `writing`."""
    with writing(path) as file:
        file.write(text.encode())


def decode_text(contents: bytes, path: str | os.PathLike) -> str:
    """Returns the text of a file that a user brought, in UTF-8, with or without a byte order mark.

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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
