"""Linear probes: classifiers on frozen features (Alain and Bengio 2017).

`fit`, for the many small problems of the state probe, is in closed form: ridge regression onto one-hot
targets, one class per value: no learning rate to choose, nothing to diverge, and every weight decay of a
grid from one Gram matrix. The comparison of encoders is then a comparison of encoders (Anand et al. 2019).

`classify`, for one problem of many classes, is softmax regression, as in the literature on self-supervision:
a convex problem that L-BFGS solves, or SGD where the features of all examples do not fit on the device. On
maps of about 9,000 values every layer of an encoder gets a classifier of about the same size (Zhang, Isola
and Efros 2016, Sec. 3.2; Noroozi and Favaro 2016).
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import special

from ssl_jax.evaluation import scores
from ssl_jax.evaluation.features import Batches, FeatureFunction, collect
from ssl_jax.runtime.errors import InputError


def pool(maps: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Means of maps [N, h, w, C] over the cells of a grid: [N, rows * columns * C].

    Cells are as equal as whole pixels allow, as in `numpy.array_split`.

    Raises:
      InputError: the grid has more rows or columns than the maps.
    """
    check_grid("grid", grid, maps.shape[1:3])
    cells = [
        cell.mean((1, 2))
        for row in jnp.array_split(maps, grid[0], axis=1)
        for cell in jnp.array_split(row, grid[1], axis=2)
    ]
    return jnp.concatenate(cells, axis=-1)


def check_grid(path: str, grid: tuple[int, int], size: tuple[int, int]) -> None:
    """Raises InputError, with the key `path`, unless a map of height and width `size` fills every cell."""
    if not (1 <= grid[0] <= size[0] and 1 <= grid[1] <= size[1]):
        raise InputError(
            f"{path}={tuple(grid)} must have from 1 to {size[0]} rows and from 1 to {size[1]} columns, as "
            "the encoder's map has: a cell without pixels has no mean."
        )


def positions(maps: jax.Array) -> jax.Array:
    """Where each channel of maps [N, h, w, C] is active: row and column of each, [N, 2 C].

    The mean place under a softmax over all places, from 0, the top or left edge, to 1 (spatial softmax,
    Levine et al. 2016, arXiv 1504.00702, Sec. 5.2). A channel is divided by its deviation over the places
    first, so that its scale makes no difference.
    """
    number, height, width, channels = maps.shape
    values = maps.reshape(number, height * width, channels)
    share = jax.nn.softmax(values / (values.std(1, keepdims=True) + 1e-6), axis=1)
    places = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
    places = (places.reshape(-1, 2) + 0.5) / jnp.array([[height, width]])
    return jnp.einsum("npc,pd->ncd", share, places, precision="highest").reshape(number, -1)


