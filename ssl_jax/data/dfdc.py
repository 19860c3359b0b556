"""Frames of DeepFake Detection Challenge videos, as Kaggle ships them, and splits that say what leaks.

The directory holds folders `dfdc_train_part_*`, or is one itself, each with videos and a `metadata.json`; or
these lie one folder deeper, as where each archive was unpacked in a folder of its own:
`{"abc.mp4": {"label": "FAKE", "split": "train", "original": "def.mp4"}, ...}`, in which the original of a
REAL video is null. `make` samples frames evenly from every video, in one decoding pass, keeps them in a
store, and gives the splits `train`, `validation` and `test` as `Frames`, used like `sources.Source`.

Three ways to split, from the easiest to the hardest test:

- `random`: by frame, so that other frames of a test video are learned from (on purpose: the paper has it);
- `hard`: by video, though a fake may be tested whose original, or another fake of it, is learned from;
- `grouped`: by original, so that nothing of a recording is on both sides.

Faces are cropped by `faces`, where `crop="face"` asks for it.

Source: Dolhansky et al., "The DeepFake Detection Challenge (DFDC) Dataset", 2020 (arXiv 2006.07397).
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import rich.console
import rich.progress
from PIL import Image

from ssl_jax.data import building, faces, folders, manifests, pipeline, videos
from ssl_jax.data.sources import digest, ppm, unknown_name
from ssl_jax.runtime import files, paths
from ssl_jax.runtime.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

METADATA = "metadata.json"
PART = "dfdc_train_part_"
LABELS = ("REAL", "FAKE")  # in the order of their ids
SPLITS = ("train", "validation", "test")
MODES = ("random", "hard", "grouped")
CROPS = ("centre", "face", "none")
FIELDS = ("label", "video", "original", "step")
VERSION = 2  # of what the store holds; 1 turned some videos wrongly
THREADS = 8  # videos decoded at once, at most; each holds its sampled frames at full size
MAX_FRAMES = 10_000  # of a video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which pictures are taken of a video.

    Attributes:
        frames: how many, evenly apart from the first on; of a shorter video all.
        size: height and width in pixels; None keeps those of the video.
        crop: `centre` (the largest square in the middle), `face` (a square around the largest face, see
            `faces`, however small it is; of a video without faces, the one in the middle) or `none` (the
            whole frame; `size` then changes its proportions).

    Raises:
        InputError: a number or a name is not possible, or faces cannot be looked for.
    """

    frames: int
    size: int | None
    crop: str

    def __post_init__(self):
        if not 1 <= self.frames <= MAX_FRAMES:
            raise InputError(f"frames={self.frames} of a video must be from 1 to {MAX_FRAMES}.")
        if self.size is not None and self.size < 1:
            raise InputError(f"size={self.size} must be a number of pixels from 1 on, or None.")
        if self.crop not in CROPS:
            raise InputError(unknown_name("crop", self.crop, CROPS))
        if self.crop == "face":
            if self.size is None:
                raise InputError("crop='face' needs a size: faces are not all of one.")
            faces.check()


@dataclasses.dataclass(frozen=True)
class Listing:
    """The videos that are both listed and there, in the order of their paths.

    Attributes:
        root: the directory, without links in its path.
        paths: of the videos, relative to it.
        labels: int64 [V], ids in `LABELS`.
        originals: int64 [V], which recording: the same for a video, all fakes of it, and fakes of these.
            Files of the same name in two parts count as the same.
        left_out: cause -> files that are not used.
        doubtful: cause -> videos that are used although they, or their originals, are not as they should be.
    """

    root: str
    paths: tuple[str, ...]
    labels: np.ndarray
    originals: np.ndarray
    left_out: Mapping[str, tuple[str, ...]]
    doubtful: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Frames:
    """Random access to stored frames; a `sources.Source`.

    Attributes:
        name: directory and split, for messages: `/data/dfdc hard train`.
        store: the directory of the stored frames.
        files: of the frames of each video, in the store.
        paths: of the videos, relative to their directory.
        rows: int32 [N, 3]: which video, which frame of its file, which frame of the video.
        values: field -> its values, one for each video.
        features: the fields to give besides the picture.
    """

    name: str
    store: str
    files: folders.Paths
    paths: folders.Paths
    rows: np.ndarray
    values: Mapping[str, np.ndarray]
    features: "tfds.features.FeaturesDict"

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns {"image": the frame as a PPM file (bytes), field: np.ndarray, ...}."""
        video, frame, _ = self.rows[index]
        stored = np.load(os.path.join(self.store, self.files[int(video)]), mmap_mode="r", allow_pickle=False)
        if stored.dtype != np.uint8 or stored.ndim != 4 or stored.shape[3] != 3:
            raise ValueError(f"{self.files[int(video)]} in {self.store} holds no pictures")
        pixels = stored[frame]
        return {"image": ppm(pixels)} | self.fields(index)

    def read(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Reads several examples, each when it is asked for."""
        return (self[index] for index in indices)

    def fields(self, index: int) -> dict[str, np.ndarray]:
        """Returns the fields of an example without its picture, which is not read."""
        video, _, step = self.rows[index]
        return {field: step if field == "step" else self.values[field][video] for field in self.features}

    def describe(self, index: int) -> str:
        """Returns what to call an example in a message."""
        video, _, step = self.rows[index]
        return f"{self.paths[int(video)]}, frame {step}"

    def fingerprint(self) -> str:
        """Returns a digest of the names of the videos, and of which of their frames there are."""
        return digest([*map(os.fsencode, self.paths), np.ascontiguousarray(self.rows).tobytes()])


