"""Atari frames with the emulator's memory: pictures, clips and ground truth without a download.

`AtariFrames` is a tensorflow-datasets builder that renders its data with envpool and writes
array_record files, without TensorFlow. `build` prepares a config once and opens it ever after.
`ram_labels` and `category` name the state variables in a game's RAM, after the Atari Annotated RAM
Interface of Anand et al., "Unsupervised State Representation Learning in Atari", NeurIPS 2019
(arXiv 1906.08226).
"""

import contextlib
import dataclasses
import functools
import importlib.resources
import io
import itertools
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2

from ssl_jax.data import building
from ssl_jax.data.sources import data_directory, unknown_name
from ssl_jax.runtime.errors import InputError

FRAME_SHAPE = (210, 160, 3)  # height, width, RGB: the Atari 2600's full picture
NUM_ACTIONS = 18  # the full action set, the same for every game
REPEAT_PROBABILITY = 0.75  # the agent's own repeats, per agent step
STICKY_PROBABILITY = 0.25  # the emulator's, per emulator frame (Machado et al., 2018, Section 5)
EPISODES_PER_STREAM = 10_000  # stride of the episode ids, far above what a stream can hold
BYTES_PER_FRAME = 4096  # an upper estimate; PNG, RAM and record come to 1.5 to 3.5 kB


@functools.cache
def _ram_addresses() -> Mapping[str, Mapping[str, int]]:
    table = importlib.resources.files(__package__).joinpath("atariari_ram.json")
    return json.loads(table.read_text())["games"]


def ram_labels(game: str) -> dict[str, int]:
    """Returns the annotated state variables of a game: name -> byte address in its RAM [128].

    Raises:
        InputError: AtariARI does not annotate this game.
    """
    games = _ram_addresses()
    if game not in games:
        raise InputError(unknown_name("Atari game with RAM annotations", game, games))
    return dict(games[game])


def category(variable: str) -> str:
    """Returns the kind of a RAM state variable, one of the five over which AtariARI averages.

    The kinds are those of Anand et al. (2019), Section 5, told by the words of the variable's name
    (the parts between underscores, without digits):

    1. with a coordinate (`x`, `y`, `z`, `column`) it is a localization: of a *small object* if it
       names a ball or a missile, else of the *agent* if it names the player, else *other*;
    2. with `score`, `clock`, `lives`, `meter` or `display` it is what the game shows as a number;
    3. everything else (directions, counts, rooms, levels, existence bits, ...) is *miscellaneous*.

    Args:
        variable: a key of `ram_labels(game)`, for example `enemy_missile_x`.
    """
    words = {word.rstrip("0123456789") for word in variable.split("_")}
    if words & {"x", "y", "z", "column"}:
        if words & {"ball", "missile", "missiles"}:
            return "small_object_localization"
        return "agent_localization" if "player" in words else "other_localization"
    if words & {"score", "clock", "lives", "meter", "display"}:
        return "score_clock_lives_display"
    return "miscellaneous"


@dataclasses.dataclass(kw_only=True)
class AtariFramesConfig(tfds.core.BuilderConfig):
    """What to record.

    Data comes in *streams*: one emulator each, played by its own random agent. A stream belongs to
    one split as a whole, so no episode is in two splits and the sizes are exact.

    Attributes:
        games: names as in AtariARI, in the order of the class ids of the feature `game`.
        streams: streams of a game in each split.
        steps: recorded agent steps of a stream (4 emulator frames each).
        max_warmup: a stream is played for up to this many unrecorded agent steps first. The k
            streams of a split start evenly spread over this range, so that every split sees the
            same part of the games.
        seed: seed of emulators and agents; the same seed gives the same bytes.
    """

    games: tuple[str, ...]
    streams: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"train": 13, "selection": 2, "validation": 2, "test": 3}
    )
    steps: int = 200
    max_warmup: int = 400
    seed: int = 0

    @property
    def num_frames(self) -> int:
        """Frames of all games and splits together."""
        return len(self.games) * sum(self.streams.values()) * self.steps


