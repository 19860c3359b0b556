import hashlib
import json
import os
import pathlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ssl_jax.data import dfdc, manipulated_clips, sources
from ssl_jax.data.manipulated_clips import Region
from ssl_jax.runtime.errors import InputError

SMALL = {"num_originals": 12, "fakes_per_original": 2, "frames": 8, "source": "atari_frames/tiny"}


def contents(directory: str) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in pathlib.Path(directory).iterdir()
        if path.is_file()
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory, atari_tiny_dir) -> str:
    directory = str(tmp_path_factory.mktemp("clips") / "standin")
    return manipulated_clips.build(directory, data_dir=atari_tiny_dir, **SMALL)


@pytest.fixture(scope="module")
def read(built, tmp_path_factory) -> dfdc.Dfdc:
    """Every frame of it, at full size."""
    cache = str(tmp_path_factory.mktemp("cache"))
    return dfdc.make(path=built, split="grouped", frames=8, size=None, crop="none", cache_dir=cache,
                     shares=(0.5, 0.25, 0.25))  # fmt: skip


def videos(read: dfdc.Dfdc) -> np.ndarray:
    """All videos as they were decoded: uint8 [V, T, H, W, 3]."""
    return np.stack([np.load(os.path.join(read.contents.store, file)) for file in read.contents.files])


def still(frames: int = 1, **changes) -> Region:
    """A region of 8 x 12 pixels around (20, 30) that shows what lies there, not warped."""
    place = np.full((frames, 2), (20.0, 30.0))
    return Region(**{"centre": place, "radius": np.full((frames, 2), (4.0, 6.0)), "source": place,
                     "angle": 0.0, "scale": 1.0} | changes)  # fmt: skip


def test_format_is_that_of_dfdc(built, read):
    metadata = json.loads(pathlib.Path(built, "metadata.json").read_text())
    assert len(metadata) == 36
    assert {*metadata} == {name for name in os.listdir(built) if name.endswith(".mp4")}
    for entry in metadata.values():
        assert entry.keys() == {"label", "split", "original"}
        assert (entry["label"] == "REAL") == (entry["original"] is None)
        assert entry["original"] is None or metadata[entry["original"]]["label"] == "REAL"
    assert read.left_out == {}
    assert np.bincount(read.contents.values["label"]).tolist() == [12, 24]
    assert np.bincount(read.contents.values["original"]).tolist() == [3] * 12


def test_says_that_it_is_a_stand_in(built):
    about = json.loads(pathlib.Path(built, manipulated_clips.SETTINGS).read_text())
    assert "no deepfakes" in about["settings"]["stand_in"]
    assert len(about["videos"]) == 36


def test_originals_and_what_is_blended_in_come_from_different_streams_of_one_game(built, atari_tiny_dir):
    about = json.loads(pathlib.Path(built, manipulated_clips.SETTINGS).read_text())["videos"]
    data = sources.make(name="atari_frames/tiny", data_dir=atari_tiny_dir)
    opened = {split: data.open(split, ("game", "episode")) for split in sources.SPLITS}

    def origin(place):
        first, last = (opened[place["split"]].fields(place["start"] + i) for i in (0, SMALL["frames"] - 1))
        assert first["episode"] == last["episode"]
        return int(first["game"]), int(first["episode"])

    originals = {origin(video) for video in about.values() if "donor" not in video}
    fakes = [video for video in about.values() if "donor" in video]
    assert len(originals) == 12
    assert [game for game, _ in sorted(originals)] == [0] * 6 + [1] * 6
    for fake in fakes:
        assert origin(fake["donor"])[0] == fake["game"]
        assert origin(fake["donor"]) not in originals


def test_more_originals_than_streams_are_of_other_frames(tmp_path, atari_tiny_dir):
    """Streams of 40 frames are cut in two: 34 originals and what is blended in share no frame."""
    data = sources.make(name="atari_frames/tiny", data_dir=atari_tiny_dir)
    opened = {split: data.open(split, ("game", "episode", "step")) for split in sources.SPLITS}
    streams = manipulated_clips.find_streams(opened)
    assert manipulated_clips.enough_streams(streams, 16, 8) == streams
    excerpts = manipulated_clips.enough_streams(streams, 34, 4)
    frames = lambda parts: sorted((part.split, i) for part in parts for i in range(part.start, part.stop))
    assert frames(excerpts) == frames(streams)
    assert len(excerpts) == 2 * len(streams) == 36
    originals, donors = manipulated_clips.choose_streams(excerpts, 34, np.random.default_rng(0))
    used = [*originals, *(part for parts in donors.values() for part in parts)]
    assert len(frames(used)) == len(set(frames(used)))
    assert all(donors.values())


