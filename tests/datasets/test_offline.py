"""Offline evaluation: policies whose errors are known, frames that count, groups of chunks, levels, failures."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest

from flowleap.datasets.dataset import Dataset
from flowleap.datasets.offline import follow, predict_at, spread_frames
from flowleap.datasets.offline_summary import best_of, summarise
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.limits import ActionLimits
from flowleap.policy.core.spec import ObsKey, Spec

LENGTHS = (12, 20, 9)
ENDS = np.cumsum(LENGTHS)
LABELS = [f"episode {7 + i}" for i in range(len(LENGTHS))]
H, TA = 6, 2


def data(images: bool = False):
    """Three episodes whose observation is the frame's index among all; the second action is a gripper's."""
    n = int(ENDS[-1])
    rng = np.random.default_rng(0)
    action = np.stack([np.cumsum(rng.normal(size=n)), (np.arange(n) // 5) % 2], 1).astype(np.float32)
    columns = {"index": np.arange(n, dtype=np.float32)[:, None], "action": action}
    keys = {"index": ObsKey((1,))}
    if images:
        columns["cam"] = np.repeat(np.arange(n, dtype=np.uint8), 12).reshape(n, 2, 2, 3)
        keys["cam"] = ObsKey((2, 2, 3), "uint8", "rgb")
    source = Dataset.from_arrays(columns, ENDS, Spec(keys, action_dim=2))
    return source.windows(n_obs_steps=2, horizon=H, n_action_steps=TA)


def oracle(windows, change):
    """A policy that knows the recorded chunk [B, H, A] and adds `change(noise [B, K, H, A])` to it."""

    def predict(obs, noise):
        frame = obs["index"][:, -1, 0].astype(int)
        chunk = windows.gather(frame)["action"]
        return (chunk if noise.ndim == 3 else chunk[:, None]) + change(noise).astype(np.float32)

    return predict


def report(windows, change, noises=16, frames=1000, limits=None):
    found = predict_at(oracle(windows, change), windows, spread_frames(windows.episode_ends, frames), noises)
    made = summarise(found, windows, limits, LABELS)
    json.dumps(made, allow_nan=False)
    return made


def test_a_constant_offset_is_the_error_of_every_step_and_noise():
    windows = data()
    made = report(windows, lambda noise: 0 * noise + np.array([0.5, -0.125]))
    assert made["frames"] == sum(LENGTHS) - len(LENGTHS)  # the first frame of an episode has no last action
    width = np.array(made["range"])
    for part, offset in zip(made["dimensions"], (0.5, 0.125), strict=True):
        assert part["policy"] == pytest.approx(dict.fromkeys(("mean", "median", "p95"), offset), abs=1e-5)
        assert part["spread"] == pytest.approx(0, abs=1e-6)
    share = float((np.array([0.5, 0.125]) / width).mean())
    assert made["error"]["policy"] == pytest.approx(share, rel=1e-4)
    assert made["error"]["executed"] == pytest.approx(share, rel=1e-4)
    np.testing.assert_allclose(made["error"]["horizon"]["policy"], share, rtol=1e-4)
    np.testing.assert_allclose(list(made["best_of"].values()), share, rtol=1e-4)
    assert list(made["best_of"]) == ["1", "2", "4", "8", "16"]
    assert made["two_ways"] == 0


def test_baselines_are_counted_where_the_episode_goes_on():
    """By hand, frame by frame: repeated last actions and the mean, without the padding at an episode's end."""
    windows = data()
    made = report(windows, np.zeros_like, noises=1)
    action = windows.columns["action"].astype(np.float64)
    repeat, mean = [], []
    for start, end in zip(ENDS - LENGTHS, ENDS, strict=True):
        for now in range(start + 1, end):
            for t in range(now, min(now + H, end)):
                repeat.append(abs(action[t] - action[now - 1]))
                mean.append(abs(action[t] - action.mean(0)))
    for name, values in (("repeat_last", repeat), ("mean_action", mean)):
        expected = np.mean(values, 0)
        found = [part[name]["mean"] for part in made["dimensions"]]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert made["error"][name] == pytest.approx((expected / made["range"]).mean(), rel=1e-4)
    assert made["two_ways"] is None  # from one noise, nothing can be said
    assert made["spread"] == 0


def test_the_best_of_k_is_the_mean_over_all_ways_to_choose_k():
    errors = np.random.default_rng(1).random((3, 6))
    for k, value in best_of(errors).items():
        chosen = [errors[:, list(c)].min(1) for c in combinations(range(6), int(k))]
        assert value == pytest.approx(np.mean(chosen))


def test_two_ways_are_told_from_one_that_is_unsure():
    windows = data()

    def sides(noise):
        return np.sign(noise[..., :1, :1]) * 2 + 0.1 * noise

    assert report(windows, sides)["two_ways"] > 0.95
    assert report(windows, lambda noise: noise)["two_ways"] < 0.03
    assert (
        report(windows, lambda noise: noise[..., :1, :1] + 0 * noise)["two_ways"] < 0.03
    )  # a line, not two points
    assert report(windows, lambda noise: 1e-4 * sides(noise))["two_ways"] == 0  # too little to matter


