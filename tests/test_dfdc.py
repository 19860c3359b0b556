import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import cloudpickle
import films
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image

from ssl_jax.data import dfdc, pipeline
from ssl_jax.runtime.errors import InputError

REAL = {"label": "REAL", "split": "train", "original": None}


def fake(original: str | None) -> dict:
    return {"label": "FAKE", "split": "train", "original": original}


FAMILIES = {f"r{i}.mp4": REAL for i in range(10)} | {f"f{i}_{j}.mp4": fake(f"r{i}.mp4")
                                                     for i in range(10) for j in range(2)}  # fmt: skip


@pytest.fixture(scope="session")
def film(tmp_path_factory) -> pathlib.Path:
    """40 frames that spell their numbers."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    films.write(path)
    return path


def write_part(folder, entries, film=None, absent=()) -> None:
    """Writes metadata.json, and a video for every entry that is not absent: a real one, or nothing in it."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.json").write_text(json.dumps(entries))
    for name in entries:
        if name not in absent:
            if film:
                shutil.copyfile(film, folder / name)
            else:
                (folder / name).write_bytes(b"")


@pytest.fixture
def families(tmp_path, film) -> str:
    """Two parts, 10 originals with 2 fakes of each."""
    names = sorted(FAMILIES)
    for i, some in enumerate((names[:14], names[14:])):
        write_part(tmp_path / f"dfdc_train_part_{i}", {name: FAMILIES[name] for name in some}, film)
    return str(tmp_path)


def make(path, split="hard", **arguments) -> dfdc.Dfdc:
    return dfdc.make(**{"path": str(path), "split": split, "frames": 4, "size": None, "crop": "none",
                        "shares": (0.6, 0.2, 0.2)} | arguments)  # fmt: skip


def refusal(call, *arguments, **more) -> str:
    with pytest.raises(InputError) as error:
        call(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def listing_of(entries) -> dfdc.Listing:
    """What `read_listing` says of videos that are all there."""
    keys = dfdc._recordings(
        {name: (dfdc.LABELS.index(e["label"]), e["original"]) for name, e in entries.items()}
    )
    names = sorted(entries)
    _, originals = np.unique([keys[name] for name in names], return_inverse=True)
    labels = np.array([dfdc.LABELS.index(entries[name]["label"]) for name in names])
    return dfdc.Listing("", tuple(names), labels, originals, {}, {})


def show(example) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(example["image"])))


# --- Frames


def test_frames_are_evenly_spread_over_each_video_and_carry_their_fields(families):
    data = make(families)
    source = data.open("train", dfdc.FIELDS)
    assert len(source) == 6 * 3 * 4
    seen = {}
    for index in range(len(source)):
        example = source[index]
        path, _, frame = source.describe(index).rpartition(", frame ")
        name = os.path.basename(path)
        assert films.number(show(example)) == int(example["step"]) == int(frame)
        assert data.class_names("label")[example["label"]] == FAMILIES[name]["label"]
        seen.setdefault(int(example["video"]), []).append(int(example["step"]))
        recording = FAMILIES[name]["original"] or name
        assert seen.setdefault(recording, int(example["original"])) == example["original"]
        assert source.fields(index) == {field: example[field] for field in dfdc.FIELDS}
    assert [steps for key, steps in seen.items() if isinstance(key, int)] == [[0, 10, 20, 30]] * 18


def test_batches_are_read_by_the_pipeline(families):
    source = cloudpickle.loads(cloudpickle.dumps(make(families).open("test", ("label", "video"))))
    options = pipeline.EvaluationOptions(batch_size=5, image_size=films.SIZE)
    arrays = pipeline.load_arrays(source, options)
    assert arrays["image"].shape == (len(source), *films.SIZE, 3)
    assert np.bincount(arrays["label"]).tolist() == [8, 16]
    train = pipeline.train_batches(source, pipeline.TrainOptions(batch_size=4, image_size=(32, 32), seed=0))
    assert next(train)["image"].shape == (4, 32, 32, 3)
    train.close()


