"""Files that are not what they should be, and what happens to each: the list `results/bad_files.md`.

It is written anew by `python tests/bad_files.py > results/bad_files.md`; `test_bad_files.py` compares.
"""

import functools
import gzip
import io
import itertools
import json
import os
import pathlib
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import av
import films
import numpy as np
from PIL import Image, ImageDraw

from ssl_jax.data import dfdc, formats, pipeline, sources
from ssl_jax.runtime.errors import InputError

SIZE = (24, 32)
COLOR = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
GREY = [[76] * 3, [150] * 3, [29] * 3, [255] * 3]  # by ITU-R 601
BLACK_AND_WHITE = [[0] * 3, [255] * 3, [0] * 3, [255] * 3]
CHANGES = {"pictures": 12, "videos": 10}  # how often `test_bad_files.py` changes bytes of each file

HEAD = """\
# Bad files, and what happens to each

`tests/test_bad_files.py` makes each of these files, reads it as it would be read in a folder of one's own,
and fails if something else happens than is said here. `tests/bad_files.py` writes this list.

- `decoded`: the picture is used. Each shows a red, a green, a blue and a white quarter, and these colours are
  compared (of grey pictures their greys). Where they are **other colours**, nothing in the file tells that it
  is broken: JPEG and BMP have no checksums.
- `read`: these frames of the video are used. Each spells its number, which is compared with its place.
- `skipped` (when it is read), `left out` (when the folder is listed): not used, named in the log, and counted
  under the cause that is given; the run goes on. In brackets: what the log says of a file of another format.
  `missing`: no longer in the file.
"""


class Picture(NamedTuple):
    """A file that shows `quarters`, or is to.

    Attributes:
        wrong: what is odd or wrong about it.
        contents: the file.
        colors: of its four quarters, [4, 3].
        within: how exact they are, of 255.
    """

    wrong: str
    contents: bytes
    colors: Sequence[Sequence[int]] = COLOR
    within: int = 0


class Film(NamedTuple):
    """A file that shows a film of `films.write`, or is to.

    Attributes:
        wrong: what is odd or wrong about it.
        contents: the file.
        frames: how many were written.
    """

    wrong: str
    contents: bytes
    frames: int = 40


class Row(NamedTuple):
    """A line of the list: a file, what is wrong with it, and what happens."""

    file: str
    wrong: str
    happens: str


# --- Pictures


def quarters(mode: str = "RGB") -> Image.Image:
    """Four quarters: red, green, blue, white."""
    image = Image.new("RGB", SIZE[::-1], "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 15, 11), "red")
    draw.rectangle((16, 0, 31, 11), "lime")
    draw.rectangle((0, 12, 15, 23), "blue")
    return image.convert(mode)


def noise() -> Image.Image:
    """A picture that no format can make small."""
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(*SIZE, 3), dtype=np.uint8))


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def jpeg(image: Image.Image, **options) -> bytes:
    return encoded(image, "JPEG", quality=98, **{"subsampling": 0} | options)


def animated(file_format: str, **options) -> bytes:
    black = [Image.new("RGB", SIZE[::-1])] * 3
    return encoded(quarters(), file_format, save_all=True, append_images=black, **options)


