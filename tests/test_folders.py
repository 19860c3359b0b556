import gzip
import io
import json
import os
import pathlib
import time
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssl_jax.data import folders, pipeline, sources
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.fast

FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")
OPENCV = pathlib.Path("/usr/share/doc/opencv-doc/examples/data")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def make(path, **arguments):
    return sources.make(name="folder", path=str(path), **arguments)


def refusal(path, **arguments) -> str:
    with pytest.raises(InputError) as error:
        make(path, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def picture(level: int, size=(8, 6), **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (level,) * 3).save(buffer, **{"format": "PNG"} | options)
    return buffer.getvalue()


def fill(path: pathlib.Path, number: int, first: int = 0) -> None:
    """Writes pictures of the levels `first` to `first + number - 1`."""
    path.mkdir(parents=True, exist_ok=True)
    for level in range(first, first + number):
        (path / f"{level}.png").write_bytes(picture(level))


def settle(path: pathlib.Path) -> None:
    """Lets folders look as if nothing had changed for an hour."""
    hour_ago = time.time() - 3600
    for folder in [path, *(found for found in path.rglob("*") if found.is_dir())]:
        os.utime(folder, (hour_ago, hour_ago))


def names(source) -> set[str]:
    return {source.describe(index) for index in range(len(source))}


def paths_of(found) -> dict[str, set[str]]:
    return {split: names(found.open(split)) for split in sources.SPLITS}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_paths_are_kept_as_they_are(paths):
    kept = folders.Paths([*paths, "strange \udcff name"])
    assert [*kept] == [*paths, "strange \udcff name"]
    assert [*cloudpickle.loads(cloudpickle.dumps(kept))] == [*kept]


def test_a_flat_folder_is_cut_by_a_hash(tmp_path):
    fill(tmp_path, 1600)
    found = make(tmp_path)
    assert found.splits == {
        "selection": "train[0%:1%]",
        "validation": "train[1%:2%]",
        "train": "train[2%:]",
        "test": "train[1%:2%]",
    }
    assert not found.features
    parts = paths_of(found)
    assert parts["test"] == parts["validation"]
    assert sum(len(parts[split]) for split in ("train", "selection", "validation")) == 1600
    assert len(set().union(*parts.values())) == 1600
    assert min(map(len, parts.values())) > 5

    (tmp_path / "0.png").unlink()
    fill(tmp_path / "more", 50)
    again = paths_of(make(tmp_path))
    for split, paths in parts.items():
        assert {path for path in again[split] if "more" not in path} == paths - {"0.png"}


def test_the_cut_does_not_depend_on_the_machine():
    # BLAKE2b of 8 bytes of "a.png" is 0xe203797de73bf656, 88.2866 percent of 2^64.
    names = ["a.png", *(f"{i}.png" for i in range(2000)), "a.png"]
    part = folders.cut(range(7, 2009), names)
    np.testing.assert_array_equal(part.items, np.arange(7, 2009))
    np.testing.assert_allclose(part.places[[0, -1]], 88.2866, atol=1e-4)
    np.testing.assert_allclose(np.histogram(part.places, 10, (0, 100))[0], 200, atol=50)
    # Of few files the hashes tell the order alone, and those of one key stay together.
    order = [names[i] for i in np.argsort(part.places[:4], stable=True)]
    few = folders.cut(range(5), [*order, order[1]])
    np.testing.assert_allclose(few.places, [12.5, 37.5, 62.5, 87.5, 37.5])


@pytest.mark.parametrize(("number", "train"), [(3, 1), (4, 2), (20, 18), (300, 294)])
def test_few_pictures_are_cut_more_coarsely(tmp_path, number, train):
    fill(tmp_path, number)
    sizes = {split: len(make(tmp_path).open(split)) for split in sources.SPLITS}
    left = (number - train) // 2
    assert sizes == {"train": train, "selection": left, "validation": left, "test": left}
    if number == 3:
        (tmp_path / "0.png").unlink()
        assert "is empty" in refusal(tmp_path)


def test_class_folders_give_labels(tmp_path):
    for number, kind in enumerate(("cat", "dog", "ant")):
        fill(tmp_path / kind / "deeper", 40, first=50 * number)
    found = make(tmp_path)
    assert found.class_names("label") == ("ant", "cat", "dog")
    source = found.open("train", ["label"])
    for index in range(0, len(source), 7):
        example = source[index]
        level = np.asarray(Image.open(io.BytesIO(example["image"])))[0, 0, 0]
        assert ("cat", "dog", "ant")[level // 50] == found.class_names("label")[example["label"]]
        assert example["label"].dtype == np.int64
        assert source.fields(index) == {"label": example["label"]}
    assert sources.blank(source) == {"label": 0}
    assert found.open("train")[0].keys() == {"image"}
    with pytest.raises(InputError, match=r"No field of .* is called 'labl'; did you mean label"):
        found.open("train", ["labl"])
    with pytest.raises(InputError, match="labels are the names of sub-folders"):
        make(tmp_path / "cat").open("train", ["label"])


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Train", "validation"), ("train", "test")])
def test_splits_can_be_sub_folders(tmp_path, names):
    for number, name in enumerate(names):
        for kind in ("cat", "dog"):
            fill(tmp_path / name / kind, 40, first=40 * number)
    found = make(tmp_path)
    has = {name.lower().replace("val", "validation").replace("idation" * 2, "idation") for name in names}
    assert {split for split, expression in found.splits.items() if "[" not in expression} >= has - {"train"}
    parts = {split: {path.split("/")[0] for path in paths} for split, paths in paths_of(found).items()}
    assert parts["train"] == parts["selection"] == {names[0]}
    assert parts["validation"] == ({names[1]} if "validation" in has else {names[0]})
    assert parts["test"] == {names[-1]}
    assert found.class_names("label") == ("cat", "dog")
    assert len(found.open("test")) == 80


def test_a_class_may_be_called_train(tmp_path):
    for kind in ("bus", "train"):
        fill(tmp_path / kind, 40)
    assert make(tmp_path).class_names("label") == ("bus", "train")


def test_splits_can_be_replaced(tmp_path):
    fill(tmp_path / "train", 60)
    fill(tmp_path / "val", 10)
    splits = {"train": "train[50%:]", "selection": "train[:50%]", "test": "val"}
    found = make(tmp_path, splits=splits)
    sizes = {split: len(found.open(split)) for split in sources.SPLITS}
    assert sizes["train"] + sizes["selection"] == 60
    assert sizes["validation"] == sizes["test"] == 10
    assert "did you mean validation" in refusal(tmp_path, splits={"validaton": "train"})
    assert "share examples" in refusal(tmp_path, splits={"selection": "train[50%:]"})
    assert "has no 'train[10:]'" in refusal(tmp_path, splits={"train": "train[10:]"})
    assert "has no 'test'; it has train and validation" in refusal(tmp_path, splits={"test": "test"})
    assert "train[:90%]" in refusal(tmp_path, splits={"train": "train[90%:110%]"})
    assert "The split selection" in refusal(tmp_path, splits={"selection": "train[7%:7%]"})


def test_all_formats_are_read_and_other_files_left_alone(tmp_path):
    for suffix in ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "TIFF"):
        Image.new("RGB", (9, 7), (90, 90, 90)).save(tmp_path / f"a.{suffix}")
    fill(tmp_path, 40, first=100)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._a.jpg").write_bytes(b"left by another system")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "a.png").write_bytes(picture(1))
    found = make(tmp_path)
    assert len(found.contents) == 48
    for index in range(8):
        name = found.contents.describe(index + 40)
        assert name.startswith("a.")
        size = Image.open(io.BytesIO(found.contents[index + 40]["image"])).size
        assert size == (9, 7)
    assert not found.left_out


def test_pictures_travel_to_other_processes(tmp_path):
    for kind in ("cat", "dog"):
        fill(tmp_path / kind, 60)
    source = make(tmp_path).open("train", ["label"])
    copy = cloudpickle.loads(cloudpickle.dumps(source))
    assert names(copy) == names(source)
    assert copy[7] == source[7]
    assert [*copy.read([7, 2])] == [source[7], source[2]]
    with pytest.raises(IndexError):
        source[len(source)]

    options = {"batch_size": 16, "image_size": (6, 8), "seed": 0}
    drawn = []
    for workers in (0, 2):
        batches = pipeline.train_batches(source, pipeline.TrainOptions(**options, workers=workers))
        drawn.append(np.stack([next(batches)["image"] for _ in range(3)]))
        batches.close()
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not batches.skipped.causes


def test_state_of_a_folder_that_moved_goes_on_and_of_one_with_other_names_is_refused(tmp_path):
    def batches(path):
        options = pipeline.TrainOptions(batch_size=4, image_size=(6, 8), seed=0)
        return pipeline.train_batches(make(path).open("train"), options)

    fill(tmp_path / "old" / "cat", 20)
    first = batches(tmp_path / "old")
    first.skipped.causes[f"{os.path.realpath(tmp_path / 'old')} train", 3] = "unreadable"
    state = first.get_state()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = batches(tmp_path / "new")
    moved.set_state(state)
    assert list(moved.skipped.causes) == [(f"{os.path.realpath(tmp_path / 'new')} train", 3)]
    path = tmp_path / "new" / moved._source.paths[5]
    path.rename(path.with_name("a_" + path.name))
    with pytest.raises(InputError, match=r"as many examples as .*/old train.* but they are others"):
        batches(tmp_path / "new").set_state(state)


# --- The manifest


def test_the_manifest_spares_listing_and_follows_changes(tmp_path, monkeypatch):
    for kind in ("cat", "dog"):
        fill(tmp_path / kind, 40)
    make(tmp_path)
    settle(tmp_path)
    first = make(tmp_path)
    listed, real = [], folders._list_folder
    monkeypatch.setattr(folders, "_list_folder", lambda *a: listed.append(a[1]) or real(*a))
    assert paths_of(make(tmp_path)) == paths_of(first)
    assert listed == []

    fill(tmp_path / "dog", 1, first=200)
    (tmp_path / "cat" / "3.png").write_bytes(picture(7))  # Read anew, as every file is.
    again = make(tmp_path)
    assert set(listed) == {"dog"}
    assert len(again.contents) == 81
    assert names(again.contents) - names(first.contents) == {"dog/200.png"}
    (tmp_path / "cat" / "5.png").rename(tmp_path / "cat" / "6x.png")
    (tmp_path / "dog" / "5.png").unlink()
    fill(tmp_path / "eel", 3)
    assert make(tmp_path).class_names("label") == ("cat", "dog", "eel")
    assert len(make(tmp_path).contents) == 83


def test_a_folder_that_has_just_changed_is_not_trusted(tmp_path, monkeypatch):
    fill(tmp_path, 40)
    for _ in range(2):
        make(tmp_path)
    listed, real = [], folders._list_folder
    monkeypatch.setattr(folders, "_list_folder", lambda *a: listed.append(a[1]) or real(*a))
    make(tmp_path)
    assert listed == [""]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON",
        "[" * 100_000,
        '{"version": 1}\n{}',
        "{header}\n[]\n3\n{}",
        '{header}\n{"folder": "", "time": 1}',
        '{header}\n{"folder": "", "files": "abc", "folders": [], "links": [], "others": {}, "time": 1,'
        ' "listed": 9}',
        "{header}\n{root}\n{truncated",
    ],
)
def test_a_broken_manifest_is_written_anew(tmp_path, text):
    fill(tmp_path, 40)
    make(tmp_path)
    manifest = tmp_path / ".ssl_jax" / "pictures.jsonl"
    header, root = manifest.read_text().splitlines()
    manifest.write_text(text.replace("{header}", header).replace("{root}", root))
    settle(tmp_path)
    assert len(make(tmp_path).contents) == 40
    assert len(manifest.read_text().splitlines()) == 2
    assert [file.name for file in manifest.parent.iterdir()] == ["pictures.jsonl"]


