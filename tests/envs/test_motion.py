"""Motion quality in closed form, and the noise of an episode."""

from __future__ import annotations

import numpy as np
import pytest

from flowleap.envs.motion import motion
from flowleap.envs.report import format_motion, motion_summary
from flowleap.policy.core.noise import episode_noise

FREE = (-np.inf, np.inf)


def test_a_parabola_has_one_acceleration_and_no_jerk():
    t = np.arange(20.0)[:, None]
    found = motion(np.concatenate([0.5 * 0.3 * t**2, 2 * t], axis=1), [8, 16], *FREE)
    assert found is not None
    assert found == pytest.approx((0.3, 0.3, 0.3, 0.0, 0.0))


def test_a_step_at_a_boundary():
    """Straight on, then a jump of 2 where a chunk takes over at index 8."""
    actions = np.arange(16.0)[:, None]
    actions[8:] += 2.0
    found = motion(actions, [8], *FREE)
    assert found is not None
    assert (found.jump, found.interior) == (2.0, 0.0)
    # Second differences 2, -2; third differences 2, -4, 2.
    assert found.acceleration == pytest.approx(np.sqrt(8 / 14))
    assert found.jerk == pytest.approx(np.sqrt(24 / 13))
    summary = motion_summary([found])
    assert summary["ratio"] is None  # nothing to divide by
    assert "0.0 % of the actions clipped" in format_motion(summary)
    double = motion_summary([found._replace(interior=0.5), found._replace(interior=1.5)])
    assert double["ratio"] == pytest.approx(2.0)
    assert "2 times as much" in format_motion(double)


def test_what_is_clipped_is_executed_clipped():
    actions = np.tile(np.array([0.0, 1.0, 0.0, -1.0]), 4)[:, None] * 5.0
    low, high = np.float32([-1.0]), np.float32([1.0])
    found = motion(actions, [8], low, high)
    assert found is not None
    assert found.clipped == 0.5
    assert found.acceleration == pytest.approx(motion(np.clip(actions, -1, 1), [8], *FREE).acceleration)
    barely = motion(np.where(actions > 0, 1.005, np.clip(actions, -1, 1)), [8], low, high)
    assert barely is not None
    assert barely.clipped == 0.0  # a rounding of the bound


def test_too_short():
    assert motion(np.zeros((3, 1)), [2], *FREE) is None
    assert motion(np.zeros((8, 1)), [], *FREE) is None


def test_another_noise_of_the_same_episode():
    noises = [episode_noise(5, noise_seed).standard_normal(4) for noise_seed in (0, 0, 1, 2)]
    np.testing.assert_array_equal(noises[0], noises[1])
    np.testing.assert_array_equal(noises[0], episode_noise(5).standard_normal(4))
    assert len({tuple(noise) for noise in noises}) == 3
