"""Classification of manipulated videos: whole runs, what is learned, and what cannot be."""

import functools
import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from ssl_jax.data import dfdc, manipulated_clips
from ssl_jax.evaluation import linear_probe, scores
from ssl_jax.experiments import deepfake
from ssl_jax.networks import weights
from ssl_jax.pretext import augment
from ssl_jax.report import classifying, page
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import distributed
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.checkpoints import restore_raw
from ssl_jax.runtime.errors import InputError

CONFIG = f"{runs.ROOT / 'configs' / 'deepfake.py'}:smoke"
QUICK = {"smoothgrad.frames": 0, "train.evaluated": 8}
pytestmark = pytest.mark.usefixtures("little_optimization")


@pytest.fixture(scope="module")
def videos(atari_tiny_dir, tmp_path_factory):
    """The stand-in of the smoke preset."""
    directory = str(tmp_path_factory.mktemp("videos") / "stand_in")
    return manipulated_clips.build(
        directory, num_originals=12, fakes_per_original=1, frames=8, source="atari_frames/tiny",
        data_dir=atari_tiny_dir,
    )  # fmt: skip


def load(overrides, option=""):
    return config_lib.load(
        ",".join(filter(None, [CONFIG, option])), {key: str(value) for key, value in overrides.items()}
    )


def setup_of(option="", **overrides):
    return deepfake.setup_from_config(load(overrides, option))


@pytest.fixture
def run_here(videos):
    """Runs in this process, on the four devices of the tests."""

    def run(workdir, option="", **overrides):
        return deepfake.run(load(QUICK | {"data.path": videos} | overrides, option), workdir)

    return run


# --- Whole runs


