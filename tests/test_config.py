"""Configs: parsing after the colon, keys against builders, flags, and claims on directories."""

import dataclasses
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_dict

from ssl_jax.runtime import config
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.fast

CONFIG_FILE = """
from ml_collections import ConfigDict, config_dict

from ssl_jax.runtime.config import parse_arg


def get_config(arg=None):
    preset, options = parse_arg(arg, presets=("smoke",), policy=("uniform", "gradient"))
    return ConfigDict({
        "experiment": "pretrain",
        "policy": options.policy,
        "train": {"steps": 5 if preset == "smoke" else 100, "rate": 0.1, "flip": True},
        "encoder": {"widths": (32, 64), "name": "compact"},
        "nothing": None,
        "seed": config_dict.placeholder(int),
    })
"""


@pytest.fixture
def config_file(tmp_path) -> str:
    path = tmp_path / "shuffle.py"
    path.write_text(CONFIG_FILE)
    return str(path)


# --- What follows the colon


def parse(arg):
    preset, options = config.parse_arg(
        arg,
        presets=("smoke", "paper"),
        policy=("uniform", "gradient"),
        batch=32,
        rate=0.5,
        grey=True,
    )
    return preset, vars(options)


@pytest.mark.parametrize("arg", [None, ""])
def test_no_arg_gives_the_defaults(arg):
    assert parse(arg) == (
        "default",
        {"policy": "uniform", "batch": 32, "rate": 0.5, "grey": True},
    )


def test_items_are_read_as_the_types_of_the_defaults():
    preset, options = parse("paper,policy=gradient,batch=8,rate=1,grey=false")
    assert preset == "paper"
    assert options == {"policy": "gradient", "batch": 8, "rate": 1.0, "grey": False}
    assert type(options["rate"]) is float
    assert parse("batch=8,paper")[0] == "paper"  # the preset need not come first


@pytest.mark.parametrize(
    ("arg", "sentence"),
    [
        ("papr", "unknown preset 'papr', did you mean 'paper'? known: default, smoke, paper"),
        ("paper,smoke", "two presets are given, 'paper' and 'smoke'"),
        ("polcy=uniform", "unknown option 'polcy', did you mean 'policy'?"),
        ("policy=gradeint", "'gradeint', did you mean 'gradient'? known: uniform, gradient"),
        ("policy=", "known: uniform, gradient"),
        ("batch=8.5", "option batch must be int, not '8.5'"),
        ("grey=maybe", "option grey must be bool, not 'maybe'"),
        ("batch=8,batch=9", "option 'batch' is given twice"),
        ("paper,", "two presets are given, 'paper' and ''"),
        ("zzz", "unknown preset 'zzz'; known: default, smoke, paper"),
    ],
)
def test_bad_args(arg, sentence):
    with pytest.raises(InputError) as caught:
        parse(arg)
    assert sentence in str(caught.value)


@given(st.text(alphabet="ab=,smoke0", max_size=12))
def test_any_text_is_read_or_refused_in_one_line(arg):
    try:
        preset, options = config.parse_arg(arg, presets=("smoke",), a=0, b="x")
    except InputError as error:
        preset, options = "default", types.SimpleNamespace(a=0, b=str(error))
    assert preset in ("default", "smoke")
    assert type(options.a) is int
    assert "\n" not in options.b


# --- Sections against builders


def make(
    *,
    width: int,
    widths: tuple[int, ...] = (1,),
    size: tuple[int, int] = (2, 2),
    rate: float = 0.1,
    name: str = "a",
    flip: bool = True,
    depth: int | None = None,
    pool: Literal["max", "mean"] = "max",
    clip: float | tuple[float, float] | None = None,
    mesh: object = None,
):
    return width


@dataclasses.dataclass
class Schedule:
    peak: float
    warmup: int = 10


def unpack(section, builder=make, **kwargs):
    return config.unpack(section, builder, path="encoder", **kwargs)


def test_unpack_gives_what_the_builder_takes():
    section = ConfigDict(
        {"width": 3, "widths": [1, 2, 3], "size": (4, 5), "rate": 1, "depth": None, "clip": [1, 2]}
    )
    got = unpack(section)
    assert got == {
        "width": 3,
        "widths": (1, 2, 3),
        "size": (4, 5),
        "rate": 1.0,
        "depth": None,
        "clip": (1.0, 2.0),
    }
    assert type(got["rate"]) is float
    assert type(got["clip"][0]) is float
    assert make(**got) == 3


