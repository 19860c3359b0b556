import dataclasses
import io
import itertools
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from batches import assert_same_batches, take
from PIL import Image

from ssl_jax.data import clips, pipeline, sources
from ssl_jax.runtime.errors import InputError

ATARI = (210, 160)
SIZE = (6, 8)
FRAMES = 3
BROKEN = 17  # a frame that no clip of `film` can have


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


@dataclasses.dataclass(frozen=True)
class Film(sources.Source):
    """Frames in memory: (level of the picture, episode, step); the reads are counted."""

    reads: list[int] = dataclasses.field(default_factory=list)

    def __getitem__(self, index):
        self.reads.append(index)
        level, episode, step = self.records[index]
        picture = b"This is no picture." if level is None else png(np.full((*SIZE, 3), level, np.uint8))
        return {"image": picture, "episode": np.int32(episode), "step": np.int32(step)}


def film(records) -> Film:
    return Film("film", records, tfds.features.FeaturesDict({"episode": np.int32, "step": np.int32}))


@pytest.fixture(scope="module")
def records():
    """Episodes of 20, 2, 1, 12 and 25 frames; some frames are equal to the one before."""
    rng = np.random.default_rng(0)
    records = []
    for episode, length in enumerate((20, 2, 1, 12, 25)):
        level = 100
        for step in range(length):
            level = (level + int(rng.choice([0, 5, 9]))) % 256
            records.append((level, episode, step + 3))
    records[BROKEN] = (None, *records[BROKEN][1:])
    return records


def outcome(records, start: int, stride: int, min_motion: float) -> str:
    """What becomes of a clip, by the definition of `ssl_jax.data.clips`."""
    rows = [start + i * stride for i in range(FRAMES)]
    if rows[-1] >= len(records) or (start != BROKEN and records[rows[-1]][1] != records[start][1]):
        return "edge"
    if BROKEN in rows:
        return "unreadable"
    levels = [records[row][0] for row in rows]
    still = any(abs(a - b) < min_motion for a, b in itertools.pairwise(levels))
    return "static" if still else "good"


def clips_once(source, *, frames=FRAMES, stride=(1, 1), min_motion=6, **options):
    cut = clips.Cut(frames=frames, stride=stride, min_motion=min_motion)
    options = {"batch_size": 8, "image_size": SIZE} | options
    return clips.evaluation_clips(source, cut, pipeline.EvaluationOptions(**options))


def evaluate(source, **options):
    return list(clips_once(source, **options))


def train(source, *, frames=FRAMES, stride=(1, 2), min_motion=clips.MIN_MOTION, **options):
    cut = clips.Cut(frames=frames, stride=stride, min_motion=min_motion)
    options = {"batch_size": 8, "image_size": SIZE, "seed": 0, "max_bad_share": 0.2} | options
    return clips.train_clips(source, cut, pipeline.TrainOptions(**options))


def test_motion_is_the_mean_absolute_difference_of_neighbours():
    clip = np.zeros((3, 1, 2, 3), np.uint8)
    clip[1, 0, 0] = [250, 0, 2]
    clip[2, 0, 0] = [255, 0, 1]
    # (250 + 2) / 6 from the first frame to the second, (5 + 1) / 6 from the second to the third.
    np.testing.assert_allclose(clips.motion(clip), [42, 1])


def test_evaluation_has_every_usable_clip_once_and_counts_the_others(records):
    for stride in (1, 2):
        found = {start: outcome(records, start, stride, min_motion=6) for start in range(len(records))}
        skipped = pipeline.Skipped(max_share=0.2)
        batches = evaluate(film(records), stride=(stride, stride), skipped=skipped)
        mask = np.concatenate([batch["mask"] for batch in batches])
        index = np.concatenate([batch["index"] for batch in batches])
        good = [start for start, what in found.items() if what == "good"]
        np.testing.assert_array_equal(index[mask], good)
        np.testing.assert_array_equal(index[: len(records)], np.arange(len(records)))
        assert set(index[len(records) :]) <= {-1}
        causes = list(found.values())
        assert skipped.refused == {cause: causes.count(cause) for cause in ("edge", "static")}
        assert min(skipped.refused.values()) > 0
        assert skipped.bad == causes.count("unreadable") == 3
        assert skipped.causes == {("film", BROKEN): "unreadable"}  # one frame, in three clips
        for batch in batches:
            for row in np.flatnonzero(batch["mask"]):
                rows = batch["index"][row] + stride * np.arange(FRAMES)
                expected = np.array([records[i][0] for i in rows])[:, None, None, None]
                np.testing.assert_array_equal(batch["clip"][row], np.broadcast_to(expected, (3, *SIZE, 3)))
                assert (batch["episode"][row], batch["step"][row]) == records[rows[0]][1:]
            np.testing.assert_array_equal(batch["clip"][~batch["mask"]], 0)