def grid_of(height: int, width: int, channels: int, values: int) -> tuple[int, int]:
    """The largest grid over a map [height, width, channels] that leaves at most `values` values.

    It has the shape of the map, as nearly as whole cells allow, and at least one cell.
    """
    grids = [(rows, max(1, round(width * rows / height))) for rows in range(1, height + 1)]
    return max((grid for grid in grids if grid[0] * grid[1] * channels <= values), default=(1, 1))


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

    Raises:
      InputError: there are no finite weights.
    """
    mean, scale = _standard(features)
    classes = [np.unique(column) for column in labels.T]
    targets = np.concatenate(
        [column[:, None] == values for values, column in zip(classes, labels.T, strict=True)], 1
    )
    inputs = ((features - mean) / scale).astype(np.float32)
    bias = targets.mean(0).astype(np.float32)
    kernels = _solve(inputs, targets.astype(np.float32) - bias, jnp.asarray(weight_decays, jnp.float32))
    _check_fit(kernels, weight_decays)
    return LinearProbe(mean, scale, kernels, bias, classes)


def _check_fit(kernels: jax.Array, weight_decays: tuple[float, ...]) -> None:
    """Raises InputError where the weights [R, D, C] are not finite: the first class would always win."""
    finite = np.isfinite(np.asarray(kernels)).all((1, 2))
    if not finite.all():
        failed = ", ".join(
            f"{decay:g}" for decay, fits in zip(weight_decays, finite, strict=True) if not fits
        )
        raise InputError(
            f"the linear probe has no finite weights with weight_decays of {failed}; its features may not be "
            "finite, or give larger decays."
        )


def _standard(features):
    """Mean and scale [D] that standardise features."""
    mean, deviation = features.mean(0), features.std(0)
    # A feature that hardly ever moves is noise, and is not blown up to deviation 1.
    return mean, np.maximum(deviation, 1e-2 * deviation.max() + 1e-12)


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


# --- Softmax regression


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How softmax regression is made; stored with its scores.

    Attributes:
      solver: "lbfgs", with the features of all training examples on the device, or "sgd", with mini-batches
        from the memory of the host.
      weight_decays: tried; the best accuracy on the validation examples decides. Factors of half the squared
        norm of the weights, against the mean cross-entropy: scikit-learn's C is 1 / (N weight_decay).
      iterations: of L-BFGS, at most, for each weight decay.
      tolerance: L-BFGS stops where no entry of the gradient is larger.
      epochs: of SGD.
      batch_size: examples per step of SGD.
      seed: of SGD's order of examples.
    """

    solver: Literal["lbfgs", "sgd"] = "lbfgs"
    weight_decays: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    iterations: int = 200
    tolerance: float = 1e-5
    epochs: int = 20
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self):
        if not self.weight_decays or min(self.weight_decays) < 0:
            raise InputError(f"weight_decays={self.weight_decays} must name numbers, each at least 0.")
        for name in ("iterations", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")


@dataclasses.dataclass(frozen=True)
class SoftmaxProbe:
    """Fitted classifiers, one for each of R weight decays.

    Attributes:
      mean, scale: float32 [D], of the training features.
      kernels: float32 [R, D, C].
      biases: float32 [R, C], which do not decay.
      classes: the C labels seen in training.
    """

    mean: np.ndarray
    scale: np.ndarray
    kernels: jax.Array
    biases: jax.Array
    classes: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Features [M, D] -> labels [R, M]."""
        answers = [logits.argmax(-1) for logits in self._logits(features)]
        return self.classes[np.concatenate(answers, 1)]

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Features [M, D] -> probabilities of `classes`, float32 [R, M, C]."""
        return np.concatenate([special.softmax(logits, -1) for logits in self._logits(features)], 1)

    def _logits(self, features: np.ndarray) -> Iterator[np.ndarray]:
        for start in range(0, len(features), 4096):
            inputs = _standardise(features[start : start + 4096], self.mean, self.scale)
            yield np.asarray(_logits({"kernel": self.kernels, "bias": self.biases}, inputs))


def fit_softmax(features: np.ndarray, labels: np.ndarray, protocol: Protocol) -> SoftmaxProbe:
    """Fits softmax regression for every weight decay.

    Args:
      features: float [N, D]; they are standardised.
      labels: int [N]; the classes are the values seen in it.
      protocol: of the fit.

    Raises:
      InputError: there are no finite weights.
    """
    mean, scale = _standard(features)
    classes, targets = np.unique(labels, return_inverse=True)
    decays = jnp.asarray(protocol.weight_decays, jnp.float32)
    if protocol.solver == "lbfgs":
        inputs = jnp.asarray(_standardise(features, mean, scale))
        start = _zeros(1, features.shape[1], len(classes))
        # From the largest decay to the smallest, each from where the one before ended.
        order = np.argsort(-np.asarray(protocol.weight_decays), kind="stable")
        fitted = _lbfgs(
            start, inputs, jnp.asarray(targets), decays[order], protocol.iterations, protocol.tolerance
        )
        params = jax.tree.map(lambda leaf: leaf[np.argsort(order), 0], fitted)
    else:
        params = _sgd(features, targets, mean, scale, decays, len(classes), protocol)
    _check_fit(params["kernel"], protocol.weight_decays)
    return SoftmaxProbe(mean, scale, params["kernel"], params["bias"], classes)


def _standardise(features, mean, scale):
    return ((features - mean) / scale).astype(np.float32)


def _zeros(decays, width, classes):
    return {"kernel": jnp.zeros((decays, width, classes)), "bias": jnp.zeros((decays, classes))}


@jax.jit
def _logits(params, inputs):
    """Inputs [N, D] -> logits [R, N, C]."""
    return jnp.einsum("nd,rdc->rnc", inputs, params["kernel"]) + params["bias"][:, None]


def _objective(params, inputs, targets, weight_decays):
    """The sum over weight decays [R], none of which concerns the parameters of another."""
    targets = jnp.broadcast_to(targets[None], (len(weight_decays), len(targets)))
    losses = optax.softmax_cross_entropy_with_integer_labels(_logits(params, inputs), targets).mean(1)
    return jnp.sum(losses + weight_decays / 2 * jnp.square(params["kernel"]).sum((1, 2)))


@functools.partial(jax.jit, static_argnames="iterations")
def _lbfgs(start, inputs, targets, weight_decays, iterations, tolerance):
    """Minimises the objective for each of R weight decays: parameters [R, 1, ...]."""
    optimizer = optax.lbfgs()

    def solve(params, weight_decay):
        objective = lambda params: _objective(params, inputs, targets, weight_decay[None])
        value_and_gradient = optax.value_and_grad_from_state(objective)

        def step(carry):
            params, state, number, _ = carry
            value, gradient = value_and_gradient(params, state=state)
            updates, state = optimizer.update(
                gradient, state, params, value=value, grad=gradient, value_fn=objective
            )
            steepest = jnp.max(jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(gradient)]))
            return optax.apply_updates(params, updates), state, number + 1, steepest

        going_on = lambda carry: (carry[2] < iterations) & (carry[3] > tolerance)
        params, *_ = jax.lax.while_loop(going_on, step, (params, optimizer.init(params), 0, jnp.inf))
        return params, params

    return jax.lax.scan(solve, start, weight_decays)[1]


