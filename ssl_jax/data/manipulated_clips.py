"""Manipulated clips: a small stand-in for DFDC, made of Atari frames. It shows no faces and no deepfakes.

`build` writes a directory in DFDC's own format, for `ssl_jax.data.dfdc` to read. A REAL video is a clip of a
game. A FAKE one is the same clip with a region replaced by what another player of the same game saw elsewhere
on the screen: warped, matched in colour, and blended in with a feathered, slowly moving mask. Numbers
measured on it say how methods compare on *this*, not how they would do on DFDC.

So that the label is in what is seen, and in nothing simpler:

- REAL videos get a region as well: that of their own frame at the same place, with the same masks, movements,
  warps and errors of contrast. Slanted and blurred edges, soft borders and odd colours therefore are in both;
- no region changes the mean colour of what it covers (but for what is cut off at black and white), nor, but
  for the errors, its contrast;
- all videos go through the same lossless encoder, so compression tells nothing.

Videos are FFV1 in MP4: a codec of FFmpeg itself, without the licence of x264, in every build; lossless in
RGB, where the common ones keep colours at half the resolution; and with checksums, so that damage is noticed.

Sources: regions blended into video frames after Li et al., "Face X-ray", 2020; REAL counterparts after
Shiohara and Yamasaki, "Detecting Deepfakes with Self-Blended Images", 2022; matching of colours after
Reinhard et al., "Color Transfer between Images", 2001, in RGB.
"""

import dataclasses
import io
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import numpy as np
from PIL import Image

from ssl_jax.data import building, dfdc, sources
from ssl_jax.data.atari_frames import EPISODES_PER_STREAM
from ssl_jax.runtime import files, paths
from ssl_jax.runtime.errors import InputError

SETTINGS = "manipulated_clips.json"  # beside metadata.json: what was asked for, and what is a stand-in
VERSION = 1
RATE = 15  # frames a second: an agent step is 4 emulator frames, of which there are 60 a second
NAME_LENGTH = 10  # letters, as DFDC's
FEATHER = 0.35  # share of the region's radius over which it fades in
RADII = (0.15, 0.3)  # half the height or width of a region, least and largest, in shorter sides of the frame
MAX_ANGLE = 0.2  # radians
MAX_SCALE = 1.2  # or one over it
MAX_CONTRAST = 1.3  # or one over it: by what the contrast of a region may be off
MAX_GAIN = 3.0  # or one over it: by what contrast is multiplied to match
MIN_SHIFT = 0.25  # from where a fake's region was to where it is, in shorter sides of the frame
# Standard deviation of colours, in grey levels of 255, that what a region covers must have. Black on black
# would be a fake that nobody could tell.
MIN_DEVIATION = 12.0
TRIALS = 50  # draws of a place, of which one has to have that; and of what is blended in, of which the one
# that is nearest in colours to what it covers is taken


@dataclasses.dataclass(frozen=True)
class Stream:
    """Consecutive frames of one player in one game.

    Attributes:
        game: class id.
        split: of atari_frames.
        start: index of the first frame in the split.
        stop: index after the last.
    """

    game: int
    split: str
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Region:
    """Where a region is in each of T frames, in pixels, and how it is warped.

    Attributes:
        centre: float [T, 2], row and column.
        radius: float [T, 2], half the height and width of an ellipse.
        source: float [T, 2], the row and column that are shown in the centre.
        angle: by which what is shown is turned, in radians.
        scale: by which it is magnified.
    """

    centre: np.ndarray
    radius: np.ndarray
    source: np.ndarray
    angle: float
    scale: float


