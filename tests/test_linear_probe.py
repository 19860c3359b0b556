import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from ssl_jax.evaluation import linear_probe, scores
from ssl_jax.runtime.errors import InputError


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


@pytest.mark.parametrize("grid", [(5, 1), (1, 6), (0, 1)])
def test_grid_finer_than_the_map_is_refused(grid):
    """A cell without pixels would have the mean NaN."""
    with pytest.raises(
        InputError, match=r"^grid=\(\d, \d\) must have from 1 to 4 rows and from 1 to 5 columns"
    ):
        linear_probe.pool(np.zeros((2, 4, 5, 3), np.float32), grid)


def test_positions_by_hand():
    # One place of 4 x 2 is active by 1: the deviation over the places is sqrt(7) / 8, so that its share is
    # e^(8 / sqrt 7) to 1 for each of the others.
    maps = np.zeros((1, 4, 2, 2), np.float32)
    maps[0, 3, 1, 0] = 1
    peak = np.exp(8 / np.sqrt(7))
    share = np.full((4, 2), 1 / (peak + 7))
    share[3, 1] *= peak
    row, column = share.sum(1) @ [0.125, 0.375, 0.625, 0.875], share.sum(0) @ [0.25, 0.75]
    # The second channel is flat: it is in the middle.
    np.testing.assert_allclose(linear_probe.positions(maps), [[row, column, 0.5, 0.5]], rtol=1e-4)


def test_positions_follow_what_moves_and_forget_scale():
    maps = np.random.default_rng(0).random((2, 12, 10, 3)).astype(np.float32)
    positions = linear_probe.positions(maps).reshape(2, 3, 2)
    np.testing.assert_allclose(linear_probe.positions(7 * maps).reshape(2, 3, 2), positions, rtol=1e-4)
    blob = np.zeros((2, 12, 10, 1), np.float32)
    blob[0, 2:4, 3:5], blob[1, 5:7, 4:6] = 1, 1  # three rows down, one column to the right
    first, second = linear_probe.positions(blob)
    assert second[0] - first[0] > 2.0 * (second[1] - first[1]) > 0


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


# --- Softmax regression


# Two everywhere, for each shape of the problem compiles a solver.
DECAYS = (1e-3, 1e-1)


def softmax_protocol(**options):
    return linear_probe.Protocol(weight_decays=DECAYS, tolerance=1e-6, **options)


def test_softmax_regression_is_that_of_sklearn():
    features, labels = problem(noise=2.0)
    labels = labels[:, 0] * 3  # classes are not 0, 1, 2, ...
    unseen = problem(noise=2.0, seed=1)[0]
    probe = linear_probe.fit_softmax(features, labels, softmax_protocol())
    standard = lambda values: (values - features.mean(0)) / features.std(0)
    for number, decay in enumerate(DECAYS):
        other = LogisticRegression(C=1 / (len(labels) * decay), tol=1e-8, max_iter=10_000)
        other.fit(standard(features), labels)
        np.testing.assert_allclose(probe.kernels[number].T, other.coef_, atol=2e-3)
        # A constant added to all biases changes nothing.
        centred = lambda bias: bias - bias.mean()
        np.testing.assert_allclose(centred(probe.biases[number]), centred(other.intercept_), atol=2e-3)
        np.testing.assert_array_equal(probe.predict(unseen)[number], other.predict(standard(unseen)))


def test_sgd_arrives_where_lbfgs_does():
    features, labels = problem(noise=2.0)
    exact = linear_probe.fit_softmax(features, labels[:, 0], softmax_protocol())
    by_steps = linear_probe.fit_softmax(
        features, labels[:, 0], softmax_protocol(solver="sgd", epochs=200, batch_size=50)
    )
    np.testing.assert_allclose(by_steps.kernels, exact.kernels, atol=0.05)
    unseen = problem(noise=2.0, seed=1)[0]
    assert (by_steps.predict(unseen) == exact.predict(unseen)).mean() > 0.98


def test_sgd_does_not_diverge_where_features_are_nearly_one_number():
    """The curvature grows with the number of equal features: a fixed rate would blow up."""
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    wide = np.float32(
        labels[:, None] + 0.2 * rng.standard_normal((200, 1)) + rng.normal(0, 0.01, (200, 2000))
    )
    probe = linear_probe.fit_softmax(wide, labels, softmax_protocol(solver="sgd", epochs=10, batch_size=20))
    assert np.isfinite(probe.kernels).all()
    assert ((probe.predict(wide) == labels[None]).mean(1) > 0.95).all()


def test_the_validation_set_decides_on_the_decay_and_the_test_set_is_scored():
    features, labels = problem(number=300)
    train, test = (features[:200], labels[:200, 0]), (features[200:], labels[200:, 0])
    score = lambda decays, validation: linear_probe.classify(
        train, validation, test, linear_probe.Protocol(weight_decays=decays)
    )
    # With a huge decay the most frequent class is always answered.
    majority = np.bincount(train[1]).argmax()
    good = score((1e3, 1e-2), train)
    assert good["weight_decay"] == 1e-2
    assert good["accuracy"] > 0.8
    never = train[0], np.full(200, majority)
    assert score((1e3, 1e-2), never) == score((1e-2, 1e3), never)
    assert score((1e3, 1e-2), never)["accuracy"] == (test[1] == majority).mean()
    # Both are never right, and the larger decay is taken.
    assert score((1e-2, 1e3), (train[0], np.full(200, 17)))["weight_decay"] == 1e3


