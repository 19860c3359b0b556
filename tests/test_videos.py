import io
import json
import os
import pathlib
import shutil

import av
import cloudpickle
import films
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ssl_jax.data import clips, folders, manifests, pipeline, sources, videos
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.fast

OPENCV = pathlib.Path("/usr/share/doc/opencv-doc/examples/data")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def make(path, **arguments):
    return sources.make(name="videos", path=str(path), **arguments)


def refusal(path, **arguments) -> str:
    with pytest.raises(InputError) as error:
        make(path, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def everything(path) -> videos.Frames:
    """All frames of a folder, whatever their splits."""
    root = os.path.realpath(path)
    paths = folders.scan(root, folders.SUFFIXES["videos"]).paths
    rows = videos.look_into(root, paths)
    assert not [row for row in rows if "cause" in row]
    found = tuple(videos.Video(*(row[key] for key in ("path", "frames", "times", "keys"))) for row in rows)
    fields = tfds.features.FeaturesDict(dict.fromkeys(videos.FIELDS, np.int32))
    return videos.Frames("all", root, found, {"episode": np.arange(len(found), dtype=np.int32)}, fields)


def show(example) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(example["image"])))


def film_numbers(source, indices) -> list[int | None]:
    return [films.number(show(example)) for example in source.read(indices)]


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The files opened to decode them."""
    paths, real = [], videos.open_video

    def spy(path):
        paths.append(path)
        return real(path)

    monkeypatch.setattr(videos, "open_video", spy)
    return paths


UNEVEN = [1 + 3 * i + (i * 7) % 3 for i in range(40)]
FILMS = {
    "h264.mp4": {},
    "h264.mov": {"bframes": 0},
    "h264.mkv": {},
    "uneven.mp4": {"times": UNEVEN},
    "uneven.mkv": {"times": UNEVEN},
    "one.mp4": {"frames": 1},
    "h265.mp4": {"codec": "libx265"},
    "vp8.webm": {"codec": "libvpx", "auto-alt-ref": "1", "lag-in-frames": "16"},
    "vp9.webm": {"codec": "libvpx-vp9", "auto-alt-ref": "1", "lag-in-frames": "16"},
    "mpeg4.avi": {"codec": "mpeg4", "bframes": 0},
    "intra.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "open.mp4": {"x264-params": "open-gop=1:bframes=3:scenecut=0:keyint=12:log=-1", "frames": 60},
    "refreshed.mp4": {"x264-params": "intra-refresh=1:keyint=12:scenecut=0:log=-1"},
}
# AVI does not tell the order of frames, which have to be counted.
COUNTED = {
    "reordered.avi": {"codec": "mpeg4", "bframes": 2},
    "h264.avi": {},
}


@pytest.mark.parametrize("name", [*FILMS, *COUNTED])
def test_frame_i_is_the_one_that_is_shown_ith(tmp_path, name, opened):
    options = {"frames": 40} | (FILMS | COUNTED)[name]
    films.write(tmp_path / name, **options)
    source = everything(tmp_path)
    assert len(source) == options["frames"]
    for index in np.random.default_rng(0).permutation(len(source))[:15]:
        assert film_numbers(source, [index]) == [index]
        assert source.fields(index) == {"episode": 0, "step": index}
    if name in FILMS and options["frames"] > 20:
        opened.clear()
        assert film_numbers(source, [23, 19, 19, 15]) == [23, 19, 19, 15]
        # Where there are no keyframes, it takes a second pass from farther back.
        assert len(opened) == 1 + (name == "refreshed.mp4")


@pytest.mark.parametrize("name", ["h264.mkv", "h265.mp4", "vp9.webm", "open.mp4", "refreshed.mp4"])
def test_frames_are_those_of_a_decode_from_the_beginning(tmp_path, name):
    """Where what follows a keyframe needs frames from before it, seeking there would show something else."""
    options = (FILMS | COUNTED)[name] | {"frames": 60, "content": films.moving}
    films.write(tmp_path / name, **options)
    with av.open(str(tmp_path / name)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    source = everything(tmp_path)
    assert len(source) == len(whole) == 60
    for start in (2, 13, 26, 38, 55):
        for offset, example in enumerate(source.read([start, start + 2, start + 4])):
            np.testing.assert_array_equal(show(example), whole[start + 2 * offset])


def test_frames_are_counted_where_times_are_not_in_their_order(tmp_path):
    """As in a video of OpenCV's: with the times of decoding for those of showing."""
    films.write(tmp_path / "true.mp4", 60, bframes=3)
    with av.open(str(tmp_path / "true.mp4")) as true, av.open(str(tmp_path / "false.mp4"), "w") as false:
        stream = false.add_stream_from_template(true.streams.video[0])
        for packet in true.demux(video=0):
            if packet.size:
                packet.dts += 1024  # None is negative: MP4 would leave those frames out.
                packet.pts, packet.stream = packet.dts, stream
                false.mux(packet)
    source = everything(tmp_path)
    false, true = source.videos
    assert (false.frames, false.times) == (60, None)
    assert true.times
    assert film_numbers(source, [20, 23, 26]) == [20, 23, 26]
    # Whoever believed them would be told, not shown something else.
    believed = videos.Video("false.mp4", 60, true.times, true.keys)
    assert videos.read_frames(str(tmp_path / "false.mp4"), believed, [20, 23]) == {}