def test_a_manifest_leads_nowhere_outside(tmp_path):
    """A data set may come with a manifest that somebody made up."""
    (tmp_path / "secret.png").write_bytes(picture(1))
    root = tmp_path / "data"
    fill(root, 40)
    make(root)
    settle(root)
    make(root)
    settle(root)
    manifest = root / ".ssl_jax" / "pictures.jsonl"
    header, row = manifest.read_text().splitlines()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    settle(root)
    for lie in ({"files": ["../secret.png"]}, {"folders": [".."]}, {"files": [str(tmp_path / "secret.png")]}):
        manifest.write_text(f"{header}\n{json.dumps(json.loads(row) | lie)}\n")
        found = make(root)
        assert names(found.contents) == {f"{i}.png" for i in range(40)}
        assert found.left_out == {"link out of the folder or to a folder": ("link.png",)}
    current = {"time": root.stat().st_mtime_ns, "files": [*json.loads(row)["files"], "link.png"]}
    manifest.write_text(f"{header}\n{json.dumps(json.loads(row) | current)}\n")
    found = make(root)
    (index,) = (i for i in range(41) if found.contents.describe(i) == "link.png")
    with pytest.raises(ValueError, match=r"link\.png leads out of"):
        found.contents[index]


def test_a_folder_that_cannot_be_written_has_its_manifest_elsewhere(tmp_path, monkeypatch, caplog):
    root = tmp_path / "data"
    fill(root, 40)
    (root / ".ssl_jax").write_text("in the way, even of the superuser")
    make(root)
    assert [*pathlib.Path(os.environ["XDG_CACHE_HOME"]).glob("ssl_jax/manifests/*/pictures.jsonl")]
    settle(root)
    make(root)
    monkeypatch.setattr(folders, "_list_folder", None)
    assert len(make(root).contents) == 40
    monkeypatch.undo()

    monkeypatch.setenv("XDG_CACHE_HOME", str(root / ".ssl_jax"))
    caplog.clear()
    assert len(make(root).contents) == 40
    assert "No manifest of" in caplog.text


