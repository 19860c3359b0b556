import json
import pathlib
import shutil
import subprocess
import sys

import cloudpickle
import numpy as np
import pytest

from ssl_jax.data import sources
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.fast


def refusal(**arguments) -> str:
    """Returns the sentence with which `make` refuses."""
    with pytest.raises(InputError) as error:
        sources.make(**arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_atari_frames_has_all_splits_of_its_own(atari_tiny_dir):
    found = sources.make(name="atari_frames/tiny", data_dir=atari_tiny_dir)
    assert found.splits == {split: split for split in sources.SPLITS}
    assert [len(found.open(split)) for split in sources.SPLITS] == [320, 80, 160, 160]
    assert found.class_names("game") == ("breakout", "pong")
    example = found.open("test", ("ram", "game", "step", "terminal"))[159]
    assert example["image"].startswith(b"\x89PNG")
    assert (example["ram"].shape, example["ram"].dtype) == ((128,), np.uint8)
    assert (example["game"], example["game"].dtype) == (1, np.int64)
    assert (example["step"].dtype, example["terminal"].dtype) == (np.int32, np.bool_)


def test_missing_splits_are_cut_from_train(odd_pictures_dir):
    found = sources.make(name="odd_pictures", data_dir=odd_pictures_dir)
    assert found.splits == {
        "selection": "train[0%:1%]",
        "validation": "train[1%:2%]",
        "train": "train[2%:]",
        "test": "test",
    }
    assert [len(found.open(split)) for split in sources.SPLITS] == [196, 2, 2, 10]
    # Example i has label i % 4: the first of `train` is example 4 of the data set.
    assert found.open("train", ["label"])[0]["label"] == 0
    assert found.open("validation", ["label"])[1]["label"] == 3


def test_missing_test_is_cut_from_train_for_an_evaluation():
    opened = ("train", "test")
    assert sources.choose_splits(["train"], opened=opened) == {"train": "train[1%:]", "test": "train[0%:1%]"}
    own = ["train", "validation"]
    assert sources.choose_splits(own, opened=opened) == {"train": "train", "test": "validation"}
    given = {"test": "train[90%:]", "train": "train[:90%]"}
    assert sources.choose_splits(["train"], given, opened=opened) == given
    assert sources.choose_splits(["train"], opened=("train",)) == {"train": "train"}


def test_fields_are_those_asked_for(odd_pictures_dir):
    found = sources.make(name="odd_pictures", data_dir=odd_pictures_dir)
    assert found.open("test")[0].keys() == {"image"}
    assert found.open("test", ["label"])[0].keys() == {"image", "label"}
    assert sources.blank(found.open("test", ["label"])) == {"label": 0}
    with pytest.raises(InputError, match=r"No field of odd_pictures is called 'labl'.* label"):
        found.open("test", ["labl"])
    with pytest.raises(InputError, match="boxes"):  # Of another length in every example.
        found.open("test", ["boxes"])


def test_sources_travel_to_other_processes(atari_tiny_dir):
    source = sources.make(name="atari_frames/tiny", data_dir=atari_tiny_dir).open("test", ["ram"])
    copy = cloudpickle.loads(cloudpickle.dumps(source))
    assert copy[7]["image"] == source[7]["image"]
    np.testing.assert_array_equal(copy[7]["ram"], source[7]["ram"])


def test_splits_can_be_replaced(odd_pictures_dir):
    arguments = {"name": "odd_pictures", "data_dir": odd_pictures_dir}
    splits = {"train": "train[:50%]", "validation": "train[50%:]", "selection": "test[:5]"}
    found = sources.make(**arguments, splits=splits | {"test": "test[5:]"})
    assert [len(found.open(split)) for split in sources.SPLITS] == [100, 5, 100, 5]
    assert "did you mean validation" in refusal(**arguments, splits={"validaton": "train"})
    assert "train[2%:]" in refusal(**arguments, splits={"validation": "train[1%:3%]"})
    assert "share examples" in refusal(**arguments, splits={"selection": "train[1%:2%]"})
    assert "test (10 examples)" in refusal(**arguments, splits={"test": "tset"})
    assert "train[:90%]" in refusal(**arguments, splits={"train": "train[90"})
    assert "is empty" in refusal(**arguments, splits={"selection": "train[:0]"})


def test_unknown_data_sets_name_the_closest(tmp_path):
    sentence = refusal(name="imagnet2012", data_dir=str(tmp_path))
    assert "imagenet2012" in sentence
    assert str(tmp_path) in sentence
    assert "did you mean tiny" in refusal(name="atari_frames/tny", data_dir=str(tmp_path))
    refusal(name="no name", data_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_unprepared_data_sets_say_how_to_prepare_them(tmp_path):
    sentence = refusal(name="cifar10", data_dir=str(tmp_path))
    assert f"cifar10 is not prepared in {tmp_path}" in sentence
    command = sentence[sentence.index("python -c ") :].split('"')[1]
    assert f"tfds.builder('cifar10', data_dir='{tmp_path}', file_format='array_record')" in command
    compile(command, "command", "exec")


def test_a_format_without_random_access_says_how_to_convert(odd_pictures_dir, tmp_path):
    copy = tmp_path / "odd_pictures"
    shutil.copytree(pathlib.Path(odd_pictures_dir) / "odd_pictures", copy)
    info = copy / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    sentence = refusal(name="odd_pictures", data_dir=str(tmp_path))
    assert f"tfds convert_format --dataset_version_dir={info.parent}" in sentence


def test_reads_without_tensorflow_and_imports_tfds_late(odd_pictures_dir):
    program = f"""
import sys
from ssl_jax.data import pipeline, sources
assert "tensorflow_datasets" not in sys.modules
sources.make(name="odd_pictures", data_dir={odd_pictures_dir!r}).open("train", ["label"])[0]
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