def test_a_clip_is_decoded_from_the_keyframe_before_it_and_no_further(tmp_path, monkeypatch):
    films.write(tmp_path / "a.mp4", 200, codec="mpeg4", bframes=0, gop=20)
    source, decoded = everything(tmp_path), []
    real = videos.passes
    monkeypatch.setattr(videos, "passes", lambda *a: (decoded.append(1) or frame for frame in real(*a)))
    assert film_numbers(source, [150, 153, 156]) == [150, 153, 156]
    keys = manifests.unpack(source.videos[0].keys)
    assert len(decoded) == 157 - keys[keys <= 150].max()


def test_frames_of_several_videos_keep_their_order(tmp_path):
    for name, number in (("a", 5), ("b", 1), ("c", 7)):
        films.write(tmp_path / f"{name}.mp4", number)
    source = everything(tmp_path)
    assert len(source) == 13
    assert film_numbers(source, [12, 5, 0, 6, 4]) == [6, 0, 0, 0, 4]
    assert [tuple(source.fields(i).values()) for i in (4, 5, 6)] == [(0, 4), (1, 0), (2, 0)]
    assert source.describe(7) == "c.mp4, frame 1"
    with pytest.raises(IndexError):
        source[13]
    copy = cloudpickle.loads(cloudpickle.dumps(source))
    assert copy[7]["image"] == source[7]["image"]


def test_turned_videos_are_shown_upright(tmp_path):
    films.write(tmp_path / "a.mp4", 8, rotation=90)
    films.write(tmp_path / "b.mp4", 8)
    source = everything(tmp_path)
    turned, straight = show(source[6]), show(source[14])
    assert turned.shape == (96, 64, 3)
    np.testing.assert_array_equal(turned, np.rot90(straight))  # 90 degrees against the clock


MATRICES = {  # a, b, c, d of a display matrix, and what is shown of a frame [H, W, 3] by it
    "upright": ((1, 0, 0, 1), lambda frame: frame),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
    "flipped": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda frame: frame.transpose(1, 0, 2)),
    "turned clockwise": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
    "transversed": ((0, -1, -1, 0), lambda frame: np.rot90(frame, 2).transpose(1, 0, 2)),
    "turned anticlockwise": ((0, -1, 1, 0), np.rot90),
    "enlarged": ((2, 0, 0, 2), lambda frame: frame),
    "of zeros": ((0, 0, 0, 0), lambda frame: frame),
}


@pytest.mark.parametrize("name", MATRICES)
def test_video_with_display_matrix_is_shown_as_it_asks_for(tmp_path, name):
    matrix, shown = MATRICES[name]
    films.write(tmp_path / "b.mp4", 3, content=films.moving)
    (tmp_path / "a.mp4").write_bytes(films.with_matrix((tmp_path / "b.mp4").read_bytes(), matrix))
    source = everything(tmp_path)
    for step in range(3):
        np.testing.assert_array_equal(show(source[step]), shown(show(source[3 + step])))


