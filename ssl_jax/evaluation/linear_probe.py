"""Linear probes: classifiers on frozen features, in closed form.

Ridge regression onto one-hot targets, one class per value: no learning rate to choose, nothing to
diverge, and every weight decay of a grid from one Gram matrix. The comparison of encoders is then a
comparison of encoders (Alain and Bengio 2017 on probes; Anand et al. 2019 on the use made here).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


def pool(maps: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Means of maps [N, h, w, C] over the cells of a grid: [N, rows * columns * C].

    Cells are as equal as whole pixels allow, as in `numpy.array_split`.
    """
    cells = [
        cell.mean((1, 2))
        for row in jnp.array_split(maps, grid[0], axis=1)
        for cell in jnp.array_split(row, grid[1], axis=2)
    ]
    return jnp.concatenate(cells, axis=-1)


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """Fitted classifiers, one for each weight decay and each column of labels.

    Attributes:
      mean, scale: float32 [D], of the training features.
      kernels: float32 [R, D, sum of classes], one for each of R weight decays.
      bias: float32 [sum of classes], which does not decay.
      classes: for each of V columns of labels, its values.
    """

    mean: np.ndarray
    scale: np.ndarray
    kernels: jax.Array
    bias: np.ndarray
    classes: list[np.ndarray]

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Features [M, D] -> values [R, M, V]."""
        inputs = ((features - self.mean) / self.scale).astype(np.float32)
        logits = np.asarray(jnp.einsum("md,rdc->rmc", inputs, self.kernels)) + self.bias
        ends = np.cumsum([len(values) for values in self.classes])[:-1]
        columns = np.split(logits, ends, axis=-1)
        return np.stack(
            [values[part.argmax(-1)] for values, part in zip(self.classes, columns, strict=True)], -1
        )


def fit(features: np.ndarray, labels: np.ndarray, weight_decays: tuple[float, ...]) -> LinearProbe:
    """Fits a classifier for every column of labels and every weight decay.

    Args:
      features: float [N, D]; they are standardised, so that a weight decay means the same for all.
      labels: int [N, V]; the classes of a column are the values seen in it.
      weight_decays: factors of the squared norm of the weights, against the mean squared error.
    """
    mean, deviation = features.mean(0), features.std(0)
    # A feature that hardly ever moves is noise, and is not blown up to deviation 1.
    scale = np.maximum(deviation, 1e-2 * deviation.max() + 1e-12)
    classes = [np.unique(column) for column in labels.T]
    targets = np.concatenate(
        [column[:, None] == values for values, column in zip(classes, labels.T, strict=True)], 1
    )
    inputs = ((features - mean) / scale).astype(np.float32)
    bias = targets.mean(0).astype(np.float32)
    kernels = _solve(inputs, targets.astype(np.float32) - bias, jnp.asarray(weight_decays, jnp.float32))
    return LinearProbe(mean, scale, kernels, bias, classes)


@jax.jit
def _solve(inputs, targets, weight_decays):
    """Ridge regression of centred targets [N, C] on centred inputs [N, D]: kernels [R, D, C].

    (X'X / N + a)^-1 X'Y / N = X' (XX' / N + a)^-1 Y / N: the smaller of the two systems is solved.
    """
    number, width = inputs.shape
    dual = number < width
    gram = (inputs @ inputs.T if dual else inputs.T @ inputs) / number
    moment = (targets if dual else inputs.T @ targets) / number

    def solve(weight_decay):
        factor = jax.scipy.linalg.cho_factor(gram + weight_decay * jnp.eye(len(gram)))
        solution = jax.scipy.linalg.cho_solve(factor, moment)
        return inputs.T @ solution if dual else solution

    return jax.lax.map(solve, weight_decays)
