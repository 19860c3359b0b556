"""What an encoder knows of a game's state: the Atari Annotated RAM Interface (AtariARI).

Anand et al., "Unsupervised state representation learning in Atari", NeurIPS 2019, Sec. 5: the bytes of
the console's memory that hold state variables (where the ball is, how many lives are left) are
predicted from a frozen encoder by one linear classifier per variable, scored by weighted F1.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from sklearn.metrics import f1_score

from ssl_jax.data.atari_frames import category, ram_labels
from ssl_jax.evaluation.linear_probe import fit_predict

Frames = Mapping[str, np.ndarray]
FeatureFunction = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How the probe is made; stored with its scores.

    Attributes:
      train_frames: frames per game that the classifiers are fitted on; None: all there are.
      test_frames: frames per game that they are scored on; None: all there are.
      min_entropy: a variable of lower empirical entropy (nats, in the training frames) is dropped.
      weight_decay: of each classifier, see `linear_probe.fit_predict`.
      iterations: of L-BFGS.
    """

    train_frames: int | None = None
    test_frames: int | None = None
    min_entropy: float = 0.6
    weight_decay: float = 1e-3
    iterations: int = 40


@dataclasses.dataclass(frozen=True)
class GameFrames:
    """The labelled frames of one game.

    Attributes:
      game: its name.
      variables: names of the state variables, V of them, those of low entropy left out.
      train_images: uint8 [N, H, W, 3]; train_labels: uint8 [N, V].
      test_images: uint8 [M, H, W, 3]; test_labels: uint8 [M, V]. No test image is also in train.
    """

    game: str
    variables: tuple[str, ...]
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def entropy(values: np.ndarray) -> float:
    """Empirical entropy in nats of integer values [N]."""
    share = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(share * np.log(share)).sum())


def game_frames(game: str, train: Frames, test: Frames, protocol: Protocol) -> GameFrames | None:
    """Labels the frames of a game; None when no variable has enough entropy to be worth a probe.

    Args:
      game: name.
      train: {"image": uint8 [N, H, W, 3], "ram": uint8 [N, 128]} of this game.
      test: the same, from other episodes; its images that also are in train are left out.
      protocol: which variables count.
    """
    seen = {image.tobytes() for image in train["image"]}
    fresh = np.array([image.tobytes() not in seen for image in test["image"]], bool)
    variables = {
        name: address
        for name, address in ram_labels(game).items()
        if entropy(train["ram"][:, address]) >= protocol.min_entropy
    }
    if not variables or not fresh.any():
        return None
    addresses = list(variables.values())
    return GameFrames(
        game=game,
        variables=tuple(variables),
        train_images=train["image"],
        train_labels=train["ram"][:, addresses],
        test_images=test["image"][fresh],
        test_labels=test["ram"][fresh][:, addresses],
    )


def probe(features: FeatureFunction, frames: GameFrames, protocol: Protocol) -> dict[str, float]:
    """The F1 of every state variable of a game, from frozen features.

    Args:
      features: uint8 images [N, H, W, 3] -> float32 [N, D].
      frames: the labelled frames.
      protocol: of the probe.

    Returns:
      Variable name -> F1 over the values of the variable, weighted by how often they occur.
    """
    predictions = fit_predict(
        features(frames.train_images),
        frames.train_labels,
        features(frames.test_images),
        weight_decay=protocol.weight_decay,
        iterations=protocol.iterations,
    )
    return _scores(frames, predictions)


def majority(frames: GameFrames) -> dict[str, float]:
    """The F1 of always answering each variable's most frequent training value."""
    answer = [np.bincount(column).argmax() for column in frames.train_labels.T]
    return _scores(frames, np.broadcast_to(answer, frames.test_labels.shape))


def _scores(frames, predictions):
    return {
        variable: float(f1_score(truth, answer, average="weighted", zero_division=0))
        for variable, truth, answer in zip(
            frames.variables, frames.test_labels.T, predictions.T, strict=True
        )
    }


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
        "by_category": {
            c: _mean(v for (_, name), v in cells.items() if name == c) for c in categories
        },
        "by_variable": {game: dict(variables) for game, variables in scores.items()},
    }


def _mean(values) -> float:
    return float(np.mean(list(values)))


def evaluate(
    encoders: Mapping[str, FeatureFunction], games: Iterator[GameFrames], protocol: Protocol
) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Probes several encoders, and the majority baseline, on the same frames.

    Args:
      encoders: name -> feature function, for example {"trained": ..., "random": ...}.
      games: the labelled frames, one game at a time, so that only one is in memory.
      protocol: of the probes.

    Yields:
      (encoder name, game, variable -> F1), "majority" among the encoder names.
    """
    for frames in games:
        for name, features in encoders.items():
            yield name, frames.game, probe(features, frames, protocol)
        yield "majority", frames.game, majority(frames)
