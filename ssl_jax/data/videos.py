"""Videos in a folder of one's own, UCF101 and HMDB51 among them, frame by frame, through PyAV.

`make` finds the videos and gives a `folders.Folder`; a split of it is a `Frames`, a `sources.Source` whose
examples are single frames, in order, with the fields `episode` (which video) and `step` (which frame of it).
So frames serve as pictures, and `ssl_jax.data.clips` makes clips of them. `Frames.read` gives the frames of
a clip in one go: one seek to the keyframe before them, and one decoding pass.

Frame i is the i-th that is shown, whatever its time: rates may vary and durations be wrong. The times and
keyframes of a video are read once and kept in the manifest of the folder. Where times are not to be
trusted, as in AVI with reordered frames, frames are counted from the beginning instead; and so they are where
a keyframe that was sought looks otherwise than in order, because what its decoder needs came only once at the
beginning, as the palette of 8-bit AVI does.

A frame is refused if the decoder complained about anything since a good keyframe before it. What changes
bytes and leaves a stream that decodes cannot be known: most video formats have no checksums.
"""

import contextlib
import dataclasses
import errno
import functools
import itertools
import logging
import os
import re
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from PIL import Image

from ssl_jax.data import folders, formats, manifests, pipeline, sources
from ssl_jax.data.folders import Folder, Plan, Tree
from ssl_jax.runtime import files
from ssl_jax.runtime.errors import InputError

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

FIELDS = ("episode", "step")
# Nothing that can name other files, as playlists do.
FORMATS = "avi,matroska,mov,mp4,webm"
DELAY = 16  # packets that a decoder may hold back to put frames in order: H.264's most
# Of the manifest; another version is another way to find frames. Version 1 believed in every seek, and in
# every display matrix.
HEADER = {"version": 2, "of": "videos"}
TRIED = 4 * DELAY  # packets to decode of a video to see whether its times are in order
# Notes that are no UTF-8 are no reason to refuse a video; PyAV 19 reads them by itself.
METADATA = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# Errors of the system that FFmpeg's readers have for broken files as well.
OF_BOTH = (errno.EAGAIN, errno.EINTR, errno.EIO, errno.ENODEV, errno.ENOMEM, errno.EPIPE)
PROBED = 1000  # videos after which the manifest is written
PROBES = 8  # videos looked into at once


# Signs of a, b, c, d of a display matrix -> EXIF orientation. The pixel at (x, y), x to the right and y down,
# is shown at (a x + c y, b x + d y), but for where the picture then begins (ISO/IEC 14496-12, tkhd).
ORIENTATIONS = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
# Causes in `Folder.left_out` under which classes are named, and not files.
NO_VIDEO = "classes of the annotations without a video"
NO_TEST = "classes without a video to test with"
SKEW = 0.02  # of the larger numbers of a display matrix, within which the others count as 0: about a degree
HMDB51_CLASSES = (
    "brush_hair", "cartwheel", "catch", "chew", "clap", "climb", "climb_stairs", "dive", "draw_sword",
    "dribble", "drink", "eat", "fall_floor", "fencing", "flic_flac", "golf", "handstand", "hit", "hug",
    "jump", "kick", "kick_ball", "kiss", "laugh", "pick", "pour", "pullup", "punch", "push", "pushup",
    "ride_bike", "ride_horse", "run", "shake_hands", "shoot_ball", "shoot_bow", "shoot_gun", "sit",
    "situp", "smile", "smoke", "somersault", "stand", "swing_baseball", "sword", "sword_exercise",
    "talk", "throw", "turn", "walk", "wave",
)  # fmt: skip


