"""Videos as examples: a few frames of every video, where `ssl_jax.data.pipeline` reads single frames.

Long videos have more frames, and a number of frames spread over a split leaves short videos out. So what is
said of videos is measured on as many frames of each, evenly spaced (Simonyan and Zisserman 2014, Sec. 4: 25;
retrieval on UCF101 usually has 10), and learned from one random frame of each in an epoch.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ssl_jax.data import pipeline
from ssl_jax.data.pipeline import EvaluationOptions, Reading, TrainBatches, TrainOptions
from ssl_jax.data.sources import blank
from ssl_jax.data.videos import Frames


@dataclasses.dataclass(frozen=True)
class Videos:
    """The videos of a split, in order; all that `pipeline.endless` and `pipeline.once` ask of a source.

    Attributes:
        frames: the split, frame by frame.
    """

    frames: Frames

    @property
    def name(self) -> str:
        """Folder and split, for messages."""
        return self.frames.name

    def __len__(self) -> int:
        return len(self.frames.videos)

    def span(self, number: int) -> tuple[int, int]:
        """Returns the index in `frames` of the first frame of a video, and that after its last."""
        start = int(self.frames.starts[number])
        return start, start + self.frames.videos[number].frames

    def fields(self, number: int) -> dict[str, np.ndarray]:
        """Returns the fields of the first frame of a video, without the picture."""
        return self.frames.fields(self.span(number)[0])

    def fingerprint(self) -> str:
        """Returns what tells the videos from those of another split; see `Frames.fingerprint`."""
        return self.frames.fingerprint()

    def describe(self, number: int) -> str:
        """Returns what to call a video in a message."""
        return self.frames.videos[number].path


def evenly(start: int, stop: int, number: int) -> np.ndarray:
    """Returns int [number]: the middles of as many equal parts of a video; all frames of a shorter one."""
    length = stop - start
    if length <= number:
        return np.arange(start, stop)
    return start + ((np.arange(number) + 0.5) * length / number).astype(int)


def evaluation_frames(
    source: Frames, frames: int, options: EvaluationOptions
) -> Iterator[dict[str, np.ndarray]]:
    """Reads frames of every video of a split once, in order: batches as of `pipeline.evaluation_batches`.

    Args:
        source: the split, opened with the fields that the batches shall have.
        frames: of each video, see `evenly`.
        options: how it is read; `limit` counts videos, spread evenly over the split, and a video with a frame
            that cannot be used counts as one bad example. For one process alone.

    Yields:
        {"image": uint8 [B, H, W, 3], "mask": bool [B], "index": int64 [B], and every field of the source:
        [B, ...]}; the index is that of the frame in the source, -1 in rows that fill up the last batch.

    Raises:
        InputError: too many videos cannot be used.
    """
    videos = Videos(source)
    row = blank(source) | {
        "image": np.zeros((*options.image_size, 3), np.uint8),
        "frame": np.array(-1, np.int64),
    }
    numbers = pipeline.spread(len(videos), options.limit)
    batches = pipeline.once(
        videos,
        functools.partial(_read_video, videos=videos, frames=frames, row=row, **options.decoding),
        np.stack([numbers, numbers + 1], axis=1),
        {name: np.stack([value] * frames) for name, value in row.items()},
        dataclasses.replace(options, batch_size=1),
    )
    return _regroup(batches, row, options.batch_size)


def _read_video(
    number: int,
    rng: None,
    *,
    videos: Videos,
    frames: int,
    row: Mapping[str, np.ndarray],
    **decoding: Any,
) -> Reading:
    """Reads frames of a video: {field: [frames, ...]}, where those that cannot be used are as `row`."""
    del rng
    wanted = evenly(*videos.span(number), frames).tolist()
    rows, bad = [], None
    while len(rows) < len(wanted):
        # One decoding pass for all, and another one after each frame that cannot be decoded.
        stream = videos.frames.read(wanted[len(rows) :])
        for index in wanted[len(rows) :]:
            frame, _, failed, _ = pipeline.read_next(stream, index, None, source=videos.frames, **decoding)
            rows.append(row if failed else frame | {"frame": np.int64(index)})
            if failed:
                bad = bad or (number, *failed[1:])
                break
    if all(one is row for one in rows):
        return Reading(None, 1, bad=bad)
    rows += [row] * (frames - len(rows))
    return Reading({name: np.stack([one[name] for one in rows]) for name in row}, 1, bad=bad)


def _regroup(
    videos: Iterable[Mapping[str, np.ndarray]], row: Mapping[str, np.ndarray], batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `batch_size` frames from those of one video after the other, filled up with `row`."""
    frames = (
        {name: video[name][0, place] for name in row}
        for video in videos
        for place in np.flatnonzero(video["frame"][0] >= 0)
    )
    while some := list(itertools.islice(frames, batch_size)):
        some += [row] * (batch_size - len(some))
        batch = {name: np.stack([one[name] for one in some]) for name in row}
        index = batch.pop("frame")
        yield batch | {"index": index, "mask": index >= 0}


def train_frames(source: Frames, options: TrainOptions) -> TrainBatches:
    """Reads one random frame of every video in an epoch, for ever; see `pipeline.train_batches`.

    Args:
        source: the split.
        options: how it is read.

    Returns:
        Batches {"image": uint8 [B, H, W, 3], "index": int64 [B]}; the index is that of the video, see
        `Videos.fields`.

    Raises:
        InputError: while batches are read, for too many bad examples.
    """
    videos = Videos(source)
    read = functools.partial(_read_frame, videos=videos, **options.decoding)
    return pipeline.endless(videos, read, "image", options)


def _read_frame(number: int, rng: np.random.Generator, *, videos: Videos, **decoding: Any) -> Reading:
    """Reads a random frame of a video, of which the bad ones are called by the number of the video."""
    index = int(rng.integers(*videos.span(number)))
    reading = pipeline.read_picture(index, rng, source=videos.frames, **decoding)
    return reading if reading.bad is None else reading._replace(bad=(number, *reading.bad[1:]))