def png(
    pixels: np.ndarray, size: tuple[int, int] = SIZE, between: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """Writes PNG itself, for what Pillow does not write.

    Args:
        pixels: uint8 or uint16 [rows, columns, 3].
        size: height and width that the header tells.
        between: other chunks, to put before the pixels: name and contents.
    """
    header = struct.pack(">IIBBBBB", size[1], size[0], 8 * pixels.itemsize, 2, 0, 0, 0)
    rows = pixels.astype(pixels.dtype.newbyteorder(">"))
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), *between, (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def with_white_hole() -> Image.Image:
    """The quarters, the white one of them transparent and black below."""
    image = quarters("RGBA")
    image.paste((0, 0, 0, 0), (16, 12, 32, 24))
    return image


def turned(orientation: int, undo: Image.Transpose, file_format: str, **options) -> bytes:
    """The quarters as stored by a camera that was held otherwise, with the note that tells so."""
    notes = Image.Exif()
    notes[0x0112] = orientation
    return encoded(quarters().transpose(undo), file_format, exif=notes, **options)


def overwritten(contents: bytes, place: int, value: bytes) -> bytes:
    return contents[:place] + value + contents[place + len(value) :]


@functools.cache
def odd_pictures() -> dict[str, Picture]:
    """Pictures that are stored in unusual ways, and to be decoded."""
    grey, deep = quarters("L"), np.asarray(quarters()).astype(np.uint16) * 257
    deep_grey = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    side, transposed = Image.Transpose.ROTATE_90, Image.Transpose.TRANSPOSE
    lossless = {"lossless": True}
    hole = "its white is transparent, with black below"
    return {
        "plain.png": Picture("nothing", encoded(quarters(), "PNG")),
        "plain.bmp": Picture("nothing", encoded(quarters(), "BMP")),
        "plain.tif": Picture("nothing", encoded(quarters(), "TIFF", compression="tiff_lzw")),
        "plain.webp": Picture("nothing", encoded(quarters(), "WEBP", **lossless)),
        "plain.jpg": Picture("nothing", jpeg(quarters()), within=8),
        "progressive.jpg": Picture("progressive", jpeg(quarters(), progressive=True), within=8),
        "CAPITALS.PNG": Picture("its suffix is in capitals", encoded(quarters(), "PNG")),
        "png called.jpg": Picture("a PNG with a wrong suffix", encoded(quarters(), "PNG")),
        "jpeg called.png": Picture("a JPEG with a wrong suffix", jpeg(quarters()), within=8),
        "grey.png": Picture("grey", encoded(grey, "PNG"), GREY, 1),
        "grey.jpg": Picture("grey", jpeg(grey), GREY, 4),
        "black and white.png": Picture(
            "1 bit", encoded(grey.point(lambda v: 255 * (v > 100), "1"), "PNG"), BLACK_AND_WHITE
        ),
        "palette.png": Picture("a palette", encoded(quarters("P"), "PNG")),
        "palette.gif": Picture("a palette", encoded(quarters("P"), "GIF")),
        "cmyk.jpg": Picture("CMYK", jpeg(quarters("CMYK")), within=8),
        "cmyk.tif": Picture("CMYK", encoded(quarters("CMYK"), "TIFF")),
        "16 bits.png": Picture("16 bits a channel", png(deep)),
        "16 bits grey.png": Picture("grey of 16 bits", encoded(deep_grey, "PNG"), GREY, 1),
        "16 bits grey.tif": Picture("grey of 16 bits", encoded(deep_grey, "TIFF"), GREY, 1),
        "turned.jpg": Picture(
            "stored lying on its side, with an EXIF note",
            turned(6, side, "JPEG", quality=98, subsampling=0), within=8,
        ),
        "mirrored.png": Picture("stored transposed, with an EXIF note", turned(5, transposed, "PNG")),
        "broken notes.jpg": Picture(
            "EXIF notes that are cut off", jpeg(quarters(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), within=8
        ),
        "opaque.png": Picture("an alpha channel, opaque", encoded(quarters("RGBA"), "PNG")),
        "transparent.png": Picture(hole, encoded(with_white_hole(), "PNG")),
        "transparent.webp": Picture(hole, encoded(with_white_hole(), "WEBP", **lossless)),
        "transparent.gif": Picture(
            "its white is a transparent colour of the palette", encoded(with_white_hole(), "GIF")
        ),
        "transparent grey.png": Picture(
            "grey of 16 bits; its blue is marked as transparent",
            encoded(deep_grey, "PNG", transparency=29 * 257), [*GREY[:2], [255] * 3, GREY[3]], 1,
        ),
        "animated.gif": Picture("4 pictures, the others black", animated("GIF")),
        "animated.png": Picture("4 pictures, the others black", animated("PNG")),
        "animated.webp": Picture("4 pictures, the others black", animated("WEBP", **lossless)),
        "pages.tif": Picture("4 pages, the others black", animated("TIFF")),
        "with a tail.jpg": Picture("450 bytes behind its end", jpeg(quarters()) + bytes(450), within=8),
        "without its end.png": Picture("its last 12 bytes are missing", encoded(quarters(), "PNG")[:-12]),
    }  # fmt: skip


@functools.cache
def broken_pictures() -> dict[str, Picture]:
    """Pictures that are broken: to be skipped, unless nothing in the file tells."""
    rgb, plain_jpeg, plain_png = np.asarray(quarters()), jpeg(quarters()), encoded(quarters(), "PNG")
    sizes, table = plain_jpeg.index(b"\xff\xc0") + 5, plain_jpeg.index(b"\xff\xdb") + 5
    comment = (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**26)))
    many = struct.pack("<ii", 60_000, 60_000)
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 24\n%%EndComments\nshowpage\n"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="32" height="24"/>'
    return {
        "empty.jpg": Picture("0 bytes", b""),
        "text.png": Picture("text", b"This is no picture."),
        "page.jpg": Picture("a web page", b"<!DOCTYPE html><html><body>404</body></html>"),
        "drawing.jpg": Picture("an SVG drawing", svg),
        "program.png": Picture("EPS, a program that Pillow would start Ghostscript for", eps),
        "zeros.tif": Picture("5000 bytes of 0", bytes(5000)),
        "begun.jpg": Picture("the first 4 bytes", plain_jpeg[:4]),
        "cut.png": Picture("cut off", encoded(noise(), "PNG")[:900]),
        "cut.jpg": Picture("cut off", encoded(noise(), "JPEG", quality=95)[:1200]),
        "cut progressive.jpg": Picture("cut off", jpeg(noise(), progressive=True)[:1800]),
        "cut.gif": Picture("cut off", encoded(noise(), "GIF")[:900]),
        "cut.webp": Picture("cut off", encoded(noise(), "WEBP", lossless=True)[:900]),
        "cut.tif": Picture("cut off", encoded(noise(), "TIFF")[:900]),
        "cut.bmp": Picture("cut off", encoded(noise(), "BMP")[:900]),
        "cut and closed.jpg": Picture(
            "cut off, and the mark of its end put behind", plain_jpeg[:-60] + b"\xff\xd9", within=8
        ),
        "corrupt.png": Picture("a byte changed", overwritten(plain_png, 60, bytes([plain_png[60] ^ 1]))),
        "corrupt.jpg": Picture(
            "a byte of its quantization changed", overwritten(plain_jpeg, table, b"\x40"), within=8
        ),
        "corrupt.bmp": Picture(
            "768 bytes of its pixels changed",
            overwritten(encoded(quarters(), "BMP"), 54, bytes(24 * 32)),
        ),
        "0 rows.png": Picture("its header says 0 x 0", png(rgb, size=(0, 0))),
        "0 rows.jpg": Picture("its header says 0 x 0", overwritten(plain_jpeg, sizes, bytes(4))),
        "small.png": Picture("5 x 5 pixels", encoded(quarters().resize((5, 5)), "PNG")),
        "narrow.png": Picture("3 x 200 pixels", encoded(quarters().resize((200, 3)), "PNG")),
        "bomb.png": Picture(
            "20000 x 20000 pixels in 49 kB, and all there", encoded(Image.new("1", (20_000, 20_000)), "PNG")
        ),
        "bomb header.png": Picture(
            "its header says 60000 x 60000, in a hundred bytes", png(rgb, size=(60_000, 60_000))
        ),
        "bomb header.jpg": Picture(
            "its header says 65535 x 65535", overwritten(plain_jpeg, sizes, b"\xff" * 4)
        ),
        "bomb header.bmp": Picture(
            "its header says 60000 x 60000", overwritten(encoded(quarters(), "BMP"), 18, many)
        ),
        "bomb header.gif": Picture(
            "its header says 65535 x 65535", overwritten(encoded(quarters("P"), "GIF"), 6, b"\xff" * 4)
        ),
        "bomb comment.png": Picture("a comment that unpacks to 64 MB", png(rgb, between=[comment])),
        "numbers.tif": Picture("floating point, of unknown range", encoded(quarters("F"), "TIFF")),
    }  # fmt: skip