def test_a_shorter_video_gives_all_its_frames(tmp_path):
    films.write(tmp_path / "a.mp4", frames=3)
    sampling = dfdc.Sampling(frames=5, size=None, crop="none")
    (row,) = dfdc.extract(str(tmp_path), ["a.mp4"], sampling, str(tmp_path / "store"))
    assert row["steps"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("size", "crop", "shape"),
    [(None, "none", (64, 96)), (None, "centre", (64, 64)), (32, "none", (32, 32)), (32, "centre", (32, 32))],
)
def test_sizes_and_crops(tmp_path, size, crop, shape):
    # Left third red, middle third green, right third blue; the central square leaves half of red and blue.
    frame = np.zeros((64, 96, 3), np.uint8)
    for i in range(3):
        frame[:, 32 * i : 32 * (i + 1), i] = 255
    films.write(tmp_path / "a.mp4", frames=2, content=lambda *_: frame)
    sampling = dfdc.Sampling(frames=1, size=size, crop=crop)
    (row,) = dfdc.extract(str(tmp_path), ["a.mp4"], sampling, str(tmp_path / "store"))
    (picture,) = np.load(tmp_path / "store" / row["file"])
    assert picture.shape == (*shape, 3)
    shares = (1 / 3, 1 / 3, 1 / 3) if crop == "none" else (1 / 4, 1 / 2, 1 / 4)
    np.testing.assert_allclose(picture.mean((0, 1)) / 255, shares, atol=0.03)  # colours are compressed


def test_undersized_videos_are_left_out(tmp_path, film):
    write_part(tmp_path, {"a.mp4": REAL}, film)
    sampling = dfdc.Sampling(frames=2, size=200, crop="none")
    (row,) = dfdc.extract(str(tmp_path), ["a.mp4"], sampling, str(tmp_path / "store"))
    assert row["cause"] == "undersized"
    assert row["details"] == "64 x 96, needed are 100 x 100"


# --- Splits


@pytest.mark.parametrize("mode", dfdc.MODES)
def test_splits_have_their_shares_of_each_label_and_leak_what_they_say(families, capsys, mode):
    data = make(families, mode)
    printed = capsys.readouterr().err
    for split, share in zip(dfdc.SPLITS, (0.6, 0.2, 0.2), strict=True):
        assert data.balance()[split]["frames"] == {"REAL": 40 * share, "FAKE": 80 * share}
        assert len(data.open(split)) == 120 * share
    leaks = data.leaks()
    for names, counts in leaks.items():
        assert f"in both {names}: {counts['videos']} videos, {counts['originals']} originals" in printed
    videos, originals = (sum(counts[kind] for counts in leaks.values()) for kind in ("videos", "originals"))
    assert (videos > 0, originals > 0) == {
        "random": (True, True), "hard": (False, True), "grouped": (False, False)
    }[mode]  # fmt: skip


