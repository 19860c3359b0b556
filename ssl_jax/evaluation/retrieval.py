"""What lies near what: nearest neighbours among frozen features, by the cosine of their angle.

The retrieval protocol of Büchler et al. 2018 and those before them: a query counts as found at k where one
of its k nearest keys has its class. *Frames* are queries by themselves; a *clip* is the mean of the features
of successive frames of one video; a *video* is the mean over all of its frames that were read. A class is
often told by the background alone, so where frames carry the state of a game there is a harder question, too:
is a game in a similar *state* in the nearest frame of another episode of the same game?
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax import lax

from ssl_jax.data.atari_frames import ram_labels
from ssl_jax.evaluation.features import Rows
from ssl_jax.evaluation.state_probe import entropy
from ssl_jax.runtime.errors import InputError

QUERIES, KEYS = 1024, 8192  # rows of a block of similarities: 32 MiB


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How neighbours are looked for; stored with the scores.

    Attributes:
      top: values of k; those of which there are more than keys are left out.
      clip_frames: frames of a clip, at most. They follow each other in the video: where frames were left out
        as it was read, there are no clips.
      state_bins: a state variable of more values is cut into so many bins, equally full of keys.
      min_entropy: a state variable of lower empirical entropy (nats, in the keys of a game) is dropped.
    """

    top: tuple[int, ...] = (1, 5, 10, 20, 50)
    clip_frames: int = 8
    state_bins: int = 8
    min_entropy: float = 0.6

    def __post_init__(self):
        if not self.top or min(self.top) < 1:
            raise InputError(f"top={self.top} must name numbers of neighbours, from 1 on.")
        for name, least in (("clip_frames", 1), ("state_bins", 2)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}.")


def nearest(
    queries: np.ndarray,
    keys: np.ndarray,
    k: int,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    block: tuple[int, int] = (QUERIES, KEYS),
) -> tuple[np.ndarray, np.ndarray]:
    """The k keys of the highest cosine for each query; of equal ones those that come first.

    The matrix [Q, M] of all similarities is never there: blocks of it are made and merged into the best k so
    far, all on the device. It holds the keys (4 M D bytes), one block of queries (4 q D) and one block of
    similarities (4 q m): with 1M keys of 512 numbers 2 GB and 34 MB.

    Args:
      queries: float [Q, D].
      keys: float [M, D].
      k: number of neighbours, of which there are as many only if M - those left out >= k.
      groups: int [Q] and int [M]: keys of the query's own group are left out. With ids of examples a query
        does not find itself, with ids of episodes or videos not its own either.
      block: q and m, rows of a block.

    Returns:
      float32 [Q, k] cosines, falling, and int32 [Q, k] rows of the keys. Where there are fewer than k, the
      cosine is -inf and the row -1.
    """
    rows, columns = min(block[0], len(queries)), min(block[1], len(keys))
    query_groups, key_groups = (
        _codes(*groups) if groups else (np.full(len(queries), -1), np.arange(len(keys)))
    )
    padded = lambda values, size, fill: np.concatenate(
        [values, np.full((-len(values) % size, *values.shape[1:]), fill, values.dtype)]
    )
    blocks = lambda values, size, fill, dtype: jnp.asarray(
        padded(values.astype(dtype), size, fill).reshape(-1, size, *values.shape[1:])
    )
    key_blocks = (
        _normalize(blocks(keys, columns, 0, np.float32)),
        blocks(key_groups, columns, -1, np.int32),
        blocks(np.arange(len(keys)), columns, -1, np.int32),
    )
    found = []
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        query = jnp.asarray(padded(queries[part].astype(np.float32), rows, 0))
        group = jnp.asarray(padded(query_groups[part].astype(np.int32), rows, -1))
        found.append([np.asarray(array) for array in _search(query, group, *key_blocks, k=k)])
    cosine, index = (np.concatenate(arrays)[: len(queries)] for arrays in zip(*found, strict=True))
    return cosine, index


def _codes(query_groups, key_groups):
    """Small numbers for ids of any size, the same for the same id."""
    codes = np.unique(np.concatenate([query_groups, key_groups]), return_inverse=True)[1]
    return codes[: len(query_groups)], codes[len(query_groups) :]


@jax.jit
def _normalize(features):
    norm = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)