def test_a_manifest_is_not_written_through_a_link(tmp_path):
    root, outside = tmp_path / "data", tmp_path / "outside"
    fill(root, 40)
    outside.mkdir()
    (root / ".ssl_jax").symlink_to(outside)
    make(root)
    assert [*outside.iterdir()] == []


def test_several_may_build_it_at_once(tmp_path):
    for kind in ("cat", "dog"):
        fill(tmp_path / kind, 60)
    with ThreadPoolExecutor(4) as pool:
        sizes = list(pool.map(lambda _: len(make(tmp_path).contents), range(16)))
    assert sizes == [120] * 16
    assert os.listdir(tmp_path / ".ssl_jax") == ["pictures.jsonl"]
    _, *rows = (tmp_path / ".ssl_jax" / "pictures.jsonl").read_text().splitlines()
    assert sorted(json.loads(row)["folder"] for row in rows) == ["", "cat", "dog"]


# --- What cannot be used


def test_links_stay_inside(tmp_path):
    outside = tmp_path / "outside"
    fill(outside, 5)
    root = tmp_path / "data"
    fill(root, 40)
    (root / "good.png").symlink_to("7.png")
    (root / "bad.png").symlink_to(outside / "1.png")
    (root / "up.png").symlink_to("../outside/1.png")
    (root / "gone.png").symlink_to("nothing.png")
    (root / "folder").symlink_to(outside)
    (root / "round").symlink_to(root)
    (root / "around.png").symlink_to(root / "round" / "3.png")
    os.mkfifo(root / "pipe.png")
    found = make(root)
    assert names(found.contents) == {f"{i}.png" for i in range(40)} | {"good.png", "around.png"}
    assert found.left_out == {
        "link out of the folder or to a folder": (
            "bad.png", "folder", "gone.png", "round", "up.png",
        )
    }  # fmt: skip
    source = found.open("train")
    first = source.describe(0)
    (root / first).unlink()
    (root / first).symlink_to(outside / "1.png")
    with pytest.raises(ValueError, match="leads out of"):
        source[0]
    # The folder itself may be a link.
    (tmp_path / "link").symlink_to(root)
    assert len(make(tmp_path / "link").contents) == 41


