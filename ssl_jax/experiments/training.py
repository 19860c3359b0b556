"""What experiments that train a network on pictures share: optimizer, micro-batches, rates, checkpoints."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from ssl_jax.data import pipeline
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import distributed
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.checkpoints import Checkpoints
from ssl_jax.runtime.errors import InputError

ADVICE = "try a lower config.train.learning_rate, or a longer config.train.warmup_steps"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Section `train`: the optimization, and how often things happen, in steps.

    Attributes:
      steps: training steps.
      batch_size: pictures per step, over all devices and processes.
      accumulate: micro-batches that a batch is split into to save memory.
      optimizer: "adamw", or "sgd" with momentum and weight decay as in Caffe.
      learning_rate: its peak.
      warmup_steps: of linear warm-up.
      schedule: of the learning rate after the warm-up: "constant", "cosine" to zero, or "step", a
        tenth of it after each third of the steps.
      momentum: of SGD.
      weight_decay: of the kernels; decoupled with adamw.
      log_every: a line of metrics.
      validate_every: held-out accuracy under all permutations, and a checkpoint that can be the best.
      checkpoint_every: a checkpoint besides.
      keep_checkpoints: how many of the newest are kept, besides the best.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    momentum: float = 0.9
    weight_decay: float = 0.0
    log_every: int = 10
    validate_every: int
    checkpoint_every: int
    keep_checkpoints: int = 2

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "validate_every",
                     "checkpoint_every", "keep_checkpoints"):  # fmt: skip
            if getattr(self, name) < 1:
                raise InputError(f"config.train.{name} must be at least 1.")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"config.train.batch_size={self.batch_size} must be a multiple of "
                f"config.train.accumulate={self.accumulate}."
            )
        if self.warmup_steps < 0:
            raise InputError(f"config.train.warmup_steps must be at least 0, not {self.warmup_steps}.")
        if self.learning_rate <= 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise InputError(
                f"config.train.learning_rate={self.learning_rate} must be above 0, weight_decay="
                f"{self.weight_decay} at least 0, and momentum={self.momentum} in [0, 1)."
            )


def make_schedule(train: Train) -> optax.Schedule:
    """The learning rate at each step."""
    rest = max(train.steps - train.warmup_steps, 1)
    after = {
        "constant": lambda: optax.constant_schedule(train.learning_rate),
        "cosine": lambda: optax.cosine_decay_schedule(train.learning_rate, rest),
        "step": lambda: optax.piecewise_constant_schedule(
            train.learning_rate, {rest // 3: 0.1, 2 * rest // 3: 0.1}
        ),
    }[train.schedule]()
    if not train.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, train.learning_rate, train.warmup_steps)
    return optax.join_schedules([warmup, after], [train.warmup_steps])


def length(train: Train) -> config_lib.Length:
    """Whether a run that has ended may be made longer: where the learning rate does not depend on the end."""
    fixed = None
    if train.schedule != "constant":
        fixed = (
            f"with config.train.schedule={train.schedule!r} the learning rate of the steps already made "
            "depends on how many there are to be; only runs with schedule=constant can be made longer"
        )
    return config_lib.Length("train.steps", fixed)


def make_optimizer(train: Train, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD with momentum and L2 decay, or AdamW; only kernels decay, biases and scales do not."""
    kernels = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    if train.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=train.weight_decay, mask=kernels)
    return optax.chain(
        optax.add_decayed_weights(train.weight_decay, kernels),
        optax.sgd(schedule, momentum=train.momentum),
    )


def variables_of(state: Any) -> dict[str, Any]:
    """What the network is applied to."""
    return {"params": state.params, "batch_stats": state.batch_stats}


def accumulate_gradients(objective, parts: int, params, batch_stats, inputs, targets, key):
    """The mean gradient over `parts` micro-batches, one after the other in memory.

    Micro-batch i takes rows i, i + parts, ...: so each has rows on every device.

    Returns:
      Gradient, batch_stats, and the metrics, averaged.
    """
    value_and_gradient = jax.value_and_grad(objective, has_aux=True)
    if parts == 1:
        (_, (batch_stats, metrics)), gradient = value_and_gradient(params, batch_stats, inputs, targets, key)
        return gradient, batch_stats, metrics

    def micro_batches(rows):
        return rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]).swapaxes(0, 1)

    def accumulate(batch_stats, part):
        inputs, targets, number = part
        (_, (batch_stats, metrics)), gradient = value_and_gradient(
            params, batch_stats, inputs, targets, jax.random.fold_in(key, number)
        )
        return batch_stats, (gradient, metrics)

    def add(carry, part):
        batch_stats, sums = carry
        batch_stats, terms = accumulate(batch_stats, part)
        return (batch_stats, jax.tree.map(jnp.add, sums, terms)), None

    divided = (*jax.tree.map(micro_batches, (inputs, targets)), jnp.arange(parts))
    _, shapes = jax.eval_shape(accumulate, batch_stats, jax.tree.map(lambda rows: rows[0], divided))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    (batch_stats, sums), _ = jax.lax.scan(add, (batch_stats, zeros), divided)
    gradient, metrics = jax.tree.map(lambda total: total / parts, sums)
    return gradient, batch_stats, metrics