def test_video_with_display_matrix_of_another_angle_is_left_out(tmp_path):
    for i in range(12):
        films.write(tmp_path / f"{i}.mp4", 3)
    upright = (tmp_path / "0.mp4").read_bytes()
    (tmp_path / "turned.mp4").write_bytes(films.with_matrix(upright, (0.8, 0.6, -0.6, 0.8)))
    (tmp_path / "sheared.mp4").write_bytes(films.with_matrix(upright, (1, 0.5, 0, 1)))
    (causes,) = make(tmp_path).left_out.items()
    what = "an MP4 or QuickTime file: it is to be shown turned by no multiple of 90 degrees"
    assert causes == ("unreadable", (f"sheared.mp4 ({what})", f"turned.mp4 ({what})"))


@pytest.mark.parametrize("black", [0, 100])
def test_video_whose_palette_comes_once_is_counted_from_the_beginning(tmp_path, black):
    levels = [level if level >= black else 0 for level in range(200)]
    grey = [np.full((32, 48), level, np.uint8) for level in levels]
    (tmp_path / "palette.avi").write_bytes(films.palette_avi(grey))
    source = everything(tmp_path)
    assert len(source) == 200
    for step in (150, 7, 199, 0, 120):
        assert (show(source[step]) == levels[step]).all()


def test_manifest_of_an_older_version_is_not_believed(tmp_path):
    for i in range(12):
        films.write(tmp_path / f"{i}.mp4", 3)
    grey = [np.full((32, 48), level, np.uint8) for level in range(200)]
    (tmp_path / "palette.avi").write_bytes(films.palette_avi(grey))
    make(tmp_path)
    manifest = tmp_path / ".ssl_jax" / "videos.jsonl"
    rows = [json.loads(row) for row in manifest.read_text().splitlines()[1:]]
    lie = {"times": [0, [[1, 199]]], "keys": [0, [[1, 199]]]}
    rows = [row | (lie if row["path"] == "palette.avi" else {}) for row in rows]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in [{"version": 1, "of": "videos"}, *rows]))
    assert {video.path: video.times for video in make(tmp_path).contents.videos}["palette.avi"] is None


def test_runs_of_equal_steps_are_packed():
    assert manifests.pack([7]) == [7, []]
    assert manifests.pack([0, 2, 4, 6]) == [0, [[2, 3]]]
    assert manifests.pack([3, 4, 6, 8, 9]) == [3, [[1, 1], [2, 2], [1, 1]]]
    for values in ([7], [0, 2, 4, 6], [3, 4, 6, 8, 9], UNEVEN):
        kept = json.loads(json.dumps(manifests.pack(values)))
        np.testing.assert_array_equal(manifests.unpack(kept), values)


def test_a_flat_folder_is_cut_by_videos(tmp_path):
    for i in range(30):
        films.write(tmp_path / f"{i}.mp4", 3, gop=1)
    found = make(tmp_path)
    assert set(found.features) == {"episode", "step"}
    seen = {}
    for split in ("train", "selection", "validation"):
        source = found.open(split, clips.FIELDS)
        seen[split] = {int(source.fields(i)["episode"]) for i in range(len(source))}
        assert len(source) == 3 * len(seen[split])
    assert sum(map(len, seen.values())) == len(set().union(*seen.values())) == 30
    assert min(map(len, seen.values())) > 0
    assert found.splits["test"] == found.splits["validation"]
    assert make(tmp_path).splits == found.splits


def test_clips_of_one_film_stay_together():
    assert videos.film("A/v_BabyCrawling_g07_c03.avi") == videos.film("v_BabyCrawling_g07_c01.mp4")
    assert videos.film("v_BabyCrawling_g07_c03.avi") != videos.film("v_BabyCrawling_g08_c03.avi")
    first, second = (f"kick/Boys_in_blue_kick_f_cm_np1_ri_med_{i}.avi" for i in (0, 1))
    assert videos.film(first) == videos.film(second) == "Boys_in_blue"
    assert videos.film("Boys_in_blue_kick_ball_h_nm_np2_fr_goo_3.avi") == "Boys_in_blue"
    assert videos.film("kick/Boys_in_blue_kick_ball_h_nm_np2_fr_goo_3.avi") == "Boys_in_blue"
    assert videos.film("draw_sword/X_draw_sword_h_nm_np2_fr_goo_3.avi") == "X"
    assert videos.film("my_class/X_my_class_h_nm_np2_fr_goo_3.avi") == "X"
    assert videos.film("x/holiday 3.mov") == "x/holiday 3.mov"


