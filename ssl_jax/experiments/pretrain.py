"""Pre-training on permutation puzzles whose permutations a player chooses.

Büchler, Brattoli and Ommer, "Improving Spatiotemporal Self-Supervision by Deep Reinforcement Learning",
ECCV 2018. One step: the player picks a permutation for every picture, the picture is cut into tiles and
shuffled on the device, the network names the permutation. Every `period` steps the player sees how well
the network does under each permutation on a held-out slice of the training data.
"""

import dataclasses
import functools
import inspect
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging

from ssl_jax.data import pipeline, sources
from ssl_jax.evaluation import linear_probe, state_probe
from ssl_jax.networks import ENCODERS
from ssl_jax.networks.heads import JigsawHead, PuzzleNetwork
from ssl_jax.pretext import jigsaw, permutations
from ssl_jax.report import console, figures, page
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.checkpoints import Checkpoints
from ssl_jax.runtime.errors import InputError
from ssl_jax.runtime.interruption import StopSignal
from ssl_jax.selection import PLAYERS, Evaluation, Player, group_permutations

Metrics = dict[str, jax.Array]
RESULTS_FILE = "results.json"
VALIDATION_GROUPS = 10  # groups of permutations whose worst is reported
ADVICE = "try a lower config.train.learning_rate, or a longer config.train.warmup_steps"


@flax.struct.dataclass
class State:
    """All that training changes: arrays only, so that a checkpoint is arrays.

    Attributes:
      step: int32 [], training steps made.
      key: uint32 [2], the run's key; step t draws from `fold_in(key, t)`, so any step can be recomputed
        alone.
      params: of the puzzle network, float32.
      batch_stats: running statistics of its normalisation layers; {} without such layers.
      opt_state: of the optimizer.
      selection: of the player.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    selection: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Section `data`: which pictures, and how the host reads them (see `pipeline.train_batches`)."""

    name: str
    data_dir: str | None = None
    splits: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    image_size: tuple[int, int]
    min_size: tuple[int, int] | None = None
    max_bad_share: float = 0.05
    workers: int = 0
    threads: int = 2
    prefetch: int = 4

    def __post_init__(self):
        for split in self.splits:
            config_lib.check_known(
                "key",
                f"config.data.splits.{split}",
                [f"config.data.splits.{known}" for known in sources.SPLITS],
            )


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skill:
    """Sections `selection.slice` and `validation`: how skill at every permutation is measured.

    Attributes:
      images: pictures, spread evenly over the split.
      batch_size: pictures per call, over all devices.
      permutations_per_image: how many of the permutations each picture answers, in turn; None: all.
        With 1000 permutations a few hundred keep the cost flat, see `JigsawHead`.
    """

    images: int
    batch_size: int = 64
    permutations_per_image: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe(state_probe.Protocol):
    """Section `probe`: the state probe at the end of a run on frames with RAM labels.

    Attributes:
      enabled: whether it is made.
      pool: rows and columns of the grid over whose cells an encoder's map of a frame is averaged; with C
        channels the features of a frame are rows * columns * C numbers. Keep them fewer than the labelled
        frames of a game: with more, any features do, random ones too.
      train_frames, validation_frames, test_frames: how many of all games are used, spread evenly over
        the split; None: all.
      batch_size: frames per call of the encoder.
    """

    enabled: bool = True
    pool: tuple[int, int] = (2, 2)
    train_frames: int | None = None
    validation_frames: int | None = None
    test_frames: int | None = None
    batch_size: int = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything of a run that is not an array and does not change; built and checked from a config."""

    seed: int
    data: Data
    task: jigsaw.Jigsaw
    permutations: np.ndarray  # int32 [P, m]
    network: PuzzleNetwork
    player: Player
    player_name: str
    selection_slice: Skill
    train: Train
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    validation: Skill
    probe: Probe


def setup_from_config(config: ml_collections.ConfigDict) -> Setup:
    """Reads and checks every section of a config, before anything expensive.

    Raises:
      InputError: a key that nobody reads, a wrong type, or values that do not fit together.
    """

    def make(
        *, experiment: str, seed: int, precision: Literal["float32", "bfloat16"], data: Mapping,
        jigsaw: Mapping, permutations: Mapping, encoder: Mapping, head: Mapping, selection: Mapping,
        train: Mapping, validation: Mapping, probe: Mapping,
    ) -> dict:  # fmt: skip
        return locals()

    sections = make(**config_lib.unpack(config, make, path=""))
    section = lambda name, builder, **kw: config_lib.unpack(sections[name], builder, path=name, **kw)
    dtype = jnp.dtype(sections["precision"])

    data = Data(**section("data", Data))
    task = jigsaw.Jigsaw(**section("jigsaw", jigsaw.Jigsaw))
    task.check(data.image_size)
    orders = permutations.make(
        length=task.num_tiles, **section("permutations", permutations.make, ignore=("length",))
    )
    encoder, options = _choose(sections["encoder"], ENCODERS, "encoder", ignore=("dtype", "parent", "name"))
    head = JigsawHead(
        num_classes=len(orders),
        dtype=dtype,
        **section("head", JigsawHead, ignore=("num_classes", "dtype", "parent", "name")),
    )
    selection = dict(sections["selection"])
    selection_slice = Skill(**config_lib.unpack(selection.pop("slice", {}), Skill, path="selection.slice"))
    known = {"num_permutations": len(orders), "permutations": orders}
    player, player_options = _choose(selection, PLAYERS, "selection", ignore=known)
    asked = inspect.signature(player).parameters
    player_options |= {name: value for name, value in known.items() if name in asked}
    validation = Skill(**section("validation", Skill))
    for path, skill in (("selection.slice", selection_slice), ("validation", validation)):
        if skill.batch_size * (skill.permutations_per_image or len(orders)) < len(orders):
            raise InputError(
                f"config.{path}.permutations_per_image={skill.permutations_per_image} times its batch_size="
                f"{skill.batch_size} must be at least the {len(orders)} permutations, or some have no answer."
            )
    train = Train(**section("train", Train))
    schedule = make_schedule(train)
    return Setup(
        seed=sections["seed"],
        data=data,
        task=task,
        permutations=orders,
        network=PuzzleNetwork(encoder=encoder(dtype=dtype, **options), head=head),
        player=player(**player_options),
        player_name=selection["name"],
        selection_slice=selection_slice,
        train=train,
        optimizer=make_optimizer(train, schedule),
        schedule=schedule,
        validation=validation,
        probe=Probe(**section("probe", Probe)),
    )


def _choose(section, known, path, *, ignore):
    """The builder that a section names, and its arguments: the section's other keys."""
    options = dict(section)
    name = options.pop("name", None)
    config_lib.check_known(f"config.{path}.name", name, known)
    return known[name], config_lib.unpack(options, known[name], path=path, ignore=ignore)


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


