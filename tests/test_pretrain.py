"""Pre-training as pure functions, and its configs; whole runs are in test_pretrain_run.py."""

import dataclasses
import functools
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.experiments import pretrain, tasks, training
from ssl_jax.pretext import jigsaw
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime.errors import InputError
from ssl_jax.selection import Evaluation

CONFIG = Path(__file__).parents[1] / "configs" / "jigsaw_rl.py"
BATCH, SIZE, NUM = 8, (60, 56), 20
# Small, and SGD: Adam's first steps are signs of gradients, and those of nearly zero may differ.
SMALL = {
    "data.image_size": SIZE,
    "spatial.puzzle.window": (54, 54),
    "spatial.puzzle.tile": (16, 16),
    "spatial.puzzle.color_jitter": 0.0,
    "spatial.puzzle.grey": 0.0,
    "spatial.puzzle.channel_shift": 0,
    "spatial.permutations.num": NUM,
    "spatial.selection.num_groups": NUM,
    "spatial.head.fc6": 8,
    "spatial.head.fc7": 16,
    "train.optimizer": "sgd",
    "train.learning_rate": 0.01,
    "train.warmup_steps": 0,
}


def load(arg="smoke", **overrides):
    return config_lib.load(f"{CONFIG}:{arg}", {key: str(value) for key, value in overrides.items()})


def make_setup(**overrides):
    return pretrain.setup_from_config(load(**SMALL | overrides))


def pictures(number, seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (number, *size, 3), np.uint8)


def batch_of(seed=0, devices=1):
    """A batch of noise on some devices."""
    return mesh_lib.shard_batch({"image": pictures(BATCH, seed)}, mesh_lib.make(devices))


def create(setup, devices=1):
    """A state before the first step, on some devices."""
    state = pretrain.create_state(setup, jax.random.PRNGKey(0))
    return mesh_lib.replicate(state, mesh_lib.make(devices))


# Compiling is most of the work here: these are shared.


@pytest.fixture(scope="module")
def setup():
    return make_setup()


@pytest.fixture(scope="module")
def step(setup):
    return jax.jit(functools.partial(pretrain.train_step, setup))


@pytest.fixture(scope="module")
def observe(setup):
    return jax.jit(functools.partial(pretrain.observe, setup.tasks))


@pytest.fixture(scope="module")
def first(setup):
    return create(setup)


@pytest.fixture(scope="module")
def trained(step, first):
    """A state after a few steps, whose answers are no longer all the same."""
    state = first
    for number in range(10):
        state, _ = step(state, batch_of(number))
    return state


def assert_close(left, right, **tolerance):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for some, other in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(some, other, **tolerance)


def assert_same(left, right):
    assert_close(left, right, rtol=0, atol=0)


SEEN = Evaluation(*np.random.default_rng(5).uniform(0.1, 0.9, (2, NUM)).astype(np.float32))


def advance(state, step, observe, devices=1):
    """Three steps with an observation between; returns the state and the losses."""
    losses = []
    for number in range(3):
        state, metrics = step(state, batch_of(number, devices))
        losses.append(float(metrics["loss"]))
        if number == 1:
            state, _ = observe(state, [SEEN])
    return state, losses


@pytest.fixture(scope="module")
def on_one_device(first, step, observe):
    return advance(first, step, observe)


