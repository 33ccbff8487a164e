"""E-processes: their closed forms, that they are fair games, and that they find what is there."""

from __future__ import annotations

import math
import sys
from itertools import product

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import beta

from flowleap.envs.sequential import (
    PRIOR,
    beta_binomial,
    betting,
    capital,
    collect_evidence,
    score_evidence,
    stopping_time,
    success_evidence,
)
from flowleap.policy.core.errors import FlowleapError


def test_the_closed_form_is_the_integral() -> None:
    a, b = PRIOR
    whole = quad(lambda q: q ** (a - 1) * (1 - q) ** (b - 1), 0.5, 1)[0]
    for wins, losses in product((0, 1, 5, 17), (0, 2, 9)):
        integral = quad(lambda q, w=wins, m=losses: q ** (a + w - 1) * (1 - q) ** (b + m - 1), 0.5, 1)[0]
        expected = 2 ** (wins + losses) * integral / whole
        assert np.exp(beta_binomial(np.array(wins), np.array(losses))) == pytest.approx(expected)


def test_half_the_stake_on_each_side_of_a_symmetric_prior_is_the_ratio_of_beta_functions() -> None:
    """E = 2^n B(a + w, a + l) / B(a, a), the mixture over the whole of (0, 1)."""
    first, second = np.array([1, 1, 0, 1, 1, 0, 1], bool), np.array([0, 0, 1, 0, 1, 0, 0], bool)
    wins, losses = 4, 1
    for a in (0.5, 1.0, 3.0):
        log_e = success_evidence(first, second, "two-sided", (a, a))
        expected = 2 ** (wins + losses) * beta(a + wins, a + losses) / beta(a, a)
        assert math.exp(log_e[-1]) == pytest.approx(expected)


@pytest.mark.parametrize("prior", [PRIOR, (1.0, 1.0), (0.5, 2.0)])
def test_the_expectation_under_fair_coins_is_one(prior: tuple[float, float]) -> None:
    """Over all sequences of up to 12 discordant pairs."""
    for n in range(1, 13):
        wins = np.array([sum(sequence) for sequence in product((0, 1), repeat=n)])
        assert np.exp(beta_binomial(wins, n - wins, prior)).mean() == pytest.approx(1.0, rel=1e-10)


def test_the_expectation_under_worse_coins_never_grows() -> None:
    """A supermartingale for every q <= 1/2: the next value is below the present one on average, from every count."""
    wins, losses = np.mgrid[:30, :30]
    now, won, lost = (np.exp(beta_binomial(wins + i, losses + j)) for i, j in ((0, 0), (1, 0), (0, 1)))
    for q in (0.0, 0.2, 0.4, 0.5):
        assert (q * won + (1 - q) * lost <= now * (1 + 1e-9)).all()


def test_level_pairs_change_nothing() -> None:
    first, second = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 0, 1], bool)
    log_e = success_evidence(first, second)
    assert log_e[0] == pytest.approx(0.0)
    assert log_e[1] == log_e[-1] > 0


def test_betting_expects_one_over_all_sequences() -> None:
    """Bets are predictable: over all sequences of 6 differences with mean 0, the mean capital is exactly 1."""
    values, chances = np.array([-0.4, 0.1, 1.0]), np.array([0.5, 0.0, 0.2])
    chances[1] = 1 - chances.sum()
    assert values @ chances == pytest.approx(0.03)
    values = values - values @ chances
    index = np.array(list(product(range(3), repeat=6)))
    capital = np.exp(betting(values[index]))
    probability = chances[index].prod(axis=1)
    np.testing.assert_allclose(probability @ capital, np.ones(6), rtol=1e-12)
    worse = np.exp(betting(values[index] - 0.05))
    assert (np.diff(probability @ worse) < 0).all()


def test_betting_on_successes_is_the_beta_binomial_process() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((5, 300)) < 0.85, rng.random((5, 300)) < 0.7
    for alternative in ("greater", "two-sided"):
        exact = success_evidence(first, second, alternative)
        bets = score_evidence(first.astype(float), second.astype(float), (0, 1), alternative)
        np.testing.assert_allclose(bets, exact, atol=1e-9)


def test_scores_are_scaled_by_their_bounds() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random(50), rng.random(50)
    np.testing.assert_allclose(score_evidence(10 * x - 3, 10 * y - 3, (-3, 7)), score_evidence(x, y, (0, 1)))


@pytest.mark.parametrize("bounds", [(0.0, 0.5), (0.9, 0.1)])
def test_a_score_beyond_its_bounds_is_refused(bounds: tuple[float, float]) -> None:
    with pytest.raises(FlowleapError, match="bounds"):
        score_evidence(np.array([0.2, 0.7]), np.array([0.1, 0.1]), bounds)
    with pytest.raises(FlowleapError, match="bounds"):
        score_evidence(np.array([0.2, np.nan]), np.array([0.1, 0.1]), (0, 1))


def test_sides() -> None:
    """Exchanged policies exchange the sides; two-sided evidence does not care."""
    rng = np.random.default_rng(0)
    x, y = rng.random(80) < 0.9, rng.random(80) < 0.6
    one = collect_evidence(x.astype(float), y.astype(float), None, 0.05, "greater")
    other = collect_evidence(y.astype(float), x.astype(float), None, 0.05, "greater")
    np.testing.assert_array_equal(one.forward, other.backward)
    assert one.stopped_after == other.futile_after is not None
    assert one.futile_after is other.stopped_after is None
    assert one.decided
    assert other.decided
    np.testing.assert_array_equal(success_evidence(x, y, "two-sided"), success_evidence(y, x, "two-sided"))
    two = collect_evidence(y.astype(float), x.astype(float), None, 0.05, "two-sided")
    assert two.futile_after is None
    assert one.stopped_after <= two.stopped_after


def test_no_discordant_pair_decides_nothing() -> None:
    everything = np.ones(1000)
    for bounds in (None, (0.0, 1.0)):
        found = collect_evidence(everything, everything, bounds, 0.05, "two-sided")
        assert not found.decided
        np.testing.assert_allclose(found.forward, 0, atol=1e-9)


def test_stopping_time() -> None:
    assert stopping_time(np.log([1.0, 19.9, 20.0, 3.0]), 0.05) == 3
    assert stopping_time(np.log([1.0, 19.9]), 0.05) is None
    assert stopping_time(np.zeros(0), 0.05) is None


def test_false_alarms_are_rare_at_every_look() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random((2000, 200)) < 0.7, rng.random((2000, 200)) < 0.7
    for alternative in ("greater", "two-sided"):
        assert (success_evidence(first, second, alternative).max(axis=1) >= np.log(20)).mean() < 0.05


def test_hundreds_of_losses_are_no_error() -> None:
    log_e = beta_binomial(np.array([0, 3000]), np.array([3000, 0]))
    assert log_e[0] < -100
    assert log_e[1] > 1000
    assert not np.isnan(log_e).any()
    assert np.isfinite(capital(log_e)).all()
    found = collect_evidence(np.ones(3000), np.zeros(3000), None, 0.05, "two-sided")
    assert found.verdict("a", "b").startswith("a is better than b, decided after")


def test_without_scipy_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(FlowleapError, match=r"flowleap\[compare\]"):
        beta_binomial(np.array(1), np.array(0))