def test_unpack_works_for_dataclasses_and_for_a_whole_config():
    assert Schedule(**unpack({"peak": 1}, Schedule)) == Schedule(peak=1.0, warmup=10)
    with pytest.raises(InputError, match=r"unknown key 'config\.peek', did you mean 'config\.peak'"):
        config.unpack({"peek": 1}, Schedule, path="")


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"width": 1, "widht": 2}, "unknown key 'config.encoder.widht', did you mean"),
        ({}, "config.encoder.width is missing; it must be int"),
        ({"width": 1.0}, "config.encoder.width must be int, not 1.0"),
        ({"width": True}, "config.encoder.width must be int, not True"),
        ({"width": 1, "flip": 1}, "config.encoder.flip must be bool, not 1"),
        ({"width": 1, "rate": False}, "config.encoder.rate must be float, not False"),
        ({"width": 1, "name": 3}, "config.encoder.name must be str, not 3"),
        ({"width": 1, "size": (1, 2, 3)}, "must be tuple[int, int], not (1, 2, 3)"),
        ({"width": 1, "widths": (1, 2.5)}, "must be tuple[int, ...], not (1, 2.5)"),
        ({"width": 1, "depth": "2"}, "config.encoder.depth must be int | None, not '2'"),
        ({"width": 1, "pool": "mode"}, "must be one of 'max', 'mean', not 'mode'"),
        ([1, 2], "config.encoder must be a section with keys, not [1, 2]"),
    ],
)
def test_unpack_refuses(section, sentence):
    with pytest.raises(InputError) as caught:
        unpack(section)
    assert sentence in str(caught.value)


def test_an_argument_from_elsewhere_is_no_key():
    assert unpack({"width": 1}, ignore=("mesh",)) == {"width": 1}
    with pytest.raises(InputError, match=r"unknown key 'config\.encoder\.mesh'"):
        unpack({"width": 1, "mesh": 2}, ignore=("mesh",))
    # A required argument that comes from elsewhere is not missing.
    assert unpack({"warmup": 2}, Schedule, ignore=("peak",)) == {"warmup": 2}


# --- Config files and flags


def test_load_with_overrides(config_file):
    overrides = {
        "train.steps": 7,
        "train.rate": 1e-3,
        "train.flip": False,
        "encoder.widths": (1, 2, 3),
        "encoder.name": "caffenet",
        "seed": 3,
    }
    loaded = config.load(f"{config_file}:smoke,policy=gradient", overrides)
    assert loaded.policy == "gradient"
    assert loaded.to_dict() | {"policy": 0} == {
        "experiment": "pretrain",
        "policy": 0,
        "train": {"steps": 7, "rate": 1e-3, "flip": False},
        "encoder": {"widths": (1, 2, 3), "name": "caffenet"},
        "nothing": None,
        "seed": 3,
    }
    assert loaded.is_locked
    assert config.load(config_file).train.steps == 100
    assert config.load(config_file, ["train.steps=8"]).train.steps == 8


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trian.steps=3", "unknown key config.trian.steps, did you mean config.train.steps?"),
        ("steps=3", "unknown key config.steps, did you mean config.train.steps?"),
        ("train.stpes=3", "unknown key config.train.stpes, did you mean config.train.steps?"),
        ("train.steps.more=3", "unknown key config.train.steps.more, did you mean"),
        ("qqq=3", "unknown key config.qqq; known: encoder.name, encoder.widths"),
        ("train.steps=many", "config.train.steps must be int (flag --config.train.steps=many"),
        ("train.steps=1.5", "config.train.steps must be int"),
        ("train.flip=perhaps", "config.train.flip must be bool"),
        ("encoder.widths=(1,", "config.encoder.widths must be tuple"),
        ("nothing=3", "config.nothing is None and has no type"),
    ],
)
def test_bad_overrides(config_file, override, sentence):
    with pytest.raises(InputError) as caught:
        config.load(config_file, [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_arg_reaches_the_user_as_it_is(config_file):
    with pytest.raises(InputError) as caught:
        config.load(f"{config_file}:smok")
    assert str(caught.value).startswith("unknown preset 'smok', did you mean 'smoke'?")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("x = 1", "has no function get_config"),
        ("def get_config(:", "is not valid Python, line 1"),
        ("def get_config(arg=None): return {}", "must return a ConfigDict, not {}"),
        ("def get_config(arg): ...", "get_config in"),
    ],
)
def test_bad_config_files(tmp_path, content, sentence):
    path = tmp_path / "bad.py"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        config.load(str(path))
    assert sentence in str(caught.value)


