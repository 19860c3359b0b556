"""What an encoder knows of a game's state: the Atari Annotated RAM Interface (AtariARI).

Anand et al., "Unsupervised state representation learning in Atari", NeurIPS 2019, Sec. 5: the bytes of
the console's memory that hold state variables (where the ball is, how many lives are left) are
predicted from a frozen encoder by one linear classifier per variable, scored by weighted F1.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.atari_frames import category, ram_labels
from ssl_jax.evaluation import linear_probe
from ssl_jax.evaluation.features import Batches, FeatureFunction, Rows, collect
from ssl_jax.runtime.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the probe is made; stored with its scores.

    Attributes:
      min_entropy: a variable of lower empirical entropy (nats, in the training frames) is dropped.
      weight_decays: tried for each game; the best mean F1 on the validation frames decides.
    """

    min_entropy: float = 0.6
    weight_decays: tuple[float, ...] = (1e-3, 1e-2, 1e-1)

    def __post_init__(self):
        if not self.weight_decays or min(self.weight_decays) <= 0:
            raise InputError(
                f"weight_decays={self.weight_decays} of the state probe must name numbers above 0."
            )


def with_digest(batches: Batches) -> Iterator[dict[str, np.ndarray]]:
    """Adds "digest" to batches, str [B], the same for the same picture."""
    for batch in batches:
        digest = [hashlib.blake2b(image.tobytes()).hexdigest() for image in batch["image"]]
        yield {**batch, "digest": np.array(digest)}


def entropy(values: np.ndarray) -> float:
    """Empirical entropy in nats of integer values [N]."""
    share = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(share * np.log(share)).sum())


def probe_game(game: str, splits: Mapping[str, Rows], protocol: Protocol) -> dict[str, dict[str, float]]:
    """Probes the state variables of one game.

    Args:
      game: its name.
      splits: frames of this game with fields "ram", uint8 [N, 128], and "digest": "train" to fit on,
        "validation" to choose the weight decay on, "test" to score on; test frames that also occur in
        train are left out, as in the paper.
      protocol: of the probe.

    Returns:
      Encoder -> variable -> F1, weighted by how often the values occur; among the encoders "majority",
      which always answers the most frequent training value. {} when there is nothing to probe.

    Raises:
      InputError: RAM labels are no whole numbers, and so can be NaN; or see `linear_probe.fit`.
    """
    for split, frames in splits.items():
        if not np.issubdtype(frames.fields["ram"].dtype, np.integer):
            raise InputError(
                f"the RAM labels of {game} in the split {split} are {frames.fields['ram'].dtype} and must be "
                "whole numbers, uint8, as the emulator's memory has them."
            )
    train, validation = splits["train"], splits["validation"]
    test = splits["test"].where(~np.isin(splits["test"].fields["digest"], train.fields["digest"]))
    if not all(len(frames.fields["ram"]) for frames in (train, validation, test)):
        return {}
    addresses = {
        name: address
        for name, address in ram_labels(game).items()
        if entropy(train.fields["ram"][:, address]) >= protocol.min_entropy
    }
    if not addresses:
        return {}
    labels = lambda frames: frames.fields["ram"][:, list(addresses.values())]
    answers = {}
    for name in train.features:
        fitted = linear_probe.fit(train.features[name], labels(train), protocol.weight_decays)
        validated = [
            np.mean(f1_scores(labels(validation), values))
            for values in fitted.predict(validation.features[name])
        ]
        answers[name] = fitted.predict(test.features[name])[int(np.argmax(validated))]
    most_frequent = [np.bincount(column).argmax() for column in labels(train).T]
    answers["majority"] = np.broadcast_to(most_frequent, labels(test).shape)
    return {
        name: dict(zip(addresses, f1_scores(labels(test), values), strict=True))
        for name, values in answers.items()
    }


