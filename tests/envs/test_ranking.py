"""Holm's correction by hand, letters against the decisions that they stand for."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from flowleap.envs.ranking import holm, letters


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.02], [0.02]),
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.01, 0.01], [0.02, 0.02]),
        ([], []),
    ],
)
def test_holm_by_hand(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


def test_holm_keeps_the_family_wise_error() -> None:
    """Of ten tests whose hypotheses hold, one or more rejects in at most 5 % of 4,000 families."""
    p_values = np.random.default_rng(0).random((4000, 10))
    assert np.mean([min(holm(list(family))) <= 0.05 for family in p_values]) < 0.06


def test_letters_of_known_cases() -> None:
    assert letters(3, []) == ["a", "a", "a"]
    assert letters(3, [(0, 1), (0, 2), (1, 2)]) == ["a", "b", "c"]
    assert letters(3, [(0, 2)]) == ["a", "ab", "b"]
    # A chain: each differs from all but its neighbours.
    chain = [(i, j) for i, j in combinations(range(6), 2) if j - i > 1]
    assert letters(6, chain) == ["a", "ab", "bc", "cd", "de", "e"]
    # A circle of four, each like its two neighbours.
    assert letters(4, [(0, 2), (1, 3)]) == ["ab", "ac", "cd", "bd"]


def test_letters_equal_the_pairwise_decisions_in_1000_random_cases() -> None:
    rng = np.random.default_rng(0)
    for _ in range(1000):
        n = int(rng.integers(2, 11))
        share = rng.random()
        assert_equal_the_decisions(n, [pair for pair in combinations(range(n), 2) if rng.random() < share])


def assert_equal_the_decisions(n: int, different: list[tuple[int, int]]) -> None:
    words = letters(n, different)
    assert all(words)
    for i, j in combinations(range(n), 2):
        assert bool(set(words[i]) & set(words[j])) == ((i, j) not in different), (n, different, words)
    for letter in set("".join(words)):  # none could be left out
        rest = [set(word) - {letter} for word in words]
        shared = [bool(rest[i] & rest[j]) == ((i, j) not in different) for i, j in combinations(range(n), 2)]
        assert not (all(shared) and all(rest)), (n, different, words)
