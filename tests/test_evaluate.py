"""The evaluation of a pre-training run, as a whole."""

import dataclasses
import functools
import io
import json
import shutil
from pathlib import Path

import films
import jax
import numpy as np
import pytest
import runs
from rich.console import Console

from ssl_jax.data import pipeline
from ssl_jax.evaluation.features import collect
from ssl_jax.experiments import evaluate, pretrain
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.checkpoints import Checkpoints
from ssl_jax.runtime.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"
RUN = runs.SMALL_PUZZLES | {
    "spatial.head.fc6": 8,
    "spatial.head.fc7": 16,
    "encoder.width": 8,
}
ALL_OFF = {f"{name}.enabled": False for name in ("linear_probe", "retrieval", "finetune", "state_probe")}


def load(name, overrides):
    return config_lib.load(f"{CONFIGS / name}:smoke", {key: str(value) for key, value in overrides.items()})


def make_run(directory, overrides):
    """The work directory of a run with two checkpoints: that of step 10 is the better one, 20 the newer."""
    config = load("jigsaw_rl.py", overrides)
    config_lib.claim_workdir(directory, config)
    setup = pretrain.setup_from_config(config)
    shapes = jax.eval_shape(functools.partial(pretrain.create_state, setup), jax.random.PRNGKey(0))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(leaf.dtype), shapes)
    checkpoints = Checkpoints(directory / "checkpoints", best_metric="val/accuracy")
    metrics = metrics_lib.Metrics(directory, resume_step=None)
    for step, accuracy in ((10, 0.5), (20, 0.4)):
        metrics.write(step, {"val/accuracy": accuracy})
        checkpoints.save(
            step, state.replace(params=jax.tree.map(lambda leaf, by=step: leaf + by, state.params)), {}
        )
    checkpoints.close()
    metrics.close()
    return directory


@pytest.fixture(scope="module")
def run_dir(atari_tiny_dir, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "jigsaw", RUN | {"data.data_dir": atari_tiny_dir})


def setup_of(run_dir, **overrides):
    return evaluate.setup_from_config(load("evaluate.py", {"checkpoint": run_dir} | overrides))


def whole(run_dir, workdir, **overrides):
    return evaluate.run(load("evaluate.py", {"checkpoint": run_dir} | overrides), workdir)


@pytest.fixture(scope="module")
def judged(run_dir):
    """Everything once, as at the end of the run, on the four devices of the tests."""
    config = config_lib.load(
        f"{CONFIGS / 'jigsaw_rl.py'}:smoke,evaluation=all", {"evaluation.state_probe.enabled": "true"}
    )
    pretrain.evaluation(config, run_dir)()
    workdir = run_dir / "evaluation"
    return workdir, json.loads((workdir / "results.json").read_text())


def test_smoke_fills_its_work_directory(judged, run_dir):
    workdir, results = judged
    assert {path.name for path in workdir.iterdir()} >= {"config.json", "metrics.jsonl", "results.json"}
    assert {path.name for path in (workdir / "figures").iterdir()} == {
        f"{name}_{encoder}.png" for name in ("neighbours", "map") for encoder in ("trained", "random")
    } | {f"{name}.png" for name in ("linear_probe", "retrieval_frame", "retrieval_video",
                                   "probe_by_category", "probe_by_game")}  # fmt: skip
    assert "<title>" in (workdir / "report.html").read_text()
    stored = json.loads((workdir / "results.json").read_text())
    assert stored["final"] == pytest.approx(results["final"])
    assert stored["checkpoint"] == {"directory": str(run_dir), "which": "best", "step": 10}
    assert stored["run"] == json.loads((run_dir / "config.json").read_text())
    assert stored["evaluations"].keys() == {"trained", "random", "majority"}
    names = stored["final"].keys()
    assert {f"linear_probe/conv{i}/{score}" for i in (1, 2, 3)
            for score in ("accuracy", "balanced_accuracy", "macro_f1")} <= names  # fmt: skip
    assert {f"retrieval/{unit}/top1" for unit in ("frame", "video", "state")} <= names
    assert "retrieval/clip/top1" not in names  # every other frame was read: none are successive
    assert stored["data"] == {
        "name": "atari_frames/tiny",
        "splits": {split: split for split in ("train", "selection", "validation", "test")},
        "split_folders": {},
        "same_as_in_training": True,
        "unit": "picture",
        "frames_per_video": None,
    }
    assert {"retrieval/state/chance", "finetune/accuracy", "finetune/balanced_accuracy"} <= names
    for readout, part in (("positions", "probe"), ("cells", "probe_cells")):
        f1 = stored[part]["encoders"]["trained"]["mean_f1"]
        assert stored["final"][f"state_probe/{readout}/mean_f1"] == f1
    majority = stored["evaluations"]["majority"]
    assert majority.keys() == {"state_probe/positions/mean_f1", "state_probe/cells/mean_f1"}
    assert len(set(majority.values())) == 1
    (line,) = metrics_lib.read(workdir / "metrics.jsonl")
    assert line["step"] == 10
    assert line["random/retrieval/frame/top1"] == stored["evaluations"]["random"]["retrieval/frame/top1"]


