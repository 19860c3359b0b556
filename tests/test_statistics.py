"""Intervals cover what they say, by hand and in simulation."""

import numpy as np
import pytest
from scipy import stats

from ssl_jax import statistics

pytestmark = pytest.mark.fast


def test_t_interval_by_hand():
    # Deviation sqrt(2.5) and the 97.5 % quantile 2.776445 of t with 4 degrees of freedom, from a table.
    found = statistics.t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found["mean"] == 3
    assert found["n"] == 5
    assert found["high"] - 3 == pytest.approx(2.776445 * np.sqrt(2.5 / 5), abs=1e-5)
    assert 3 - found["low"] == pytest.approx(found["high"] - 3)
    assert statistics.t_interval([2.0, 2.0]) == {"mean": 2.0, "low": 2.0, "high": 2.0, "n": 2}
    assert statistics.t_interval([2.0]) == {"mean": 2.0, "low": None, "high": None, "n": 1}


@pytest.mark.parametrize(("n", "of_bootstrap"), [(2, 0.51), (3, 0.75), (5, 0.84)])
def test_t_interval_of_few_values_covers_the_mean_where_the_bootstrap_does_not(n, of_bootstrap):
    key = np.random.default_rng(0)
    samples = key.normal(size=(1500, n))
    covered = [found["low"] <= 0 <= found["high"] for found in map(statistics.t_interval, samples)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
    resampled = samples[:, key.integers(n, size=(1000, n))].mean(2)  # [1500, 1000]
    low, high = np.percentile(resampled, (2.5, 97.5), axis=1)
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(of_bootstrap, abs=0.03)


def test_bootstrap_interval_of_many_values_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(10, 4, size=100)
    low, high = statistics.bootstrap_interval(values)
    margin = 1.96 * values.std() / 10
    assert (low, high) == pytest.approx((values.mean() - margin, values.mean() + margin), abs=0.1)
    assert (low, high) == statistics.bootstrap_interval(values)
    assert (low, high) != statistics.bootstrap_interval(values, seed=1)


def test_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    key = np.random.default_rng(1)
    ends = [statistics.bootstrap_interval(key.exponential(5, size=60)) for _ in range(150)]
    assert 0.87 <= np.mean([low <= 5 <= high for low, high in ends]) <= 0.99


def test_interval_of_equal_values_is_one_point():
    assert statistics.bootstrap_interval([-21.0] * 5) == (-21, -21)
    assert statistics.bootstrap_interval([7.0]) == (7, 7)


@pytest.mark.parametrize("n", range(1, 12))
def test_interquartile_mean_is_the_trimmed_mean_of_scipy(n):
    values = np.random.default_rng(n).normal(size=n)
    assert statistics.interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25))