def f1_scores(labels: np.ndarray, predictions: np.ndarray) -> list[float]:
    """Weighted F1 of each of V columns; labels and predictions are int [N, V]."""
    from sklearn.metrics import f1_score  # here: it takes two seconds at every start

    return [
        float(f1_score(truth, answer, average="weighted", zero_division=0))
        for truth, answer in zip(labels.T, predictions.T, strict=True)
    ]


def summarize(scores: Mapping[str, Mapping[str, float]]) -> dict:
    """Averages F1 as the paper does.

    The score of a game is the mean over categories of the mean over variables; the score of a category
    is the mean over games; `mean_f1` is the mean over games.

    Args:
      scores: game -> variable -> F1.

    Returns:
      {"mean_f1": float, "by_game": {game: f1}, "by_category": {category: f1}, "by_variable": scores}.
    """
    cells = {}  # (game, category) -> F1 of its variables
    for game, variables in scores.items():
        for variable, score in variables.items():
            cells.setdefault((game, category(variable)), []).append(score)
    cells = {cell: float(np.mean(values)) for cell, values in cells.items()}
    by_game = {g: _mean(v for (game, _), v in cells.items() if game == g) for g in scores}
    categories = sorted({name for _, name in cells})
    return {
        "mean_f1": _mean(by_game.values()),
        "by_game": by_game,
        "by_category": {c: _mean(v for (_, name), v in cells.items() if name == c) for c in categories},
        "by_variable": {game: dict(variables) for game, variables in scores.items()},
    }


def _mean(values) -> float:
    return float(np.mean(list(values)))


def read(
    splits: Mapping[str, Batches], encoders: Mapping[str, FeatureFunction], layer: str | None = None
) -> dict[str, Rows]:
    """Reads each split once: the features of all encoders, the fields of its batches, and "digest".

    Args:
      splits: name -> batches {"image": uint8 [B, H, W, 3], "ram": uint8 [B, 128], "game": int [B], the class
        of the game, "mask": bool [B]}; rows without mask are padding.
      encoders: name -> feature function, for example {"trained": ..., "random": ...}.
      layer: that the features are of, for the sentence of an error; None: the last.

    Raises:
      InputError: a feature is NaN or infinite.
    """
    return {
        split: collect(with_digest(batches), encoders, layer=layer, may_be_empty=True)
        for split, batches in splits.items()
    }


def readout(maps: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """What is kept of an encoder's maps of frames, [N, h, w, C]: positions, [N, 2 C], and then cells.

    Positions (`linear_probe.positions`) ask of each channel to follow something, which a variable can be read
    from. Means over the cells of a grid hardly tell encoders apart: an emulator draws the same state to the
    same pixels, and any features, random ones of any depth too, are a fingerprint of the few that change.
    """
    return jnp.concatenate([linear_probe.positions(maps), linear_probe.pool(maps, grid)], -1)


def readouts(frames: Mapping[str, Rows], grid: tuple[int, int]) -> dict[str, dict[str, Rows]]:
    """ "positions" and "cells" -> split -> frames, from frames with the features of `readout`."""
    width = {values.shape[1] for rows in frames.values() for values in rows.features.values()}.pop()
    cut = 2 * width // (2 + grid[0] * grid[1])
    return {
        "positions": {split: rows.columns(0, cut) for split, rows in frames.items()},
        "cells": {split: rows.columns(cut, None) for split, rows in frames.items()},
    }


def evaluate(
    frames: Mapping[str, Rows], games: tuple[str, ...], protocol: Protocol
) -> dict[str, dict[str, Any]]:
    """Probes several encoders on the same frames.

    Args:
      frames: "train", "validation" and "test", see `read`.
      games: names of the games, in the order of their classes.
      protocol: of the probe.

    Returns:
      Encoder -> its scores, see `probe_game` and `summarize`; {} when there is nothing to probe.
    """
    scores: dict[str, dict] = {}
    for number, game in enumerate(games):
        of_game = {split: part.where(part.fields["game"] == number) for split, part in frames.items()}
        for encoder, values in probe_game(game, of_game, protocol).items():
            scores.setdefault(encoder, {})[game] = values
    return {encoder: summarize(values) for encoder, values in scores.items()}
