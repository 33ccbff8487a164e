"""Windows against a naive loop over frames."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowleap.datasets.windows import Windows
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec, SpecMismatch

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=6)


def make(
    lengths: list[int], n_obs_steps: int = 1, horizon: int = 1
) -> tuple[dict[str, np.ndarray], np.ndarray, Spec]:
    """Return columns (one low-dim matrix key in float64, one integer vector, one rgb), ends and Spec."""
    ends = np.cumsum(lengths)
    n = int(ends[-1])
    rng = np.random.default_rng(n)
    columns = {
        "points": rng.normal(size=(n, 3, 2)),
        "image": rng.integers(0, 256, size=(n, 4, 5, 3), dtype=np.uint8),
        "contact": rng.integers(0, 9, size=(n, 1)),
        "action": rng.normal(size=(n, 2)).astype(np.float32),
    }
    observations = {
        "points": ObsKey((3, 2)),
        "image": ObsKey((4, 5, 3), "uint8", "rgb"),
        "contact": ObsKey((1,)),
    }
    return columns, ends, Spec(observations, 2, n_obs_steps, horizon, 1)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 9), st.randoms(use_true_random=False))
def test_gather_equals_a_naive_loop(
    lengths: list[int], n_obs_steps: int, horizon: int, random: object
) -> None:
    columns, ends, spec = make(lengths, n_obs_steps, horizon)
    windows = Windows(columns, ends, spec)
    assert len(windows) == ends[-1]
    index = np.array([random.randrange(len(windows)) for _ in range(8)])  # type: ignore[attr-defined]
    batch = windows.gather(index)
    assert list(batch["obs"]) == list(spec.observations)

    for row, current in enumerate(index):
        episode = next(i for i, end in enumerate(ends) if current < end)
        first, last = ends[episode] - lengths[episode], ends[episode] - 1
        for key in spec.observations:
            for k in range(n_obs_steps):
                frame = max(current - (n_obs_steps - 1) + k, first)
                np.testing.assert_array_equal(
                    batch["obs"][key][row, k], columns[key][frame].astype(batch["obs"][key].dtype)
                )
        for k in range(horizon):
            frame = min(current + k, last)
            np.testing.assert_array_equal(batch["action"][row, k], columns["action"][frame])

    assert (
        batch["obs"]["points"].dtype == batch["obs"]["contact"].dtype == batch["action"].dtype == np.float32
    )
    assert batch["obs"]["image"].dtype == np.uint8
    assert batch["obs"]["points"].shape == (8, n_obs_steps, 3, 2)


def test_batches_do_not_share_memory_with_the_columns() -> None:
    columns, ends, spec = make([5, 3])
    windows = Windows(columns, ends, spec)
    before = windows.gather(np.arange(8))
    batch = windows.gather(np.arange(8))
    batch["action"][:] = 0
    for value in batch["obs"].values():
        value[...] = 0
    after = windows.gather(np.arange(8))
    np.testing.assert_array_equal(before["action"], after["action"])
    np.testing.assert_array_equal(before["obs"]["image"], after["obs"]["image"])
    np.testing.assert_array_equal(before["obs"]["points"], after["obs"]["points"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(point=c.pop("points")),
            "no column 'points'.*did you mean 'point'",
        ),
        (lambda c: c.pop("action"), "no column 'action'"),
        (
            lambda c: c.update(contact=c["contact"][:, 0]),
            r"'contact' has shape \(\) a frame, the Spec says \(1,\)",
        ),
        (
            lambda c: c.update(action=c["action"][:, :1]),
            r"'action' has shape \(1,\) a frame, the Spec says \(2,\)",
        ),
        (lambda c: c.update(contact=c["contact"][:-1]), "'contact' has 7 frames, but the episodes end at 8"),
        (
            lambda c: c.update(image=c["image"].astype(np.float32)),
            "'image' is rgb and must be uint8, not float32",
        ),
    ],
)
def test_columns_that_do_not_fit(change: object, message: str) -> None:
    columns, ends, spec = make([5, 3])
    change(columns)  # type: ignore[operator]
    with pytest.raises(FlowleapError, match=message):
        Windows(columns, ends, spec)


def test_a_mismatch_is_its_own_kind_of_error() -> None:
    columns, ends, spec = make([5, 3])
    del columns["points"]
    with pytest.raises(SpecMismatch):
        Windows(columns, ends, spec)


@pytest.mark.parametrize("ends", [[], [3, 3], [5, 3], [0, 8]])
def test_bad_episode_ends(ends: list[int]) -> None:
    columns, _, spec = make([5, 3])
    with pytest.raises(FlowleapError, match="episode_ends"):
        Windows(columns, ends, spec)


def test_low_dim_batches_leave_the_loader_fast() -> None:
    """The design asks for more than a million samples a second; the bound leaves room for a busy machine."""
    n = 20_000
    rng = np.random.default_rng(0)
    columns = {
        "keypoints": rng.normal(size=(n, 18)),
        "agent": rng.normal(size=(n, 2)),
        "action": rng.normal(size=(n, 2)),
    }
    spec = Spec({"keypoints": ObsKey((18,)), "agent": ObsKey((2,))}, 2, n_obs_steps=2, horizon=16)
    windows = Windows(columns, np.arange(100, n + 1, 100), spec)
    batches = np.random.default_rng(0).permutation(n)[: n // 256 * 256].reshape(-1, 256)
    rates = []
    for _ in range(5):
        start = time.process_time()
        for i in range(200):
            windows.gather(batches[i % len(batches)])
        rates.append(200 * 256 / (time.process_time() - start))
    assert max(rates) > 1e6, f"{max(rates):.3g} samples a second"


def test_only_the_latest_images_are_read() -> None:
    columns, ends, spec = make([5, 4], n_obs_steps=3)
    whole = Windows(columns, ends, spec).gather(np.arange(9))["obs"]
    latest = Windows(columns, ends, spec, image_frames=2).gather(np.arange(9))["obs"]
    np.testing.assert_array_equal(latest["image"], whole["image"][:, 1:])
    np.testing.assert_array_equal(latest["points"], whole["points"])
