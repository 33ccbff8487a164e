"""Intervals, paired differences, the results file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flowleap.envs.registry import make_task
from flowleap.envs.report import (
    bootstrap_mean,
    episode_rows,
    format_line,
    paired_difference,
    summary,
    wilson,
    write_results,
)
from flowleap.envs.rollout import Episode, Rollout
from flowleap.policy.spec import FlowleapError


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


def test_paired_difference():
    a, b = episodes([0.9, 0.8, 1.0, 0.7]), episodes([0.5, 0.6, 0.4, 0.5])
    result = paired_difference(a, b)
    assert result["mean"] == pytest.approx(0.35)
    assert result["interval"][0] > 0.1
    assert paired_difference(a, b, "success")["mean"] == 0.25
    with pytest.raises(FlowleapError, match="different seeds"):
        paired_difference(a, episodes([0.5, 0.6, 0.4, 0.5], first_seed=1))


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
    }
    assert {"versions", "python", "platform", "date"} == set(written["origin"])
    assert "numpy" in written["origin"]["versions"]
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]
    with pytest.raises(ValueError, match="JSON"):
        write_results(path, {"bad": float("nan")})
    assert json.loads(path.read_text()) == written
