"""Judges what a pre-training run has learned: linear probes, retrieval, fine-tuning, and the state probe.

The encoder of a checkpoint is compared with the same network as it is initialised. Every example of a split
is read once and counts once, on one device or several.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ssl_jax.data import pipeline, sources, whole_videos
from ssl_jax.evaluation import finetune, linear_probe, retrieval, state_probe
from ssl_jax.evaluation.features import Batches, FeatureFunction, Rows, collect
from ssl_jax.experiments import MAY_CHANGE, pretrain
from ssl_jax.networks import weights
from ssl_jax.report import figures, page
from ssl_jax.runtime import config as config_lib
from ssl_jax.runtime import mesh as mesh_lib
from ssl_jax.runtime import metrics as metrics_lib
from ssl_jax.runtime.checkpoints import restore_raw
from ssl_jax.runtime.errors import InputError
from ssl_jax.runtime.paths import UserPath

SPLITS = ("train", "validation", "test")
SAMPLES, NEIGHBOURS = 8, 6  # queries and their neighbours in a picture
MAPPED = 1000  # examples in a map of the features, at most
NOTHING = (
    "nothing is to be evaluated; enable config.linear_probe, config.retrieval, config.finetune or, where "
    "frames have RAM labels, config.state_probe."
)
Scores = Iterable[tuple[str, Mapping[str, float]]]  # (encoder, {name: value})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Section `data`: what the encoders are judged on.

    Attributes:
      name: of the data set; None: that of the pre-training run.
      data_dir: where data sets are; None: where the run looked.
      path, annotations, fold: of a folder of pictures or videos, see `sources.make`; None: those of the run
        if it is of the same data set.
      splits: train, validation and test, see `sources.make`; None: those of the run if it is of the same data
        set, else those that the data set has, or cut from its train. There is no `selection`, which nothing
        here is chosen on.
      image_size: height and width to which pictures are scaled and cropped; None: those of the run.
      label: field with the classes; None: "game" where there is one, else "label".
      batch_size: pictures per call of an encoder, over all devices.
      train_examples, validation_examples, test_examples: how many pictures are read, or frames of games,
        spread evenly over the split; None: all. Fine-tuning learns from the whole of train.
      frames_per_video: of the data set `videos`, whose videos all count alike: as many evenly spaced frames
        of each are read, and fine-tuning learns from a random one of each in an epoch.
      max_videos: how many videos of a split are read, spread evenly over it; None: all.
    """

    name: str | None = None
    data_dir: UserPath | None = None
    path: UserPath | None = None
    annotations: UserPath | None = None
    fold: int | None = None
    splits: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    image_size: tuple[int, int] | None = None
    label: str | None = None
    batch_size: int = 48
    train_examples: int | None = None
    validation_examples: int | None = None
    test_examples: int | None = None
    frames_per_video: int = 10
    max_videos: int | None = None

    def __post_init__(self):
        numbers = ("batch_size", *(f"{split}_examples" for split in SPLITS), "frames_per_video", "max_videos")
        for name in numbers:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"config.data.{name} must be at least 1, not {getattr(self, name)}.")
        for split in self.splits:
            keys = [f"config.data.splits.{known}" for known in SPLITS]
            config_lib.check_known("key", f"config.data.splits.{split}", keys)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbe(linear_probe.Protocol):
    """Section `linear_probe`: a classifier on each layer.

    Attributes:
      enabled: whether it is made.
      layers: of the encoder; none: all.
      values: a layer's map is averaged over the cells of the largest grid that leaves at most so many.
    """

    enabled: bool = True
    layers: tuple[str, ...] = ()
    values: int = 9000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(retrieval.Protocol):
    """Section `retrieval`: nearest neighbours.

    Attributes:
      enabled: whether they are looked for.
      layer: of the encoder; None: the last.
      pool: rows and columns of the grid over whose cells the layer's map is averaged.
      queries, keys: splits; where they are the same, what is of the query's own episode, or without episodes
        the query itself, is left out.
    """

    enabled: bool = True
    layer: str | None = None
    pool: tuple[int, int] = (2, 2)
    queries: Literal["train", "validation", "test"] = "test"
    keys: Literal["train", "validation", "test"] = "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(finetune.Protocol):
    """Section `finetune`: classification by an encoder that goes on learning.

    Attributes:
      enabled: whether it is done.
      pool: rows and columns of the grid over whose cells the last map is averaged.
    """

    enabled: bool = True
    pool: tuple[int, int] = (2, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateProbe(state_probe.Protocol):
    """Section `state_probe`: what is known of a game's state, where frames have RAM labels.

    Attributes:
      enabled: whether it is made.
      layer: of the encoder; None: the last.
      pool: rows and columns of the grid over whose cells the layer's map is averaged, for the second readout.
        Keep the features fewer than the frames of a game in train: with more, any features do, random ones
        too.
    """

    enabled: bool = True
    layer: str | None = None
    pool: tuple[int, int] = (2, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What is judged, and how; built and checked from a config.

    Attributes:
      checkpoint: work directory of the pre-training run.
      which: its checkpoint with the highest validation accuracy, the newest, or none: the encoder as it is
        initialised.
      baseline: whether the encoder as it is initialised is judged beside.
      seed: of the initialisation, and of the order in which examples are learned from.
      data: what the encoders are judged on.
      linear_probe, retrieval, finetune, state_probe: the evaluations.
      run: the pre-training run, but with the data set that is judged on in its section `data`.
      run_config: its config.
      same_data: whether the run was of the data set that is judged on.
    """

    checkpoint: Path
    which: Literal["best", "last", "random"]
    baseline: bool
    seed: int
    data: Data
    linear_probe: LinearProbe
    retrieval: Retrieval
    finetune: Finetune
    state_probe: StateProbe
    run: pretrain.Setup
    run_config: ml_collections.ConfigDict
    same_data: bool

    @property
    def by_video(self) -> bool:
        """Whether videos are judged, and not pictures or frames."""
        return self.run.data.name == "videos"


def setup_from_config(config: ml_collections.ConfigDict) -> Setup:
    """Reads and checks every section of a config, and the config of the run that it names.

    Raises:
      InputError: a key that nobody reads, a wrong type, nothing to evaluate, no such run, or a layer or
        a grid that its encoder lacks.
    """

    def make(
        *, experiment: str, seed: int, checkpoint: UserPath | None, which: Literal["best", "last", "random"],
        baseline: bool, data: Mapping, linear_probe: Mapping, retrieval: Mapping, finetune: Mapping,
        state_probe: Mapping,
    ) -> dict:  # fmt: skip
        return locals()

    values = make(**config_lib.unpack(config, make, path=""))
    config_lib.check_seed(values["seed"])
    builders = {
        "data": Data,
        "linear_probe": LinearProbe,
        "retrieval": Retrieval,
        "finetune": Finetune,
        "state_probe": StateProbe,
    }
    sections = {
        name: config_lib.build(builder, values[name], path=name) for name, builder in builders.items()
    }
    if not any(sections[name].enabled for name in sections if name != "data"):
        raise InputError(NOTHING)
    if values["checkpoint"] is None:
        raise InputError("give the work directory of a pre-training run by --config.checkpoint=DIR.")
    directory = Path(values["checkpoint"])
    run_config = read_run(directory)
    same_data, run = build_run(directory, run_config, sections["data"])
    layers = run.network.encoder.layers
    asked = {
        "config.linear_probe.layers": sections["linear_probe"].layers,
        "config.retrieval.layer": (sections["retrieval"].layer,),
        "config.state_probe.layer": (sections["state_probe"].layer,),
        "config.finetune.from_layer": (sections["finetune"].from_layer,),
    }
    for key, names in asked.items():
        for name in names:
            if name is not None:
                config_lib.check_known(key, name, layers)
    for name in ("retrieval", "finetune", "state_probe"):
        section = sections[name]
        if section.enabled:
            layer = getattr(section, "layer", None)
            pretrain.check_pool(run, f"config.{name}.pool", section.pool, layer)
    return Setup(
        checkpoint=directory,
        which=values["which"],
        baseline=values["baseline"],
        seed=values["seed"],
        **sections,
        run=run,
        run_config=run_config,
        same_data=same_data,
    )


def read_run(directory: Path) -> ml_collections.ConfigDict:
    """The config of a pre-training run.

    Raises:
      InputError: there is no such run, or its config is of another experiment.
    """
    path = directory / config_lib.CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"config.checkpoint={str(directory)!r} is not the work directory of a run: it has no {path.name}."
        )
    config = config_lib.read(path)
    if config.get("experiment") != "pretrain":
        raise InputError(
            f"{directory} is a run of {config.get('experiment')!r}; only those of 'pretrain' have an encoder "
            "to evaluate."
        )
    return config


def build_run(directory: Path, config: ml_collections.ConfigDict, data: Data) -> tuple[bool, pretrain.Setup]:
    """Whether a run was of the data set that it is judged on, and what it is, with that data set.

    Raises:
      InputError: the config of the run cannot be used.
    """
    try:
        run = pretrain.setup_from_config(config, trains=False)
    except InputError as error:
        raise InputError(f"the config of the run in {directory} cannot be used: {error}") from None
    same, judged_on = data_config(run.data, data)
    return same, dataclasses.replace(run, data=dataclasses.replace(run.data, **judged_on))


def data_config(trained_on: pretrain.Data, data: Data) -> tuple[bool, dict[str, Any]]:
    """Whether a run was of the data set that it is judged on, and the keys of its section `data` to replace.

    Nothing that tells how one data set is divided is taken over to another one: a run on ImageNet, say, whose
    `test` has no labels, was tested on `validation`.

    Raises:
      InputError: a fold of data that have none.
    """
    asked = {name: getattr(data, name) for name in ("data_dir", "fold", "image_size")}
    options = {name: value for name, value in asked.items() if value is not None}
    if "fold" in options and (data.name or trained_on.name) != "videos":
        raise InputError(
            f"config.data.fold={data.fold} is of the official splits of videos, see config.data.annotations, "
            f"and {data.name or trained_on.name} has none."
        )
    where = {name: getattr(data, name) for name in ("name", "path", "annotations")}
    differs = {
        name
        for name, value in where.items()
        if value is not None and not same_place(name, value, getattr(trained_on, name))
    }
    if not differs:
        return True, options
    if "name" not in differs:
        logging.warning(
            "config.data.%s is not that of the run, so this is taken for another data set: the annotations, "
            "fold and splits of the run are not used; if it is the same, give config.data.annotations, fold "
            "and splits.",
            " and config.data.".join(sorted(differs)),
        )
    if "name" in differs:
        kept = {"name": data.name, "path": data.path, "annotations": data.annotations}
    elif "path" in differs:
        kept = {"path": data.path, "annotations": data.annotations}
    else:
        kept = {"annotations": data.annotations}
    return False, {"fold": 1, "splits": {}} | kept | options


def same_place(name: str, given: str, of_run: str | None) -> bool:
    """Whether two values of a key of section `data` mean the same data set, folder or directory."""
    if of_run is None or name == "name":
        plain = lambda name: (name or "").removesuffix("/default")  # tfds's name of a config, and ours
        return plain(given) == plain(of_run)
    return os.path.realpath(given) == os.path.realpath(of_run)


def open_data(setup: Setup) -> sources.Sources:
    """The data set that the encoders are judged on, with its splits.

    Raises:
      InputError: there is no such data set, or its splits are unknown, empty, or share examples.
    """

    def open_with(splits):
        data = dataclasses.replace(setup.run.data, splits=splits)
        return pretrain.open_data(dataclasses.replace(setup.run, data=data), SPLITS)

    given = {split: text for split, text in setup.data.splits.items() if text}
    if not setup.same_data:
        return open_with(given)
    data = pretrain.open_data(setup.run)
    if given.items() - data.splits.items() or setup.data.fold not in (
        None,
        setup.run_config.data.get("fold", 1),
    ):
        logging.warning("%s was divided otherwise in training: the encoder may have seen test examples, "
                        "without labels", data.name)  # fmt: skip
    return open_with(dict(data.splits) | given) if given else data


# --- The encoders


def choose_step(setup: Setup) -> int | None:
    """The step of the checkpoint that the config asks for; None for an encoder as it is initialised.

    Raises:
      InputError: there is no checkpoint.
    """
    if setup.which == "random":
        return None
    directory = setup.checkpoint / "checkpoints"
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    steps = [int(name) for name in names if name.isdigit()]
    if not steps:
        raise InputError(f"there is no checkpoint in {directory}; let the run make one, or give another run.")
    if setup.which == "last":
        return max(steps)
    lines = metrics_lib.read(setup.checkpoint / metrics_lib.METRICS_FILE)
    accuracy = {line["step"]: line["val/accuracy"] for line in lines if "val/accuracy" in line}
    return max(steps, key=lambda step: (accuracy.get(step, -1.0), step))


def restore_encoder(setup: Setup, step: int) -> dict[str, Any]:
    """Variables of the encoder, {"params": tree, "batch_stats": tree}, from a checkpoint.

    Raises:
      InputError: the checkpoint is broken, its encoder is not the one of the run's config, or a tensor holds
        numbers that are not finite.
    """
    state = restore_raw(setup.checkpoint / "checkpoints", step)
    saved = {name: state.get(name, {}).get("encoder", {}) for name in ("params", "batch_stats")}
    template = jax.eval_shape(functools.partial(initial_encoder, setup))
    shapes = [
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (saved, template)
    ]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        there, here = (shape.get(name, "absent") for shape in shapes)
        if there != here:
            raise InputError(
                f"checkpoint {step} in {setup.checkpoint} is of another encoder than its config.json: "
                f"{name} is {there} in the checkpoint and {here} by the config; give the directory of an "
                "unchanged run."
            )
    weights.check_finite(weights.flatten(saved), f"checkpoint {step} in {setup.checkpoint}")
    return saved


def initial_encoder(setup: Setup) -> dict[str, Any]:
    """Variables of the encoder, {"params": tree, "batch_stats": tree}, as it is initialised."""
    images = jnp.zeros((1, *setup.run.data.image_size, 3))
    variables = setup.run.network.encoder.init(jax.random.PRNGKey(setup.seed), images, train=False)
    return {name: dict(variables.get(name, {})) for name in ("params", "batch_stats")}


def load_encoders(setup: Setup, step: int | None) -> dict[str, dict[str, Any]]:
    """The encoders to be judged, the one that was asked for first: "trained" and, or, "random"."""
    encoders = {}
    if step is not None:
        encoders["trained"] = restore_encoder(setup, step)
    if step is None or setup.baseline:
        encoders["random"] = jax.jit(functools.partial(initial_encoder, setup))()
    return encoders


def network_variables(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of the encoder as the network of the run has them, without its heads."""
    return {name: {"encoder": tree} for name, tree in encoder.items()}


def probe_grid(setup: Setup, layer: str) -> tuple[int, int]:
    """The grid that leaves about `linear_probe.values` values of the map of a whole picture at a layer."""
    return linear_probe.grid_of(*pretrain.map_shape(setup.run, layer), setup.linear_probe.values)


# --- The evaluations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where the evaluations read and compute.

    Attributes:
      data: the data set.
      label: its field with the classes.
      by_video: whether videos are judged, and not pictures or frames.
      encoders: name -> variables, see `load_encoders`; on every device.
      mesh: devices that share every batch.
      workdir: where pictures go.
      skipped: examples that could not be used.
    """

    data: sources.Sources
    label: str
    by_video: bool
    encoders: dict[str, dict[str, Any]]
    mesh: jax.sharding.Mesh
    workdir: Path
    skipped: pipeline.Skipped

    def has(self, *fields: str) -> bool:
        """Whether the data set has all of these fields."""
        return all(field in self.data.features for field in fields)


def open_surroundings(setup: Setup, encoders: Mapping[str, dict[str, Any]], workdir: Path) -> Surroundings:
    """Opens the data set and places the encoders on the devices.

    Raises:
      InputError: several processes, a batch that cannot be divided, no such data set, no labels in it, or
        fewer keys than neighbours.
    """
    if jax.process_count() > 1:
        raise InputError(
            "evaluation runs in one process, on all of its devices; start it without the others."
        )
    mesh = mesh_lib.make()
    if setup.data.batch_size % mesh.size or setup.finetune.batch_size % mesh.size:
        raise InputError(
            f"config.data.batch_size={setup.data.batch_size} and config.finetune.batch_size="
            f"{setup.finetune.batch_size} must be multiples of the {mesh.size} devices."
        )
    data = open_data(setup)
    fields = dict(data.features)
    label = setup.data.label or ("game" if "game" in fields else "label")
    if not hasattr(fields.get(label), "num_classes"):
        labels = [name for name, feature in fields.items() if hasattr(feature, "num_classes")]
        raise InputError(
            f"{data.name} has no class label {label!r} (config.data.label); it has: "
            f"{', '.join(labels) or 'none'}."
        )
    if setup.retrieval.enabled:
        keys, limit = data.open(setup.retrieval.keys), getattr(setup.data, f"{setup.retrieval.keys}_examples")
        if setup.by_video:
            keys, limit = keys.videos, setup.data.max_videos
        with config_lib.errors_of("retrieval"):
            retrieval.check_top(setup.retrieval, min(len(keys), limit or len(keys)))
    return Surroundings(
        data=data,
        label=label,
        by_video=setup.by_video,
        encoders={name: mesh_lib.replicate(variables, mesh) for name, variables in encoders.items()},
        mesh=mesh,
        workdir=workdir,
        skipped=pipeline.Skipped(setup.run.data.max_bad_share),
    )


def open_split(setup: Setup, around: Surroundings, split: str, fields: tuple[str, ...]) -> Batches:
    """Batches of a split; every example once, padding under `mask`. Of videos: frames, with "episode".

    Raises:
      InputError: while batches are read, for an example without a class.
    """
    by_video = around.by_video
    options = pipeline.EvaluationOptions(
        batch_size=setup.data.batch_size,
        image_size=setup.run.data.image_size,
        min_size=setup.run.data.min_size,
        limit=setup.data.max_videos if by_video else getattr(setup.data, f"{split}_examples"),
        skipped=around.skipped,
    )
    source = around.data.open(split, tuple(dict.fromkeys((*fields, *(["episode"] if by_video else [])))))
    if by_video:
        batches = whole_videos.evaluation_frames(source, setup.data.frames_per_video, options)
    else:
        batches = pipeline.evaluation_batches(source, options)
    for batch in batches:
        if around.label in fields:
            check_labelled(around, split, batch[around.label][batch["mask"]])
        yield batch


def check_labelled(around: Surroundings, split: str, labels: np.ndarray) -> None:
    """Raises InputError for a label of -1, as public test splits have whose classes are kept secret."""
    if (labels < 0).any():
        raise InputError(
            f"{split} ({around.data.splits[split]}) of {around.data.name} has examples without a class "
            f"({around.label} is {labels.min()}); name a split that has classes by "
            f"--config.data.splits.{split}=SPLIT."
        )


def cells(grid: tuple[int, int]) -> Callable[[jax.Array], jax.Array]:
    """Reads maps out as their means over the cells of a grid."""
    return functools.partial(linear_probe.pool, grid=grid)


def feature_functions(
    setup: Setup, around: Surroundings, layer: str | None, readout: Callable[[jax.Array], jax.Array]
) -> dict[str, FeatureFunction]:
    """For each encoder a function of pictures on the host, uint8 [B, H, W, 3], to features float32 [B, D]."""

    @jax.jit
    def encode(variables, images):
        return pretrain.feature_function(setup.run, network_variables(variables), readout, layer)(images)

    def make(variables):
        return lambda images: np.asarray(
            encode(variables, mesh_lib.shard_batch({"image": images}, around.mesh)["image"])
        )

    return {name: make(variables) for name, variables in around.encoders.items()}


def probe_layers(setup: Setup, around: Surroundings) -> Scores:
    """Linear classifiers: linear_probe/LAYER/accuracy and so on, see `linear_probe.classify`."""
    for layer in setup.linear_probe.layers or setup.run.network.encoder.layers:
        encoders = feature_functions(setup, around, layer, cells(probe_grid(setup, layer)))
        splits = {
            split: open_split(setup, around, split, (around.label,))
            for split in ("train", "validation", "test")
        }
        found = linear_probe.evaluate(
            encoders, splits, around.label, setup.linear_probe, by_video=setup.by_video, layer=layer
        )
        for encoder, scores in found:
            yield encoder, {f"linear_probe/{layer}/{name}": value for name, value in scores.items()}


def retrieve(setup: Setup, around: Surroundings) -> Scores:
    """Nearest neighbours, see `retrieval.evaluate`; draws some, too."""
    protocol = setup.retrieval
    encoders = feature_functions(setup, around, protocol.layer, cells(protocol.pool))
    fields = (around.label, *(name for name in ("episode", "ram", "game") if around.has(name)))
    read = lambda split: collect(
        open_split(setup, around, split, tuple(dict.fromkeys(fields))), encoders, layer=protocol.layer
    )
    queries = read(protocol.queries)
    keys = queries if protocol.keys == protocol.queries else read(protocol.keys)
    for encoder in encoders:
        draw_neighbours(setup, around, queries, keys, encoder)
        draw_map(setup, around, queries, encoder)
    games = around.data.class_names("game") if around.has("ram", "game", "episode") else ()
    return retrieval.evaluate(queries, keys, protocol, label=around.label, games=games)


def draw_neighbours(setup: Setup, around: Surroundings, queries: Rows, keys: Rows, encoder: str) -> None:
    """Writes figures/neighbours_ENCODER.png: a query at the left of each row, what is nearest beside it."""
    size = setup.run.data.image_size
    rows = np.unique(np.linspace(0, len(queries.fields["index"]) - 1, SAMPLES).astype(int))
    found = retrieval.neighbours(queries, keys, encoder, rows, NEIGHBOURS)
    sources = [around.data.open(split) for split in (setup.retrieval.queries, setup.retrieval.keys)]

    def picture(source, side, row):
        if row < 0:
            return np.full((*size, 3), 255, np.uint8)
        encoded = source[int(side.fields["index"][row])]["image"]
        return pipeline.decode_image(encoded, size, (1, 1))

    gap = np.full((size[0], size[1] // 8, 3), 255, np.uint8)
    lines = [
        np.concatenate(
            [picture(sources[0], queries, row), gap, *(picture(sources[1], keys, key) for key in nearest)],
            axis=1,
        )
        for row, nearest in zip(rows, found, strict=True)
    ]
    directory = around.workdir / "figures"
    directory.mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(lines)).save(directory / f"neighbours_{encoder}.png")


def draw_map(setup: Setup, around: Surroundings, rows: Rows, encoder: str) -> None:
    """Writes figures/map_ENCODER.png: features in the plane by t-SNE (van der Maaten and Hinton 2008)."""
    from sklearn.manifold import TSNE  # here: it takes seconds, at the start of every run

    chosen = np.unique(np.linspace(0, len(rows.fields["index"]) - 1, MAPPED).astype(int))
    features = rows.features[encoder][chosen]
    if len(features) < 10:
        return
    perplexity = min(30, (len(features) - 1) / 3)
    points = TSNE(init="pca", perplexity=perplexity, random_state=setup.seed).fit_transform(features)
    names = around.data.class_names(around.label)
    drawn = figures.scatter(points, rows.fields[around.label][chosen], names)
    figures.save(around.workdir / "figures" / f"map_{encoder}.png", drawn)


def probe_states(setup: Setup, around: Surroundings) -> tuple[Scores, dict[str, Any]]:
    """The state probe: the mean F1 of each encoder and of the majority by readout, and all of its scores."""
    protocol = setup.state_probe
    readout = functools.partial(state_probe.readout, grid=protocol.pool)
    encoders = feature_functions(setup, around, protocol.layer, readout)
    splits = {
        split: open_split(setup, around, split, ("ram", "game")) for split in ("train", "validation", "test")
    }
    frames = state_probe.readouts(state_probe.read(splits, encoders, protocol.layer), protocol.pool)
    games = around.data.class_names("game")
    known, means = {}, {}
    for name, part in frames.items():
        found = state_probe.evaluate(part, games, protocol)
        known[name] = {"encoders": found, "protocol": dataclasses.asdict(protocol)}
        for encoder, values in found.items():
            means.setdefault(encoder, {})[f"state_probe/{name}/mean_f1"] = values["mean_f1"]
    return means.items(), known


def finetune_encoders(setup: Setup, around: Surroundings) -> Scores:
    """Classification after fine-tuning: finetune/accuracy and so on, see `finetune.finetune`."""
    protocol = setup.finetune
    options = pipeline.TrainOptions(
        batch_size=protocol.batch_size,
        image_size=setup.run.data.image_size,
        seed=setup.seed,
        min_size=setup.run.data.min_size,
        max_bad_share=setup.run.data.max_bad_share,
    )
    open_train = whole_videos.train_frames if setup.by_video else pipeline.train_batches
    for name, variables in around.encoders.items():

        def encode(params, images, variables=variables):
            everything = network_variables(variables | {"params": params})
            return pretrain.feature_function(setup.run, everything, cells(protocol.pool))(images)

        batches = open_train(around.data.open("train"), options)
        examples = finetune.Examples(
            train=with_labels(batches, around),
            validation=functools.partial(labelled_split, setup, around, "validation"),
            test=functools.partial(labelled_split, setup, around, "test"),
            image_size=setup.run.data.image_size,
            num_classes=len(around.data.class_names(around.label)),
            by_video=setup.by_video,
        )
        try:
            scores = finetune.finetune(
                encode, setup.run.network.encoder, variables["params"], examples, protocol, around.mesh
            )
        finally:
            batches.close()
        yield name, {f"finetune/{score}": value for score, value in scores.items()}


def with_labels(batches: pipeline.TrainBatches, around: Surroundings) -> Iterator[dict]:
    """Adds to batches of train what their examples are: {"image", "index", "label": int [B]}."""
    source = around.data.open("train", (around.label,))
    if around.by_video:
        source = whole_videos.Videos(source)
    for batch in batches:
        labels = np.array([source.fields(int(index))[around.label] for index in batch["index"]])
        check_labelled(around, "train", labels)
        yield batch | {"label": labels}


def labelled_split(setup: Setup, around: Surroundings, split: str) -> Batches:
    """Batches of a split with "label", whatever the field is called in the data set."""
    for batch in open_split(setup, around, split, (around.label,)):
        yield batch | {"label": batch[around.label]}


# --- The whole


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> dict[str, Any]:
    """Judges the encoder of a checkpoint; one that has been judged already only shows its numbers.

    Args:
      config: see `configs/evaluate.py`.
      workdir: a directory for this config alone.

    Returns:
      What `results.json` holds: among others "final", the numbers of the encoder that was asked for by name;
      "evaluations", encoder -> name -> value; and, with RAM labels, "probe" and "probe_cells", as of a
      pre-training run.

    Raises:
      InputError: see `setup_from_config`, `choose_step`, `restore_encoder` and `open_surroundings`.
    """
    setup = setup_from_config(config)
    step = choose_step(setup)
    # The evaluation inside of a run's work directory is that of the run, wherever this lies now.
    inside = Path(workdir).resolve().parent == setup.checkpoint.resolve()
    may_change = ("checkpoint",) if inside else MAY_CHANGE["evaluate"]
    workdir = config_lib.claim_workdir(workdir, config, may_change=may_change)
    config_lib.keep_changes(workdir, config)
    finished = workdir / config_lib.RESULTS_FILE
    if finished.exists():
        results = json.loads(finished.read_text())
        if results["checkpoint"]["step"] == step:
            logging.info("%s holds the results of a finished evaluation.", workdir)
            print_results(results)
            return results
    mesh_lib.setup_compilation_cache()
    encoders = load_encoders(setup, step)
    around = open_surroundings(setup, encoders, workdir)
    stopwatch = metrics_lib.Stopwatch()
    evaluations, probe = evaluate(setup, around, stopwatch)
    asked = next(iter(encoders))
    results = {
        **metrics_lib.provenance(config, stopwatch.seconds),
        "checkpoint": {"directory": setup.checkpoint, "which": setup.which, "step": step},
        "run": setup.run_config.to_dict(),
        "data": {
            "name": around.data.name,
            "splits": dict(around.data.splits),
            "split_folders": dict(around.data.split_folders),
            "same_as_in_training": setup.same_data,
            "unit": "video" if setup.by_video else "picture",
            "frames_per_video": setup.data.frames_per_video if setup.by_video else None,
        },
        "label": around.label,
        "final": evaluations[asked],
        "evaluations": evaluations,
        "bad_images": around.skipped.counts(),
        "left_out": {cause: [len(names), *names[:5]] for cause, names in around.data.left_out.items()},
    }
    if probe:
        results |= {"probe": probe["positions"], "probe_cells": probe["cells"]}
    metrics = metrics_lib.Metrics(workdir, resume_step=None)
    line = {
        f"{encoder}/{name}": value
        for encoder, values in evaluations.items()
        for name, value in values.items()
    }
    metrics.write(step or 0, line)
    metrics.close()
    metrics_lib.write_json(finished, results)
    print_results(results)
    print(f"Report: {page.build(workdir)}")
    return results


def evaluate(
    setup: Setup, around: Surroundings, stopwatch: metrics_lib.Stopwatch
) -> tuple[dict[str, dict[str, float]], dict[str, Any] | None]:
    """Makes the evaluations that are enabled: encoder -> name -> value, and all of the state probe.

    Raises:
      InputError: none is enabled.
    """
    parts = {
        "linear_probe": probe_layers,
        "retrieval": retrieve,
        "finetune": finetune_encoders,
        "state_probe": probe_states,
    }
    parts = {name: part for name, part in parts.items() if getattr(setup, name).enabled}
    if "state_probe" in parts and not around.has("ram", "game"):
        logging.info("%s has no RAM labels: the state probe is left out.", around.data.name)
        del parts["state_probe"]
    if not parts:
        raise InputError(NOTHING)
    evaluations: dict[str, dict[str, float]] = {name: {} for name in around.encoders}
    probe = None
    with metrics_lib.Progress(len(parts), description="evaluating") as progress:
        progress.update(0)
        for number, (name, part) in enumerate(parts.items(), 1):
            with stopwatch(name):
                found = part(setup, around)
                if name == "state_probe":
                    found, probe = found
                for encoder, scores in found:
                    evaluations.setdefault(encoder, {}).update(scores)
            progress.update(number)
    return evaluations, probe


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the numbers of every encoder side by side."""
    evaluations = results["evaluations"]
    at = (
        "as initialised" if results["checkpoint"]["step"] is None else f"step {results['checkpoint']['step']}"
    )
    title = f"{results['checkpoint']['directory']}, {at}; classes: {results['label']}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("measure", overflow="fold")
    for encoder in evaluations:
        table.add_column(Text(encoder), justify="right")
    compared = {"trained", "random"} <= evaluations.keys()
    if compared:
        table.add_column("trained − random", justify="right")
    names = list(dict.fromkeys(name for values in evaluations.values() for name in values))
    for name, following in zip(names, [*names[1:], ""], strict=True):
        values = {encoder: scores.get(name) for encoder, scores in evaluations.items()}
        cells = [page.score(value) for value in values.values()]
        if compared:
            cells.append(page.difference(values["trained"], values["random"]))
        last = name.rpartition("/")[0] != following.rpartition("/")[0]
        table.add_row(Text(name), *cells, end_section=last)
    (console or Console()).print(table)