def test_a_finished_evaluation_only_shows_its_numbers(judged, run_dir, monkeypatch, capsys):
    workdir, results = judged
    monkeypatch.delattr(evaluate, "evaluate")
    assert whole(run_dir, workdir)["final"] == pytest.approx(results["final"])
    assert "retrieval/frame/top1" in capsys.readouterr().out


def test_the_table_has_every_number_beside_that_of_the_random_encoder():
    results = {
        "checkpoint": {"directory": "runs/[bold]x", "step": 5},
        "label": "game",
        "evaluations": {"trained": {"finetune/accuracy": 0.75}, "random": {"finetune/accuracy": 0.5}},
    }
    text = io.StringIO()
    evaluate.print_results(results, Console(file=text, width=200))
    (row,) = (line for line in text.getvalue().splitlines() if "finetune/accuracy" in line)
    assert [number in row for number in ("0.750", "0.500", "+0.250")] == [True] * 3
    assert "runs/[bold]x, step 5" in text.getvalue()


# --- Every example once


@pytest.mark.parametrize("devices", [1, 4])
def test_every_example_counts_once(run_dir, devices, monkeypatch):
    """45 examples do not fill batches of 8; each is there once, with its own features."""
    monkeypatch.setattr(mesh_lib, "make", lambda count=devices, make=mesh_lib.make: make(count))
    setup = setup_of(run_dir, **{"data.test_examples": 45})
    around = evaluate.open_surroundings(setup, evaluate.load_encoders(setup, 10), Path())
    assert around.mesh.size == devices
    encoders = evaluate.feature_functions(setup, around, "conv2", evaluate.cells((2, 1)))
    rows = collect(evaluate.open_split(setup, around, "test", ("game", "ram")), encoders)
    assert len(rows.fields["index"]) == len(set(rows.fields["index"])) == 45
    variables = evaluate.network_variables(evaluate.restore_encoder(setup, 10))
    alone = pretrain.feature_function(setup.run, variables, evaluate.cells((2, 1)), "conv2")
    source = around.data.open("test", ("game", "ram"))
    options = pipeline.EvaluationOptions(batch_size=64, image_size=setup.run.data.image_size)
    whole_split = pipeline.load_arrays(source, options)
    for place in (0, 17, 44):
        index = rows.fields["index"][place]
        np.testing.assert_array_equal(rows.fields["ram"][place], source[int(index)]["ram"])
        np.testing.assert_allclose(
            rows.features["trained"][place],
            alone(whole_split["image"][index : index + 1])[0],
            rtol=1e-4,
            atol=1e-4,
        )
    assert not np.allclose(rows.features["trained"], rows.features["random"])


# --- Which encoder