@pytest.mark.parametrize("flat", [True, False])
def test_clips_of_one_film_in_several_classes_are_in_one_split(tmp_path, flat):
    classes = ("kick", "kick_ball", "shake_hands", "sword_exercise")
    for number in range(12):
        for kind in classes:
            name = f"Film_no_{number}_{kind}_f_cm_np1_ri_med_0.avi"
            films.write(tmp_path / ("" if flat else kind) / name, 2, "mpeg4", gop=1)
    found = make(tmp_path)
    seen = {}
    for split in ("train", "selection", "validation"):
        names = [video.path.split("/")[-1] for video in found.open(split).videos]
        seen[split] = {"_".join(name.split("_")[:3]) for name in names}
        assert len(names) == len(classes) * len(seen[split])
    assert sum(map(len, seen.values())) == len(set().union(*seen.values())) == 12


@pytest.fixture
def ucf101(tmp_path):
    for kind in ("Archery", "Biking"):
        for group in range(1, 13):
            for clip in (1, 2):
                films.write(tmp_path / "v" / kind / f"v_{kind}_g{group:02}_c{clip:02}.avi", 2, "mpeg4", gop=1)
    lists = tmp_path / "lists"
    lists.mkdir()
    paths = sorted(path.relative_to(tmp_path / "v") for path in tmp_path.glob("v/*/*"))
    test = [path for path in paths if "_g01_" in path.name or "_g02_" in path.name]
    (lists / "trainlist01.txt").write_text(
        "".join(f"{path} {1 + ('Bik' in path.name)}\r\n" for path in paths if path not in test)
    )
    (lists / "testlist01.txt").write_text("".join(f"{path}\n" for path in test))
    (lists / "classInd.txt").write_text("1 Archery\n2 Biking\n")
    return tmp_path


def test_ucf101_has_its_official_splits(ucf101):
    found = make(ucf101 / "v", annotations=str(ucf101 / "lists"))
    assert found.class_names("label") == ("Archery", "Biking")
    test = found.open("test", ("label", "episode"))
    assert len(test) == 2 * 8
    assert {video.path.split("_")[2] for video in test.videos} == {"g01", "g02"}
    for i in range(0, 16, 5):
        path = test.describe(i)
        assert test[i]["label"] == path.startswith("Biking")
    films_of = {
        split: {videos.film(video.path) for video in found.open(split).videos}
        for split in ("train", "selection", "validation")
    }
    assert sum(map(len, films_of.values())) == len(set().union(*films_of.values())) == 20
    assert not found.left_out


def test_videos_absent_from_ucf101_are_named(ucf101):
    (ucf101 / "v" / "Archery" / "v_Archery_g05_c01.avi").unlink()
    films.write(ucf101 / "v" / "Biking" / "mine.mp4", 2)
    found = make(ucf101 / "v", annotations=str(ucf101 / "lists"))
    assert found.left_out == {
        "in the annotations, but absent": ("Archery/v_Archery_g05_c01",),
        "not in the annotations": ("Biking/mine.mp4",),
    }
    lists = ucf101 / "lists"
    assert "fold=4 must be 1, 2 or 3" in refusal(ucf101 / "v", annotations=str(lists), fold=4)
    assert "neither trainlist02.txt" in refusal(ucf101 / "v", annotations=str(lists), fold=2)
    assert "is a file" in refusal(ucf101 / "v", annotations=str(lists / "classInd.txt"))
    (lists / "testlist01.txt").write_text("../../Archery/v_Other_g01_c01.avi\n/etc/passwd\n")
    assert "None of the 2 videos to test with" in refusal(ucf101 / "v", annotations=str(lists))
    (lists / "testlist01.txt").write_text((lists / "trainlist01.txt").read_text().splitlines()[0])
    assert "both to train and to test" in refusal(ucf101 / "v", annotations=str(lists))