def other_pictures() -> dict[str, Picture]:
    """Files of formats that are not read, by their beginnings; under names that are read."""
    boxes = {
        "avif": b"avif\0\0\0\0mif1miaf",
        "heic": b"heic\0\0\0\0mif1heic",
        "mif1": b"mif1\0\0\0\0avifmiaf",
    }
    heif = {
        brand: struct.pack(">I", 8 + len(box)) + b"ftyp" + box + bytes(64) for brand, box in boxes.items()
    }
    with_notes = b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg width="32"></svg>'
    return {
        "avif.jpg": Picture("AVIF", heif["avif"]),
        "avif of another brand.jpg": Picture("AVIF, of the brand of all HEIF files", heif["mif1"]),
        "heic.jpg": Picture("HEIC, as telephones store photographs", heif["heic"]),
        "jxl.jpg": Picture("JPEG XL", b"\xff\x0a" + bytes(64)),
        "jxl box.jpg": Picture("JPEG XL in boxes", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64)),
        "jp2.jpg": Picture("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64)),
        "pointer.jpg": Picture(
            "what Git LFS leaves until the picture is fetched",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n",
        ),
        "pdf.png": Picture("PDF", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"),
        "drawing with notes.png": Picture("SVG after an XML declaration", with_notes),
        "zip.png": Picture("a ZIP archive", b"PK\3\4\x14" + bytes(64)),
        "rar.png": Picture("a RAR archive", b"Rar!\x1a\7\1\0" + bytes(64)),
        "gzip.png": Picture("a picture packed by gzip", gzip.compress(encoded(quarters(), "PNG"), mtime=0)),
        "answer.png": Picture("what a web service answered", b'{"error": "not found"}'),
        "film.gif": Picture("a video", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(64)),
    }


def load(source, **options) -> tuple[dict[str, np.ndarray], pipeline.Skipped]:
    """What can be read of a source, by its names, and what cannot."""
    skipped = pipeline.Skipped(max_share=1.0)
    arguments = {"batch_size": 16, "image_size": SIZE, "skipped": skipped} | options
    rows = pipeline.load_arrays(source, pipeline.EvaluationOptions(**arguments))
    return {source.describe(i): image for i, image in zip(rows["index"], rows["image"], strict=True)}, skipped


def read_pictures(root: pathlib.Path, shown: Mapping[str, Picture]) -> dict[str, str]:
    """Reads a folder, and tells what happened to its files, of which some are to show pictures."""
    found = sources.make(name="folder", path=str(root))
    pictures, skipped = load(found.contents)
    happens = {}
    for (source, index), cause in skipped.causes.items():
        name = found.contents.describe(index)
        happens[name] = f"skipped: {cause}" + as_told(skipped.told[source, index], name, shown)
    for name, pixels in pictures.items():
        middles = pixels[[6, 6, 18, 18], [8, 24, 8, 24]].astype(int)
        within = shown[name].within
        if np.abs(middles - shown[name].colors).max() > within:
            happens[name] = "decoded, **other colours**"
        else:
            happens[name] = f"decoded, colours {f'within {within} of 255' if within else 'exact'}"
    for cause, names in found.left_out.items():
        happens |= dict.fromkeys(names, f"left out: {cause}")
    return happens


def as_told(told: str, name: str, shown: Mapping[str, Picture | Film]) -> str:
    """What the log says that a file is, if it is of a format that is not read."""
    what = formats.identify(shown[name].contents[: formats.HEAD]) if name in shown else None
    return f" ({what})" if told == f"{name} ({what})" else ""


def picture_rows(folder: pathlib.Path) -> list[Row]:
    """Makes and reads all pictures, in an empty folder."""
    files = odd_pictures() | broken_pictures() | other_pictures()
    for name, picture in files.items():
        (folder / name).write_bytes(picture.contents)
    happens = read_pictures(folder, files)
    return [Row(name, picture.wrong, happens[name]) for name, picture in files.items()]


# --- Videos

UNEVEN = [1 + 3 * i + (i * 7) % 3 for i in range(40)]
INTRA = {"codec": "mjpeg", "pixels": "yuvj420p"}
SIMPLE = {"bframes": 0, "x264-params": "scenecut=0:log=-1"}
KINDS = {
    "mp4": {}, "avi": {"codec": "mpeg4", "bframes": 0}, "webm": {"codec": "libvpx"},
    "mkv": {"codec": "libx265"}, "mov": INTRA,
}  # fmt: skip


def video(kind: str = "mp4", **options) -> bytes:
    """Returns a file of `films.write`, by its suffix."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, f"film.{kind}")
        films.write(path, **options)
        return path.read_bytes()


def packet(contents: bytes, number: int) -> tuple[int, int]:
    """Returns where in a video a packet is, and its size."""
    with av.open(io.BytesIO(contents)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        return packets[number].pos, packets[number].size


def cut_within(contents: bytes, number: int) -> bytes:
    """Returns a video up to the middle of a packet."""
    position, size = packet(contents, number)
    return contents[: position + size // 2]


def broken_within(contents: bytes, number: int) -> bytes:
    """Returns a video with a packet of which only the beginning is left."""
    position, size = packet(contents, number)
    return overwritten(contents, position + 8, b"\xff" * (size - 10))


def with_index_first(contents: bytes) -> bytes:
    """Returns an MP4 whose index comes before its frames, as for streaming."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "film.mp4")
        faststart = {"movflags": "faststart"}
        with av.open(io.BytesIO(contents)) as old, av.open(str(path), "w", options=faststart) as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    new.mux(packet)
        return path.read_bytes()


def with_duration(contents: bytes, duration: int) -> bytes:
    """Returns an MP4 with another duration in its header (of the film, the track and the media)."""
    for box, place in ((b"mvhd", 20), (b"tkhd", 24), (b"mdhd", 20)):
        contents = overwritten(contents, contents.index(box) + place, struct.pack(">I", duration))
    return contents


def with_frames(contents: bytes, frames: int) -> bytes:
    """Returns an AVI with another number of frames in its header (of the film and the stream)."""
    for chunk, place in ((b"avih", 24), (b"strh", 40)):
        contents = overwritten(contents, contents.index(chunk) + place, struct.pack("<I", frames))
    return contents


def with_huge_frames(contents: bytes) -> bytes:
    """Returns a video of JPEG frames each of which claims 65000 x 65000 pixels."""
    return contents.replace(
        b"\xff\xc0\0\x11\x08" + struct.pack(">HH", *films.SIZE),
        b"\xff\xc0\0\x11\x08" + struct.pack(">HH", 65_000, 65_000),
    )


def on_its_side(number: int, size: tuple[int, int]) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(films.picture(number, size[::-1]), -1))