def test_four_devices_do_what_one_does(setup, step, observe, on_one_device):
    state, losses = advance(create(setup, 4), step, observe, 4)
    np.testing.assert_allclose(losses, on_one_device[1], rtol=1e-5)
    assert_close(state, on_one_device[0], rtol=1e-4, atol=1e-5)
    # What is drawn is drawn alike, not just almost.
    assert state.selection["spatial"].evaluations == 1
    np.testing.assert_array_equal(
        state.selection["spatial"].count, on_one_device[0].selection["spatial"].count
    )
    np.testing.assert_array_equal(
        state.selection["spatial"].group, on_one_device[0].selection["spatial"].group
    )
    for leaf in jax.tree.leaves(state):
        assert len(leaf.sharding.device_set) == 4
        assert leaf.is_fully_replicated


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_sent_as_one_array_are_the_same(setup, observe, on_one_device, parts):
    setup = dataclasses.replace(setup, train=dataclasses.replace(setup.train, accumulate=parts))
    mesh = mesh_lib.make(4)
    joined = jax.jit(functools.partial(pretrain.train_step, setup, joined=mesh))
    state, losses = advance(create(setup, 4), joined, observe, 4)
    np.testing.assert_allclose(losses, on_one_device[1], rtol=1e-5)
    assert_close(state, on_one_device[0], rtol=1e-4, atol=1e-5)
    program = joined.lower(state, batch_of(devices=4)).compile().as_text()
    number = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    (sent,) = re.findall(r"\[4,(\d+)\]\S* all-gather\(", program)
    assert number < int(sent) < number + 10  # with the metrics
    (summed,) = re.findall(r"= (.*) all-reduce\(", program)
    assert f"[{NUM}]" in summed  # how often the player drew each group, and nothing else
    assert "," not in summed


def test_who_sends_gradients_as_one_array(monkeypatch):
    """Two processes on CPUs, here with four devices, if every micro-batch has rows of every device."""
    joins = lambda batch_size=8, accumulate=1, fsdp=False, batch_stats=(): training.joins_gradients(
        training.Train(**COUNTS | {"batch_size": batch_size, "accumulate": accumulate}),
        mesh_lib.Layout(fsdp=fsdp),
        batch_stats,
    )
    assert not joins()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert joins()
    assert joins(accumulate=2)
    assert not joins(accumulate=4)
    assert not joins(fsdp=True)
    assert not joins(batch_stats={"mean": 0})


def test_accumulated_gradients_are_those_of_the_whole_batch(observe, on_one_device):
    """Without dropout; here on four devices, where every micro-batch has rows on each."""
    setup = make_setup(**{"train.accumulate": 2})
    step = jax.jit(functools.partial(pretrain.train_step, setup))
    state, losses = advance(create(setup, 4), step, observe, 4)
    np.testing.assert_allclose(losses, on_one_device[1], rtol=1e-5)
    assert_close(state, on_one_device[0], rtol=1e-4, atol=1e-5)