def _sgd(features, targets, mean, scale, weight_decays, num_classes, protocol):
    """The same by mini-batches with momentum 0.9, for all weight decays at once.

    The rate falls from 1 / L to zero as a cosine. L bounds the curvature of the objective: half the largest
    eigenvalue of the features' second moments, plus the decay (Böhning 1992). So there is no rate to choose.
    """
    rng = np.random.default_rng(protocol.seed)
    size = min(protocol.batch_size, len(features))
    sample = np.sort(rng.choice(len(features), min(4096, len(features)), replace=False))
    curvature = _largest_eigenvalue(_standardise(features[sample], mean, scale)) / 2 + weight_decays.max()
    params = _zeros(len(weight_decays), features.shape[1], num_classes)
    velocity = jax.tree.map(jnp.zeros_like, params)
    steps = protocol.epochs * (len(features) // size)
    rates = (1 + np.cos(np.pi * np.arange(steps) / steps)) / (2 * float(curvature))
    order = np.concatenate([_order(rng, len(features), size) for _ in range(protocol.epochs)])
    for rate, rows in zip(rates, order, strict=True):
        inputs = _standardise(features[rows], mean, scale)
        params, velocity = _sgd_step(params, velocity, rate, inputs, targets[rows], weight_decays)
    return params


def _order(rng, number, size):
    """One epoch: rows [steps, size], those of a step in ascending order."""
    rows = rng.permutation(number)[: number // size * size].reshape(-1, size)
    return np.sort(rows, axis=1)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _sgd_step(params, velocity, rate, inputs, targets, weight_decays):
    gradient = jax.grad(_objective)(params, inputs, targets, weight_decays)
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
    return jax.tree.map(lambda p, v: p - rate * v, params, velocity), velocity


@jax.jit
def _largest_eigenvalue(inputs):
    """Of (1 X)'(1 X) / N, where the column of ones is the bias; by 30 steps of power iteration."""
    inputs = jnp.concatenate([jnp.ones((len(inputs), 1)), inputs], 1)

    def step(vector, _):
        vector = inputs.T @ (inputs @ vector) / len(inputs)
        norm = jnp.linalg.norm(vector)
        return vector / norm, norm

    start = jnp.ones(inputs.shape[1]) / jnp.sqrt(inputs.shape[1])
    return jax.lax.scan(step, start, length=30)[1][-1]


def classify(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    protocol: Protocol,
    videos: tuple[np.ndarray, np.ndarray] | None = None,
) -> dict[str, float]:
    """Fits on one set of examples, chooses the weight decay on a second, and scores on a third.

    Args:
      train: float features [N, D] and int labels [N]; the others likewise.
      validation: of equal accuracies the larger decay wins.
      test: labels that do not occur in train are always missed.
      protocol: of the fit.
      videos: of which video each example of `validation` and of `test` is, int [N]: then videos count, and
        not their frames.

    Returns:
      "accuracy", "balanced_accuracy" and "macro_f1" (see `scores.classification`), and the "weight_decay";
      of videos "frame_accuracy" as well (see `scores.video_classification`).
    """
    probe = fit_softmax(*train, protocol)

    def answer(examples, video):
        """Labels of examples or of videos, [M], and the answers for every weight decay, [R, M]."""
        features, labels = examples
        if video is None:
            return labels, probe.predict(features)
        by_frame = np.moveaxis(probe.probabilities(features), 0, 1)
        _, means = scores.video_scores(by_frame, video)
        _, first = np.unique(video, return_index=True)
        return labels[first], probe.classes[means.argmax(-1).T]

    of_validation, of_test = videos or (None, None)
    truth, answers = answer(validation, of_validation)
    validated = (answers == truth[None]).mean(1)
    best = max(range(len(validated)), key=lambda r: (validated[r], protocol.weight_decays[r]))
    truth, answers = answer(test, of_test)
    found = scores.classification(truth, answers[best])
    if of_test is not None:
        found["frame_accuracy"] = float(np.mean(probe.predict(test[0])[best] == test[1]))
    return found | {"weight_decay": protocol.weight_decays[best]}


def evaluate(
    encoders: Mapping[str, FeatureFunction],
    splits: Mapping[str, Batches],
    label: str,
    protocol: Protocol,
    *,
    by_video: bool = False,
    layer: str | None = None,
) -> Iterator[tuple[str, dict[str, float]]]:
    """Classifies by the features of several encoders.

    Args:
      encoders: name -> feature function, for example {"trained": ..., "random": ...}.
      splits: "train", "validation", "test" -> batches with the field `label`, see `features.collect`.
      label: name of the field with the classes.
      protocol: of the fit.
      by_video: videos are scored, which the field "episode" numbers, and not their frames.
      layer: that the features are of, for the sentence of an error.

    Yields:
      (encoder, scores), see `classify`.

    Raises:
      InputError: a split is empty, a feature is NaN or infinite, or the fit diverges.
    """
    rows = {split: collect(batches, encoders, layer=layer) for split, batches in splits.items()}
    for encoder in encoders:
        sets = (
            (rows[split].features[encoder], rows[split].fields[label])
            for split in ("train", "validation", "test")
        )
        videos = (
            tuple(rows[split].fields["episode"] for split in ("validation", "test")) if by_video else None
        )
        yield encoder, classify(*sets, protocol, videos)