@pytest.mark.parametrize("mode", dfdc.MODES)
def test_splits_depend_on_the_seed_alone(mode):
    listing = listing_of(FAMILIES)
    first, again, other = (dfdc.assign(mode, listing, 4, (0.6, 0.2, 0.2), seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_a_video_that_cannot_be_decoded_leaves_the_others_where_they_are(families):
    def places(data):
        return {data.contents.describe(i): int(split) for i, split in enumerate(data.assignment)}

    before = {mode: places(make(families, mode)) for mode in dfdc.MODES}
    next(pathlib.Path(families).rglob("f3_1.mp4")).write_bytes(b"broken")
    for mode in dfdc.MODES:
        data = make(families, mode)
        after = places(data)
        assert len(after) == len(before[mode]) - 4
        assert after.items() <= before[mode].items()
        assert [os.path.basename(name) for name in data.left_out["unreadable"]] == [
            "f3_1.mp4 (a file of text)"
        ]


def test_leaks_by_hand():
    # Video 0 in all splits, video 1 in train, its fake, video 2, in test; video 3 alone.
    assignment = np.array([0, 1, 2, 0, 2, 1])
    video = np.array([0, 0, 0, 1, 2, 3])
    original = np.array([0, 0, 0, 1, 1, 2])
    leaks = dfdc.count_leaks(assignment, video, original)
    assert leaks == {
        "train and validation": {"videos": 1, "originals": 1},
        "train and test": {"videos": 1, "originals": 2},
        "validation and test": {"videos": 1, "originals": 1},
    }
    dfdc.check_leaks("/d", "random", leaks)
    assert "1 videos are in both train and validation" in refusal(dfdc.check_leaks, "/d", "hard", leaks)
    only_originals = {names: counts | {"videos": 0} for names, counts in leaks.items()}
    dfdc.check_leaks("/d", "hard", only_originals)
    assert "1 originals are in both" in refusal(dfdc.check_leaks, "/d", "grouped", only_originals)


@hypothesis.settings(max_examples=60)
@hypothesis.given(
    st.lists(st.tuples(st.booleans(), st.integers(-1, 30)), min_size=1, max_size=40),
    st.integers(0, 9),
)
def test_groups_are_the_connected_components_and_never_cut(videos, seed):
    entries = {
        f"v{i:02}.mp4": {"label": "FAKE" if is_fake else "REAL",
                         "original": f"v{original:02}.mp4" if is_fake and original >= 0 else None}
        for i, (is_fake, original) in enumerate(videos)
    }  # fmt: skip
    listing = listing_of(entries)
    # Naive: join what shares a name until nothing changes.
    groups = [{name, entry["original"] or name} for name, entry in entries.items()]
    while any(a & b for i, a in enumerate(groups) for b in groups[:i]):
        i, j = next((i, j) for i, a in enumerate(groups) for j, b in enumerate(groups[:i]) if a & b)
        groups[j] |= groups.pop(i)
    of = {name: number for number, group in enumerate(groups) for name in group}
    same = np.array([of[name] for name in listing.paths])
    np.testing.assert_array_equal(same[:, None] == same, listing.originals[:, None] == listing.originals)
    plan = dfdc.assign("grouped", listing, 2, (0.5, 0.25, 0.25), seed)
    for group in set(same):
        assert len(np.unique(plan[same == group])) == 1


def test_uneven_groups_come_near_their_shares():
    rng = np.random.default_rng(0)
    entries = {}
    for i, size in enumerate(rng.integers(0, 12, size=150)):
        entries[f"r{i}.mp4"] = REAL
        entries |= {f"f{i}_{j}.mp4": fake(f"r{i}.mp4") for j in range(size)}
    listing = listing_of(entries)
    for seed in range(3):
        plan = dfdc.assign("grouped", listing, 1, (0.7, 0.1, 0.2), seed)[:, 0]
        for label in range(2):
            shares = np.bincount(plan[listing.labels == label], minlength=3) / (listing.labels == label).sum()
            np.testing.assert_allclose(shares, (0.7, 0.1, 0.2), atol=0.02)


# --- Metadata


def test_absent_unlisted_and_doubtful_videos_are_named(tmp_path, film, caplog):
    entries = FAMILIES | {
        "gone.mp4": REAL,
        "orphan1.mp4": fake("nowhere.mp4"),
        "orphan2.mp4": fake("nowhere.mp4"),
        "second.mp4": fake("f1_0.mp4"),
        "none.mp4": fake(None),
        "half\ud800.mp4": REAL,
    }
    write_part(tmp_path, entries, film, absent=("gone.mp4", "half\ud800.mp4"))
    shutil.copyfile(film, tmp_path / "unlisted.mp4")
    listing = dfdc.read_listing(str(tmp_path))
    assert listing.left_out == {
        "listed but absent": ("gone.mp4", "half\\ud800.mp4"), "present but not listed": ("unlisted.mp4",)
    }  # fmt: skip
    assert listing.doubtful == {
        "no original is given": ("none.mp4",),
        "their original is not listed": ("orphan1.mp4", "orphan2.mp4"),
        "their original is itself FAKE": ("second.mp4",),
    }
    of = dict(zip(listing.paths, listing.originals.tolist(), strict=True))
    assert of["orphan1.mp4"] == of["orphan2.mp4"]
    assert of["second.mp4"] == of["f1_0.mp4"] == of["r1.mp4"] != of["r2.mp4"]
    make(tmp_path, "grouped")
    for words in (
        "2 left out (listed but absent): gone.mp4",
        "1 used although their original is itself FAKE",
    ):
        assert sum(words in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "must be one JSON object of video names, not a list"),
        ('{"a.mp4": "FAKE"}', "has 'FAKE' for 'a.mp4', not an object"),
        ('{"a.mp4": {"label": "Fake"}}', "gives 'a.mp4' the label 'Fake'; it must be REAL or FAKE"),
        ('{"a.mp4": {"split": "test"}}', "the label None"),
        ('{"a.mp4": {"label": ["REAL"]}}', "it must be REAL or FAKE"),
        ('{"a.mp4": {"label": "FAKE", "original": 3}}', "gives 'a.mp4' the original 3"),
        ('{"../a.mp4": {"label": "REAL"}}', "lists '../a.mp4', but only names of files beside it"),
        ('{"/etc/passwd": {"label": "REAL"}}', "only names of files beside it"),
        ('{"..": {"label": "REAL"}}', "only names of files beside it"),
        ('{"a\\u0000.mp4": {"label": "REAL"}}', "only names of files beside it"),
        ('{"a.mp4": {"label": "REAL"}}', "no video that its metadata.json lists (1 listed but absent: a.mp4"),
        ("{}", "it is empty"),
    ],
)  # fmt: skip
def test_bad_metadata(tmp_path, text, words):
    (tmp_path / "metadata.json").write_text(text)
    assert words in refusal(dfdc.read_listing, str(tmp_path))


