"""Files that are not what they should be: decoded properly, or skipped for a cause; never a crash."""

import difflib
import io
import itertools
import os
import pathlib
import re

import av
import bad_files
import films
import numpy as np
import pytest
from PIL import Image

from ssl_jax.data import clips, folders, pipeline, sources, videos
from ssl_jax.runtime.errors import InputError

SIZE = bad_files.SIZE
LIST = pathlib.Path(__file__).parents[1] / "results" / "bad_files.md"
OPENCV = pathlib.Path("/usr/share/doc/opencv-doc/examples/data")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_what_happens_to_each_file_is_as_listed(tmp_path, caplog):
    """Run `python tests/bad_files.py > results/bad_files.md` to write the list anew."""
    listed, happened = LIST.read_text("utf-8").splitlines(), bad_files.document(tmp_path).splitlines()
    names = str(LIST.relative_to(LIST.parents[1])), "what happens"
    changes = [*difflib.unified_diff(listed, happened, *names, lineterm="", n=0)]
    assert not changes, "\n".join(changes)
    happens = dict(re.findall(r"^\| `(.*)` \| .* \| (.*) \|$", "\n".join(happened), re.MULTILINE))
    for name in bad_files.odd_pictures():
        assert happens[name].startswith("decoded, colours"), name
    for name in bad_files.odd_videos():
        assert re.fullmatch("read: (all [0-9]+ frames|its one frame)", happens[name]), name
    assert "other frames" not in str(happens)
    for name in bad_files.other_pictures() | bad_files.other_videos():
        assert re.search(r": unreadable \(.*\)$", happens[name]), name
    assert not re.search(r"\b0x[0-9a-f]{6}|returned -?\d|cannot identify", caplog.text)  # words of libraries


def test_training_goes_on_without_the_bad_ones_until_there_are_too_many(tmp_path, caplog):
    for i in range(95):
        (tmp_path / f"{i}.png").write_bytes(bad_files.encoded(bad_files.quarters(), "PNG"))
    for name in ("empty.jpg", "cut.png", "small.png"):
        (tmp_path / name).write_bytes(bad_files.broken_pictures()[name].contents)
    source = sources.make(name="folder", path=str(tmp_path)).contents
    options = {"batch_size": 16, "image_size": SIZE, "seed": 0}
    batches = pipeline.train_batches(source, pipeline.TrainOptions(**options, max_bad_share=0.1))
    whole = bad_files.quarters()
    for _ in range(15):
        np.testing.assert_array_equal(next(batches)["image"], np.broadcast_to(whole, (16, *SIZE, 3)))
    batches.close()
    assert batches.skipped.counts() == {"unreadable": 2, "undersized": 1}
    assert sum("Skipped" in record.getMessage() for record in caplog.records) == 3  # each once
    batches = pipeline.train_batches(source, pipeline.TrainOptions(**options, max_bad_share=0.01))
    with pytest.raises(InputError, match=r"could not be used.*max_bad_share"):
        list(itertools.islice(batches, 15))
    batches.close()


def mutated(contents: bytes, rng: np.random.Generator) -> bytes:
    """A file with some bytes changed, taken out, doubled, or cut off."""
    data = bytearray(contents)
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
    kind = rng.integers(5)
    if kind == 0:
        for place in rng.integers(len(data), size=8):
            data[place] = rng.integers(256)
    elif kind == 1:
        data[int(rng.integers(min(64, len(data))))] = int(rng.integers(256))  # where formats have their sizes
    elif kind == 2:
        del data[start : start + length]
    elif kind == 3:
        data[start:start] = data[start : start + length]
    else:
        del data[start:]
    return bytes(data)