def test_computing_in_bfloat16_is_nearly_computing_in_float32(observe, on_one_device):
    setup = make_setup(precision="bfloat16")
    step = jax.jit(functools.partial(pretrain.train_step, setup))
    state, losses = advance(create(setup), step, observe)
    np.testing.assert_allclose(losses, on_one_device[1], rtol=0.02)
    assert losses != on_one_device[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_part_of_a_step_has_the_precision_that_was_asked_for(optimizer, accumulate):
    """By shapes and dtypes alone: nothing is computed."""
    setup = make_setup(
        **{
            "precision": "params=bfloat16,compute=bfloat16,output=bfloat16",
            "train.optimizer": optimizer,
            "train.accumulate": accumulate,
        }
    )
    state = jax.eval_shape(lambda: pretrain.create_state(setup, jax.random.PRNGKey(0)))
    after, metrics = jax.eval_shape(functools.partial(pretrain.train_step, setup), state, batch_of())
    dtypes = lambda tree: jax.tree.map(lambda leaf: leaf.dtype, tree)
    assert {*jax.tree.leaves(dtypes(state.params))} == {jnp.dtype("bfloat16")}
    assert dtypes(after) == dtypes(state)
    assert metrics["loss"].dtype == metrics["spatial/loss"].dtype == jnp.float32
    parts = jnp.zeros((2, 9, 16, 16, 3))
    answer = lambda state: setup.network.apply(training.variables_of(state), parts, "spatial", train=False)
    assert jax.eval_shape(answer, state).dtype == jnp.bfloat16


def test_a_step_can_be_made_again_alone(step, trained):
    saved = jax.device_get(trained)
    after, metrics = step(trained, batch_of(77))
    again = mesh_lib.replicate(saved, mesh_lib.make(1))
    assert_same(step(again, batch_of(77)), (after, metrics))
    # The key stays; it is the step that makes the draws differ.
    np.testing.assert_array_equal(after.key, saved.key)
    other, _ = step(again.replace(step=again.step + 1), batch_of(77))
    assert not np.array_equal(other.selection["spatial"].count, after.selection["spatial"].count)


def test_the_player_counts_what_it_chose_until_it_looks(setup, step, observe, first):
    state = first
    for number in range(setup.tasks[0].player.period):
        state, _ = step(state, batch_of(number))
    assert state.selection["spatial"].count.sum() == setup.tasks[0].player.period * BATCH
    state, (metrics,) = observe(state, [SEEN])
    assert metrics["error"] == pytest.approx(1 - SEEN.accuracy.mean(), rel=1e-5)
    assert state.selection["spatial"].count.sum() == 0
    state, _ = step(state, batch_of(9))
    assert state.selection["spatial"].count.sum() == BATCH


def test_labels_are_what_the_player_chose(step, first):
    """A network that always answers c is right as often as c was chosen, which the player counts."""
    np.testing.assert_array_equal(first.selection["spatial"].group, np.arange(NUM))  # one permutation a group
    shares = []
    for answer in range(NUM):
        params = jax.device_get(first.params)
        params["heads_spatial"]["classifier"] = {
            "kernel": np.zeros_like(params["heads_spatial"]["classifier"]["kernel"]),
            "bias": np.float32(9 * np.eye(NUM)[answer]),
        }
        state = mesh_lib.replicate(first.replace(params=params), mesh_lib.make(1))
        after, metrics = step(state, batch_of())
        shares.append(float(after.selection["spatial"].count[answer]) / BATCH)
        assert metrics["accuracy"] == pytest.approx(shares[-1])
        expected = np.log(np.exp(9) + NUM - 1) - 9 * shares[-1]
        assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert sum(shares) == pytest.approx(1)


def test_what_is_drawn_more_often_is_no_reason_to_guess_it(setup):
    (task,) = setup.tasks
    plain, adjusted = (dataclasses.replace(task, adjust_logits=on).loss for on in (False, True))
    rng, classes = np.random.default_rng(0), jnp.arange(NUM)
    prior = jnp.float32(rng.dirichlet(np.ones(NUM)))
    # Of a network that knows nothing, the mean gradient over what is drawn.
    ignorant = jnp.zeros((NUM, NUM))
    gradient = lambda loss: jax.grad(lambda logits: prior @ loss(logits, classes, prior))(ignorant).sum(0)
    np.testing.assert_allclose(gradient(plain), 1 / NUM - prior, atol=1e-6)
    np.testing.assert_allclose(gradient(adjusted), 0, atol=1e-6)
    np.testing.assert_allclose(adjusted(ignorant, classes, prior), -np.log(prior), rtol=1e-5)
    # Where all are drawn alike there is nothing to adjust; what is never drawn takes no part.
    logits, half = jnp.float32(rng.normal(size=(NUM, NUM))), NUM // 2
    uniform = adjusted(logits, classes, jnp.full(NUM, 1 / NUM))
    np.testing.assert_allclose(uniform, plain(logits, classes, prior), rtol=1e-5)
    of_half = adjusted(logits[:half], classes[:half], jnp.where(classes < half, 1 / half, 0.0))
    np.testing.assert_allclose(of_half, plain(logits[:half, :half], classes[:half], prior), rtol=1e-5)


def test_a_step_adjusts_by_the_probability_that_its_batch_was_drawn_with(step, first):
    """The classifier starts at zero, so that the first loss is the adjustment alone."""
    player = first.selection["spatial"]
    params = jax.device_get(player.params)
    params["params"]["Dense_1"]["bias"] = np.linspace(0, 3, NUM, dtype=np.float32)  # one permutation a group
    state = first.replace(selection={"spatial": player.replace(params=params)})
    after, metrics = step(mesh_lib.replicate(state, mesh_lib.make(1)), batch_of())
    prior = np.asarray(jax.nn.softmax(params["params"]["Dense_1"]["bias"]))
    drawn = np.asarray(after.selection["spatial"].count) / BATCH
    np.testing.assert_allclose(metrics["loss"], drawn @ -np.log(prior), rtol=1e-4)


def test_a_step_adjusts_by_the_pool_that_it_drew_from():
    """That of a curriculum, which has grown once it has chosen."""
    small = {name: value for name, value in SMALL.items() if name != "spatial.selection.num_groups"}
    grows = {"spatial.selection.steps": 1, "spatial.selection.start_share": 0.5}
    setup = pretrain.setup_from_config(load("smoke,policy=curriculum", **small, **grows))
    _, metrics = jax.jit(functools.partial(pretrain.train_step, setup))(create(setup), batch_of())
    np.testing.assert_allclose(metrics["loss"], np.log(NUM / 2), rtol=1e-5)


def held_out(number, seed=0):
    """Batches of eight; the last rows of the last one are padding."""
    batches = []
    for start in range(0, number, BATCH):
        mask = np.arange(start, start + BATCH) < number
        image = pictures(BATCH, seed + start)
        batches.append({"image": image * mask[:, None, None, None], "mask": mask})
    return batches


def naive_skill(setup, state, batches, answered=lambda row, permutation: True):
    """One picture under one permutation after the other, through the network as it is trained."""
    correct, ratio, count = np.zeros((3, NUM))
    (task,) = setup.tasks
    apply = jax.jit(functools.partial(setup.network.apply, task="spatial", train=False))
    for number, batch in enumerate(batches):
        key = jax.random.fold_in(jax.random.key(setup.seed), number)
        tiles = jigsaw.puzzle(key, jnp.asarray(batch["image"]), task.puzzle, train=False)
        for label, order in enumerate(task.orders):
            logits = apply({"params": state.params}, tiles[:, order])
            chances = np.asarray(jax.nn.softmax(logits), np.float64)
            for row in np.flatnonzero(batch["mask"]):
                if answered(row, label):
                    correct[label] += chances[row].argmax() == label
                    ratio[label] += chances[row, label] / np.delete(chances[row], label).max()
                    count[label] += 1
    return correct / count, ratio / count


def make_meter(setup, batches, **skill):
    (task,) = setup.tasks
    skill = dataclasses.replace(task.selection_slice, **skill)
    return tasks.SkillMeter(setup.network, task, skill, batches, setup.seed)


@pytest.mark.parametrize("devices", [1, 4])
def test_skill_is_what_naive_evaluation_finds(setup, trained, devices):
    batches, mesh = held_out(21), mesh_lib.make(devices)
    meter = make_meter(setup, [mesh_lib.shard_batch(batch, mesh) for batch in batches])
    variables = training.variables_of(mesh_lib.replicate(trained, mesh))
    evaluation = meter(variables)
    accuracy, ratio = naive_skill(setup, jax.device_get(trained), batches)
    assert 0 < accuracy.mean() < 1
    np.testing.assert_allclose(evaluation.accuracy, accuracy, atol=1e-6)
    np.testing.assert_allclose(evaluation.ratio, ratio, rtol=1e-3)
    assert_same(meter(variables), evaluation)  # the same puzzles at every look


def test_skill_where_every_picture_answers_some_permutations(setup, trained):
    """Row n of a batch answers 5 of 20 permutations: 5 n, ..., 5 n + 4, modulo 20."""
    batches = held_out(16)
    evaluation = make_meter(setup, batches, classes_per_example=5)(training.variables_of(trained))
    some = lambda row, permutation: (permutation - 5 * row) % NUM < 5
    accuracy, ratio = naive_skill(setup, jax.device_get(trained), batches, some)
    np.testing.assert_allclose(evaluation.accuracy, accuracy, atol=1e-6)
    np.testing.assert_allclose(evaluation.ratio, ratio, rtol=1e-3)


def test_masked_rows_count_for_nothing(setup, trained):
    batch = held_out(5)[0]
    noise = np.where(batch["mask"][:, None, None, None], batch["image"], pictures(BATCH, 99))
    (task,) = setup.tasks
    sums = jax.jit(functools.partial(tasks.skill_sums, setup.network, task, task.selection_slice))
    key, variables = jax.random.key(0), training.variables_of(trained)
    clean = sums(variables, batch, key)
    np.testing.assert_array_equal(clean["count"], 5)
    assert_same(sums(variables, batch | {"image": noise}, key), clean)


def test_validation_names_the_worst_group():
    accuracy = jnp.repeat(jnp.asarray([0.9, 0.1, 0.5]), 10)
    seen = Evaluation(accuracy=accuracy, ratio=jnp.exp(accuracy))
    easy = Evaluation(accuracy=accuracy + 0.1, ratio=seen.ratio)
    metrics = pretrain.validation_metrics({"spatial": seen, "temporal": easy})
    assert metrics["val/spatial/accuracy"] == pytest.approx(0.5)
    assert metrics["val/spatial/worst_group_accuracy"] == pytest.approx(0.1)
    assert metrics["val/temporal/accuracy"] == pytest.approx(0.6)
    assert metrics["val/accuracy"] == pytest.approx(0.55)


def test_where_classes_differ_in_number_their_mean_is_the_balanced_accuracy():
    seen = Evaluation(accuracy=jnp.asarray([0.9, 0.1, 0.5]), ratio=jnp.asarray([9.0, 0.1, 1.0]))
    metrics = pretrain.validation_metrics(
        {"colorization": seen, "spatial": seen}, {"colorization": np.array([80, 10, 10])}
    )
    assert metrics["val/colorization/accuracy"] == pytest.approx(0.72 + 0.01 + 0.05)
    assert metrics["val/colorization/balanced_accuracy"] == pytest.approx(0.5)
    assert metrics["val/colorization/worst_group_accuracy"] == pytest.approx(0.1)
    assert metrics["val/accuracy"] == pytest.approx(0.5)
    assert "val/spatial/balanced_accuracy" not in metrics


def test_steps_learn_what_the_meter_measures():
    """Left is red and right is blue: after a few steps both orders are told apart, held out too."""
    setup = make_setup(
        **{
            "spatial.selection.period": 150,
            "spatial.selection.num_groups": 2,
            "spatial.puzzle.grid": (1, 2),
            "spatial.puzzle.normalize": False,
            "spatial.permutations.num": 2,
            "spatial.permutations.include_identity": True,
            "train.learning_rate": 0.01,
            "train.steps": 150,
        },
    )
    images = pictures(2 * BATCH) // 2
    images[:, :, :28, 0] += 120
    images[:, :, 28:, 2] += 120
    batch = {"image": images[BATCH:], "mask": np.ones(BATCH, bool)}
    meter = make_meter(setup, [batch])
    step = jax.jit(functools.partial(pretrain.train_step, setup))
    state = pretrain.create_state(setup, jax.random.PRNGKey(0))
    for _ in range(setup.train.steps):
        state, metrics = step(state, {"image": images[:BATCH]})
    assert metrics["accuracy"] == 1
    np.testing.assert_array_equal(meter(training.variables_of(state)).accuracy, [1, 1])


# --- Learning rate and optimizer


def test_learning_rates_by_hand():
    rates = lambda steps, **train: [
        float(training.make_schedule(training.Train(**COUNTS | {"steps": 30} | train))(at)) for at in steps
    ]
    assert rates([0, 29], schedule="constant") == pytest.approx([2, 2])
    assert rates([0, 15, 30], schedule="cosine") == pytest.approx([2, 1, 0], abs=1e-6)
    assert rates([9, 10, 19, 20, 29], schedule="step") == pytest.approx([2, 0.2, 0.2, 0.02, 0.02])
    warm = {"warmup_steps": 10, "schedule": "cosine"}
    assert rates([0, 5, 10, 20, 30], **warm) == pytest.approx([0, 1, 2, 1, 0], abs=1e-6)


COUNTS = {"steps": 1, "batch_size": 8, "learning_rate": 2.0, "validate_every": 1, "checkpoint_every": 1}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_only_kernels_decay(optimizer):
    train = training.Train(**COUNTS, optimizer=optimizer, schedule="constant", weight_decay=0.01)
    update = training.make_optimizer(train, training.make_schedule(train))
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    changes, _ = update.update(jax.tree.map(jnp.zeros_like, params), update.init(params), params)
    np.testing.assert_allclose(changes["kernel"], -2.0 * 0.01)
    np.testing.assert_array_equal(changes["bias"], 0)


# --- Configs


@pytest.mark.parametrize(
    ("preset", "policy"),
    itertools.product(["default", "smoke", "paper"], ["policy_gradient", "uniform"]),
)
def test_every_preset_and_policy_is_whole(preset, policy):
    setup = pretrain.setup_from_config(load(f"{preset},policy={policy}"))
    (task,) = setup.tasks
    assert task.player_name == policy
    assert (task.player.period > 0) == (policy == "policy_gradient")
    assert task.orders.shape == (setup.network.heads["spatial"].num_classes, 9)


TYPOS = [
    ("sed", "config.seed"),
    ("data.image_sise", "config.data.image_size"),
    ("spatial.puzzle.tle", "config.spatial.puzzle.tile"),
    ("spatial.permutations.metod", "config.spatial.permutations.method"),
    ("encoder.widht", "config.encoder.width"),
    ("spatial.head.dropuot", "config.spatial.head.dropout"),
    ("spatial.selection.periode", "config.spatial.selection.period"),
    ("spatial.selection.slice.exmples", "config.spatial.selection.slice.examples"),
    ("train.stepz", "config.train.steps"),
    ("spatial.validation.batchsize", "config.spatial.validation.batch_size"),
    ("probe.min_entrpy", "config.probe.min_entropy"),
    ("trian", "config.train"),
]


@pytest.mark.parametrize(("typo", "meant"), TYPOS)
def test_a_key_that_nobody_reads_names_the_closest(typo, meant):
    config = load("smoke", **SMALL)
    with config.unlocked():
        section, _, key = typo.rpartition(".")
        (config[section] if section else config)[key] = 1
    with pytest.raises(InputError) as error:
        pretrain.setup_from_config(config)
    assert f"unknown key 'config.{typo}', did you mean {meant!r}?" in str(error.value)


def test_an_unknown_split_names_the_closest():
    config = load("smoke", **SMALL)
    with config.unlocked():
        config.data.splits.trian = "train"
    with pytest.raises(InputError, match=r"did you mean .config\.data\.splits\.train"):
        pretrain.setup_from_config(config)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"encoder.name": "compct"}, "config.encoder.name 'compct', did you mean 'compact'"),
        ({"spatial.selection.name": "polcy_gradient"}, "did you mean 'policy_gradient'"),
        ({"precision": "float23"}, "unknown config.precision 'float23', did you mean 'float32'?"),
        ({"train.optimizer": "adam"}, "config.train.optimizer must be one of 'adamw', 'sgd'"),
        (
            {"spatial.puzzle.window": (300, 54)},
            "config.spatial.puzzle.window=(300, 54) is larger than the images",
        ),
        ({"spatial.puzzle.tile": (16, 19)}, "config.spatial.puzzle.tile=(16, 19) is larger than a cell"),
        ({"train.accumulate": 3}, "must be a multiple of config.train.accumulate=3"),
        ({"train.log_every": 0}, "config.train.log_every must be at least 1"),
        ({"spatial.permutations.num": 0}, "num"),
        (
            {"train.warmup_steps": -1},
            "config.train.warmup_steps must be at least 0, not -1.",
        ),
        ({"train.learning_rate": 0.0}, "config.train.learning_rate=0.0 must be above 0"),
        ({"train.weight_decay": -0.1}, "weight_decay=-0.1 at least 0"),
        (
            {"spatial.selection.period": 25},
            "config.spatial.selection.period=25 is longer than config.train.steps=24, so that policy",
        ),
        ({"spatial.selection.baseline_decay": 1.0}, "baseline_decay must be at least 0 and below 1, not 1.0"),
        ({"spatial.head.dropout": 1.0}, "config.spatial.head.dropout must lie in [0, 1), not 1.0"),
        ({"spatial.validation.examples": 0}, "config.spatial.validation.examples=0 and batch_size=8 must be"),
        (
            {"spatial.validation.classes_per_example": 21},
            "classes_per_example=21 from 1 to the 20 classes",
        ),
        (
            {"spatial.selection.slice.classes_per_example": 2, "spatial.selection.slice.examples": 4},
            "classes_per_example=2 times its examples=4 must be at least the 20 classes",
        ),
        (
            {"probe.pool": (9, 1)},
            "config.probe.pool=(9, 1) must have from 1 to 8 rows and from 1 to 8 columns",
        ),
        ({"probe.pool": (0, 1)}, "config.probe.pool=(0, 1) must have from 1 to"),
        ({"probe.train_frames": 0}, "config.probe.train_frames must be at least 1, not 0"),
        ({"probe.weight_decays": (0.0,)}, "must name numbers above 0"),
    ],
)
def test_values_that_cannot_be_are_named(overrides, sentence):
    with pytest.raises(InputError) as error:
        make_setup(**overrides)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            {"data.stride": (2, 1)},
            "config.data.stride=(2, 1) must be the least and the largest number of steps",
        ),
        ({"data.min_motion": -1.0}, "config.data.min_motion=-1.0 must be a difference of grey levels"),
    ],
)
def test_clips_that_cannot_be_are_named(overrides, sentence):
    config = config_lib.load(f"{CONFIG.with_name('spatiotemporal_rl.py')}:smoke", overrides)
    with pytest.raises(InputError) as error:
        pretrain.setup_from_config(config)
    assert str(error.value).startswith(sentence)


