import dataclasses
import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax.evaluation import finetune
from ssl_jax.networks import CaffeNet, Compact
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime.errors import InputError

SIZE, CLASSES = (16, 16), 3
ENCODER = Compact(width=8)


def encode(params, images):
    maps = ENCODER.apply({"params": params}, images.astype(jnp.float32) / 255 - 0.5)
    return maps.mean((1, 2))


@pytest.fixture(scope="module")
def params():
    return jax.jit(ENCODER.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 3)))["params"]


def pictures(number, seed):
    """Stripes of one of three orientations, at a random place and of random colours."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=number)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = np.stack([rows, columns, rows + columns])[labels] * (2 * np.pi / 6)
    waves = np.sin(waves + rng.uniform(0, 6, (number, 1, 1)))[..., None] * rng.uniform(
        60, 120, (number, 1, 1, 3)
    )
    return np.clip(128 + waves, 0, 255).astype(np.uint8), labels


def batches(number, seed, size=16):
    """Batches of `size` in which the last row is padding with a wrong label."""
    images, labels = pictures(number, seed)
    for start in range(0, number, size - 1):
        part = slice(start, start + size - 1)
        rows = len(labels[part])
        pad = [(0, size - rows)]
        yield {
            "image": np.pad(images[part], pad + [(0, 0)] * 3),
            "label": np.pad(labels[part], pad, constant_values=CLASSES + 5),
            "mask": np.arange(size) < rows,
        }


def endless(size=16):
    for seed in range(10_000):
        images, labels = pictures(size, 100 + seed)
        yield {"image": images, "label": labels}


def examples():
    return finetune.Examples(
        train=endless(),
        validation=functools.partial(batches, 60, 1),
        test=functools.partial(batches, 120, 2),
        image_size=SIZE,
        num_classes=CLASSES,
    )


def train(params, devices=1, **options):
    protocol = finetune.Protocol(
        **{"steps": 120, "batch_size": 16, "learning_rate": 0.02, "validate_every": 30} | options
    )
    return finetune.finetune(encode, ENCODER, params, examples(), protocol, mesh_lib.make(devices))


def test_an_encoder_learns_what_its_random_start_does_not_tell(params):
    before = jax.tree.map(np.array, params)
    scores = train(params)
    assert scores["accuracy"] > 0.9
    assert scores["validation_accuracy"] > 0.9
    assert 30 <= scores["step"] <= 120
    jax.tree.map(np.testing.assert_array_equal, params, before)


@pytest.mark.parametrize("devices", [1, 4])
def test_padding_counts_for_nothing(devices):
    """Answers by brightness, which are right now and then; padding has labels that are no class."""
    answer = lambda params, images: jax.nn.one_hot(
        jnp.minimum((images / 255).mean((1, 2, 3)) * CLASSES, CLASSES - 1).astype(int), CLASSES
    )
    images, labels = pictures(100, 1)
    expected = np.mean(answer(None, images).argmax(-1) == labels)
    assert 0.1 < expected < 0.9
    scores = finetune._score(answer, mesh_lib.make(devices), False, None, batches(100, 1))
    assert scores["accuracy"] == expected


def test_four_devices_do_what_one_does(params):
    rates = finetune.learning_rates(ENCODER, SIZE, finetune.Protocol())
    optimizer = optax.sgd(0.1)
    step = jax.jit(functools.partial(finetune.train_step, encode, optimizer, rates))
    after = []
    for devices in (1, 4):
        mesh = mesh_lib.make(devices)
        state = mesh_lib.replicate(finetune.create_state(encode, params, SIZE, CLASSES, optimizer), mesh)
        for batch in itertools.islice(endless(), 3):
            state, _ = step(state, mesh_lib.shard_batch(batch, mesh))
        after.append(state.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *after)


def test_training_stops_when_validation_does_not_improve(params):
    """At a rate of nearly nothing every look finds the same: the first is kept, and patience ends it."""
    taken = []
    protocol = finetune.Protocol(
        steps=50, batch_size=16, learning_rate=1e-12, validate_every=2, patience=3, weight_decay=0.0
    )
    some = finetune.Examples(
        train=(taken.append(1) or batch for batch in endless()),
        validation=functools.partial(batches, 60, 1),
        test=functools.partial(batches, 60, 2),
        image_size=SIZE,
        num_classes=CLASSES,
    )
    scores = finetune.finetune(encode, ENCODER, params, some, protocol, mesh_lib.make(1))
    assert scores["step"] == 2
    assert len(taken) == 2 + 3 * 2


def test_a_loss_that_is_not_finite_is_named(params):
    broken = jax.tree.map(lambda leaf: leaf * np.inf, params)
    with pytest.raises(InputError, match=r"the loss of fine-tuning is \w+ at step 4; lower"):
        train(broken, steps=8, validate_every=4)


def test_answers_that_are_not_finite_are_not_taken_for_the_first_class(params):
    """Numbers that overflow on the test examples alone, whose first row is white."""
    diverging = lambda params, images: jnp.where(
        (images[:, :1] == 255).all((1, 2, 3))[:, None], jnp.nan, encode(params, images)
    )

    def white(examples):
        for batch in examples:
            batch["image"][:, :1] = 255
            yield batch

    given = dataclasses.replace(examples(), test=lambda: white(batches(30, 2)))
    protocol = finetune.Protocol(steps=1, batch_size=16)
    with pytest.raises(InputError, match=r"answers after fine-tuning are not finite; lower"):
        finetune.finetune(diverging, ENCODER, params, given, protocol, mesh_lib.make(1))


# --- Who learns how fast


def test_parameters_belong_to_the_first_layer_that_needs_them():
    depths = finetune.depths(CaffeNet(), (75, 75))
    assert {name: set(jax.tree.leaves(part)) for name, part in depths.items()} == {
        "conv1": {0},
        "conv2": {1},
        "conv3": {2},
        "conv4": {3},
        "conv5": {4},
    }


class Normed(nn.Module):
    """Layers of several modules, whose names do not say which layer they are of."""

    layers = ("low", "high")

    @nn.compact
    def __call__(self, x, *, train=False, layer=None):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Conv(4, (3, 3), name="stem")(x))
        if layer == "low":
            return x
        return nn.Conv(4, (3, 3), name="top")(x)


def test_rates_fall_with_the_depth_and_end_where_layers_are_frozen():
    rates = finetune.learning_rates(Normed(), SIZE, finetune.Protocol(layer_decay=0.5))
    assert rates["head"] == {"kernel": 1, "bias": 1}
    assert rates["encoder"] == {
        "stem": {"kernel": 0.25, "bias": 0.25},
        "norm": {"scale": 0.25, "bias": 0.25},
        "top": {"kernel": 0.5, "bias": 0.5},
    }
    frozen = finetune.learning_rates(Normed(), SIZE, finetune.Protocol(layer_decay=0.5, from_layer="high"))
    assert set(jax.tree.leaves({name: frozen["encoder"][name] for name in ("stem", "norm")})) == {0.0}
    assert frozen["encoder"]["top"] == rates["encoder"]["top"]
    with pytest.raises(InputError, match=r"unknown from_layer 'hihg', did you mean 'high'"):
        finetune.learning_rates(Normed(), SIZE, finetune.Protocol(from_layer="hihg"))


def test_frozen_layers_stay_bit_for_bit_and_the_others_move_by_their_rates(params):
    protocol = finetune.Protocol(from_layer="conv2", layer_decay=0.1, learning_rate=0.01, weight_decay=0.1)
    rates = finetune.learning_rates(ENCODER, SIZE, protocol)
    optimizer = finetune.make_optimizer(protocol, rates)
    state = finetune.create_state(encode, params, SIZE, CLASSES, optimizer)
    # The gradient does not pass a classifier of zeros.
    head = {"kernel": jax.random.normal(jax.random.key(1), (8, CLASSES)), "bias": jnp.zeros(CLASSES)}
    state = state.replace(params=state.params | {"head": head}, opt_state=optimizer.init(state.params))
    start = state.params
    step = jax.jit(functools.partial(finetune.train_step, encode, optimizer, rates))
    for batch in itertools.islice(endless(), 3):
        state, loss = step(state, batch)
    assert np.isfinite(loss)
    assert state.step == 3
    moved = jax.tree.map(lambda new, old: float(np.abs(new - old).max()), state.params, start)
    assert set(jax.tree.leaves(moved["encoder"]["conv1"])) == {0.0}
    # Adam's steps are about as long as the rate, whatever the gradient: they show the factors of 10.
    assert 0.03 < moved["encoder"]["conv3"]["kernel"] / moved["head"]["kernel"] < 0.3
    assert 0.03 < moved["encoder"]["conv2"]["kernel"] / moved["encoder"]["conv3"]["kernel"] < 0.3


def test_a_step_by_hand():
    """One feature, the mean of the picture; two classes: everything can be written down."""

    class One(nn.Module):
        layers = ("only",)

        @nn.compact
        def __call__(self, x, *, train=False, layer=None):
            return x * self.param("scale", nn.initializers.ones, (1,))[None, None, None]

    brightness = lambda params, images: (images / 255).mean((1, 2, 3))[:, None] * params["scale"][None]
    rates = {"encoder": {"scale": 0.0}, "head": {"kernel": 1.0, "bias": 1.0}}
    optimizer = optax.sgd(1.0)
    state = finetune.create_state(brightness, {"scale": np.ones(1)}, (2, 2), 2, optimizer)
    batch = {"image": np.full((1, 2, 2, 3), 51, np.uint8), "label": np.array([1])}
    state, loss = finetune.train_step(brightness, optimizer, rates, state, batch)
    assert loss == pytest.approx(np.log(2))
    # Both classes have probability 1 / 2, so the gradient of the logits is 1 / 2, -1 / 2.
    np.testing.assert_allclose(state.params["head"]["bias"], [-0.5, 0.5])
    np.testing.assert_allclose(state.params["head"]["kernel"], [[-0.1, 0.1]], rtol=1e-6)
    assert state.params["encoder"]["scale"] == 1


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"patience": 0}, {"layer_decay": 0.0}, {"layer_decay": 1.5}]
)
def test_protocols_that_cannot_be(options):
    with pytest.raises(InputError, match=f"^{next(iter(options))} must"):
        finetune.Protocol(**options)