def test_evaluation_takes_the_first_usable_clip_of_each_stretch(records):
    expected = []
    for start, stop in zip(range(0, 60, 5), range(5, 65, 5), strict=True):
        good = [i for i in range(start, stop) if outcome(records, i, 1, min_motion=6) == "good"]
        expected.append(good[0] if good else None)
    assert None in expected
    skipped = pipeline.Skipped(max_share=0.2)
    whole = evaluate(film(records), limit=12, skipped=skipped)
    index = np.concatenate([batch["index"] for batch in whole])[:12]
    mask = np.concatenate([batch["mask"] for batch in whole])
    assert [int(i) if usable else None for i, usable in zip(index, mask[:12], strict=True)] == expected
    assert not mask[12:].any()

    parts = [
        evaluate(film(records), limit=12, batch_size=2, process_index=i, process_count=3, skipped=skipped)
        for i in range(3)
    ]
    assert [len(part) for part in parts] == [2, 2, 2]
    rows = [(batch["index"], batch["mask"]) for step in zip(*parts, strict=True) for batch in step]
    np.testing.assert_array_equal(np.concatenate([row for row, _ in rows]), index)
    np.testing.assert_array_equal(np.concatenate([row for _, row in rows]), mask[:12])


def test_training_draws_usable_clips_of_every_stride(records):
    batches = train(film(records), min_motion=6)
    drawn = take(batches, 30)
    batches.close()
    strides = set()
    clip_and_start = (zip(batch["clip"], batch["index"], strict=True) for batch in drawn)
    for clip, start in itertools.chain.from_iterable(clip_and_start):
        levels = [int(level) for level in clip[:, 0, 0, 0]]
        fits = [s for s in (1, 2) if outcome(records, int(start), s, min_motion=6) == "good"]
        fits = [s for s in fits if [records[start + i * s][0] for i in range(FRAMES)] == levels]
        assert fits
        strides |= set(fits) if len(fits) == 1 else set()
    assert strides == {1, 2}
    assert set(drawn[0]) == {"clip", "index"}
    assert drawn[0]["clip"].shape == (8, FRAMES, *SIZE, 3)
    assert (drawn[0]["clip"].dtype, drawn[0]["index"].dtype) == (np.uint8, np.int64)
    # 240 clips, from 60 starts in each of four epochs, of which the refused ones were replaced.
    assert batches.skipped.refused.keys() == {"edge", "static"}
    assert batches.skipped.counts() == {"unreadable": 1}
    assert batches.skipped.read >= 240 * FRAMES


def test_training_resumes_with_the_next_clip(records):
    straight = train(film(records), min_motion=6)
    expected = take(straight, 12)
    stopped = train(film(records), min_motion=6, threads=3, prefetch=6)
    take(stopped, 5)
    state = json.loads(json.dumps(stopped.get_state()))
    for reading in ({"threads": 1, "prefetch": 1}, {"workers": 1}):
        resumed = train(film(records), min_motion=6, **reading)
        resumed.set_state(state)
        assert_same_batches(take(resumed, 7), expected[5:])
        assert resumed.skipped == straight.skipped
        resumed.close()
    stopped.close()
    straight.close()


def test_processes_share_every_epoch(records):
    def read(batch_size, **process):
        batches = train(film(records), batch_size=batch_size, min_motion=6, **process)
        drawn = take(batches, 5)
        batches.close()
        return drawn

    whole = read(12)
    parts = [read(4, process_index=i, process_count=3) for i in range(3)]
    for step in range(5):
        together = np.concatenate([part[step]["clip"] for part in parts])
        np.testing.assert_array_equal(together, whole[step]["clip"])