def test_files_that_are_too_large_or_gone_are_told_apart(tmp_path):
    fill(tmp_path, 40)
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(folders.MAX_BYTES + 1)  # It takes no room on the disk.
    source = make(tmp_path).contents
    with pytest.raises(sources.TooLargeError, match=str(folders.MAX_BYTES)):
        source[40]
    (tmp_path / source.describe(0)).unlink()
    with pytest.raises(FileNotFoundError):
        source[0]


def test_missing_folders_are_told_apart(tmp_path):
    assert "config.data.path is missing; the data set folder needs" in refusal("")
    fill(tmp_path / "pictures", 1)
    assert "holds pictures" in refusal(tmp_path / "picture")
    assert "nor the folder" in refusal(tmp_path / "a" / "b")
    assert "is a file" in refusal(tmp_path / "pictures" / "0.png")
    (tmp_path / "empty").mkdir()
    assert "has no pictures (.bmp, " in refusal(tmp_path / "empty")
    assert "it holds nothing" in refusal(tmp_path / "empty")
    for name in ("a.txt", "b.txt", "README", "c.mp4"):
        (tmp_path / "empty" / name).write_text("")
    sentence = refusal(tmp_path / "empty")
    assert "2 .txt, 1 without a suffix, 1 .mp4" in sentence
    assert sentence.endswith("for its videos give config.data.name=videos.")
    (tmp_path / "empty" / "link").symlink_to(tmp_path / "pictures")
    assert "1 link out of the folder or to a folder (link)" in refusal(tmp_path / "empty")
    assert "is empty" in refusal(tmp_path / "pictures")
    assert "annotations" in refusal(tmp_path / "pictures", annotations="here")
    with pytest.raises(
        InputError, match="path='here' is for the data sets folder and videos, not for cifar10"
    ):
        sources.make(name="cifar10", path="here")
    with pytest.raises(InputError, match="did you mean folder"):
        sources.make(name="foldr", data_dir=str(tmp_path))