def test_the_checkpoint_that_is_asked_for(run_dir):
    steps = {
        which: evaluate.choose_step(setup_of(run_dir, which=which)) for which in ("best", "last", "random")
    }
    assert steps == {"best": 10, "last": 20, "random": None}
    setup = setup_of(run_dir)
    kernels = {
        step: evaluate.load_encoders(setup, step)["trained"]["params"]["conv1"]["kernel"] for step in (10, 20)
    }
    np.testing.assert_allclose(kernels[20] - kernels[10], 10, rtol=1e-5)
    assert evaluate.load_encoders(setup, None).keys() == {"random"}
    assert evaluate.load_encoders(setup_of(run_dir, baseline=False), 10).keys() == {"trained"}


def test_a_random_encoder_needs_no_checkpoint(tmp_path, atari_tiny_dir):
    config_lib.claim_workdir(tmp_path / "run", load("jigsaw_rl.py", RUN | {"data.data_dir": atari_tiny_dir}))
    only = ALL_OFF | {"retrieval.enabled": True, "which": "random"}
    results = whole(tmp_path / "run", tmp_path / "evaluation", **only)
    assert results["checkpoint"]["step"] is None
    assert results["evaluations"].keys() == {"random"}
    assert results["final"].keys() == results["evaluations"]["random"].keys()
    assert all(name.startswith("retrieval/") for name in results["final"])


def test_pictures_with_labels_alone(tmp_path, odd_pictures_dir):
    """No RAM, no episodes: classes are labels, frames are all there is, bad pictures are counted."""
    odd = {
        "data.name": "odd_pictures",
        "data.data_dir": odd_pictures_dir,
        "data.image_size": (44, 50),
        "spatial.puzzle.window": (42, 48),
        "spatial.puzzle.tile": (12, 14),
    }
    config_lib.claim_workdir(tmp_path / "run", load("jigsaw_rl.py", RUN | odd))
    options = {"linear_probe.layers": ("conv3",), "data.train_examples": 198, "finetune.enabled": False}
    results = whole(tmp_path / "run", tmp_path / "evaluation", which="random", **options)
    assert results["label"] == "label"
    assert results["bad_images"] == {"unreadable": 2, "undersized": 1}
    units = {name.split("/")[1] for name in results["final"] if name.startswith("retrieval/")}
    assert units == {"frame"}
    assert "probe" not in results


# --- Which data, and how they are divided


def configured(directory, **data):
    """The work directory of a run of a given section `data`, without a checkpoint."""
    overrides = RUN | {f"data.{name}": value for name, value in data.items()}
    config_lib.claim_workdir(directory, load("jigsaw_rl.py", overrides))
    return directory


def test_other_data_are_not_divided_as_those_of_the_run(tmp_path, atari_tiny_dir):
    """A run tested on `validation`, as those on ImageNet are, is judged on the other data's own `test`."""
    run = configured(tmp_path / "run", **{"name": "imagenet2012", "splits.test": "validation"})
    data = {"data.name": "atari_frames/tiny", "data.data_dir": atari_tiny_dir}
    setup = setup_of(run, **data)
    assert not setup.same_data
    assert evaluate.open_data(setup).splits == {split: split for split in ("train", "validation", "test")}
    setup = setup_of(run, **data, **{"data.splits.test": "train[:50%]", "data.splits.train": "train[50%:]"})
    assert evaluate.open_data(setup).splits["test"] == "train[:50%]"


def test_the_same_data_are_divided_as_in_the_run(tmp_path, odd_pictures_dir):
    run = configured(
        tmp_path / "run", name="odd_pictures", data_dir=odd_pictures_dir, **{"splits.test": "train[1%:2%]"}
    )
    expected = {"selection": "train[0%:1%]", "validation": "train[1%:2%]", "train": "train[2%:]"}
    for named in ({}, {"data.name": "odd_pictures"}):
        setup = setup_of(run, **named)
        assert evaluate.open_data(setup).splits == expected | {"test": "train[1%:2%]"}
    # What is given for the evaluation alone replaces the run's; what is not stays.
    setup = setup_of(run, **{"data.splits.test": "test"})
    assert setup.same_data
    assert evaluate.open_data(setup).splits == {
        "train": "train[2%:]", "validation": "train[1%:2%]", "test": "test"}  # fmt: skip


