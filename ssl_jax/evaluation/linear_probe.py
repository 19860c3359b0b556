"""Linear probes: multinomial logistic regression on frozen features, fitted by L-BFGS.

Full-batch L-BFGS on standardised features has no learning rate to choose and cannot diverge, which
matters when encoders are compared (Alain and Bengio 2017 for probes; Anand et al. 2019 for the use here).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax


@functools.partial(jax.jit, static_argnames=("num_classes", "iterations"))
def _fit(features, labels, weight_decay, *, num_classes, iterations):
    bounds = np.concatenate([[0], np.cumsum(num_classes)])

    def objective(params):
        logits = features @ params["kernel"] + params["bias"]  # [N, sum of classes]
        losses = [
            optax.softmax_cross_entropy_with_integer_labels(
                logits[:, low:high], labels[:, i]
            ).mean()
            for i, (low, high) in enumerate(zip(bounds[:-1], bounds[1:], strict=True))
        ]
        return sum(losses) + 0.5 * weight_decay * jnp.square(params["kernel"]).sum()

    params = {
        "kernel": jnp.zeros((features.shape[1], int(bounds[-1]))),
        "bias": jnp.zeros((int(bounds[-1]),)),
    }
    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def iterate(_, carry):
        params, opt_state = carry
        value, gradient = value_and_grad(params, state=opt_state)
        updates, opt_state = optimizer.update(
            gradient, opt_state, params, value=value, grad=gradient, value_fn=objective
        )
        return optax.apply_updates(params, updates), opt_state

    return jax.lax.fori_loop(0, iterations, iterate, (params, optimizer.init(params)))[0]


def fit_predict(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    *,
    weight_decay: float,
    iterations: int,
) -> np.ndarray:
    """Fits one softmax regression for each column of labels, all at once, and predicts.

    Args:
      train_features: float32 [N, D].
      train_labels: int [N, V], any values; the classes of a column are the values seen in it.
      test_features: float32 [M, D].
      weight_decay: factor of half the squared norm of the weights of each regression. Features are
        standardised and divided by sqrt(D), so its meaning does not depend on D.
      iterations: of L-BFGS.

    Returns:
      int [M, V], predicted values.
    """
    mean, deviation = train_features.mean(0), train_features.std(0)
    # A feature that hardly ever moves is noise: it is not blown up to deviation 1.
    scale = np.maximum(deviation, 1e-2 * deviation.max() + 1e-12) * np.sqrt(train_features.shape[1])
    classes = [np.unique(column) for column in train_labels.T]
    indices = np.stack(
        [np.searchsorted(c, column) for c, column in zip(classes, train_labels.T, strict=True)], 1
    )
    params = _fit(
        jnp.asarray((train_features - mean) / scale),
        jnp.asarray(indices),
        weight_decay,
        num_classes=tuple(len(c) for c in classes),
        iterations=iterations,
    )
    logits = np.asarray((test_features - mean) / scale @ params["kernel"] + params["bias"])
    parts = np.split(logits, np.cumsum([len(c) for c in classes])[:-1], axis=1)
    return np.stack([c[part.argmax(1)] for c, part in zip(classes, parts, strict=True)], axis=1)