def make_optimizer(train: Train, schedule: optax.Schedule) -> optax.GradientTransformation:
    """SGD with momentum and L2 decay, or AdamW; only kernels decay, biases and scales do not."""
    kernels = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    if train.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=train.weight_decay, mask=kernels)
    return optax.chain(
        optax.add_decayed_weights(train.weight_decay, kernels),
        optax.sgd(schedule, momentum=train.momentum),
    )


def create_state(setup: Setup, key: jax.Array) -> State:
    """A state before the first step.

    Raises:
      InputError: the tiles are too small for the encoder.
    """
    key, params_key, player_key = jax.random.split(key, 3)
    tiles = jnp.zeros((1, setup.task.num_tiles, *setup.task.tile, 3))
    variables = dict(jax.jit(functools.partial(setup.network.init, train=False))(params_key, tiles))
    params = variables.pop("params")
    return State(
        step=jnp.zeros((), jnp.int32),
        key=key,
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=setup.optimizer.init(params),
        selection=setup.player.init(player_key),
    )


def train_step(setup: Setup, state: State, batch: Mapping[str, jax.Array]) -> tuple[State, Metrics]:
    """One update: choose permutations, make puzzles, solve them, learn.

    Args:
      setup: of the run; enters by closure.
      state: before the step.
      batch: {"image": uint8 [B, H, W, 3]}.

    Returns:
      The next state, and float32 scalars: loss, accuracy (of this batch), gradient_norm and
      learning_rate.
    """
    key = jax.random.fold_in(state.key, state.step)
    choose_key, puzzle_key, dropout_key = jax.random.split(key, 3)
    images = batch["image"]
    selection, index = setup.player.choose(choose_key, state.selection, images.shape[0])
    tiles = jigsaw.puzzle(puzzle_key, images, setup.task, train=True)
    inputs = jigsaw.shuffle(tiles, jnp.asarray(setup.permutations)[index])

    def objective(params, batch_stats, inputs, targets, dropout_key):
        logits, updated = setup.network.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
        accuracy = (jnp.argmax(logits, -1) == targets).mean()
        return loss, (updated.get("batch_stats", {}), accuracy)

    gradient, batch_stats, loss, accuracy = accumulate_gradients(
        objective, state, inputs, index, dropout_key, setup.train.accumulate
    )
    updates, opt_state = setup.optimizer.update(gradient, state.opt_state, state.params)
    metrics = {
        "loss": loss,
        "accuracy": accuracy,
        "gradient_norm": optax.global_norm(gradient),
        "learning_rate": jnp.asarray(setup.schedule(state.step), jnp.float32),
    }
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
        selection=selection,
    )
    return state, metrics


