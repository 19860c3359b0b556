"""Frames by video: every video is there, long ones no more often than short ones."""

import collections
import errno
import os

import av
import films
import numpy as np
import pytest

from ssl_jax.data import pipeline, sources, whole_videos
from ssl_jax.runtime import files
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.fast

LENGTHS = {"a/long": 90, "a/short": 3, "b/middle": 25, "b/other": 12}
OPTIONS = {"image_size": films.SIZE, "batch_size": 8}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """The split `train` of four videos in two classes, of 90, 3, 25 and 12 frames that tell their numbers."""
    root = tmp_path_factory.mktemp("videos")
    for name, frames in LENGTHS.items():
        films.write(root / "train" / f"{name}.mp4", frames)
    for split in ("validation", "test"):
        films.write(root / split / "a" / "one.mp4", 4)
        films.write(root / split / "b" / "one.mp4", 4)
    data = sources.make(name="videos", path=str(root), opened=("train", "validation", "test"))
    return data.open("train", ("episode", "step", "label"))


def read(source, frames, **options):
    options = pipeline.EvaluationOptions(**OPTIONS | options)
    batches = list(whole_videos.evaluation_frames(source, frames, options))
    assert all(len(batch["image"]) == options.batch_size for batch in batches)
    return {name: np.concatenate([b[name][b["mask"]] for b in batches]) for name in batches[0]}, batches


def test_frames_of_every_video_are_evenly_spaced_by_hand(videos):
    rows, batches = read(videos, 5)
    # Middles of fifths: of 90 frames 9, 27, ...; of 25 frames 2.5, 7.5, ... cut down; all 3 of 3.
    expected = [9, 27, 45, 63, 81, 0, 1, 2, 2, 7, 12, 17, 22, 1, 3, 6, 8, 10]
    assert rows["step"].tolist() == expected
    assert [films.number(image) for image in rows["image"]] == expected
    assert rows["label"].tolist() == [0] * 8 + [1] * 10
    assert [rows["episode"].tolist().count(video) for video in sorted({*rows["episode"].tolist()})] == [
        5,
        3,
        5,
        5,
    ]
    for index, step in zip(rows["index"], rows["step"], strict=True):
        assert videos.fields(int(index))["step"] == step
    assert sum(len(batch["mask"]) for batch in batches) == 24
    assert all((batch["index"][~batch["mask"]] == -1).all() for batch in batches)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_batch_size_changes_no_frame(videos, batch_size):
    rows, _ = read(videos, 5, batch_size=batch_size)
    expected, _ = read(videos, 5)
    for name, values in expected.items():
        np.testing.assert_array_equal(rows[name], values)


def test_limit_counts_videos(videos):
    rows, _ = read(videos, 5, limit=2)
    assert rows["step"].tolist() == [9, 27, 45, 63, 81, 2, 7, 12, 17, 22]


def test_frame_that_cannot_be_decoded_leaves_the_others_of_its_video(videos, monkeypatch):
    """The decoder refuses frame 12 of the third video: its other frames and videos are as before."""
    from ssl_jax.data import videos as videos_lib

    decode = videos_lib.read_frames
    bad = lambda path, video, steps: {
        step: image for step, image in decode(path, video, steps).items() if (video.frames, step) != (25, 12)
    }
    expected, _ = read(videos, 5)
    monkeypatch.setattr(videos_lib, "read_frames", bad)
    skipped = pipeline.Skipped(max_share=0.5)
    rows, _ = read(videos, 5, skipped=skipped)
    kept = ~((expected["label"] == 1) & (expected["step"] == 12))
    np.testing.assert_array_equal(rows["image"], expected["image"][kept])
    assert skipped.counts() == {"unreadable": 1}
    assert (skipped.read, skipped.bad) == (4, 1)


def test_video_without_a_good_frame_is_counted_and_left_out(videos, monkeypatch):
    from ssl_jax.data import videos as videos_lib

    decode = videos_lib.read_frames
    monkeypatch.setattr(
        videos_lib,
        "read_frames",
        lambda path, video, steps: {} if video.frames == 3 else decode(path, video, steps),
    )
    skipped = pipeline.Skipped(max_share=0.5)
    rows, _ = read(videos, 5, skipped=skipped)
    assert len(rows["index"]) == 15
    assert list(skipped.told.values()) == ["train/a/short.mp4, frame 0 (FrameError: the decoder complains)"]


def test_broken_video_whose_decoder_says_input_output_error_is_skipped(videos, monkeypatch):
    """FFmpeg says so of broken files as well; this one can be read, so that no server is away."""
    from ssl_jax.data import videos as videos_lib

    decode = videos_lib.read_frames

    def broken(path, video, steps):
        if video.frames == 3:
            raise av.FFmpegError(errno.EIO, os.strerror(errno.EIO))
        return decode(path, video, steps)

    monkeypatch.setattr(files, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(videos_lib, "read_frames", broken)
    skipped = pipeline.Skipped(max_share=0.5)
    rows, _ = read(videos, 5, skipped=skipped)
    assert len(rows["index"]) == 15
    assert skipped.counts() == {"unreadable": 1}


def test_training_draws_every_video_as_often_whatever_its_length(videos):
    options = pipeline.TrainOptions(**OPTIONS, seed=0)
    batches = whole_videos.train_frames(videos, options)
    drawn = [next(batches) for _ in range(30)]
    batches.close()
    index = np.concatenate([batch["index"] for batch in drawn])
    assert {*np.bincount(index).tolist()} == {60}
    steps = collections.defaultdict(set)
    for video, image in zip(index, np.concatenate([batch["image"] for batch in drawn]), strict=True):
        steps[int(video)].add(films.number(image))
    assert steps[1] == {0, 1, 2}
    assert len(steps[0]) > 30  # of 90 frames, in 60 draws: 44 on average
    assert max(steps[0]) > 80


def test_training_resumes_with_the_same_frames(videos):
    options = pipeline.TrainOptions(**OPTIONS, seed=3)
    whole = whole_videos.train_frames(videos, options)
    expected = [next(whole) for _ in range(4)]
    again = whole_videos.train_frames(videos, options)
    next(again)
    state = again.get_state()
    resumed = whole_videos.train_frames(videos, options)
    resumed.set_state(state)
    for batch in expected[1:]:
        np.testing.assert_array_equal(next(resumed)["image"], batch["image"])
    for batches in (whole, again, resumed):
        batches.close()


def test_labels_of_videos_are_those_of_their_frames(videos):
    by_video = whole_videos.Videos(videos)
    assert [int(by_video.fields(number)["label"]) for number in range(len(by_video))] == [0, 0, 1, 1]


def test_too_many_bad_videos_stop_the_run(videos, monkeypatch):
    from ssl_jax.data import videos as videos_lib

    monkeypatch.setattr(pipeline, "MIN_READ", 4)
    monkeypatch.setattr(videos_lib, "read_frames", lambda path, video, steps: {})
    with pytest.raises(InputError, match="4 of the 4 examples read could not be used"):
        read(videos, 5)
