"""What was found in a folder of data, kept so that only what has changed is looked at again.

A manifest is a file of JSON lines in the directory `.ssl_jax` of the folder, or in the user's cache where the
folder cannot be written to. It may come with the data, so that its readers check what it says.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ssl_jax.runtime import files, paths

DIRECTORY = ".ssl_jax"


def places(root: str, name: str) -> list[str]:
    """Where a manifest of a folder can lie: in it, or in the user's cache, if there is one."""
    found = [os.path.join(root, DIRECTORY, f"{name}.jsonl")]
    cache = paths.cache()
    if cache is not None:
        key = hashlib.blake2b(os.fsencode(root), digest_size=16).hexdigest()
        found.append(os.path.join(cache, "manifests", key, f"{name}.jsonl"))
    return found


def read(root: str, name: str, header: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Reads what `write` has written under the same header; nothing where that cannot be read.

    Yields:
        JSON objects; that of the user's cache, which can only be newer, last.
    """
    for place in places(root, name):
        try:
            with open(place, encoding="ascii") as file:
                rows = [json.loads(line) for line in file]
        except (OSError, ValueError, RecursionError):
            continue
        if rows and rows[0] == header:
            yield from (row for row in rows[1:] if isinstance(row, dict))


def write(root: str, name: str, header: dict[str, Any], rows: Iterable[dict[str, Any]]) -> None:
    """Writes a manifest, whole or not at all; several processes may do so at once.

    Where neither the folder nor the user's cache can be written to, the log says so.
    """
    text = "".join(json.dumps(row) + "\n" for row in [header, *rows])
    for place in places(root, name):
        above = os.path.dirname(place)
        try:
            os.makedirs(above, exist_ok=True)
            if os.path.islink(above):
                continue
            files.write_text(place, text)
        except OSError:
            continue
        return
    logging.warning("No manifest of %s could be kept: it will be listed again next time.", root)


def pack(values: Sequence[int]) -> list:
    """Returns increasing numbers as the first and runs of equal steps: [first, [[step, times], ...]]."""
    steps = np.diff(np.asarray(values, np.int64))
    ends = np.flatnonzero(np.append(np.diff(steps), 1)) if len(steps) else np.zeros(0, int)
    times = np.diff(np.append(-1, ends))
    return [int(values[0]), [[int(steps[end]), int(number)] for end, number in zip(ends, times, strict=True)]]


def unpack(packed: Sequence) -> np.ndarray:
    """Returns what was packed: int64 [N]."""
    first, runs = packed
    steps = [np.full(number, step, np.int64) for step, number in runs]
    return np.cumsum(np.concatenate([[first], *steps]))