def test_lists_with_a_byte_order_mark_are_read_and_utf16_is_refused(ucf101):
    lists = ucf101 / "lists"
    plain = make(ucf101 / "v", annotations=str(lists))
    texts = {path: path.read_text() for path in lists.iterdir()}
    for path, text in texts.items():
        path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    (lists / "._trainlist01.txt").write_bytes(b"\0\5\x16\7")
    found = make(ucf101 / "v", annotations=str(lists))
    assert found.class_names("label") == plain.class_names("label") == ("Archery", "Biking")
    assert found.left_out == {}
    for part, items in plain.parts.items():
        np.testing.assert_array_equal(found.parts[part].items, items.items)
    np.testing.assert_array_equal(found.contents.values["label"], plain.contents.values["label"])
    path = lists / "trainlist01.txt"
    for encoding in ("utf-16", "utf-16-be"):
        path.write_bytes(texts[path].encode(encoding))
        assert refusal(ucf101 / "v", annotations=str(lists)).startswith(f"{path} is text in UTF-16, or no")


def test_classes_of_the_lists_without_a_video_are_named(ucf101):
    lists = ucf101 / "lists"
    with open(lists / "trainlist01.txt", "a") as file:
        file.write("Diving/v_Diving_g03_c01.avi 3\n")
    with open(lists / "testlist01.txt", "a") as file:
        file.write("Diving/v_Diving_g01_c01.avi\n")
    found = make(ucf101 / "v", annotations=str(lists))
    assert found.left_out["classes of the annotations without a video"] == ("Diving",)
    assert found.class_names("label") == ("Archery", "Biking")
    films.write(ucf101 / "v" / "Diving" / "v_Diving_g03_c01.avi", 2, "mpeg4", gop=1)
    found = make(ucf101 / "v", annotations=str(lists))
    assert found.left_out["classes without a video to test with"] == ("Diving",)
    (ucf101 / "v" / "Diving" / "v_Diving_g03_c01.avi").rename(
        ucf101 / "v" / "Diving" / "v_Diving_g01_c01.avi"
    )
    assert "the class Diving to test with" in refusal(ucf101 / "v", annotations=str(lists))


def test_class_whose_videos_cannot_be_read_is_named_with_what_they_are(tmp_path):
    for i in range(12):
        films.write(tmp_path / "kick" / f"{i}.mp4", 3)
    (tmp_path / "catch").mkdir()
    (tmp_path / "catch" / "1.mp4").write_bytes(b"FLV\1" + bytes(99))
    assert refusal(tmp_path).endswith(
        "which holds 1 unreadable (catch/1.mp4 (an FLV file)); fill or remove it."
    )


def test_hmdb51_has_its_official_splits(tmp_path):
    for kind in ("kick", "shoot_ball"):
        lines = []
        for i in range(12):
            name = f"Some film {i}_{kind}_f_cm_np1_ri_med_0.avi"
            films.write(tmp_path / "v" / kind / name, 2, "mpeg4", gop=1)
            lines.append(f"{name} {(1, 1, 1, 1, 2, 0)[i % 6]} \n")
        (tmp_path / f"{kind}_test_split2.txt").write_text("".join(lines))
    found = make(tmp_path / "v", annotations=str(tmp_path), fold=2)
    assert found.class_names("label") == ("kick", "shoot_ball")
    assert {part: len(items.items) for part, items in found.parts.items()} == {"train": 16, "test": 4}
    assert len(found.left_out["not in the annotations"]) == 4
    (tmp_path / "kick_test_split2.txt").write_text("x.avi one\n")
    assert "the line 'x.avi one'" in refusal(tmp_path / "v", annotations=str(tmp_path), fold=2)


def test_the_manifest_spares_a_second_look(tmp_path, monkeypatch):
    for i in range(12):
        films.write(tmp_path / f"{i}.mp4", 3)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    first = make(tmp_path)
    assert first.left_out == {"unreadable": ("bad.mp4 (a file of text)",)}
    looked, real = [], videos.probe
    monkeypatch.setattr(videos, "probe", lambda root, path: looked.append(path) or real(root, path))
    assert make(tmp_path).contents.videos == first.contents.videos
    assert looked == []
    films.write(tmp_path / "3.mp4", 5)
    (tmp_path / "bad.mp4").rename(tmp_path / "worse.mp4")
    again = make(tmp_path)
    assert sorted(looked) == ["3.mp4", "worse.mp4"]
    assert len(again.contents) == len(first.contents) + 2
    assert again.left_out == {"unreadable": ("worse.mp4 (a file of text)",)}


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
@pytest.mark.parametrize(
    "lie",
    [
        {"frames": 10**12},
        {"frames": 4},
        {"times": [0, [[512, 10**12]]]},
        {"times": None},
        {"keys": [0, [[-1, 2]]]},
        {"times": "abc"},
        {"frames": None},
    ],
)
def test_a_manifest_that_cannot_be_is_not_believed(tmp_path, lie):
    for i in range(12):
        films.write(tmp_path / f"{i}.mp4", 3)
    make(tmp_path)
    manifest = tmp_path / ".ssl_jax" / "videos.jsonl"
    header, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([header, *(json.dumps(json.loads(row) | lie) for row in rows), "[]"]))
    assert len(make(tmp_path).contents) == 36


