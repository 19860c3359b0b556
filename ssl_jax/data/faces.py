"""Squares around the faces of a video, by the boosted cascade of Viola and Jones (2001) that OpenCV ships.

It finds upright faces that look into the camera. A frame in which it finds none takes the square of the
nearest frame that has one. Needs the extra `faces` (OpenCV 4; its successor has no cascade).
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ssl_jax.runtime.errors import InputError

CASCADE = "haarcascade_frontalface_alt2.xml"
MARGIN = 1.3  # of the square to the box that the cascade finds; Rössler et al. 2019 (Sec. 4) enlarge as much
LOOKED_AT = 480  # pixels of the shorter side when faces are looked for
SMALLEST = 30  # pixels of the smallest face then
Box = tuple[int, int, int, int]


def check() -> None:
    """Raises InputError, with what to install, unless faces can be looked for."""
    _cascade()


def squares(images: Sequence[Image.Image]) -> tuple[list[Box | None], int]:
    """Where to crop the frames of one video, given in their order.

    Returns:
      For each frame (left, top, right, bottom) in pixels, a square inside of it around its largest face, or
      where the nearest frame with a face has it; None for all where there is no face at all. And the number
      of frames in which a face was found.

    Raises:
      InputError: see `check`.
    """
    cascade = _cascade()
    found = [_largest(cascade, image) for image in images]
    seen = np.flatnonzero([box is not None for box in found])
    if not len(seen):
        return [None] * len(found), 0
    nearest = [found[seen[np.abs(seen - i).argmin()]] for i in range(len(found))]
    return nearest, len(seen)


def _cascade():
    try:
        import cv2

        cv2.setNumThreads(1)  # videos are looked at side by side
        cascade = cv2.CascadeClassifier(cv2.data.haarcascades + CASCADE)
    except (ImportError, AttributeError):
        cascade = None
    if cascade is None or cascade.empty():
        raise InputError(
            "crop='face' needs the face detector of OpenCV 4: pip install 'opencv-python-headless<5', or crop"
            " by centre or none."
        )
    return cascade


def _largest(cascade, image: Image.Image) -> Box | None:
    """The square around the largest face of a frame."""
    scale = min(1.0, LOOKED_AT / min(image.size))
    grey = image.convert("L").resize([max(1, round(side * scale)) for side in image.size])
    boxes = cascade.detectMultiScale(np.asarray(grey), 1.1, 5, minSize=(SMALLEST, SMALLEST))
    if not len(boxes):
        return None
    x, y, width, height = max(boxes, key=lambda box: box[2] * box[3]) / scale
    side = min(round(MARGIN * max(width, height)), *image.size)
    left, top = (
        int(np.clip(round(start + size / 2 - side / 2), 0, limit - side))
        for start, size, limit in ((x, width, image.width), (y, height, image.height))
    )
    return left, top, left + side, top + side