@pytest.mark.parametrize("above", ["dfdc_train_part_0", "dfdc_train_part_0.zip.unpacked"])
def test_parts_in_folders_of_their_own_are_found(tmp_path, above):
    names = sorted(FAMILIES)
    write_part(tmp_path / above / "dfdc_train_part_0", {name: FAMILIES[name] for name in names[:14]})
    write_part(tmp_path / "one" / "videos", {name: FAMILIES[name] for name in names[14:20]})
    write_part(tmp_path / "dfdc_train_part_2", {name: FAMILIES[name] for name in names[20:]})
    debris = tmp_path / "__MACOSX" / "dfdc_train_part_3"
    debris.mkdir(parents=True)
    (debris / "metadata.json").write_bytes(b"\0\5\x16\7")
    listing = dfdc.read_listing(str(tmp_path))
    assert {os.path.basename(path) for path in listing.paths} == {*names}
    assert not listing.left_out
    (tmp_path / above / "dfdc_train_part_0" / "metadata.json").unlink()
    missing = f"{above}/dfdc_train_part_0/metadata.json is missing"
    assert missing in refusal(dfdc.read_listing, str(tmp_path))


def test_metadata_with_a_byte_order_mark_is_read_and_utf16_is_refused(tmp_path):
    write_part(tmp_path, FAMILIES)
    text = json.dumps(FAMILIES, indent=1)
    (tmp_path / "metadata.json").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert len(dfdc.read_listing(str(tmp_path)).paths) == 30
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        (tmp_path / "metadata.json").write_bytes(text.encode(encoding))
        message = refusal(dfdc.read_listing, str(tmp_path))
        assert message == f"{tmp_path}/metadata.json is text in UTF-16, or no text at all; save it as UTF-8."
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "metadata.json").write_text(pointer)
    assert "metadata.json is a Git LFS pointer: run git lfs pull." in refusal(
        dfdc.read_listing, str(tmp_path)
    )


