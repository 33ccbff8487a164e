"""Tests and intervals of two policies against published values, scipy, and each other's mirror image."""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, binomtest, boschloo_exact

from flowleap.envs.comparison import (
    boschloo,
    compare_scores,
    compare_success,
    interval_of_mean,
    mcnemar,
    paired_difference,
)
from flowleap.envs.statistics import binomial, newcombe, tango
from flowleap.policy.core.errors import FlowleapError


def test_binomial_is_scipys() -> None:
    for n, p in product((0, 1, 7, 300), (0.0, 0.03, 0.5, 1.0)):
        np.testing.assert_allclose(binomial(n, p), binom.pmf(np.arange(n + 1), n, p), atol=1e-14)


def test_mcnemar_is_the_test_of_a_fair_coin() -> None:
    for b, c in product(range(9), range(9)):
        expected = binomtest(b, b + c).pvalue if b + c else 1.0
        assert mcnemar(b, c) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((0, 10, 0, 10), -0.2775, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0),
    ],
)
def test_newcombe_against_published_intervals(
    counts: tuple[int, int, int, int], low: float, high: float
) -> None:
    assert newcombe(*counts) == pytest.approx((low, high), abs=5e-5)


def test_tango_against_published_intervals() -> None:
    # Airway hyper-responsiveness, Bentur 2009, in Fagerland and others, Statistics in Medicine 33, 2850 (2014).
    assert tango(21, 1, 7) == pytest.approx((-0.517, -0.026), abs=5e-4)
    # R's PropCIs: scoreci.mp(25, 28, 618, 0.9)
    assert tango(618, 28, 25, z=1.6448536) == pytest.approx((-0.0148, 0.0247), abs=5e-5)


def test_tango_is_the_score_test_inverted() -> None:
    """Its bounds are where the score statistic, with the likelihood maximised by brute force, is 1.96."""
    n, b, c = 40, 9, 3
    for bound in tango(n, b, c):
        q = np.linspace(max(0.0, -bound), (1 - bound) / 2, 2_000_001)[1:-1]
        likelihood = b * np.log(q + bound) + c * np.log(q) + (n - b - c) * np.log(1 - 2 * q - bound)
        best = q[likelihood.argmax()]
        score = (b - c - n * bound) / np.sqrt(n * (2 * best + bound * (1 - bound)))
        assert abs(score) == pytest.approx(1.96, abs=1e-3)


@pytest.mark.parametrize(
    ("n", "b", "c"), [(50, 0, 0), (1, 0, 0), (1, 1, 0), (10, 10, 0), (10, 0, 10), (9, 4, 5)]
)
def test_tango_at_the_edges(n: int, b: int, c: int) -> None:
    low, high = tango(n, b, c)
    assert -1 <= low <= (b - c) / n <= high <= 1
    assert low < high
    assert tango(n, c, b) == pytest.approx((-high, -low))
    if b == c == 0:
        assert high == pytest.approx(1.96**2 / (n + 1.96**2))


def test_boschloo_is_scipys_and_knows_empty_columns() -> None:
    assert boschloo(7, 12, 2, 11) == boschloo_exact([[7, 2], [5, 9]]).pvalue
    assert boschloo(0, 12, 0, 9) == boschloo(12, 12, 9, 9) == 1.0
    assert boschloo(7, 12, 2, 11) == pytest.approx(boschloo(2, 11, 7, 12), abs=1e-3)


def test_without_scipy_only_unpaired_tests_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    a, b = np.array([[1.0, 1.0, 0.0]]), np.array([[0.0, 1.0, 0.0]])
    assert compare_success(a, b, paired=True)["test"] == "exact McNemar"
    with pytest.raises(FlowleapError, match=r"flowleap\[compare\]"):
        compare_success(a, b, paired=False)


