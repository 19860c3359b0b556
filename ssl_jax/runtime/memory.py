"""How the process holds the host's memory."""

import ctypes
import sys

# Of mallopt in malloc.h: what is larger is a mapping of its own, and what is freed at the heap's end beyond
# so many bytes goes back to the system.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 1 << 30


def keep_freed() -> None:
    """Has malloc keep arrays of up to 1 GiB that are freed, for the next ones.

    XLA's CPU backend allocates the temporary arrays of a program anew at every call. Where they take more
    than 32 MiB, glibc would get them from the system each time, which zeroes every page of 4 KiB when it
    is first touched: a sixth of the time of an update of a Q-network. Other arrays that come and go, such
    as batches of pictures, gain as well. Without glibc, or with one before 2.35, nothing changes.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_KEPT - 1)
