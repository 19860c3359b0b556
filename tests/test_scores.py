import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import sklearn.metrics
from sklearn.calibration import calibration_curve

from ssl_jax.evaluation import scores
from ssl_jax.runtime.errors import InputError

pytestmark = pytest.mark.fast

ANSWERS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 0.99, 1.0]) | st.floats(0, 1)),
    min_size=1,
    max_size=60,
)


def arrays(answers) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = zip(*answers, strict=True)
    return np.array(labels), np.array(probabilities)


def test_by_hand():
    labels, probabilities = np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])
    assert scores.auc(labels, probabilities) == 3 / 4
    assert scores.auc(labels, np.full(4, 0.3)) == 1 / 2
    expected = -(np.log(0.9) + np.log(0.6) + np.log(0.35) + np.log(0.8)) / 4
    assert scores.log_loss(labels, probabilities) == pytest.approx(expected)
    # Two bins: {0.1, 0.4, 0.35} with one 1, {0.8} with one.
    expected = (abs(0.85 - 1) + abs(0.8 - 1)) / 4
    assert scores.calibration_error(labels, probabilities, bins=2) == pytest.approx(expected)


def test_video_scores():
    videos, probabilities = scores.video_scores(np.array([0.2, 0.9, 0.4, 0.6]), np.array([7, 3, 7, 7]))
    np.testing.assert_array_equal(videos, [3, 7])
    np.testing.assert_allclose(probabilities, [0.9, 0.4])
    _, labels = scores.video_scores(np.array([0, 1, 0, 0]), np.array([7, 3, 7, 7]))
    np.testing.assert_array_equal(labels, [1, 0])


@hypothesis.given(ANSWERS)
def test_auc_and_log_loss_are_those_of_sklearn(answers):
    labels, probabilities = arrays(answers)
    both = np.stack([1 - probabilities, probabilities], axis=1)
    assert scores.log_loss(labels, probabilities) == pytest.approx(
        sklearn.metrics.log_loss(labels, np.clip(both, 1e-15, 1), labels=[0, 1])
    )
    if len(set(labels)) == 2:
        expected = sklearn.metrics.roc_auc_score(labels, probabilities)
        assert scores.auc(labels, probabilities) == pytest.approx(expected)
    else:
        with pytest.raises(InputError, match="both classes"):
            scores.auc(labels, probabilities)


@hypothesis.given(ANSWERS, st.integers(1, 20))
def test_calibration_error_is_that_of_the_curve_of_sklearn(answers, bins):
    labels, probabilities = arrays(answers)
    # sklearn counts what lies on an edge to the bin below.
    edges = np.linspace(0, 1, bins + 1)
    hypothesis.assume(np.abs(probabilities[:, None] - edges[1:-1]).min(initial=1) > 1e-9)
    shares, means = calibration_curve(labels, probabilities, n_bins=bins)
    counts = np.histogram(probabilities, edges)[0]
    expected = np.abs(shares - means) @ counts[counts > 0] / len(labels)
    assert scores.calibration_error(labels, probabilities, bins) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("score", [scores.auc, scores.log_loss, scores.calibration_error])
def test_what_is_no_number_is_refused(score):
    with pytest.raises(InputError, match="1 of 2 probabilities are not a number"):
        score(np.array([0, 1]), np.array([0.5, np.nan]))


def test_confident_and_wrong_is_finite():
    assert scores.log_loss(np.array([1]), np.array([0.0])) == pytest.approx(-np.log(1e-15))


# Three videos: 5 (two frames of class 1), 6 and 8 (one frame each, of classes 0 and 1).
FRAMES = scores.Answers(
    label=np.array([1, 0, 1, 1]), video=np.array([5, 6, 5, 8]), probability=np.array([0.9, 0.2, 0.3, 0.4])
)


def test_frames_and_videos_are_scored_apart():
    assert scores.of_frames(FRAMES)["accuracy"] == 2 / 4
    assert scores.of_frames(FRAMES)["auc"] == 1
    of_videos = scores.of_videos(FRAMES)  # 0.6, 0.2 and 0.4
    assert of_videos["accuracy"] == pytest.approx(2 / 3)
    expected = -(np.log(0.6) + np.log(0.8) + np.log(0.4)) / 3
    assert of_videos["log_loss"] == pytest.approx(expected)
    assert "auc" not in scores.two_classes(np.array([1, 1]), np.array([0.2, 0.7]))


def test_what_classes_are_taken_for():
    assert scores.confusion(FRAMES) == [[1, 0], [2, 1]]
    curve = scores.calibration_curve(FRAMES, bins=2)
    assert curve["count"] == [3, 1]
    assert curve["share"] == pytest.approx([2 / 3, 1])
    assert curve["probability"] == pytest.approx([0.3, 0.9])


def test_the_majority_is_that_of_training():
    label = np.array([0, 0, 0, 1])
    assert scores.majority_accuracy(label, np.array([1, 1, 0])) == 1 / 4
    assert scores.majority_accuracy(label, np.array([0, 1, 0])) == 3 / 4


@pytest.mark.parametrize(("right", "stuck"), [(50, True), (60, True), (61, False), (100, False)])
def test_chance_reaches_two_standard_errors_up(right, stuck):
    """Of 100 videos half are of class 1: the error is 0.05. That each has two frames makes it no smaller."""
    label = np.arange(100) % 2
    probability = np.where(np.arange(100) < right, label, 1 - label).astype(float)
    answers = scores.Answers(np.tile(label, 2), np.tile(np.arange(100), 2), np.tile(probability, 2))
    assert scores.is_at_chance(answers, 0.5) is stuck


def test_videos_are_answered_by_the_mean_over_their_frames_by_hand():
    """Video 7 has more frames of the wrong class, but surer ones of the right; the long one counts once."""
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.8, 0.2], *[[0.7, 0.3]] * 6])
    labels = np.array([0, 0, 0, 1, *[0] * 6])
    found = scores.video_classification(labels, probabilities, np.array([7, 7, 7, 2, *[9] * 6]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["balanced_accuracy"] == pytest.approx(1 / 2)
    assert found["frame_accuracy"] == pytest.approx(7 / 10)


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20)
)
def test_means_of_several_classes_are_those_of_a_loop(rows):
    ids = np.array([row[0] for row in rows])
    values = np.array([row[1:] for row in rows])
    videos, means = scores.video_scores(values, ids)
    for video, mean in zip(videos, means, strict=True):
        np.testing.assert_allclose(mean, values[ids == video].mean(0), atol=1e-12)
    np.testing.assert_allclose(scores.video_scores(values[:, 0], ids)[1], means[:, 0])
