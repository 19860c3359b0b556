"""Which sub-folders are splits of a data set, by their names, and which may be and are therefore refused."""

import itertools
import os
import re
from collections.abc import Mapping, Sequence

from ssl_jax.runtime.errors import InputError

NAMED = 5  # folders that a message names
SPLITS = {  # name of a folder, in small letters -> the split in it
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# These tell of a split as well, but not of which: some mean validation by them, some a test.
UNCLEAR = ("eval", "evaluation", "holdout", "trainval")


def own_splits(path: str, folders: Sequence[str]) -> dict[str, str]:
    """Returns sub-folder -> split for a folder that is divided into them, and {"": "train"} for another.

    Args:
        path: the folder, for messages.
        folders: its sub-folders, at any depth.

    Raises:
        InputError: it may be divided, but the names of its sub-folders do not tell into what.
    """
    names = [name for name in folders if os.sep not in name]
    tops = {name: SPLITS[name.lower()] for name in names if name.lower() in SPLITS}
    others = [name for name in names if name not in tops]
    if not tops or (others and len(tops) == 1):
        check_no_splits(path, folders)  # A class may be called train.
        return {"": "train"}
    if others:
        raise InputError(
            f"{path} has the splits {' and '.join(sorted(tops))} and beside them the folders"
            f" {', '.join(others[:NAMED])}{', ...' if len(others) > NAMED else ''}; move these away."
        )
    if "train" not in tops.values():
        raise InputError(f"{path} has a folder {' and '.join(sorted(tops))}, but none called train.")
    parts = [*tops.values()]
    twice = sorted(name for name, part in tops.items() if parts.count(part) > 1)
    if twice:
        raise InputError(f"{path} has two folders for one split: {' and '.join(twice)}; keep one.")
    check_no_splits(path, [name for name in folders if os.sep in name])
    return tops


def check_no_splits(path: str, folders: Sequence[str]) -> None:
    """Raises InputError if sub-folders, at any depth, look like splits although they are not read as such.

    Args:
        path: the folder, for messages.
        folders: its sub-folders.
    """
    beside: dict[str, list[str]] = {}
    inside: dict[str, set[str]] = {name: set() for name in folders}
    for name in folders:
        above, base = os.path.split(name)
        beside.setdefault(above, []).append(base)
        while above:
            inside.setdefault(above, set()).add(base)
            above = os.path.dirname(above)
    for above, names in beside.items():
        pair = like_splits(names, {name: inside[os.path.join(above, name)] for name in names})
        if pair:
            where = os.path.join(path, above) if above else path
            raise InputError(
                f"{where} has the folders {' and '.join(pair)}, which may be splits or classes; splits must"
                " be called train, val and test, with nothing else beside them in the folder that"
                f" config.data.path gives (now {path}), and classes otherwise: rename them, or give their"
                " folder."
            )


def like_splits(names: Sequence[str], inside: Mapping[str, set[str]]) -> tuple[str, str] | None:
    """Returns two of the folders that lie side by side if these may be splits; None if they are classes.

    They may be splits if

    - all that lie side by side are called after splits, and not all after the same one;
    - one is called after `train` and another after another split, and their names are the same but for that
      (`train2017` and `val2017`);
    - two that are called after different splits hold folders of the same names;
    - one called just `train`, or `training`, holds folders of the same names as another;
    - one that is called just as a split holds folders of the names of those beside it.

    Args:
        names: of the folders.
        inside: name -> names of all folders below it.
    """
    words = {name: split_words(name) for name in names}
    called = [name for name in names if words[name][0]]
    exact = [name for name in names if name.lower() in SPLITS]
    training = [name for name in called if "train" in words[name][0]]
    in_order = sorted(training) + sorted(name for name in called if name not in training)
    for first, second in itertools.combinations(in_order, 2):
        if words[first][0] == words[second][0]:
            continue
        alike = first in training and words[first][1] == words[second][1]
        if len(called) == len(names) or alike or inside[first] & inside[second]:
            return first, second
    for first, second in itertools.product(training, names):
        if first != second and first in exact and inside[first] & inside[second]:
            return first, second
    for first in exact:
        if same := inside[first] & {*names} - {first}:
            return first, min(same)
    return None


def split_words(name: str) -> tuple[set[str], list[str]]:
    """Returns what words of a folder's name say of splits (`train`, ..., or `UNCLEAR`), and the others."""
    known = SPLITS | {name: name for name in UNCLEAR}
    words = [word.removesuffix("set") for word in re.findall("[a-z]+|[0-9]+", name.lower())]
    return {known[word] for word in words if word in known}, [word for word in words if word not in known]