def accumulate_gradients(objective, state: State, inputs, targets, key, parts: int):
    """The mean gradient over `parts` micro-batches, one after the other in memory.

    Micro-batch i takes rows i, i + parts, ...: so each has rows on every device.

    Returns:
      Gradient, batch_stats, loss and accuracy, the last two averaged.
    """
    value_and_gradient = jax.value_and_grad(objective, has_aux=True)
    if parts == 1:
        (loss, (batch_stats, accuracy)), gradient = value_and_gradient(
            state.params, state.batch_stats, inputs, targets, key
        )
        return gradient, batch_stats, loss, accuracy

    def micro_batches(rows):
        return rows.reshape(rows.shape[0] // parts, parts, *rows.shape[1:]).swapaxes(0, 1)

    def accumulate(carry, part):
        batch_stats, sums = carry
        inputs, targets, number = part
        (loss, (batch_stats, accuracy)), gradient = value_and_gradient(
            state.params, batch_stats, inputs, targets, jax.random.fold_in(key, number)
        )
        sums = jax.tree.map(jnp.add, sums, (gradient, loss, accuracy))
        return (batch_stats, sums), None

    zeros = (jax.tree.map(jnp.zeros_like, state.params), jnp.zeros(()), jnp.zeros(()))
    (batch_stats, sums), _ = jax.lax.scan(
        accumulate,
        (state.batch_stats, zeros),
        (micro_batches(inputs), micro_batches(targets), jnp.arange(parts)),
    )
    gradient, loss, accuracy = jax.tree.map(lambda total: total / parts, sums)
    return gradient, batch_stats, loss, accuracy


def skill_sums(setup: Setup, skill: Skill, state: State, batch, key) -> dict[str, jax.Array]:
    """Answers of the network to one batch of pictures under every permutation of the set.

    Exact, and nearly free of the number of permutations: tiles are encoded once (see `JigsawHead`).

    Args:
      setup: of the run.
      skill: how many permutations each picture answers.
      state: of which params and batch_stats are used.
      batch: {"image": uint8 [B, H, W, 3], "mask": bool [B]}; masked rows count for nothing.
      key: of the windows and gaps; the same key gives the same puzzles.

    Returns:
      float32 [P] sums over the batch: "correct", "ratio" and "count".
    """
    tiles = jigsaw.puzzle(key, batch["image"], setup.task, train=False)
    return setup.network.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        tiles,
        jnp.asarray(setup.permutations),
        mask=batch["mask"],
        permutations_per_image=skill.permutations_per_image,
        method="permutation_statistics",
    )