@functools.partial(jax.jit, static_argnames="k")
def _search(queries, query_group, keys, key_group, number, k):
    """Queries [q, D] against keys [blocks, m, D], of which those with number -1 are padding."""
    queries = _normalize(queries)
    each = min(k, keys.shape[1])

    def merge(best, block):
        keys, group, number = block
        # Not in the lower precision that is usual on accelerators: near duplicates differ in late digits.
        cosine = jnp.matmul(queries, keys.T, precision=lax.Precision.HIGHEST)
        refused = (query_group[:, None] == group[None]) | (number < 0)[None]
        cosine, place = lax.top_k(jnp.where(refused, -jnp.inf, cosine), each)
        cosine = jnp.concatenate([best[0], cosine], 1)
        index = jnp.concatenate([best[1], number[place]], 1)
        cosine, place = lax.top_k(cosine, k)  # of equal ones the first, which has the smaller number
        return (cosine, jnp.take_along_axis(index, place, axis=1)), None

    shape = (len(queries), k)
    start = (jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32))
    (cosine, index), _ = lax.scan(merge, start, (keys, key_group, number))
    return cosine, jnp.where(cosine == -jnp.inf, -1, index)


def top_accuracy(
    index: np.ndarray, query_labels: np.ndarray, key_labels: np.ndarray, top: tuple[int, ...]
) -> dict[str, float]:
    """Share of the queries with a key of their class among the k nearest.

    Args:
      index: int [Q, K] rows of the keys, nearest first; -1 is none.
      query_labels: int [Q].
      key_labels: int [M].
      top: values of k, at most K.

    Returns:
      {"top1": ..., "top5": ...}.
    """
    right = (key_labels[index] == query_labels[:, None]) & (index >= 0)
    return {f"top{k}": float(right[:, :k].any(1).mean()) for k in top}