class FrameError(ValueError):
    """A frame cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class Video:
    """Where the frames of a video are.

    Attributes:
        path: relative to the folder.
        frames: how many there are.
        times: when each is shown, in units of the stream, as `manifests.pack` gives it; None: frames have
            to be counted.
        keys: which are keyframes, likewise; None as well.
    """

    path: str
    frames: int
    times: Sequence | None
    keys: Sequence | None


@dataclasses.dataclass(frozen=True)
class Frames:
    """Random access to the frames of videos; a `sources.Source`.

    Attributes:
        name: folder and split, for messages: `/data/ucf101 train[2%:]`.
        root: the folder, without links in its path.
        videos: in the order of their paths.
        values: field -> its values, one for each video; `episode` numbers all videos of the folder.
        features: the fields to give besides the picture.
    """

    name: str
    root: str
    videos: tuple[Video, ...]
    values: Mapping[str, np.ndarray]
    features: "tfds.features.FeaturesDict"

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """int64 [V + 1]: the first frame of each video, and how many there are."""
        return np.cumsum([0, *(video.frames for video in self.videos)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns {"image": the frame as a PPM file (bytes), field: np.ndarray, ...}."""
        return next(self.read([index]))

    def read(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Reads several frames: in one pass if they are of one video, else each when it is asked for.

        Raises:
            FrameError: a frame cannot be decoded; after it was asked for, and those before it were given.
        """
        numbers, steps = zip(*(self._place(index) for index in indices), strict=True)
        if len({*numbers}) > 1:
            for index in indices:
                yield self[index]
            return
        video = self.videos[numbers[0]]
        images = read_settled(folders.inside(self.root, video.path), video, steps)
        for index, step in zip(indices, steps, strict=True):
            if step not in images:
                raise FrameError("the decoder complains")
            yield {"image": images[step]} | self.fields(index)

    def _place(self, index: int) -> tuple[int, int]:
        """Returns the number of a frame's video, and that of the frame in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return number, int(index - self.starts[number])

    def fields(self, index: int) -> dict[str, np.ndarray]:
        """Returns the fields of a frame without its picture, which is not read."""
        number, step = self._place(index)
        return {
            field: np.int32(step) if field == "step" else self.values[field][number]
            for field in self.features
        }

    def describe(self, index: int) -> str:
        """Returns what to call a frame in a message."""
        number, step = self._place(index)
        return f"{self.videos[number].path}, frame {step}"

    def fingerprint(self) -> str:
        """Returns a digest of the names of the videos in the folder, and of how many frames each has."""
        return sources.digest(os.fsencode(f"{video.path} {video.frames}") for video in self.videos)

    def take(self, name: str, items: np.ndarray, fields: Sequence[str]) -> "Frames":
        """Returns the frames of the videos `items` (int [N]) as a source of their own, with some fields."""
        return Frames(
            name,
            self.root,
            tuple(self.videos[item] for item in items),
            {field: self.values[field][items] for field in fields if field != "step"},
            folders.only(self.features, fields),
        )


def make(
    *,
    path: str,
    annotations: str | None = None,
    fold: int = 1,
    splits: Mapping[str, str] | None = None,
    opened: Sequence[str] = sources.SPLITS,
) -> Folder:
    """Finds the videos below a folder, and their splits.

    Splits and labels are found as in `folders.make`, or taken from official split files. All frames of a
    video are in one split, and so are all clips cut from one film, where the names of UCF101 and HMDB51
    tell which these are. There are always the fields `episode` and `step`.

    Args:
        path: the folder. Names of files matter only up to their suffix, so that converted videos will do.
        annotations: folder of split files: `trainlist01.txt` and `testlist01.txt` of UCF101, or
            `CLASS_test_split1.txt` of HMDB51.
        fold: which of the splits of these: 1, 2 or 3.
        splits: as in `folders.make`.
        opened: as in `sources.make`.

    Raises:
        InputError: as `folders.make`; and annotations that cannot be read or name no video that is there.
    """
    root = folders.existing(path)
    tree = folders.find(path, root, "videos")
    if annotations is None:
        arrange = functools.partial(folders.arrange, path, key=film)
    else:
        arrange = functools.partial(
            follow, path, lists=read_lists(annotations, fold), annotations=annotations
        )
    plan = arrange(tree=tree)  # Before the videos are looked into: it may be refused.
    used = np.unique(np.concatenate([part.items for part in plan.parts.values()]))
    rows = look_into(root, [tree.paths[item] for item in used])
    good = [row for row in rows if "cause" not in row]
    if not good:
        first = f"{rows[0]['path']}: {rows[0]['cause']}, {rows[0]['details']}"
        raise InputError(f"None of the {len(rows)} videos of {path} can be used ({first}).")
    unusable = {cause: [*names] for cause, names in tree.left_out.items()}
    for row in rows:
        if "cause" in row:
            unusable.setdefault(row["cause"], []).append(f"{row['path']} ({row['details']})")
    left_out = unusable | plan.left_out
    plan = arrange(tree=dataclasses.replace(tree, paths=[row["path"] for row in good], left_out=unusable))
    left_out |= {cause: plan.left_out[cause] for cause in (NO_VIDEO, NO_TEST) if cause in plan.left_out}
    values, features = folders.with_label(
        {"episode": np.arange(len(good), dtype=np.int32)}, dict.fromkeys(FIELDS, np.int32), plan
    )
    videos = tuple(Video(*(row[key] for key in ("path", "frames", "times", "keys"))) for row in good)
    return folders.divide(path, Frames(path, root, videos, values, features), plan, splits, left_out, opened)


def film(path: str) -> str:
    """Returns what clips of the same film have in common, by the names of UCF101 and HMDB51; else the path.

    Sources: Soomro et al., "UCF101", 2012 (v_CLASS_gGROUP_cCLIP); Kuehne et al., "HMDB", 2011
    (FILM_CLASS_BODY_CAMERA_PEOPLE_VIEW_QUALITY_CLIP).
    """
    above, name = os.path.split(os.path.splitext(path)[0])
    if found := re.fullmatch(r"(v_.+_g\d+)_c\d+", name):
        return found[1]
    found = re.fullmatch(r"(.+)_[fhlu]_(?:cm|nm)_np\d_(?:ba|fr|le|ri)_(?:bad|med|goo)_\d+", name)
    if not found:
        return path
    # A film may have clips of several classes. Names of both have underscores: the longest class is meant.
    classes = [kind for kind in (os.path.basename(above), *HMDB51_CLASSES) if found[1].endswith(f"_{kind}")]
    last = max(classes, key=len, default=found[1].rpartition("_")[2])
    return found[1].removesuffix(f"_{last}")


# --- Official splits


def follow(path: str, tree: Tree, annotations: str, lists: Mapping[tuple[str, str], str]) -> Plan:
    """Returns the plan of split files, as `read_lists` gives them, for the videos that are there.

    Raises:
        InputError: a split has no video that is there, or a class none to train with, but some to test with.
    """
    by_name: dict[str, list[int]] = {}
    for item, name in enumerate(tree.paths):
        by_name.setdefault(os.path.splitext(os.path.basename(name))[0], []).append(item)
    members: dict[str, list[int]] = {"train": [], "test": []}
    kinds: dict[int, str] = {}
    absent: dict[str, list[str]] = {"train": [], "test": []}
    for (kind, name), part in lists.items():
        items = by_name.get(name, [])
        items = [i for i in items if tree.paths[i].split(os.sep)[-2:-1] == [kind]] or items
        if items and items[0] not in kinds:
            members[part].append(items[0])
            kinds[items[0]] = kind
        else:
            absent[part].append(f"{kind}/{name}")
    for part, items in members.items():
        if not items:
            raise InputError(
                f"None of the {len(absent[part])} videos to {part} with in {annotations} can be read in"
                f" {path}, for example {absent[part][0] if absent[part] else 'none at all'}; it holds"
                f" {folders.some(tree.paths)}."
            )
    kinds_of = {part: {kinds[item] for item in items} for part, items in members.items()}
    if strange := sorted(kinds_of["test"] - kinds_of["train"]):
        raise InputError(
            f"{path} has videos of the class {folders.some(strange)} to test with in {annotations}, but none"
            " to train with that can be read; add these, or take the class out of the lists."
        )
    classes = tuple(sorted(set(kinds.values())))
    labels = np.array(
        [classes.index(kinds[i]) if i in kinds else -1 for i in range(len(tree.paths))], np.int64
    )
    left_out = {
        "in the annotations, but absent": [*absent["train"], *absent["test"]],
        "not in the annotations": [name for item, name in enumerate(tree.paths) if item not in kinds],
        NO_VIDEO: sorted({kind for kind, _ in lists} - {*classes}),
        NO_TEST: sorted({*classes} - kinds_of["test"]),
    }
    parts = {
        part: folders.cut(sorted(items), [film(tree.paths[item]) for item in sorted(items)])
        for part, items in members.items()
    }
    return Plan(parts, classes, labels, {cause: names for cause, names in left_out.items() if names})


def read_lists(annotations: str, fold: int) -> dict[tuple[str, str], str]:
    """Reads the split files of UCF101 or HMDB51.

    Returns:
        (class, name of the video without its suffix) -> `train` or `test`.
    """
    if fold not in (1, 2, 3):
        raise InputError(f"fold={fold} must be 1, 2 or 3, as the official splits.")
    root = folders.existing(annotations)
    names = sorted(name for name in os.listdir(root) if not folders.is_debris(name))
    ucf = {f"trainlist{fold:02}.txt": "train", f"testlist{fold:02}.txt": "test"}
    hmdb = {name: found[1] for name in names if (found := re.fullmatch(rf"(.+)_test_split{fold}\.txt", name))}
    lists: dict[tuple[str, str], str] = {}
    if ucf.keys() <= set(names):
        rows = [(None, part, line) for name, part in ucf.items() for line in read_lines(root, name)]
    elif hmdb:
        parts = {"0": None, "1": "train", "2": "test"}
        rows = []
        for name, kind in hmdb.items():
            for line in read_lines(root, name):
                video, _, use = line.rpartition(" ")
                if use not in parts or not video:
                    raise InputError(f"{name} in {annotations} has the line {line!r}, not: VIDEO 0, 1 or 2.")
                rows += [(kind, parts[use], video)] if parts[use] else []
    else:
        raise InputError(
            f"{annotations} holds neither {' and '.join(ucf)} of UCF101 nor CLASS_test_split{fold}.txt of"
            f" HMDB51, but {folders.some(names) or 'nothing'}."
        )
    for kind, part, line in rows:
        video = re.sub(r" \d+$", "", line.strip())
        above, name = os.path.split(video)
        entry = (kind or os.path.basename(above), os.path.splitext(name)[0])
        if lists.setdefault(entry, part) != part:
            raise InputError(f"{annotations} has {video} both to train and to test with.")
    return lists


def read_lines(root: str, name: str) -> list[str]:
    """Returns the lines of a split file that are not empty."""
    return [line.strip() for line in folders.read_text(root, name).splitlines() if line.strip()]


# --- Where the frames are


def look_into(root: str, paths: Sequence[str]) -> list[dict[str, Any]]:
    """Finds out where the frames of videos are, from the manifest where they have not changed since.

    Returns:
        For each video its path, size and time, and `frames`, `times` and `keys` as in `Video`, or `cause`
        and `details` of why it cannot be used.
    """
    known = {row["path"]: row for row in manifests.read(root, "videos", HEADER) if is_row(row)}
    rows: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            state = os.stat(folders.inside(root, path))
            rows[path] = {"path": path, "size": state.st_size, "time": state.st_mtime_ns}
        except (OSError, ValueError) as error:
            files.check_reached(os.path.join(root, path), error, forbidden=False)
            rows[path] = {"path": path, "size": 0, "time": 0, "cause": "unreadable", "details": str(error)}
    old = [path for path in paths if path in known and rows[path].items() <= known[path].items()]
    rows |= {path: known[path] for path in old}
    new = [path for path in paths if rows[path].keys() == {"path", "size", "time"}]
    with ThreadPoolExecutor(PROBES) as pool:
        for start in range(0, len(new), PROBED):
            some = new[start : start + PROBED]
            for path, found in zip(some, pool.map(lambda path: probe(root, path), some), strict=True):
                rows[path] |= found
            logging.info("Looked into %d of %d videos of %s.", start + len(some), len(new), root)
            complete = [row for row in (known | rows).values() if len(row) > 3]
            manifests.write(root, "videos", HEADER, complete)
    return [rows[path] for path in paths]


def is_row(row: dict[str, Any]) -> bool:
    """Whether a line of a manifest can be what `look_into` found; a manifest may come with the data."""
    try:
        if not (isinstance(row["path"], str) and isinstance(row["size"] + row["time"], int)):
            return False
        if "cause" in row:
            return isinstance(row["cause"], str) and isinstance(row["details"], str)
        frames = row["frames"]
        if not 0 < frames <= max(row["size"], 1) or (row["times"] is None) != (row["keys"] is None):
            return False
        return row["times"] is None or (
            1 + sum(number for _, number in row["times"][1]) == frames
            and 1 + sum(number for _, number in row["keys"][1]) <= frames
            and all(
                isinstance(step, int) and step > 0 and isinstance(number, int) and number > 0
                for packed in (row["times"], row["keys"])
                for step, number in [(packed[0] - packed[0] + 1, 1), *packed[1]]
            )
        )
    except (KeyError, TypeError, ValueError, IndexError):
        return False


def probe(root: str, path: str, *, tries: int = 2) -> dict[str, Any]:
    """Finds out where the frames of a video are, by its packets alone if they tell.

    Returns:
        `frames`, `times` and `keys` as in `Video`, or `cause` (`unreadable`, `too large`, `too short`) and
        `details`, and `time` 0 if it may be otherwise another time.

    Raises:
        InputError: it cannot be read now, even at the last try, and nobody knows what is in it.
    """
    try:
        with open_video(folders.inside(root, path)) as (container, stream):
            packets, shown, key = [], [], None
            for packet in demux(container, stream):
                if len(packets) < TRIED or not shown:
                    frames = [frame for frame, _ in decode(stream, packet) if frame is not None]
                    shown += [frame.pts for frame in frames]
                    key = next((frame for frame in reversed(frames) if frame.key_frame), key)
                if packet is not None and not packet.is_discard:
                    packets.append((packet.pts, packet.dts, packet.is_keyframe))
            # AVI has no times; those of frames that were put in another order are guesses. So are all times
            # by which frames are not in order.
            guessed = container.format.name == "avi" and any(pts != dts for pts, dts, _ in packets)
            guessed = guessed or not increasing(shown)
            if key is not None:
                orientation(key)  # Raises.
                guessed = guessed or not can_be_sought(root, path, key)
            hidden = stream.codec_context.name in ("vp8", "libvpx")  # Some of its packets show no frame.
        if not packets:
            return {"cause": "too short", "details": "it has no frames"}
        if not shown:
            return {"cause": "unreadable", "details": "none of its frames can be decoded"}
        times = [pts for pts, _, _ in packets]
        if guessed or hidden or None in times or len({*times}) < len(times) or not packets[0][2]:
            with open_video(folders.inside(root, path)) as (container, stream):
                times = [frame.pts for frame, _ in passes(container, stream)]
        else:
            times.sort()
        if guessed or not increasing(times):
            return {"frames": len(times), "times": None, "keys": None}
        keyframes = {pts for pts, _, key in packets if key} | {times[0]}
        keys = [number for number, time in enumerate(times) if time in keyframes]
        return {"frames": len(times), "times": manifests.pack(times), "keys": manifests.pack(keys)}
    except sources.TooLargeError as error:
        return {"cause": "too large", "details": str(error)}
    # Broken files make FFmpeg raise errors of many kinds, some of them the system's.
    except Exception as error:
        if tries > 1 and files.unavailable(error, forbidden=False):
            time.sleep(files.PAUSE_SECONDS)
            return probe(root, path, tries=tries - 1)
        if reason := files.refusal(os.path.join(root, path), forbidden=False):
            raise files.out_of_reach(os.path.join(root, path), reason) from None
        found = {"cause": "unreadable", "details": explain(root, path, error)}
        # Once it may be read, its own time is still the same.
        return found | ({"time": 0} if isinstance(error, PermissionError | FileNotFoundError) else {})


def explain(root: str, path: str, error: Exception) -> str:
    """Returns why a video cannot be read, for a message, after an error of its reader."""
    try:
        with open(folders.inside(root, path), "rb") as file:
            head = file.read(formats.HEAD)
    except (OSError, ValueError) as reason:
        return str(reason)
    return formats.explain(head, "" if isinstance(error, av.FFmpegError) else str(error), formats.VIDEOS)


def can_be_sought(root: str, path: str, key: Any) -> bool:
    """Whether a keyframe that was decoded in order is the same when it is sought, if it is found at all."""
    try:
        with open_video(folders.inside(root, path)) as (container, stream):
            container.seek(key.pts, stream=stream)
            for frame, trusted in passes(container, stream, key.pts):
                if frame.pts == key.pts:
                    return not trusted or to_compare(frame) == to_compare(key)
                break
    except av.FFmpegError as error:
        if files.unavailable(error, forbidden=False):
            raise
        return False
    return True  # `read_frames` begins farther back where a keyframe is not found.


def to_compare(frame: Any) -> tuple[bytes, ...]:
    """What can be compared of a frame: its picture, and its palette, for black may be all that it shows."""
    palette = frame.planes[1:] if frame.format.name == "pal8" else ()
    return to_ppm(frame), *map(bytes, palette)


def increasing(times: Sequence[int | None]) -> bool:
    """Whether all times are known, and each is later than the one before."""
    return None not in times and all(first < second for first, second in itertools.pairwise(times))


# --- Decoding


@contextlib.contextmanager
def open_video(path: str) -> Iterator[tuple[Any, Any]]:
    """Opens a video: its container, and the first stream of it that can be decoded.

    Raises:
        sources.TooLargeError: its frames have more pixels than Pillow accepts of a picture.
        ValueError: it has no such stream. PyAV raises others.
    """
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    with av.open(path, options=options, **METADATA) as container:
        covers = av.stream.Disposition.attached_pic
        streams = [
            stream
            for stream in container.streams.video
            if stream.codec_context is not None and not stream.disposition & covers
        ]
        if not streams:
            raise ValueError("it has no video that can be decoded")
        context = streams[0].codec_context
        most = Image.MAX_IMAGE_PIXELS or 2**31 - 1
        if context.width * context.height > most:
            raise sources.TooLargeError(f"frames of {context.height} x {context.width}")
        # Not `explode`: H.264 that all players show has errors too small to mention otherwise.
        context.options = {"err_detect": "crccheck+bitstream+buffer", "max_pixels": str(most)}
        context.thread_count = 1  # Videos are decoded next to each other.
        yield container, streams[0]


def demux(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of a stream, as far as they are whole, and None at the end."""
    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except av.FFmpegError as error:
        if files.unavailable(error, forbidden=False) and (
            error.errno not in OF_BOTH or files.refusal(container.name, forbidden=False)
        ):
            raise
    yield None


def decode(stream: Any, packet: Any) -> list[tuple[Any, bool]]:
    """Returns the frames that come out with a packet and if they are whole; [(None, False)] if it fails."""
    try:
        return [(frame, not frame.is_corrupt) for frame in stream.codec_context.decode(packet)]
    except av.FFmpegError:
        return [(None, False)]


def passes(container: Any, stream: Any, after: int | None = None) -> Iterator[tuple[Any, bool]]:
    """Decodes a stream from where it stands.

    Args:
        container: with `stream`, as `open_video` gives them.
        stream: the video.
        after: the time of the keyframe that was sought; frames before it are left out. None: the beginning.

    Yields:
        Frames in the order in which they are shown, and whether they can be trusted: whether the decoder had
        nothing to complain of since a keyframe which it had finished with its complaints before.
    """
    trusted, quiet = after is None, DELAY
    for packet in demux(container, stream):
        for frame, whole in decode(stream, packet):
            what = packet if frame is None else frame
            if after is not None and what is not None and what.pts is not None and what.pts < after:
                continue  # It may need frames from before the keyframe; nothing that comes later needs it.
            if not whole:
                trusted, quiet = False, 0
            elif frame.key_frame and quiet >= DELAY:
                trusted = True
            if frame is not None:
                yield frame, trusted
        quiet += 1


def read_frames(path: str, video: Video, steps: Sequence[int]) -> dict[int, bytes]:
    """Decodes frames of a video in one pass from the keyframe before them.

    If that misses some, because the container led elsewhere or what follows the keyframe needs earlier frames
    (as in H.264 with intra refresh), others begin at an earlier keyframe and at the first.

    Args:
        path: of the file.
        video: where its frames are.
        steps: which frames.

    Returns:
        step -> a PPM file, for those that can be decoded.
    """
    if video.times is None:
        return count_frames(path, steps)
    times, keys = manifests.unpack(video.times), manifests.unpack(video.keys)
    near, early = np.searchsorted(keys, [min(steps), min(steps) - 4 * DELAY], side="right") - 1
    wanted = {int(times[step]): step for step in steps}
    found: dict[int, bytes] = {}
    for start in sorted({max(near, 0), max(min(early, near - 1), 0), 0}, reverse=True):
        if len(found) < len(wanted):
            found |= seek_frames(path, wanted, int(times[keys[start]]) if start else None)
    return found


def read_settled(path: str, video: Video, steps: Sequence[int]) -> dict[int, bytes]:
    """Decodes frames as `read_frames` does; what is missing then cannot be decoded.

    Raises:
        InputError: the file cannot be read now, which FFmpeg may take for its end.
    """
    complaint = None
    try:
        images = files.try_twice(lambda: read_frames(path, video, steps))
    except av.FFmpegError as error:
        images, complaint = {}, error
    if not {*steps} <= images.keys() and (reason := files.refusal(path, forbidden=False)):
        raise files.out_of_reach(path, reason)
    if complaint is not None and files.unavailable(complaint, forbidden=False):
        raise FrameError("the decoder complains")  # The file can be read, so it is broken.
    if complaint is not None:
        raise complaint
    return images


def seek_frames(path: str, wanted: Mapping[int, int], start: int | None) -> dict[int, bytes]:
    """Decodes the frames of some times (-> what to call them), from the keyframe of a time on."""
    found, last = {}, max(wanted)
    with open_video(path) as (container, stream):
        if start is not None:
            container.seek(start, stream=stream)
        before = None
        for frame, trusted in passes(container, stream, start):
            if frame.pts is None or (before is not None and frame.pts <= before):
                return {}  # The times do not tell which frame this is.
            before = frame.pts
            if frame.pts in wanted and trusted:
                found[wanted[frame.pts]] = to_ppm(frame)
            if frame.pts >= last:
                break
    return found


def count_frames(path: str, steps: Sequence[int]) -> dict[int, bytes]:
    """Decodes the frames of some numbers, from the beginning."""
    found, wanted = {}, {*steps}
    with open_video(path) as (container, stream):
        for step, (frame, trusted) in enumerate(passes(container, stream)):
            if step in wanted and trusted:
                found[step] = to_ppm(frame)
            if step >= max(wanted):
                break
    return found


def to_ppm(frame: Any) -> bytes:
    """Returns a frame as a picture file, turned and mirrored as it is to be shown."""
    pixels, turn = frame.to_ndarray(format="rgb24"), orientation(frame)
    if turn in pipeline.TURNS:
        pixels = np.asarray(Image.fromarray(pixels).transpose(pipeline.TURNS[turn]))
    return sources.ppm(pixels)


def orientation(frame: Any) -> int:
    """Returns the EXIF orientation, 1 to 8, that the display matrix of a frame is.

    Raises:
        ValueError: it is none: it turns by another angle, or shears.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    largest = max(map(abs, (a, b, c, d)))
    if largest == 0:
        return 1  # It says nothing; players show such a video as it is stored.
    signs = tuple(0 if abs(value) < SKEW * largest else int(np.sign(value)) for value in (a, b, c, d))
    if signs not in ORIENTATIONS:
        raise ValueError("it is to be shown turned by no multiple of 90 degrees")
    return ORIENTATIONS[signs]