def test_missing_config_file_names_the_closest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("configs").mkdir()
    for name in ("jigsaw_rl.py", "dqn.py"):
        Path("configs", name).touch()
    with pytest.raises(InputError, match=r"did you mean configs/jigsaw_rl\.py\?"):
        config.load("configs/jigsaw.py:paper")
    with pytest.raises(InputError, match=r"did you mean configs/jigsaw_rl\.py\?"):
        config.load("jigsaw_rl")
    with pytest.raises(InputError, match=r"known: configs/dqn\.py, configs/jigsaw_rl\.py"):
        config.load("zzz.py")


def test_config_is_given_once(config_file):
    argv = ["main", f"--config={config_file}", "--config", config_file]
    with pytest.raises(InputError, match="--config is given twice"):
        config.parse_flags(argv)
    with pytest.raises(InputError, match="needs --config=FILE"):
        config.parse_flags(["main", "--config.train.steps=3"])


def test_config_code_never_starts_jax():
    code = "import sys, ssl_jax.runtime.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- Work directories


def example(*, steps=100, widths=(1, 2), seed=None) -> ConfigDict:
    return ConfigDict({"train": {"steps": steps, "rate": 0.1}, "widths": widths, "seed": seed})


def test_saved_config_equals_itself(tmp_path):
    config.save(tmp_path / "config.json", example())
    loaded = config.read(tmp_path / "config.json")
    assert config.difference(loaded, example()) == []
    assert loaded.train.steps == 100


def test_config_edited_by_hand_is_read_and_utf16_is_refused(tmp_path):
    path = tmp_path / "config.json"
    config.save(path, example())
    text = path.read_text()
    path.write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert config.difference(config.read(path), example()) == []
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(InputError, match=r"config\.json is text in UTF-16, or no text at all"):
        config.read(path)
    path = tmp_path / "config.py"
    path.write_text("def get_config(): pass\n", "utf-16")
    with pytest.raises(InputError, match=r"config\.py is text in UTF-16"):
        config._import_config(str(path))


def test_difference_names_each_key():
    new = example(steps=200, widths=(1, 2, 3), seed=1)
    new.train.extra = "x"
    del new.train["rate"]
    assert sorted(config.difference(example(), new)) == [
        "seed: null -> 1",
        'train.extra: (absent) -> "x"',
        "train.rate: 0.1 -> (absent)",
        "train.steps: 100 -> 200",
        "widths: [1, 2] -> [1, 2, 3]",
    ]
    assert config.difference(ConfigDict({"a": 1}), ConfigDict({"a": 1.0})) == ["a: 1 -> 1.0"]


def test_placeholders_are_saved(tmp_path):
    config.save(tmp_path / "c.json", ConfigDict({"seed": config_dict.placeholder(int)}))
    assert json.loads((tmp_path / "c.json").read_text()) == {"seed": None}


def test_claim_is_idempotent_and_refuses_another_config(tmp_path):
    workdir = tmp_path / "runs" / "a"
    assert config.claim_workdir(workdir, example()) == workdir
    before = (workdir / "config.json").read_bytes()
    config.claim_workdir(str(workdir), example())
    assert [path.name for path in workdir.iterdir()] == ["config.json"]
    (workdir / "metrics.jsonl").touch()
    with pytest.raises(InputError, match=r"another config: train\.steps: 100 -> 200; choose"):
        config.claim_workdir(workdir, example(steps=200))
    assert (workdir / "config.json").read_bytes() == before


@pytest.mark.parametrize("left", ["checkpoints/100", "results.json"])
def test_a_run_that_ended_before_it_had_anything_has_no_claim(tmp_path, left):
    config.claim_workdir(tmp_path, example())
    (tmp_path / "checkpoints").mkdir()
    config.claim_workdir(tmp_path, example(steps=200))
    assert config.difference(config.read(tmp_path / "config.json"), example(steps=200)) == []
    (tmp_path / left).touch()
    with pytest.raises(InputError, match=r"another config: train\.steps: 200 -> 100; choose"):
        config.claim_workdir(tmp_path, example())