def test_train_and_validation_together_can_be_learned_from(tmp_path, atari_tiny_dir):
    """As is usual on Pascal VOC; nothing is set aside for a `selection` that no evaluation opens."""
    run = configured(tmp_path / "run", name="imagenet2012")
    splits = {"train": "train+validation[:80%]", "validation": "validation[80%:]"}
    given = {f"data.splits.{split}": text for split, text in splits.items()}
    setup = setup_of(run, **given, **{"data.name": "atari_frames/tiny", "data.data_dir": atari_tiny_dir})
    data = evaluate.open_data(setup)
    assert data.splits == splits | {"test": "test"}
    own = {split: info.num_examples for split, info in data.builder.info.splits.items()}
    assert len(data.open("train")) == own["train"] + round(0.8 * own["validation"])
    overlapping = {"data.splits.train": "train+validation", "data.name": "atari_frames/tiny"}
    with pytest.raises(InputError, match=r"train .* and validation .* share examples"):
        evaluate.open_data(setup_of(run, **overlapping, **{"data.data_dir": atari_tiny_dir}))


def test_all_of_train_is_learned_from_where_nothing_is_selected(tmp_path, odd_pictures_dir):
    run = configured(tmp_path / "run")
    setup = setup_of(run, **{"data.name": "odd_pictures", "data.data_dir": odd_pictures_dir})
    assert evaluate.open_data(setup).splits == {
        "train": "train[1%:]", "validation": "train[0%:1%]", "test": "test"}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "same", "replaced"),
    [
        ({}, True, {}),
        ({"name": "videos"}, True, {}),
        ({"path": "/ucf", "fold": 2}, True, {"fold": 2}),
        ({"annotations": "/lists", "image_size": (224, 224)}, True, {"image_size": (224, 224)}),
        ({"path": "/hmdb"}, False, {"path": "/hmdb", "annotations": None, "fold": 1, "splits": {}}),
        ({"annotations": "/new"}, False, {"annotations": "/new", "fold": 1, "splits": {}}),
        (
            {"name": "folder", "path": "/ucf", "data_dir": "/d"},
            False,
            {
                "name": "folder",
                "path": "/ucf",
                "annotations": None,
                "fold": 1,
                "splits": {},
                "data_dir": "/d",
            },
        ),
    ],
)
def test_what_is_taken_over_from_the_run(given, same, replaced):
    run = pretrain.Data(
        name="videos",
        path="/ucf",
        annotations="/lists",
        fold=3,
        splits={"train": "train[5%:]"},
        image_size=(60, 56),
    )
    assert evaluate.data_config(run, evaluate.Data(**given)) == (same, replaced)


def test_data_of_the_run_are_known_by_another_spelling_of_their_place(tmp_path):
    videos, lists = tmp_path / "videos", tmp_path / "lists"
    videos.mkdir(), lists.mkdir()
    (tmp_path / "link").symlink_to(videos)
    run = pretrain.Data(name="videos", path=str(videos), annotations=str(lists), fold=2, image_size=(60, 56))
    for given in ({"path": f"{videos}/"}, {"path": str(tmp_path / "link")}, {"annotations": f"{lists}/"}):
        assert evaluate.data_config(run, evaluate.Data(**given)) == (True, {})
    assert not evaluate.data_config(run, evaluate.Data(path=str(lists)))[0]
    frames = pretrain.Data(name="atari_frames", image_size=(60, 56))
    assert evaluate.data_config(frames, evaluate.Data(name="atari_frames/default")) == (True, {})
    assert not evaluate.data_config(frames, evaluate.Data(name="atari_frames/tiny"))[0]


