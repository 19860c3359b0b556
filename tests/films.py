"""Small videos whose frames tell their numbers."""

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIZE = (64, 96)  # height and width
BITS = 8


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Vertical bars, black or white, that spell a number in binary: uint8 [H, W, 3]."""
    bars = np.array([255 * (number >> bit & 1) for bit in range(BITS)], np.uint8)
    row = np.repeat(bars, size[1] // BITS)
    return np.broadcast_to(row[None, :, None], (*size, 3)).copy()


def moving(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A part of a landscape of noise that moves slowly on: uint8 [H, W, 3]."""
    coarse = np.random.default_rng(0).integers(
        256, size=(size[0] // 4 + 32, size[1] // 4 + 32, 3), dtype=np.uint8
    )
    fine = coarse.repeat(8, 0).repeat(8, 1)
    return np.ascontiguousarray(fine[number : number + size[0], 2 * number : 2 * number + size[1]])


def number(pixels: np.ndarray) -> int | None:
    """What the bars of a picture spell; None if they are no clear bars."""
    columns = pixels.reshape(pixels.shape[0], BITS, -1, 3)[8:-8, :, 3:-3].astype(float)
    levels = columns.mean((0, 2, 3))
    if columns.std((0, 2, 3)).max() > 25 or (np.abs(levels - 127) < 60).any():
        return None
    return sum(1 << bit for bit in range(BITS) if levels[bit] > 127)


def write(
    path: Path,
    frames: int = 40,
    codec: str = "libx264",
    times: list[int] | None = None,
    size: tuple[int, int] = SIZE,
    rotation: int = 0,
    gop: int = 12,
    bframes: int | None = None,
    pixels: str = "yuv420p",
    content: Callable[[int, tuple[int, int]], np.ndarray] = picture,
    **options: str,
) -> None:
    """Encodes a film, by default of the numbers from 0; `times` are those of the frames, in 1/25 s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    quiet = {"libx264": {"x264-params": "log=-1"}, "libx265": {"x265-params": "log-level=none"}}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=quiet.get(codec, {}) | options)
        stream.height, stream.width = size
        stream.pix_fmt = pixels
        stream.codec_context.gop_size = gop
        if bframes is not None:
            stream.codec_context.max_b_frames = bframes
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(content(i, size), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[i], Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def with_matrix(contents: bytes, matrix: Sequence[float]) -> bytes:
    """Returns an MP4 with a, b, c, d of another display matrix in its track header."""
    changed = bytearray(contents)
    place = changed.index(b"tkhd") + 44
    values = struct.unpack_from(">9i", changed, place)
    a, b, c, d = (round(value * 2**16) for value in matrix)
    struct.pack_into(">9i", changed, place, a, b, 0, c, d, 0, *values[6:])
    return bytes(changed)


def palette_avi(frames: Sequence[np.ndarray]) -> bytes:
    """Returns an AVI of 8 bits a pixel, each frame a keyframe, whose palette comes once before the first.

    Args:
        frames: uint8 [H, W], grey levels; the width is a multiple of 4.
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data

    height, width = frames[0].shape
    header = struct.pack("<10I16x", 40_000, 0, 0, 0x10, len(frames), 0, 1, height * width, width, height)
    stream = b"vids" + struct.pack("<11I8x", 0, 0, 0, 0, 1, 25, 0, len(frames), height * width, 0, 0)
    bitmap = struct.pack("<IiiHH6I", 40, width, height, 1, 8, 0, height * width, 0, 0, 256, 0)
    palette = b"".join(bytes([level, level, level, 0]) for level in range(256))
    track = b"strl" + chunk(b"strh", stream) + chunk(b"strf", bitmap + palette)
    heads = chunk(b"LIST", b"hdrl" + chunk(b"avih", header) + chunk(b"LIST", track))
    pictures = [chunk(b"00db", np.ascontiguousarray(frame[::-1]).tobytes()) for frame in frames]
    movie = chunk(b"LIST", b"movi" + b"".join(pictures))
    entries = [
        struct.pack("<4sIII", b"00db", 0x10, 4 + i * len(pictures[0]), height * width)
        for i in range(len(frames))
    ]
    return chunk(b"RIFF", b"AVI " + heads + movie + chunk(b"idx1", b"".join(entries)))