def build(
    directory: str,
    *,
    num_originals: int = 80,
    fakes_per_original: int = 3,
    frames: int = 24,
    seed: int = 0,
    source: str = "atari_frames",
    data_dir: str | None = None,
) -> str:
    """Writes the stand-in, or leaves it as it is if it is there with the same settings (about a minute).

    The original clips come from different streams of `atari_frames`, of all its splits, evenly from its
    games; what is blended in comes from the streams that are left. If more are asked for than there are
    streams, each stream is cut into excerpts that count as streams: then several originals, and what is
    blended in, may be of one player, though never of the same frames. Networks pre-trained on `atari_frames`
    have thus seen most of its frames, without labels.

    The directory appears whole or not at all. Of several processes one builds, and the others wait for it.
    The same arguments give the same bytes, with the same versions of the libraries.

    Args:
        directory: to write; must not exist, be empty, or hold the stand-in with the same settings.
        num_originals: REAL videos.
        fakes_per_original: FAKE videos made of each.
        frames: of a video, consecutive agent steps (1/15 s).
        seed: decides clips, names, regions and colours.
        source: `atari_frames`, or `atari_frames/tiny` for tests.
        data_dir: tfds directory of these frames; see `atari_frames.build`.

    Returns:
        The path of the directory.

    Raises:
        InputError: the numbers are too small, or too large for the frames there are; the directory holds
            something else, or cannot be written.
    """
    settings = {
        "stand_in": "made of Atari frames by ssl_jax.data.manipulated_clips; no deepfakes",
        "version": VERSION,
        "num_originals": num_originals,
        "fakes_per_original": fakes_per_original,
        "frames": frames,
        "seed": seed,
        "source": source,
    }
    _check(settings)
    directory = os.path.abspath(paths.read(directory, "data.path"))
    if _is_built(directory, settings):
        return directory
    try:
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        with building.locked(directory + ".lock"):
            if not _is_built(directory, settings):
                _write_whole(directory, settings, data_dir)
    except OSError as error:
        raise InputError(
            f"The stand-in cannot be written to {directory} ({error}); name another directory."
        ) from error
    return directory


def _check(settings: dict[str, Any]) -> None:
    """Raises InputError for settings that cannot be."""
    for name, least in (("num_originals", 1), ("fakes_per_original", 1), ("frames", 1), ("seed", 0)):
        if settings[name] < least:
            raise InputError(f"{name} must be at least {least}, not {settings[name]}.")
    check_source(settings["source"])


def check_source(source: str) -> None:
    """Raises InputError for frames that no stand-in is made of."""
    if source.partition("/")[0] != "atari_frames":
        raise InputError(f"source={source!r} must be atari_frames, or a config of it like atari_frames/tiny.")