def test_nothing_outside_the_folder_is_read(tmp_path):
    films.write(tmp_path / "secret.mp4", 3)
    inside = tmp_path / "v"
    for i in range(12):
        films.write(inside / f"{i}.mp4", 3)
    (inside / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (inside / "up").symlink_to(tmp_path)
    # FFmpeg would follow a playlist, whatever its name, and references to other files in MOV.
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n../secret.mp4\n#EXT-X-ENDLIST\n"
    (inside / "list.mp4").write_text(playlist)
    (inside / "concat.mkv").write_text("ffconcat version 1.0\nfile ../secret.mp4\n")
    found = make(inside)
    assert found.left_out == {
        "link out of the folder or to a folder": ("link.mp4", "up"),
        "unreadable": ("concat.mkv (a playlist)", "list.mp4 (a playlist)"),
    }
    source = found.open("train")
    (inside / source.videos[0].path).unlink()
    (inside / source.videos[0].path).symlink_to(tmp_path / "secret.mp4")
    with pytest.raises(ValueError, match="leads out of"):
        source[0]


def test_clips_and_pictures_come_through_the_pipeline(tmp_path):
    for i in range(12):
        films.write(tmp_path / f"{i}.mp4", 30 + i)
    found = make(tmp_path)
    source = found.open("train", clips.FIELDS)
    options = pipeline.TrainOptions(batch_size=6, image_size=films.SIZE, seed=0)
    batches = clips.train_clips(source, clips.Cut(frames=4, stride=(1, 3)), options)
    for batch in [next(batches) for _ in range(3)]:
        for clip, index in zip(batch["clip"], batch["index"], strict=True):
            numbers = [films.number(frame) for frame in clip]
            start = source.fields(index)["step"]
            assert numbers in [[start + i * stride for i in range(4)] for stride in (1, 2, 3)]
    batches.close()
    assert not batches.skipped.causes
    rows = pipeline.load_arrays(
        source, pipeline.EvaluationOptions(batch_size=8, image_size=films.SIZE, limit=20)
    )
    np.testing.assert_array_equal([films.number(image) for image in rows["image"]], rows["step"])


def test_bad_folders_are_told_apart(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no videos" in refusal(tmp_path / "empty")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    assert "1 .png; for its pictures give config.data.name=folder" in refusal(tmp_path / "pictures")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.mp4").write_bytes(b"")
    assert "None of the 1 videos" in refusal(tmp_path / "bad")
    films.write(tmp_path / "few" / "a.mp4", 3)
    assert "is empty" in refusal(tmp_path / "few")
    assert "holds bad and" in refusal(tmp_path / "bat")


@pytest.mark.skipif(not OPENCV.exists(), reason="needs Debian's opencv-doc")
def test_real_videos_are_read_as_they_are_shown(tmp_path):
    """Cinepak with dropped frames, MPEG-4 with packed B-frames, MS-MPEG-4; durations are wrong."""
    for path in OPENCV.glob("*.avi"):
        shutil.copy(path, tmp_path)
    source = everything(tmp_path)
    assert {video.path: video.frames for video in source.videos}["tree.avi"] == 68  # It promises 444.
    for number, video in enumerate(source.videos):
        steps = [0, 3, min(40, video.frames - 1)]
        start = sum(other.frames for other in source.videos[:number])
        found = dict(zip(steps, source.read([start + step for step in steps]), strict=True))
        with av.open(str(tmp_path / video.path)) as container:
            for step, frame in enumerate(container.decode(video=0)):
                if step in steps:
                    np.testing.assert_array_equal(show(found[step]), frame.to_ndarray(format="rgb24"))
                if step == max(steps):
                    break