@dataclasses.dataclass(frozen=True)
class Frame:
    """What is recorded of one agent step.

    Attributes:
        image: the picture (210 x 160, RGB) as PNG bytes.
        ram: uint8 [128], the RAM when the picture was taken.
        episode: id of the episode, unique in the data set.
        step: agent steps since the episode began.
        terminal: this is the last frame of its episode.
    """

    image: bytes
    ram: np.ndarray
    episode: int
    step: int
    terminal: bool


def warmups(streams: int, max_warmup: int) -> list[int]:
    """Returns the unrecorded first agent steps of each stream: `streams` numbers evenly apart."""
    return [round(max_warmup * (i + 0.5) / streams) for i in range(streams)]


def random_agent(rng: np.random.Generator, steps: int) -> np.ndarray:
    """Returns the actions int32 [steps] of a random agent with sticky repeats.

    At every agent step the agent keeps its last action with probability 0.75 and else draws one of
    the 18 actions uniformly, so that it gets about: a new action at every step would tremble
    around one place, and neighbouring frames would differ little.
    """
    fresh = rng.integers(NUM_ACTIONS, size=steps)
    drawn = rng.random(steps) >= REPEAT_PROBABILITY
    drawn[:1] = True
    last_draw = np.maximum.accumulate(np.where(drawn, np.arange(steps), 0))
    return fresh[last_draw].astype(np.int32)


def play(
    game: str, stream_ids: list[int], warmup: list[int], steps: int, seed: int
) -> Iterator[tuple[int, Frame]]:
    """Plays streams of a game with a random agent and yields what they record.

    Every stream has an emulator and an agent of its own, both seeded by (seed, game, stream id):
    what it records does not depend on the streams that are played beside it.

    The picture is what envpool gives at frame skip 4: the maximum over the last two emulator
    frames, which removes the flicker of sprites. RAM is read after the last of the two. An episode
    starts after 1 to 30 emulator frames without action (`noop_max`); the agent presses FIRE by
    itself (`use_fire_reset=False`), so waiting for a ball is part of the data.

    Args:
        game: name as in AtariARI, for example `mspacman`; not an environment's id such as `ALE/Pong-v5`.
        stream_ids: ids of the streams, unique in the data set.
        warmup: unrecorded first agent steps of each stream.
        steps: recorded agent steps of each stream.
        seed: seed of the data set.

    Yields:
        (position in `stream_ids`, frame): `steps` frames of each stream, those of one stream
        consecutive in time, those of different streams in no particular order.

    Raises:
        InputError: there is no such game.
    """
    rngs = [np.random.default_rng([seed, *game.encode(), i]) for i in stream_ids]
    pool = _emulators(game, seeds=[int(rng.integers(2**31)) for rng in rngs])
    lengths = [first + steps for first in warmup]
    actions = [random_agent(rng, length) for rng, length in zip(rngs, lengths, strict=True)]
    played = [0] * len(stream_ids)
    episodes = [i * EPISODES_PER_STREAM for i in stream_ids]
    pool.async_reset()
    for _ in range(sum(lengths)):
        observation, _, terminated, truncated, info = pool.recv()
        i = int(info["env_id"][0])
        t = played[i]
        played[i] += 1
        if played[i] < lengths[i]:
            pool.send(actions[i][t : t + 1], info["env_id"])
        # At the end of an episode envpool ignores one action and gives the first frame of the next
        # episode instead: so `terminal` marks a last frame, and the frame after it has step 0.
        terminal = bool(terminated[0] | truncated[0])
        if t >= warmup[i]:
            step = int(info["elapsed_step"][0])
            yield i, Frame(_png(observation[0]), info["ram"][0].copy(), episodes[i], step, terminal)
        episodes[i] += terminal
    pool.close()


