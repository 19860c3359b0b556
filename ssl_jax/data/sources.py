"""Where pictures come from: any tensorflow-datasets data set, read at random without TensorFlow, or a folder.

`make` finds a data set and names its four splits; `Sources.open` gives one of them as a `Source`,
which is what `ssl_jax.data.pipeline` reads: it has a length, an example for every index and a name,
and it can be sent to worker processes. `ssl_jax.data.folders` and `ssl_jax.data.videos` have their own.
"""

import dataclasses
import difflib
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_jax.runtime import files, paths
from ssl_jax.runtime.config import closest
from ssl_jax.runtime.errors import InputError

if TYPE_CHECKING:  # Importing tfds takes half a second, so it happens where it is needed.
    import tensorflow_datasets as tfds

    from ssl_jax.data.folders import Folder

FINGERPRINTED = 16  # examples of a split that tell it from another
SPLITS = ("train", "selection", "validation", "test")


class TooLargeError(ValueError):
    """A file or a picture is larger than is safe to decode."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Random access to the examples of one split.

    Attributes:
        name: data set and split, for messages: `cifar10 train[2%:]`.
        records: the serialized `tf.train.Example`s, by index.
        features: the fields to give besides the picture.
    """

    name: str
    records: Sequence[bytes]
    features: "tfds.features.FeaturesDict"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns {"image": the encoded picture (bytes), field: np.ndarray, ...}."""
        from tensorflow_datasets.proto import tf_example_pb2

        record = files.try_twice(lambda: self.records[index])
        # tfds's own decoding of an example costs ten times as much as this and would be a fifth of
        # the time to get a small picture. Only the fields that are asked for go through it.
        example = tf_example_pb2.Example.FromString(record)
        image = example.features.feature["image"].bytes_list.value[0]
        if not self.features:
            return {"image": image}
        fields = self.features.deserialize_example_np(record)
        return {"image": image} | {
            field: np.asarray(value, self.features[field].np_dtype) for field, value in fields.items()
        }

    def read(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Reads several examples, each when it is asked for."""
        return (self[index] for index in indices)

    def fields(self, index: int) -> dict[str, np.ndarray]:
        """Returns the fields of an example without its picture."""
        return {field: value for field, value in self[index].items() if field != "image"}

    def describe(self, index: int) -> str:
        """Returns what to call an example in a message."""
        return f"example {index}"

    def fingerprint(self) -> str:
        """Returns a digest of the number of examples and of some of them, evenly apart.

        Every kind of source has one; it does not depend on the directory that the data set is in.
        """
        num = len(self.records)
        some = range(0, num, max(num // FINGERPRINTED, 1))
        return digest([str(num).encode(), *(bytes(self.records[index]) for index in some)])


def digest(parts: Iterable[bytes]) -> str:
    """Returns a short digest of a sequence of bytes, in hexadecimal digits."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little") + part)
    return state.hexdigest()


def blank(source: Source) -> dict[str, np.ndarray]:
    """Returns the fields of an example that is not there: zeros of their shapes and dtypes."""
    return {field: np.zeros(feature.shape, feature.np_dtype) for field, feature in source.features.items()}


def ppm(pixels: np.ndarray) -> bytes:
    """Returns uint8 [height, width, 3] as a picture file that costs next to nothing to write and to read."""
    return b"P6 %d %d 255\n" % pixels.shape[1::-1] + pixels.tobytes()


@dataclasses.dataclass(frozen=True)
class Sources:
    """A prepared data set and what its splits are called in it.

    Attributes:
        name: the tfds name, for example `atari_frames/tiny`.
        splits: split -> tfds split expression, for those of `SPLITS` that may be opened.
        builder: the tfds builder of the prepared data.
        left_out: cause -> files that are not used for it; of a prepared data set there are none.
        split_folders: split -> the sub-folder that it is read from; of a prepared data set there are none.
    """

    name: str
    splits: Mapping[str, str]
    builder: "tfds.core.DatasetBuilder"
    left_out: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    split_folders: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def features(self) -> "tfds.features.FeaturesDict":
        """The fields of an example, `image` included."""
        return self.builder.info.features

    def open(self, split: str, fields: Sequence[str] = ()) -> Source:
        """Opens a split.

        Args:
            split: one of `SPLITS`.
            fields: what to give of an example besides `image`: features of fixed shape, for example
                `label`, or `ram`, `game`, `episode`, `step`, `terminal` of atari_frames.

        Raises:
            InputError: no such field.
        """
        import tensorflow_datasets as tfds

        known = _batchable_fields(self.features)
        for field in fields:
            if field not in known:
                raise InputError(unknown_name(f"field of {self.name}", field, known))
        source = self.builder.as_data_source(
            self.splits[split],
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
            file_format="array_record",
        )
        return Source(
            name=f"{self.name} {self.splits[split]}",
            records=source.data_source,
            features=tfds.features.FeaturesDict({field: known[field] for field in fields}),
        )

    def class_names(self, field: str) -> tuple[str, ...]:
        """Returns the names of the classes of a class label, in the order of their ids."""
        return tuple(self.features[field].names)


def make(
    *,
    name: str,
    data_dir: str | None = None,
    path: str | None = None,
    annotations: str | None = None,
    fold: int = 1,
    splits: Mapping[str, str] | None = None,
    opened: Sequence[str] = SPLITS,
) -> "Sources | Folder":
    """Finds a data set and decides on its splits.

    `folder` and `videos` are folders of one's own pictures and videos: see `folders.make` and
    `videos.make`. `atari_frames` is rendered on first use; every other data set must have been prepared as
    array_record. A split of `opened` that the data set does not have itself is cut from its `train`:

    - `selection` (what a permutation policy is rewarded for; never reported) is `train[0%:1%]`;
    - `validation` is the next percent;
    - `test` is the data set's own `validation`, or else the same as ours;
    - `train` is the rest.

    The `test` of some data sets has no labels: for `imagenet2012` pass `{"test": "validation"}`.

    Args:
        name: `folder`, `videos`, or a tfds name: `atari_frames`, `atari_frames/tiny`, `imagenet2012`, ...
        data_dir: directory of tfds data sets; None is the usual one, see `data_directory`.
        path: the folder of `folder` or `videos`.
        annotations: of `videos`: the folder of the split files of UCF101 or HMDB51.
        fold: of these split files: 1, 2 or 3.
        splits: tfds split expressions that replace the ones above, for example
            `{"train": "train[:90%]", "validation": "train[95%:]"}`.
        opened: those of `SPLITS` that will be opened. Only these are decided on, so that an evaluation, which
            needs no `selection`, may learn from all of `train`.

    Raises:
        InputError: the data set is unknown, not prepared, prepared in a format without random
            access, or without pictures; or a split is unknown, empty, or shares examples with
            `train`.
    """
    if name in ("folder", "videos"):
        return _make_folder(name, path, annotations, fold, splits, opened)
    for key, value in (("path", path), ("annotations", annotations)):
        if value is not None:
            raise InputError(f"{key}={value!r} is for the data sets folder and videos, not for {name}.")
    import tensorflow_datasets as tfds

    builder = _open(name, data_dir)
    features = builder.info.features
    if "image" not in features or not isinstance(features["image"], tfds.features.Image):
        raise InputError(
            f"{name} has no field 'image' of single pictures; its fields are {', '.join(features)}."
        )
    sources = Sources(name, choose_splits(builder.info.splits, splits, opened=opened), builder)
    check_disjoint(name, sources.splits, {split: _rows(sources, split) for split in sources.splits})
    return sources


def choose_splits(
    own: Iterable[str],
    splits: Mapping[str, str] | None = None,
    share: int = 1,
    opened: Sequence[str] = SPLITS,
) -> dict[str, str]:
    """Returns an expression for each split of `opened`: one of `own`, or cut from `train`; see `make`.

    Args:
        own: the splits that the data set has, `train` among them.
        splits: expressions that replace those.
        share: percent to cut for a split.
        opened: those of `SPLITS` that are needed.

    Raises:
        InputError: `splits` has a name that is none of `SPLITS`.
    """
    chosen, taken, needed = {}, 0, {*opened}
    if "test" in needed - {*own, *(splits or {})}:
        needed.add("validation")  # which is the test then
    for split in ("selection", "validation"):
        if split in own or split not in needed:
            chosen[split] = split
        else:
            chosen[split] = f"train[{taken}%:{taken + share}%]"
            taken += share
    chosen["train"] = f"train[{taken}%:]" if taken else "train"
    chosen["test"] = "test" if "test" in own else chosen["validation"]
    for split, expression in (splits or {}).items():
        if split not in SPLITS:
            raise InputError(unknown_name("split", split, SPLITS))
        chosen[split] = expression
    return {split: chosen[split] for split in chosen if split in opened}


def check_disjoint(
    name: str, splits: Mapping[str, str], rows: Mapping[str, Sequence[tuple[str, range]]]
) -> None:
    """Raises InputError for splits that share examples.

    Only `validation` and `test` may share: both are reported, none is learned from.

    Args:
        name: of the data set.
        splits: split -> expression, for some of `SPLITS`.
        rows: split -> what it holds: (the data set's own split, part of that), ...
    """
    for first, second in itertools.combinations([split for split in SPLITS if split in splits], 2):
        if {first, second} == {"validation", "test"}:
            continue
        for (own, some), (other, others) in itertools.product(rows[first], rows[second]):
            if own == other and max(some.start, others.start) < min(some.stop, others.stop):
                raise InputError(
                    f"The splits {first} ({splits[first]}) and {second} ({splits[second]}) of {name}"
                    " share examples; make them disjoint."
                )


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Returns the sentence for a name that is not known, with the closest ones that are."""
    known = list(known)
    first = closest(name, known)
    close = dict.fromkeys([first] * bool(first) + difflib.get_close_matches(name, known, n=3, cutoff=0.0))
    return f"No {kind} is called {name!r}; did you mean {' or '.join([*close][:3])}?"


def _make_folder(
    name: str,
    path: str | None,
    annotations: str | None,
    fold: int,
    splits: Mapping[str, str] | None,
    opened: Sequence[str],
) -> "Folder":
    """Finds a folder of pictures or videos."""
    if not path:
        raise InputError(f"config.data.path is missing; the data set {name} needs the folder of its files.")
    if name == "videos":
        from ssl_jax.data import videos

        return videos.make(path=path, annotations=annotations, fold=fold, splits=splits, opened=opened)
    from ssl_jax.data import folders

    if annotations is not None:
        raise InputError(f"annotations={annotations!r} are of videos; a folder of pictures has none.")
    return folders.make(path=path, splits=splits, opened=opened)


def data_directory(data_dir: str | None = None) -> str:
    """Returns where tfds data sets are: `data_dir`, else `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
        InputError: there is no home directory either; see also `paths.read`.
    """
    if data_dir:
        return paths.read(data_dir, "data.data_dir")
    directory, home = paths.variable("TFDS_DATA_DIR"), paths.home()
    if directory is None and home is None:
        raise InputError(
            f"The user that runs this (number {os.getuid()}) has no home directory, where data sets are kept;"
            " set the variable TFDS_DATA_DIR, or config.data.data_dir, to a directory that can be written."
        )
    return directory or str(home / "tensorflow_datasets")


def _open(name: str, data_dir: str | None) -> "tfds.core.DatasetBuilder":
    """Opens a data set from its files, without the code that prepared it (atari_frames: builds)."""
    import tensorflow_datasets as tfds

    dataset, _, config = name.partition("/")
    if dataset == "atari_frames":
        from ssl_jax.data import atari_frames

        return atari_frames.build(config or "default", data_dir)
    data_dir = directory = data_directory(data_dir)
    # Every error of tfds here is a ValueError, a name that is no name at all included.
    try:
        builder = tfds.core.read_only_builder.builder_from_files(name, data_dir=data_dir)
    except ValueError as error:
        for place in (directory, os.path.join(directory, dataset)):
            _check_listed(os.path.expanduser(place))
        known = {*tfds.list_builders(with_community_datasets=False), "atari_frames", "folder", "videos"}
        if dataset.partition(":")[0] not in known:
            sentence = unknown_name("tensorflow-datasets data set", dataset, known)
            raise InputError(f"{sentence} It is not in {directory} either.") from error
        where = f", data_dir={data_dir!r}" if data_dir else ""
        raise InputError(
            f"{name} is not prepared in {directory}; prepare it, where TensorFlow is installed, by"
            f' python -c "import tensorflow_datasets as tfds; tfds.builder({name!r}{where},'
            " file_format='array_record').download_and_prepare()\""
        ) from error
    formats = {file_format.value for file_format in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise InputError(
            f"{name} is prepared in {builder.data_dir} as {', '.join(sorted(formats))}, which gives"
            " no random access; add array_record, where TensorFlow is installed, by tfds"
            f" convert_format --dataset_version_dir={builder.data_dir}"
            " --out_file_format=array_record"
        )
    return builder


def _check_listed(directory: str) -> None:
    """Raises InputError for a directory that may be there, and cannot be read now."""
    try:
        os.listdir(directory)
    except OSError as error:
        files.check_reached(directory, error)


def _batchable_fields(features: "tfds.features.FeaturesDict") -> dict[str, Any]:
    """Returns the features besides the picture whose values have one shape in all examples."""
    import tensorflow_datasets as tfds

    infos = {field: feature.get_tensor_info() for field, feature in features.items()}
    return {
        field: features[field]
        for field, info in infos.items()
        if field != "image" and isinstance(info, tfds.features.TensorInfo) and None not in info.shape
    }


def _rows(sources: Sources, split: str) -> list[tuple[str, range]]:
    """Returns the rows of a split: (the data set's own split, rows of that), ..."""
    import tensorflow_datasets as tfds

    expression, infos = sources.splits[split], sources.builder.info.splits
    try:
        parts = tfds.core.ReadInstruction.from_spec(expression).to_absolute(infos)
        rows = [
            (part.splitname, range(infos[part.splitname].num_examples)[part.from_ : part.to])
            for part in parts
        ]
    except (ValueError, KeyError) as error:
        has = ", ".join(f"{own} ({info.num_examples} examples)" for own, info in infos.items())
        raise InputError(
            f"{sources.name} has no {expression!r} for the split {split}; it has {has}, and parts"
            " are written like train[:90%] or train[100:]."
        ) from error
    if not any(part for _, part in rows):
        raise InputError(
            f"The split {split} of {sources.name} is empty ({expression}); give it a larger part."
        )
    return rows