def mirrored(number: int, size: tuple[int, int]) -> np.ndarray:
    return np.ascontiguousarray(films.picture(number, size)[:, ::-1])


def only_sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def no_frames() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuvj420p"
        container.start_encoding()
    return file.getvalue()


@functools.cache
def odd_videos() -> dict[str, Film]:
    """Videos that are stored in unusual ways, or whose headers lie, and whose frames are all there."""
    mp4, mkv, avi = video(), video("mkv"), video("avi", **INTRA)
    index, length = avi.rindex(b"idx1"), mkv.index(b"\x44\x89\x88") + 3
    return {
        "plain.mp4": Film("nothing", mp4),
        "plain.mkv": Film("nothing", mkv),
        "plain.avi": Film("nothing", avi),
        "mkv called.avi": Film("a Matroska file with a wrong suffix", mkv),
        "avi called.mp4": Film("an AVI file with a wrong suffix", avi),
        "one frame.mp4": Film("a single frame", video(frames=1), 1),
        "uneven.mp4": Film("a variable frame rate", video(times=UNEVEN)),
        "uneven.mkv": Film("a variable frame rate", video("mkv", times=UNEVEN)),
        "mirrored.mp4": Film(
            "stored mirrored, as by front cameras, with a note to mirror it",
            films.with_matrix(video(content=mirrored), (-1, 0, 0, 1)),
        ),
        "palette.avi": Film(
            "8 bits a pixel; its palette comes once, at the beginning",
            films.palette_avi([films.picture(number)[..., 0] for number in range(40)]),
        ),
        "turned.mp4": Film(
            "stored lying on its side, with a note to turn it by 90 degrees",
            video(size=films.SIZE[::-1], rotation=90, content=on_its_side),
        ),
        "too long.mp4": Film("its header says 38 hours, of 1.6 s", with_duration(mp4, 137_000_000)),
        "too short.mp4": Film("its header says 1 ms, of 1.6 s", with_duration(mp4, 1)),
        "too long.mkv": Film(
            "its header says 31 years, of 1.6 s", overwritten(mkv, length, struct.pack(">d", 1e12))
        ),
        "no number.mkv": Film(
            "its header says that it is NaN seconds long", overwritten(mkv, length, struct.pack(">d", np.nan))
        ),
        "too long.avi": Film("its header says 10⁹ frames, of 40", with_frames(avi, 10**9)),
        "too short.avi": Film("its header says 1 frame, of 40", with_frames(avi, 1)),
        "no index.avi": Film("its index is missing", avi[:index]),
        "cut index.avi": Film("cut off in its index", avi[: index + 100]),
        "false index.avi": Film(
            "its index is overwritten", avi[: index + 8] + b"\xff" * (len(avi) - index - 8)
        ),
    }