@dataclasses.dataclass(frozen=True)
class Dfdc:
    """The frames of a directory and what split each is in; used like `sources.Sources`.

    Attributes:
        name: the path.
        mode: one of `MODES`.
        contents: all frames.
        assignment: int8 [N], which of `SPLITS` each frame is in.
        left_out: cause -> videos and frames that are not used, with what is wrong where it can be said.
    """

    name: str
    mode: str
    contents: Frames
    assignment: np.ndarray
    left_out: Mapping[str, tuple[str, ...]]

    @property
    def features(self) -> "tfds.features.FeaturesDict":
        """The fields that there are besides the picture: `FIELDS`."""
        return self.contents.features

    def open(self, split: str, fields: Sequence[str] = ()) -> Frames:
        """Opens a split.

        Args:
            split: one of `SPLITS`.
            fields: what to give of a frame besides `image`: `label` (see `LABELS`), `video` and `original`
                (int32, numbered over the directory), `step` (int32, which frame of the video).

        Raises:
            InputError: no such split or field.
        """
        if split not in SPLITS:
            raise InputError(unknown_name("split", split, SPLITS))
        for field in fields:
            if field not in self.features:
                raise InputError(unknown_name(f"field of {self.name}", field, self.features))
        return dataclasses.replace(
            self.contents,
            name=f"{self.name} {self.mode} {split}",
            rows=self.contents.rows[self.assignment == SPLITS.index(split)],
            values={field: self.contents.values[field] for field in fields if field != "step"},
            features=folders.only(self.features, fields),
        )

    def class_names(self, field: str) -> tuple[str, ...]:
        """Returns the names of the classes of `label`, in the order of their ids."""
        return tuple(self.features[field].names)

    def balance(self) -> dict[str, dict[str, dict[str, int]]]:
        """Returns how much there is of each label: split -> `videos` or `frames` -> label -> number."""
        of = self.contents.rows[:, 0]
        counts = {}
        for number, split in enumerate(SPLITS):
            frames = of[self.assignment == number]
            kinds = {"videos": np.unique(frames), "frames": frames}
            counts[split] = {
                kind: dict(zip(LABELS, self._labels(items).tolist(), strict=True))
                for kind, items in kinds.items()
            }
        return counts

    def _labels(self, items: np.ndarray) -> np.ndarray:
        return np.bincount(self.contents.values["label"][items], minlength=len(LABELS))

    def leaks(self) -> dict[str, dict[str, int]]:
        """Returns what is on both sides of each two splits; see `count_leaks`."""
        of = self.contents.rows[:, 0]
        return count_leaks(self.assignment, of, self.contents.values["original"][of])