@pytest.mark.filterwarnings("ignore")
def test_changed_pictures_are_decoded_or_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**20)  # Sizes in broken files cost memory up to this.
    rng = np.random.default_rng(0)
    originals = [(name, picture.contents) for name, picture in bad_files.odd_pictures().items()]
    originals += [(name, (OPENCV / name).read_bytes()) for name in ("HappyFish.jpg", "LinuxLogo.jpg")
                  if OPENCV.exists()]  # fmt: skip
    number = 0
    for name, contents in originals:
        for _ in range(bad_files.CHANGES["pictures"]):
            (tmp_path / f"{number:04}{os.path.splitext(name)[1]}").write_bytes(mutated(contents, rng))
            number += 1
    found = sources.make(name="folder", path=str(tmp_path))
    pictures, skipped = bad_files.load(found.contents)
    assert len(found.contents) == number == len(pictures) + skipped.bad
    assert skipped.counts().keys() <= {"unreadable", "undersized", "too large"}
    assert skipped.bad > number / 10
    assert len(pictures) > number / 10
    assert {(picture.shape, picture.dtype.name) for picture in pictures.values()} == {((*SIZE, 3), "uint8")}


# --- Videos


def test_frames_after_a_broken_one_are_refused_up_to_the_next_keyframe(tmp_path):
    contents = bytearray(bad_files.video("avi", frames=120, codec="mpeg4", bframes=0, gop=30))
    with av.open(io.BytesIO(bytes(contents))) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    position, size = packets[35]
    contents[position + 8 : position + 8 + size - 10] = b"\xff" * (size - 10)
    (tmp_path / "broken.avi").write_bytes(contents)
    row = videos.probe(str(tmp_path), "broken.avi")
    clip = videos.Video("broken.avi", row["frames"], row["times"], row["keys"])
    read = videos.read_frames(str(tmp_path / "broken.avi"), clip, range(120))
    assert {*range(33)} <= read.keys()
    assert not {*range(36, 48)} & read.keys()
    assert {*range(90, 120)} <= read.keys()
    for step, image in read.items():
        assert films.number(np.asarray(Image.open(io.BytesIO(image)))) == step


def test_a_video_of_one_frame_has_no_clips(tmp_path):
    for i in range(12):
        films.write(tmp_path / f"{i}.mp4", 1 if i % 2 else 30)
    source = sources.make(name="videos", path=str(tmp_path)).open("train", clips.FIELDS)
    skipped = pipeline.Skipped()
    options = pipeline.EvaluationOptions(batch_size=8, image_size=films.SIZE, skipped=skipped)
    batches = list(clips.evaluation_clips(source, clips.Cut(frames=4, stride=(2, 2)), options))
    lengths = [clip.frames for clip in source.videos]
    assert sum(batch["mask"].sum() for batch in batches) == sum(max(0, length - 6) for length in lengths)
    assert skipped.refused == {"edge": sum(min(length, 6) for length in lengths)}


def test_changed_videos_are_decoded_or_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**20)
    rng = np.random.default_rng(0)
    root = tmp_path / "videos"
    root.mkdir()
    for kind, options in bad_files.KINDS.items():
        contents = bad_files.video(kind, frames=30, **options)
        for i in range(bad_files.CHANGES["videos"]):
            (root / f"{i}.{kind}").write_bytes(mutated(contents, rng))
    found = sources.make(name="videos", path=str(root))
    assert found.left_out.keys() <= {"unreadable", "too short", "too large"}
    source = found.contents
    tried = len(bad_files.KINDS) * bad_files.CHANGES["videos"]
    assert len(source.videos) + sum(map(len, found.left_out.values())) == tried
    assert len(source.videos) > 20
    for start in np.append(0, np.cumsum([clip.frames for clip in source.videos]))[:-1]:
        for step in (0, 11, 12):
            reading = pipeline.read_picture(
                int(min(start + step, len(source) - 1)), None, source=source, image_size=SIZE, min_size=(1, 1)
            )
            assert (reading.arrays is None) == (reading.bad is not None)
            if reading.arrays:
                assert reading.arrays["image"].shape == (*SIZE, 3)


def test_what_a_folder_holds_is_never_unpickled():
    for module in (folders, videos, sources):
        text = pathlib.Path(module.__file__).read_text()
        assert "pickle" not in text
        assert "np.load" not in text
