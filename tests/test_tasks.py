"""What a task of pre-training is made of, and the task whose cells have classes."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from ssl_jax.experiments import pretrain, tasks
from ssl_jax.pretext import augment, colorization
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.usefixtures("little_optimization")
CONFIG = Path(__file__).parents[1] / "configs" / "spatiotemporal_rl.py"
SIZE = (40, 36)
SMALL = {
    "data.image_size": SIZE,
    "encoder.width": 8,
    "colorization.puzzle.window": (32, 32),
    "colorization.puzzle.size": (32, 32),
}
GREY, RED = (int(np.flatnonzero((place == colorization.BINS).all(1))[0]) for place in ([0, 0], [80, 70]))


def make_setup(arg="smoke,tasks=none,extra=colorization", **overrides):
    values = {key: str(value) for key, value in overrides.items()}
    return pretrain.setup_from_config(config_lib.load(f"{CONFIG}:{arg}", values))


@pytest.fixture(scope="module")
def setup():
    return make_setup(**SMALL)


@pytest.fixture(scope="module")
def variables(setup):
    """Random ones: the classifier starts at zero, where all answers are equal."""
    shapes = jax.eval_shape(functools.partial(pretrain.create_state, setup), jax.random.PRNGKey(0))
    rng = np.random.default_rng(0)
    return {"params": jax.tree.map(lambda leaf: np.float32(0.3 * rng.normal(size=leaf.shape)), shapes.params)}


def batch_of(number, padding=0, seed=0):
    """Pictures of a few large coloured areas; the last rows are padding."""
    corners = np.random.default_rng(seed).integers(0, 256, (number, 2, 2, 3), np.uint8)
    image = corners.repeat(SIZE[0] // 2, axis=1).repeat(SIZE[1] // 2, axis=2)
    mask = np.arange(number) < number - padding
    return {"image": image * mask[:, None, None, None], "mask": mask}


# --- Colours


def test_each_cell_of_the_encoders_map_has_a_class(setup, variables):
    (task,) = setup.tasks
    assert (task.dense, task.ordered, task.num_classes) == (True, False, 261)

    def answer(key):
        inputs, classes = task.ask(key, jnp.asarray(batch_of(4)["image"]), None, train=True)
        return inputs, classes, setup.network.apply(variables, inputs, "colorization", train=False)

    inputs, classes, logits = jax.eval_shape(answer, jax.random.key(0))
    assert task.map_size == (4, 4)
    assert (inputs.shape, classes.shape, logits.shape) == ((4, 1, 32, 32, 3), (4, 4, 4), (4, 4, 4, 261))
    assert (inputs.dtype, classes.dtype, logits.dtype) == (jnp.float32, jnp.int32, jnp.float32)


@pytest.mark.parametrize("preset", ["default", "smoke", "paper"])
def test_every_preset_with_colours_is_whole(preset):
    setup = make_setup(f"{preset},extra=colorization")
    assert [task.name for task in setup.tasks] == ["spatial", "temporal", "colorization"]
    state = jax.eval_shape(functools.partial(pretrain.create_state, setup), jax.random.PRNGKey(0))
    assert {name: prior.shape for name, prior in state.prior.items()} == {"colorization": (261,)}
    assert min(setup.tasks[-1].map_size) >= 4


@pytest.mark.parametrize("devices", [1, 4])
def test_answers_are_counted_by_colour_without_the_padding(setup, variables, devices):
    (task,) = setup.tasks
    batch, key, mesh = batch_of(8, padding=3), jax.random.key(1), mesh_lib.make(devices)
    inputs, classes = jax.jit(lambda images: task.ask(key, images, None, train=False))(batch["image"])
    answer = jax.jit(functools.partial(setup.network.apply, task="colorization", train=False))
    answers = np.asarray(answer(variables, inputs)).argmax(-1)
    cells, right = np.asarray(classes)[:5].ravel(), (answers == classes)[:5].ravel()
    count = np.bincount(cells, minlength=261)
    correct = np.bincount(cells[right], minlength=261)

    on_devices = mesh_lib.shard_batch(batch, mesh)
    counted = jax.jit(functools.partial(tasks.count_classes, task))(on_devices, key)
    np.testing.assert_array_equal(counted, count)
    skill = jax.jit(functools.partial(tasks.skill_sums, setup.network, task, task.validation))
    sums = skill(mesh_lib.replicate(variables, mesh), on_devices, key)
    np.testing.assert_array_equal(sums["count"], count)
    np.testing.assert_array_equal(sums["correct"], correct)
    evaluation = tasks.mean_answers(sums)
    np.testing.assert_allclose(evaluation.accuracy, correct / np.maximum(count, 1), rtol=1e-6)


def test_red_is_counted_where_it_is():
    (task,) = make_setup(**SMALL | {"colorization.puzzle.window": (8, 8), "colorization.puzzle.size": (8, 8),
                                    "data.image_size": (8, 8), "probe.enabled": False}).tasks  # fmt: skip
    assert task.map_size == (1, 1)
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[3, ..., 0] = 255
    batch = {"image": jnp.asarray(images), "mask": jnp.array([False, True, True, True])}
    counts = np.asarray(jax.jit(functools.partial(tasks.count_classes, task))(batch, jax.random.key(0)))
    assert (counts[GREY], counts[RED], counts.sum()) == (2, 1, 3)


def test_rare_colours_weigh_more(setup):
    (task,) = setup.tasks
    prior = jnp.zeros(261).at[GREY].set(0.9).at[RED].set(0.1)
    classes = jnp.array([[[GREY, RED]], [[GREY, GREY]]])
    weights = np.asarray(colorization.class_weights(prior, task.puzzle.uniform))
    loss = jax.jit(task.loss)(jnp.zeros((2, 1, 2, 261)), classes, prior)
    expected = np.log(261) * np.array([(weights[GREY] + weights[RED]) / 2, weights[GREY]])
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert loss[0] > 2 * loss[1]


def test_a_step_minimises_the_loss_that_the_prior_weighs(setup):
    """Before the first step all classes are equally likely: the loss is log 261 times the mean weight."""
    state = pretrain.create_state(setup, jax.random.PRNGKey(0))
    np.testing.assert_allclose(state.prior["colorization"], 1 / 261)
    step = jax.jit(functools.partial(pretrain.train_step, setup))
    batch = {"image": batch_of(8)["image"]}
    losses = []
    for prior in (jnp.full(261, 1 / 261), jnp.zeros(261).at[GREY].set(1.0)):
        after, metrics = step(state.replace(prior={"colorization": prior}), batch)
        losses.append(float(metrics["colorization/loss"]))
        np.testing.assert_array_equal(after.prior["colorization"], prior)
    assert losses[0] == pytest.approx(np.log(261), rel=0.2)
    assert losses[1] > 1.5 * losses[0]  # where all was grey, what is not counts far more


def test_an_encoder_that_learned_from_lightness_is_shown_lightness(setup):
    (task,) = setup.tasks
    pixels = jnp.asarray(np.random.default_rng(0).random((2, 6, 6, 3), np.float32))
    expected = augment.normalize(colorization.lightness(pixels))
    np.testing.assert_allclose(task.see(pixels), expected, atol=1e-6)
    (rotation,) = make_setup("smoke,tasks=none,extra=rotation").tasks
    np.testing.assert_allclose(rotation.see(pixels), augment.normalize(pixels), atol=1e-6)


# --- One policy for several tasks


@pytest.mark.parametrize(("preset", "period"), [("default", 32), ("smoke", 4), ("paper", 500)])
def test_tasks_that_share_a_policy_are_looked_at_together(preset, period):
    setup = make_setup(f"{preset},policy=joint,extra=rotation")
    names = {task.name: (task.player_name, task.player_state, task.player.period) for task in setup.tasks}
    shared = ("joint", "joint", period)
    assert names == {"spatial": shared, "temporal": shared, "rotation": ("uniform", "rotation", 0)}
    assert [[task.name for task in tasks] for tasks in setup.looks] == [["spatial", "temporal"]]
    alone = make_setup(preset)
    assert [[task.name for task in tasks] for tasks in alone.looks] == [["spatial"], ["temporal"]]

    state = jax.eval_shape(functools.partial(pretrain.create_state, setup), jax.random.PRNGKey(0))
    assert state.selection.keys() == {"joint", "rotation"}
    assert state.selection["joint"].count.shape == (20,)  # ten groups of each of the two
    assert state.selection["joint"].group.shape == (sum(task.num_classes for task in setup.tasks[:2]),)


# --- What cannot be


@pytest.mark.parametrize(
    ("arg", "overrides", "sentence"),
    [
        ("tasks=spatial", {"spatial.weight": 0.0}, "config.spatial.weight must be above 0, not 0.0"),
        (
            "tasks=spatial",
            {"spatial.validation.classes_per_example": 2, "spatial.validation.batch_size": 8},
            "config.spatial.validation.classes_per_example=2 times its batch_size=8 must be at least the 20",
        ),
        ("extra=rotation", {"rotation.selection.name": "unifrm"}, "did you mean 'uniform'"),
        (
            "extra=colorization",
            {"colorization.puzzle.window": (100, 100)},
            "config.colorization.puzzle.window=(100, 100), 100 x 100 pixels, must be",
        ),
        ("extra=colorization", {"colorization.puzzle.uniform": 0.0}, "uniform must lie in (0, 1], not 0.0"),
        ("extra=colorization,encoder=caffenet", {}, "32 x 32 pixels are too small for CaffeNet"),
        (
            "tasks=temporal,extra=rotation,policy=joint",
            {},
            "config.temporal.selection.name=joint is a policy that tasks share, and no other task has it",
        ),
        (
            "policy=joint",
            {"temporal.selection.name": "uniform"},
            "config.spatial.selection.name=joint is a policy that tasks share, and no other task has it",
        ),
        (
            "tasks=none,extra=rotation,policy=joint",
            {},
            "config.selection is not used: it has the options of a policy that tasks share, and no",
        ),
        ("policy=joint", {"spatial.selection.name": "jont"}, "did you mean 'joint'"),
        ("policy=joint", {"selection.period": 0}, "config.selection.period must be at least 1, not 0"),
        (
            "policy=joint",
            {"selection.period": 99},
            "config.selection.period=99 is longer than config.train.ste",
        ),
        ("tasks=temporal", {"data.stride": (3, 2)}, "stride=(3, 2) must be the least and the largest"),
    ],
)
def test_values_that_cannot_be_are_named(arg, overrides, sentence):
    with pytest.raises(InputError) as error:
        make_setup(f"smoke,{arg}", **overrides)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_player_that_needs_permutations_is_refused_where_there_are_none():
    config = config_lib.load(f"{CONFIG}:smoke,tasks=spatial,extra=rotation,policy=curriculum")
    with config.unlocked():
        config.rotation.selection.update(config.spatial.selection)
    with pytest.raises(InputError) as error:
        pretrain.setup_from_config(config)
    assert "config.rotation.selection.name=curriculum orders permutations by their distance" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            "temporal.selection.period",
            3,
            "config.temporal.selection.period is not used, because config.temporal.selection.name=joint is "
            "a policy that tasks share; its options are those of config.selection.",
        ),
        (
            "selection.perod",
            3,
            "unknown key 'config.selection.perod', did you mean 'config.selection.period'",
        ),
        ("selection.hidden", 6.5, "config.selection.hidden must be int, not 6.5"),
        (
            "selection",
            None,
            "config.selection is missing; it must have the options of the policy that spatial",
        ),
    ],
)
def test_a_policy_that_tasks_share_has_its_options_in_one_place(key, value, sentence):
    config = config_lib.load(f"{CONFIG}:smoke,policy=joint").to_dict()
    section, _, name = key.rpartition(".")
    functools.reduce(dict.__getitem__, section.split(".") if section else [], config)[name] = value
    with pytest.raises(InputError) as error:
        pretrain.setup_from_config(ml_collections.ConfigDict(config))
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("selection", {"name": "uniform"}), ("permutations", {}), ("validation.classes_per_example", 3),
     ("head.fc6", 8), ("puzzle.grey", 0.3), ("adjust_logits", True)],
)  # fmt: skip
def test_colours_have_no_player_and_no_permutations(key, value):
    config = config_lib.load(f"{CONFIG}:smoke,extra=colorization")
    section, _, name = f"colorization.{key}".rpartition(".")
    with config.unlocked():
        config[section][name] = value
    with pytest.raises(InputError, match=rf"unknown key 'config\.colorization\.{key}'"):
        pretrain.setup_from_config(config)