def _emulators(game: str, seeds: list[int]):
    """Starts one emulator for each seed in an asynchronous pool that hands out single frames.

    Asynchronous: emulators play on in the pool's threads while Python compresses a picture.
    """
    import envpool  # Here, so that reading prepared data neither needs nor loads the emulator.

    tasks = {task.removesuffix("-v5").lower(): task for task in envpool.list_all_envs()}
    if game not in tasks:
        raise InputError(unknown_name("Atari game", game, (name for name in tasks if "-" not in name)))
    return envpool.make_gymnasium(
        tasks[game],
        num_envs=len(seeds),
        batch_size=1,
        num_threads=min(len(seeds), os.cpu_count() or 1),
        env_seed=seeds,
        img_height=FRAME_SHAPE[0],
        img_width=FRAME_SHAPE[1],
        gray_scale=False,
        stack_num=1,
        frame_skip=4,
        use_inter_area_resize=False,
        full_action_space=True,
        repeat_action_probability=STICKY_PROBABILITY,
        noop_max=30,
        use_fire_reset=False,
    )


def _png(image: np.ndarray) -> bytes:
    """Compresses a picture, uint8 [3, height, width]."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(
        buffer, format="PNG", compress_level=1
    )
    return buffer.getvalue()


class _ReproducibleWriter(tfds.core.writer.ExampleWriter):
    """Writes the same bytes for the same examples.

    An example is a protocol buffer map, whose fields tfds serializes in the order of a hash table,
    another one in every process.
    """

    def write(self, path, examples):
        return super().write(path, ((key, _sorted_fields(example)) for key, example in examples))


def _sorted_fields(example: bytes) -> bytes:
    return tf_example_pb2.Example.FromString(example).SerializeToString(deterministic=True)


class AtariFrames(tfds.core.ShardBasedBuilder):
    """Frames, RAM and episode structure of Atari games under a random agent.

    Features: `image` (210, 160, 3) uint8 PNG; `ram` [128] uint8; `game` class label; `episode`
    int32, unique in the data set; `step` int32, agent steps since the episode began; `terminal`
    bool.

    Rows are in order and unshuffled: a split is its games, a game its streams, and consecutive rows
    of a stream are consecutive agent steps. So rows i and i + k with the same `episode` are k agent
    steps apart, with all steps between them in the rows between. Readers must shuffle.

    A file holds one game of one split. This is a `ShardBasedBuilder` because that writes files as
    they are recorded: the more usual `GeneratorBasedBuilder` collects a whole split first, and
    beyond 1 GB falls back on TensorFlow.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        AtariFramesConfig(
            name="default",
            description="8 games, 32,000 frames, for experiments of minutes.",
            games=(
                "boxing",
                "breakout",
                "freeway",
                "mspacman",
                "pong",
                "qbert",
                "seaquest",
                "spaceinvaders",
            ),
        ),
        AtariFramesConfig(
            name="tiny",
            description="2 games, 720 frames, for tests.",
            games=("breakout", "pong"),
            streams={"train": 4, "selection": 1, "validation": 2, "test": 2},
            steps=40,
            max_warmup=60,
        ),
        AtariFramesConfig(
            name="atariari",
            description="Every annotated game with 50,000 frames, as in Anand et al. (2019).",
            games=tuple(sorted(_ram_addresses())),
            steps=2500,
            max_warmup=1000,
        ),
    ]

    def __init__(self, **kwargs):
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)
        self._advance: Callable[[], None] = lambda: None  # Called once a recorded frame.

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.builder_config.description,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=FRAME_SHAPE, encoding_format="png"),
                    "ram": tfds.features.Tensor(shape=(128,), dtype=np.uint8, encoding="bytes"),
                    "game": tfds.features.ClassLabel(names=self.builder_config.games),
                    "episode": np.int32,
                    "step": np.int32,
                    "terminal": np.bool_,
                }
            ),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager):
        del dl_manager  # Nothing is downloaded.
        config = self.builder_config
        return {
            split: [functools.partial(self._examples, split, game) for game in config.games]
            for split in config.streams
        }

    def _example_writer(self):
        return _ReproducibleWriter(file_format=self.info.file_format)

    def _examples(self, split: str, game: str) -> Iterator[tuple[int, dict]]:
        """Records the streams of one game in one split and yields their rows in order."""
        config = self.builder_config
        splits, counts = list(config.streams), list(config.streams.values())
        first = config.games.index(game) * sum(counts) + sum(counts[: splits.index(split)])
        streams = config.streams[split]
        frames = [[] for _ in range(streams)]
        for i, frame in play(
            game,
            list(range(first, first + streams)),
            warmups(streams, config.max_warmup),
            config.steps,
            config.seed,
        ):
            frames[i].append(frame)
            self._advance()
        for row, frame in enumerate(itertools.chain.from_iterable(frames)):
            yield row, vars(frame) | {"image": io.BytesIO(frame.image), "game": game}