def make(
    *,
    path: str,
    split: str,
    frames: int = 20,
    size: int | None = 224,
    crop: str = "centre",
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    cache_dir: str | None = None,
) -> Dfdc:
    """Reads a DFDC directory: frames of its videos, from the store where they are in it, and splits.

    Which split a video is in depends on `seed` and on which videos are listed and there, not on which of
    them can be decoded. The `split` in metadata.json is not looked at: Kaggle's says `train` of all. What is
    in each split and what leaks is printed.

    The store holds 3 x size x size bytes a frame. An interrupted build goes on with the videos that are
    missing, and so does one after videos were added; a second one waits for the first.

    Args:
        path: the directory.
        split: `random`, `hard` or `grouped`.
        frames: of a video; see `Sampling`.
        size: see `Sampling`.
        crop: see `Sampling`.
        shares: of train, validation and test: of the frames of each label if `random`, else of its videos,
            as nearly as whole videos and groups allow.
        seed: decides the splits.
        cache_dir: where to store frames; None: `.ssl_jax/frames` in the directory.

    Raises:
        InputError: an argument or the metadata cannot be used, no video can, a split would not have both
            labels, or the store cannot be written.
    """
    sampling = Sampling(frames=frames, size=size, crop=crop)
    _check_split(split, shares, seed)
    listing = read_listing(path)
    plan = assign(split, listing, frames, shares, seed)
    there = np.repeat(np.arange(len(listing.paths), dtype=np.int32), frames)
    _check_labels(path, split, plan.reshape(-1), listing.labels[there])
    store = _store_directory(listing.root, cache_dir, sampling)
    rows = extract(listing.root, listing.paths, sampling, store)
    left_out = listing.left_out | _left_out(listing.paths, rows)
    listing = dataclasses.replace(listing, doubtful=listing.doubtful | _without_faces(listing.paths, rows))
    if not any(row["steps"] for row in rows):
        raise InputError(
            f"None of the {len(rows)} videos of {path} can be read ({_causes(left_out)}); replace them."
        )
    contents = _contents(path, listing, rows, store)
    dfdc = Dfdc(path, split, contents, plan[contents.rows[:, 0], contents.rows[:, 1]], left_out)
    _check_labels(path, split, dfdc.assignment, contents.values["label"][contents.rows[:, 0]])
    check_leaks(path, split, dfdc.leaks())
    _tell(dfdc, listing)
    return dfdc


def _contents(path: str, listing: Listing, rows: Sequence[dict[str, Any]], store: str) -> Frames:
    """Returns all frames that are stored."""
    import tensorflow_datasets as tfds

    places = [(video, i, step) for video, row in enumerate(rows) for i, step in enumerate(row["steps"])]
    values = {
        "label": listing.labels,
        "video": np.arange(len(rows), dtype=np.int32),
        "original": listing.originals.astype(np.int32),
    }
    features = {"label": tfds.features.ClassLabel(names=LABELS)} | dict.fromkeys(FIELDS[1:], np.int32)
    return Frames(
        path,
        store,
        folders.Paths(row["file"] for row in rows),
        folders.Paths(listing.paths),
        np.array(places, np.int32),
        values,
        tfds.features.FeaturesDict(features),
    )


def _tell(dfdc: Dfdc, listing: Listing) -> None:
    """Prints what is in the splits and what leaks, and tells the log what is left out or doubtful."""
    for cause, names in dfdc.left_out.items():
        logging.warning("%s: %d left out (%s): %s", dfdc.name, len(names), cause, folders.some(names))
    for cause, names in listing.doubtful.items():
        logging.warning("%s: %d used although %s: %s", dfdc.name, len(names), cause, folders.some(names))
    lines = [f"{dfdc.name}, {dfdc.mode} split"]
    for name, counts in dfdc.balance().items():
        parts = [
            f"{sum(labels.values())} {kind} ({', '.join(f'{n} {label}' for label, n in labels.items())})"
            for kind, labels in counts.items()
        ]
        lines.append(f"  {name}: {', '.join(parts)}")
    lines += [
        f"  in both {names}: {counts['videos']} videos, {counts['originals']} originals"
        for names, counts in dfdc.leaks().items()
    ]
    console = rich.console.Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    console.print("\n".join(lines))


# --- What is listed


