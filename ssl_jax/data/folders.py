"""Pictures in a folder of one's own: class folders or flat, with splits as sub-folders or cut by a hash.

`make` finds the pictures below a folder and decides on their splits; the `Folder` it returns is used like
`sources.Sources`, and `Folder.open` gives one split as `Pictures`, used like `sources.Source`. What is
found is kept in a manifest (`.ssl_jax` inside the folder), so that only sub-folders that changed since
are listed again. `ssl_jax.data.videos` builds on the same parts.

Nothing outside the folder is ever read: links that lead out of it are left out when it is listed, and
every path is resolved again when its file is read, whatever a manifest says.
"""

import dataclasses
import difflib
import hashlib
import logging
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ssl_jax.data import formats, manifests, sources, split_names
from ssl_jax.runtime import files, paths
from ssl_jax.runtime.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

SUFFIXES = {  # by the name of the data set
    "folder": (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    "videos": (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"),
}
MAX_BYTES = 2**29  # of one file: more than any picture of as many pixels as Pillow accepts
# A folder that changed this shortly before it was listed may have changed again without another time.
SETTLED = 2 * 10**9  # nanoseconds
NO_CLASSES = "labels are the names of sub-folders, each with the pictures or videos of one class"
MAX_SHARE = 33  # percent of `train` that may be cut off for each missing split
EVEN = 1000  # files up to which hashes only tell their order, lest a few leave a split empty
NAMED = 5  # files that a message names
NOTHING = "nothing"  # what a message calls the contents of an empty folder

# What other programs leave in folders, in small letters: thumbnails of a NAS, resource forks of macOS,
# recycle bins, snapshots, what a file system check has found.
DEBRIS = (
    "#recycle", "#snapshot", "$recycle.bin", "@eadir", "@recently-snapshot", "@recycle", "@sharesnap",
    "@tmp", "__macosx", "desktop.ini", "ehthumbs.db", "found.000", "icon\r", "lost+found",
    "network trash folder", "system volume information", "temporary items", "thumbs.db", "~snapshot",
)  # fmt: skip


class Paths(Sequence[str]):
    """Many paths in little memory, quick to send to other processes."""

    def __init__(self, paths: Iterable[str]):
        encoded = [os.fsencode(path) for path in paths]
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._text = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return os.fsdecode(self._text[self._ends[index] : self._ends[index + 1]])


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Random access to encoded pictures; a `sources.Source`.

    Attributes:
        name: folder and split, for messages: `/data/birds train[2%:]`.
        root: the folder, without links in its path.
        paths: of the pictures, relative to it.
        values: field -> its values, one for each picture.
        features: the fields to give besides the picture.
    """

    name: str
    root: str
    paths: Paths
    values: Mapping[str, np.ndarray]
    features: "tfds.features.FeaturesDict"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns {"image": the encoded picture (bytes), field: np.ndarray, ...}."""
        return {"image": read_inside(self.root, self.paths[index])} | self.fields(index)

    def read(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Reads several examples, each when it is asked for."""
        return (self[index] for index in indices)

    def fields(self, index: int) -> dict[str, np.ndarray]:
        """Returns the fields of an example without its picture, which is not read."""
        return {field: self.values[field][index] for field in self.features}

    def describe(self, index: int) -> str:
        """Returns what to call an example in a message."""
        return self.paths[index]

    def fingerprint(self) -> str:
        """Returns a digest of the names of the pictures in the folder, in order; not of their contents."""
        return sources.digest(map(os.fsencode, self.paths))

    def take(self, name: str, items: np.ndarray, fields: Sequence[str]) -> "Pictures":
        """Returns the pictures `items` (int [N]) as a source of their own, with some of the fields."""
        return Pictures(
            name,
            self.root,
            Paths(self.paths[item] for item in items),
            {field: self.values[field][items] for field in fields},
            only(self.features, fields),
        )


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of pictures or videos and what its splits are; a `sources.Sources`.

    Attributes:
        name: the path.
        splits: split -> expression, for those of `sources.SPLITS` that may be opened: one of `parts`, or a
            share of it, by percent of the hashes of the paths: `train[2%:]`.
        contents: everything in the folder: `Pictures` or `videos.Frames`.
        parts: `train`, and `validation` and `test` where the folder has them.
        left_out: cause -> the files and folders that are not used for it, of videos with what is wrong.
        split_folders: one of `parts` -> the sub-folder that it is read from; empty where the folder is not
            divided into splits.
    """

    name: str
    splits: Mapping[str, str]
    contents: Any
    parts: Mapping[str, "Part"]
    left_out: Mapping[str, tuple[str, ...]]
    split_folders: Mapping[str, str]

    @property
    def features(self) -> "tfds.features.FeaturesDict":
        """The fields that there are besides the picture."""
        return self.contents.features

    def open(self, split: str, fields: Sequence[str] = ()) -> Any:
        """Opens a split.

        Args:
            split: one of `sources.SPLITS`.
            fields: what to give of an example besides `image`: `label` where there are class folders,
                and `episode` and `step` of videos.

        Raises:
            InputError: no such field.
        """
        for field in fields:
            if field not in self.features:
                if field == "label" or not self.features:
                    raise InputError(f"{self.name} has no field {field!r}: {NO_CLASSES}.")
                raise InputError(sources.unknown_name(f"field of {self.name}", field, self.features))
        items = select(self.parts, *parse(self.splits[split], self.parts, self.name))
        return self.contents.take(f"{self.name} {self.splits[split]}", items, fields)

    def class_names(self, field: str) -> tuple[str, ...]:
        """Returns the names of the classes of a class label, in the order of their ids."""
        return tuple(self.features[field].names)


class Part(NamedTuple):
    """Pictures or videos that the folder itself keeps together.

    Attributes:
        items: int [N], which.
        places: float [N], where in the part each is cut, from 0 to 100: a hash.
    """

    items: np.ndarray
    places: np.ndarray


def make(
    *, path: str, splits: Mapping[str, str] | None = None, opened: Sequence[str] = sources.SPLITS
) -> Folder:
    """Finds the pictures below a folder, and its splits.

    Splits are the sub-folders `train` (or `training`), `val` (`valid`, `validation`, `dev`, `development`)
    and `test` (`testing`), in small or capital letters, if nothing else lies beside them
    (`Folder.split_folders` tells). Those that are missing are cut from `train`, as `sources.make` cuts them,
    by a hash of the path, so that a picture of many stays in its split when others are added. Where one
    percent would hold no picture, as many are cut as it takes (`Folder.splits` tells).

    There is a field `label` where every picture lies in one of at least two sub-folders (of a split).

    Args:
        path: the folder. Files and folders whose names begin with a dot, and `DEBRIS` of other programs, are
            no part of it.
        splits: expressions that replace those above, for example `{"train": "train[20%:]",
            "selection": "train[:10%]", "validation": "train[10%:20%]", "test": "train[10%:20%]"}`.
        opened: as in `sources.make`.

    Raises:
        InputError: there is no such folder, or no picture in it; sub-folders look like splits and are none
            that can be told; a class has no pictures; splits are unknown, empty, or share pictures.
    """
    root = existing(path)
    tree = find(path, root, "folder", manifest="pictures")
    plan = arrange(path, tree, key=lambda name: name)
    values, features = with_label({}, {}, plan)
    contents = Pictures(path, root, Paths(tree.paths), values, features)
    return divide(path, contents, plan, splits, tree.left_out | plan.left_out, opened)


def divide(
    path: str,
    contents: Any,
    plan: "Plan",
    splits: Mapping[str, str] | None,
    left_out: Mapping[str, Sequence[str]],
    opened: Sequence[str] = sources.SPLITS,
) -> Folder:
    """Decides on the splits of what was found, and tells the log what is not used.

    Raises:
        InputError: splits are unknown, empty, or share files.
    """
    parts = plan.parts
    for share in range(1, MAX_SHARE + 1):
        chosen = sources.choose_splits(parts, splits, share, opened)
        rows = {split: [parse(expression, parts, path)] for split, expression in chosen.items()}
        empty = [split for split, ((part, percents),) in rows.items()
                 if not len(select(parts, part, percents))]  # fmt: skip
        if not empty:
            break
    else:
        raise InputError(
            f"The split {empty[0]} of {path} is empty ({chosen[empty[0]]}, of"
            f" {len(parts['train'].items)} files); give it a larger part, add files, or make a folder for it."
        )
    sources.check_disjoint(path, chosen, rows)
    for part, folder in plan.split_folders.items():
        logging.info("%s: the sub-folder %s is read as the split %s.", path, folder, part)
    for cause, names in left_out.items():
        logging.warning("%s: %d left out (%s): %s", path, len(names), cause, some(names))
    left_out = {cause: tuple(names) for cause, names in left_out.items()}
    return Folder(path, chosen, contents, parts, left_out, plan.split_folders)


def parse(expression: str, parts: Mapping[str, Part], path: str) -> tuple[str, range]:
    """Returns the part and the percents of it that a split expression means."""
    found = re.fullmatch(r"(\w+)(?:\[(?:(\d+)%)?:(?:(\d+)%)?\])?", expression)
    name = found and split_names.SPLITS.get(found[1].lower())
    percents = found and range(int(found[2] or 0), int(found[3] or 100))
    if name not in parts or percents.stop > 100:
        raise InputError(
            f"{path} has no {expression!r}; it has {' and '.join(parts)}, and parts are written like"
            " train[:90%] or train[5%:10%]."
        )
    return name, percents


def select(parts: Mapping[str, Part], name: str, percents: range) -> np.ndarray:
    """Returns which pictures or videos of a part lie within some percents of it."""
    items, places = parts[name]
    return items[(percents.start <= places) & (places < percents.stop)]


# --- What lies in a folder


@dataclasses.dataclass
class Tree:
    """What was found below a folder, by paths relative to it, in the order of their names.

    Attributes:
        paths: the files with one of the suffixes.
        folders: the sub-folders, at any depth.
        others: folder -> suffix -> number of other files that lie directly in it.
        left_out: cause -> files and folders that cannot be used.
    """

    paths: list[str] = dataclasses.field(default_factory=list)
    folders: list[str] = dataclasses.field(default_factory=list)
    others: dict[str, Counter] = dataclasses.field(default_factory=dict)
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def others_below(self, folder: str = "") -> Counter:
        """Returns suffix -> number of other files in a folder and below it."""
        found = Counter()
        for name, counts in self.others.items():
            if is_below(name, folder):
                found.update(counts)
        return found


def existing(path: str) -> str:
    """Returns the path of a folder without links in it.

    Raises:
        InputError: there is no such folder; see also `paths.read`.
    """
    path = paths.read(path, "data.path")
    if os.path.isdir(path):
        return os.path.realpath(path)
    try:
        os.stat(path)
    except OSError as error:
        files.check_reached(path, error)
    if os.path.exists(path):
        raise InputError(f"{path} is a file; give the folder it lies in.")
    above, name = os.path.split(os.path.abspath(path))
    if not os.path.isdir(above):
        raise InputError(f"There is no folder {path}, nor the folder {above} that it would lie in.")
    near = difflib.get_close_matches(name, os.listdir(above), n=3, cutoff=0.0)
    raise InputError(f"There is no folder {path}; {above} holds {' and '.join(near) or 'nothing'}.")


def is_below(path: str, folder: str) -> bool:
    """Whether a path is that of a folder ("": the root), or of something in it at any depth."""
    return folder in ("", path) or path.startswith(folder + os.sep)


def is_debris(name: str) -> bool:
    """Whether a file or folder is none of the user's by its name: hidden, or one of `DEBRIS`."""
    return name.startswith(".") or name.lower() in DEBRIS


def find(path: str, root: str, dataset: str, manifest: str | None = None) -> Tree:
    """Lists the pictures (data set `folder`) or `videos` below a folder, and tells the log of other files.

    Args:
        path: the folder, for messages.
        root: the same, without links in its path.
        dataset: one of `SUFFIXES`.
        manifest: see `scan`.

    Raises:
        InputError: there is nothing to read.
    """
    tree = scan(root, SUFFIXES[dataset], manifest)
    if not tree.paths:
        raise InputError(nothing_found(path, dataset, tree))
    if others := tree.others_below():
        logging.warning("%s: not read, by their suffixes: %s", path, counted(others))
    return tree


def scan(root: str, suffixes: Sequence[str], manifest: str | None = None) -> Tree:
    """Lists everything below a folder.

    Args:
        root: the folder, without links in its path.
        suffixes: of the files looked for, in small letters.
        manifest: where to keep what was found; a sub-folder whose modification time has not changed since
            is not listed again. It tells when files were added, removed or renamed; that a file has other
            contents changes nothing here.
    """
    known = {}
    header = {"version": 2, "suffixes": list(suffixes)}  # Version 1 listed the debris of other programs.
    if manifest:
        known = {row["folder"]: row for row in manifests.read(root, manifest, header) if is_listing(row)}
    rows, tree, waiting = {}, Tree(), [""]
    while waiting:
        name = waiting.pop()
        row = known.get(name)
        try:
            state = os.stat(os.path.join(root, name), follow_symlinks=False)
            if not stat.S_ISDIR(state.st_mode):
                continue
            if row is None or not is_current(row, state.st_mtime_ns):
                row = _list_folder(root, name, state.st_mtime_ns, suffixes)
        except OSError as error:
            files.check_reached(os.path.join(root, name), error, forbidden=False)
            tree.left_out.setdefault("unreadable", []).append(name or root)
            continue
        rows[name] = row
        waiting += [os.path.join(name, folder) for folder in row["folders"]]
    for name in sorted(rows):
        row = rows[name]
        tree.folders += [name] if name else []
        tree.paths += [os.path.join(name, file) for file in row["files"]]
        if row["others"]:
            tree.others[name] = Counter(row["others"])
        if row["links"]:
            links = tree.left_out.setdefault("link out of the folder or to a folder", [])
            links += [os.path.join(name, link) for link in row["links"]]
    tree.paths.sort()
    if manifest and rows != known:
        manifests.write(root, manifest, header, rows.values())
    return tree


def _list_folder(root: str, folder: str, time_ns: int, suffixes: Sequence[str]) -> dict[str, Any]:
    """Returns what lies in a folder: a line of the manifest."""
    row = {"folder": folder, "time": time_ns, "listed": time.time_ns()}
    files, folders, links, others = [], [], [], Counter()
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            if is_debris(entry.name):
                continue
            if entry.is_symlink() and not (entry.is_file() and is_inside(root, entry.path)):
                links.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file() and entry.name.lower().endswith(tuple(suffixes)):
                files.append(entry.name)
            else:
                others[os.path.splitext(entry.name)[1].lower()] += 1
    found = {"files": sorted(files), "folders": sorted(folders), "links": sorted(links)}
    return row | found | {"others": dict(others)}


def is_current(row: dict[str, Any], time_ns: int) -> bool:
    """Whether a folder is as it was when it was listed, by the time when it last changed.

    Some file systems keep no such time, and always give 0.
    """
    return 0 < time_ns == row["time"] <= row["listed"] - SETTLED


def is_listing(row: dict[str, Any]) -> bool:
    """Whether a line of a manifest can be what `_list_folder` returned; a manifest may come with the data."""
    try:
        lists = [
            row["files"],
            row["folders"],
            row["links"],
            row["folder"].split(os.sep) if row["folder"] else [],
        ]
        numbers = [row["time"], row["listed"], *row["others"].values()]
        return all(isinstance(names, list) for names in lists) and all(
            [name and not is_debris(name) and not {"/", "\0"} & {*name} for names in lists for name in names]
            + [isinstance(number, int) for number in numbers]
        )
    except (KeyError, TypeError, AttributeError):
        return False


def nothing_found(path: str, dataset: str, tree: Tree) -> str:
    """Returns the sentence for a folder without pictures (data set `folder`), or without `videos`."""
    kinds = {"folder": "pictures", "videos": "videos"}
    (other,) = kinds.keys() - {dataset}
    hint = (
        f"; for its {kinds[other]} give config.data.name={other}"
        if {*tree.others_below()} & {*SUFFIXES[other]}
        else ""
    )
    return (
        f"{path} has no {kinds[dataset]} ({', '.join(SUFFIXES[dataset])}); it holds {not_read(tree)}{hint}."
    )


def not_read(tree: Tree, folder: str = "") -> str:
    """Returns what lies in and below a folder, for a message that nothing of it is read."""
    others = tree.others_below(folder)
    there = [counted(others)] if others else []
    for cause, names in tree.left_out.items():
        if names := [name for name in names if is_below(name, folder)]:
            there.append(f"{len(names)} {cause} ({some(names)})")
    return ", ".join(there) or NOTHING


def counted(suffixes: Counter) -> str:
    """Returns the commonest suffixes, for a message: `3 .txt, 1 without a suffix`."""
    return ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in suffixes.most_common(NAMED))


def joined(path: str, folder: str) -> str:
    """Returns the path of a sub-folder ("": of the folder itself), for a message."""
    return os.path.join(path, folder) if folder else path


def some(names: Sequence[str]) -> str:
    """Returns the first of many names, for a message."""
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


# --- Splits and classes


@dataclasses.dataclass
class Plan:
    """How a folder is arranged.

    Attributes:
        parts: see `Folder`.
        classes: names of the classes, in the order of their ids; empty without classes.
        labels: int64 [N], of all files; -1 for those in no part.
        left_out: cause -> files.
        split_folders: see `Folder`.
    """

    parts: dict[str, Part]
    classes: tuple[str, ...]
    labels: np.ndarray
    left_out: dict[str, list[str]]
    split_folders: dict[str, str] = dataclasses.field(default_factory=dict)


def arrange(path: str, tree: Tree, key: Callable[[str], str]) -> Plan:
    """Finds splits and classes in the names of folders.

    Args:
        path: the folder, for messages.
        tree: what lies in it.
        key: from a path to what decides on its place in a split; files with the same key stay together.

    Raises:
        InputError: the names of the sub-folders do not tell what is meant, or a class has no files.
    """
    tops = split_names.own_splits(path, tree.folders)
    members: dict[str, list[int]] = {part: [] for part in tops.values()}
    classes: list[str | None] = []
    beside = []
    for item, name in enumerate(tree.paths):
        top, _, rest = name.partition(os.sep) if "" not in tops else ("", "", name)
        if top not in tops or not rest:
            beside.append(name)
            classes.append(None)
            continue
        members[tops[top]].append(item)
        classes.append(rest.partition(os.sep)[0] if os.sep in rest else "")
    for top, part in tops.items():
        if not members[part]:
            raise InputError(
                f"Nothing to read is in the sub-folder {top} of {path}, which holds {not_read(tree, top)};"
                " fill or remove it."
            )
    names = check_classes(path, tree, tops, members, classes)
    ids = {name: number for number, name in enumerate(names)}
    labels = np.array([ids.get(name, -1) for name in classes], np.int64)
    parts = {part: cut(items, [key(tree.paths[item]) for item in items]) for part, items in members.items()}
    left_out = {"beside the splits": beside} if beside else {}
    return Plan(parts, names, labels, left_out, {part: top for top, part in tops.items() if top})


def check_classes(
    path: str,
    tree: Tree,
    tops: Mapping[str, str],
    members: Mapping[str, Sequence[int]],
    classes: Sequence[str | None],
) -> tuple[str, ...]:
    """Returns the names of the classes, in order: none if some file lies in no class folder.

    Raises:
        InputError: a class folder holds nothing that is read (in another split than `train` it may be empty),
            or `train` lacks a class that another split has.
    """
    found = {part: {classes[item] for item in items} for part, items in members.items()}
    named = set().union(*found.values())
    if named == {""}:
        return ()
    if "" in named:
        loose = [name for name, kind in zip(tree.paths, classes, strict=True) if kind == ""]
        logging.warning(
            "%s: %d files lie in no class folder, so there are no labels: %s", path, len(loose), some(loose)
        )
        return ()
    for top, part in tops.items():
        kinds = [name.removeprefix(top).lstrip(os.sep) for name in tree.folders if is_below(name, top)]
        empty = sorted({name for name in kinds if name and os.sep not in name} - found[part])
        if part != "train":  # Some classes may lack pictures to judge by.
            empty = [
                name
                for name in empty
                if name not in named or not_read(tree, os.path.join(top, name)) != NOTHING
            ]
        if empty:
            raise InputError(
                f"Nothing to read is in the class folder {some(empty)} of {joined(path, top)}, which holds"
                f" {not_read(tree, os.path.join(top, empty[0]))}; fill or remove it."
            )
    strange = sorted(named - found["train"])
    if strange:
        raise InputError(
            f"{path} has no class {some(strange)} to train on, but one to judge by; its classes are"
            f" {some(sorted(found['train']))}."
        )
    for part, kinds in found.items():
        if absent := sorted(named - kinds):
            logging.warning("%s: the split %s has nothing of the class %s.", path, part, some(absent))
    return tuple(sorted(named)) if len(named) > 1 else ()


def cut(items: Sequence[int], keys: Sequence[str]) -> Part:
    """Places files within a part, by a hash of their keys; evenly if there are few different ones."""
    hashes = [hashlib.blake2b(os.fsencode(key), digest_size=8).digest() for key in keys]
    places = np.frombuffer(b"".join(hashes), ">u8") / 2.0**64
    different, ranks = np.unique(places, return_inverse=True)
    if len(different) <= EVEN:
        places = (ranks + 0.5) / len(different)
    return Part(np.array(items, np.int64), 100 * places)


def with_label(
    values: dict[str, np.ndarray], features: dict[str, Any], plan: Plan
) -> tuple[dict[str, np.ndarray], "tfds.features.FeaturesDict"]:
    """Returns values and features of a source, with `label` if there are classes."""
    import tensorflow_datasets as tfds

    if plan.classes:
        names = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in plan.classes]
        features = features | {"label": tfds.features.ClassLabel(names=names)}
        values = values | {"label": plan.labels}
    return values, tfds.features.FeaturesDict(features)


def only(features: "tfds.features.FeaturesDict", fields: Sequence[str]) -> "tfds.features.FeaturesDict":
    """Returns some of the features."""
    return type(features)({field: features[field] for field in fields})


# --- Files


def is_inside(root: str, path: str) -> bool:
    """Whether a path, its links followed, stays in a folder (whose own path has no links)."""
    return os.path.realpath(path).startswith(root.rstrip(os.sep) + os.sep)


def inside(root: str, path: str) -> str:
    """Returns the path of a file in a folder.

    Raises:
        ValueError: it leads out of the folder.
    """
    full = os.path.join(root, path)
    if not is_inside(root, full):
        raise ValueError(f"{path} leads out of {root}")
    return full


def read_inside(root: str, path: str) -> bytes:
    """Reads a file of a folder.

    Raises:
        ValueError: it leads out of the folder, or is no regular file.
        sources.TooLargeError: it has more than `MAX_BYTES`.
    """
    full = inside(root, path)
    return files.try_twice(lambda: _read_file(full, path))


def _read_file(full: str, path: str) -> bytes:
    size = os.stat(full)
    if not stat.S_ISREG(size.st_mode):
        raise ValueError(f"{path} is no regular file")
    if size.st_size > MAX_BYTES:
        raise sources.TooLargeError(f"{size.st_size} bytes, of which {MAX_BYTES} are accepted")
    with open(full, "rb") as file:
        return file.read(MAX_BYTES)


def read_text(root: str, path: str) -> str:
    """Reads a file of text of a folder; see `runtime.files.decode_text`.

    Raises:
        InputError: it is in UTF-16, or only points to the text.
        ValueError: it cannot be read; see `read_inside`.
    """
    contents, full = read_inside(root, path), os.path.join(root, path)
    what = formats.identify(contents[: formats.HEAD])
    if what in formats.POINTERS:
        raise InputError(f"{full} is {what}.")
    return files.decode_text(contents, full)