@functools.cache
def broken_videos() -> dict[str, Film]:
    """Videos of which frames are missing or broken, or that are none."""
    mp4, simple, intra = video(), video(**SIMPLE), video("avi", **INTRA)
    raw = video("avi", frames=2, codec="rawvideo", pixels="yuv420p")
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n../outside.mp4\n#EXT-X-ENDLIST\n"
    return {
        "cut.avi": Film("cut off in frame 30", cut_within(intra, 30)),
        "cut.mkv": Film("cut off in frame 30", cut_within(video("mkv", **SIMPLE), 30)),
        "cut streamed.mp4": Film(
            "cut off in frame 30, its index comes first", cut_within(with_index_first(simple), 30)
        ),
        "cut.mp4": Film("cut off in the middle, its index came last", mp4[: len(mp4) // 2]),
        "broken frame.avi": Film("frame 20 overwritten, all are keyframes", broken_within(intra, 20)),
        "broken frame.mp4": Film("frame 20 overwritten, every 12th is a keyframe", broken_within(simple, 20)),
        "overwritten.mp4": Film("overwritten from a quarter on", mp4[: len(mp4) // 4] + bytes(len(mp4))),
        "empty.mp4": Film("0 bytes", b""),
        "text.mkv": Film("text", b"This is no video."),
        "picture.mp4": Film("a PNG", encoded(quarters(), "PNG")),
        "sound.mp4": Film("a sound track, no video", only_sound()),
        "no frames.mkv": Film("a video track without frames", no_frames()),
        "bomb.avi": Film(
            "its header says frames of 12000 x 12000",
            overwritten(raw, raw.index(b"strf") + 12, struct.pack("<ii", 12_000, 12_000)),
        ),
        "bomb frames.avi": Film("frames that say 65000 x 65000, not so its header", with_huge_frames(intra)),
        "playlist.mp4": Film("an HLS playlist of a video outside the folder", playlist),
        "concat.mkv": Film("a list of FFmpeg's, as well", b"ffconcat version 1.0\nfile ../outside.mp4\n"),
    }


def other_videos() -> dict[str, Film]:
    """Videos in containers that are not read; under names that are read."""
    simple = {"codec": "mpeg2video", "bframes": 0}
    return {
        "stream.mp4": Film("MPEG-TS", video("ts", **SIMPLE)),
        "program.mp4": Film("MPEG program stream", video("mpg", **simple)),
        "flash.mp4": Film("FLV", video("flv", **SIMPLE)),
        "windows.avi": Film("ASF (WMV)", video("wmv", codec="wmv2", bframes=0)),
        "pointer.mp4": Film(
            "what Git LFS leaves until the video is fetched", other_pictures()["pointer.jpg"].contents
        ),
        "page.mp4": Film("a web page", broken_pictures()["page.jpg"].contents),
        "zip.mp4": Film("a ZIP archive", other_pictures()["zip.png"].contents),
    }


def read_videos(root: pathlib.Path, shown: Mapping[str, Film]) -> dict[str, str]:
    """Reads every frame of a folder of videos, and tells what happened to each video."""
    found = sources.make(name="videos", path=str(root))
    pictures, skipped = load(found.contents, image_size=films.SIZE)
    causes = [(found.contents.describe(index), cause) for (_, index), cause in skipped.causes.items()]
    happens = {}
    for clip in found.contents.videos:
        steps = [step for step in range(clip.frames) if f"{clip.path}, frame {step}" in pictures]
        numbers = [films.number(pictures[f"{clip.path}, frame {step}"]) for step in steps]
        frames = shown[clip.path].frames
        if numbers != steps:
            happens[clip.path] = "read, **other frames**"
            continue
        whole = f"all {frames} frames" if frames > 1 else "its one frame"
        happens[clip.path] = f"read: {whole if len(steps) == frames else f'{runs(steps)} of {frames} frames'}"
        bad = Counter(cause for name, cause in causes if name.startswith(f"{clip.path}, "))
        for cause, number in bad.items():
            happens[clip.path] += f"; skipped: {number} ({cause})"
        if clip.frames < frames:
            happens[clip.path] += f"; missing: {frames - clip.frames}"
    for cause, names in found.left_out.items():
        for told in names:
            name = told.partition(" (")[0]
            happens[name] = f"left out: {cause}" + as_told(told, name, shown)
    return happens


def runs(numbers: Sequence[int]) -> str:
    """Returns increasing numbers as 0-19, 24-39."""
    groups = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ends = [[number for _, number in group] for _, group in groups]
    return ", ".join(f"{group[0]}-{group[-1]}" for group in ends)


def video_rows(folder: pathlib.Path) -> list[Row]:
    """Makes and reads all videos, in an empty folder."""
    root = folder / "videos"
    root.mkdir()
    films.write(folder / "outside.mp4")
    files = odd_videos() | broken_videos() | other_videos()
    for name, film in files.items():
        (root / name).write_bytes(film.contents)
    happens = read_videos(root, files)
    return [Row(name, film.wrong, happens[name]) for name, film in files.items()]


# --- Links and names


def link_rows(folder: pathlib.Path) -> list[Row]:
    """Makes and reads links and what is no file, in an empty folder."""
    root, plain = folder / "data", odd_pictures()["plain.png"]
    (folder / "outside").mkdir()
    root.mkdir()
    for name in ("outside/secret.png", *(f"data/{number}.png" for number in range(12))):
        (folder / name).write_bytes(plain.contents)
    links = {
        "inside.png": ("a link to a picture in the folder", "3.png"),
        "out.png": ("a link to a picture outside the folder", folder / "outside" / "secret.png"),
        "up.png": ("the same with `..`", "../outside/secret.png"),
        "out": ("a link to a folder outside", folder / "outside"),
        "round": ("a link to the folder that it lies in", root),
        "gone.png": ("a link to nothing", "nothing.png"),
    }
    for name, (_, target) in links.items():
        (root / name).symlink_to(target)
    (root / "folder.png").mkdir()
    os.mkfifo(root / "pipe.png")
    (root / "drawing.eps").write_bytes(broken_pictures()["program.png"].contents)
    wrong = {name: what for name, (what, _) in links.items()} | {
        "folder.png": "a folder with the name of a picture",
        "pipe.png": "a pipe, at which a reader would wait for ever",
        "drawing.eps": "a file that is no picture by its suffix",
    }
    names = {f"{number}.png" for number in range(12)} | {*links}
    happens = read_pictures(root, dict.fromkeys(names, plain))
    return [Row(name, what, happens.get(name, "not read")) for name, what in wrong.items()]


def manifest_rows(folder: pathlib.Path) -> list[Row]:
    """Writes names that lead elsewhere into the lists that a folder can come with, in an empty folder."""
    root, plain = folder / "data", odd_pictures()["plain.png"]
    root.mkdir()
    names = [f"{number}.png" for number in range(12)]
    for name in ("secret.png", *(f"data/{name}" for name in names)):
        (folder / name).write_bytes(plain.contents)
    (root / "out.png").symlink_to(folder / "secret.png")
    manifest = root / ".ssl_jax" / "pictures.jsonl"
    secret = str(folder / "secret.png")
    lies = {
        "gone.png": ("a name that is not there", {"files": [*names, "gone.png"]}),
        "out.png": ("a link out of the folder", {"files": [*names, "out.png"], "links": []}),
        "../secret.png": ("a name with `..`", {"files": [*names, "../secret.png"]}),
        "/…/secret.png": ("an absolute name", {"files": [*names, secret]}),
        "..": ("the folder above, for a sub-folder", {"folders": [".."]}),
    }
    rows = []
    for name, (what, lie) in lies.items():
        manifest.unlink(missing_ok=True)
        sources.make(name="folder", path=str(root))
        header, row = manifest.read_text().splitlines()
        os.utime(root, (10**9, 10**9))  # As if nothing had changed for long: the manifest is believed.
        row = json.loads(row) | {"time": 10**18} | lie
        manifest.write_text(f"{header}\n{json.dumps(row)}\n")
        happens = read_pictures(root, dict.fromkeys([*names, "out.png", "../secret.png", secret], plain))
        assert {*names} <= happens.keys()
        key = secret if name.startswith("/") else name
        what = f"in the list that the folder comes with (`.ssl_jax`): {what}"
        rows.append(Row(name, what, happens.get(key, "not read: the folder is listed anew")))
    for name in ("../secret.mp4", "/…/secret.mp4"):
        (root / "metadata.json").write_text(json.dumps({name: {"label": "REAL"}}))
        what = "in the `metadata.json` of DFDC: a name that leads out of the folder"
        try:
            happened = f"listed: {dfdc.read_listing(str(root)).paths}"
        except InputError:
            happened = "refused in one sentence, before anything is read"
        rows.append(Row(name, what, happened))
    return rows


# --- The list


def table(rows: Iterable[Row]) -> str:
    lines = ["| File | What is wrong | What happens |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| `{row.file}` | {row.wrong} | {row.happens} |" for row in rows])


def document(folder: pathlib.Path) -> str:
    """Makes and reads all files in an empty folder, and returns the list."""
    sections = {
        "Pictures": (picture_rows,),
        "Videos": (video_rows,),
        "Links and names": (link_rows, manifest_rows),
    }
    text = HEAD
    for title, kinds in sections.items():
        rows = []
        for kind in kinds:
            (folder / kind.__name__).mkdir()
            rows += kind(folder / kind.__name__)
        text += f"\n## {title}\n\n{table(rows)}\n"
    pictures = CHANGES["pictures"] * len(odd_pictures())
    videos = CHANGES["videos"] * len(KINDS)
    return text + (
        f"\nBesides, {pictures} pictures and {videos} videos are read of which bytes were changed, taken out,"
        " doubled or cut off at random:\neach is decoded or not used for one of these causes, and none ends"
        " the run.\n"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        print(document(pathlib.Path(empty)), end="")
