"""Pre-training on permutation puzzles, and other tasks, whose permutations a player chooses.

Büchler, Brattoli and Ommer, "Improving Spatiotemporal Self-Supervision by Deep Reinforcement Learning",
ECCV 2018. One step: the player picks a permutation for every picture, the picture is cut into tiles and
shuffled on the device, the network names the permutation. Every `period` steps the player sees how well
the network does under each permutation on a held-out slice of the training data. With several tasks
(`tasks.KINDS`) every step takes a batch of each, and one encoder learns from the sum of their losses.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from matplotlib.figure import Figure

from ssl_jax.data import clips, pipeline, sources
from ssl_jax.evaluation import linear_probe, retrieval, state_probe
from ssl_jax.evaluation.features import FeatureFunction
from ssl_jax.experiments import MAY_CHANGE, training
from ssl_jax.experiments import tasks as tasks_lib
from ssl_jax.experiments.tasks import Skill, SkillMeter, Task
from ssl_jax.networks.heads import PuzzleNetwork
from ssl_jax.pretext import colorization, jigsaw, permutations
from ssl_jax.report import console, figures, page
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import distributed
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime import precision as precision_lib
from ssl_jax.runtime.checkpoints import Checkpoints
from ssl_jax.runtime.errors import InputError
from ssl_jax.runtime.paths import UserPath
from ssl_jax.selection import Evaluation, group_permutations

Metrics = dict[str, jax.Array]
Validation = Callable[["State"], tuple[dict[str, float], dict[str, dict]]]
DRAWN = 6  # examples of a task in its picture
PRIOR_EXAMPLES = 2048  # training pictures whose colours are counted
VALIDATION_GROUPS = 10  # groups of classes whose worst is reported


@flax.struct.dataclass
class State:
    """All that training changes: arrays only, so that a checkpoint is arrays.

    Attributes:
      step: int32 [], training steps made.
      key: uint32 [2], the run's key; step t draws from `fold_in(key, t)`, so any step can be recomputed
        alone.
      params: of the puzzle network, of the dtype that `precision` says.
      batch_stats: running statistics of its normalisation layers; {} without such layers.
      opt_state: of the optimizer.
      selection: `Task.player_state` -> state of the player: of a task's own, or of those that share a policy.
      prior: task -> float32 [P], how often each class is that of a cell, for tasks whose cells have
        classes; measured once, before the first step.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    selection: Any
    prior: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Section `data`: which pictures, and how the host reads them (see `pipeline.train_batches`).

    `name` to `splits` are arguments of `sources.make`; `stride` and `min_motion` are those of clips, see
    `clips.train_clips`.
    """

    name: str
    data_dir: UserPath | None = None
    path: UserPath | None = None
    annotations: UserPath | None = None
    fold: int = 1
    splits: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    image_size: tuple[int, int]
    min_size: tuple[int, int] | None = None
    stride: tuple[int, int] = (1, 4)
    min_motion: float = clips.MIN_MOTION
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
class Probe(state_probe.Protocol):
    """Section `probe`: the state probe at the end of a run on frames with RAM labels.

    Attributes:
      enabled: whether it is made.
      pool: rows and columns of the grid over whose cells an encoder's map of a frame is averaged, for the
        second readout; with C channels these are rows * columns * C numbers. Keep them fewer than the
        labelled frames of a game: with more, any features do, random ones too.
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

    def __post_init__(self):
        super().__post_init__()
        for name in ("train_frames", "validation_frames", "test_frames", "batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"config.probe.{name} must be at least 1, not {getattr(self, name)}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything of a run that is not an array and does not change; built and checked from a config."""

    seed: int
    data: Data
    tasks: tuple[Task, ...]
    network: PuzzleNetwork
    precision: precision_lib.Precision
    train: training.Train
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    probe: Probe
    layout: mesh_lib.Layout

    @property
    def looks(self) -> list[tuple[Task, ...]]:
        """For each player that looks at the network, the tasks that it looks at, all at the same steps."""
        looking = [task for task in self.tasks if task.player.period]
        states = dict.fromkeys(task.player_state for task in looking)
        return [tuple(task for task in looking if task.player_state == state) for state in states]

    @property
    def pictures(self) -> list[str]:
        """Names of the batches that the tasks ask for, "image" and "clip"."""
        return list(dict.fromkeys(task.pictures for task in self.tasks))

    @property
    def cut(self) -> clips.Cut:
        """Which clips the tasks ask for."""
        frames = next(task.puzzle.frames for task in self.tasks if task.pictures == "clip")
        return clips.Cut(frames=frames, stride=self.data.stride, min_motion=self.data.min_motion)


def setup_from_config(config: ml_collections.ConfigDict, *, trains: bool = True) -> Setup:
    """Reads and checks every section of a config, before anything expensive.

    Args:
      config: of the run.
      trains: whether the run is to be made; what one that has been made did is no fault of its encoder.

    Raises:
      InputError: a key that nobody reads, a wrong type, or values that do not fit together.
    """

    def make(
        *, experiment: str, seed: int, precision: str, data: Mapping,
        encoder: Mapping, train: Mapping, probe: Mapping, mesh: Mapping | None = None,
        spatial: Mapping | None = None, temporal: Mapping | None = None,
        rotation: Mapping | None = None, context: Mapping | None = None,
        arrow_of_time: Mapping | None = None, colorization: Mapping | None = None,
        selection: Mapping | None = None, evaluation: Mapping | None = None,
    ) -> dict:  # fmt: skip
        return locals()

    sections = make(**config_lib.unpack(config, make, path=""))
    config_lib.check_seed(sections["seed"])
    section = lambda name, builder: config_lib.build(builder, sections[name] or {}, path=name)
    precision = precision_lib.parse(sections["precision"])

    data = section("data", Data)
    encoder = tasks_lib.build_encoder(sections["encoder"], dtype=precision.compute)
    tasks = tasks_lib.make_all(sections, data.image_size, encoder)
    lengths = {task.name: task.puzzle.frames for task in tasks if task.pictures == "clip"}
    if len(set(lengths.values())) > 1:
        raise InputError(
            "tasks of a run share their clips, and must have clips of the same length: "
            + ", ".join(f"config.{name}.puzzle.frames={frames}" for name, frames in lengths.items())
            + "."
        )
    train = section("train", training.Train)
    schedule = training.make_schedule(train)
    setup = Setup(
        seed=sections["seed"],
        data=data,
        tasks=tasks,
        network=PuzzleNetwork(
            encoder=encoder,
            heads={task.name: task.head for task in tasks},
            output_dtype=precision.output,
        ),
        precision=precision,
        train=train,
        optimizer=training.make_optimizer(train, schedule),
        schedule=schedule,
        probe=section("probe", Probe),
        layout=section("mesh", mesh_lib.Layout),
    )
    if not trains:
        return setup
    check_periods(setup)
    if lengths:
        with config_lib.errors_of("data"):
            _ = setup.cut  # raises where there are no such clips
    if setup.probe.enabled and data.name.partition("/")[0] == "atari_frames":  # which has RAM labels
        check_pool(setup, "config.probe.pool", setup.probe.pool)
    return setup


def check_periods(setup: Setup) -> None:
    """Raises InputError where a player would never see the network, and so draw as it does at the start."""
    for tasks in setup.looks:
        period, name = tasks[0].player.period, tasks[0].player_name
        if period > setup.train.steps:
            path = "selection" if name == tasks_lib.JOINT else f"{tasks[0].name}.selection"
            raise InputError(
                f"config.{path}.period={period} is longer than config.train.steps={setup.train.steps}, so "
                f"that {name} is never updated; give a shorter period or more steps."
            )


def map_shape(setup: Setup, layer: str | None = None) -> tuple[int, int, int]:
    """Height, width and channels of the map of a whole picture at a layer of the encoder; None: the last.

    Raises:
      InputError: the parts of the first task are too small for the encoder.
    """
    part = jax.ShapeDtypeStruct((1, *setup.tasks[0].puzzle.part_size, 3), jnp.float32)
    shapes = jax.eval_shape(setup.network.encoder.init, jax.random.key(0), part)
    variables = {name: {"encoder": shapes.get(name, {})} for name in ("params", "batch_stats")}
    images = jax.ShapeDtypeStruct((1, *setup.data.image_size, 3), jnp.uint8)
    see = lambda variables, images: feature_function(setup, variables, lambda maps: maps, layer)(images)
    return jax.eval_shape(see, variables, images).shape[1:]


def check_pool(setup: Setup, path: str, grid: tuple[int, int], layer: str | None = None) -> None:
    """Raises InputError, with the key `path`, unless a map of the encoder has a pixel for each cell."""
    height, width, _ = map_shape(setup, layer)
    linear_probe.check_grid(path, grid, (height, width))


def create_state(setup: Setup, key: jax.Array) -> State:
    """A state before the first step.

    Raises:
      InputError: the parts of a task are too small for the encoder.
    """
    key, params_key, player_key = jax.random.split(key, 3)
    parts = {
        task.name: jnp.zeros((1, task.puzzle.num_parts, *task.puzzle.part_size, 3)) for task in setup.tasks
    }
    initialize = functools.partial(setup.network.init, method="initialize")
    variables = dict(jax.jit(initialize)(params_key, parts))
    params = setup.precision.cast_params(variables.pop("params"))
    return State(
        step=jnp.zeros((), jnp.int32),
        key=key,
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=setup.optimizer.init(params),
        # Of tasks that share a policy, the last one makes its state.
        selection={
            task.player_state: task.player.init(jax.random.fold_in(player_key, number))
            for number, task in enumerate(setup.tasks)
        },
        # All alike until `measure_priors`.
        prior={
            task.name: jnp.full((task.num_classes,), 1 / task.num_classes)
            for task in setup.tasks
            if task.dense
        },
    )


def train_step(
    setup: Setup,
    state: State,
    batch: Mapping[str, jax.Array],
    *,
    joined: jax.sharding.Mesh | None = None,
) -> tuple[State, Metrics]:
    """One update: for each task choose permutations and make puzzles; solve them, learn.

    Args:
      setup: of the run; enters by closure.
      state: before the step.
      batch: what `setup.pictures` names: "image" uint8 [B, H, W, 3], "clip" uint8 [B, u, H, W, 3].
      joined: a mesh whose devices send their gradients as one array, see `training.joined_gradients`.

    Returns:
      The next state, and float32 scalars: loss (the weighted sum) and accuracy (the mean) of this batch,
      each also by task, gradient_norm and learning_rate.
    """
    key = jax.random.fold_in(state.key, state.step)
    *task_keys, dropout_key = jax.random.split(key, len(setup.tasks) + 1)
    selection, priors, inputs, targets = dict(state.selection), dict(state.prior), {}, {}
    for task, task_key in zip(setup.tasks, task_keys, strict=True):
        choose_key, puzzle_key = jax.random.split(task_key)
        pictures = batch[task.pictures]
        if not task.dense:  # before it chooses, which may change its state
            priors[task.name] = task.player.probability(selection[task.player_state])
        selection[task.player_state], index = task.player.choose(
            choose_key, selection[task.player_state], pictures.shape[0]
        )
        inputs[task.name], targets[task.name] = task.ask(puzzle_key, pictures, index, train=True)

    accumulate = functools.partial(
        training.accumulate_gradients,
        functools.partial(objective, setup, priors),
        setup.train.accumulate,
    )
    if joined is not None:
        accumulate = training.joined_gradients(joined, accumulate)
    gradient, batch_stats, metrics = accumulate(state.params, state.batch_stats, inputs, targets, dropout_key)
    updates, opt_state = setup.optimizer.update(gradient, state.opt_state, state.params)
    metrics |= {
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


def objective(setup: Setup, priors, params, batch_stats, inputs, targets, dropout_key):
    """The weighted sum of the tasks' losses, and (batch_stats, metrics) beside it.

    `priors` are how often each class comes, task -> float32 [P], see `Task.loss`; accuracy is without them.
    Normalisation layers see the tasks one after the other.
    """
    metrics, loss = {}, 0.0
    for number, task in enumerate(setup.tasks):
        logits, updated = setup.network.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs[task.name],
            task.name,
            train=True,
            rngs={"dropout": jax.random.fold_in(dropout_key, number)},
            mutable=["batch_stats"],
        )
        batch_stats = updated.get("batch_stats", {})
        target = targets[task.name]
        of_task = task.loss(logits.astype(jnp.float32), target, priors[task.name]).mean()
        loss += task.weight * of_task
        metrics[f"{task.name}/loss"] = of_task
        metrics[f"{task.name}/accuracy"] = (jnp.argmax(logits, -1) == target).mean()
    metrics["loss"] = loss
    metrics["accuracy"] = sum(metrics[f"{task.name}/accuracy"] for task in setup.tasks) / len(setup.tasks)
    return loss, (batch_stats, metrics)


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
    length = training.length(setup.train)
    with distributed.first_process_first():
        workdir = config_lib.claim_workdir(workdir, config, may_change=MAY_CHANGE["pretrain"], length=length)
    evaluate_checkpoint = evaluation(config, workdir)
    mesh_lib.setup_compilation_cache()
    mesh = mesh_lib.make()
    state = mesh_lib.place(create_state(setup, jax.random.PRNGKey(setup.seed)), mesh, setup.layout)
    data = open_data(setup)
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep=setup.train.keep_checkpoints, best_metric="val/accuracy"
    )
    restored = checkpoints.restore(state)
    finished = workdir / config_lib.RESULTS_FILE
    if restored is not None and restored[0] == setup.train.steps and finished.exists():
        checkpoints.close()
        if jax.process_index() == 0:
            config_lib.keep_changes(workdir, config, length)  # the evaluation reads what it says
        results = console.show_finished(workdir)
        evaluate_checkpoint()
        return results
    batches = open_batches(setup, data)
    seconds = {}
    if restored is None:
        state = measure_priors(setup, data, batches, mesh, state)
    else:
        step, state, saved = restored
        for name, stream in batches.items():
            stream.set_state(saved["batches"][name])
            if jax.process_index() != 0:
                stream.skipped = pipeline.Skipped(setup.data.max_bad_share)  # process 0 has what all read
        seconds = saved["seconds"]
        logging.info("Going on from step %d.", step)
    if jax.process_index() == 0:
        config_lib.keep_changes(workdir, config, length)
    around = training.Surroundings(
        mesh=mesh,
        workdir=workdir,
        data=data,
        batches=batches,
        checkpoints=checkpoints,
        metrics=metrics_lib.Metrics(workdir, resume_step=restored[0] if restored else None),
        stopwatch=metrics_lib.Stopwatch(seconds),
    )
    try:
        validate = make_validation(setup, around)
        state = train(setup, around, state, validate)
        results = judge(setup, around, state, config, validate)
    finally:
        for stream in batches.values():
            stream.close()
        around.metrics.close()
        checkpoints.close()
    evaluate_checkpoint()
    return results


def evaluation(config: ml_collections.ConfigDict, workdir: Path) -> Callable[[], None]:
    """What section `evaluation` asks for: `experiments.evaluate` of the best checkpoint, once, at the end.

    The section is a config of that experiment; its results and its page are in WORKDIR/evaluation.

    Raises:
      InputError: see `evaluate.setup_from_config`; or several processes.
    """
    if "evaluation" not in config:
        return lambda: None
    from ssl_jax.experiments import evaluate  # here: it imports this module

    if jax.process_count() > 1:
        raise InputError(
            "section config.evaluation is for runs of one process; leave it out, and run configs/evaluate.py "
            "on the work directory afterwards."
        )
    asked = ml_collections.ConfigDict(
        config.evaluation.to_dict() | {"experiment": "evaluate", "checkpoint": str(workdir)}
    )
    try:
        evaluate.setup_from_config(asked)
    except InputError as error:
        raise InputError(f"section config.evaluation: {error}") from None

    def evaluate_checkpoint():
        evaluate.run(asked, workdir / "evaluation")

    return evaluate_checkpoint


def measure_priors(
    setup: Setup,
    data: sources.Sources,
    batches: Mapping[str, pipeline.TrainBatches],
    mesh: jax.sharding.Mesh,
    state: State,
) -> State:
    """Counts how often each class is that of a cell, in training pictures spread evenly over the split."""
    prior = {}
    for task in (task for task in setup.tasks if task.dense):
        skill = dataclasses.replace(task.validation, examples=PRIOR_EXAMPLES)
        count = jax.jit(functools.partial(tasks_lib.count_classes, task))
        pictures = device_batches(setup, data, mesh, task, skill, "train", batches[task.pictures].skipped)
        total = sum(
            np.asarray(count(batch, jax.random.fold_in(jax.random.key(setup.seed), number)))
            for number, batch in enumerate(pictures)
        )
        prior[task.name] = mesh_lib.replicate(total / total.sum(), mesh)
    return state.replace(prior=prior)


def open_data(setup: Setup, opened: Sequence[str] = sources.SPLITS) -> sources.Sources:
    """The data set with the splits that will be opened; built if it is the embedded one."""
    data = setup.data
    splits = {split: text for split, text in data.splits.items() if text}
    with config_lib.errors_of("data"):
        return sources.make(
            name=data.name,
            data_dir=data.data_dir,
            path=data.path,
            annotations=data.annotations,
            fold=data.fold,
            splits=splits,
            opened=opened,
        )


def open_batches(setup: Setup, data: sources.Sources) -> dict[str, pipeline.TrainBatches]:
    """The training batches of this process, a stream for each of `setup.pictures`."""
    options = training.batch_options(
        setup.train,
        setup.data,
        image_size=setup.data.image_size,
        seed=setup.seed,
        min_size=setup.data.min_size,
    )
    open_stream = {
        "image": lambda: pipeline.train_batches(data.open("train"), options),
        "clip": lambda: clips.train_clips(data.open("train", clips.FIELDS), setup.cut, options),
    }
    return {name: open_stream[name]() for name in setup.pictures}


def observe(
    tasks: Sequence[Task], state: State, evaluations: Sequence[Evaluation]
) -> tuple[State, list[Metrics]]:
    """Shows a player what the network can do in its task, or in all tasks that share it; a sparse update."""
    player, name = tasks[0].player, tasks[0].player_state
    key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
    selection, *metrics = player.observe(key, state.selection[name], *evaluations)
    return state.replace(selection={**state.selection, name: selection}), metrics


def train(setup: Setup, around: training.Surroundings, state: State, validate: Validation) -> State:
    """The loop: from the state's step to the last one, with everything that happens beside it."""
    step, last = int(state.step), setup.train.steps
    if step == last:
        return state
    shardings = mesh_lib.state_sharding(state, around.mesh, setup.layout), mesh_lib.replicated(around.mesh)
    joined = around.mesh if training.joins_gradients(setup.train, setup.layout, state.batch_stats) else None
    one_step = functools.partial(train_step, setup, joined=joined)
    step_function = jax.jit(one_step, donate_argnums=0, out_shardings=shardings)
    look = make_look(setup, around, shardings)
    watch = around.stopwatch
    ledger = metrics_lib.Ledger(around.metrics, around.checkpoints, training.ADVICE)
    due = lambda every: step % every == 0 or step == last
    with (
        distributed.StopTogether() as stop,
        metrics_lib.Progress(last, start=step, description="training") as progress,
    ):
        while step < last and not stop.at(step):
            with watch("data"):
                pictures = {name: next(stream)[name] for name, stream in around.batches.items()}
            with watch("step", compiles=True):
                batch = mesh_lib.shard_batch(pictures, around.mesh)
                state, scalars = step_function(state, batch)
                step += 1
                # One step behind, so that the device always has the next step queued.
                ledger.enter(step, {f"train/{name}": value for name, value in scalars.items()})
            for tasks in setup.looks:
                if step % tasks[0].player.period == 0:
                    ledger.close_page()
                    state, (seen, *_) = look(tasks, state, step)
                    progress.update(step, {"reward": float(seen["reward"])} if "reward" in seen else {})
            if due(setup.train.log_every):
                line = ledger.write_page(step, training.rates(setup.train, watch))
                progress.update(step, {name: line[f"train/{name}"] for name in ("loss", "accuracy")})
            if due(setup.train.validate_every):
                ledger.close_page()
                with watch("validation", compiles=True):
                    held_out, _ = validate(state)
                around.metrics.write(step, held_out)
                progress.update(step, {"val": held_out["val/accuracy"]})
                training.save(around, step, state, held_out)
            elif due(setup.train.checkpoint_every):
                ledger.close_page()
                training.save(around, step, state, {})
            progress.update(step)
    if stop.received and step < last:
        ledger.close_page()
        training.save(around, step, state, {})
        around.checkpoints.wait()
        stop.leave(step)
    return state


def make_look(
    setup: Setup, around: training.Surroundings, shardings: Any
) -> Callable[[Sequence[Task], State, int], tuple[State, list[Metrics]]]:
    """(tasks, state, step) -> (state, metrics of each), for one of `Setup.looks`.

    Measures skill in the tasks, each on its selection slice; their player sees it.
    """
    meters = {
        task.name: skill_meter(setup, around, task, "selection") for tasks in setup.looks for task in tasks
    }
    sees = {
        tasks[0].player_state: jax.jit(functools.partial(observe, tasks), out_shardings=shardings)
        for tasks in setup.looks
    }

    def look(tasks, state, step):
        with around.stopwatch("selection", compiles=True):
            evaluations = [meters[task.name](training.variables_of(state)) for task in tasks]
            state, seen = sees[tasks[0].player_state](state, evaluations)
            jax.block_until_ready(state)
        for task, evaluation, of_task in zip(tasks, evaluations, seen, strict=True):
            names = {f"selection/{task.name}/{name}": value for name, value in of_task.items()}
            around.metrics.write(step, names)
            write_selection(around, task, state, evaluation, step)
        return state, seen

    return look


def make_validation(setup: Setup, around: training.Surroundings) -> Validation:
    """state -> (metrics of `validation_metrics`, task -> what its classes are like), on the validation split.

    Of classes of cells there are only those that some cell has: "class" [K], "class_count" [K].
    """
    meters = {task.name: skill_meter(setup, around, task, "validation") for task in setup.tasks}

    def validate(state):
        evaluations, counts, seen = {}, {}, {}
        for task in setup.tasks:
            sums = meters[task.name].sums(training.variables_of(state))
            seen[task.name] = {}
            if task.dense:
                classes = np.flatnonzero(sums["count"])
                sums = {name: np.asarray(values)[classes] for name, values in sums.items()}
                counts[task.name] = sums["count"]
                seen[task.name] = {"class": classes.tolist(), "class_count": counts[task.name].tolist()}
            evaluations[task.name] = tasks_lib.mean_answers(sums)
            seen[task.name]["class_accuracy"] = np.asarray(evaluations[task.name].accuracy).tolist()
        return validation_metrics(evaluations, counts), seen

    return validate


def skill_meter(setup: Setup, around: training.Surroundings, task: Task, split: str) -> SkillMeter:
    """A task's meter on the selection slice, or on the validation split."""
    skill = task.selection_slice if split == "selection" else task.validation
    skipped = around.batches[task.pictures].skipped
    on_device = list(device_batches(setup, around.data, around.mesh, task, skill, split, skipped))
    return SkillMeter(setup.network, task, skill, on_device, setup.seed)


def device_batches(
    setup: Setup,
    data: sources.Sources,
    mesh: jax.sharding.Mesh,
    task: Task,
    skill: Skill,
    split: str,
    skipped: pipeline.Skipped,
) -> Iterator[dict[str, jax.Array]]:
    """The examples of a split that skill is measured on: {task.pictures: uint8 [B, ...], "mask": bool [B]}.

    Bad pictures are counted apart from those of training, for a run that resumes reads its slices again; but
    `skipped` gets their causes.
    """
    apart = pipeline.Skipped(setup.data.max_bad_share)
    options = pipeline.EvaluationOptions(
        batch_size=skill.batch_size // jax.process_count(),
        image_size=setup.data.image_size,
        min_size=setup.data.min_size,
        limit=skill.examples,
        skipped=apart,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    for batch in read_once(setup, data, task, split, options):
        yield mesh_lib.shard_batch({name: batch[name] for name in (task.pictures, "mask")}, mesh)
    skipped.causes.update(apart.causes)


def read_once(
    setup: Setup, data: sources.Sources, task: Task, split: str, options: pipeline.EvaluationOptions
) -> Iterator[dict[str, np.ndarray]]:
    """What a task is asked about, of a split: batches of pictures or clips, each once."""
    if task.pictures == "clip":
        return clips.evaluation_clips(data.open(split, clips.FIELDS), setup.cut, options)
    return pipeline.evaluation_batches(data.open(split), options)


def write_selection(
    around: training.Surroundings, task: Task, state: State, evaluation: Evaluation, step: int
) -> None:
    """Writes what a player saw and what it will draw from now on: a line of selection.jsonl."""
    rows = {
        "accuracy": evaluation.accuracy,
        "probability": task.player.probability(state.selection[task.player_state]),
        "group": group_permutations(evaluation, min(VALIDATION_GROUPS, task.num_classes)),
    }
    around.metrics.write_rows(step, task.name, {name: np.asarray(row).tolist() for name, row in rows.items()})


def validation_metrics(
    evaluations: Mapping[str, Evaluation], counts: Mapping[str, np.ndarray] = MappingProxyType({})
) -> dict[str, float]:
    """Accuracy over all classes of each task: mean, and that of the hardest group; and the tasks' mean.

    The groups are found on this evaluation, in the same way whoever chose the permutations.

    Args:
      evaluations: task -> skill at each of its classes.
      counts: task -> [P], how many answers each class had, where that differs: then the mean over classes,
        which enters the tasks' mean, is called `balanced_accuracy`, and `accuracy` is the mean over answers.
    """
    metrics, means = {}, []
    for name, evaluation in evaluations.items():
        accuracy = np.asarray(evaluation.accuracy)
        group = np.asarray(group_permutations(evaluation, min(VALIDATION_GROUPS, len(accuracy))))
        means.append(float(accuracy.mean()))
        metrics[f"val/{name}/accuracy"] = means[-1]
        if name in counts:
            metrics[f"val/{name}/balanced_accuracy"] = means[-1]
            metrics[f"val/{name}/accuracy"] = float(np.average(accuracy, weights=counts[name]))
        metrics[f"val/{name}/worst_group_accuracy"] = float(accuracy[group == 0].mean())
    return {"val/accuracy": float(np.mean(means)), **metrics}


def judge(
    setup: Setup,
    around: training.Surroundings,
    state: State,
    config: ml_collections.ConfigDict,
    validate: Validation,
) -> dict[str, Any]:
    """Final numbers, figures, results.json, report.html and the table in the terminal."""
    final, classes = validate(state)
    skipped = [training.state_of_all(stream) for stream in around.batches.values()]
    state = mesh_lib.replicate(state, around.mesh)
    initial = create_state(setup, jax.random.PRNGKey(setup.seed))
    with around.stopwatch("probe"):
        known = probe_states(setup, around.data, {"trained": state, "random": initial})
    draw_figures(setup, around, state)
    seconds = around.stopwatch.seconds
    working = max(seconds.get("data", 0.0) + seconds.get("step", 0.0), 1e-9)
    results = {
        **metrics_lib.provenance(config, around.stopwatch.seconds),
        "final": {
            **final,
            **{f"val/{task.name}/chance": chance(task, state) for task in setup.tasks},
            "time/policy_overhead": seconds.get("selection", 0.0) / working,
            "time/data_wait_share": seconds.get("data", 0.0) / working,
        },
        "permutations": {task.name: describe_orders(config, task) for task in setup.tasks if task.ordered},
        "validation": classes,
        "bad_images": Counter(cause for stream in skipped for *_, cause in stream["causes"]),
        "left_out": {cause: [len(names), *names[:5]] for cause, names in around.data.left_out.items()},
        "splits": dict(around.data.splits),
        "split_folders": dict(around.data.split_folders),
        "refused_clips": dict(sum((Counter(stream["refused"]) for stream in skipped), Counter())),
    }
    results |= known
    results["final"] |= known.get("retrieval", {}).get("trained", {})
    if jax.process_index() == 0:
        metrics_lib.write_json(around.workdir / config_lib.RESULTS_FILE, results)
        page.build(around.workdir)
        console.print_results(around.workdir)
    return results


def chance(task: Task, state: State) -> float:
    """Accuracy of guessing; where cells have the classes, of always naming the most frequent one."""
    return float(state.prior[task.name].max()) if task.dense else 1 / task.num_classes


def describe_orders(config: ml_collections.ConfigDict, task: Task) -> dict[str, Any]:
    """What results.json says of a permutation set."""
    minimum, mean = permutations.distance_statistics(task.orders)
    method = config[task.name].permutations.method
    return {"num": len(task.orders), "method": method, "min_distance": minimum, "mean_distance": mean}


def probe_states(setup: Setup, data: sources.Sources, states: Mapping[str, State]) -> dict[str, Any]:
    """What several states of the network know of a game's state, for results.json.

    Returns:
      "probe" and "probe_cells", the state probe of both readouts (see `state_probe.readout`); and
      "retrieval", encoder -> name -> value, by cells. {} without RAM labels.
    """
    protocol = setup.probe
    if not protocol.enabled:
        return {}
    if "ram" not in data.features:
        logging.info("%s has no RAM labels: the state probe is left out.", data.name)
        return {}

    def batches(split):
        options = pipeline.EvaluationOptions(
            batch_size=protocol.batch_size,
            image_size=setup.data.image_size,
            min_size=setup.data.min_size,
            limit=getattr(protocol, f"{split}_frames"),
        )
        return pipeline.evaluation_batches(data.open(split, ("ram", "game", "episode")), options)

    splits = {split: batches(split) for split in ("train", "validation", "test")}
    readout = functools.partial(state_probe.readout, grid=protocol.pool)
    encoders = {
        name: feature_function(setup, training.variables_of(state), readout) for name, state in states.items()
    }
    frames = state_probe.readouts(state_probe.read(splits, encoders), protocol.pool)
    games, options = data.class_names("game"), dataclasses.asdict(protocol)
    positions, cells = (
        {"encoders": state_probe.evaluate(frames[name], games, protocol), "protocol": options}
        for name in ("positions", "cells")
    )
    known = {"probe": positions, "probe_cells": cells}
    queries, keys = frames["cells"]["test"], frames["cells"]["train"]
    if len(queries.fields["index"]) and len(keys.fields["index"]):
        found = retrieval.evaluate(queries, keys, retrieval.Protocol(), label="game", games=games)
        known["retrieval"] = dict(found)
    return known


def draw_figures(setup: Setup, around: training.Surroundings, state: State) -> None:
    """Writes the pictures that need the network: puzzles as it sees them, first-layer filters."""
    pictures = {"filters": figures.filters(np.asarray(first_kernel(state.params["encoder"]), np.float32))}
    key = jax.random.fold_in(state.key, state.step)
    for number, task in enumerate(setup.tasks):
        pictures[task.name] = draw_puzzles(setup, around, task, state, jax.random.fold_in(key, number))
    for name, figure in pictures.items() if jax.process_index() == 0 else ():
        figures.save(around.workdir / "figures" / f"{name}.png", figure)


def draw_puzzles(
    setup: Setup, around: training.Surroundings, task: Task, state: State, key: jax.Array
) -> Figure:
    """Some held-out pictures beside what the network sees of them."""
    options = pipeline.EvaluationOptions(batch_size=DRAWN, image_size=setup.data.image_size, limit=DRAWN)
    choose_key, puzzle_key = jax.random.split(key)
    _, index = task.player.choose(choose_key, state.selection[task.player_state], DRAWN)
    (batch,) = read_once(setup, around.data, task, "validation", options)
    pictures, index = (jnp.asarray(x)[batch["mask"]] for x in (batch[task.pictures], index))
    if task.dense:
        return draw_colors(setup, task, state, puzzle_key, pictures)
    if task.name != "spatial":
        parts, _ = jax.jit(functools.partial(task.ask, train=True))(puzzle_key, pictures, index)
        labels = index if task.orders is None else task.orders[index]
        return figures.parts(np.asarray(parts), np.asarray(labels))

    @jax.jit
    def show(key, pictures, index):
        window_key, tiles_key = jax.random.split(key)
        windows = jigsaw.window(window_key, pictures, task.puzzle)
        tiles = jigsaw.tiles(tiles_key, windows, task.puzzle, train=True)
        return windows, jigsaw.shuffle(tiles, jnp.asarray(task.orders)[index])

    windows, shown = show(puzzle_key, pictures, index)
    return figures.tiles(
        np.asarray(windows), np.asarray(shown), np.asarray(index), task.orders, grid=task.puzzle.grid
    )


def draw_colors(setup: Setup, task: Task, state: State, key: jax.Array, pictures: jax.Array) -> Figure:
    """Pictures uint8 [B, H, W, 3] without colours, with those asked for, and with those that were named."""
    inputs, classes = task.ask(key, pictures, None, train=False)
    logits = setup.network.apply(training.variables_of(state), inputs, task.name, train=False)
    seen = colorization.view(key, pictures, task.puzzle)
    colors = {
        "seen": jnp.zeros((*classes.shape, 2)),
        "asked": jnp.asarray(colorization.BINS)[classes],
        "named": colorization.annealed_mean(logits.astype(jnp.float32)),
    }
    painted = jnp.stack([colorization.paint(seen, ab) for ab in colors.values()], axis=1)
    return figures.parts(np.asarray(painted), np.tile([*colors], (len(painted), 1)))


def first_kernel(params) -> jax.Array:
    """The kernel [h, w, 3, n] of the convolution that sees the pixels."""
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4 and leaf.shape[2] == 3]
    return kernels[0]


def feature_function(
    setup: Setup, variables: Any, readout: Callable[[jax.Array], jax.Array], layer: str | None = None
) -> FeatureFunction:
    """Frames uint8 [N, H, W, 3] -> float32 [N, D]: what the frozen encoder makes of whole frames.

    A frame is covered by parts of the size that the encoder was trained on, in the run's first task, and as
    that task shows them. Their maps, side by side, are a map of the frame.

    Args:
      setup: of the run.
      variables: of its network, see `variables_of`.
      readout: maps [N, h, w, C] -> features [N, D], for example `linear_probe.pool` on a grid.
      layer: of the encoder; None: the last.
    """
    task = setup.tasks[0]

    @jax.jit
    def encode(variables, images):
        parts = task.see(jigsaw.cover(images.astype(jnp.float32) / 255, task.puzzle.part_size))
        maps = setup.network.apply(
            variables,
            parts.reshape(-1, *parts.shape[3:]),
            method=lambda network, parts: network.encoder(parts, train=False, layer=layer),
        )
        maps = jigsaw.join(maps.reshape(*parts.shape[:3], *maps.shape[1:]))
        return readout(maps).astype(jnp.float32)

    return functools.partial(encode, variables)
