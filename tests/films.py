"""Small videos whose frames tell their numbers."""

from collections.abc import Callable
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