def _is_built(directory: str, settings: dict[str, Any]) -> bool:
    """Whether the stand-in is there; refuses a directory that holds anything else."""
    if not os.path.lexists(directory):
        return False
    if os.path.isdir(directory) and not os.listdir(directory):
        return False
    try:
        with open(os.path.join(directory, SETTINGS), encoding="utf-8") as file:
            found = json.load(file)["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        files.check_reached(os.path.join(directory, SETTINGS), error)
        raise InputError(
            f"{directory} is there and does not hold the stand-in; name a directory that is not there."
        ) from error
    if found != settings:
        other = [f"{name}={value!r}" for name, value in found.items() if settings.get(name) != value]
        raise InputError(
            f"{directory} holds the stand-in with other settings ({', '.join(other)}); name another"
            " directory."
        )
    return True


def _write_whole(directory: str, settings: dict[str, Any], data_dir: str | None) -> None:
    """Writes the directory beside its place and moves it there."""
    above, name = os.path.split(directory)
    incomplete = os.path.join(above, f".{name}.incomplete_stand_in")
    shutil.rmtree(incomplete, ignore_errors=True)  # A killed build leaves one.
    os.mkdir(incomplete)
    try:
        _write(incomplete, settings, data_dir)
        os.replace(incomplete, directory)  # The directory may be there, if it is empty.
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def _write(directory: str, settings: dict[str, Any], data_dir: str | None) -> None:
    """Writes videos, metadata.json and what else is known of each video."""
    fakes, frames = settings["fakes_per_original"], settings["frames"]
    rng = np.random.default_rng(settings["seed"])
    clips = sources.make(name=settings["source"], data_dir=data_dir)
    opened = {split: clips.open(split, ("game", "episode", "step")) for split in sources.SPLITS}
    streams = enough_streams(find_streams(opened), settings["num_originals"], frames)
    originals, donors = choose_streams(streams, settings["num_originals"], rng)
    names = random_names(settings["num_originals"] * (1 + fakes), rng)
    children = rng.spawn(len(originals))
    jobs = [
        (names[i * (1 + fakes) : (i + 1) * (1 + fakes)], original, donors[original.game], child)
        for i, (original, child) in enumerate(zip(originals, children, strict=True))
    ]
    work = lambda job: _write_family(directory, opened, *job, frames)
    metadata, details = {}, {}
    pool = ThreadPoolExecutor(os.cpu_count() or 1)  # Pillow and FFmpeg leave the interpreter free.
    with building.progress_bar() as progress:
        try:
            done = pool.map(work, jobs)
            for some, more in progress.track(done, total=len(jobs), description="Manipulating clips"):
                metadata |= some
                details |= more
        finally:
            pool.shutdown(cancel_futures=True)
    _write_json(os.path.join(directory, dfdc.METADATA), dict(sorted(metadata.items())))
    _write_json(
        os.path.join(directory, SETTINGS), {"settings": settings, "videos": dict(sorted(details.items()))}
    )


def _write_json(path: str, content: dict[str, Any]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)


def _write_family(
    directory: str,
    opened: dict[str, sources.Source],
    names: Sequence[str],
    stream: Stream,
    donors: Sequence[Stream],
    rng: np.random.Generator,
    frames: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Writes an original and its fakes; returns their entries in metadata.json and in `SETTINGS`."""
    start = cut_clip(opened[stream.split], stream, frames, rng)
    clip = read_clip(opened[stream.split], start, frames)
    about = {"game": stream.game, "split": stream.split, "start": start}
    write_video(os.path.join(directory, names[0]), retouch(clip, rng))
    metadata = {names[0]: {"label": "REAL", "split": "train", "original": None}}
    details = {names[0]: about}
    for name in names[1:]:
        fake, donor, donor_start = draw_fake(clip, opened, donors, rng)
        write_video(os.path.join(directory, name), fake)
        metadata[name] = {"label": "FAKE", "split": "train", "original": names[0]}
        details[name] = about | {"donor": {"split": donor.split, "start": donor_start}}
    return metadata, details


# --- Which clips


def find_streams(opened: dict[str, sources.Source]) -> list[Stream]:
    """Returns the streams of atari_frames, told by the ids of their episodes."""
    streams = []
    for split, source in opened.items():
        begin, key = 0, None
        for index in range(len(source) + 1):
            fields = source.fields(index) if index < len(source) else None
            new = fields and (int(fields["game"]), int(fields["episode"]) // EPISODES_PER_STREAM)
            if new != key:
                streams += [Stream(key[0], split, begin, index)] if key else []
                begin, key = index, new
    return streams


def enough_streams(streams: Sequence[Stream], num_originals: int, frames: int) -> list[Stream]:
    """Returns streams, cut into as few equal excerpts as give `num_originals` and what is blended in.

    Excerpts hold at least three clips of `frames`; where that is not enough, `choose_streams` says so.
    """
    games = {stream.game for stream in streams}
    fewest = min(sum(stream.game == game for stream in streams) for game in games)
    parts = -(-(-(-num_originals // len(games)) + 1) // fewest)
    shortest = min(stream.stop - stream.start for stream in streams)
    parts = min(parts, max(1, shortest // (3 * frames)))
    cuts = lambda stream: np.linspace(stream.start, stream.stop, parts + 1).astype(int).tolist()
    return [
        dataclasses.replace(stream, start=start, stop=stop)
        for stream in streams
        for start, stop in itertools.pairwise(cuts(stream))
    ]


def choose_streams(
    streams: Sequence[Stream], num_originals: int, rng: np.random.Generator
) -> tuple[list[Stream], dict[int, list[Stream]]]:
    """Draws streams for originals, evenly from the games.

    Returns:
        Those streams, and for each game those that are left.

    Raises:
        InputError: some game would have none left.
    """
    left = {game: [] for game in sorted({stream.game for stream in streams})}
    for i in rng.permutation(len(streams)):
        left[streams[i].game].append(streams[i])
    most = len(left) * (min(map(len, left.values())) - 1)
    if num_originals > most:
        raise InputError(
            f"originals={num_originals} is more than the {most} that {len(streams)} streams of"
            f" {len(left)} games allow."
        )
    games = [*left]
    return [left[games[i % len(games)]].pop() for i in range(num_originals)], left


def cut_clip(source: sources.Source, stream: Stream, frames: int, rng: np.random.Generator) -> int:
    """Draws where a clip begins that lies in one episode; returns the index of its first frame.

    Raises:
        InputError: no episode of the stream has so many frames.
    """
    rows = [source.fields(index) for index in range(stream.start, stream.stop)]
    starts = [
        i for i in range(len(rows) - frames + 1) if rows[i]["episode"] == rows[i + frames - 1]["episode"]
    ]
    if not starts:
        raise InputError(
            f"clip_frames={frames} are more than an excerpt of {source.name} has of one episode; ask for"
            " fewer."
        )
    return stream.start + starts[rng.integers(len(starts))]


def read_clip(source: sources.Source, start: int, frames: int) -> np.ndarray:
    """Returns consecutive frames: uint8 [T, H, W, 3]."""
    encoded = (source[index]["image"] for index in range(start, start + frames))
    return np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("RGB")) for image in encoded])


def random_names(number: int, rng: np.random.Generator) -> list[str]:
    """Returns different names of videos, in no order."""
    names: dict[str, None] = {}
    while len(names) < number:
        letters = rng.integers(26, size=NAME_LENGTH) + ord("a")
        names[bytes(letters.astype(np.uint8)).decode() + ".mp4"] = None
    return [*names]


# --- Regions


def retouch(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a clip (uint8 [T, H, W, 3]) with a region of its own frames blended in: a REAL video."""
    centre, radius = draw_place(clip, rng)
    return blend(clip, clip, Region(centre, radius, centre, *draw_warp(rng)), draw_contrast(rng))


def draw_fake(
    clip: np.ndarray,
    opened: dict[str, sources.Source],
    donors: Sequence[Stream],
    rng: np.random.Generator,
) -> tuple[np.ndarray, Stream, int]:
    """Makes a FAKE video of a clip, uint8 [T, H, W, 3].

    Returns:
        The video; the stream of which a region is in it, and the first frame of that.
    """
    size, middle = np.array(clip.shape[1:3]), len(clip) // 2
    donor = donors[rng.integers(len(donors))]
    start = cut_clip(opened[donor.split], donor, len(clip), rng)
    other = read_clip(opened[donor.split], start, len(clip))
    centre, radius = draw_place(clip, rng)
    angle, scale = draw_warp(rng)
    aim, best = np.array(covered_colours(clip, Region(centre, radius, centre, 0.0, 1.0), middle)), np.inf
    for _ in range(TRIALS):
        shift = rng.uniform(0.2, 0.8, size=2) * size - centre[middle]
        if np.hypot(*shift) < MIN_SHIFT * min(size):
            continue
        draw = Region(centre, radius, centre + shift, angle, scale)
        distance = np.abs(given_colours(other, draw, middle) - aim).mean()
        if distance < best:
            best, region = distance, draw
    return blend(clip, other, region, draw_contrast(rng)), donor, start


def draw_warp(rng: np.random.Generator) -> tuple[float, float]:
    """Draws an angle and a scale; the same for REAL and FAKE."""
    return rng.uniform(-MAX_ANGLE, MAX_ANGLE), np.exp(rng.uniform(-1, 1) * np.log(MAX_SCALE))


def draw_contrast(rng: np.random.Generator) -> np.ndarray:
    """Draws by how much contrast is off, float [3]; the same for REAL and FAKE."""
    return np.exp(rng.uniform(-1, 1, size=3) * np.log(MAX_CONTRAST))


def draw_place(clip: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws where there is always something to be seen: centre and radius of a region, both float [T, 2].

    REAL and FAKE videos have theirs from here, lest the place tell the label.
    """
    size, best = clip.shape[1:3], -1.0
    for _ in range(TRIALS):
        radius = np.stack([wander(len(clip), *(share * min(size) for share in RADII), rng) for _ in size], 1)
        centre = np.stack([wander(len(clip), 0.2 * n, 0.8 * n, rng) for n in size], axis=1)
        region = Region(centre, radius, centre, 0.0, 1.0)
        frames = {0, len(clip) // 2, len(clip) - 1}
        deviation = min(covered_colours(clip, region, frame)[1].mean() for frame in frames)
        if deviation > best:
            best, place = deviation, (centre, radius)
        if best >= MIN_DEVIATION:
            break
    return place


def wander(frames: int, low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """Returns numbers that move smoothly between two, by a sine of a period above 2 seconds: float [T]."""
    phase, turns = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.5)
    reach = rng.uniform(0, 0.5) * (high - low)
    middle = rng.uniform(low + reach, high - reach)
    return middle + reach * np.sin(phase + 2 * np.pi * turns * np.arange(frames) / RATE)


def window_of(region: Region, frame: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """Returns the rows and columns of a frame that a region covers."""
    low = np.floor(region.centre[frame] - region.radius[frame]).astype(int)
    high = np.ceil(region.centre[frame] + region.radius[frame]).astype(int) + 1
    return tuple(slice(max(a, 0), min(b, n)) for a, b, n in zip(low, high, size, strict=True))


def mask_of(region: Region, frame: int, window: tuple[slice, slice]) -> np.ndarray:
    """Returns the feathered mask of a frame in a window: float32 [h, w], 1 inside and 0 outside."""
    rows, columns = (np.arange(part.start, part.stop) for part in window)
    (row, column), (height, width) = region.centre[frame], region.radius[frame]
    distance = np.hypot(((rows - row) / height)[:, None], (columns - column) / width)
    ramp = np.clip((1 - distance) / FEATHER, 0, 1)
    return (ramp * ramp * (3 - 2 * ramp)).astype(np.float32)


def warp(picture: np.ndarray, region: Region, frame: int, window: tuple[slice, slice]) -> np.ndarray:
    """Turns, scales and moves a picture, uint8 [H, W, 3], mirrored beyond its borders.

    Returns:
        What comes to lie in the window: uint8 [h, w, 3].
    """
    turn = np.array([[np.cos(region.angle), np.sin(region.angle)],
                     [-np.sin(region.angle), np.cos(region.angle)]]) / region.scale  # fmt: skip
    (top, bottom), (left, right) = ((part.start, part.stop) for part in window)
    # From row and column in the window to those that are shown there; pixels have their centres at halves.
    shift = region.source[frame] + 0.5 - turn @ (region.centre[frame] + 0.5 - (top, left))
    height, width = bottom - top, right - left
    corners = shift + np.array([(0, 0), (0, width), (height, 0), (height, width)]) @ turn.T
    low, high = np.floor(corners.min(0)).astype(int) - 2, np.ceil(corners.max(0)).astype(int) + 2
    needed = picture[
        np.ix_(*(_mirror(np.arange(a, b), n) for a, b, n in zip(low, high, picture.shape, strict=False)))
    ]
    (down, right_of), (a, b), (c, d) = shift - low, turn[0], turn[1]
    affine = (d, c, right_of, b, a, down)  # Pillow has columns first.
    image = Image.fromarray(needed).transform(
        (width, height), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC
    )
    return np.asarray(image)


def _mirror(places: np.ndarray, size: int) -> np.ndarray:
    """Returns places, int [N], reflected at both ends of 0 to size."""
    places = places % (2 * size)
    return np.minimum(places, 2 * size - 1 - places)


def colours(picture: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of a picture under a mask, both float [3], in grey levels."""
    weight = mask[..., None] / mask.sum()
    mean = (weight * picture).sum((0, 1))
    return mean, np.sqrt((weight * (picture - mean) ** 2).sum((0, 1)))


def covered_colours(clip: np.ndarray, region: Region, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of what a region covers."""
    window = window_of(region, frame, clip.shape[1:3])
    return colours(clip[frame][window], mask_of(region, frame, window))


def given_colours(other: np.ndarray, region: Region, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and standard deviation of what a region brings."""
    window = window_of(region, frame, other.shape[1:3])
    return colours(warp(other[frame], region, frame, window), mask_of(region, frame, window))


def blend(clip: np.ndarray, other: np.ndarray, region: Region, contrast: np.ndarray) -> np.ndarray:
    """Blends a warped region of one clip into another.

    What is blended in gets the mean colour of what it covers, in every frame, and its contrast, in the middle
    frame.

    Args:
        clip: uint8 [T, H, W, 3].
        other: of the same shape.
        region: where from and where to.
        contrast: float [3], by what the contrast is off.

    Returns:
        uint8 [T, H, W, 3].
    """
    _, wanted = covered_colours(clip, region, len(clip) // 2)
    _, given = given_colours(other, region, len(clip) // 2)
    gain = contrast * np.clip(wanted / np.maximum(given, 1e-3), 1 / MAX_GAIN, MAX_GAIN)
    blended = clip.copy()
    for t in range(len(clip)):
        window = window_of(region, t, clip.shape[1:3])
        mask, covered = mask_of(region, t, window), clip[t][window]
        warped = warp(other[t], region, t, window)
        (mean, _), (aim, _) = colours(warped, mask), colours(covered, mask)
        matched = (warped - mean) * gain + aim
        mixed = covered + mask[..., None] * (matched - covered)
        blended[t][window] = np.clip(np.rint(mixed), 0, 255)
    return blended


def write_video(path: str, clip: np.ndarray) -> None:
    """Encodes a clip, uint8 [T, H, W, 3], without loss."""
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "bgr0"
        stream.codec_context.thread_count = 1  # More would make other bytes on other machines.
        for picture in clip:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