def test_a_batch_must_divide_among_the_devices(atari_tiny_dir):
    setup = make_setup(**{"train.batch_size": 6, "data.data_dir": atari_tiny_dir})
    with pytest.raises(InputError, match=r"batch_size=6 must be a multiple of the 4 devices"):
        pretrain.open_batches(setup, pretrain.open_data(setup))


# --- The paper's setting


def test_the_papers_network_makes_a_step():
    setup = pretrain.setup_from_config(load("paper", **{"train.batch_size": 2}))
    assert (setup.tasks[0].orders.shape, setup.tasks[0].puzzle.tile) == ((100, 9), (75, 75))
    state = pretrain.create_state(setup, jax.random.PRNGKey(0))
    fc6 = state.params["heads_spatial"]["fc6"]["kernel"]
    assert fc6.shape == (3 * 3 * 256, 1024)
    step = jax.jit(functools.partial(pretrain.train_step, setup), donate_argnums=0)
    # Smooth, as photographs are; features of noise are several times as large.
    images = jax.image.resize(pictures(2, size=(8, 8)).astype(np.float32), (2, 256, 256, 3), "linear")
    state, metrics = step(state, {"image": images.astype(jnp.uint8)})
    np.testing.assert_allclose(metrics["loss"], np.log(100), rtol=1e-4)  # the classifier starts at zero
    assert np.isfinite(float(metrics["gradient_norm"]))
    assert state.step == 1


