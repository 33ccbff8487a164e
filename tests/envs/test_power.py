"""Power: against simulation with the very tests, and against scipy."""

from __future__ import annotations

import numpy as np
import pytest

from flowleap.envs.comparison import boschloo, mcnemar
from flowleap.envs.power import (
    boschloo_table,
    detectable,
    format_power,
    mcnemar_power,
    paired_power,
    power_of_pair,
    unpaired_power,
)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (12, 5)])
def test_all_tables_are_scipys(n: int, m: int) -> None:
    table = boschloo_table(n, m)
    for a in range(0, n + 1, 2):
        for b in range(1, m + 1, 2):
            assert table[a, b] == pytest.approx(boschloo(a, n, b, m), abs=1e-3)


def test_paired_power_against_simulation() -> None:
    rng = np.random.default_rng(0)
    n, p, q = 50, 0.85, 0.6
    first, second = rng.random((4000, n)) < p, rng.random((4000, n)) < q
    won, lost = (first & ~second).sum(1), (second & ~first).sum(1)
    rejected = np.mean([mcnemar(int(b), int(c)) <= 0.05 for b, c in zip(won, lost, strict=True)])
    assert paired_power(n, p, q) == pytest.approx(rejected, abs=0.025)


def test_unpaired_power_against_simulation() -> None:
    rng = np.random.default_rng(0)
    table = boschloo_table(40, 30)
    rejected = np.mean(table[rng.binomial(40, 0.85, 20_000), rng.binomial(30, 0.5, 20_000)] <= 0.05)
    assert unpaired_power(40, 30, 0.85, 0.5) == pytest.approx(rejected, abs=0.01)


def test_fifty_episodes_cannot_separate_80_from_70() -> None:
    assert unpaired_power(50, 50, 0.8, 0.7) == pytest.approx(0.2, abs=0.02)
    assert paired_power(50, 0.8, 0.7) < 0.2


def test_no_test_exceeds_its_level() -> None:
    for p in (0.1, 0.5, 0.9):
        for n in (5, 20, 60):
            assert paired_power(n, p, p) <= 0.05
            assert unpaired_power(n, n, p, p) <= 0.05


def test_power_grows_with_what_helps() -> None:
    assert paired_power(100, 0.85, 0.7) < paired_power(200, 0.85, 0.7) < paired_power(200, 0.85, 0.7, 0.4)
    assert paired_power(100, 0.85, 0.7) == pytest.approx(paired_power(100, 0.7, 0.85))
    assert mcnemar_power(20, 0.0, 0.0) == 0
    assert mcnemar_power(5, 1.0, 0.0) == 0  # five wins of five: p = 0.0625
    assert mcnemar_power(6, 1.0, 0.0) == pytest.approx(1.0)
    assert paired_power(50, 1.0, 0.2, correlation=0.9) == paired_power(
        50, 1.0, 0.2
    )  # it cannot be correlated


def test_the_smallest_detectable_rate_is_the_smallest() -> None:
    def power(p: float, q: float) -> float:
        return paired_power(80, p, q)

    found = detectable(power, 0.6)
    assert found is not None
    assert power(found, 0.6) >= 0.8 > power(found - 0.005, 0.6)
    assert detectable(lambda p, q: paired_power(5, p, q), 0.6) is None
    assert detectable(power, 1.0) is None


def test_the_line_before_a_run() -> None:
    line = format_power(50)
    assert line.startswith("50 episodes tell a success rate of 0.70")
    assert "on the same seeds from 0.93 and higher, from 0.80 in 15 % of cases" in line
    assert "on other seeds from 0.92 and higher, from 0.80 in 19 % of cases" in line
    assert "from no higher one" in format_power(1)
    assert "other seeds" not in format_power(2000)


def test_the_line_after_a_comparison() -> None:
    first, second = np.array([1.0, 1, 1, 0, 1] * 12), np.array([1.0, 0, 1, 0, 1] * 12)
    found, line = power_of_pair(first, second, True)
    assert found["rate"] == pytest.approx(0.6)
    assert found["correlation"] == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert paired_power(60, found["detectable"], 0.6, found["correlation"]) >= 0.8
    assert f"from {found['detectable']:.2f} and higher" in line
    assert power_of_pair(np.ones(9), np.ones(9), True)[0]["correlation"] == 0.0
    assert "too many" in power_of_pair(np.ones(2000), np.ones(10), False)[1]
    assert power_of_pair(first, second[:30], False)[0]["correlation"] is None