def test_run_is_judged_on_pictures_of_another_size_than_its_window(run_dir):
    setup = setup_of(run_dir, **{"data.image_size": (40, 44)})
    assert setup.run.data.image_size == (40, 44)
    assert setup.run.tasks[0].puzzle.window == (54, 54)
    assert pretrain.map_shape(setup.run, "conv1")[:2] == (24, 24)  # 3 x 3 parts of 16, whose conv1 is 8 x 8


def test_run_whose_training_would_be_refused_today_is_judged(run_dir, tmp_path):
    config = json.loads((run_dir / "config.json").read_text())
    config["spatial"]["selection"]["period"] = 1000
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert setup_of(tmp_path).run.train.steps < 1000
    with pytest.raises(InputError, match=r"period=1000 is longer than config\.train\.steps"):
        pretrain.setup_from_config(config_lib.read(tmp_path / "config.json"))


def test_evaluation_inside_of_a_run_goes_where_the_run_goes(judged, run_dir, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(run_dir, moved)
    config = config_lib.load(
        f"{CONFIGS / 'jigsaw_rl.py'}:smoke,evaluation=all", {"evaluation.state_probe.enabled": "true"}
    )
    monkeypatch.delattr(evaluate, "evaluate")  # it is finished, and only shown
    pretrain.evaluation(config, moved)()
    assert json.loads((moved / "evaluation" / "config.json").read_text())["checkpoint"] == str(moved)
    # Elsewhere, another checkpoint is another config.
    shutil.copytree(moved / "evaluation", tmp_path / "alone")
    with pytest.raises(InputError, match=r"belongs to another config: .*checkpoint"):
        whole(run_dir, tmp_path / "alone")


def test_an_example_without_a_class_is_named(run_dir):
    setup = setup_of(run_dir)
    around = evaluate.open_surroundings(setup, {}, Path())
    with pytest.raises(
        InputError, match=r"test \(test\) of atari_frames/tiny .*--config\.data\.splits\.test="
    ):
        evaluate.check_labelled(around, "test", np.array([1, -1]))


@pytest.fixture(scope="module")
def ucf(tmp_path_factory):
    """Two classes of six videos of 4 to 34 frames, and official lists of three folds."""
    root, lists = tmp_path_factory.mktemp("ucf"), tmp_path_factory.mktemp("lists")
    names = [f"{kind}/v_{kind}_g{group:02}_c01" for kind in ("Archery", "Diving") for group in range(6)]
    for number, name in enumerate(names):
        content = films.moving if "Diving" in name else films.picture
        films.write(root / f"{name}.avi", 4 + 6 * (number % 6), "mpeg4", content=content)
    for fold in (1, 2, 3):
        test = {name for name in names if int(name[-6:-4]) in (fold, fold + 1)}
        (lists / f"testlist{fold:02}.txt").write_text("".join(f"{name}.avi\n" for name in sorted(test)))
        (lists / f"trainlist{fold:02}.txt").write_text(
            "".join(f"{name}.avi {1 + ('Diving' in name)}\n" for name in names if name not in test)
        )
    return {"data.name": "videos", "data.path": str(root), "data.annotations": str(lists)}


def test_each_fold_has_its_own_test_videos(tmp_path, ucf):
    run = configured(tmp_path / "run")
    found = {}
    for fold in (1, 2, 3):
        setup = setup_of(run, **ucf, **{"data.fold": fold})
        source = evaluate.open_data(setup).open("test")
        found[fold] = {video.path[-10:-8] for video in source.videos}
    assert found == {1: {"01", "02"}, 2: {"02", "03"}, 3: {"03", "04"}}


def test_fold_of_other_data_than_videos_is_refused(run_dir):
    with pytest.raises(InputError, match=r"config\.data\.fold=2 is of the official splits of videos"):
        setup_of(run_dir, **{"data.fold": 2})


def test_every_video_counts_once_whatever_its_length(tmp_path, ucf):
    """From end to end: as many frames of each are read, and videos are what is scored."""
    run = configured(tmp_path / "run")
    options = {"linear_probe.layers": ("conv3",), "state_probe.enabled": False, "data.frames_per_video": 3}
    results = whole(run, tmp_path / "evaluation", which="random", **ucf, **options)
    assert results["data"]["unit"] == "video"
    assert results["data"]["splits"] == {
        "train": "train[7%:]",
        "validation": "train[0%:7%]",
        "test": "test",
    }
    final = results["final"]
    assert {"linear_probe/conv3/frame_accuracy", "finetune/frame_accuracy"} <= final.keys()
    # 4 test videos of 3 frames.
    for name in ("linear_probe/conv3", "finetune"):
        assert final[f"{name}/accuracy"] in (0, 0.25, 0.5, 0.75, 1)
        assert final[f"{name}/frame_accuracy"] * 12 == pytest.approx(
            round(final[f"{name}/frame_accuracy"] * 12)
        )
    assert {name.split("/")[1] for name in final if name.startswith("retrieval/")} == {"frame", "video"}
    assert "videos" in (tmp_path / "evaluation" / "report.html").read_text()


# --- What cannot be


def test_another_encoder_than_the_configs_is_named(run_dir, tmp_path):
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "checkpoints").symlink_to(run_dir / "checkpoints")
    config = json.loads((run_dir / "config.json").read_text())
    config["encoder"]["width"] = 16
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as error:
        whole(changed, tmp_path / "evaluation")
    sentence = str(error.value)
    assert (
        "another encoder than its config.json: params/conv1/bias is float32[4] in the checkpoint" in sentence
    )
    assert "float32[8] by the config" in sentence
    assert "\n" not in sentence
    assert not (tmp_path / "evaluation" / "results.json").exists()