def test_folders_whose_meaning_is_not_clear_are_refused(tmp_path):
    def folder(name, **parts):
        for part, number in parts.items():
            fill(tmp_path / name / part.replace("__", "/"), number)
        return tmp_path / name

    assert "class folder dog of" in refusal(folder("a", cat=40, dog=0))
    assert "class folder dog of" in refusal(folder("b", train__cat=40, train__dog=0, train__eel=3))
    assert "no class dgo to train on" in refusal(
        folder("c", train__cat=40, train__dog=40, test__cat=3, test__dgo=3)
    )
    assert "beside them the folders more" in refusal(folder("d", train=40, test=3, more=4))
    assert "none called train" in refusal(folder("e", test=40, val=4))
    assert "two folders for one split: val and validation" in refusal(
        folder("f", train=40, val=4, validation=4)
    )
    assert "none called train" in refusal(folder("k", development=40, test=4))
    assert "class folder eel of" in refusal(
        folder("l", train__cat=40, train__dog=40, test__cat=3, test__eel=0)
    )
    assert "in the sub-folder train of" in refusal(folder("g", train=0, test=4))
    assert "in the sub-folder test of" in refusal(folder("j", train=40, test=0))
    found = make(folder("h", train=40, test=4))
    fill(tmp_path / "h", 1)
    assert make(tmp_path / "h").left_out == {"beside the splits": ("0.png",)}
    assert not found.left_out
    folder("i", cat=40, dog=40)
    fill(tmp_path / "i", 2)
    assert not make(tmp_path / "i").features  # What lies in no class has no label.


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "valid", "test"),
        ("TRAINING", None, "Testing"),
        ("Training", "dev", None),
        ("train", "development", "test"),
    ],
)
def test_sub_folders_of_usual_names_are_read_as_their_splits(tmp_path, caplog, train, validation, test):
    tops = {"train": train, "validation": validation, "test": test}
    tops = {part: top for part, top in tops.items() if top}
    for number, top in enumerate(tops.values()):
        for kind in ("cat", "dog"):
            fill(tmp_path / top / kind, 40, first=40 * number)
    with caplog.at_level("INFO"):
        found = make(tmp_path)
    assert found.split_folders == tops
    assert found.class_names("label") == ("cat", "dog")
    parts = {split: {path.split("/")[0] for path in paths} for split, paths in paths_of(found).items()}
    assert parts["train"] == parts["selection"] == {train}
    assert parts["validation"] == {validation or train}
    assert parts["test"] == {test or validation or train}
    for part, top in tops.items():
        assert f"the sub-folder {top} is read as the split {part}." in caplog.text
    assert make(tmp_path / train).split_folders == {}


