"""Batches that a test reads, and compares."""

from collections.abc import Iterator, Sequence

import numpy as np

Batch = dict[str, np.ndarray]


def take(batches: Iterator[Batch], number: int) -> list[Batch]:
    """The next ones."""
    return [next(batches) for _ in range(number)]


def assert_same_batches(first: Sequence[Batch], second: Sequence[Batch]) -> None:
    """The same number of batches, with the same fields of the same values."""
    assert len(first) == len(second)
    for some, other in zip(first, second, strict=True):
        assert some.keys() == other.keys()
        for field in some:
            np.testing.assert_array_equal(some[field], other[field])
