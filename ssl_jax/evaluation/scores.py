"""How well classes are told apart."""

import numpy as np
from sklearn.metrics import f1_score, recall_score


def classification(labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Scores answers.

    Args:
      labels: int [N], N >= 1.
      predictions: int [N].

    Returns:
      "accuracy"; "balanced_accuracy", the mean over classes of the share of a class that is found; and
      "macro_f1", the mean over classes of F1. Classes are those that occur among the labels.
    """
    over = {"labels": np.unique(labels), "average": "macro", "zero_division": 0}
    return {
        "accuracy": float(np.mean(labels == predictions)),
        "balanced_accuracy": float(recall_score(labels, predictions, **over)),
        "macro_f1": float(f1_score(labels, predictions, **over)),
    }
