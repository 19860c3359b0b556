"""Clips: u frames of one episode, in the order of play, from a source of single frames.

Any source will do whose examples have the fields `episode` and `step` and lie in order, as those of
`atari_frames` and of videos do: rows i and i + k with the same episode are k steps apart. The frames of
a clip are asked for together (`Source.read`), so that a video is decoded once for them. `train_clips` and
`evaluation_clips` are `train_batches` and `evaluation_batches` of `ssl_jax.data.pipeline` for clips.

A clip is drawn by its first frame and its stride, the steps from one frame to the next. Nothing is
known of a source before its frames are read, so that opening a large one costs nothing. A draw is
refused, and counted, if the clip would be

- at the `edge`: the episode, or the split, ends before the clip does;
- `static`: two consecutive frames hardly differ, and nobody could tell which of them was first.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from ssl_jax.data import pipeline
from ssl_jax.data.pipeline import EvaluationOptions, Reading, TrainBatches, TrainOptions
from ssl_jax.data.sources import Source, blank
from ssl_jax.runtime.errors import InputError

FIELDS = ("episode", "step")  # what a source must be opened with
# Mean absolute difference of consecutive frames, in grey levels of 255. In atari_frames the ball of
# Breakout alone makes 0.09 where it flies, and the discs of Q*bert that only change colour make 0.04.
MIN_MOTION = 0.05
TRIALS = 100  # clips of which one must be usable
MAX_SCANNED = 10_000  # frames among which to look for the longest episode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """Which clips are cut from episodes.

    Attributes:
        frames: u, frames of a clip.
        stride: least and largest number of steps between consecutive frames; each clip draws its own.
        min_motion: mean absolute difference, in grey levels of 255 over all pixels and channels, below
            which two consecutive frames make a clip static.

    Raises:
        InputError: a number does not make sense.
    """

    frames: int
    stride: tuple[int, int]
    min_motion: float = MIN_MOTION

    def __post_init__(self):
        if self.frames < 2:
            raise InputError(f"frames={self.frames} make no clip; at least 2 are needed.")
        if not 1 <= self.stride[0] <= self.stride[1]:
            raise InputError(
                f"stride={self.stride} must be the least and the largest number of steps, from 1 on."
            )
        if self.min_motion < 0:
            raise InputError(f"min_motion={self.min_motion} must be a difference of grey levels, at least 0.")


def train_clips(source: Source, cut: Cut, options: TrainOptions) -> TrainBatches:
    """Reads clips for ever: every epoch of all processes begins one at every frame of the split.

    A clip that is refused, or has a frame that cannot be read, is replaced by a random other one, the
    same in every run. All frames of a clip are cropped at the same place. Bad frames are counted as bad
    pictures are, apart from refused clips (`TrainBatches.skipped.refused`).

    Args:
        source: the split, opened with the fields `FIELDS`.
        cut: which clips.
        options: how they are read; `batch_size` counts clips.

    Returns:
        Batches {"clip": uint8 [B, u, H, W, 3], "index": int64 [B]}, the index that of the first frame.

    Raises:
        InputError: the source has no episodes, or no such clips. Reading batches raises it for too many
            bad frames.
    """
    return pipeline.endless(source, _reader(source, cut, options), "clip", options)


def evaluation_clips(source: Source, cut: Cut, options: EvaluationOptions) -> Iterator[dict[str, np.ndarray]]:
    """Reads clips of a split once, in order, the same in every run.

    The split is divided into `options.limit` stretches of equal length, and the clip of a stretch begins
    at the first of its frames where one can. So clips are spread evenly, none comes twice, and few
    stretches stay without. Without a limit, every frame is a stretch. The stride of a clip depends on its
    first frame only, and crops are in the middle.

    Args:
        source: the split, opened with the fields `FIELDS` and those that the batches shall have.
        cut: which clips.
        options: how they are read.

    Yields:
        {"clip": uint8 [B, u, H, W, 3], "mask": bool [B], "index": int64 [B] (that of the first frame;
        -1 where it fills up), and every field of the source, of the first frame: [B, ...]}. Rows without
        a clip are zero and have `mask` False.

    Raises:
        InputError: as `train_clips`, before the first batch is asked for.
    """
    read = _reader(source, cut, options)
    starts = pipeline.spread(len(source), options.limit)
    return pipeline.once(
        source,
        read,
        np.stack([starts, np.append(starts[1:], len(source))], axis=1),
        blank(source) | {"clip": np.zeros((cut.frames, *options.image_size, 3), np.uint8)},
        options,
    )


def _reader(source: Source, cut: Cut, options: pipeline.Options) -> pipeline.Reader:
    """What makes the clips, once it has made one."""
    missing = [field for field in FIELDS if field not in source.features]
    if missing:
        raise InputError(
            f"{source.name} has no {' and no '.join(missing)}: clips need frames with the fields "
            f"{' and '.join(FIELDS)}, as those of atari_frames."
        )
    read = functools.partial(read_clip, source=source, cut=cut, **options.decoding)
    causes = Counter()
    for index in pipeline.spread(len(source), TRIALS):
        reading = read(int(index), None)
        if reading.arrays is not None:
            return read
        causes[reading.refused or reading.bad[1]] += 1
    counts = ", ".join(f"{count} {cause}" for cause, count in causes.items())
    raise InputError(
        f"{source.name} has no clips of frames={cut.frames} with stride={cut.stride} and min_motion="
        f"{cut.min_motion:g}: none of {causes.total()} can be used ({counts}); the longest episode seen has "
        f"{longest_episode(source)} frames."
    )


def read_clip(
    index: int, rng: np.random.Generator | None, *, source: Source, cut: Cut, **decoding: Any
) -> Reading:
    """Reads the clip that begins at frame `index`, unless it is refused.

    Args:
        index: of the first frame in the source.
        rng: draws the stride and the place of the crop; None: the index draws the stride, and crops are
            in the middle.
        source: with the fields `FIELDS`.
        cut: which clips.
        **decoding: as of `pipeline.read_picture`.

    Returns:
        The fields of the first frame and `clip`, uint8 [u, H, W, 3].
    """
    hop = int((rng or np.random.default_rng(index)).integers(cut.stride[0], cut.stride[1] + 1))
    crop_seed = None if rng is None else rng.integers(2**32)
    rows = [index + i * hop for i in range(cut.frames)]
    if rows[-1] >= len(source):
        return Reading(None, 0, refused="edge")
    order = (rows[0], rows[-1], *rows[1:-1])  # The last frame early: it tells whether there is a clip.
    examples, stream = {}, source.read(order)
    for row in order:
        crop = None if crop_seed is None else np.random.default_rng(crop_seed)
        frame, _, bad, _ = pipeline.read_next(stream, row, crop, source=source, **decoding)
        if bad:
            return Reading(None, len(examples) + 1, bad=bad)
        examples[row] = frame
        first = examples[index]
        if frame["episode"] != first["episode"] or frame["step"] - first["step"] != row - index:
            return Reading(None, len(examples), refused="edge")
    clip = np.stack([examples[row].pop("image") for row in rows])
    if motion(clip).min() < cut.min_motion:
        return Reading(None, cut.frames, refused="static")
    return Reading(examples[index] | {"clip": clip}, cut.frames)


def motion(clip: np.ndarray) -> np.ndarray:
    """Returns how much changes from each frame of a clip to the next.

    Args:
        clip: uint8 [u, H, W, 3].

    Returns:
        float64 [u - 1], mean absolute differences over pixels and channels, in grey levels of 255.
    """
    larger, smaller = np.maximum(clip[1:], clip[:-1]), np.minimum(clip[1:], clip[:-1])
    return (larger - smaller).mean((1, 2, 3))


def longest_episode(source: Source) -> int:
    """Returns how many frames the longest episode has, among the first `MAX_SCANNED` of a source."""
    longest, length, episode = 0, 0, None
    for index in range(min(len(source), MAX_SCANNED)):
        example = source.fields(index)
        length = length + 1 if example["episode"] == episode else 1
        episode = example["episode"]
        longest = max(longest, length)
    return longest
