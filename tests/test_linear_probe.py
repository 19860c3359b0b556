import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from ssl_jax.evaluation import linear_probe


def problem(number=200, width=6, classes=4, noise=0.5, seed=0):
    """Features around one random centre per class, of different scales, and their classes [N, 1]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (number, 1))
    features = rng.standard_normal((classes, width))[labels[:, 0]]
    features += noise * rng.standard_normal(features.shape)
    return (features * np.geomspace(1, 20, width) + 3).astype(np.float32), labels


def test_weights_by_hand():
    # Standardised, the feature is -1, -1, 1, 1. The target of class 7 is 0, 0, 1, 1, with mean 1 / 2
    # and covariance 1 / 2; a weight decay r divides the slope by 1 + r.
    features = np.array([[2.0], [2.0], [6.0], [6.0]])
    probe = linear_probe.fit(features, np.array([[3], [3], [7], [7]]), (1e-3, 1.0))
    assert (probe.mean, probe.scale) == (4, 2)
    np.testing.assert_allclose(
        probe.kernels, [[[-0.5 / 1.001, 0.5 / 1.001]], [[-0.5 / 2, 0.5 / 2]]], rtol=1e-5
    )
    np.testing.assert_allclose(probe.bias, [0.5, 0.5])
    np.testing.assert_array_equal(probe.predict(np.array([[3.9], [4.1]])), [[[3], [7]]] * 2)


def test_maps_are_pooled_in_the_cells_of_a_grid():
    maps = np.random.default_rng(0).random((2, 5, 4, 3), np.float32)
    rows, columns = [slice(0, 3), slice(3, 5)], [slice(0, 2), slice(2, 4)]
    expected = [maps[:, row, column].mean((1, 2)) for row in rows for column in columns]
    np.testing.assert_allclose(linear_probe.pool(maps, (2, 2)), np.concatenate(expected, -1), rtol=1e-6)
    np.testing.assert_allclose(linear_probe.pool(maps, (1, 1)), maps.mean((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("weight_decay", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("number", [200, 5])  # more examples than features, and fewer
def test_weights_are_the_least_squares_solution(weight_decay, number):
    """Decay as extra rows: |x w + b - y|^2 / N + r |w|^2 is one least-squares problem (in float64)."""
    features, labels = (rows[:number] for rows in problem())
    probe = linear_probe.fit(features, labels, (weight_decay,))
    classes = np.unique(labels)
    inputs = (features.astype(np.float64) - features.mean(0)) / features.std(0)
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], 1)
    decay = np.sqrt(len(inputs) * weight_decay * np.array([1.0] * 6 + [0.0]))
    targets = np.concatenate([labels == classes, np.zeros((7, len(classes)))])
    expected = np.linalg.lstsq(np.concatenate([inputs, np.diag(decay)]), targets, rcond=None)[0]
    np.testing.assert_allclose(probe.kernels[0], expected[:-1], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(probe.bias, expected[-1], rtol=1e-3, atol=1e-4)


def test_predictions_are_those_of_sklearn():
    features, labels = problem(noise=2.0)
    unseen = problem(noise=2.0, seed=1)[0]
    decays = (1e-3, 1e-1, 1.0)
    predictions = linear_probe.fit(features, labels, decays).predict(unseen)
    assert predictions.shape == (3, 200, 1)
    standard = lambda values: (values - features.mean(0)) / features.std(0)
    for decay, ours in zip(decays, predictions, strict=True):
        theirs = RidgeClassifier(alpha=decay * len(features)).fit(standard(features), labels[:, 0])
        assert (ours[:, 0] == theirs.predict(standard(unseen))).mean() > 0.99


def test_separable_columns_are_solved_together():
    rng = np.random.default_rng(2)
    classes = rng.integers(0, 4, 300)
    features = np.eye(4)[classes] + 0.05 * rng.standard_normal((300, 4))
    # Three columns of labels, of four, one and two classes; the values need not be 0, 1, ....
    labels = np.stack([classes * 60 + 7, np.full(300, 17), classes >= 2], 1)
    probe = linear_probe.fit(features[:200], labels[:200], (1e-3, 1e-2))
    assert [list(values) for values in probe.classes] == [[7, 67, 127, 187], [17], [0, 1]]
    predictions = probe.predict(features[200:])
    np.testing.assert_array_equal(predictions, np.stack([labels[200:]] * 2))


def test_values_that_were_not_seen_are_never_answered():
    features, labels = problem(classes=5)
    seen = labels[:, 0] < 3
    probe = linear_probe.fit(features[seen], labels[seen], (1e-2,))
    predictions = probe.predict(features[~seen])
    assert set(np.unique(predictions)) <= {0, 1, 2}


def test_constant_features_change_nothing():
    features, labels = problem()
    constant = np.full((len(features), 2), 5, np.float32)
    without = linear_probe.fit(features, labels, (1e-2,))
    probe = linear_probe.fit(np.concatenate([features, constant], 1), labels, (1e-2,))
    assert np.isfinite(probe.kernels).all()
    np.testing.assert_allclose(probe.kernels[0, 6:8], 0, atol=1e-6)
    np.testing.assert_allclose(probe.kernels[0, :6], without.kernels[0, :6], atol=1e-5)
    # Nor does a constant that moves after all blow up the answers.
    moved = np.concatenate([features, constant + 0.01], 1)
    np.testing.assert_array_equal(probe.predict(moved), without.predict(features))


def test_without_information_the_most_frequent_value_is_answered():
    labels = np.array([[4]] * 30 + [[1]] * 20)
    probe = linear_probe.fit(np.ones((50, 3)), labels, (1e-3, 1.0))
    assert (probe.predict(np.ones((7, 3))) == 4).all()


def test_weights_shrink_with_the_decay():
    features, labels = problem()
    decays = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    norms = np.square(linear_probe.fit(features, labels, decays).kernels[:, :-1]).sum((1, 2))
    assert (np.diff(norms) < 0).all()


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (50.0, -7.0), (1e4, 1e4)])
def test_scale_and_origin_of_features_mean_nothing(scale, shift):
    features, labels = problem(noise=1.0)
    unseen = problem(noise=1.0, seed=3)[0]
    plain = linear_probe.fit(features, labels, (1e-2, 1.0))
    other = linear_probe.fit(features * scale + shift, labels, (1e-2, 1.0))
    np.testing.assert_allclose(other.kernels, plain.kernels, atol=1e-3)
    agree = other.predict(unseen * scale + shift) == plain.predict(unseen)
    assert agree.mean() > 0.99
