"""Which videos are manipulated? A network says it of single frames, from scratch or from pre-trained weights.

Agarwal, Sinha and Ayush classify frames of DFDC videos by networks that began with random weights, with those
of ImageNet, or with those of a rotation task, or that have rotation as an auxiliary task; and test on frames
of videos that were learned from (`random`) or that were not (`hard`). The answer for a video is the mean over
its frames. `data.name` is `dfdc`, or `manipulated_clips`, a stand-in without any deepfakes.

`train.what` says what is learned: "all" of the network, the "head" alone by the same steps on a frozen
encoder, or a "probe": the head alone as L-BFGS finds it on standardised features, where no learning rate can
be wrong. Training stops early, and what is tested is the checkpoint with the highest AUC on the validation
frames. A run that learned nothing says so.
"""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging

from ssl_jax.data import dfdc, manipulated_clips, pipeline, sources
from ssl_jax.evaluation import linear_probe, scores, smoothgrad
from ssl_jax.evaluation.features import collect
from ssl_jax.experiments import MAY_CHANGE, tasks, training
from ssl_jax.networks import weights
from ssl_jax.networks.alexnet import AlexNet
from ssl_jax.networks.resnet import ResNet
from ssl_jax.pretext import augment
from ssl_jax.pretext.rotation import rotate
from ssl_jax.report import console, figures, page
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import distributed
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.checkpoints import Checkpoints, restore_raw
from ssl_jax.runtime.errors import InputError
from ssl_jax.runtime.paths import UserPath

Metrics = dict[str, jax.Array]
Predict = Callable[[Any, np.ndarray], jax.Array]  # see `make_predict`
STAND_IN = "manipulated_clips"
SELECTED_BY = "val/auc"