def test_claim_with_other_keys_that_change_no_number_keeps_the_former_values(tmp_path):
    config.claim_workdir(tmp_path, example())
    (tmp_path / "checkpoints" / "50").mkdir(parents=True)
    new = example(widths=(3,), seed=1)
    with pytest.raises(InputError, match="another config: seed: null -> 1; choose"):
        config.claim_workdir(tmp_path, new, may_change=("widths",))
    config.claim_workdir(tmp_path, new, may_change=("widths", "seed"))
    assert config.read(tmp_path / "config.json").seed is None  # until the run goes on
    config.keep_changes(tmp_path, new)
    assert config.difference(config.read(tmp_path / "config.json"), new) == []
    config.keep_changes(tmp_path, new)
    (line,) = map(json.loads, (tmp_path / "config_changes.jsonl").read_text().splitlines())
    assert line["step"] == 50
    assert line["changes"] == {"seed": [None, 1], "widths": [[1, 2], [3]]}


def test_claim_of_a_longer_run_is_given_where_nothing_depends_on_its_end(tmp_path):
    config.claim_workdir(tmp_path, example())
    (tmp_path / "results.json").write_text("the shorter one's")
    longer = example(steps=200)
    fixed = config.Length("train.steps", "its rate falls to 0")
    with pytest.raises(
        InputError, match=r"longer \(config\.train\.steps: 100 -> 200\), because its rate falls"
    ):
        config.claim_workdir(tmp_path, longer, length=fixed)
    free = config.Length("train.steps")
    with pytest.raises(InputError, match=r"another config: train\.steps: 100 -> 50"):
        config.claim_workdir(tmp_path, example(steps=50), length=free)
    config.claim_workdir(tmp_path, longer, length=free)
    config.keep_changes(tmp_path, longer, free)
    assert (tmp_path / "results_100.json").read_text() == "the shorter one's"
    assert not (tmp_path / "results.json").exists()


def test_claim_refuses_what_it_cannot_use(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be used: File exists"):
        config.claim_workdir(tmp_path / "file", example())
    with pytest.raises(InputError, match="cannot be used: Not a directory"):
        config.claim_workdir(tmp_path / "file" / "run", example())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"a"')
    with pytest.raises(InputError, match="cannot be read as a config"):
        config.claim_workdir(tmp_path / "broken", example())
    (tmp_path / "orphan").mkdir()
    (tmp_path / "orphan" / "metrics.jsonl").write_text("precious\n")
    with pytest.raises(InputError, match=r"holds metrics\.jsonl but no config\.json"):
        config.claim_workdir(tmp_path / "orphan", example())
    assert (tmp_path / "orphan" / "metrics.jsonl").read_text() == "precious\n"


def test_presets_have_work_directories_of_their_own():
    assert config.default_workdir("configs/jigsaw_rl.py") == Path("runs/jigsaw_rl")
    assert config.default_workdir("configs/jigsaw_rl.py:paper,policy=uniform") == Path(
        "runs/jigsaw_rl-paper-policy=uniform"
    )
    assert config.default_workdir("c.py:data=a/../b").parent == Path("runs")


# --- Builders know no keys; the section adds them


def _builder(*, grid: tuple[int, int], share: float = 0.5, width: int = 8):
    if width < 0:
        raise InputError("There is no such width.")
    if width < 1:
        raise InputError("images of 3 x 3 pixels are too small for it")
    if share > 1:
        raise InputError(f"share must lie in [0, 1], not {share}.")
    if grid == (0, 0):
        raise InputError("config.data.image_size=(3, 3) leaves no room for a grid.")
    if min(grid) < 2:
        raise InputError(f"grid={grid} must have two rows and columns.")
    return grid, share, width


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"grid": (1, 2)}, "config.spatial.puzzle.grid=(1, 2) must have two rows and columns."),
        ({"grid": (2, 2), "share": 2.0}, "config.spatial.puzzle.share must lie in [0, 1], not 2.0."),
        ({"grid": (2, 2), "width": 0}, "config.spatial.puzzle: images of 3 x 3 pixels are too small for it"),
        ({"grid": (2, 2), "width": -1}, "config.spatial.puzzle: there is no such width."),
        ({"grid": (0, 0)}, "config.data.image_size=(3, 3) leaves no room for a grid."),
        ({"gird": (2, 2)}, "unknown key 'config.spatial.puzzle.gird'"),
    ],
)
def test_error_of_a_builder_gets_the_key_of_its_section(section, sentence):
    with pytest.raises(InputError) as error:
        config.build(_builder, section, path="spatial.puzzle")
    assert str(error.value).startswith(sentence)


def test_arguments_from_elsewhere_are_no_keys():
    assert config.build(_builder, {"grid": [3, 2]}, path="p", share=1.0) == ((3, 2), 1.0, 8)
    with pytest.raises(InputError, match=r"unknown key 'config\.p\.share'"):
        config.build(_builder, {"grid": (3, 2), "share": 0.1}, path="p", share=1.0)