def test_missing_metadata(tmp_path, film):
    assert "it holds no folders and no videos" in refusal(dfdc.read_listing, str(tmp_path))
    shutil.copyfile(film, tmp_path / "a.mp4")
    message = refusal(dfdc.read_listing, str(tmp_path))
    assert "has no metadata.json, nor folders dfdc_train_part_* with one, nor these" in message
    assert "it holds a.mp4" in message
    write_part(tmp_path / "dfdc_train_part_0", {"b.mp4": REAL}, film)
    (tmp_path / "dfdc_train_part_1").mkdir()
    assert "dfdc_train_part_1/metadata.json is missing" in refusal(dfdc.read_listing, str(tmp_path))
    assert "There is no folder" in refusal(dfdc.read_listing, str(tmp_path / "dfdc"))
    assert "is a file" in refusal(dfdc.read_listing, str(tmp_path / "a.mp4"))


def test_links_do_not_lead_out(tmp_path, film):
    inside = tmp_path / "dfdc"
    write_part(inside, {"a.mp4": REAL, "out.mp4": REAL}, film, absent=("out.mp4",))
    (inside / "out.mp4").symlink_to(film)
    listing = dfdc.read_listing(str(inside))
    assert listing.paths == ("a.mp4",)
    assert listing.left_out == {"link out of the folder or to a folder": ("out.mp4",)}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (inside / ".ssl_jax").symlink_to(elsewhere)
    sampling = dfdc.Sampling(frames=1, size=None, crop="none")
    assert "leads out of" in refusal(dfdc._store_directory, str(inside), None, sampling)
    (inside / "metadata.json").unlink()
    (inside / "metadata.json").symlink_to(film)
    assert "leads out of" in refusal(dfdc.read_listing, str(inside))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "groupd"}, "No way to split is called 'groupd'; did you mean grouped"),
        ({"frames": 0}, "frames=0"),
        ({"size": 0}, "size=0"),
        ({"crop": "center"}, "No crop is called 'center'; did you mean centre"),
        ({"shares": (0.5, 0.5, 0.5)}, "shares=(0.5, 0.5, 0.5)"),
        ({"shares": (0.5, 0.5, 0.0)}, "three positive numbers"),
        ({"shares": (0.5, 0.5)}, "three positive numbers"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments(tmp_path, arguments, words):
    assert words in refusal(make, tmp_path / "not looked for", **arguments)


def test_a_split_of_one_label_is_refused_before_anything_is_decoded(tmp_path):
    write_part(tmp_path, {"a.mp4": REAL, "b.mp4": REAL, "c.mp4": REAL})
    message = refusal(make, tmp_path)
    assert "leaves train with 8 REAL and 0 FAKE of 12 and 0 frames, but both labels are needed" in message
    assert not (tmp_path / ".ssl_jax").exists()
    one_family = {"r.mp4": REAL} | {f"f{i}.mp4": fake("r.mp4") for i in range(9)}
    write_part(tmp_path, one_family)
    assert "leaves validation with 0 REAL and 0 FAKE" in refusal(make, tmp_path, "grouped")


def test_none_readable(tmp_path):
    write_part(tmp_path, FAMILIES)
    assert "None of the 30 videos" in refusal(make, tmp_path)


def test_names_of_splits_and_fields(families):
    data = make(families)
    assert "No split is called 'valid'; did you mean validation" in refusal(data.open, "valid")
    assert "did you mean label" in refusal(data.open, "train", ["labels"])


# --- The store


def store_of_four(path) -> pathlib.Path:
    """Where `make` stores frames here."""
    return pathlib.Path(path) / ".ssl_jax" / "frames" / f"v{dfdc.VERSION}-4-full-none"


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """The videos that were opened."""
    paths, real = [], dfdc.videos.probe

    def spy(root, path):
        paths.append(path)
        return real(root, path)

    monkeypatch.setattr(dfdc.videos, "probe", spy)
    return paths


def test_stored_once_and_again_when_something_changes(families, probed):
    make(families)
    assert len(probed) == 30
    make(families, "grouped")
    assert len(probed) == 30
    make(families, frames=3)
    assert len(probed) == 60
    next(store_of_four(families).glob("*.npy")).unlink()
    make(families)
    assert len(probed) == 61
    first = sorted(pathlib.Path(families).rglob("*.mp4"))[0]
    os.utime(first, ns=(0, 10**18))
    make(families)
    assert probed[61:] == [os.path.relpath(first, families)]


def test_an_interrupted_build_goes_on_where_it_stopped(families, monkeypatch, probed):
    monkeypatch.setattr(dfdc, "THREADS", 1)
    real, count = dfdc._store_video, []

    def interrupted(root, path, key, **where):
        count.append(path)
        if len(count) == 11:
            raise KeyboardInterrupt
        return real(root, path, key, **where)

    with monkeypatch.context() as patch:
        patch.setattr(dfdc, "_store_video", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(families)
    stored = len([*store_of_four(families).glob("*.npy")])
    assert 10 <= stored < 30
    probed.clear()
    make(families)
    assert len(probed) == 20


BUILD = """
import sys
from ssl_jax.data import dfdc
real = dfdc._store_video
dfdc.THREADS = 1
def slow(*args, **where):
    import time
    time.sleep(float(sys.argv[2]))
    return real(*args, **where)
dfdc._store_video = slow
data = dfdc.make(path=sys.argv[1], split="hard", frames=4, size=None, crop="none", shares=(.6, .2, .2))
print(len(data.contents))
"""


def test_killed_and_concurrent_builds(families):
    def start(pause):
        return subprocess.Popen([sys.executable, "-c", BUILD, families, pause], stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, text=True)  # fmt: skip

    killed = start("0.05")
    store, deadline = store_of_four(families), time.monotonic() + 60
    while len([*store.glob("*.npy")]) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    with open(store / "journal.jsonl", "ab") as journal:
        journal.write(b'{"key": "torn')
    (store / "left.tmp").write_bytes(b"half")
    both = [start("0"), start("0")]
    assert [process.communicate()[0].strip() for process in both] == ["120", "120"]
    assert len([*store.glob("*.npy")]) == 30
    assert not [*store.glob("*.tmp")]
    lines = [line for line in (store / "journal.jsonl").read_text().splitlines() if line.endswith("}")]
    assert len(lines) <= 31  # One video may have been stored, but not yet noted, when the first was killed.


@pytest.mark.parametrize(
    "row",
    [{"file": "../x.npy"}, {"shape": [9, 64, 96, 3]}, {"steps": ["0"]}, {"steps": None}, {"shape": "abcd"},
     {"steps": [0, 1, 2, -1]}, {"file": "a\0b"}, {"shape": []}, {"missing": 3}],
)  # fmt: skip
def test_a_journal_that_is_wrong_is_not_believed(families, row, probed):
    make(families)
    journal = store_of_four(families) / "journal.jsonl"
    rows = [json.loads(line) for line in journal.read_text().split("\n") if line]
    shutil.copy(journal.parent / rows[0]["file"], journal.parent.parent / "x.npy")
    journal.write_text("".join(json.dumps(r) + "\n" for r in [rows[0] | row, *rows[1:]]))
    probed.clear()
    make(families)
    assert probed == [rows[0]["path"]]


def test_a_stored_file_that_was_replaced_is_refused_when_it_is_read(families):
    source = make(families).open("train")
    file = pathlib.Path(source.store) / source.files[int(source.rows[0, 0])]
    np.save(file, np.array([{"an": "object"}] * 4), allow_pickle=True)
    with pytest.raises(ValueError):  # noqa: PT011
        source[0]
    np.save(file, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="holds no pictures"):
        source[0]


def test_frames_that_cannot_be_decoded_are_named(families, monkeypatch):
    real = dfdc.videos.read_frames

    def lossy(path, video, steps):
        found = real(path, video, steps)
        if path.endswith("r4.mp4"):
            del found[20]
        return found

    monkeypatch.setattr(dfdc.videos, "read_frames", lossy)
    data = make(families)
    (name,) = data.left_out["frames that cannot be decoded"]
    assert name.endswith("r4.mp4, frame 20")
    assert len(data.contents) == 119


def test_a_store_that_cannot_be_written(families, tmp_path_factory):
    file = tmp_path_factory.mktemp("cache") / "file"
    file.write_text("")
    assert "name a writable directory" in refusal(make, families, cache_dir=str(file))
    assert file.read_text() == ""