@pytest.mark.parametrize(
    ("folders", "pair"),
    [
        (("train/cat", "train/dog", "eval/cat", "eval/dog"), "train and eval"),
        (("train", "evaluation"), "train and evaluation"),
        (("train/cat", "more/cat", "more/dog"), "train and more"),
        (("training_set/cat", "test_set/cat"), "training_set and test_set"),
        (("seg_train/seg_train/cat", "seg_test/seg_test/cat", "pictures"), "seg_train and seg_test"),
        (("cat", "dog", "test/cat", "test/dog"), "test and cat"),
        (("data/train/cat", "data/valid/cat"), "train and valid"),
        (("images/train2017", "images/val2017"), "train2017 and val2017"),
        (("train_images", "test_images", "unlabeled_images"), "train_images and test_images"),
        (("training_data", "testset"), "training_data and testset"),
        (("bottle/train/good", "bottle/test/good", "bottle/ground_truth/bad"), "train and test"),
        (("train/cat/train", "train/cat/val", "test/cat"), "train and val"),
        (("trainval/cat", "trainval/dog", "test/cat", "test/dog"), "test and trainval"),
        (("trainval/cat", "test/cat", "more/eel"), "test and trainval"),
        (("test/cat", "eval/cat"), "eval and test"),
        (("eval", "holdout"), "eval and holdout"),
        (("train", "trainval"), "train and trainval"),
        (("birds/development", "birds/test"), "development and test"),
    ],
)
def test_sub_folders_that_may_be_splits_are_not_read_as_classes(tmp_path, folders, pair):
    for number, folder in enumerate(folders):
        fill(tmp_path / folder, 20, first=20 * number)
    assert f"has the folders {pair}, which may be splits or classes" in refusal(tmp_path)


@pytest.mark.parametrize(
    "kinds",
    [("eval_a", "eval_b"), ("web_development", "mobile_development"),
     ("bus/images", "car/images"), ("bullet_train", "test_tube", "bus"),
     ("train_station", "train_interior"), ("test", "essay"), ("vehicle/train", "vehicle/bus", "animal/cat")],
)  # fmt: skip
def test_classes_whose_names_resemble_splits_are_read_as_classes(tmp_path, kinds):
    for number, kind in enumerate(kinds):
        fill(tmp_path / kind, 20, first=20 * number)
    found = make(tmp_path)
    assert set(found.class_names("label")) == {kind.split("/")[0] for kind in kinds}
    assert found.split_folders == {}


def test_class_whose_files_have_another_suffix_is_named(tmp_path, caplog):
    for part in ("train", "test"):
        fill(tmp_path / part / "cat", 20)
        fill(tmp_path / part / "dog", 20)
    for path in (tmp_path / "test" / "dog").iterdir():
        path.rename(path.with_suffix(".heic"))
    assert "class folder dog of" in refusal(tmp_path)
    assert refusal(tmp_path).endswith("test, which holds 20 .heic; fill or remove it.")
    for path in (tmp_path / "test" / "dog").iterdir():
        path.unlink()
    (tmp_path / "test" / "dog").rmdir()
    (tmp_path / "train" / "dog" / "0.png").rename(tmp_path / "train" / "dog" / "0.JPG.txt")
    found = make(tmp_path)
    assert found.class_names("label") == ("cat", "dog")
    assert "the split test has nothing of the class dog" in caplog.text
    assert "not read, by their suffixes: 1 .txt" in caplog.text