def test_an_encoder_that_is_not_finite_names_the_tensor(run_dir, tmp_path):
    setup = setup_of(run_dir)
    encoder = jax.tree.map(np.array, evaluate.restore_encoder(setup, 10))
    encoder["params"]["conv1"]["bias"][1] = np.nan
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(10, {name: {"encoder": tree} for name, tree in encoder.items()}, {})
    checkpoints.close()
    (tmp_path / "config.json").write_bytes((run_dir / "config.json").read_bytes())
    with pytest.raises(InputError, match=r"checkpoint 10 in \S+ holds NaN .* in params/conv1/bias \(1 of 4 "):
        whole(tmp_path, tmp_path / "evaluation")


@pytest.mark.parametrize("part", ["linear_probe", "retrieval", "state_probe"])
def test_features_that_overflow_name_encoder_layer_and_share(run_dir, tmp_path, part):
    """Weights that are finite, and too large for what they make of a picture."""
    setup = setup_of(run_dir)
    encoder = jax.tree.map(np.array, evaluate.restore_encoder(setup, 10))
    encoder["params"]["conv2"] = jax.tree.map(lambda x: np.full_like(x, 3e38), encoder["params"]["conv2"])
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(10, {name: {"encoder": tree} for name, tree in encoder.items()}, {})
    checkpoints.close()
    (tmp_path / "config.json").write_bytes((run_dir / "config.json").read_bytes())
    key = "linear_probe.layers" if part == "linear_probe" else f"{part}.layer"
    layer = ("conv2",) if part == "linear_probe" else "conv2"
    with pytest.raises(InputError, match=r"% of the numbers .* 'trained' gives at the layer 'conv2', in 100"):
        whole(tmp_path, tmp_path / "evaluation", **ALL_OFF | {f"{part}.enabled": True, key: layer})