def test_the_paper_with_a_thousand_permutations_fits_together():
    setup = pretrain.setup_from_config(load("paper", **{"spatial.permutations.num": 1000}))
    state = jax.eval_shape(functools.partial(pretrain.create_state, setup), jax.random.PRNGKey(0))
    assert state.params["heads_spatial"]["classifier"]["kernel"].shape == (4096, 1000)
    images = jax.ShapeDtypeStruct((256, *setup.data.image_size, 3), jnp.uint8)
    after, metrics = jax.eval_shape(functools.partial(pretrain.train_step, setup), state, {"image": images})
    assert after == state
    assert metrics["loss"].shape == ()
    mask = jax.ShapeDtypeStruct((256,), jnp.bool_)
    (task,) = setup.tasks
    look = functools.partial(tasks.skill_sums, setup.network, task, task.selection_slice)
    sums = jax.eval_shape(
        look, training.variables_of(state), {"image": images, "mask": mask}, jax.random.key(0)
    )
    assert {name: values.shape for name, values in sums.items()} == dict.fromkeys(
        ("correct", "ratio", "count"), (1000,)
    )


def test_tiles_that_are_too_small_for_the_network_are_named():
    small = {
        "data.image_size": (120, 120),
        "spatial.puzzle.window": (96, 96),
        "spatial.puzzle.tile": (32, 32),
    }
    setup = pretrain.setup_from_config(load("paper", **small))
    with pytest.raises(InputError, match="32 x 32 pixels are too small for CaffeNet"):
        pretrain.create_state(setup, jax.random.PRNGKey(0))