def group_means(features: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of features [N, D] over groups [N]: float32 [G, D], and the first row of each, int [G]."""
    _, first, group, size = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    ordered = features[np.argsort(group, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(size)[:-1]])
    return np.add.reduceat(ordered, starts) / size[:, None].astype(np.float32), first


def clips(videos: np.ndarray, index: np.ndarray, frames: int) -> np.ndarray:
    """Cuts videos into clips of successive frames.

    Args:
      videos: int [N], ids of the frames' videos.
      index: int [N], ascending places of the frames in their split, where those of a video lie in order.
      frames: of a clip; one at the end of a video, or before a frame that was not read, may be shorter.

    Returns:
      Ids of the clips, int [N], from 0.
    """
    breaks = np.flatnonzero((np.diff(videos) != 0) | (np.diff(index) != 1)) + 1
    length = np.diff(np.concatenate([[0], breaks, [len(videos)]]))
    place = np.arange(len(videos)) - np.repeat(np.cumsum(length) - length, length)
    return np.cumsum(place % frames == 0) - 1


def evaluate(
    queries: Rows, keys: Rows, protocol: Protocol, *, label: str, games: tuple[str, ...] = ()
) -> Iterator[tuple[str, dict[str, float]]]:
    """Looks for the neighbours of frames, clips and videos among those of other videos.

    Args:
      queries: features of every encoder and the fields `label`, "index" and, where there are videos,
        "episode". A split is compared with itself by giving it twice.
      keys: the same of the keys.
      protocol: of the search.
      label: name of the field with the classes.
      games: names of the games, in the order of the classes of the field "game", where there is the field
        "ram": then the state is compared as well.

    Yields:
      (encoder, {"retrieval/frame/top1": ...}), and so on for each k of the protocol for which there are as
      many keys; with videos also "retrieval/video/top1" and, where there are clips of several frames,
      "retrieval/clip/top1"; with games also "retrieval/state/top1" and "retrieval/state/chance", see
      `state_agreement`. Of clips and videos, which are fewer, there may be no value at all.

    Raises:
      InputError: there are fewer keys than the smallest k.
    """
    check_top(protocol, len(keys.fields["index"]))
    for encoder in queries.features:
        sides = [rows.features[encoder] for rows in (queries, keys)]
        scores = {}
        for unit in ("frame", "clip", "video") if "episode" in queries.fields else ("frame",):
            query, key = (
                _units(unit, features, rows.fields, label, protocol.clip_frames)
                for features, rows in zip(sides, (queries, keys), strict=True)
            )
            alone = len(query.label) == len(sides[0]) or len(key.label) == len(sides[1])
            if unit == "clip" and alone:  # the clips are single frames
                continue
            top = tuple(k for k in protocol.top if k <= len(key.label))
            if top != protocol.top:
                logging.info("Retrieval of %ss: %d keys, hence k of %s alone.", unit, len(key.label), top)
            groups = (query.video, key.video) if _told_apart(queries, keys) else None
            _, index = nearest(query.features, key.features, max(top, default=1), groups)
            found = top_accuracy(index, query.label, key.label, top)
            scores |= {f"retrieval/{unit}/{name}": value for name, value in found.items()}
        if games:
            found = state_agreement(sides, (queries.fields, keys.fields), protocol, games)
            scores |= {f"retrieval/state/{name}": value for name, value in found.items()}
        yield encoder, scores


def check_top(protocol: Protocol, number: int) -> None:
    """Raises InputError where the smallest k is larger than the number of keys."""
    if number < min(protocol.top):
        raise InputError(
            f"top={protocol.top} asks for at least {min(protocol.top)} neighbours, but "
            f"there are {number} keys; name a smaller number, such as 1, or read more keys."
        )


def neighbours(queries: Rows, keys: Rows, encoder: str, rows: np.ndarray, k: int) -> np.ndarray:
    """Rows of the keys nearest to the queries at some rows: int [len(rows), k], to be shown; -1 is none."""
    ids = [part.fields.get("episode", part.fields["index"]) for part in (queries, keys)]
    groups = (ids[0][rows], ids[1]) if _told_apart(queries, keys) else None
    return nearest(queries.features[encoder][rows], keys.features[encoder], k, groups)[1]


def _told_apart(queries, keys):
    """Whether equal ids are the same video or picture: places in a split mean nothing in another one."""
    return "episode" in queries.fields or queries is keys


class _Units(NamedTuple):
    """Frames, clips or videos: features [N, D], classes [N] and ids of the videos [N]."""

    features: np.ndarray
    label: np.ndarray
    video: np.ndarray


def _units(unit, features, fields, label, clip_frames) -> _Units:
    videos = fields.get("episode", fields["index"])
    if unit == "frame":
        return _Units(features, fields[label], videos)
    groups = clips(videos, fields["index"], clip_frames) if unit == "clip" else videos
    means, first = group_means(features, groups)
    return _Units(means, fields[label][first], videos[first])


def state_agreement(
    features: Sequence[np.ndarray],
    fields: Sequence[Mapping[str, np.ndarray]],
    protocol: Protocol,
    games: tuple[str, ...],
) -> dict[str, float]:
    """In how many of its state variables a game agrees with its nearest frame of another episode.

    The variables are those of AtariARI (see `state_probe`) with an entropy of at least
    `protocol.min_entropy`; the values of each are cut into at most `protocol.state_bins` bins. Which game it
    is does not help, for only frames of the same game are compared.

    Args:
      features: float [Q, D] of queries, [M, D] of keys.
      fields: of each "ram" uint8 [N, 128], "game" int [N], "episode" int [N].
      protocol: of the search.
      games: names of the games, in the order of their classes.

    Returns:
      "top1": the share of variables in the same bin, averaged over variables, frames and then games; and
      "chance": the same with a random frame in place of the nearest. {} if there is nothing to compare.
    """
    shares = []
    for number, game in enumerate(games):
        rows = [np.flatnonzero(part["game"] == number) for part in fields]
        ram = [part["ram"][row] for part, row in zip(fields, rows, strict=True)]
        if not all(len(part) for part in ram):
            continue
        columns = [address for address in ram_labels(game).values()
                   if entropy(ram[1][:, address]) >= protocol.min_entropy]  # fmt: skip
        if not columns:
            continue
        of_game = [part[row] for part, row in zip(features, rows, strict=True)]
        episodes = [part["episode"][row] for part, row in zip(fields, rows, strict=True)]
        _, index = nearest(*of_game, 1, (episodes[0], episodes[1]))
        bins = [_bins(ram[1][:, column], [part[:, column] for part in ram], protocol.state_bins)
                for column in columns]  # fmt: skip
        found = (index >= 0)[:, 0]
        agree = [((key[index[:, 0]] == query) & found).mean() for query, key in bins]
        spread = lambda values: np.bincount(values, minlength=protocol.state_bins) / len(values)
        chance = [spread(query) @ spread(key) for query, key in bins]
        shares.append((np.mean(agree), np.mean(chance)))
    if not shares:
        return {}
    return dict(zip(("top1", "chance"), np.mean(shares, 0).tolist(), strict=True))


def _bins(reference, parts, number):
    """Cuts values into at most `number` bins: one for each value, or else equally full of the reference."""
    edges = np.unique(reference)[:-1]
    if len(edges) >= number:
        edges = np.unique(np.quantile(reference, np.arange(1, number) / number, method="lower"))
    return [np.digitize(part, edges, right=True) for part in parts]
