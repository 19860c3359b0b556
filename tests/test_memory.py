"""What malloc does with what was freed."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.fast

PROGRAM = """
import resource
from ssl_jax.runtime import memory
memory.keep_freed()
for i in range(5):
    if i == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array = b"x" * (64 << 20)
    del array
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def is_new_glibc() -> bool:
    """Others have a largest value of the threshold, of 32 MiB."""
    library, version = platform.libc_ver()
    return library == "glibc" and tuple(map(int, version.split(".")[:2])) >= (2, 35)


@pytest.mark.skipif(not is_new_glibc(), reason="needs glibc 2.35")
def test_an_array_gets_the_pages_of_the_one_that_was_freed():
    """Without, it gets new ones each time: 16,384 of 4 KiB."""
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    ).stdout
    assert int(output) < 1000