def broken(tmp_path, run_dir, what):
    """A directory that is no run, has no checkpoint, is of another experiment, or of an old config."""
    directory = tmp_path / what
    directory.mkdir()
    config = json.loads((run_dir / "config.json").read_text())
    if what == "dueling":
        config["experiment"] = "dueling_dqn"
    if what == "old":
        config["encodr"] = config.pop("encoder")
    if what != "nothing":
        (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("nothing", "is not the work directory of a run: it has no config.json"),
        ("no_checkpoint", "there is no checkpoint in"),
        ("dueling", "is a run of 'dueling_dqn'; only those of 'pretrain' have an encoder"),
        ("old", r"the config of the run in .*old cannot be used: .*config\.encodr.*did you mean"),
    ],
)
def test_what_is_no_run_is_named(tmp_path, run_dir, what, sentence):
    workdir = tmp_path / "evaluation"
    with pytest.raises(InputError, match=sentence):
        whole(broken(tmp_path, run_dir, what), workdir)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            {"linear_probe.layers": ("conv9",)},
            r"unknown config.linear_probe.layers 'conv9', did you mean 'conv",
        ),
        ({"finetune.from_layer": "conv4"}, "unknown config.finetune.from_layer 'conv4'"),
        ({"finetune.layer_decay": 2.0}, "config.finetune.layer_decay must lie in"),
        ({"data.train_examples": 0}, "config.data.train_examples must be at least 1"),
        ({"retrieval.pool": (99, 1)}, r"config.retrieval.pool=\(99, 1\) must have from 1 to"),
        ({"state_probe.pool": (1, 0)}, r"config.state_probe.pool=\(1, 0\) must have from 1 to"),
        ({"finetune.pool": (1, 99)}, r"config.finetune.pool=\(1, 99\) must have from 1 to"),
        ({"which": "newest"}, "config.which must be one of 'best', 'last', 'random'"),
        ({"data.batch_size": 6}, "multiples of the 4 devices"),
        ({"finetune.batch_size": 6}, "multiples of the 4 devices"),
        ({"data.label": "ram"}, "no class label 'ram' .* it has: game"),
        (ALL_OFF, "nothing is to be evaluated"),
        (
            {"retrieval.top": (97, 200)},
            r"config.retrieval.top=\(97, 200\) asks for at least 97 .* are 96 keys",
        ),
    ],
)
def test_values_that_cannot_be_are_named(run_dir, tmp_path, overrides, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        whole(run_dir, tmp_path / "evaluation", **overrides)
    assert "\n" not in str(error.value)


def test_the_section_of_a_run_is_checked_before_it_starts(run_dir):
    config = config_lib.load(f"{CONFIGS / 'jigsaw_rl.py'}:smoke,evaluation=all", {})
    with config.unlocked():
        config.evaluation.linear_probe.valuse = 300
    with pytest.raises(InputError, match=r"config\.evaluation: .*linear_probe\.valuse.*linear_probe\.values"):
        pretrain.evaluation(config, run_dir)


def test_a_key_that_nobody_reads_names_the_closest(run_dir):
    config = load("evaluate.py", {"checkpoint": run_dir})
    with config.unlocked():
        config.retrieval.clip_frame = 3
    with pytest.raises(InputError, match=r"config\.retrieval\.clip_frame.*did you mean.*clip_frames"):
        evaluate.setup_from_config(config)


def test_nothing_to_evaluate_is_refused_before_a_run_is_looked_for():
    with pytest.raises(InputError, match=r"nothing is to be evaluated; enable config.linear_probe"):
        evaluate.setup_from_config(load("evaluate.py", ALL_OFF))


def test_a_checkpoint_must_be_given():
    config = config_lib.load(str(CONFIGS / "evaluate.py"))
    with pytest.raises(InputError, match=r"give the work directory .* by --config.checkpoint=DIR"):
        evaluate.setup_from_config(config)


def test_the_default_preset_is_whole(run_dir):
    config = config_lib.load(str(CONFIGS / "evaluate.py"), {"checkpoint": str(run_dir)})
    setup = evaluate.setup_from_config(config)
    assert dataclasses.asdict(setup.retrieval)["top"] == (1, 5, 10, 20, 50)
    # 60 x 56 pixels are 4 x 4 parts of 16, whose conv1 is 8 x 8 of 4 channels: 32 x 32 x 4 values fit whole.
    assert evaluate.probe_grid(setup, "conv1") == (32, 32)