def test_fakes_and_originals_differ_only_where_a_region_is(read):
    clips, values = videos(read), read.contents.values
    for original in range(12):
        members = np.flatnonzero(values["original"] == original)
        for fake in members[values["label"][members] == 1]:
            (real,) = members[values["label"][members] == 0]
            share = (clips[fake] != clips[real]).any(-1).mean((1, 2))
            assert (share > 0).all()
            assert (share < 0.5).all()


def test_real_videos_have_a_region_as_fakes_have(read, built, atari_tiny_dir):
    about = json.loads(pathlib.Path(built, manipulated_clips.SETTINGS).read_text())["videos"]
    data = sources.make(name="atari_frames/tiny", data_dir=atari_tiny_dir)
    shares = {0: [], 1: []}
    for path, clip, label in zip(
        read.contents.paths, videos(read), read.contents.values["label"], strict=True
    ):
        source = data.open(about[path]["split"])
        untouched = manipulated_clips.read_clip(source, about[path]["start"], len(clip))
        shares[label].append((clip != untouched).any(-1).mean((1, 2)))
    for label in (0, 1):
        assert (np.array(shares[label]) > 0).all()
        assert (np.array(shares[label]) < 0.3).all()


def test_simple_statistics_do_not_tell_the_label(read):
    clips = videos(read).astype(np.float32)
    labels, groups = read.contents.values["label"], read.contents.values["original"]
    sizes = [
        [np.log(os.path.getsize(os.path.join(read.name, path)))] * clips.shape[1]
        for path in read.contents.paths
    ]
    features = {
        "mean colour": clips.mean((2, 3)).reshape(-1, 3),
        "contrast": clips.std((2, 3)).reshape(-1, 3),
        "bytes of the file": np.array(sizes).reshape(-1, 1),
    }
    frames = clips.shape[1]
    for name, values in features.items():
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        scores = cross_val_predict(
            model, values, labels.repeat(frames), groups=groups.repeat(frames), cv=GroupKFold(4),
            method="predict_proba",
        )[:, 1]  # fmt: skip
        by_video = scores.reshape(-1, frames).mean(1)
        # Of 12 and 24 videos at chance the AUC has a standard deviation of 0.1.
        assert 0.25 < roc_auc_score(labels, by_video) < 0.75, name