class SkillMeter:
    """Measures skill at every permutation on fixed batches of pictures, held on the devices."""

    def __init__(self, setup: Setup, skill: Skill, batches: Sequence[Mapping[str, jax.Array]]):
        self._key = jax.random.key(setup.seed)
        self._batches = batches
        self._sums = jax.jit(functools.partial(skill_sums, setup, skill))

    def __call__(self, state: State) -> Evaluation:
        """The same pictures, windows and gaps at every call."""
        sums = [
            self._sums(state, batch, jax.random.fold_in(self._key, number))
            for number, batch in enumerate(self._batches)
        ]
        total = jax.tree.map(lambda *parts: sum(parts), *sums)
        count = jnp.maximum(total["count"], 1)
        return Evaluation(accuracy=total["correct"] / count, ratio=total["ratio"] / count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where a run reads and writes; opened by `run`, used by its loop."""

    mesh: jax.sharding.Mesh
    workdir: Path
    data: sources.Sources
    batches: pipeline.TrainBatches
    checkpoints: Checkpoints
    metrics: metrics_lib.Metrics
    stopwatch: metrics_lib.Stopwatch


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains, judges what was learned, and writes the report; goes on where it was stopped.

    Args:
      config: see `configs/jigsaw_rl.py`.
      workdir: a directory for this config alone.

    Returns:
      What `results.json` holds.

    Raises:
      InputError: see `setup_from_config`; and a data set that is not there, a workdir of another
        config, broken checkpoints, a full disk, a loss that is not finite.
      SystemExit: the run was told to stop (SIGTERM, Ctrl-C), and has saved what it had.
    """
    setup = setup_from_config(config)
    workdir = config_lib.claim_workdir(workdir, config)
    mesh_lib.setup_compilation_cache()
    mesh = mesh_lib.make()
    state = mesh_lib.replicate(create_state(setup, jax.random.PRNGKey(setup.seed)), mesh)
    data = open_data(setup)
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep=setup.train.keep_checkpoints, best_metric="val/accuracy"
    )
    restored = checkpoints.restore(state)
    finished = workdir / RESULTS_FILE
    if restored is not None and restored[0] == setup.train.steps and finished.exists():
        logging.info("%s holds the results of a finished run.", workdir)
        checkpoints.close()
        console.print_results(workdir)
        return json.loads(finished.read_text())
    batches = open_batches(setup, data)
    seconds = {}
    if restored is not None:
        step, state, saved = restored
        batches.set_state(saved["batches"])
        seconds = saved["seconds"]
        logging.info("Going on from step %d.", step)
    around = Surroundings(
        mesh=mesh,
        workdir=workdir,
        data=data,
        batches=batches,
        checkpoints=checkpoints,
        metrics=metrics_lib.Metrics(workdir, resume_step=restored[0] if restored else None),
        stopwatch=metrics_lib.Stopwatch(seconds),
    )
    try:
        state = train(setup, around, state)
        return judge(setup, around, state, config)
    finally:
        batches.close()
        around.metrics.close()
        checkpoints.close()


def open_data(setup: Setup) -> sources.Sources:
    """The data set, built if it is the embedded one."""
    splits = {split: text for split, text in setup.data.splits.items() if text}
    return sources.make(name=setup.data.name, data_dir=setup.data.data_dir, splits=splits)