def test_a_label_that_training_lacks_is_missed():
    features, labels = problem(noise=0.1)
    train = features, labels[:, 0]
    test = features, np.where(labels[:, 0] == 3, 17, labels[:, 0])
    result = linear_probe.classify(train, train, test, softmax_protocol())
    assert result["accuracy"] == pytest.approx((labels != 3).mean())
    assert result["balanced_accuracy"] == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("height", "width", "channels", "grid"),
    [(7, 7, 256, (5, 5)), (16, 16, 256, (5, 5)), (33, 33, 96, (9, 9)), (3, 3, 256, (3, 3)),
     (28, 20, 64, (14, 10)), (4, 4, 10_000, (1, 1)), (1, 40, 300, (1, 1))],
)  # fmt: skip
def test_grids_of_about_nine_thousand_values(height, width, channels, grid):
    assert linear_probe.grid_of(height, width, channels, 9000) == grid


def test_scores_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    labels, answers = rng.integers(0, 4, (2, 50)) ** 2
    got = scores.classification(labels, answers)
    assert got["accuracy"] == accuracy_score(labels, answers)
    assert got["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, answers))
    assert got["macro_f1"] == pytest.approx(f1_score(labels, answers, average="macro"))


def test_scores_by_hand():
    # Of class 0 three of four are found, of class 5 one of one; precisions 3 / 3 and 1 / 2 (a 7 is no class).
    got = scores.classification(np.array([0, 0, 0, 0, 5]), np.array([0, 0, 0, 5, 5]))
    assert got == {
        "accuracy": 0.8,
        "balanced_accuracy": pytest.approx(7 / 8),
        "macro_f1": pytest.approx((6 / 7 + 2 / 3) / 2),
    }
    assert scores.classification(np.array([0, 5]), np.array([7, 5]))["macro_f1"] == 0.5


def test_encoders_are_compared_on_the_same_examples():
    features, labels = problem(number=300, noise=0.2)
    encoders = {
        "sees": lambda images: images.reshape(len(images), -1).astype(np.float32),
        "blind": lambda images: np.ones((len(images), 6), np.float32),
    }

    def batches(rows):
        pixels = np.clip(features * 3 + 100, 0, 255).astype(np.uint8).reshape(-1, 1, 2, 3)
        for number in range(0, len(rows), 50):
            part = rows[number : number + 50]
            yield {
                "image": pixels[part],
                "label": labels[part, 0],
                "mask": np.arange(50) < 50,
                "index": part,
            }

    parts = np.split(np.arange(300), [200, 250])
    splits = {name: batches(part) for name, part in zip(("train", "validation", "test"), parts, strict=True)}
    got = dict(linear_probe.evaluate(encoders, splits, "label", softmax_protocol()))
    assert got["sees"]["accuracy"] > 0.95
    assert got["blind"]["balanced_accuracy"] == 0.25


@pytest.mark.parametrize(
    "options", [{"weight_decays": ()}, {"weight_decays": (-1.0,)}, {"iterations": 0}, {"epochs": 0}]
)
def test_protocols_that_cannot_be(options):
    with pytest.raises(InputError, match=next(iter(options))):
        linear_probe.Protocol(**options)


def test_videos_are_classified_by_the_mean_probability_of_their_frames():
    """Two classes on a line; each test video has one frame on the wrong side, near the border."""
    features = np.array([[-2.0], [-1], [1], [2]] * 5, np.float32)
    labels = np.array([3, 3, 8, 8] * 5)
    test = np.array([[-2.0], [-2], [0.1], [2], [2], [-0.1], [1]], np.float32)
    truth = np.array([3, 3, 3, 8, 8, 8, 5])  # 5 does not occur in train: it is always missed
    video = np.array([0, 0, 0, 1, 1, 1, 2])
    protocol = linear_probe.Protocol(weight_decays=(1e-3,))
    train = (features, labels)
    found = linear_probe.classify(train, train, (test, truth), protocol, (np.arange(20), video))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["frame_accuracy"] == pytest.approx(4 / 7)
    assert linear_probe.classify(train, train, (test, truth), protocol)["accuracy"] == pytest.approx(4 / 7)


def test_fit_without_finite_weights_names_the_decay():
    features = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    labels = np.arange(6) % 2
    spoilt = np.where(np.eye(6, 4, dtype=bool), np.nan, features)
    with pytest.raises(InputError, match=r"no finite weights with weight_decays of 0.1, 1;"):
        linear_probe.fit(spoilt, labels[:, None], (0.1, 1.0))
    with pytest.raises(InputError, match=r"no finite weights with weight_decays of 0.1;"):
        linear_probe.fit_softmax(spoilt, labels, linear_probe.Protocol(weight_decays=(0.1,), iterations=5))