def read_listing(path: str) -> Listing:
    """Reads the metadata of a DFDC directory and compares it with the videos that are there.

    Raises:
        InputError: there is no such directory or no video in it that is listed; metadata.json is missing,
            broken, or says what cannot be.
    """
    root = folders.existing(path)
    tree = folders.scan(root, folders.SUFFIXES["videos"])
    entries: dict[str, tuple[int, str | None]] = {}
    for part in _parts(path, root, tree):
        for name, entry in _read_metadata(root, part).items():
            entries[os.path.join(part, name)] = entry
    there = set(tree.paths)
    paths = tuple(sorted(there & entries.keys()))
    left_out = {cause: tuple(names) for cause, names in tree.left_out.items()}
    absent = entries.keys() - there - set(itertools.chain.from_iterable(left_out.values()))
    left_out["listed but absent"] = tuple(sorted(_printable(name) for name in absent))
    left_out["present but not listed"] = tuple(sorted(there - entries.keys()))
    left_out = {cause: names for cause, names in left_out.items() if names}
    if not paths:
        raise InputError(
            f"{path} has no video that its {METADATA} lists ({_causes(left_out) or 'it is empty'}); keep the"
            " videos beside it."
        )
    recordings = _recordings(entries)
    names = [recordings[os.path.basename(name)] for name in paths]
    _, originals = np.unique(names, return_inverse=True)
    labels = np.array([entries[name][0] for name in paths], np.int64)
    return Listing(root, paths, labels, originals.astype(np.int64), left_out, _doubtful(entries, paths))


def _parts(path: str, root: str, tree: folders.Tree) -> list[str]:
    """Returns the folders that have, or by their names should have, a metadata.json; "" is the root."""
    tops = [name for name in tree.folders if os.sep not in name]
    near = ["", *(name for name in tree.folders if name.count(os.sep) < 2)]
    have = {name for name in near if os.path.lexists(os.path.join(root, name, METADATA))}
    marked = [name for name in near if name in have or os.path.basename(name).startswith(PART)]
    # A folder may be called after an archive, and hold the one that was in it.
    parts = [
        name
        for name in marked
        if name in have or not any(other != name and folders.is_below(other, name) for other in marked)
    ]
    if not parts:
        holds = [*tops, *(name for name in tree.paths if os.sep not in name)]
        raise InputError(
            f"{path} has no {METADATA}, nor folders {PART}* with one, nor these one folder deeper; it holds"
            f" {folders.some(holds) or 'no folders and no videos'}."
        )
    return parts


def _read_metadata(root: str, part: str) -> dict[str, tuple[int, str | None]]:
    """Reads one metadata.json: name of the video -> its label's id, and the name of its original."""
    where = os.path.join(root, part, METADATA)
    try:
        table = json.loads(folders.read_text(root, os.path.join(part, METADATA)))
    except FileNotFoundError as error:
        raise InputError(f"{where} is missing; it comes with the videos of a part.") from error
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        files.check_reached(where, error)
        raise InputError(f"{where} cannot be read ({error}); unpack it again.") from error
    if not isinstance(table, dict):
        raise InputError(f"{where} must be one JSON object of video names, not a {type(table).__name__}.")
    entries = {}
    for name, entry in table.items():
        if os.path.basename(name) != name or name in ("", ".", "..") or "\0" in name:
            raise InputError(f"{where} lists {name!r}, but only names of files beside it are allowed.")
        if not isinstance(entry, dict):
            raise InputError(f"{where} has {entry!r:.80} for {name!r}, not an object with a label.")
        label, original = entry.get("label"), entry.get("original")
        if label not in LABELS:
            raise InputError(f"{where} gives {name!r} the label {label!r:.80}; it must be REAL or FAKE.")
        if not isinstance(original, str | None):
            raise InputError(
                f"{where} gives {name!r} the original {original!r:.80}; it must be a name or null."
            )
        entries[name] = LABELS.index(label), original
    return entries


def _recordings(entries: Mapping[str, tuple[int, str | None]]) -> dict[str, str]:
    """Returns name of a video -> a name that all videos of its connected component have in common.

    An original that is not listed connects its fakes all the same.
    """
    above: dict[str, str] = {}

    def top(name: str) -> str:
        above.setdefault(name, name)
        while above[name] != name:
            above[name] = above[above[name]]
            name = above[name]
        return name

    for path, (_, original) in entries.items():
        first, second = sorted((top(os.path.basename(path)), top(original or os.path.basename(path))))
        above[second] = first
    return {name: top(name) for name in tuple(above)}


