"""How well classes are told apart, and how far probabilities of two classes can be believed.

Scores of frames and of videos are different numbers: `video_scores` makes the second kind out of the first.
"""

import dataclasses

import numpy as np

from ssl_jax.runtime.errors import InputError

SMALLEST = 1e-15  # probability that `log_loss` takes 0 for, as Kaggle's score of DFDC did


def classification(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Scores answers.

    Args:
      labels: int [N], N >= 1.
      predictions: int [N].

    Returns:
      "accuracy"; "balanced_accuracy", the mean over classes of the share of a class that is found; and
      "macro_f1", the mean over classes of F1. Classes are those that occur among the labels.
    """
    from sklearn.metrics import f1_score, recall_score  # here: it takes two seconds at every start

    over = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
    return {
        "accuracy": float(np.mean(labels == predictions)),
        "balanced_accuracy": float(recall_score(labels, predictions, **over)),
        "macro_f1": float(f1_score(labels, predictions, **over)),
    }


def video_scores(frame_probabilities: np.ndarray, video_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Averages over the frames of each video.

    Labels of frames become those of videos in the same way.

    Args:
      frame_probabilities: float [N, ...], N >= 1: of one class, or of several.
      video_ids: int [N], of which video each frame is.

    Returns:
      The ids of the videos, in order, [V]; and the mean of each, float64 [V, ...].
    """
    videos, which, count = np.unique(video_ids, return_inverse=True, return_counts=True)
    sums = np.zeros((len(videos), *np.shape(frame_probabilities)[1:]))
    np.add.at(sums, which, frame_probabilities)
    return videos, sums / count.reshape(-1, *[1] * (sums.ndim - 1))


def video_classification(
    labels: np.ndarray, probabilities: np.ndarray, video_ids: np.ndarray
) -> dict[str, float]:
    """Scores answers on frames of videos, each of one class.

    Args:
      labels: int [N], of the frames.
      probabilities: float [N, C], of the classes 0, ..., C - 1.
      video_ids: int [N], of which video each frame is.

    Returns:
      The scores of `classification` of videos, which are answered by the mean probabilities of their frames
      (Simonyan and Zisserman 2014, Sec. 4), and "frame_accuracy".
    """
    _, means = video_scores(probabilities, video_ids)
    _, first = np.unique(video_ids, return_index=True)
    return classification(labels[first], means.argmax(1)) | {
        "frame_accuracy": float(np.mean(probabilities.argmax(1) == labels))
    }


def auc(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the area under the ROC curve.

    That is how often an example of class 1 gets a higher probability than one of class 0, ties counting half
    (the Mann-Whitney statistic).

    Args:
      labels: int [N], 0 or 1.
      probabilities: float [N], of class 1; any other score that orders examples will do.

    Raises:
      InputError: one of the classes has no examples, or a probability is not a number.
    """
    positive = _checked(labels, probabilities)
    _, which, counts = np.unique(probabilities, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    ranks = (below + (counts - 1) / 2)[which]  # From 0; equal values share the mean of their ranks.
    ones, zeros = int(positive.sum()), int((~positive).sum())
    if not ones or not zeros:
        raise InputError(f"AUC needs both classes, but there are {zeros} examples of 0 and {ones} of 1.")
    return float((ranks[positive].sum() - ones * (ones - 1) / 2) / (ones * zeros))


def log_loss(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Returns the mean negative logarithm of the probability of the right class, in nats.

    Args:
      labels: int [N], 0 or 1, N >= 1.
      probabilities: float [N], of class 1; those nearer to 0 or 1 than `SMALLEST` are taken for that.

    Raises:
      InputError: a probability is not a number.
    """
    positive = _checked(labels, probabilities)
    probabilities = np.asarray(probabilities, np.float64)
    right = np.where(positive, probabilities, 1 - probabilities)
    return float(-np.log(np.clip(right, SMALLEST, 1 - SMALLEST)).mean())


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Returns the expected calibration error of the probability of class 1.

    Examples are put into bins of equal width by their probabilities; the error is the mean over examples of
    |mean probability - share of class 1| in their bin. Source: Naeini et al., "Obtaining Well Calibrated
    Probabilities Using Bayesian Binning", AAAI 2015, Section 3; 15 bins as Guo et al., "On Calibration of
    Modern Neural Networks", 2017. (These last measure the confidence in the answer instead.)

    Args:
      labels: int [N], 0 or 1, N >= 1.
      probabilities: float [N], of class 1, from 0 to 1.
      bins: how many; the bin k holds k / bins <= p < (k + 1) / bins, and the last also 1.

    Raises:
      InputError: a probability is not a number.
    """
    positive = _checked(labels, probabilities)
    probabilities = np.asarray(probabilities, np.float64)
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    surplus = np.bincount(which, weights=probabilities - positive, minlength=bins)
    return float(np.abs(surplus).sum() / len(positive))


# --- Two classes, on frames of videos


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a classifier says of N frames.

    Attributes:
      label: int [N], 0 or 1.
      video: int [N], of which video a frame is.
      probability: float [N], of class 1.
    """

    label: np.ndarray
    video: np.ndarray
    probability: np.ndarray


def two_classes(label: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """All scores of probabilities of class 1, the arguments of `log_loss`.

    Returns:
      "accuracy" (at a probability of 0.5), "log_loss", "calibration_error"; "auc" where both classes occur.
    """
    found = {
        "accuracy": float(np.mean((probability > 0.5) == (label == 1))),
        "log_loss": log_loss(label, probability),
        "calibration_error": calibration_error(label, probability),
    }
    return found | ({"auc": auc(label, probability)} if len(np.unique(label)) == 2 else {})


def of_frames(answers: Answers) -> dict[str, float]:
    """`two_classes` of single frames."""
    return two_classes(answers.label, answers.probability)


def of_videos(answers: Answers) -> dict[str, float]:
    """`two_classes` of videos, whose probability is the mean over their frames."""
    _, label = video_scores(answers.label, answers.video)
    _, probability = video_scores(answers.probability, answers.video)
    return two_classes(label.round().astype(int), probability)


def majority_accuracy(label: np.ndarray, train_label: np.ndarray) -> float:
    """Accuracy, on labels of 0 and 1, of always giving the class that is more frequent in training."""
    return float(np.mean(label == np.bincount(train_label, minlength=2).argmax()))


def is_at_chance(answers: Answers, majority: float) -> bool:
    """Whether the accuracy on frames is at most two standard errors above that of the majority class.

    Frames of a video are much alike, so that not they but videos are counted as independent.
    """
    videos = len(np.unique(answers.video))
    error = np.sqrt(majority * (1 - majority) / videos)
    return bool(of_frames(answers)["accuracy"] <= majority + 2 * error)


def confusion(answers: Answers) -> list[list[int]]:
    """How many frames of class 0 and 1 (rows) were taken for class 0 and 1 (columns)."""
    counts = np.zeros((2, 2), int)
    np.add.at(counts, (answers.label.astype(int), (answers.probability > 0.5).astype(int)), 1)
    return counts.tolist()


def calibration_curve(answers: Answers, bins: int = 10) -> dict[str, list[float]]:
    """Of frames in bins of equal width by their probability; bins without frames are left out.

    Returns:
      For each bin the mean "probability", the "share" of class 1, and the "count" of frames.
    """
    which = np.minimum((answers.probability * bins).astype(int), bins - 1)
    count = np.bincount(which, minlength=bins)
    there = count > 0
    mean = lambda values: (np.bincount(which, weights=values, minlength=bins)[there] / count[there]).tolist()
    return {
        "probability": mean(answers.probability),
        "share": mean(answers.label),
        "count": count[there].tolist(),
    }


def _checked(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns which examples are of class 1: bool [N]."""
    if np.isnan(probabilities).any():
        raise InputError(
            f"{np.isnan(probabilities).sum()} of {len(probabilities)} probabilities are not a number: the"
            " classifier has diverged."
        )
    return np.asarray(labels) == 1
