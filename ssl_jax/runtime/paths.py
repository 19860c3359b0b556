"""Paths that a user gives, by a flag, a key of a config or a variable of the environment; and the user's own.

Every path of a user is read by `read`. Nothing here imports jax.
"""

import os
import re
from pathlib import Path
from typing import Any, NewType

from absl import flags

from ssl_jax.runtime.errors import InputError

# The annotation of a builder's argument that is a path: `config.unpack` reads the key by `read`.
UserPath = NewType("UserPath", str)
flags.disclaim_key_flags()  # `define_flag` defines those of its callers, whose --help shows them
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def read(path: str | os.PathLike, name: str) -> str:
    """What a path of a user means: `~` and `~user` at its beginning are home directories.

    Args:
      path: as it was given.
      name: of the flag, key or variable that it was given by, for the sentence: "--workdir".

    Raises:
      InputError: it is no path of a file system but an address such as gs://bucket/runs, or it begins with
        a home directory that is not known.
    """
    path = os.fspath(path)
    refuse_url(path, name)
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        user = path.partition("/")[0]
        whose = "the user that runs this" if user == "~" else f"a user {user[1:]!r}"
        raise InputError(
            f"{name}={path} begins with the home directory of {whose}, which is not known here; "
            + ("set the variable HOME, or write the path in full" if user == "~" else "write it in full")
        )
    return expanded


def refuse_url(path: str, name: str) -> None:
    """Raises InputError for an address such as gs://bucket/runs where a path of a file system is needed."""
    if is_url(path):
        raise InputError(
            f"{name}={path} is an address, and only paths of a file system can be read and written here; "
            f"mount that store (for gs:// by gcsfuse, for s3:// by mountpoint-s3) and give {name} the path "
            "where it is mounted"
        )


def is_url(path: str) -> bool:
    """Whether this is an address such as gs://bucket/runs, and no path of a file system."""
    return _URL.match(path) is not None


def variable(name: str) -> str | None:
    """The path that a variable of the environment holds; None where it is not set, or empty.

    Raises:
      InputError: see `read`.
    """
    value = os.environ.get(name)
    return read(value, name) if value else None


def home() -> Path | None:
    """The home directory of the user that runs this.

    None where there is none: in a container whose user is a bare number, without the variable HOME.
    """
    directory = os.path.expanduser("~")
    return Path(directory) if os.path.isabs(directory) else None


def cache() -> Path | None:
    """Where this package may keep what can be made anew: $XDG_CACHE_HOME/ssl_jax, else ~/.cache/ssl_jax.

    None where neither is there. By the XDG base directory specification a relative path is left alone.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given) / "ssl_jax"
    directory = home()
    return None if directory is None else directory / ".cache" / "ssl_jax"


# --- Flags


class _PathParser(flags.ArgumentParser):
    """Reads the value of a flag by `read`."""

    syntactic_help = "a path"

    def __init__(self, name: str):
        self._flag = f"--{name}"

    def parse(self, argument: str) -> str:
        return read(argument, self._flag)

    def flag_type(self) -> str:
        return "path"


class _PathsParser(flags.ListParser):
    """Paths separated by commas."""

    def __init__(self, name: str):
        super().__init__()
        self._flag = f"--{name}"

    def parse(self, argument: str | list[str]) -> list[str]:
        return [read(path, self._flag) for path in super().parse(argument)]


def define_flag(name: str, default: str | None, help: str) -> flags.FlagHolder[Any]:
    """Defines a flag whose value is a path."""
    return flags.DEFINE(_PathParser(name), name, default, help)


def define_list_flag(name: str, default: list[str], help: str) -> flags.FlagHolder[Any]:
    """Defines a flag whose value is paths, separated by commas."""
    return flags.DEFINE(_PathsParser(name), name, default, help, serializer=flags.CsvListSerializer(","))