@flax.struct.dataclass
class State:
    """All that training changes: arrays only, so that a checkpoint is arrays.

    Attributes:
      step: int32 [], training steps made.
      key: uint32 [2], the run's key; step t draws from `fold_in(key, t)`.
      params: {"encoder", "classifier"}, and "turns" with rotation as an auxiliary task; float32.
      batch_stats: running statistics of normalisation layers; {} without such layers.
      opt_state: of the optimizer.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Section `data`: which videos, and how the host reads their frames.

    Attributes:
      name: "dfdc", or "manipulated_clips", which is built where it is missing.
      path: directory of the videos; of the stand-in None is one beside the Atari frames it is made of.
      data_dir: tfds directory of these frames.
      split: `random`, `hard` or `grouped`, see `dfdc`; the run's seed decides which video is where.
      frames, size, crop, shares, cache_dir: see `dfdc.make`; `size` in pixels is that of stored frames.
      originals, fakes, clip_frames, source: of the stand-in: REAL videos, FAKE ones of each, frames of a
        video, and what it is made of; see `manipulated_clips.build`.
      max_bad_share, workers, threads, prefetch: see `pipeline.TrainOptions`.
    """

    name: Literal["dfdc", "manipulated_clips"]
    path: UserPath | None = None
    data_dir: UserPath | None = None
    split: Literal["random", "hard", "grouped"]
    frames: int
    size: int
    crop: str = "centre"
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2)
    cache_dir: UserPath | None = None
    originals: int = 384
    fakes: int = 1
    clip_frames: int = 12
    source: str = "atari_frames"
    max_bad_share: float = 0.05
    workers: int = 0
    threads: int = 2
    prefetch: int = 4

    def __post_init__(self):
        if self.is_stand_in:
            for name in ("originals", "fakes", "clip_frames"):
                if getattr(self, name) < 1:
                    raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
            manipulated_clips.check_source(self.source)

    @property
    def is_stand_in(self) -> bool:
        """Whether the videos are no deepfakes."""
        return self.name == STAND_IN


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Section `view`: what the network sees of a stored frame.

    Attributes:
      size: height and width in pixels of the part that is seen: a random one in training, else the middle.
      flip: whether frames are mirrored at random in training.
      color_jitter: strength in [0, 1) of random brightness, contrast and saturation in training.
      normalise: "picture", to mean 0 and deviation 1 of each channel of each frame, as our pre-training does;
        "imagenet" or "caffe", as the weights of torchvision and Caffe want it.
    """

    size: int
    flip: bool = True
    color_jitter: float = 0.0
    normalise: Literal["picture", "imagenet", "caffe"] = "picture"

    def __post_init__(self):
        augment.check_shares(color_jitter=self.color_jitter)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Init:
    """Section `init`: where the encoder's weights come from.

    Attributes:
      name: "random"; "imagenet", a file; "rotation" or "jigsaw", a pre-training run; "checkpoint", any file
        or run.
      path: of the file (.safetensors, .npz; see `weights.read`) or of the work directory; None, where the
        name says enough: WEIGHTS/ENCODER.safetensors, or RUNS/NAME-ENCODER.
      weights: directory of files.
      runs: directory of pre-training runs.
    """

    name: Literal["random", "imagenet", "rotation", "jigsaw", "checkpoint"]
    path: UserPath | None = None
    weights: UserPath = "weights"
    runs: UserPath = "runs/deepfake_table"

    def place(self, encoder: str) -> Path | None:
        """The file or directory; None for random weights.

        Raises:
          InputError: none is given.
        """
        if self.name == "random":
            return None
        if self.path is not None:
            return Path(self.path)
        if self.name == "checkpoint":
            raise InputError(
                "config.init.name='checkpoint' needs --config.init.path=, the work directory of a "
                "pre-training run or a .safetensors or .npz file."
            )
        if self.name == "imagenet":
            return Path(self.weights) / f"{encoder}.safetensors"
        return Path(self.runs) / f"{self.name}-{encoder}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(training.Train):
    """Section `train`: that of pre-training, and more.

    Attributes:
      what: "all" of the network is trained; the "head" alone; or the head alone as a "probe", without steps.
      clip: norm of the gradient above which it is scaled down to that.
      patience: training stops after so many validations in a row without a higher AUC.
      dropout: rate before the classifier.
      pool: rows and columns of the grid over whose cells the encoder's map is averaged for the classifier.
      rotation: weight of the loss of naming by how many quarter turns a frame was turned; 0: nobody asks.
      evaluated: how many training and validation frames scores are measured on, spread evenly; None: all.
        All test frames always are.
    """

    what: Literal["all", "head", "probe"] = "all"
    clip: float = 1.0
    patience: int = 10
    dropout: float = 0.0
    pool: tuple[int, int] = (1, 1)
    rotation: float = 0.0
    evaluated: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.patience < 1 or min(self.pool) < 1 or (self.evaluated is not None and self.evaluated < 1):
            raise InputError("config.train.patience, pool and evaluated must be at least 1.")
        if self.clip <= 0 or self.rotation < 0 or not 0 <= self.dropout < 1:
            raise InputError(
                f"config.train.clip={self.clip} must be above 0, rotation={self.rotation} at least 0, and "
                f"dropout={self.dropout} in [0, 1)."
            )
        if self.rotation and self.what != "all":
            raise InputError(
                f"config.train.rotation={self.rotation} teaches the encoder, which config.train.what="
                f"{self.what!r} leaves as it is; set one of them to 0 or 'all'."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothGrad:
    """Section `smoothgrad`: which pixels the answers hang on, see `evaluation.smoothgrad`.

    Attributes:
      frames: of the test split, of different videos as far as there are.
      samples: noisy copies of each.
      noise: their deviation as a share of the range of the input.
      steps: points of integrated gradients, and of the curves of deleted and inserted pixels.
      chunk: copies or points of each frame at a time.
    """

    frames: int = 6
    samples: int = 24
    noise: float = 0.15
    steps: int = 24
    chunk: int = 4

    def __post_init__(self):
        for name, least in (("frames", 0), ("samples", 1), ("noise", 0), ("steps", 1), ("chunk", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"config.smoothgrad.{name} must be at least {least}, not {getattr(self, name)}."
                )


class FrameClassifier(nn.Module):
    """An encoder, and linear classifiers on the means of its map.

    Attributes:
      encoder: float [N, h, w, 3] -> maps [N, h', w', c].
      pool: rows and columns of the grid over whose cells a map is averaged.
      dropout: rate before the classifier, in training.
      turns: whether quarter turns are asked for as well.
    """

    encoder: nn.Module
    pool: tuple[int, int]
    dropout: float
    turns: bool

    def setup(self) -> None:
        """Names the classifiers; both are silent at the start."""
        silent = nn.initializers.zeros
        self.classifier = nn.Dense(len(dfdc.LABELS), kernel_init=silent, name="classifier")
        self.drop = nn.Dropout(self.dropout)
        if self.turns:
            self.turn = nn.Dense(4, kernel_init=silent, name="turns")

    def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Views float [N, h, w, 3] -> float32 [N, D]."""
        return linear_probe.pool(self.encoder(x, train=train), self.pool).astype(jnp.float32)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Views float [N, h, w, 3] -> float32 logits [N, 2] of REAL and FAKE."""
        return self.classifier(self.drop(self.features(x, train=train), deterministic=not train))

    def quarter_turns(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Turned views float [N, h, h, 3] -> float32 logits [N, 4]."""
        return self.turn(self.features(x, train=train))

    def on_frozen(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """As `__call__`, but the encoder learns nothing, and normalises by its running statistics."""
        features = jax.lax.stop_gradient(self.features(x))
        return self.classifier(self.drop(features, deterministic=not train))

    def reach(self, x: jax.Array) -> None:
        """Reaches every parameter, for `init`."""
        self(x)
        if self.turns:
            self.quarter_turns(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """Everything of a run that is not an array and does not change; built and checked from a config.

    Attributes:
      seed, data, view, init, train, probe, smoothgrad, layout: see their sections.
      encoder_name: among `ENCODERS`.
      network: of the run.
      optimizer, schedule: of the training.
    """

    seed: int
    data: Data
    view: View
    init: Init
    train: Train
    probe: linear_probe.Protocol
    smoothgrad: SmoothGrad
    layout: mesh_lib.Layout
    encoder_name: str
    network: FrameClassifier
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule

    @property
    def last_step(self) -> int:
        """Of the training, if nothing stops it before; a probe makes none."""
        return 0 if self.train.what == "probe" else self.train.steps

    @property
    def encoder_template(self) -> dict[str, Any]:
        """Shapes of the encoder's variables."""
        images = jax.ShapeDtypeStruct((1, self.view.size, self.view.size, 3), jnp.float32)
        shapes = jax.eval_shape(self.network.encoder.init, jax.random.key(0), images)
        return {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}


def setup_from_config(config: ml_collections.ConfigDict) -> Setup:
    """Reads and checks every section of a config, before anything expensive.

    Raises:
      InputError: a key that nobody reads, a wrong type, values that do not fit together, frames too small for
        the encoder, or weights that are not there.
    """

    def make(
        *, experiment: str, seed: int, precision: Literal["float32", "bfloat16"], data: Mapping,
        view: Mapping, encoder: Mapping, init: Mapping, train: Mapping, probe: Mapping, smoothgrad: Mapping,
        mesh: Mapping | None = None,
    ) -> dict:  # fmt: skip
        return locals()

    values = make(**config_lib.unpack(config, make, path=""))
    config_lib.check_seed(values["seed"])
    builders = {"data": Data, "view": View, "init": Init, "train": Train, "probe": linear_probe.Protocol,
                "smoothgrad": SmoothGrad, "mesh": mesh_lib.Layout}  # fmt: skip
    sections = {
        name: config_lib.build(builder, values[name] or {}, path=name) for name, builder in builders.items()
    }
    train, view = sections["train"], sections["view"]
    if not 1 <= view.size <= sections["data"].size:
        raise InputError(
            f"config.view.size={view.size} must be from 1 to config.data.size={sections['data'].size}, of "
            "which it shows a part."
        )
    schedule = training.make_schedule(train)
    setup = Setup(
        seed=values["seed"],
        layout=sections.pop("mesh"),
        **sections,
        encoder_name=values["encoder"]["name"],
        network=FrameClassifier(
            encoder=tasks.build_encoder(values["encoder"], dtype=jnp.dtype(values["precision"])),
            pool=train.pool,
            dropout=train.dropout,
            turns=train.rotation > 0,
        ),
        optimizer=make_optimizer(train, schedule),
        schedule=schedule,
    )
    shapes = setup.encoder_template  # raises where frames are too small
    views = jax.ShapeDtypeStruct((1, view.size, view.size, 3), jnp.float32)
    maps = jax.eval_shape(setup.network.encoder.apply, shapes, views)
    linear_probe.check_grid("config.train.pool", train.pool, maps.shape[1:3])
    check_weights(setup)
    return setup


def check_weights(setup: Setup) -> None:
    """Raises InputError, with what to put where, unless the weights that the run begins with are there."""
    place = setup.init.place(setup.encoder_name)
    if place is None or place.exists():
        return
    name, encoder = setup.init.name, setup.network.encoder
    if name in ("rotation", "jigsaw"):
        how = (
            "make that pre-training run with --workdir of this name (python -m launch.sweep "
            "--config=configs/deepfake_table.py makes those of the table), or name another by "
            "--config.init.path"
        )
    elif name == "imagenet" and isinstance(encoder, AlexNet | ResNet):
        how = (
            f"put torchvision's {setup.encoder_name} there, its .pth converted by "
            f"safetensors.torch.save_file(torch.load(PTH, weights_only=True), {str(place)!r})"
        )
    else:
        how = "put a .safetensors or .npz file of this encoder there, or name another by --config.init.path"
    raise InputError(f"the weights {place} that config.init.name={name!r} begins with are missing; {how}.")


def make_optimizer(train: Train, schedule: optax.Schedule) -> optax.GradientTransformation:
    """That of pre-training on clipped gradients; with "head" it leaves the encoder as it is."""
    clipped = optax.chain(optax.clip_by_global_norm(train.clip), training.make_optimizer(train, schedule))
    if train.what == "all":
        return clipped
    labels = lambda params: {name: "frozen" if name == "encoder" else "head" for name in params}
    return optax.multi_transform({"head": clipped, "frozen": optax.set_to_zero()}, labels)


def create_state(setup: Setup, key: jax.Array) -> State:
    """A state before the first step, its encoder as `init` says.

    Raises:
      InputError: the weights cannot be read, or are of another encoder.
    """
    key, params_key = jax.random.split(key)
    views = jnp.zeros((1, setup.view.size, setup.view.size, 3))
    variables = dict(jax.jit(functools.partial(setup.network.init, method="reach"))(params_key, views))
    params, batch_stats = dict(variables.pop("params")), dict(variables.get("batch_stats", {}))
    place = setup.init.place(setup.encoder_name)
    if place is not None:
        loaded = weights.load(place, setup.network.encoder, setup.encoder_template)
        params["encoder"] = jax.tree.map(jnp.asarray, loaded["params"])
        if batch_stats:
            batch_stats["encoder"] = jax.tree.map(jnp.asarray, loaded["batch_stats"])
    return State(
        step=jnp.zeros((), jnp.int32),
        key=key,
        params=params,
        batch_stats=batch_stats,
        opt_state=setup.optimizer.init(params),
    )


# --- What the network sees


def see(setup: Setup, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Stored frames uint8 [N, S, S, 3] as the network sees them: float32 [N, s, s, 3].

    Args:
      setup: of the run.
      images: the frames.
      key: of what is random in training; None: the middle of each frame as it is.
    """
    view, room = setup.view, setup.data.size - setup.view.size
    size = (view.size, view.size)
    if key is None:
        start = room // 2
        pixels = images[:, start : start + view.size, start : start + view.size].astype(jnp.float32) / 255
        return normalise(view, pixels)
    crop_key, flip_key, color_key = jax.random.split(key, 3)
    offsets = augment.random_offsets(crop_key, images.shape[:1], (room, room))
    pixels = augment.crop(images, offsets, size).astype(jnp.float32) / 255
    if view.flip:
        flipped = jax.random.bernoulli(flip_key, shape=images.shape[:1])
        pixels = jnp.where(flipped[:, None, None, None], pixels[:, :, ::-1], pixels)
    if view.color_jitter:
        pixels = jnp.clip(augment.color_jitter(color_key, pixels, view.color_jitter), 0, 1)
    return normalise(view, pixels)


def normalise(view: View, pixels: jax.Array) -> jax.Array:
    """Pixels float [N, h, w, 3] in [0, 1] -> float32 of the same shape."""
    if view.normalise == "picture":
        return augment.normalize(pixels)
    return {"imagenet": weights.IMAGENET, "caffe": weights.CAFFE}[view.normalise](255 * pixels)


# --- Training


def train_step(setup: Setup, state: State, batch: Mapping[str, jax.Array]) -> tuple[State, Metrics]:
    """One update.

    Args:
      setup: of the run; enters by closure.
      state: before the step.
      batch: {"image": uint8 [B, S, S, 3], "label": int32 [B], 1 for FAKE}.

    Returns:
      The next state, and float32 scalars: loss, accuracy, gradient_norm (before clipping), learning_rate;
      with the auxiliary task also the losses classes/loss and rotation/loss, and rotation/accuracy.
    """
    key = jax.random.fold_in(state.key, state.step)
    view_key, turn_key, dropout_key = jax.random.split(key, 3)
    inputs = {"frames": see(setup, batch["image"], view_key)}
    targets = {"frames": batch["label"]}
    if setup.train.rotation:
        targets["turns"] = jax.random.randint(turn_key, batch["label"].shape, 0, 4)
        inputs["turns"] = rotate(inputs["frames"], targets["turns"])
    gradient, batch_stats, metrics = training.accumulate_gradients(
        functools.partial(objective, setup),
        setup.train.accumulate,
        state.params,
        state.batch_stats,
        inputs,
        targets,
        dropout_key,
    )
    updates, opt_state = setup.optimizer.update(gradient, state.opt_state, state.params)
    metrics |= {
        "gradient_norm": optax.global_norm(gradient),
        "learning_rate": jnp.asarray(setup.schedule(state.step), jnp.float32),
    }
    return state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    ), metrics


def objective(setup: Setup, params, batch_stats, inputs, targets, dropout_key):
    """The cross-entropy, with that of the auxiliary task; and (batch_stats, metrics) beside it."""

    def answer(inputs, method):
        return setup.network.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=True,
            method=method,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )

    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    method = "__call__" if setup.train.what == "all" else "on_frozen"
    logits, updated = answer(inputs["frames"], method)
    batch_stats = updated.get("batch_stats", {})
    loss = cross_entropy(logits, targets["frames"]).mean()
    metrics = {"accuracy": (logits.argmax(-1) == targets["frames"]).mean()}
    if setup.train.rotation:
        metrics["classes/loss"] = loss
        logits, updated = answer(inputs["turns"], "quarter_turns")
        batch_stats = updated.get("batch_stats", {})
        of_turns = cross_entropy(logits, targets["turns"]).mean()
        metrics["rotation/loss"] = of_turns
        metrics["rotation/accuracy"] = (logits.argmax(-1) == targets["turns"]).mean()
        loss += setup.train.rotation * of_turns
    metrics["loss"] = loss
    return loss, (batch_stats, metrics)


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Trains, tests the best checkpoint, and writes the report; goes on where it was stopped.

    Args:
      config: see `configs/deepfake.py`.
      workdir: a directory for this config alone.

    Returns:
      What `results.json` holds.

    Raises:
      InputError: see `setup_from_config` and `dfdc.make`; several processes; a workdir of another config,
        broken checkpoints, a full disk, a loss that is not finite.
      SystemExit: the run was told to stop (SIGTERM, Ctrl-C), and has saved what it had.
    """
    if jax.process_count() > 1:
        raise InputError("this experiment runs in one process, on all of its devices; start it alone.")
    # That of another config is refused before anything is built; a new one is made after all is there.
    if (Path(workdir) / config_lib.CONFIG_FILE).exists():
        claim(workdir, config)
    if (Path(workdir) / config_lib.RESULTS_FILE).exists():
        return console.show_finished(workdir)
    setup = setup_from_config(config)
    mesh_lib.setup_compilation_cache()
    state = create_state(setup, jax.random.PRNGKey(setup.seed))
    data = open_data(setup)
    workdir = claim(workdir, config)
    mesh = mesh_lib.make()
    state = mesh_lib.place(state, mesh, setup.layout)
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep=setup.train.keep_checkpoints, best_metric=SELECTED_BY
    )
    restored = checkpoints.restore(state)
    batches, seconds = open_batches(setup, data), {}
    if restored is not None:
        step, state, saved = restored
        batches.set_state(saved["batches"]["image"])
        seconds = saved["seconds"]
        logging.info("Going on from step %d.", step)
    config_lib.keep_changes(workdir, config)
    around = training.Surroundings(
        mesh=mesh,
        workdir=workdir,
        data=data,
        batches={"image": batches},
        checkpoints=checkpoints,
        metrics=metrics_lib.Metrics(workdir, resume_step=restored[0] if restored else None),
        stopwatch=metrics_lib.Stopwatch(seconds),
    )
    predict = make_predict(setup, around)
    try:
        if setup.train.what != "probe":
            train(setup, around, predict, state)
        elif restored is None:
            fit_probe(setup, around, predict, state)
        return judge(setup, around, predict, state, config)
    finally:
        batches.close()
        around.metrics.close()
        checkpoints.close()


def claim(workdir: str | Path, config: ml_collections.ConfigDict) -> Path:
    """`config.claim_workdir` with what may change."""
    fixed = (
        "early stopping decides when it ends, and scores on test may have been taken already; begin another "
        "one with its encoder by --config.init.name=checkpoint and --config.init.path"
    )
    length = config_lib.Length("train.steps", fixed)
    return config_lib.claim_workdir(workdir, config, may_change=MAY_CHANGE["deepfake"], length=length)


def open_data(setup: Setup) -> dfdc.Dfdc:
    """The frames in their splits; the stand-in is built where it is missing."""
    data, path = setup.data, setup.data.path
    if data.is_stand_in:
        with config_lib.errors_of("data"):
            path = manipulated_clips.build(
                path or stand_in_directory(data),
                num_originals=data.originals,
                fakes_per_original=data.fakes,
                frames=data.clip_frames,
                source=data.source,
                data_dir=data.data_dir,
            )
    elif path is None:
        raise InputError("config.data.path is missing; the data set dfdc needs the directory of its videos.")
    with config_lib.errors_of("data"):
        return dfdc.make(
            path=path,
            split=data.split,
            frames=data.frames,
            size=data.size,
            crop=data.crop,
            shares=data.shares,
            seed=setup.seed,
            cache_dir=data.cache_dir,
        )


def stand_in_directory(data: Data) -> str:
    """Where a stand-in of these settings is, unless the config says: beside the frames it is made of."""
    source = data.source.replace("/", "_")
    name = f"{data.originals}x{data.fakes}-{data.clip_frames}-{source}"
    return os.path.join(sources.data_directory(data.data_dir), STAND_IN, name)


def open_batches(setup: Setup, data: dfdc.Dfdc) -> pipeline.TrainBatches:
    """The endless training batches {"image": uint8 [B, S, S, 3], "index": int64 [B]}."""
    size = (setup.data.size, setup.data.size)
    options = training.batch_options(setup.train, setup.data, image_size=size, seed=setup.seed)
    return pipeline.train_batches(data.open("train"), options)


def train(setup: Setup, around: training.Surroundings, predict: Predict, state: State) -> None:
    """The loop: from the state's step to the last one, or to where no validation is better any more."""
    step, last = int(state.step), setup.train.steps
    shardings = mesh_lib.state_sharding(state, around.mesh, setup.layout), mesh_lib.replicated(around.mesh)
    step_function = jax.jit(functools.partial(train_step, setup), donate_argnums=0, out_shardings=shardings)
    labels = frame_labels(around.data.open("train", ("label",)))
    watch = around.stopwatch
    ledger = metrics_lib.Ledger(around.metrics, around.checkpoints, training.ADVICE)
    due = lambda every: step % every == 0 or step == last
    past = validated(around.workdir)
    with (
        distributed.StopTogether() as stop,
        metrics_lib.Progress(last, start=step, description="training") as progress,
    ):
        while step < last and waited(past) < setup.train.patience and not stop.at(step):
            with watch("data"):
                batch = next(around.batches["image"])
            with watch("step", compiles=True):
                pictures = {"image": batch["image"], "label": labels[batch["index"]]}
                state, scalars = step_function(state, mesh_lib.shard_batch(pictures, around.mesh))
                step += 1
                # One step behind, so that the device always has the next step queued.
                ledger.enter(step, {f"train/{name}": value for name, value in scalars.items()})
            if due(setup.train.log_every):
                line = ledger.write_page(step, training.rates(setup.train, watch))
                progress.update(step, {name: line[f"train/{name}"] for name in ("loss", "accuracy")})
            if due(setup.train.validate_every):
                ledger.close_page()
                held_out = validate(setup, around, predict, state)
                past.append(held_out[SELECTED_BY])
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


def frame_labels(source: dfdc.Frames) -> np.ndarray:
    """The label of every frame of a split, int32 [N], 1 for FAKE."""
    return source.values["label"][source.rows[:, 0]].astype(np.int32)


def validated(workdir: Path) -> list[float]:
    """AUC of the validations that were made so far."""
    lines = metrics_lib.read(workdir / metrics_lib.METRICS_FILE)
    return [line[SELECTED_BY] for line in lines if SELECTED_BY in line]


def waited(past: list[float]) -> int:
    """How many validations there were since the best one."""
    return len(past) - 1 - int(np.argmax(past)) if past else 0


def validate(setup: Setup, around: training.Surroundings, predict: Predict, state: State) -> dict[str, float]:
    """Scores on validation frames, for metrics.jsonl."""
    with around.stopwatch("validation", compiles=True):
        answers = answer(setup, around, predict, state, "validation", setup.train.evaluated)
    held_out = {f"val/{name}": value for name, value in scores.of_frames(answers).items()}
    around.metrics.write(int(state.step), held_out)
    return held_out


def fit_probe(setup: Setup, around: training.Surroundings, predict: Predict, state: State) -> None:
    """Puts the best linear classifier on the frozen features, and saves that as the only checkpoint.

    Of the weight decays the one with the highest validation accuracy is taken, of equal ones the largest. The
    classifier is written for features that are not standardised.
    """
    encode = jax.jit(
        lambda variables, images: setup.network.apply(variables, see(setup, images), method="features")
    )
    with around.stopwatch("probe"):
        encoders = {"features": on_mesh(around, functools.partial(encode, training.variables_of(state)))}
        rows = {
            split: collect(read_split(setup, around, split, None), encoders)
            for split in ("train", "validation")
        }
        features = {split: part.features["features"] for split, part in rows.items()}
        labels = {split: part.fields["label"] for split, part in rows.items()}
        probe = linear_probe.fit_softmax(features["train"], labels["train"], setup.probe)
        accuracy = (probe.predict(features["validation"]) == labels["validation"][None]).mean(1)
        decays = setup.probe.weight_decays
        best = max(range(len(decays)), key=lambda row: (accuracy[row], decays[row]))
    kernel = np.asarray(probe.kernels)[best] / probe.scale[:, None]
    bias = np.asarray(probe.biases)[best] - probe.mean @ kernel
    head = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    state = mesh_lib.place(
        state.replace(params=dict(state.params) | {"classifier": head}), around.mesh, setup.layout
    )
    held_out = validate(setup, around, predict, state)
    training.save(around, 0, state, held_out)


# --- What it knows


def make_predict(setup: Setup, around: training.Surroundings) -> Predict:
    """(variables, frames uint8 [B, S, S, 3]) -> probability of FAKE, float32 [B, 1], on all devices."""
    predict = jax.jit(functools.partial(probabilities, setup))
    return lambda variables, images: on_mesh(around, functools.partial(predict, variables))(images)


def probabilities(setup: Setup, variables: Any, images: jax.Array) -> jax.Array:
    """Probability of FAKE of stored frames uint8 [B, S, S, 3]: float32 [B, 1]."""
    return jax.nn.softmax(setup.network.apply(variables, see(setup, images)))[:, 1:]


def on_mesh(around: training.Surroundings, function: Callable) -> Callable[[np.ndarray], jax.Array]:
    """A function of pictures on the host that are divided among the devices."""
    return lambda images: function(mesh_lib.shard_batch({"image": images}, around.mesh)["image"])


def read_split(
    setup: Setup, around: training.Surroundings, split: str, limit: int | None
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of a split, each frame once, with its label and video."""
    options = pipeline.EvaluationOptions(
        batch_size=setup.train.batch_size,
        image_size=(setup.data.size, setup.data.size),
        limit=limit,
        skipped=pipeline.Skipped(setup.data.max_bad_share),
    )
    return pipeline.evaluation_batches(around.data.open(split, ("label", "video")), options)


def answer(
    setup: Setup,
    around: training.Surroundings,
    predict: Predict,
    state: State,
    split: str,
    limit: int | None = None,
) -> scores.Answers:
    """What the network says of the frames of a split, or of `limit` of them, spread evenly."""
    variables = training.variables_of(state)
    networks = {"classifier": functools.partial(predict, variables)}
    rows = collect(read_split(setup, around, split, limit), networks)
    return scores.Answers(rows.fields["label"], rows.fields["video"], rows.features["classifier"][:, 0])


def judge(
    setup: Setup,
    around: training.Surroundings,
    predict: Predict,
    state: State,
    config: ml_collections.ConfigDict,
) -> dict[str, Any]:
    """Scores of the best checkpoint on all splits, figures, results.json, report.html and the table."""
    around.checkpoints.wait()
    best = around.checkpoints.best_step
    saved = restore_raw(around.workdir / "checkpoints", best)
    state = mesh_lib.place(
        state.replace(
            step=jnp.asarray(best, jnp.int32),
            key=saved["key"],
            params=saved["params"],
            batch_stats=saved.get("batch_stats", {}),
            opt_state=(),
        ),
        around.mesh,
        setup.layout,
    )
    answers = {}
    with around.stopwatch("test"):
        for split, limit in (("train", setup.train.evaluated), ("validation", None), ("test", None)):
            answers[split] = answer(setup, around, predict, state, split, limit)
    with around.stopwatch("smoothgrad"):
        sanity = explain(setup, around, state)
    draw_frames(setup, around)
    final, at_chance = summarise(answers)
    past = validated(around.workdir)
    results = {
        **metrics_lib.provenance(config, around.stopwatch.seconds),
        "stand_in": setup.data.is_stand_in,
        "best_step": best,
        "stopped_early": waited(past) >= setup.train.patience,
        "final": final,
        "stuck_at_chance": at_chance,
        "split": {
            "mode": around.data.mode,
            "balance": around.data.balance(),
            "leaks": around.data.leaks(),
        },
        "confusion": scores.confusion(answers["test"]),
        "calibration": scores.calibration_curve(answers["test"]),
        "attributions": sanity,
        "bad_images": Counter(around.batches["image"].skipped.causes.values()),
        "left_out": {cause: [len(names), *names[:5]] for cause, names in around.data.left_out.items()},
    }
    metrics_lib.write_json(around.workdir / config_lib.RESULTS_FILE, results)
    page.build(around.workdir)
    console.print_results(around.workdir)
    return results


def summarise(answers: Mapping[str, scores.Answers]) -> tuple[dict[str, float], dict[str, bool]]:
    """SPLIT/frame/SCORE and SPLIT/video/SCORE; and split -> whether no more was learned than the majority."""
    final, at_chance = {}, {}
    for split, of_split in answers.items():
        majority = scores.majority_accuracy(of_split.label, answers["train"].label)
        final |= {f"{split}/frame/{name}": value for name, value in scores.of_frames(of_split).items()}
        final |= {f"{split}/video/{name}": value for name, value in scores.of_videos(of_split).items()}
        final[f"{split}/frame/majority"] = majority
        at_chance[split] = scores.is_at_chance(of_split, majority)
    return final, at_chance


# --- Pictures


def some_frames(setup: Setup, around: training.Surroundings, number: int) -> dict[str, np.ndarray]:
    """Test frames of different videos as far as there are, REAL and FAKE in turn."""
    source = around.data.open("test", ("label",))
    labels, videos = frame_labels(source), source.rows[:, 0]
    firsts = np.unique(videos, return_index=True)[1]
    of_label = [firsts[labels[firsts] == label] for label in (0, 1)]
    turns = [rows[pipeline.spread(len(rows), -(-number // 2))] for rows in of_label]
    chosen = [int(rows[i]) for i in range(max(map(len, turns))) for rows in turns if i < len(rows)][:number]
    size = (setup.data.size, setup.data.size)
    images = [pipeline.decode_image(source[i]["image"], size, (1, 1)) for i in chosen]
    return {"image": np.stack(images), "label": labels[chosen]}


def explain(setup: Setup, around: training.Surroundings, state: State) -> dict[str, Any]:
    """Draws which pixels the answers to some test frames hang on, and asks whether the maps can be believed.

    Returns:
      "parameter_randomisation": kind of map -> Spearman's rank correlation with the map of the same network
      with other, random parameters, the mean over frames: near 1, a map shows the frame, and nothing of the
      network. "deletion" and "insertion": kind of map, or "chance" for pixels in random order -> mean
      probability of the answer over shares of the pixels, see `smoothgrad.deletion`. {} without frames.
    """
    if setup.smoothgrad.frames < 1:
        return {}
    options = dataclasses.asdict(setup.smoothgrad)
    frames = some_frames(setup, around, options.pop("frames"))
    views = jax.jit(functools.partial(see, setup))(frames["image"])
    trained = jax.device_get(training.variables_of(state))
    answers = jax.jit(setup.network.apply)(trained, views)
    maps = []
    for variables in (trained, randomised(setup)):
        logits = jax.tree_util.Partial(setup.network.apply, variables)
        heats = smoothgrad.all_heats(logits, views, answers.argmax(-1), jax.random.key(setup.seed), **options)
        maps.append({name: np.asarray(of_kind) for name, of_kind in heats.items()})
    fake = np.asarray(jax.nn.softmax(answers)[:, 1])
    titles = [
        f"{dfdc.LABELS[label]}, says {probability:.0%} FAKE"
        for label, probability in zip(frames["label"], fake, strict=True)
    ]
    start = (setup.data.size - setup.view.size) // 2
    shown = frames["image"][:, start : start + setup.view.size, start : start + setup.view.size]
    figures.save(
        around.workdir / "figures" / "attributions.png", figures.attributions(shown, maps[0], titles)
    )
    correlations = {name: smoothgrad.rank_correlation(maps[0][name], maps[1][name]) for name in maps[0]}
    return {
        "parameter_randomisation": {name: float(np.nanmean(row)) for name, row in correlations.items()},
        **exchange_pixels(setup, trained, views, answers.argmax(-1), maps[0]),
    }


def exchange_pixels(
    setup: Setup, variables: Any, views: jax.Array, target: jax.Array, maps: Mapping[str, np.ndarray]
) -> dict[str, dict[str, np.ndarray]]:
    """The curves of `explain`: the hottest pixels are made grey, or put on a blurred frame, first."""
    logits = jax.tree_util.Partial(setup.network.apply, variables)
    chance = jax.random.uniform(jax.random.key(setup.seed), views.shape[:3])
    grey, blurred = jnp.zeros((1, 1, 1, 1)), smoothgrad.blurred(views)
    curves = {"deletion": {}, "insertion": {}}
    for name, heat in {**maps, "chance": chance}.items():
        steps = setup.smoothgrad.steps
        deleted = smoothgrad.deletion(logits, views, target, heat, grey, steps=steps)
        inserted = smoothgrad.insertion(logits, views, target, heat, blurred, steps=steps)
        curves["deletion"][name] = np.asarray(deleted.probability.mean(0))
        curves["insertion"][name] = np.asarray(inserted.probability.mean(0))
    return curves


def randomised(setup: Setup) -> dict[str, Any]:
    """The network's variables, initialised anew; the classifier too, whose zeros would have no gradient."""
    key = jax.random.fold_in(jax.random.PRNGKey(setup.seed), 1)
    views = jnp.zeros((1, setup.view.size, setup.view.size, 3))
    variables = dict(jax.jit(functools.partial(setup.network.init, method="reach"))(key, views))
    classifier = variables["params"]["classifier"]
    kernel = nn.initializers.lecun_normal()(key, classifier["kernel"].shape)
    params = variables["params"] | {"classifier": classifier | {"kernel": kernel}}
    return variables | {"params": params}


def draw_frames(setup: Setup, around: training.Surroundings) -> None:
    """Draws test frames, what the network sees of them in tests, and what it would in training."""
    frames = some_frames(setup, around, 6)
    look = jax.jit(functools.partial(see, setup))
    views = [look(frames["image"]), *(look(frames["image"], jax.random.key(i)) for i in range(3))]
    titles = [dfdc.LABELS[label] for label in frames["label"]]
    drawn = figures.views(frames["image"], np.stack([np.asarray(view) for view in views], 1), titles)
    figures.save(around.workdir / "figures" / "frames.png", drawn)