def test_class_folder_that_is_empty_in_one_split_is_only_mentioned(tmp_path, caplog):
    for part, number in (("train", 20), ("val", 0), ("test", 20)):
        fill(tmp_path / part / "cat", 20)
        fill(tmp_path / part / "dog", number)
    assert make(tmp_path).class_names("label") == ("cat", "dog")
    assert "the split validation has nothing of the class dog" in caplog.text
    for path in (tmp_path / "train" / "dog").iterdir():
        path.unlink()
    assert "class folder dog of" in refusal(tmp_path)


def test_debris_of_other_programs_is_left_alone(tmp_path, caplog):
    for kind in ("cat", "dog"):
        fill(tmp_path / kind, 20)
        fill(tmp_path / kind / "@eaDir" / "0.png", 1)  # a Synology NAS keeps thumbnails of 0.png there
        (tmp_path / kind / "Thumbs.db").write_bytes(b"")
    for name in ("__MACOSX/cat", "lost+found", "$RECYCLE.BIN/S-1-5", "System Volume Information", "#recycle",
                 ".AppleDouble", ".snapshot/hourly.0/cat", "@Recycle"):  # fmt: skip
        fill(tmp_path / name, 2)
    found = make(tmp_path)
    assert found.class_names("label") == ("cat", "dog")
    assert names(found.contents) == {f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(20)}
    assert not caplog.text


def test_strange_names_are_read(tmp_path):
    strange = [b"\xff\xfe.png", "ö ü.png".encode(), b"a\nb.png", b"%d.png", b"-.png", b"..a.png", b"[x].png"]
    fill(tmp_path, 40)
    for name in strange:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(picture(9))
    settle(tmp_path)
    for _ in range(3):
        source = make(tmp_path).contents
        assert len(source) == 46  # One begins with a dot.
        for index in range(46):
            assert source[index]["image"].startswith(b"\x89PNG")


@settings(max_examples=200)
@given(st.text("train[0123456789%:]v", max_size=14))
def test_split_expressions_are_parsed_or_refused(text):
    parts = {"train": None, "validation": None}
    try:
        name, percents = folders.parse(text, parts, "x")
    except InputError:
        return
    assert name in parts
    assert percents.start >= 0
    assert percents.stop <= 100


# --- Real pictures


@pytest.mark.skipif(not FASHION.exists(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist_in_class_folders(tmp_path):
    images = gzip.decompress((FASHION / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((FASHION / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    pixels = np.frombuffer(images, np.uint8).reshape(-1, 28, 28)
    for number in range(600):
        folder = tmp_path / f"class {labels[number]}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels[number]).save(folder / f"{number:05}.png")
    found = make(tmp_path)
    assert len(found.class_names("label")) == 10
    options = pipeline.EvaluationOptions(batch_size=64, image_size=(28, 28))
    source = found.open("train", ["label"])
    rows = pipeline.load_arrays(source, options)
    numbers = [int(source.describe(index).split("/")[1][:5]) for index in rows["index"]]
    np.testing.assert_array_equal(rows["image"], np.repeat(pixels[numbers][..., None], 3, -1))
    np.testing.assert_array_equal(rows["label"], [labels[number] for number in numbers])


@pytest.mark.skipif(not OPENCV.exists(), reason="needs Debian's opencv-doc")
def test_photographs_of_opencv(tmp_path):
    for path in sorted(OPENCV.iterdir()):
        if path.suffix.lower() in folders.SUFFIXES["folder"] and path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    found = make(tmp_path)
    assert len(found.contents) > 50
    skipped = pipeline.Skipped(max_share=0.2)
    options = pipeline.EvaluationOptions(
        batch_size=16, image_size=(64, 64), min_size=(32, 32), skipped=skipped
    )
    rows = pipeline.load_arrays(found.contents, options)
    assert len(rows["image"]) + skipped.bad == len(found.contents)
    assert set(skipped.counts()) <= {"undersized"}
    assert len(rows["image"]) > 0.8 * len(found.contents)