def test_success_of_two_runs() -> None:
    a, b = np.zeros((1, 20)), np.zeros((1, 20))
    a[0, :12], b[0, 10:13] = 1, 1
    paired, unpaired = (compare_success(a, b, paired) for paired in (True, False))
    assert paired["discordant"] == [10, 1]
    assert paired["p_value"] == pytest.approx(binomtest(10, 11).pvalue)
    assert paired["interval"] == list(tango(20, 10, 1))
    assert unpaired["p_value"] == boschloo(12, 20, 3, 20)
    assert unpaired["interval"] == list(newcombe(12, 20, 3, 20))
    assert (paired["difference"], unpaired["difference"]) == pytest.approx((0.45, 0.45))


def test_the_exchange_of_two_policies_changes_the_sign_alone() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((1, 30)), rng.random((1, 30)) ** 2
    one, other = compare_scores(a, b, True), compare_scores(b, a, True)
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["interval"] == pytest.approx([-x for x in reversed(other["interval"])])
    assert one["p_value"] == other["p_value"]
    x, y = (a > 0.4).astype(float), (b > 0.4).astype(float)
    for paired in (True, False):
        one, other = compare_success(x, y, paired), compare_success(y, x, paired)
        assert one["interval"] == pytest.approx([-x for x in reversed(other["interval"])])
        assert one["p_value"] == pytest.approx(other["p_value"], abs=1e-3)


def test_pairing_takes_out_what_a_seed_does_to_both() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random((1, 60))
    a, b = hard + 0.05 + 0.01 * rng.random((1, 60)), hard + 0.01 * rng.random((1, 60))
    paired, unpaired = compare_scores(a, b, True), compare_scores(a, b, False)
    assert paired["p_value"] < 0.001
    assert unpaired["p_value"] > 0.1
    assert np.diff(paired["interval"]) < 0.1 * np.diff(unpaired["interval"])


def test_bootstrap_has_the_width_of_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(1.0, 2.0, (1, 400)), rng.normal(0.0, 1.0, (1, 300))
    low, high = compare_scores(a, b, False)["interval"]
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(a.var() / 400 + b.var() / 300), rel=0.05)
    pair = paired_difference(a[:, :300], b)
    assert pair["n"] == 300
    assert np.diff(pair["interval"])[0] / 2 == pytest.approx(
        1.96 * (a[0, :300] - b[0]).std() / 300**0.5, rel=0.05
    )


def test_training_runs_are_resampled() -> None:
    """Runs that differ by much more than their episodes: the variance of their mean is s^2 / J."""
    rng = np.random.default_rng(0)
    means = np.array([0.2, 0.5, 0.8, 0.9])
    a = means[:, None] + 0.001 * rng.random((4, 50))
    b = np.full((1, 50), 0.4)
    for first, second, paired in ((a, b, True), (a, b, False), (list(a), b, False)):
        low, high = compare_scores(first, second, paired)["interval"]
        assert (high - low) / 2 == pytest.approx(1.96 * means.std(ddof=1) / 2, rel=0.1)
    assert np.diff(compare_scores(a[:1], b, True)["interval"])[0] < 0.001  # of one run only episodes can be


def test_rates_of_several_runs_are_compared_over_runs() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.random((3, 50)) < 0.9).astype(float), (rng.random((3, 50)) < 0.5).astype(float)
    result = compare_success(a, b, paired=True)
    assert result["test"] == "paired two-level bootstrap"
    assert result["p_value"] < 0.01
    assert result["interval"][0] > 0.2


def test_runs_of_different_lengths() -> None:
    rng = np.random.default_rng(0)
    runs = [rng.random(20), rng.random(35)]
    low, high = interval_of_mean(runs)
    assert low < np.mean([own.mean() for own in runs]) < high
    assert compare_scores(runs, runs, False)["difference"] == 0


@pytest.mark.parametrize("values", [np.ones((1, 1)), np.ones((1, 30)), np.zeros((2, 5))])
def test_no_difference_at_all(values: np.ndarray) -> None:
    for paired in (True, False):
        for compare in (compare_scores, compare_success):
            result = compare(values, values.copy(), paired)
            assert (result["p_value"], result["difference"]) == (1.0, 0.0)
            assert result["interval"][0] <= 0 <= result["interval"][1]