def _doubtful(
    entries: Mapping[str, tuple[int, str | None]], paths: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Returns cause -> those of `paths` that are fakes of an original that is not as it should be."""
    labels: dict[str, set[int]] = {}
    for path, (label, _) in entries.items():
        labels.setdefault(os.path.basename(path), set()).add(label)
    found: dict[str, list[str]] = {}
    for path in paths:
        label, original = entries[path]
        if LABELS[label] != "FAKE":
            continue
        if original is None:
            found.setdefault("no original is given", []).append(path)
        elif original not in labels:
            found.setdefault("their original is not listed", []).append(path)
        elif LABELS.index("REAL") not in labels[original]:
            found.setdefault("their original is itself FAKE", []).append(path)
    return {cause: tuple(names) for cause, names in found.items()}


def _printable(name: str) -> str:
    """Returns a name with what cannot be written as text escaped: JSON may hold half characters."""
    return name.encode("utf-8", "backslashreplace").decode()


def _causes(left_out: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{len(names)} {cause}: {folders.some(names)}" for cause, names in left_out.items())


# --- Splits


def _check_split(mode: str, shares: Sequence[float], seed: int) -> None:
    if mode not in MODES:
        raise InputError(unknown_name("way to split", mode, MODES))
    good = len(shares) == len(SPLITS) and all(share > 0 for share in shares)
    if not good or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise InputError(
            f"shares={tuple(shares)} must be three positive numbers, of train, validation and test, with"
            " the sum 1."
        )
    if seed < 0:
        raise InputError(f"seed={seed} must not be negative.")


def assign(mode: str, listing: Listing, frames: int, shares: Sequence[float], seed: int) -> np.ndarray:
    """Decides in which split every frame is.

    Args:
        mode: one of `MODES`.
        listing: the videos, V of them.
        frames: to be taken of each.
        shares: of train, validation and test.
        seed: decides.

    Returns:
        int8 [V, frames], which of `SPLITS`.
    """
    rng = np.random.default_rng(seed)
    num_videos = len(listing.paths)
    if mode == "random":
        labels = np.repeat(listing.labels, frames)
        return _cut(labels, shares, rng).reshape(num_videos, frames)
    if mode == "hard":
        by_video = _cut(listing.labels, shares, rng)
    else:
        by_video = _cut_groups(listing.labels, listing.originals, shares, rng)
    return np.repeat(by_video[:, None], frames, axis=1)


def _cut(labels: np.ndarray, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Deals out single items, those of each label by the shares: int8 [N]."""
    assignment = np.empty(len(labels), np.int8)
    for label in range(len(LABELS)):
        items = rng.permutation(np.flatnonzero(labels == label))
        ends = np.round(np.cumsum(shares)[:-1] * len(items)).astype(int)
        for split, some in enumerate(np.split(items, ends)):
            assignment[some] = split
    return assignment


def _cut_groups(
    labels: np.ndarray, groups: np.ndarray, shares: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Deals out whole groups, the largest first, so that each label comes near its shares: int8 [N].

    A group goes where it lessens the most, or adds the least to, the sum over splits and labels of
    (number - target)^2 / target, in shares of the label.
    """
    members = np.zeros((groups.max() + 1, len(LABELS)))
    np.add.at(members, (groups, labels), 1)
    totals = np.maximum(members.sum(0), 1)
    targets = np.asarray(shares)[:, None] * totals
    filled = np.zeros_like(targets)
    where = np.empty(len(members), np.int8)
    order = rng.permutation(len(members))
    for group in order[np.argsort(-members[order].sum(1), kind="stable")]:
        more = members[group]
        cost = (more * (2 * (filled - targets) + more) / targets / totals).sum(1)
        where[group] = np.argmin(cost)
        filled[where[group]] += more
    return where[groups]


def count_leaks(assignment: np.ndarray, video: np.ndarray, original: np.ndarray) -> dict[str, dict[str, int]]:
    """Counts what is on both sides of each two splits.

    Args:
        assignment: int [N], which of `SPLITS` a frame is in.
        video: int [N], of which video it is.
        original: int [N], of which recording.

    Returns:
        `train and validation`, `train and test`, `validation and test` -> `videos` or `originals` -> number.
    """
    leaks = {}
    for first, second in itertools.combinations(range(len(SPLITS)), 2):
        leaks[f"{SPLITS[first]} and {SPLITS[second]}"] = {
            kind: len(np.intersect1d(ids[assignment == first], ids[assignment == second]))
            for kind, ids in (("videos", video), ("originals", original))
        }
    return leaks


def check_leaks(path: str, mode: str, leaks: Mapping[str, Mapping[str, int]]) -> None:
    """Raises InputError if a `hard` split shares videos, or a `grouped` one videos or originals."""
    forbidden = {"random": (), "hard": ("videos",), "grouped": ("videos", "originals")}[mode]
    for names, counts in leaks.items():
        for kind in forbidden:
            if counts[kind]:
                raise InputError(
                    f"The {mode} split of {path} leaks: {counts[kind]} {kind} are in both {names}; there must"
                    " be none."
                )


def _check_labels(path: str, mode: str, assignment: np.ndarray, labels: np.ndarray) -> None:
    """Raises InputError for a split that has not both labels."""
    for number, split in enumerate(SPLITS):
        counts = np.bincount(labels[assignment == number], minlength=len(LABELS))
        if not counts.all():
            total = np.bincount(labels, minlength=len(LABELS))
            raise InputError(
                f"The {mode} split of {path} leaves {split} with {counts[0]} REAL and {counts[1]} FAKE of"
                f" {total[0]} and {total[1]} frames, but both labels are needed; give it a larger share, or"
                " more videos."
            )


# --- The store of frames


def _store_directory(root: str, cache_dir: str | None, sampling: Sampling) -> str:
    """Returns where frames of these settings are kept."""
    name = f"v{VERSION}-{sampling.frames}-{sampling.size or 'full'}-{sampling.crop}"
    if cache_dir is not None:
        return os.path.join(os.path.abspath(paths.read(cache_dir, "data.cache_dir")), name)
    directory = os.path.join(root, manifests.DIRECTORY, "frames", name)
    if not folders.is_inside(root, directory):
        raise InputError(f"{directory} leads out of {root}; give another place to store frames as cache_dir.")
    return directory


def extract(root: str, paths: Sequence[str], sampling: Sampling, store: str) -> list[dict[str, Any]]:
    """Makes sure that the frames of videos are in the store.

    Each video has a file of its own, uint8 [frames, H, W, 3], that appears whole or not at all, under a name
    made of its path, size and modification time; a journal tells what became of which.

    Args:
        root: the directory of the videos.
        paths: of the videos in it.
        sampling: which pictures are taken.
        store: the directory to keep them in.

    Returns:
        For each video its `file` and the `steps` of the frames in it, and the steps that are `missing`; if
        there are none, `cause` (`unreadable`, `undersized`, `too large`, `too short`) and `details`.

    Raises:
        InputError: the store cannot be written.
    """
    try:
        os.makedirs(store, exist_ok=True)
        with building.locked(store + ".lock"):
            _remove_leftovers(store)
            rows = _read_journal(store)
            keys = {path: _key(root, path) for path in paths}
            missing = [path for path in paths if not _is_stored(store, rows.get(keys[path]), sampling)]
            if missing:
                rows |= _build(root, {path: keys[path] for path in missing}, sampling, store)
    except OSError as error:
        raise InputError(
            f"Frames cannot be stored in {store} ({error}); name a writable directory with enough room as"
            " cache_dir."
        ) from error
    return [rows[keys[path]] for path in paths]


def _build(root: str, keys: Mapping[str, str], sampling: Sampling, store: str) -> dict[str, dict[str, Any]]:
    """Stores the frames of videos (path -> key) and returns key -> row."""
    rows = {}
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    store_one = functools.partial(_store_video, root, sampling=sampling, store=store)
    with open(_journal(store), "ab", buffering=0) as journal, building.progress_bar() as progress:
        try:
            done = pool.map(store_one, keys, keys.values())
            for row in progress.track(done, total=len(keys), description="Taking frames of videos"):
                rows[row["key"]] = row
                # Newlines on both sides: whatever a killed process wrote last, this line is whole.
                journal.write(b"\n" + json.dumps(row).encode("ascii") + b"\n")
        finally:
            pool.shutdown(cancel_futures=True)
    return rows


def _store_video(root: str, path: str, key: str, *, sampling: Sampling, store: str) -> dict[str, Any]:
    """Takes the pictures of a video and stores them; returns its row."""
    row = {"key": key, "path": _printable(path), "file": f"{key}.npy", "steps": [], "missing": []}
    found = videos.probe(root, path)
    if "cause" in found:
        return row | found
    try:
        video = videos.Video(path, found["frames"], found["times"], found["keys"])
        steps = [int(step) for step in pipeline.spread(video.frames, sampling.frames)]
        images = videos.read_settled(folders.inside(root, path), video, steps)
        taken = [step for step in steps if step in images]
        if not taken:
            return row | {"cause": "unreadable", "details": "none of the frames wanted can be decoded"}
        opened = [Image.open(io.BytesIO(images[step])) for step in taken]
        squares, with_face = [None] * len(opened), None
        if sampling.crop == "face":
            squares, with_face = faces.squares(opened)
        if sampling.crop != "none":
            squares = [square or _middle(image) for square, image in zip(squares, opened, strict=True)]
        pictures = np.stack(list(map(functools.partial(_picture, size=sampling.size), opened, squares)))
    except InputError:
        raise
    except pipeline.UndersizedError as error:
        return row | {"cause": "undersized", "details": str(error)}
    # Broken files make FFmpeg raise errors of many kinds.
    except Exception as error:
        return row | {"cause": "unreadable", "details": videos.explain(root, path, error)}
    with files.writing(os.path.join(store, row["file"])) as file:
        np.save(file, pictures, allow_pickle=False)
    missing = [step for step in steps if step not in images]
    found = {} if with_face is None else {"frames_with_face": with_face}
    return row | {"steps": taken, "missing": missing, "shape": list(pictures.shape)} | found


def _middle(image: Image.Image) -> faces.Box:
    """The largest square in the middle."""
    side = min(image.size)
    left, top = ((size - side) // 2 for size in image.size)
    return left, top, left + side, top + side


def _picture(image: Image.Image, box: faces.Box | None, size: int | None) -> np.ndarray:
    """Crops a frame, or does not, and scales it to a square, or does not: uint8 [H, W, 3]."""
    least = pipeline.half((size, size))[0] if size else 0
    if min(image.size) < least:
        raise pipeline.UndersizedError(f"{image.height} x {image.width}, needed are {least} x {least}")
    if box is not None:
        image = image.crop(box)
    if size is None:
        return np.asarray(image)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _key(root: str, path: str) -> str:
    """Returns what names a video as it is now."""
    try:
        state = os.stat(os.path.join(root, path))
        text = f"{state.st_size} {state.st_mtime_ns} "
    except OSError as error:
        files.check_reached(os.path.join(root, path), error, forbidden=False)
        text = ""
    return hashlib.blake2b(text.encode() + os.fsencode(path), digest_size=16).hexdigest()


def _journal(store: str) -> str:
    return os.path.join(store, "journal.jsonl")


def _read_journal(store: str) -> dict[str, dict[str, Any]]:
    """Returns key -> the last row; a torn line, or one that is no row, is not there."""
    rows = {}
    with contextlib.suppress(FileNotFoundError), open(_journal(store), "rb") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("key"), str):
                    rows[row["key"]] = row
    return rows


def _is_stored(store: str, row: dict[str, Any] | None, sampling: Sampling) -> bool:
    """Whether a row of the journal, which may come with the data, is right about frames in the store.

    A video that could not be used is tried again.
    """
    try:
        shape, steps = row["shape"], row["steps"] + row["missing"]
        size = os.stat(os.path.join(store, row["file"])).st_size
        return (
            row["file"] == f"{row['key']}.npy"
            and len(row["steps"]) == shape[0] > 0
            and len(steps) <= sampling.frames
            and all(isinstance(step, int) and 0 <= step < 2**31 for step in steps)
            and size >= math.prod(shape)
        )
    except (KeyError, TypeError, IndexError, ValueError, OSError):
        return False


def _remove_leftovers(store: str) -> None:
    """Removes what a killed build had begun; to be called under the lock."""
    for name in os.listdir(store):
        if name.endswith(".tmp"):
            os.unlink(os.path.join(store, name))


def _without_faces(paths: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Returns cause -> videos, where faces were looked for and found in too few frames."""
    never, seldom = (
        "no face was found, so that they are cropped in the middle",
        "a face was found in less than half of their frames, by which all are cropped",
    )
    found: dict[str, list[str]] = {}
    for path, row in zip(paths, rows, strict=True):
        with_face = row.get("frames_with_face")
        if with_face is not None and 2 * with_face < len(row["steps"]):
            found.setdefault(seldom if with_face else never, []).append(path)
    return {cause: tuple(names) for cause, names in found.items()}


def _left_out(paths: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Returns cause -> videos without frames, and single frames, that cannot be used."""
    found: dict[str, list[str]] = {}
    for path, row in zip(paths, rows, strict=True):
        if not row["steps"]:
            found.setdefault(row["cause"], []).append(f"{path} ({row['details']})")
        for step in row["missing"]:
            found.setdefault("frames that cannot be decoded", []).append(f"{path}, frame {step}")
    return {cause: tuple(names) for cause, names in found.items()}