def open_batches(setup: Setup, data: sources.Sources) -> pipeline.TrainBatches:
    """The training batches of this process."""
    if setup.train.batch_size % jax.device_count():
        raise InputError(
            f"config.train.batch_size={setup.train.batch_size} must be a multiple of the "
            f"{jax.device_count()} devices."
        )
    return pipeline.train_batches(
        data.open("train"),
        batch_size=setup.train.batch_size // jax.process_count(),
        image_size=setup.data.image_size,
        seed=setup.seed,
        min_size=setup.data.min_size,
        max_bad_share=setup.data.max_bad_share,
        workers=setup.data.workers,
        threads=setup.data.threads,
        prefetch=setup.data.prefetch,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def observe(setup: Setup, state: State, evaluation: Evaluation) -> tuple[State, Metrics]:
    """Shows the player what the network can do; one of its sparse updates."""
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
    selection, metrics = setup.player.observe(key, state.selection, evaluation)
    return state.replace(selection=selection), metrics


def train(setup: Setup, around: Surroundings, state: State) -> State:
    """The loop: from the state's step to the last one, with everything that happens beside it."""
    step, last, period = int(state.step), setup.train.steps, setup.player.period
    if step == last:
        return state
    step_function = jax.jit(functools.partial(train_step, setup), donate_argnums=0)
    player_sees = jax.jit(functools.partial(observe, setup))
    selection_skill = skill_meter(setup, around, "selection") if period else None
    validation_skill = skill_meter(setup, around, "validation")
    watch = around.stopwatch
    ledger = metrics_lib.Ledger(around.metrics, around.checkpoints, ADVICE)
    due = lambda every: step % every == 0 or step == last
    with (
        StopSignal() as stop,
        metrics_lib.Progress(last, start=step, description="training") as progress,
    ):
        while step < last and not stop.received:
            with watch("data"):
                images = next(around.batches)["image"]
            with watch("step", compiles=True):
                batch = mesh_lib.shard_batch({"image": images}, around.mesh)
                state, scalars = step_function(state, batch)
                step += 1
                # One step behind, so that the device always has the next step queued.
                ledger.enter(step, {f"train/{name}": value for name, value in scalars.items()})
            if period and step % period == 0:
                ledger.close_page()
                with watch("selection", compiles=True):
                    evaluation = selection_skill(state)
                    state, seen = player_sees(state, evaluation)
                    jax.block_until_ready(state)
                around.metrics.write(step, {f"selection/{name}": value for name, value in seen.items()})
                write_selection(setup, around, state, evaluation, step)
                progress.update(step, {"reward": float(seen["reward"])} if "reward" in seen else {})
            if due(setup.train.log_every):
                line = ledger.write_page(step, rates(setup, watch))
                progress.update(step, {name: line[f"train/{name}"] for name in ("loss", "accuracy")})
            if due(setup.train.validate_every):
                ledger.close_page()
                with watch("validation", compiles=True):
                    held_out = validation_metrics(validation_skill(state))
                around.metrics.write(step, held_out)
                progress.update(step, {"val": held_out["val/accuracy"]})
                save(around, step, state, held_out)
            elif due(setup.train.checkpoint_every):
                ledger.close_page()
                save(around, step, state, {})
            progress.update(step)
    if stop.received and step < last:
        ledger.close_page()
        save(around, step, state, {})
        around.checkpoints.wait()
        stop.leave(step)
    return state


def rates(setup: Setup, watch: metrics_lib.Stopwatch) -> dict[str, float]:
    """What the steps since the last line of metrics took; nothing where the only one was compiled."""
    seconds, blocks = watch.lap()
    if not blocks["step"]:
        return {}
    working = seconds["data"] + seconds["step"]
    return {
        "time/images_per_second": blocks["step"] * setup.train.batch_size / working,
        "time/data_wait_share": seconds["data"] / working,
    }


def skill_meter(setup: Setup, around: Surroundings, split: str) -> SkillMeter:
    """The meter of the selection slice, or of the validation split."""
    skill = setup.selection_slice if split == "selection" else setup.validation
    # Counted apart from the training pictures: a run that resumes reads its slices again.
    skipped = pipeline.Skipped(setup.data.max_bad_share)
    batches = pipeline.evaluation_batches(
        around.data.open(split),
        batch_size=skill.batch_size // jax.process_count(),
        image_size=setup.data.image_size,
        min_size=setup.data.min_size,
        limit=skill.images,
        skipped=skipped,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    on_device = [
        mesh_lib.shard_batch({name: batch[name] for name in ("image", "mask")}, around.mesh)
        for batch in batches
    ]
    around.batches.skipped.causes.update(skipped.causes)
    return SkillMeter(setup, skill, on_device)


def save(around: Surroundings, step: int, state: State, held_out: Mapping[str, float]) -> None:
    """Writes a checkpoint in the background."""
    with around.stopwatch("checkpoint"):
        data_state = {
            "batches": around.batches.get_state(),
            "seconds": around.stopwatch.seconds,
        }
        around.checkpoints.save(step, state, data_state, held_out)


def write_selection(setup, around, state: State, evaluation: Evaluation, step: int) -> None:
    """Writes what the player saw and what it will draw from now on: a line of selection.jsonl."""
    rows = {
        "accuracy": evaluation.accuracy,
        "probability": setup.player.probability(state.selection),
        "group": group_permutations(evaluation, min(VALIDATION_GROUPS, len(setup.permutations))),
    }
    around.metrics.write_rows(step, {name: np.asarray(row).tolist() for name, row in rows.items()})


def validation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """Accuracy over all permutations: mean, and that of the hardest group of them.

    The groups are found on this evaluation, in the same way whoever chose the permutations.
    """
    accuracy = np.asarray(evaluation.accuracy)
    group = np.asarray(group_permutations(evaluation, min(VALIDATION_GROUPS, len(accuracy))))
    return {
        "val/accuracy": float(accuracy.mean()),
        "val/worst_group_accuracy": float(accuracy[group == 0].mean()),
    }


def judge(setup: Setup, around: Surroundings, state: State, config) -> dict[str, Any]:
    """Final numbers, figures, results.json, report.html and the table in the terminal."""
    evaluation = skill_meter(setup, around, "validation")(state)
    initial = create_state(setup, jax.random.PRNGKey(setup.seed))
    with around.stopwatch("probe"):
        probe = probe_states(setup, around.data, {"trained": state, "random": initial})
    draw_figures(setup, around, state)
    minimum, mean = permutations.distance_statistics(setup.permutations)
    seconds = around.stopwatch.seconds
    working = max(seconds.get("data", 0.0) + seconds.get("step", 0.0), 1e-9)
    results = {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "protocol": config.to_dict(),
        "versions": metrics_lib.versions(),
        "device": metrics_lib.device_description(),
        "seed": setup.seed,
        "wall_seconds": sum(seconds.values()),
        "seconds": seconds,
        "final": {
            **validation_metrics(evaluation),
            "val/chance": 1 / len(setup.permutations),
            "time/policy_overhead": seconds.get("selection", 0.0) / working,
            "time/data_wait_share": seconds.get("data", 0.0) / working,
        },
        "permutations": {
            "num": len(setup.permutations),
            "method": config.permutations.method,
            "min_distance": minimum,
            "mean_distance": mean,
        },
        "validation": {"permutation_accuracy": np.asarray(evaluation.accuracy).tolist()},
        "bad_images": around.batches.skipped.counts(),
    }
    if probe:
        results["probe"] = probe
    if jax.process_index() == 0:
        metrics_lib.write_json(around.workdir / RESULTS_FILE, results)
        page.build(around.workdir)
        console.print_results(around.workdir)
    return results


def probe_states(setup: Setup, data: sources.Sources, states: Mapping[str, State]) -> dict[str, Any] | None:
    """The state probe of several states of the network; None without RAM labels."""
    protocol = setup.probe
    if not protocol.enabled:
        return None
    if "ram" not in data.builder.info.features:
        logging.info("%s has no RAM labels: the state probe is left out.", data.name)
        return None
    splits = {
        split: pipeline.evaluation_batches(
            data.open(split, ("ram", "game")),
            batch_size=protocol.batch_size,
            image_size=setup.data.image_size,
            min_size=setup.data.min_size,
            limit=getattr(protocol, f"{split}_frames"),
        )
        for split in ("train", "validation", "test")
    }
    encoders = {name: feature_function(setup, state) for name, state in states.items()}
    scores: dict[str, dict] = {}
    for game, by_encoder in state_probe.evaluate(encoders, splits, data.class_names("game"), protocol):
        for name, values in by_encoder.items():
            scores.setdefault(name, {})[game] = values
    return {
        "encoders": {name: state_probe.summarize(values) for name, values in scores.items()},
        "protocol": dataclasses.asdict(protocol),
    }


def draw_figures(setup: Setup, around: Surroundings, state: State) -> None:
    """Writes the pictures that need the network: puzzles as it sees them, first-layer filters."""
    directory = around.workdir / "figures"
    directory.mkdir(exist_ok=True)
    batch = pipeline.load_arrays(around.data.open("validation"), image_size=setup.data.image_size, limit=6)[
        "image"
    ]
    key = jax.random.fold_in(state.key, state.step)
    choose_key, window_key, tiles_key = jax.random.split(key, 3)
    _, index = setup.player.choose(choose_key, state.selection, len(batch))
    windows = jigsaw.window(window_key, jnp.asarray(batch), setup.task)
    tiles = jigsaw.tiles(tiles_key, windows, setup.task, train=True)
    shown = jigsaw.shuffle(tiles, jnp.asarray(setup.permutations)[index])
    pictures = {
        "tiles": figures.tiles(
            np.asarray(windows),
            np.asarray(shown),
            np.asarray(index),
            setup.permutations,
            grid=setup.task.grid,
        ),
        "filters": figures.filters(np.asarray(first_kernel(state.params["encoder"]))),
    }
    for name, figure in pictures.items():
        (directory / f"{name}.png").write_bytes(figures.png(figure))


def first_kernel(params) -> jax.Array:
    """The kernel [h, w, 3, n] of the convolution that sees the pixels."""
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4 and leaf.shape[2] == 3]
    return kernels[0]


def feature_function(setup: Setup, state: State) -> state_probe.FeatureFunction:
    """Frames uint8 [N, H, W, 3] -> float32 [N, D]: what the frozen encoder makes of whole frames.

    A frame is covered by tiles of the size the encoder was trained on. Their maps, side by side, are a map
    of the frame, and its means over the cells of `probe.pool` are the features.
    """

    @jax.jit
    def encode(variables, images):
        tiles = setup.task.scale(jigsaw.cover(images.astype(jnp.float32) / 255, setup.task.tile))
        maps = setup.network.apply(
            variables,
            tiles.reshape(-1, *tiles.shape[3:]),
            method=lambda network, tiles: network.encoder(tiles, train=False),
        )
        maps = jigsaw.join(maps.reshape(*tiles.shape[:3], *maps.shape[1:]))
        return linear_probe.pool(maps, setup.probe.pool).astype(jnp.float32)

    return functools.partial(encode, {"params": state.params, "batch_stats": state.batch_stats})
