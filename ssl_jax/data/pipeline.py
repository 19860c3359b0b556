"""From a `Source` to batches of uint8 pictures in host memory, by grain.

`train_batches` is endless, shuffled and resumable; `evaluation_batches` reads every example once;
`load_arrays` reads a small split whole. Pictures are decoded by Pillow, in threads or in worker
processes, while the training step runs. All can be shared out over processes. `endless` and `once`
are the same for examples of other kinds, such as the clips of `ssl_jax.data.clips`.

Positions in the training stream are counted over all processes together. A position decides which
example comes there, how it is cropped and what takes its place if it cannot be used; so a batch
depends on nothing but the seed and its number, and to resume is to start at another number.
"""

import contextlib
import dataclasses
import errno
import functools
import gc
import io
import logging
import multiprocessing.util
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from PIL import ExifTags, Image

from ssl_jax.data import formats
from ssl_jax.data.sources import Source, TooLargeError, blank
from ssl_jax.runtime import children, files
from ssl_jax.runtime.errors import InputError

MIN_READ = 100  # examples to read before the share of bad ones can stop a run
SHARED_MEMORY = "/dev/shm"  # through which worker processes hand over batches
MAX_REDRAWS = 100  # random draws for one position, all of them bad, after which it is given up
# What pictures may be. Other readers of Pillow start programs (EPS) or have never met hostile files.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
FREEING_PRIORITY = 20  # above 15, that at which pools of threads are ended
TURNS = {  # EXIF orientation -> how to turn what is stored into what is shown
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

Bad = tuple[int, str, str]  # index in the source, cause, what to say of it


class Reading(NamedTuple):
    """What came of reading one example.

    Attributes:
        arrays: the example by field, if it can be used.
        pictures: how many were read for it.
        bad: the picture that cannot be used.
        refused: why an example of good pictures is not used, for example `static`.
    """

    arrays: dict[str, Any] | None
    pictures: int
    bad: Bad | None = None
    refused: str | None = None


# From an index in the source and what chooses the place of crops and so on (None: no chance) to the
# example there.
Reader = Callable[[int, np.random.Generator | None], Reading]


class UndersizedError(ValueError):
    """A picture is smaller than is useful."""


@dataclasses.dataclass
class Skipped:
    """The examples that could not be used.

    Attributes:
        max_share: share of bad examples among those read above which `add` stops the run.
        read: examples read so far, bad ones and repetitions in later epochs included; of clips, their
            frames.
        bad: bad ones among them.
        causes: (name of the source, index) -> `unreadable`, `undersized` or `too large`, for each bad
            example.
        refused: cause -> how often good examples were refused; they stop no run.
        told: (name of the source, index) -> what the log said of a bad example, in this process.
    """

    max_share: float = 0.05
    read: int = 0
    bad: int = 0
    causes: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict)
    refused: dict[str, int] = dataclasses.field(default_factory=dict)
    told: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict, compare=False)

    def counts(self) -> dict[str, int]:
        """Returns how many different examples were skipped for each cause."""
        return dict(Counter(self.causes.values()))

    def add(self, source_name: str, readings: Sequence[Reading]) -> None:
        """Counts what a batch has read, and names every bad example in the log once.

        Raises:
            InputError: the share of bad ones, of at least 100 examples read, is above `max_share`.
        """
        self.read += sum(reading.pictures for reading in readings)
        for cause in (reading.refused for reading in readings if reading.refused):
            self.refused[cause] = self.refused.get(cause, 0) + 1
        bad = [reading.bad for reading in readings if reading.bad]
        self.bad += len(bad)
        for index, cause, details in bad:
            if (source_name, index) not in self.causes:
                self.causes[source_name, index] = cause
                self.told[source_name, index] = details
                logging.warning("Skipped %s: %s, %s.", cause, source_name, details)
        if self.read >= MIN_READ and self.bad > self.max_share * self.read:
            counts = ", ".join(f"{count} {cause}" for cause, count in self.counts().items())
            first = "; ".join(
                f"{name}, {self.told.get((name, index), f'example {index}')}"
                for name, index in [*self.causes][:5]
            )
            raise InputError(
                f"{self.bad} of the {self.read} examples read could not be used ({counts} different"
                f" ones, the first: {first}), which is more than the share of {self.max_share:g}"
                " that is allowed; repair the data set, or raise config.data.max_bad_share."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a split is read, by this process and the others.

    Attributes:
        batch_size: rows in a batch of this process.
        image_size: height and width in pixels; see `decode_image`.
        min_size: height and width below which a picture is skipped; None is half of `image_size`.
        threads: decoding threads.
        prefetch: batches to keep ready.
        process_index: which of the processes this is.
        process_count: processes that share the examples.
    """

    batch_size: int
    image_size: tuple[int, int]
    min_size: tuple[int, int] | None = None
    threads: int = 2
    prefetch: int = 4
    process_index: int = 0
    process_count: int = 1

    @property
    def decoding(self) -> dict[str, tuple[int, int]]:
        """Arguments of `decode_image`."""
        return {"image_size": self.image_size, "min_size": self.min_size or half(self.image_size)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """How a split is read for ever.

    Attributes:
        seed: not negative; decides order and crops.
        max_bad_share: share of skipped examples above which the run stops with an `InputError`.
        workers: processes that decode. With 0, threads of this process do, which is enough as long
            as decoding takes fewer cores than Pillow leaves the interpreter free for.

    Raises:
        InputError: a number is too small.
    """

    seed: int
    max_bad_share: float = 0.05
    workers: int = 0

    def __post_init__(self):
        for name, least in (("batch_size", 1), ("seed", 0), ("workers", 0), ("threads", 1), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationOptions(Options):
    """How a split is read once.

    Attributes:
        limit: reads this many examples, evenly spread over the split, instead of all.
        skipped: counts the examples that cannot be used; None starts a new count.
    """

    limit: int | None = None
    skipped: Skipped | None = None


def decode_image(
    encoded: bytes,
    image_size: tuple[int, int],
    min_size: tuple[int, int],
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Decodes a picture to RGB of a given size.

    A picture of just this size keeps its pixels. Any other is scaled (bilinear, antialiased) until
    it just covers the size, and cropped: at a random place with `rng`, else in the middle. Pictures are
    turned as their EXIF orientation asks for; grey, 16-bit grey, palette and CMYK pictures become RGB;
    what is transparent is shown on white; of an animation the first picture is taken.

    Args:
        encoded: the bytes of a JPEG, PNG, ... file.
        image_size: height and width in pixels.
        min_size: the smallest height and width to accept, in pixels.
        rng: chooses the place of the crop.

    Returns:
        uint8 [height, width, 3].

    Raises:
        UndersizedError: the picture is smaller than `min_size`.
        TooLargeError: it has more pixels than `Image.MAX_IMAGE_PIXELS`; Pillow raises its own for twice
            as many.
        Exception: anything else that Pillow's readers raise at broken files.
    """
    height, width = image_size
    image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    if Image.MAX_IMAGE_PIXELS and image.height * image.width > Image.MAX_IMAGE_PIXELS:
        raise TooLargeError(f"{image.height} x {image.width}, accepted are {Image.MAX_IMAGE_PIXELS} pixels")
    if image.format not in ("JPEG", "MPO"):
        image.load()  # Of other formats the notes may come after the picture; TIFF is turned here.
    turn = orientation(image)
    swap = slice(None, None, -1 if turn >= 5 else 1)  # They turn rows into columns.
    rows, columns = (image.height, image.width)[swap]
    if rows < min_size[0] or columns < min_size[1]:
        raise UndersizedError(f"{rows} x {columns}, needed are {min_size[0]} x {min_size[1]}")
    image.draft("RGB", (width, height)[swap])  # Lets JPEG decode at 1/2, 1/4 or 1/8 if that covers.
    image = to_rgb(image)
    if turn in TURNS:
        image = image.transpose(TURNS[turn])
    if (image.height, image.width) != image_size:
        scale = max(height / image.height, width / image.width)
        rows, columns = height / scale, width / scale  # what the crop covers of the picture
        free = int(image.height - rows), int(image.width - columns)
        top, left = (n // 2 if rng is None else int(rng.integers(n + 1)) for n in free)
        box = (left, top, min(left + columns, image.width), min(top + rows, image.height))
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
    return np.asarray(image)


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation of a picture: one of `TURNS`, or 1 (upright)."""
    try:
        turn = image.getexif().get(0x0112)
    # Notes can be broken in every way. The picture is whole, and shown as it is stored.
    except Exception:
        return 1
    return turn if turn in TURNS else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns a picture in RGB, on white where it is transparent.

    Raises:
        ValueError: its numbers have no known range.
    """
    if image.mode.startswith("I;16"):  # Pillow itself would cut at 255.
        image = from_deep_grey(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"pictures of mode {image.mode} have no known white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def from_deep_grey(image: Image.Image) -> Image.Image:
    """Returns grey of 9 to 16 bits as grey of 8; what Pillow leaves to others in these is done here."""
    levels, tags = np.asarray(image), getattr(image, "tag_v2", {})  # of TIFF
    grey = (levels >> (tags.get(ExifTags.Base.BitsPerSample, (16,))[0] - 8)).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # White is zero.
        grey = 255 - grey
    result = Image.fromarray(grey)
    if "transparency" in image.info:  # one of the levels, of PNG
        result.putalpha(Image.fromarray(levels != image.info["transparency"]))
    return result


def read_picture(index: int, rng: np.random.Generator | None, *, source: Source, **decoding: Any) -> Reading:
    """Reads and decodes one example: its fields, with `image` as uint8 [height, width, 3].

    `decoding` are the arguments of `decode_image`.
    """
    return read_next(source.read([index]), index, rng, source=source, **decoding)


def read_next(
    examples: Iterator[dict[str, Any]],
    index: int,
    rng: np.random.Generator | None,
    *,
    source: Source,
    **decoding: Any,
) -> Reading:
    """Reads and decodes the next of several examples, `index` of a source; see `Source.read`."""
    # Broken files make Pillow, and broken records make the reader, raise errors of every kind.
    example = {}
    try:
        example = next(examples)
        return Reading(example | {"image": decode_image(example["image"], rng=rng, **decoding)}, 1)
    except Exception as error:
        return Reading(None, 1, bad=blame(index, source, error, example.get("image")))


def blame(index: int, source: Source, error: Exception, encoded: bytes | None = None) -> Bad:
    """What is to be said of an example that cannot be used because of an error.

    Args:
        index: of the example.
        source: where it is from.
        error: what was raised.
        encoded: the file that could not be decoded; None if it could not even be read.

    Raises:
        InputError: it cannot be read now, and nobody knows whether it could be used.
    """
    what = source.describe(index)
    if isinstance(error, InputError):
        raise error
    files.check_reached(f"{source.name}: {what}", error, forbidden=False)
    if isinstance(error, UndersizedError):
        return index, "undersized", f"{what} ({error})"
    if isinstance(error, TooLargeError | Image.DecompressionBombError):
        return index, "too large", f"{what} ({error})"
    if encoded is None:
        return index, "unreadable", f"{what} ({type(error).__name__}: {error})"
    why = formats.explain(encoded[: formats.HEAD], str(error), formats.PICTURES)
    return index, "unreadable", f"{what} ({why})"


def _train_batch(
    number: int,
    indices: np.ndarray,
    *,
    read: Reader,
    field: str,
    num_examples: int,
    options: TrainOptions,
) -> dict[str, Any]:
    """Reads the rows of a process in batch `number`, with others for those not to be used.

    `indices` are those of all processes, one process after the other.
    """
    rows, used, readings = [], [], []
    first = options.process_index * options.batch_size
    for slot, index in enumerate(indices[first : first + options.batch_size], first):
        position = number * len(indices) + slot
        rng = np.random.default_rng([options.seed, position])
        for _ in range(MAX_REDRAWS):
            reading = read(int(index), rng)
            readings.append(reading._replace(arrays=None))
            if reading.arrays is not None:
                rows.append(reading.arrays[field])
                used.append(index)
                break
            index = rng.integers(num_examples)
        else:
            return {"readings": readings}  # There is nothing to train on.
    return {field: np.stack(rows), "index": np.array(used, np.int64), "readings": readings}


class TrainBatches(Iterator[dict[str, np.ndarray]]):
    """An endless iterator of batches {"image": uint8 [B, H, W, 3], "index": int64 [B]}, or of clips.

    `get_state` and `set_state` speak of the batches handed out, whatever is already prefetched: an
    iterator with the same arguments and a restored state goes on with the very next batch. The
    state does not depend on threads or workers, nor, as long as the batch of all processes together
    has the same size, on their number: neither do the rows of that batch, nor their order.

    Attributes:
        skipped: the examples that could not be used, of the batches handed out.
    """

    def __init__(self, source: Source, batches: grain.MapDataset, options: TrainOptions):
        self.skipped = Skipped(options.max_bad_share)
        self._source = source
        self._batches = batches
        self._options = options
        self._number = 0
        self._iterator = None

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            starting = contextlib.nullcontext()
            if self._iterator is None:
                self._iterator = _prefetched(
                    self._batches[self._number :], self._options, workers=self._options.workers
                )
                starting = children.starting_workers() if self._options.workers else starting
            with starting:
                batch = next(self._iterator)
        except (OSError, RuntimeError) as error:
            if self._options.workers and (sentence := _explain_worker(error)):
                self.close()
                raise InputError(sentence) from None
            raise
        readings = batch.pop("readings")
        self.skipped.add(self._source.name, readings)
        if not batch:
            causes = ", ".join(
                sorted({reading.refused or reading.bad[1] for reading in readings[-MAX_REDRAWS:]})
            )
            raise InputError(
                f"{self._source.name} gave {MAX_REDRAWS} examples in a row that cannot be used ({causes});"
                " repair the data set, or relax what is asked of it (config.data.min_size,"
                " config.data.min_motion)."
            )
        self._number += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Returns what `set_state` needs to go on from here; made of JSON types."""
        return {
            "batch": self._number,
            "examples": len(self._source),
            "source": self._source.name,
            "fingerprint": self._fingerprint,
            "read": self.skipped.read,
            "bad": self.skipped.bad,
            "causes": [[*example, cause] for example, cause in self.skipped.causes.items()],
            "refused": dict(self.skipped.refused),
        }

    @functools.cached_property
    def _fingerprint(self) -> str:
        return self._source.fingerprint()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from where a state was taken; the data set may have moved to another directory.

        Raises:
            InputError: the state belongs to a split of another size, or of other examples as far as
                `Source.fingerprint` can tell.
        """
        if state["examples"] != len(self._source):
            raise InputError(
                f"{self._source.name} has {len(self._source)} examples, but the saved run read"
                f" {state['examples']}; restore the data set or start in a new directory."
            )
        if state.get("fingerprint", self._fingerprint) != self._fingerprint:  # Older runs have none.
            raise InputError(
                f"{self._source.name} has as many examples as {state['source']} that the saved run read, but"
                f" they are others, or in another order{_made_anew(self._source.name)}; restore that data set"
                " or start in a new directory."
            )
        self.close()
        self._number = state["batch"]
        self.skipped = Skipped(
            self.skipped.max_share,
            state["read"],
            state["bad"],
            {(self._moved(name, state), index): cause for name, index, cause in state["causes"]},
            dict(state.get("refused", {})),  # Runs from before there were clips have none.
        )

    def _moved(self, name: str, state: dict[str, Any]) -> str:
        """The name that a split has now, of a data set that was elsewhere when a state was taken."""
        old, new = (source.rpartition(" ")[0] for source in (state.get("source", ""), self._source.name))
        return new + name.removeprefix(old) if old and name.startswith(f"{old} ") else name

    def close(self) -> None:
        """Ends threads and worker processes; the next batch would start them again."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def _made_anew(source: str) -> str:
    """Why the records of a data set that is made here may differ, as a part of a sentence."""
    if not source.startswith("atari_frames"):
        return ""
    return ", or were rendered anew by other versions of the libraries"


def _explain_worker(error: Exception) -> str | None:
    """What a person can do about an error of worker processes; None if it is another one."""
    remedy = (
        "give it more (docker run --shm-size=8g), or set config.data.workers to 0 or config.train.batch_size"
        " lower"
    )
    if isinstance(error, OSError):
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return None
        full = files.describe_full([SHARED_MEMORY])
        return f"there is no space in {SHARED_MEMORY} for worker processes{full}; {remedy}"
    status = re.search(r"exit code (-\d+)", str(error))  # in the words of grain
    number = -int(status[1]) if status else None
    if number == signal.SIGBUS:
        return f"a worker process found no space in {SHARED_MEMORY} for a batch (SIGBUS); {remedy}"
    if number == signal.SIGKILL:
        return (
            "a worker process was killed (SIGKILL), as happens where memory runs out; set config.data.workers"
            " lower"
        )
    return None


def train_batches(source: Source, options: TrainOptions) -> TrainBatches:
    """Reads a split for ever, in another random order in every epoch.

    Every epoch of all processes together holds every example once. An example that cannot be used
    is skipped: a random other one, the same in every run, takes its place.

    Raises:
        InputError: while batches are read, for too many bad examples.
    """
    return endless(
        source, functools.partial(read_picture, source=source, **options.decoding), "image", options
    )


def endless(source: Source, read: Reader, field: str, options: TrainOptions) -> TrainBatches:
    """Batches {field: [B, ...], "index": int64 [B]} of what `read` makes of a split, for ever.

    Errors are those of `train_batches`; `read` goes to worker processes.
    """
    # grain shuffles epoch k with seed + k: seeds next to each other would share epochs.
    shuffle_seed = int(np.random.SeedSequence(options.seed).generate_state(1)[0])
    indices = grain.MapDataset.range(len(source)).shuffle(seed=shuffle_seed).repeat()
    make = functools.partial(_train_batch, read=read, field=field, num_examples=len(source), options=options)
    batches = indices.batch(options.batch_size * options.process_count, drop_remainder=True)
    return TrainBatches(source, batches.map_with_index(make), options)


def _prefetched(batches: grain.MapDataset, options: Options, *, workers: int = 0) -> grain.DatasetIterator:
    if workers:
        multiprocessing.util.Finalize(None, _finish_freeing, exitpriority=FREEING_PRIORITY)
        if not flags.FLAGS.is_parsed():  # grain asks for flags; a notebook or a test parses none.
            flags.FLAGS.mark_as_parsed()
        shared_out = grain.MultiprocessingOptions(workers, max(1, options.prefetch // workers))
        in_worker = batches.to_iter_dataset(grain.ReadOptions(1, 1))
        return iter(in_worker.mp_prefetch(shared_out, worker_init_fn=children.begin_worker))
    threads = options.threads
    return iter(batches.to_iter_dataset(grain.ReadOptions(threads, max(options.prefetch, threads))))


def _finish_freeing() -> None:
    """Waits, at the end of the program, for grain's thread that frees the shared memory of old batches.

    Python would end the thread in the midst of that, and complain about memory that is left.
    """
    gc.collect()
    module = sys.modules.get("grain._src.python.ipc.shared_memory_array")
    pool = getattr(getattr(module, "SharedMemoryArray", None), "_del_thread_pool", None)
    if pool is not None:
        pool.apply(int)  # It has one thread: what it was told before is done.


def half(image_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the smallest size to accept for a target size, unless another is asked for."""
    return (image_size[0] + 1) // 2, (image_size[1] + 1) // 2


def evaluation_batches(source: Source, options: EvaluationOptions) -> Iterator[dict[str, np.ndarray]]:
    """Reads a split once, in order.

    Every process gets the same number of batches of the same size. Rows that fill up the last ones,
    and rows of examples that cannot be used, are zero and have `mask` False: a sum over rows with
    `mask` counts every good example once, over all processes together. Pictures of another size than
    `options.image_size` are cropped in the middle.

    Args:
        source: the split, opened with the fields that the batches shall have.
        options: how it is read.

    Yields:
        {"image": uint8 [B, H, W, 3], "mask": bool [B], "index": int64 [B] (-1 where it fills up),
        and every field of the source: [B, ...]}.

    Raises:
        InputError: too many examples cannot be used.
    """
    starts = spread(len(source), options.limit)
    return once(
        source,
        functools.partial(read_picture, source=source, **options.decoding),
        np.stack([starts, starts + 1], axis=1),
        blank(source) | {"image": np.zeros((*options.image_size, 3), np.uint8)},
        options,
    )


def spread(num_examples: int, limit: int | None) -> np.ndarray:
    """Returns the indices of all examples, or of `limit` of them, evenly apart."""
    num = num_examples if limit is None else min(limit, num_examples)
    return np.arange(num) * num_examples // max(num, 1)


def once(
    source: Source,
    read: Reader,
    stretches: np.ndarray,
    blank: dict[str, np.ndarray],
    options: EvaluationOptions,
) -> Iterator[dict[str, np.ndarray]]:
    """Reads one example of each stretch of a split: the first that can be used.

    Args:
        source: the split.
        read: makes the examples.
        stretches: int [N, 2], where each begins and where it ends.
        blank: the fields of an example that is not there, by their names.
        options: how it is read; its `limit` is in the stretches.

    Yields:
        {field: [B, ...] for each of `blank`, "mask": bool [B], "index": int64 [B]}; where no example of
        a stretch can be used the index is that of the first.
    """
    skipped = Skipped() if options.skipped is None else options.skipped
    steps = -(-len(stretches) // (options.batch_size * options.process_count))
    slots = np.full((steps, options.process_count, options.batch_size, 2), -1)
    slots.reshape(-1, 2)[: len(stretches)] = stretches
    mine = slots[:, options.process_index]
    batches = grain.MapDataset.source(mine).map(functools.partial(_evaluation_batch, read=read, blank=blank))
    iterator = _prefetched(batches, options)
    try:
        for batch in iterator:
            skipped.add(source.name, batch.pop("readings"))
            yield batch
    finally:
        iterator.close()


def _evaluation_batch(stretches: np.ndarray, *, read: Reader, blank: dict[str, np.ndarray]) -> dict[str, Any]:
    """Reads one example of each of the `stretches`; one that begins and ends at -1 stays empty."""
    rows, readings = [blank] * len(stretches), []
    mask, used = np.zeros(len(stretches), bool), stretches[:, 0].astype(np.int64)
    for slot, (start, stop) in enumerate(stretches):
        for index in range(start, stop):
            reading = read(index, None)
            readings.append(reading._replace(arrays=None))
            if reading.arrays is not None:
                rows[slot], mask[slot], used[slot] = reading.arrays, True, index
                break
    batch = {field: np.stack([row[field] for row in rows]) for field in blank}
    return batch | {"mask": mask, "index": used, "readings": readings}


def load_arrays(source: Source, options: EvaluationOptions) -> dict[str, np.ndarray]:
    """Reads a split, or `options.limit` examples spread evenly over it, into memory.

    Errors are those of `evaluation_batches`; examples that cannot be used are left out.

    Returns:
        {"image": uint8 [N, H, W, 3], "index": int64 [N], and every field of the source: [N, ...]}.
    """
    batches = [
        {field: values[batch["mask"]] for field, values in batch.items() if field != "mask"}
        for batch in evaluation_batches(source, options)
    ]
    arrays = {field: np.concatenate([batch[field] for batch in batches]) for field in batches[0]}
    if not len(arrays["index"]):
        raise InputError(f"None of the examples of {source.name} can be used; repair the data set.")
    return arrays