def test_same_seed_same_bytes_and_another_seed_other_bytes(tmp_path, atari_tiny_dir):
    few = SMALL | {"num_originals": 2, "fakes_per_original": 1, "data_dir": atari_tiny_dir}
    first, again, other = (
        contents(manipulated_clips.build(str(tmp_path / name), seed=seed, **few))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert not {*first.values()} & {*other.values()}


def test_built_once(built, atari_tiny_dir):
    before = {path: path.stat().st_mtime_ns for path in pathlib.Path(built).iterdir()}
    assert manipulated_clips.build(built, data_dir=atari_tiny_dir, **SMALL) == built
    assert before == {path: path.stat().st_mtime_ns for path in pathlib.Path(built).iterdir()}


def test_an_interrupted_build_leaves_nothing_that_is_trusted(tmp_path, atari_tiny_dir, monkeypatch):
    few = SMALL | {"num_originals": 2, "fakes_per_original": 1, "data_dir": atari_tiny_dir}
    directory = tmp_path / "clips"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(manipulated_clips, "_write_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            manipulated_clips.build(str(directory), **few)
    assert not directory.exists()
    manipulated_clips.build(str(directory), **few)
    assert len([*directory.glob("*.mp4")]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "clips.lock"]


def test_videos_are_lossless(tmp_path):
    clip = np.random.default_rng(0).integers(256, size=(5, 30, 44, 3), dtype=np.uint8)
    manipulated_clips.write_video(str(tmp_path / "noise.mp4"), clip)
    entry = {"noise.mp4": {"label": "REAL", "original": None}}
    (tmp_path / "metadata.json").write_text(json.dumps(entry))
    sampling = dfdc.Sampling(frames=5, size=None, crop="none")
    (row,) = dfdc.extract(str(tmp_path), ["noise.mp4"], sampling, str(tmp_path / "store"))
    np.testing.assert_array_equal(np.load(tmp_path / "store" / row["file"]), clip)


def test_warp_of_nothing_is_nothing():
    picture = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    window = (slice(16, 25), slice(24, 37))
    np.testing.assert_array_equal(manipulated_clips.warp(picture, still(), 0, window), picture[window])


def test_warp_moves_turns_scales_and_mirrors():
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[10, 50] = 255  # row and column
    window = (slice(10, 31), slice(20, 41))

    def brightest(region):
        found = manipulated_clips.warp(picture, region, 0, window)[..., 0]
        return tuple(int(i) for i in np.unravel_index(found.argmax(), found.shape) + np.array([10, 20]))

    assert brightest(still(source=np.array([[10.0, 50.0]]))) == (20, 30)
    assert brightest(still(source=np.array([[7.0, 52.0]]))) == (23, 28)
    # What lies 4 to the right of the source comes to lie 8 to the right, or 4 above, at twice the size and
    # turned by a right angle.
    assert brightest(still(source=np.array([[10.0, 46.0]]), scale=2.0)) in ((20, 38), (20, 39))
    turned = {
        brightest(still(source=np.array([[10.0, 46.0]]), angle=angle)) for angle in (np.pi / 2, -np.pi / 2)
    }
    assert turned == {(16, 30), (24, 30)}
    # Row -11 is the mirror image of row 10.
    assert brightest(still(source=np.array([[-11.0, 50.0]]))) == (20, 30)


def test_mask_is_one_inside_zero_outside_and_smooth():
    window = manipulated_clips.window_of(still(), 0, (40, 60))
    assert window == (slice(16, 25), slice(24, 37))
    mask = manipulated_clips.mask_of(still(), 0, window)
    assert mask.shape == (9, 13)
    assert mask[4, 6] == 1
    assert mask[0].max() == mask[-1].max() == mask[:, 0].max() == mask[:, -1].max() == 0
    np.testing.assert_array_equal(mask, mask[::-1, ::-1])
    # Along the longer half axis: distances 0, 1/6, ..., 1 and a smooth step from 0.65 on.
    ramp = np.clip((1 - np.arange(7) / 6) / 0.35, 0, 1)
    np.testing.assert_allclose(mask[4, 6:], ramp**2 * (3 - 2 * ramp), atol=1e-6)


def test_blending_keeps_mean_colours_and_touches_nothing_else():
    rng = np.random.default_rng(0)
    clip = rng.integers(90, 160, size=(3, 40, 60, 3), dtype=np.uint8)
    other = rng.integers(60, 200, size=(3, 40, 60, 3), dtype=np.uint8)
    region = still(3, angle=0.1, source=np.full((3, 2), (25.0, 20.0)))
    blended = manipulated_clips.blend(clip, other, region, np.ones(3))
    window = manipulated_clips.window_of(region, 0, (40, 60))
    change = blended.astype(int) - clip
    assert np.abs(change[:, window[0], window[1]]).max() > 20
    assert np.abs(change.mean((1, 2))).max() < 0.02
    change[:, window[0], window[1]] = 0
    assert not change.any()


def test_wandering_is_smooth_and_stays_within():
    for seed in range(20):
        path = manipulated_clips.wander(60, 10, 20, np.random.default_rng(seed))
        assert path.shape == (60,)
        assert path.min() >= 10
        assert path.max() <= 20
        assert np.abs(np.diff(path)).max() < 1.1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_originals": 0}, "num_originals must be at least 1, not 0"),
        ({"fakes_per_original": 0}, "fakes_per_original must be at least 1, not 0"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"source": "imagenet2012"}, "must be atari_frames"),
        ({"num_originals": 17}, "more than the 16 that 18 streams of 2 games allow"),
        ({"num_originals": 99, "frames": 4}, r"more than the \d+ that \d+ streams of 2 games allow"),
        ({"num_originals": 1, "frames": 41}, "clip_frames=41 are more than"),
    ],
)
def test_bad_input(tmp_path, atari_tiny_dir, arguments, words):
    with pytest.raises(InputError, match=words):
        manipulated_clips.build(str(tmp_path / "x"), **SMALL | {"data_dir": atari_tiny_dir} | arguments)
    assert {path.name for path in tmp_path.iterdir()} <= {"x.lock"}


def test_other_directories_are_left_alone(tmp_path, built, atari_tiny_dir):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="does not hold the stand-in"):
        manipulated_clips.build(str(tmp_path), data_dir=atari_tiny_dir, **SMALL)
    with pytest.raises(InputError, match=r"other settings \(seed=0\); name another"):
        manipulated_clips.build(built, data_dir=atari_tiny_dir, **SMALL | {"seed": 3})
    with pytest.raises(InputError, match="cannot be written"):
        manipulated_clips.build(str(tmp_path / "mine.txt" / "x"), data_dir=atari_tiny_dir, **SMALL)
    assert [*tmp_path.iterdir()] == [tmp_path / "mine.txt"]