def build(config: str = "default", data_dir: str | None = None) -> AtariFrames:
    """Opens a config of `AtariFrames`, rendering it first if it is not there (`default`: a minute).

    An interrupted build leaves a directory that nobody trusts and that the next build removes. Of
    several processes one builds, behind a lock file beside the data, and the others wait for it.

    Args:
        config: `default`, `tiny` or `atariari`.
        data_dir: directory of tfds data sets; None is the usual one, see `sources.data_directory`.

    Raises:
        InputError: no such config, or its directory cannot be written or has not enough room.
    """
    if config not in AtariFrames.builder_configs:
        raise InputError(unknown_name("config of atari_frames", config, AtariFrames.builder_configs))
    data_dir = data_directory(data_dir)
    builder = AtariFrames(config=config, data_dir=data_dir)
    if _is_prepared(builder):
        return builder
    directory = pathlib.Path(builder.data_dir).parent
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with building.locked(directory.with_suffix(".lock")):
            builder = AtariFrames(config=config, data_dir=data_dir)  # Another may have built it.
            if not _is_prepared(builder):
                _render(builder, directory)
    except (OSError, RuntimeError) as error:
        # A failed write of array_record is a RuntimeError that names the file.
        if isinstance(error, RuntimeError) and str(directory) not in str(error):
            raise
        raise InputError(
            f"atari_frames/{config} cannot be written to {directory} ({error}); name a writable"
            " directory with enough room as data_dir or in TFDS_DATA_DIR."
        ) from error
    return builder


def _is_prepared(builder: AtariFrames) -> bool:
    # The directory gets its name in the last moment of a build, by an atomic rename.
    return (pathlib.Path(builder.data_dir) / "dataset_info.json").exists()


def _render(builder: AtariFrames, directory: pathlib.Path) -> None:
    """Builds a config; to be called under its lock."""
    for leftover in directory.glob(tfds.core.constants.INCOMPLETE_PREFIX + "*"):
        logging.info("Removing %s, left by an interrupted build.", leftover)
        shutil.rmtree(leftover)
    if pathlib.Path(builder.data_dir).exists():
        raise OSError(f"{builder.data_dir} is there but incomplete; please remove it")
    num_frames = builder.builder_config.num_frames
    free = shutil.disk_usage(directory).free
    if free < num_frames * BYTES_PER_FRAME:
        raise OSError(f"needs about {num_frames * BYTES_PER_FRAME:,} bytes, only {free:,} are free")
    tfds.disable_progress_bar()  # Ours counts frames.
    with (
        building.progress_bar() as progress,
        contextlib.redirect_stdout(None),  # tfds prints that it downloads, which it does not.
        building.owners_may_lack_names(),
    ):
        task = progress.add_task(f"Rendering {builder.info.full_name}", total=num_frames)
        builder._advance = functools.partial(progress.advance, task)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
