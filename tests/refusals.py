"""Programs that a test starts on a file system that refuses: a library of C between them and the system."""

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@functools.cache
def library() -> str:
    """Compiles `refusals.c`; skips the test where there is no compiler."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler, cc")
    path = Path(tempfile.mkdtemp()) / "refusals.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", path, Path(__file__).with_suffix(".c"), "-ldl"], check=True
    )
    return str(path)


def refuse(
    calls: str, number: int, path: str | Path = "", times: int | None = None, after: int = 0
) -> dict[str, str]:
    """Environment variables by which calls are refused.

    Args:
      calls: any of open, read, stat, list, chmod, sync, lock, with commas between.
      number: errno.
      path: a part of the paths for which they are; all by default.
      times: how often; for ever by default.
      after: so many of the calls are answered before.
    """
    variables = {"REFUSED_CALLS": calls, "REFUSED_ERRNO": str(number), "REFUSED_PATH": str(path)}
    variables["REFUSED_AFTER"] = str(after)
    return variables if times is None else variables | {"REFUSED_TIMES": str(times)}


def environment(**variables: str) -> dict[str, str]:
    """That of a program under the library, on one device, with further variables."""
    common = {"LD_PRELOAD": library(), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return os.environ | common | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | variables
