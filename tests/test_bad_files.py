"""Files that are not what they should be: decoded properly, or skipped for a cause; never a crash."""

import io
import itertools
import os
import pathlib

import av
import films
import numpy as np
import pytest
from PIL import Image, ImageDraw

from ssl_jax.data import clips, folders, pipeline, sources, videos
from ssl_jax.runtime.errors import InputError

SIZE = (24, 32)
OPENCV = pathlib.Path("/usr/share/doc/opencv-doc/examples/data")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def quarters(mode: str = "RGB") -> Image.Image:
    """Four quarters: red, green, blue, white."""
    image = Image.new("RGB", SIZE[::-1], "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 15, 11), "red")
    draw.rectangle((16, 0, 31, 11), "lime")
    draw.rectangle((0, 12, 15, 23), "blue")
    return image.convert(mode)


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def animated(file_format: str) -> bytes:
    return encoded(quarters(), file_format, save_all=True, append_images=[Image.new("RGB", SIZE[::-1])] * 3)


COLOR = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
GREY = [[76] * 3, [150] * 3, [29] * 3, [255] * 3]  # by ITU-R 601
# name -> contents, its four colours, how exact they are
GOOD = {
    "plain.png": (lambda: encoded(quarters(), "PNG"), COLOR, 0),
    "plain.bmp": (lambda: encoded(quarters(), "BMP"), COLOR, 0),
    "plain.tif": (lambda: encoded(quarters(), "TIFF", compression="tiff_lzw"), COLOR, 0),
    "plain.webp": (lambda: encoded(quarters(), "WEBP", lossless=True), COLOR, 0),
    "plain.jpg": (lambda: encoded(quarters(), "JPEG", quality=98, subsampling=0), COLOR, 8),
    "progressive.jpg": (lambda: encoded(quarters(), "JPEG", quality=98, progressive=True), COLOR, 30),
    "png called.jpg": (lambda: encoded(quarters(), "PNG"), COLOR, 0),
    "jpeg called.png": (lambda: encoded(quarters(), "JPEG", quality=98, subsampling=0), COLOR, 8),
    "grey.png": (lambda: encoded(quarters("L"), "PNG"), GREY, 1),
    "grey.jpg": (lambda: encoded(quarters("L"), "JPEG", quality=98), GREY, 4),
    "palette.png": (lambda: encoded(quarters("P"), "PNG"), COLOR, 0),
    "palette.gif": (lambda: encoded(quarters("P"), "GIF"), COLOR, 0),
    "black and white.png": (lambda: encoded(quarters("L").point(lambda v: v > 100, "1"), "PNG"), None, 0),
    "cmyk.jpg": (lambda: encoded(quarters("CMYK"), "JPEG", quality=98), COLOR, 8),
    "cmyk.tif": (lambda: encoded(quarters("CMYK"), "TIFF"), COLOR, 0),
    "opaque.png": (lambda: encoded(quarters("RGBA"), "PNG"), COLOR, 0),
    "animated.gif": (lambda: animated("GIF"), COLOR, 0),
    "animated.png": (lambda: animated("PNG"), COLOR, 0),
    "animated.webp": (lambda: animated("WEBP"), COLOR, 90),
    "pages.tif": (lambda: animated("TIFF"), COLOR, 0),
    "broken notes.jpg": (
        lambda: encoded(quarters(), "JPEG", quality=98, subsampling=0, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"),
        COLOR,
        8,
    ),
    "with a tail.jpg": (
        lambda: encoded(quarters(), "JPEG", quality=98, subsampling=0) + b"left over" * 50, COLOR, 8,
    ),
}  # fmt: skip
NOISE = Image.fromarray(np.random.default_rng(0).integers(256, size=(*SIZE, 3), dtype=np.uint8))
BAD = {
    "empty.jpg": (b"", "unreadable"),
    "text.png": (b"This is no picture.", "unreadable"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "unreadable"),
    "zeros.tif": (bytes(5000), "unreadable"),
    "cut.png": (encoded(NOISE, "PNG")[:900], "unreadable"),
    "cut.jpg": (encoded(NOISE, "JPEG", quality=95)[:1200], "unreadable"),
    "cut.gif": (encoded(NOISE, "GIF")[:900], "unreadable"),
    "cut.webp": (encoded(NOISE, "WEBP", lossless=True)[:900], "unreadable"),
    "cut.tif": (encoded(NOISE, "TIFF")[:900], "unreadable"),
    "cut.bmp": (encoded(NOISE, "BMP")[:900], "unreadable"),
    "begun.jpg": (b"\xff\xd8\xff\xe0", "unreadable"),
    "small.png": (encoded(quarters().resize((5, 5)), "PNG"), "undersized"),
    "narrow.png": (encoded(quarters().resize((200, 3)), "PNG"), "undersized"),
}


def load(source, **options) -> tuple[dict[str, np.ndarray], pipeline.Skipped]:
    """What can be read of a source, by its names, and what cannot."""
    skipped = pipeline.Skipped(max_share=1.0)
    arguments = {"batch_size": 16, "image_size": SIZE, "skipped": skipped} | options
    rows = pipeline.load_arrays(source, pipeline.EvaluationOptions(**arguments))
    return {source.describe(i): image for i, image in zip(rows["index"], rows["image"], strict=True)}, skipped


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_good_pictures_are_decoded_and_bad_ones_skipped_for_a_cause(tmp_path):
    for name, (make, _, _) in GOOD.items():
        (tmp_path / name).write_bytes(make())
    for name, (contents, _) in BAD.items():
        (tmp_path / name).write_bytes(contents)
    (tmp_path / "folder.png").mkdir()
    found = sources.make(name="folder", path=str(tmp_path))
    assert len(found.contents) == len(GOOD) + len(BAD)
    pictures, skipped = load(found.contents)
    causes = {found.contents.describe(index): cause for (_, index), cause in skipped.causes.items()}
    assert causes == {name: cause for name, (_, cause) in BAD.items()}
    assert skipped.counts() == {"unreadable": len(BAD) - 2, "undersized": 2}
    assert pictures.keys() == GOOD.keys()
    for name, (_, colors, tolerance) in GOOD.items():
        assert pictures[name].shape == (*SIZE, 3)
        if colors:
            middles = pictures[name][[6, 6, 18, 18], [8, 24, 8, 24]].astype(int)
            assert np.abs(middles - colors).max() <= tolerance, name
    np.testing.assert_array_equal(np.unique(pictures["black and white.png"]), [0, 255])


def test_training_goes_on_without_the_bad_ones_until_there_are_too_many(tmp_path, caplog):
    for i in range(95):
        (tmp_path / f"{i}.png").write_bytes(encoded(quarters(), "PNG"))
    for name in ("empty.jpg", "cut.png", "small.png"):
        (tmp_path / name).write_bytes(BAD[name][0])
    source = sources.make(name="folder", path=str(tmp_path)).contents
    options = {"batch_size": 16, "image_size": SIZE, "seed": 0}
    batches = pipeline.train_batches(source, pipeline.TrainOptions(**options, max_bad_share=0.1))
    for _ in range(15):
        np.testing.assert_array_equal(next(batches)["image"], np.broadcast_to(quarters(), (16, *SIZE, 3)))
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
    originals = [(name, make()) for name, (make, _, _) in GOOD.items()]
    originals += [(name, (OPENCV / name).read_bytes()) for name in ("HappyFish.jpg", "LinuxLogo.jpg")
                  if OPENCV.exists()]  # fmt: skip
    number = 0
    for name, contents in originals:
        for _ in range(12):
            (tmp_path / f"{number:04}{os.path.splitext(name)[1]}").write_bytes(mutated(contents, rng))
            number += 1
    found = sources.make(name="folder", path=str(tmp_path))
    pictures, skipped = load(found.contents)
    assert len(found.contents) == number == len(pictures) + skipped.bad
    assert skipped.counts().keys() <= {"unreadable", "undersized", "too large"}
    assert skipped.bad > number / 10
    assert len(pictures) > number / 10
    assert {(picture.shape, picture.dtype.name) for picture in pictures.values()} == {((*SIZE, 3), "uint8")}


# --- Videos


def video(path: pathlib.Path, **options) -> bytes:
    films.write(path, **options)
    contents = path.read_bytes()
    path.unlink()
    return contents


def test_bad_videos_are_left_out_for_a_cause(tmp_path, monkeypatch):
    root = tmp_path / "videos"
    root.mkdir()
    whole = video(tmp_path / "a.mp4")
    (root / "whole.mp4").write_bytes(whole)
    (root / "mkv called.avi").write_bytes(video(tmp_path / "a.mkv"))
    (root / "one frame.mp4").write_bytes(video(tmp_path / "a.mp4", frames=1))
    (root / "longer.avi").write_bytes(video(tmp_path / "a.avi", codec="mpeg4", bframes=0)[:-2000])
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mkv").write_bytes(b"This is no video.")
    (root / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # Its index comes last.
    (root / "picture.mp4").write_bytes(encoded(quarters(), "PNG"))
    (root / "zeros.mp4").write_bytes(whole[: len(whole) // 4] + bytes(len(whole)))
    films.write(root / "large.mp4", 2, size=(640, 640))
    with av.open(str(root / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(root / "no frames.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuvj420p"
        container.start_encoding()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 512 * 512)
    found = sources.make(name="videos", path=str(root))
    good = {clip.path: clip.frames for clip in found.contents.videos}
    left = good.pop("longer.avi")  # of 40, the last of them cut off
    assert 20 < left < 40
    assert good == {"whole.mp4": 40, "mkv called.avi": 40, "one frame.mp4": 1}
    assert found.left_out["too large"] == ("large.mp4",)
    assert {*found.left_out["unreadable"], *found.left_out.get("too short", ())} == {
        "cut.mp4", "empty.mp4", "no frames.mkv", "picture.mp4", "sound.mp4", "text.mkv", "zeros.mp4",
    }  # fmt: skip
    pictures, skipped = load(found.contents, image_size=films.SIZE)
    bad = [found.contents.describe(index) for _, index in skipped.causes]
    assert bad == [f"longer.avi, frame {left - 1}"]
    for name, pixels in pictures.items():
        assert films.number(pixels) == int(name.split("frame ")[1])


def test_frames_after_a_broken_one_are_refused_up_to_the_next_keyframe(tmp_path):
    contents = bytearray(video(tmp_path / "a.avi", frames=120, codec="mpeg4", bframes=0, gop=30))
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
    kinds = {
        "mp4": {}, "avi": {"codec": "mpeg4", "bframes": 0}, "webm": {"codec": "libvpx"},
        "mkv": {"codec": "libx265"}, "mov": {"codec": "mjpeg", "pixels": "yuvj420p"},
    }  # fmt: skip
    for kind, options in kinds.items():
        contents = video(tmp_path / f"a.{kind}", frames=30, **options)
        for i in range(10):
            (root / f"{i}.{kind}").write_bytes(mutated(contents, rng))
    found = sources.make(name="videos", path=str(root))
    assert found.left_out.keys() <= {"unreadable", "too short", "too large"}
    source = found.contents
    assert len(source.videos) + sum(map(len, found.left_out.values())) == 50
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