@pytest.fixture(scope="module")
def smoke(videos, tmp_path_factory):
    """The smoke preset by the command line, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "smoke"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        return workdir, *runs.finish(CONFIG, workdir, {"data.path": videos})


def test_smoke_fills_its_work_directory(smoke):
    workdir, output, log = smoke
    results = json.loads((workdir / "results.json").read_text())
    final = results["final"]
    measures = ("accuracy", "auc", "log_loss", "calibration_error")
    units = ("frame", "video")
    assert {f"test/{unit}/{name}" for unit in units for name in measures} <= final.keys()
    assert final["test/frame/majority"] == 0.5
    assert results["split"]["mode"] == "random"
    assert results["split"]["leaks"]["train and test"]["videos"] > 0
    assert results["split"]["balance"]["test"]["frames"] == {"REAL": 12, "FAKE": 12}
    assert sum(map(sum, results["confusion"])) == sum(results["calibration"]["count"]) == 24
    kinds = {"squares", "mean", "variance", "integrated", "gradient"}
    assert results["attributions"]["parameter_randomisation"].keys() == kinds
    for exchange in ("deletion", "insertion"):
        curves = results["attributions"][exchange]
        assert curves.keys() == kinds | {"chance"}
        assert {len(curve) for curve in curves.values()} == {3}
    # All curves of one kind begin with the same pictures, and end with the same.
    ends = np.array([[curve[0], curve[-1]] for curve in results["attributions"]["deletion"].values()])
    np.testing.assert_allclose(ends, np.broadcast_to(ends[:1], ends.shape), atol=1e-5)
    assert results["left_out"] == results["bad_images"] == {}
    assert {path.name for path in (workdir / "figures").iterdir()} >= {
        "attributions.png",
        "frames.png",
        "deletion.png",
        "insertion.png",
    }
    assert "in both train and test" in log
    said = " ".join(output.split())
    assert "Stand-in, not DFDC; random split" in said
    assert str(workdir / "report.html") in output


def test_a_run_stuck_at_chance_says_so(smoke):
    """12 steps on 48 frames teach nothing."""
    workdir, output, _ = smoke
    results = json.loads((workdir / "results.json").read_text())
    assert results["stuck_at_chance"]["test"]
    report = (workdir / "report.html").read_text()
    for said in (" ".join(output.split()), report):
        assert "AT CHANCE" in said
    assert classifying.STAND_IN in report
    assert results["stand_in"] is True


def test_a_run_that_was_stopped_ends_like_one_that_was_not(run_here, tmp_path, monkeypatch):
    """With the auxiliary task, so that every part of the state moves."""
    options = {"train.rotation": 1.0, "train.steps": 9}
    whole = run_here(tmp_path / "whole", **options)

    def stop_at_5(stop, step):
        stop.received = signal.SIGTERM if step == 5 else None
        return step == 5

    with monkeypatch.context() as patch:
        patch.setattr(distributed.StopTogether, "at", stop_at_5)
        with pytest.raises(SystemExit):
            run_here(tmp_path / "stopped", **options)
    assert runs.saved_steps(tmp_path / "stopped")[-1] == 5
    resumed = run_here(tmp_path / "stopped", **options)
    assert {**resumed["final"]} == {**whole["final"]}
    assert runs.numbers(tmp_path / "stopped")[-1] == runs.numbers(tmp_path / "whole")[-1]
    states = [restore_raw(tmp_path / name / "checkpoints") for name in ("whole", "stopped")]
    assert states[0]["step"] == 9
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert states[0]["params"].keys() == {"encoder", "classifier", "turns"}
    assert deepfake.run(load(QUICK | {"data.path": resumed["protocol"]["data"]["path"]} | options),
                        tmp_path / "stopped")["final"] == resumed["final"]  # fmt: skip


def test_training_stops_early_and_the_best_step_is_tested(run_here, tmp_path, monkeypatch):
    aucs = iter([0.6, 0.9, 0.7, 0.8, 0.95])
    monkeypatch.setattr(scores, "of_frames", lambda answers: {"accuracy": 0.5, "auc": next(aucs, 0.5)})
    results = run_here(tmp_path, **{"train.validate_every": 2, "train.patience": 2})
    assert results["stopped_early"] is True
    assert results["best_step"] == 4
    assert runs.progress(tmp_path) == 8


def test_waiting_is_counted_from_the_best_validation():
    assert [deepfake.waited(past) for past in ([], [0.5], [0.5, 0.4], [0.5, 0.4, 0.6], [0.6, 0.6])] == [
        0, 0, 1, 0, 1
    ]  # fmt: skip


# --- What is learned


def noise(seed=0):
    """A batch for `train_step`."""
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (8, 36, 36, 3), np.uint8),
        "label": rng.integers(0, 2, 8).astype(np.int32),
    }


def test_a_frozen_encoder_stays_as_it_is_and_the_head_learns():
    """Weight decay and running statistics leave it alone, too."""
    overrides = {"train.what": "head", "train.weight_decay": 0.1, "encoder.width": 4, "train.warmup_steps": 0}
    setup = setup_of("model=resnet18", **overrides)
    before = deepfake.create_state(setup, jax.random.PRNGKey(0))
    after, _ = jax.jit(functools.partial(deepfake.train_step, setup))(before, noise())
    jax.tree.map(np.testing.assert_array_equal, before.params["encoder"], after.params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, before.batch_stats, after.batch_stats)
    assert np.abs(after.params["classifier"]["kernel"]).max() > 0


def test_the_probe_is_that_of_standardised_features(run_here, tmp_path):
    """What is written into the network answers as the probe did, and no step is made."""
    results = run_here(tmp_path, **{"train.what": "probe", "train.evaluated": 48})
    assert results["best_step"] == 0
    setup = setup_of(**{"train.what": "probe", "data.path": results["protocol"]["data"]["path"]})
    state = deepfake.create_state(setup, jax.random.PRNGKey(setup.seed))
    data = deepfake.open_data(setup)
    frames, labels = {}, {}
    for split in ("train", "validation", "test"):
        source = data.open(split, ("label", "video"))
        order = range(len(source))
        pixels = [np.load(f"{source.store}/{source.files[int(v)]}")[i] for v, i, _ in source.rows[order]]
        views = deepfake.see(setup, np.stack(pixels))
        frames[split] = np.asarray(setup.network.apply({"params": state.params}, views, method="features"))
        labels[split] = deepfake.frame_labels(source)
    found = linear_probe.classify(
        *((frames[split], labels[split]) for split in ("train", "validation", "test")), setup.probe
    )
    assert results["final"]["test/frame/accuracy"] == pytest.approx(found["accuracy"], abs=0.05)


def test_clear_frames_are_told_apart():
    """The training step itself, on frames whose class is plain to see."""
    setup = setup_of(**{"view.normalise": "imagenet", "train.learning_rate": 0.01, "train.steps": 40})
    state = deepfake.create_state(setup, jax.random.PRNGKey(0))
    step = jax.jit(functools.partial(deepfake.train_step, setup))
    for seed in range(30):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 2, 8).astype(np.int32)
        images = rng.integers(0, 128, (8, 36, 36, 3)) + 100 * label[:, None, None, None]
        state, metrics = step(state, {"image": jnp.asarray(images, jnp.uint8), "label": label})
    assert metrics["accuracy"] == 1
    assert metrics["loss"] < 0.3


def test_gradients_are_clipped():
    setup = setup_of(**{"train.optimizer": "sgd", "train.schedule": "constant", "train.warmup_steps": 0,
                        "train.learning_rate": 0.5, "train.clip": 0.01})  # fmt: skip
    state = deepfake.create_state(setup, jax.random.PRNGKey(0))
    after, metrics = jax.jit(functools.partial(deepfake.train_step, setup))(state, noise())
    assert metrics["gradient_norm"] > 0.01
    moved = jax.tree.map(lambda new, old: new - old, after.params, state.params)
    norm = np.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(moved)))
    assert norm == pytest.approx(0.5 * 0.01, rel=1e-2)


def test_what_the_network_sees():
    setup = setup_of(**{"data.size": 6, "view.size": 4, "encoder.width": 4})
    images = np.arange(2 * 6 * 6 * 3, dtype=np.uint8).reshape(2, 6, 6, 3)
    middle = augment.normalize(jnp.asarray(images[:, 1:5, 1:5], jnp.float32) / 255)
    np.testing.assert_allclose(deepfake.see(setup, images), middle, atol=1e-6)
    setup = setup_of(**{"data.size": 6, "view.size": 4, "encoder.width": 4, "view.flip": True})
    seen = np.asarray(deepfake.see(setup, np.repeat(images[:1], 64, 0), jax.random.key(0)))
    assert seen.shape == (64, 4, 4, 3)
    steps = np.sign(np.diff(seen[:, 0, :2, 0], axis=1))
    assert set(steps.ravel()) == {-1, 1}  # some are mirrored
    plain = setup_of(**{"data.size": 6, "view.size": 4, "encoder.width": 4, "view.normalise": "caffe"})
    np.testing.assert_allclose(deepfake.see(plain, images), weights.CAFFE(images[:, 1:5, 1:5]), atol=1e-4)


# --- Where weights come from


def test_weights_of_a_pre_training_run_and_of_a_file(tmp_path):
    """The encoder begins as it was saved, and the classifier anew."""
    source = setup_of()
    state = deepfake.create_state(source, jax.random.PRNGKey(7))
    file = tmp_path / "compact.safetensors"
    weights.save(file, source.network.encoder, {"params": state.params["encoder"]})
    setup = setup_of("init=checkpoint", **{"init.path": file})
    begun = deepfake.create_state(setup, jax.random.PRNGKey(0))
    jax.tree.map(np.testing.assert_array_equal, begun.params["encoder"], state.params["encoder"])
    other = deepfake.create_state(source, jax.random.PRNGKey(0))
    assert not np.array_equal(other.params["encoder"]["conv1"]["kernel"],
                              state.params["encoder"]["conv1"]["kernel"])  # fmt: skip


def test_names_of_weights():
    place = lambda **options: deepfake.Init(**options).place("resnet50")
    assert place(name="random") is None
    assert str(place(name="imagenet")) == "weights/resnet50.safetensors"
    assert str(place(name="rotation", runs="here")) == "here/rotation-resnet50"
    assert str(place(name="jigsaw", path="run")) == "run"


# --- What cannot be


@pytest.mark.parametrize(
    ("option", "overrides", "sentence"),
    [
        (
            "init=imagenet,model=resnet50",
            {},
            r"weights/resnet50.safetensors that .* missing; put torchvision's resnet50 there, its .pth ",
        ),
        (
            "init=rotation",
            {},
            "the weights runs/deepfake_table/rotation-compact .* make that pre-training run",
        ),
        ("init=checkpoint", {}, "needs --config.init.path="),
        ("init=checkpoint", {"init.path": "none.npz"}, "the weights none.npz .* are missing"),
        ("model=alexnet", {}, "images of 32 x 32 pixels are too small for AlexNet; the smallest .* 63 x 63"),
        ("", {"view.size": 40}, "config.view.size=40 must be from 1 to config.data.size=36"),
        ("", {"train.what": "everything"}, "config.train.what must be one of 'all', 'head', 'probe'"),
        ("", {"train.what": "head", "train.rotation": 1.0}, "config.train.rotation=1.0 teaches the encoder"),
        ("", {"train.dropout": 1.0}, r"dropout=1.0 in \[0, 1\)"),
        ("", {"train.patience": 0}, "config.train.patience, pool and evaluated must be at least 1"),
        (
            "",
            {"train.pool": (9, 9)},
            r"config.train.pool=\(9, 9\) must have from 1 to 4 rows and from 1 to 4 col",
        ),
        (
            "",
            {"train.warmup_steps": -1},
            "config.train.warmup_steps must be at least 0, not -1",
        ),
        ("", {"data.clip_frames": 0}, "^config.data.clip_frames must be at least 1, not 0"),
        ("", {"data.originals": 0}, "^config.data.originals must be at least 1, not 0"),
        ("", {"data.fakes": -1}, "^config.data.fakes must be at least 1, not -1"),
        ("", {"data.source": "imagenet2012"}, "^config.data.source='imagenet2012' must be atari_frames"),
        ("", {"smoothgrad.chunk": 0}, "config.smoothgrad.chunk must be at least 1, not 0"),
    ],
)
def test_values_that_cannot_be_are_named(option, overrides, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence) as error:
        deepfake.run(load(overrides, option), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_length_of_a_run_that_is_there_stays_with_the_reason(tmp_path):
    deepfake.claim(tmp_path / "run", load({}))
    (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
    reason = "early stopping decides when it ends, and scores on test may have been taken already"
    with pytest.raises(InputError, match=f"because {reason}; begin another one"):
        deepfake.claim(tmp_path / "run", load({"train.steps": 20}))


def test_weights_of_another_encoder_are_named(tmp_path):
    wide = setup_of(**{"encoder.width": 16})
    file = tmp_path / "wide.safetensors"
    state = deepfake.create_state(wide, jax.random.PRNGKey(0))
    weights.save(file, wide.network.encoder, {"params": state.params["encoder"]})
    config = load({"init.path": file}, "init=checkpoint")
    with pytest.raises(
        InputError, match=r"wide.safetensors does not fit Compact: conv1.bias is float32\[8\]"
    ):
        deepfake.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_directory_that_is_no_run_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"there is no checkpoint in .*empty"):
        deepfake.run(load({"init.path": tmp_path / "empty"}, "init=checkpoint"), tmp_path / "run")


def broken_copy(videos, directory, change):
    """The videos with other metadata."""
    shutil.copytree(videos, directory, ignore=shutil.ignore_patterns(".ssl_jax"))
    path = directory / dfdc.METADATA
    metadata = change(json.loads(path.read_text()))
    path.unlink()
    if metadata is not None:
        path.write_text(json.dumps(metadata))
    return directory


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda metadata: None, "has no metadata.json"),
        (
            lambda metadata: {name: entry | {"label": "FAKE"} for name, entry in metadata.items()},
            "both labels are needed",
        ),
    ],
)
def test_directories_that_cannot_be_are_named(videos, tmp_path, change, sentence):
    directory = broken_copy(videos, tmp_path / "dfdc", change)
    config = load({"data.name": "dfdc", "data.path": directory})
    with pytest.raises(InputError, match=sentence):
        deepfake.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_dfdc_needs_a_path(tmp_path):
    with pytest.raises(InputError, match=r"config.data.path is missing"):
        deepfake.run(load({"data.name": "dfdc"}), tmp_path / "run")


def test_bad_videos_are_counted_and_nobody_calls_dfdc_a_stand_in(videos, tmp_path, run_here):
    """One video is listed but absent, another is unreadable; the run goes on."""
    absent = {"absent.mp4": {"label": "REAL", "split": "train", "original": None}}
    directory = broken_copy(videos, tmp_path / "dfdc", lambda metadata: metadata | absent)
    broken = sorted(directory.glob("*.mp4"))[0]
    broken.write_bytes(b"no video")
    results = run_here(tmp_path / "run", **{"data.name": "dfdc", "data.path": directory, "train.steps": 2})
    assert results["left_out"] == {
        "listed but absent": [1, "absent.mp4"],
        "unreadable": [1, f"{broken.name} (a file of text)"],
    }
    assert results["stand_in"] is False
    report = (tmp_path / "run" / "report.html").read_text()
    assert "listed but absent" in report
    assert classifying.STAND_IN not in report


def test_a_loss_that_is_not_finite_stops_the_run(run_here, tmp_path):
    with pytest.raises(InputError, match=r"config.train.learning_rate"):
        run_here(tmp_path, **{"train.learning_rate": 1e30, "train.clip": 1e30, "train.optimizer": "sgd",
                              "train.warmup_steps": 0})  # fmt: skip


def test_the_page_of_a_run_that_goes_on(tmp_path):
    config = load({})
    config_lib.claim_workdir(tmp_path, config)
    metrics = metrics_lib.Metrics(tmp_path, resume_step=None)
    metrics.write(4, {"train/loss": 0.7, "val/auc": 0.5, "val/accuracy": 0.5})
    metrics.close()
    report = page.build(tmp_path).read_text()
    assert "This run has not finished" in report
    assert classifying.STAND_IN in report


@pytest.mark.parametrize("model", ["preset", "alexnet", "caffenet"])
def test_the_papers_setting_fits_together(model):
    """Only shapes: a step of the full networks on frames of 224 x 224 pixels."""
    config = config_lib.load(CONFIG.replace("smoke", f"paper,model={model},split=hard"))
    setup = deepfake.setup_from_config(config)
    assert (setup.data.is_stand_in, setup.view.size) == (False, 224)
    state = jax.eval_shape(functools.partial(deepfake.create_state, setup), jax.random.PRNGKey(0))
    classifier = state.params["classifier"]["kernel"].shape
    assert classifier == ({"preset": 2048}.get(model, 256), 2)
    batch = {"image": np.zeros((4, 256, 256, 3), np.uint8), "label": np.zeros(4, np.int32)}
    after, metrics = jax.eval_shape(functools.partial(deepfake.train_step, setup), state, batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()
