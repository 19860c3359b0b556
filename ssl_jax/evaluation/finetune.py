"""Classification by an encoder that goes on learning: all of its layers, or the upper ones.

The usual test of whether pre-training is a good start (Noroozi and Favaro 2016, Sec. 4.1; Büchler et al.
2018, Sec. 4): a linear classifier is put on the encoder, and both are trained on labels. Layers far from the
classifier may learn more slowly, each by the same factor (Howard and Ruder 2018, Sec. 3.2), or not at all.

Running statistics of normalisation layers stay as they are: `encode` closes over them.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import special

from ssl_jax.evaluation import scores
from ssl_jax.evaluation.features import Batches
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime import watching
from ssl_jax.runtime.config import check_known
from ssl_jax.runtime.errors import InputError

Encode = Callable[[Any, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How an encoder is fine-tuned; stored with its scores.

    Attributes:
      steps: of training, at most.
      batch_size: pictures per step, over all devices.
      learning_rate: peak of the classifier's; a cosine to zero after a tenth of the steps of warm-up.
      weight_decay: of the kernels, decoupled (AdamW).
      from_layer: lowest layer of the encoder that is trained; None: all are.
      layer_decay: in (0, 1]: each layer learns at this times the rate of the one above it, the encoder's
        last layer at this times the classifier's.
      validate_every: steps between looks at the validation examples; the best of them is kept.
      patience: training stops after so many looks in a row without a better one.
    """

    steps: int = 500
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    from_layer: str | None = None
    layer_decay: float = 0.7
    validate_every: int = 50
    patience: int = 4

    def __post_init__(self):
        for name in ("steps", "batch_size", "validate_every", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay must lie in (0, 1], not {self.layer_decay}.")


@flax.struct.dataclass
class State:
    """What training changes.

    Attributes:
      step: int32 [], steps made.
      params: {"encoder": of the encoder, "head": {"kernel": float32 [D, C], "bias": float32 [C]}}.
      opt_state: of the optimizer.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def depths(encoder: nn.Module, image_size: tuple[int, int]) -> Any:
    """The layer that each parameter belongs to: a tree like the encoder's parameters of numbers from 0.

    A parameter belongs to the first of `encoder.layers` whose output needs it: that which is not made when
    only the layers before are asked for.
    """
    images = jnp.zeros((1, *image_size, 3))
    shapes = lambda layer: jax.eval_shape(
        functools.partial(encoder.init, layer=layer), jax.random.key(0), images
    )
    found = {}
    for depth, layer in enumerate(encoder.layers):
        params = shapes(layer)["params"]
        for path, _ in jax.tree_util.tree_leaves_with_path(params):
            found.setdefault(path, depth)
    return jax.tree_util.tree_map_with_path(lambda path, _: found[path], params)


def learning_rates(encoder: nn.Module, image_size: tuple[int, int], protocol: Protocol) -> Any:
    """Rates of {"encoder": tree, "head": {"kernel", "bias"}} relative to that of the head; 0 is frozen.

    Raises:
      InputError: the encoder has no layer of the name `from_layer`.
    """
    first = 0
    if protocol.from_layer is not None:
        check_known("from_layer", protocol.from_layer, encoder.layers)
        first = encoder.layers.index(protocol.from_layer)
    rate = lambda depth: protocol.layer_decay ** (len(encoder.layers) - depth) if depth >= first else 0.0
    of_encoder = jax.tree.map(rate, depths(encoder, image_size))
    return {"encoder": of_encoder, "head": {"kernel": 1.0, "bias": 1.0}}


def make_optimizer(protocol: Protocol, rates: Any) -> optax.GradientTransformation:
    """AdamW whose steps are scaled by `rates`; kernels decay, biases and scales do not."""
    kernels = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, protocol.learning_rate, max(protocol.steps // 10, 1), max(protocol.steps, 2)
    )
    scale = lambda updates, params: jax.tree.map(jnp.multiply, updates, rates)
    return optax.chain(
        optax.adamw(schedule, weight_decay=protocol.weight_decay, mask=kernels), optax.stateless(scale)
    )


def create_state(
    encode: Encode,
    params: Any,
    image_size: tuple[int, int],
    num_classes: int,
    optimizer: optax.GradientTransformation,
) -> State:
    """A state before the first step: the encoder as it is given, and a classifier of zeros."""
    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.uint8)
    width = jax.eval_shape(encode, params, image).shape[1]
    head = {"kernel": jnp.zeros((width, num_classes)), "bias": jnp.zeros(num_classes)}
    params = {"encoder": jax.tree.map(jnp.asarray, params), "head": head}
    return State(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def logits(encode: Encode, params: Any, images: jax.Array) -> jax.Array:
    """Images uint8 [B, H, W, 3] -> float32 [B, C]."""
    head = params["head"]
    return encode(params["encoder"], images) @ head["kernel"] + head["bias"][None]


def train_step(
    encode: Encode,
    optimizer: optax.GradientTransformation,
    rates: Any,
    state: State,
    batch: Mapping[str, jax.Array],
) -> tuple[State, jax.Array]:
    """One update.

    Args:
      encode: (parameters of the encoder, uint8 [B, H, W, 3]) -> features float32 [B, D]; enters by closure.
      optimizer: see `make_optimizer`; enters by closure.
      rates: see `learning_rates`; enter by closure.
      state: before the step.
      batch: {"image": uint8 [B, H, W, 3], "label": int [B]}.

    Returns:
      The next state and the loss, float32 [].
    """

    def objective(params):
        # No gradient is computed for layers below the first that learns.
        params = jax.tree.map(lambda leaf, rate: leaf if rate else jax.lax.stop_gradient(leaf), params, rates)
        answers = logits(encode, params, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(answers, batch["label"]).mean()

    loss, gradient = jax.value_and_grad(objective)(state.params)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return State(step=state.step + 1, params=params, opt_state=opt_state), loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """What is learned from and scored on.

    Attributes:
      train: endless batches {"image": uint8 [B, H, W, 3], "label": int [B]}.
      validation: opens batches with "mask" as well, bool [B], False for rows to leave out.
      test: likewise.
      image_size: (H, W).
      num_classes: labels are 0, ..., num_classes - 1.
      by_video: videos are scored, which "episode" numbers in the batches, and not their frames.
    """

    train: Iterator[Mapping[str, np.ndarray]]
    validation: Callable[[], Batches]
    test: Callable[[], Batches]
    image_size: tuple[int, int]
    num_classes: int
    by_video: bool = False


def finetune(
    encode: Encode,
    encoder: nn.Module,
    params: Any,
    examples: Examples,
    protocol: Protocol,
    mesh: jax.sharding.Mesh,
) -> dict[str, float]:
    """Trains with early stopping and scores the best state.

    Args:
      encode: (parameters of the encoder, uint8 [B, H, W, 3]) -> features float32 [B, D]; differentiable.
      encoder: whose `layers` name what learns how fast.
      params: of the encoder, to begin with; they are not changed.
      examples: to learn from and to score on.
      protocol: of the training.
      mesh: devices that share every batch.

    Returns:
      "accuracy", "balanced_accuracy" and "macro_f1" on the test examples (see `scores.classification`; of
      videos "frame_accuracy" as well, see `scores.video_classification`), "validation_accuracy" and the
      "step" of the state that was scored.

    Raises:
      InputError: no layer `from_layer`, a batch that cannot be divided among the devices, or a loss or an
        answer that is not finite.
    """
    rates = learning_rates(encoder, examples.image_size, protocol)
    optimizer = make_optimizer(protocol, rates)
    create = lambda params: create_state(encode, params, examples.image_size, examples.num_classes, optimizer)
    state = jax.jit(create)(params)
    state = mesh_lib.replicate(state, mesh)
    step = jax.jit(functools.partial(train_step, encode, optimizer, rates))
    answer = jax.jit(functools.partial(logits, encode))
    score = functools.partial(_score, answer, mesh, examples.by_video)
    best, best_params, waited = {"accuracy": -1.0, "step": 0}, state.params, 0
    for number in range(1, protocol.steps + 1):
        watching.at_step(number)
        batch = next(examples.train)
        batch = mesh_lib.shard_batch(
            {"image": batch["image"], "label": batch["label"].astype(np.int32)}, mesh
        )
        state, loss = step(state, batch)
        if number % protocol.validate_every and number != protocol.steps:
            continue
        if not np.isfinite(loss):
            raise InputError(
                f"the loss of fine-tuning is {loss} at step {number}; lower config.finetune.learning_rate"
            )
        accuracy = score(state.params, examples.validation())["accuracy"]
        waited += 1
        if accuracy > best["accuracy"]:
            best, best_params, waited = {"accuracy": accuracy, "step": number}, state.params, 0
        if waited == protocol.patience:
            break
    return score(best_params, examples.test()) | {
        "validation_accuracy": best["accuracy"],
        "step": best["step"],
    }


def _score(answer, mesh, by_video, params, batches):
    """Answers on batches with masks: every example counts once, on any number of devices."""
    labels, answers, videos = [], [], []
    for batch in batches:
        mask = batch["mask"]
        given = np.asarray(answer(params, mesh_lib.shard_batch({"image": batch["image"]}, mesh)["image"]))
        labels.append(batch["label"][mask])
        if not np.isfinite(given[mask]).all():
            raise InputError("answers after fine-tuning are not finite; lower config.finetune.learning_rate")
        answers.append(special.softmax(given[mask], -1) if by_video else given[mask].argmax(-1))
        videos.append(batch["episode"][mask] if by_video else [])
    labels, answers = np.concatenate(labels), np.concatenate(answers)
    if by_video:
        return scores.video_classification(labels, answers, np.concatenate(videos))
    return scores.classification(labels, answers)
