"""What `decode_image` makes of pictures that are stored in unusual ways."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from ssl_jax.data import pipeline, sources
from ssl_jax.data.pipeline import decode_image

pytestmark = pytest.mark.fast

SIZE = (16, 24)


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def gradient() -> Image.Image:
    """No turn or reflection of it looks the same."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    return Image.fromarray(np.stack([rows * 15, columns * 10, rows * 0 + 77], -1).astype(np.uint8))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "JPEG"])
def test_pictures_are_turned_as_their_notes_ask_for(turn, file_format):
    notes = Image.Exif()
    notes[0x0112] = turn
    options = {
        "PNG": {"exif": notes},
        "WEBP": {"exif": notes, "lossless": True},
        "TIFF": {"exif": notes},
        "JPEG": {"exif": notes, "quality": 100, "subsampling": 0},
    }[file_format]
    contents = encoded(gradient(), file_format, **options)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(contents))).convert("RGB")
    assert shown.size == (SIZE[::-1] if turn < 5 else SIZE)
    pixels = decode_image(contents, shown.size[::-1], shown.size[::-1])
    np.testing.assert_array_equal(pixels, np.asarray(shown))
    with pytest.raises(pipeline.UndersizedError, match=f"{shown.height} x {shown.width}"):
        decode_image(contents, (8, 8), (shown.height + 1, 1))


def test_a_turned_jpeg_is_still_decoded_at_reduced_size():
    notes = Image.Exif()
    notes[0x0112] = 6
    large = gradient().resize((960, 640))
    contents = encoded(large, "JPEG", exif=notes, quality=95)
    pixels = decode_image(contents, (96, 64), (48, 32)).astype(int)
    expected = np.rot90(np.asarray(large.resize((96, 64), Image.Resampling.BOX)), -1).astype(int)
    assert np.abs(pixels - expected).mean() < 2


@pytest.mark.parametrize(
    "notes", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"\0" * 40, b"Exif\0\0II*\0" + b"\xff" * 60]
)
@pytest.mark.filterwarnings("ignore")
def test_pictures_with_broken_notes_are_shown_as_stored(notes):
    contents = encoded(gradient(), "JPEG", quality=100, subsampling=0, exif=notes)
    pixels = decode_image(contents, SIZE, SIZE).astype(int)
    assert np.abs(pixels - np.asarray(gradient())).max() < 8


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_grey_of_16_bits_keeps_its_range(file_format):
    levels = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE) * 170
    pixels = decode_image(encoded(Image.fromarray(levels), file_format), SIZE, SIZE)
    np.testing.assert_array_equal(pixels, np.repeat((levels >> 8)[..., None], 3, -1))


def tiff(levels: np.ndarray, bits: int, meaning: int) -> bytes:
    """Writes grey of 12 or 16 bits; `meaning` is 0 where white is zero, else 1."""
    data = levels.astype("<u2").tobytes()
    if bits == 12:
        first, second = levels.reshape(-1, 2).T
        thirds = [first >> 4, (first & 15) << 4 | second >> 8, second & 255]
        data = np.stack(thirds, -1).astype(np.uint8).tobytes()
    tags = {256: SIZE[1], 257: SIZE[0], 258: bits, 259: 1, 262: meaning}
    tags |= {273: 8 + 2 + 12 * 9 + 4, 277: 1, 278: SIZE[0], 279: len(data)}  # 273: where the pixels begin
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize(("bits", "meaning"), [(12, 1), (16, 0), (16, 1)])
def test_deep_grey_of_tiff_has_its_range_and_its_white(bits, meaning):
    levels = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE) * (10 if bits == 12 else 170)
    pixels = decode_image(tiff(levels, bits, meaning), SIZE, SIZE)
    grey = levels >> (bits - 8)
    np.testing.assert_array_equal(pixels, np.repeat((grey if meaning else 255 - grey)[..., None], 3, -1))


def test_numbers_without_a_known_range_are_refused():
    for dtype in (np.float32, np.int32):
        contents = encoded(Image.fromarray(np.ones(SIZE, dtype)), "TIFF")
        with pytest.raises(ValueError, match="no known white"):
            decode_image(contents, SIZE, SIZE)


def test_what_is_transparent_is_white():
    colors = np.asarray(gradient())
    alpha = np.zeros((*SIZE, 1), np.uint8)
    alpha[:, 8:16], alpha[:, 16:] = 128, 255
    pixels = decode_image(encoded(Image.fromarray(np.concatenate([colors, alpha], -1))), SIZE, SIZE)
    np.testing.assert_array_equal(pixels[:, :8], 255)
    np.testing.assert_array_equal(pixels[:, 16:], colors[:, 16:])
    half = 255 - (255 - colors[:, 8:16].astype(float)) * 128 / 255
    np.testing.assert_allclose(pixels[:, 8:16], half, atol=1)

    palette = Image.new("P", SIZE[::-1], 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.paste(0, (0, 0, 4, 4))
    pixels = decode_image(encoded(palette, "PNG", transparency=0), SIZE, SIZE)
    assert (pixels[:4, :4] == 255).all()
    assert (pixels[5:] == [9, 8, 7]).all()
    key = encoded(Image.new("RGB", SIZE[::-1], (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert (decode_image(key, SIZE, SIZE) == 255).all()
    grey = encoded(Image.new("LA", SIZE[::-1], (100, 255)))
    assert (decode_image(grey, SIZE, SIZE) == 100).all()
    levels = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE) * 170
    deep = encoded(Image.fromarray(levels), transparency=int(levels[3, 4]))
    expected = np.where(levels == levels[3, 4], 255, levels >> 8)
    np.testing.assert_array_equal(decode_image(deep, SIZE, SIZE), np.repeat(expected[..., None], 3, -1))


@pytest.mark.filterwarnings("ignore:Image size")
def test_more_pixels_than_pillow_accepts_are_too_large(monkeypatch):
    class Bomb:
        name = "bombs"

        def read(self, indices):
            return ({"image": contents} for _ in indices)

        def describe(self, index):
            return f"bomb {index}"

    for pixels, error in ((399, sources.TooLargeError), (150, Image.DecompressionBombError)):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels)
        contents = encoded(Image.new("RGB", (20, 20)), "PNG")
        with pytest.raises(error):
            decode_image(contents, (10, 10), (1, 1))
        reading = pipeline.read_picture(7, None, source=Bomb(), image_size=(10, 10), min_size=(1, 1))
        assert reading.bad[:2] == (7, "too large")
        assert reading.bad[2].startswith("bomb 7 (")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    assert decode_image(contents, (10, 10), (1, 1)).shape == (10, 10, 3)


def test_formats_that_start_programs_are_no_pictures():
    contents = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 16\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(contents)).format == "EPS"
    with pytest.raises(Image.UnidentifiedImageError):
        decode_image(contents, SIZE, (1, 1))


def test_messages_name_the_file(tmp_path, caplog):
    for i in range(150):
        (tmp_path / f"{i:03}.png").write_bytes(encoded(gradient()) if i % 2 else b"")
    source = sources.make(name="folder", path=str(tmp_path)).contents
    options = pipeline.EvaluationOptions(batch_size=50, image_size=SIZE)
    with pytest.raises(sources.InputError, match=r"the first: .*, 000\.png \(an empty file\); .*, 002\.png"):
        list(pipeline.evaluation_batches(source, options))
    assert "004.png" in caplog.text