def joins_gradients(train: Train, layout: mesh_lib.Layout, batch_stats: Any) -> bool:
    """Whether the devices of a run had better tell each other their gradients as `joined_gradients` does.

    Processes on CPUs talk by gloo, which waits for the operating system at every array, for several
    milliseconds where no core is idle. Of GPUs and TPUs XLA itself joins what it sends. Where a device's
    rows cannot be divided among the micro-batches, it is left to XLA as well.
    """
    slow = jax.default_backend() == "cpu" and jax.process_count() > 1
    divides = train.batch_size % (jax.device_count() * train.accumulate) == 0
    return slow and divides and not layout.fsdp and not batch_stats


def joined_gradients(mesh: jax.sharding.Mesh, accumulate: Callable) -> Callable:
    """`accumulate_gradients` on every device's own rows, and means over devices, sent as one array.

    Otherwise XLA sends the gradient of each array of parameters by itself, where it arises.

    Args:
      mesh: whose devices have the rows.
      accumulate: (params, batch_stats, inputs, targets, key) -> (gradient, batch_stats, metrics), without
        batch_stats: a device sees only its own rows. Dropout draws from a key of each device.

    Returns:
      The same function, of all rows.
    """
    axis, whole, rows = mesh_lib.DATA_AXIS, PartitionSpec(), PartitionSpec(mesh_lib.DATA_AXIS)

    def of_device(params, batch_stats, inputs, targets, key):
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        gradient, batch_stats, metrics = accumulate(params, batch_stats, inputs, targets, key)
        array, separate = ravel_pytree((gradient, metrics))
        # Two or four processes hear each other's sooner than gloo sums them on their way, in many turns.
        gradient, metrics = separate(jax.lax.all_gather(array, axis).mean(0))
        return gradient, batch_stats, metrics

    specs = {"in_specs": (whole, whole, rows, rows, whole), "out_specs": whole}
    return jax.shard_map(of_device, mesh=mesh, **specs, check_vma=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a run reads and writes; opened by `run`, used by its loop."""

    mesh: jax.sharding.Mesh
    workdir: Path
    data: Any
    batches: Mapping[str, pipeline.TrainBatches]
    checkpoints: Checkpoints
    metrics: metrics_lib.Metrics
    stopwatch: metrics_lib.Stopwatch


def batch_options(
    train: Train,
    data: Any,
    *,
    image_size: tuple[int, int],
    seed: int,
    min_size: tuple[int, int] | None = None,
) -> pipeline.TrainOptions:
    """How this process reads its part of every training batch.

    Args:
      train: section `train`.
      data: section `data`, with `max_bad_share`, `workers`, `threads` and `prefetch`.
      image_size: height and width of the pictures in a batch.
      seed: of their order.
      min_size: height and width below which a picture is skipped; None: half of `image_size`.

    Raises:
      InputError: a batch cannot be divided among the devices.
    """
    if train.batch_size % jax.device_count():
        raise InputError(
            f"config.train.batch_size={train.batch_size} must be a multiple of the "
            f"{jax.device_count()} devices."
        )
    with config_lib.errors_of("data"):
        return pipeline.TrainOptions(
            batch_size=train.batch_size // jax.process_count(),
            image_size=image_size,
            seed=seed,
            min_size=min_size,
            max_bad_share=data.max_bad_share,
            workers=data.workers,
            threads=data.threads,
            prefetch=data.prefetch,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )


def rates(train: Train, watch: metrics_lib.Stopwatch) -> dict[str, float]:
    """What the steps since the last line of metrics took; nothing where the only one was compiled."""
    seconds, blocks = watch.lap()
    if not blocks["step"]:
        return {}
    working = seconds["data"] + seconds["step"]
    return {
        "time/examples_per_second": blocks["step"] * train.batch_size / working,
        "time/data_wait_share": seconds["data"] / working,
    }


def save(around: Surroundings, step: int, state: Any, held_out: Mapping[str, float]) -> None:
    """Writes a checkpoint in the background."""
    with around.stopwatch("checkpoint"):
        data_state = {
            "batches": {name: state_of_all(stream) for name, stream in around.batches.items()},
            "seconds": around.stopwatch.seconds,
        }
        around.checkpoints.save(step, state, data_state, held_out)


def state_of_all(stream: pipeline.TrainBatches) -> dict[str, Any]:
    """The state of a stream, with what all processes have read and skipped."""
    states = distributed.gather(stream.get_state())
    causes = {(name, index): cause for state in states for name, index, cause in state["causes"]}
    return states[0] | {
        "read": sum(state["read"] for state in states),
        "bad": sum(state["bad"] for state in states),
        "causes": [[*example, cause] for example, cause in causes.items()],
        "refused": dict(sum((Counter(state["refused"]) for state in states), Counter())),
    }