def test_grippers_are_judged_by_their_levels():
    windows = data()
    right = report(windows, lambda noise: 0 * noise + np.array([0, 0.3]))["dimensions"]
    assert right[0]["levels"] is None
    assert right[1]["levels"]["values"] == [0.0, 1.0]
    assert right[1]["levels"]["agreement"] == right[1]["levels"]["changed"] == 1.0
    assert 0.5 <= right[1]["levels"]["always"] < 0.6
    action = windows.columns["action"]

    def last(obs, noise):
        before = action[obs["index"][:, -1, 0].astype(int) - 1]
        return np.broadcast_to(before[:, None, None], noise.shape)

    found = predict_at(last, windows, spread_frames(ENDS, 1000), 2)
    levels = summarise(found, windows, None, LABELS)["dimensions"][1]["levels"]
    assert levels["changed"] == 0.0  # repeating the last action never changes
    assert levels["changes"] > 20


def test_predictions_beyond_the_limits_are_counted():
    windows = data()
    limits = ActionLimits((-100.0, 0.0), (100.0, 1.0), (1.0, 1.0))
    made = report(windows, lambda noise: 0 * noise + np.array([0, 0.5]), limits=limits)
    ones = _valid(windows)[:, 1].mean()
    assert made["dimensions"][0]["outside"] == 0
    assert made["dimensions"][1]["outside"] == pytest.approx(
        ones, abs=1e-6
    )  # 1 + 0.5 is beyond, 0 + 0.5 is not


def _valid(windows):
    action = windows.columns["action"]
    return np.concatenate(
        [
            action[now : min(now + H, end)]
            for start, end in zip(ENDS - LENGTHS, ENDS, strict=True)
            for now in range(start + 1, end)
        ]
    )


def test_the_worst_are_named_as_the_dataset_names_them():
    windows = data()
    second = oracle(windows, np.zeros_like)

    def predict(obs, noise):
        frame = obs["index"][:, -1, 0]
        wrong = 1.0 * ((frame >= ENDS[0]) & (frame < ENDS[1])) + 3.0 * (frame == ENDS[1] + 4)
        return second(obs, noise) + wrong[:, None, None, None].astype(np.float32)

    found = predict_at(predict, windows, spread_frames(ENDS, 1000), 2)
    made = summarise(found, windows, None, LABELS)
    assert [part["episode"] for part in made["worst_episodes"]] == ["episode 8", "episode 9", "episode 7"]
    assert made["median_episode"]["episode"] == "episode 9"
    assert made["worst_frames"][0] | {"error": 0} == {"episode": "episode 9", "frame": 4, "error": 0}


def test_noise_follows_from_the_frame_alone():
    windows = data()
    predict = oracle(windows, lambda noise: noise)
    every = predict_at(predict, windows, spread_frames(ENDS, 1000), 4)
    some = predict_at(predict, windows, every.frames[::7], 4)
    np.testing.assert_array_equal(some.chunks, every.chunks[::7])
    np.testing.assert_array_equal(some.last, windows.columns["action"][every.frames[::7] - 1])


def test_a_policy_of_one_noise_at_a_time_is_asked_so():
    windows = data()
    whole = oracle(windows, lambda noise: noise)

    def single(obs, noise):
        if noise.ndim == 4:
            raise FlowleapError("one noise for an observation")
        return whole(obs, noise)

    frames = spread_frames(ENDS, 10)
    expected = predict_at(whole, windows, frames, 3).chunks
    np.testing.assert_array_equal(predict_at(single, windows, frames, 3).chunks, expected)


def test_an_episode_is_followed_from_chunk_to_chunk():
    windows = data()
    drawn = follow(oracle(windows, lambda noise: np.ones_like(noise)), windows, 2)
    recorded = windows.columns["action"][ENDS[1] : ENDS[2]]
    np.testing.assert_allclose(drawn["recorded"], recorded, rtol=1e-4)
    np.testing.assert_allclose(drawn["predicted"], recorded + 1, rtol=1e-4, atol=1e-4)


def test_images_reach_the_policy_as_they_were_recorded():
    windows = data(images=True)

    def predict(obs, noise):
        assert obs["cam"].dtype == np.uint8
        np.testing.assert_array_equal(obs["cam"][:, -1, 0, 0, 0], obs["index"][:, -1, 0])
        return np.zeros_like(noise)

    assert predict_at(predict, windows, spread_frames(ENDS, 8), 2).chunks.shape == (8, 2, H, 2)


def test_mishaps_are_named():
    with pytest.raises(FlowleapError, match="a single frame"):
        spread_frames(np.array([1, 2, 3]), 5)
    windows = data()
    with pytest.raises(FlowleapError, match="NaN or infinite"):
        report(windows, lambda noise: noise * np.nan)