def test_too_many_bad_frames_stop_the_run(records):
    batches = train(film(records), max_bad_share=0.001)
    with pytest.raises(InputError, match=r"film, example 17.*max_bad_share"):
        take(batches, 60)
    batches.close()


def test_opening_reads_a_few_frames_of_however_many():
    class Long:
        def __len__(self):
            return 10**9

        def __getitem__(self, index):
            return index * 10 % 256, index // 1000, index % 1000

    source = film(Long())
    batches = train(source)
    evaluation = clips_once(source, min_motion=clips.MIN_MOTION, batch_size=2, limit=10)
    assert len(source.reads) <= 2 * FRAMES
    assert next(batches)["index"].max() > 10**7
    assert next(evaluation)["index"].tolist() == [0, 10**8]
    batches.close()
    evaluation.close()


def test_all_frames_of_a_clip_are_cropped_at_one_place():
    class Moving(Film):
        def __getitem__(self, index):
            rows, columns = np.mgrid[:20, :30]
            pixels = np.stack([rows, columns, np.full((20, 30), index * 9 % 256)], axis=-1)
            return super().__getitem__(index) | {"image": png(pixels.astype(np.uint8))}

    source = Moving("film", [(0, 0, step) for step in range(40)], film([]).features)
    batches = train(source, image_size=(20, 10))
    clip = np.concatenate([batch["clip"] for batch in take(batches, 4)]).astype(int)
    batches.close()
    corners = clip[:, :, 0, 0, :2]
    np.testing.assert_array_equal(corners, np.broadcast_to(corners[:, :1], corners.shape))
    assert len(set(corners[:, 0, 1])) > 10
    (middle,) = evaluate(source, image_size=(20, 10), min_motion=1, limit=1)
    np.testing.assert_array_equal(middle["clip"][0, :, 0, 0, :2], [[0, 10]] * FRAMES)


def test_atari_frames_have_clips(atari_tiny_dir):
    data = sources.make(name="atari_frames/tiny", data_dir=atari_tiny_dir)
    source = data.open("validation", ["episode", "step", "game"])
    options = {"batch_size": 6, "limit": 12, "image_size": ATARI}
    batches = evaluate(source, frames=4, stride=(1, 3), min_motion=clips.MIN_MOTION, **options)
    assert sum(batch["mask"].sum() for batch in batches) == 12
    for batch in batches:
        for clip, start, episode, game in zip(
            *(batch[name] for name in ("clip", "index", "episode", "game")), strict=True
        ):
            assert game == start // 80
            frames = [source[int(start) + i] for i in range(10)]
            pictures = [np.asarray(Image.open(io.BytesIO(frame["image"]))) for frame in frames]
            (stride,) = [
                hop for hop in (1, 2, 3)
                if all(np.array_equal(clip[i], pictures[i * hop]) for i in range(4))
            ]  # fmt: skip
            assert {int(frame["episode"]) for frame in frames[: 3 * stride + 1]} == {int(episode)}
            assert clips.motion(clip).min() >= clips.MIN_MOTION


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frames": 9, "stride": (4, 5)}, r"frames=9 with stride=\(4, 5\).*none of 60 .*59 edge.* 25 frames"),
        ({"min_motion": 200}, "min_motion=200: none of 60 can be used .*static"),
        ({"min_motion": -1}, "min_motion=-1"),
        ({"frames": 1}, "frames=1 make no clip"),
        ({"stride": (0, 2)}, r"stride=\(0, 2\)"),
        ({"stride": (3, 2)}, r"stride=\(3, 2\)"),
    ],
)
def test_clips_that_cannot_be_are_refused_at_once(records, options, message):
    for read in (train, evaluate):
        with pytest.raises(InputError, match=message):
            read(film(records), **options)


def test_frames_without_episodes_make_no_clips(atari_tiny_dir):
    data = sources.make(name="atari_frames/tiny", data_dir=atari_tiny_dir)
    with pytest.raises(InputError, match="has no step: clips need frames with the fields episode and step"):
        train(data.open("train", ["episode"]), image_size=ATARI)
