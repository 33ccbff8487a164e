"""Intervals, paired differences, the results file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flowleap.envs.registry import make_task
from flowleap.envs.report import episode_rows, format_line, format_modes, summary
from flowleap.envs.rollout import Episode, Rollout
from flowleap.envs.statistics import (
    bootstrap_mean,
    entropy,
    expected_uniform_entropy,
    histogram,
    mode_coverage,
    wilson,
)
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import write_results


def episodes(rewards, first_seed=0):
    return [Episode(first_seed + i, r >= 1.0, r, 2 * r, 10) for i, r in enumerate(rewards)]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # published values (Newcombe 1998, table I; z = 1.96)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_against_published_intervals(successes, n, low, high):
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_rejects_impossible_counts():
    for successes, n in [(1, 0), (3, 2), (-1, 2)]:
        with pytest.raises(FlowleapError, match="no interval"):
            wilson(successes, n)


def test_bootstrap_is_seeded_and_has_the_right_width():
    values = np.random.default_rng(0).normal(5.0, 2.0, 400)
    low, high = bootstrap_mean(values)
    assert (low, high) == bootstrap_mean(values)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high


@pytest.mark.parametrize("values", [[2.5], [0.0, 3.0], [1e-3, 1.0, 1.0, 7e4], np.geomspace(0.3, 9, 500)])
def test_a_histogram_leaves_nothing_out(values):
    found = histogram(values)
    edges, counts = np.array(found["edges"]), found["counts"]
    assert len(edges) == len(counts) + 1
    assert (np.diff(np.log(edges)) > 0).all()
    assert sum(counts) == len(values)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("task", "value"), [("pusht/state", 0.75), ("metaworld/door-open-v3", 0.5)])
def test_summary_headline_follows_the_metric(task, value):
    rollout = Rollout(episodes([0.5, 1.0]), [0.001, 0.003], env_seconds=1.0, wall_seconds=2.0)
    report = summary(rollout, make_task(task))
    assert report["headline"]["value"] == value
    assert report["success"]["count"] == 1
    assert report["success"]["interval"] == list(wilson(1, 2))
    assert report["latency_ms"]["mean"] == pytest.approx(2.0)
    assert report["seconds"]["policy"] == pytest.approx(0.004)
    line = format_line(report)
    assert "1/2" in line
    assert "\n" not in line
    assert "modes" not in report  # neither task tells any apart


def test_entropy_in_closed_form_and_what_an_expert_scores_in_few_episodes():
    np.testing.assert_allclose(entropy([[1, 1, 2], [0, 5, 0], [0, 0, 0]]), [1.5, 0.0, 0.0])
    assert expected_uniform_entropy(2, 1) == pytest.approx(0.0)
    # Three fair coins: 6 of 8 throws are two against one, the others are all alike.
    assert expected_uniform_entropy(2, 3) == pytest.approx(0.75 * float(entropy([1, 2])))
    draws = np.random.default_rng(0).multinomial(50, np.full(8, 1 / 8), size=20_000)
    assert expected_uniform_entropy(8, 50) == pytest.approx(float(entropy(draws).mean()), abs=2e-3)
    assert expected_uniform_entropy(8, 100_000) == pytest.approx(3.0, abs=1e-4)


def with_modes(taken, success=True):
    return [Episode(i, success, 1.0, 1.0, 10, mode) for i, mode in enumerate(taken)]


def test_mode_coverage_counts_and_compares_with_the_expert():
    modes = ("L", "R", "over", "under")
    uniform = mode_coverage(with_modes(np.random.default_rng(0).integers(0, 4, 400).tolist()), modes)
    assert uniform["entropy_share"] == pytest.approx(1.0, abs=0.01)
    half = mode_coverage(with_modes([0, 2] * 50) + with_modes([1, 3, None], success=False), modes)
    assert half["successes"] == {"L": 50, "R": 0, "over": 50, "under": 0}
    assert half["episodes"] == {"L": 50, "R": 1, "over": 50, "under": 1}
    assert (half["open"], half["entropy_bits"], half["max_bits"]) == (1, 1.0, 2.0)
    assert half["entropy_share"] == 1.0 / half["expert_bits"] == pytest.approx(0.5, abs=0.01)
    low, high = half["interval"]
    assert low <= half["entropy_share"] <= high < 0.6
    assert "L 50 R 0 over 50 under 0 | entropy 1.00 of 2.00 bits, 0.506 [" in format_modes(half)


def test_the_interval_covers_what_a_skewed_policy_would_score_in_the_long_run():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    truth = float(entropy(p)) / 2
    rng = np.random.default_rng(0)
    intervals = [mode_coverage(with_modes(rng.choice(4, 100, p=p)), "abcd")["interval"] for _ in range(100)]
    covered = sum(low <= truth <= high for low, high in intervals)
    assert covered >= 88  # nominally 95; five standard deviations below is 84


@pytest.mark.parametrize("episodes", [with_modes([None, 1], success=False), with_modes([1])])
def test_too_few_successes_have_no_share(episodes):
    modes = mode_coverage(episodes, ("L", "R"))
    assert (modes["entropy_bits"], modes["entropy_share"], modes["interval"]) == (0.0, None, None)
    json.dumps(modes, allow_nan=False)
    assert "entropy 0.00 of 1.00 bits" in format_modes(modes)
    assert "too few successes" in format_modes(modes)


def test_results_file(tmp_path):
    rollout = Rollout(episodes([0.5]), [0.1])
    path = write_results(tmp_path / "new" / "r.json", {"rows": episode_rows(rollout)})
    written = json.loads(path.read_text())
    assert written["rows"][0] == {
        "seed": 0,
        "success": False,
        "max_reward": 0.5,
        "sum_reward": 1.0,
        "length": 10,
        "mode": None,
    }
    assert {"versions", "python", "platform", "date"} == set(written["origin"])
    assert "numpy" in written["origin"]["versions"]
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]
    with pytest.raises(ValueError, match="JSON"):
        write_results(path, {"bad": float("nan")})
    assert json.loads(path.read_text()) == written
