"""Faces are looked for by the real detector, in drawings that it takes for faces."""

import io
import json
import sys

import films
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from ssl_jax.data import dfdc, faces
from ssl_jax.runtime.errors import InputError

SIZE = (320, 240)  # width and height


def face(centre: tuple[float, float], radius: float, image: Image.Image | None = None) -> Image.Image:
    """Draws a face whose eyes are left and right of its centre."""
    image = image or Image.new("RGB", SIZE, (90, 120, 150))
    draw = ImageDraw.Draw(image)

    def ellipse(x, y, width, height, color):
        x, y = centre[0] + x * radius, centre[1] + y * radius
        width, height = width * radius, height * radius
        draw.ellipse((x - width, y - height, x + width, y + height), fill=color)

    ellipse(0, -0.15, 1.0, 1.3, (60, 40, 30))  # hair
    ellipse(0, 0.1, 0.8, 1.1, (225, 180, 150))
    for side in (-1, 1):
        ellipse(side * 0.35, -0.12, 0.24, 0.13, (150, 105, 85))
        ellipse(side * 0.35, -0.30, 0.24, 0.06, (70, 45, 35))  # brow
        ellipse(side * 0.35, -0.10, 0.16, 0.08, (250, 250, 250))
        ellipse(side * 0.35, -0.10, 0.08, 0.08, (40, 30, 30))
        ellipse(side * 0.10, 0.35, 0.07, 0.05, (150, 100, 80))
    ellipse(0, 0.15, 0.09, 0.28, (240, 200, 170))  # nose
    ellipse(0, 0.62, 0.30, 0.08, (150, 70, 70))
    ellipse(0, 0.62, 0.28, 0.02, (90, 30, 30))
    return image.filter(ImageFilter.GaussianBlur(radius / 25))


def middle(box: faces.Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


@pytest.mark.parametrize("scale", [1, 4])  # the second is made smaller before faces are looked for
def test_the_square_is_around_the_largest_face(scale):
    image = face((70, 90), 30, face((210, 130), 50)).resize([scale * side for side in SIZE])
    ((box,), found) = faces.squares([image])
    assert found == 1
    assert np.abs(np.subtract(middle(box), (scale * 210, scale * 130))).max() < scale * 15
    assert box[2] - box[0] == box[3] - box[1]
    assert 100 * scale < box[2] - box[0] < 190 * scale


def test_at_the_edge_the_square_stays_inside():
    ((box,), _) = faces.squares([face((275, 190), 40)])
    assert box[2:] == SIZE
    assert box[2] - box[0] == box[3] - box[1] > 80


def test_a_frame_without_a_face_takes_the_square_of_the_nearest_that_has_one():
    empty = Image.new("RGB", SIZE, (90, 120, 150))
    first, last = face((90, 120), 40), face((230, 120), 40)
    boxes, found = faces.squares([empty, first, empty, empty, last, empty])
    assert found == 2
    assert boxes[0] == boxes[1] == boxes[2]
    assert boxes[3] == boxes[4] == boxes[5] != boxes[0]
    assert faces.squares([empty, empty]) == ([None, None], 0)


def test_videos_are_cropped_around_faces_and_those_without_are_named(tmp_path, caplog):
    paint = lambda i, size: np.asarray(face((90 + 4 * i, 120), 40))
    names = [f"{kind}{i}.mp4" for i in range(3) for kind in ("r", "f")]
    for name in names[:-1]:
        films.write(tmp_path / name, frames=8, size=SIZE[::-1], content=paint)
    films.write(tmp_path / names[-1], frames=8, size=SIZE[::-1])
    once = lambda i, size: paint(i, size) if i == 0 else np.zeros((*size, 3), np.uint8)
    films.write(tmp_path / "r1.mp4", frames=8, size=SIZE[::-1], content=once)
    entries = {
        name: {"label": "REAL", "original": None}
        if name[0] == "r"
        else {"label": "FAKE", "original": name.replace("f", "r")}
        for name in names
    }
    (tmp_path / "metadata.json").write_text(json.dumps(entries))
    arguments = {"path": str(tmp_path), "split": "hard", "frames": 4, "size": 64, "shares": (0.4, 0.3, 0.3)}
    data = dfdc.make(crop="face", **arguments)
    assert "1 used although no face was found, so that they are cropped in the middle: f2.mp4" in caplog.text
    assert "1 used although a face was found in less than half of their frames" in caplog.text
    # Wherever the face was in the frame, it fills the picture: the middle has the colour of skin.
    for split in dfdc.SPLITS:
        source = data.open(split, ("video",))
        for index in range(len(source)):
            if not any(name in source.describe(index) for name in ("f2.mp4", "r1.mp4")):
                with Image.open(io.BytesIO(source[index]["image"])) as picture:
                    red, _, blue = np.asarray(picture)[28:36, 28:36].mean((0, 1))
                assert red > blue + 40


@pytest.mark.parametrize("state", ["absent", "of another version"])
def test_without_the_detector_the_sentence_says_what_to_install(monkeypatch, state):
    if state == "absent":
        monkeypatch.setitem(sys.modules, "cv2", None)
    else:
        import cv2

        monkeypatch.delattr(cv2, "CascadeClassifier")
    with pytest.raises(InputError, match="pip install 'opencv-python-headless<5', or crop by centre or none"):
        dfdc.Sampling(frames=2, size=64, crop="face")


def test_faces_need_a_size():
    with pytest.raises(InputError, match="crop='face' needs a size"):
        dfdc.Sampling(frames=2, size=None, crop="face")
