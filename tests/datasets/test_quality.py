"""What `flowleap inspect` says of how things move, and that `flowleap convert fix=[...]` repairs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from flowleap.datasets.dataset import Dataset, open_dataset
from flowleap.datasets.formats.zarr_store import EpisodeWriter
from flowleap.datasets.quality.checks import Checks, Finding
from flowleap.datasets.quality.profile import Profile
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.scripts.cli import main as cli

E, T = 20, 100
TIME = np.arange(T)


def walk(size: int = 3, seed: int = 0) -> NDArray:
    """Smooth random motion, [E, T, size]."""
    steps = np.random.default_rng(seed).normal(size=(E, T, size))
    return np.cumsum(np.cumsum(steps, axis=1), axis=1) * 1e-3


def rotations(seed: int = 1, order: str = "xyzw") -> NDArray:
    """Quaternions of smooth turns around changing axes, without flips, [E, T, 4]."""
    vector = 0.3 * np.sin(TIME[:, None] / np.array([15, 19, 23])) + np.random.default_rng(seed).uniform(
        -0.2, 0.2, (E, 1, 3)
    )
    angle = np.linalg.norm(vector, axis=-1, keepdims=True)
    xyz, w = vector / angle * np.sin(angle / 2), np.cos(angle / 2)
    return np.concatenate([xyz, w] if order == "xyzw" else [w, xyz], axis=-1)


def wrapped(period: float, start: float) -> NDArray:
    """A yaw that grows beyond half a period in every episode, [E, T, 1]; `start` is the lower end of its range."""
    yaw = (
        period / 2
        - 0.1 * period
        + TIME * period / 400
        + np.random.default_rng(2).uniform(0, 0.05, (E, 1)) * period
    )
    return (np.mod(yaw - start, period) + start)[..., None]


def steps(state: NDArray) -> NDArray:
    """Delta actions of a motion; the last one as the one before."""
    return np.diff(state, axis=1)[:, [*range(T - 1), T - 2]]


def dataset(state: NDArray, action: NDArray, **more: NDArray) -> Dataset:
    columns = {"state": state, "action": action, **more}
    flat = {key: x.reshape(E * T, *x.shape[2:]).astype(np.float32) for key, x in columns.items()}
    return Dataset.from_arrays(flat, np.arange(1, E + 1) * T)


def findings(source: Dataset, notes: bool = False) -> list[Finding]:
    checks = Checks(source)
    return [
        f for f in (*checks.findings, *Profile(source, checks, (1, 1, 1)).findings) if notes or not f.note
    ]


def ahead(state: NDArray, frames: int = 1) -> NDArray:
    """The state some frames later: actions of a robot that goes where it is told."""
    later = np.roll(state, -frames, axis=1)
    if frames > 0:
        later[:, -frames:] = state[:, -1:]
    else:
        later[:, :-frames] = state[:, :1]
    return later


def test_healthy_data_are_not_suspicious() -> None:
    base, gripper = walk(), np.where(walk(1, 5) > 0, 1.0, -1.0)
    state = np.concatenate([base, rotations(), gripper], axis=-1)
    assert findings(dataset(state, ahead(state)), notes=True) == []
    delta = np.concatenate([steps(base), 0.01 * walk(), gripper], axis=-1)
    assert findings(dataset(state, delta), notes=True) == []
    noise = np.random.default_rng(3).uniform(-np.pi, np.pi, (E, T, 3))
    assert findings(dataset(noise, walk()), notes=True) == []
    planar = np.zeros((E, T, 4))
    planar[..., 2], planar[..., 3] = np.sin(base[..., 0]), np.cos(base[..., 0])
    assert findings(dataset(np.concatenate([base, planar], axis=-1), ahead(base)), notes=True) == []


@pytest.mark.parametrize(
    ("period", "start"), [(2 * np.pi, -np.pi), (2 * np.pi, 0.0), (360.0, -180.0), (360.0, 0.0)]
)
@pytest.mark.parametrize("where", ["state", "action"])
def test_angles_that_wrap_are_found_and_unwrapped(
    tmp_path: Path, period: float, start: float, where: str
) -> None:
    base = walk()
    yaw = np.concatenate([base, wrapped(period, start)], axis=-1)
    if start == 0.0:
        yaw[..., 3] = np.mod(yaw[..., 3] + period / 2, period)
    source = dataset(yaw, ahead(base)) if where == "state" else dataset(base, yaw)
    (found,) = findings(source)
    turn = "360" if period == 360 else "2 pi"
    assert (
        f"'{where}' dimension 3 is an angle that wraps: it jumps by {turn} 20 times, in 20 of 20"
        in found.problem
    )
    assert "fix=[angles]" in found.remedy
    fixed = convert(source, tmp_path, "fix=[angles]")
    assert findings(fixed) == []
    angles = np.stack([fixed.episode(i)[where][:, 3] for i in range(E)])
    assert np.abs(np.diff(angles, axis=1)).max() < period / 100
    assert np.ptp(angles[:, 0]) < period / 10
    turns = (angles - yaw[..., 3]) / period
    np.testing.assert_allclose(turns, turns.round(), atol=1e-5)


@pytest.mark.parametrize("order", ["xyzw", "wxyz"])
@pytest.mark.parametrize("where", ["within", "between"])
def test_quaternion_flips_are_found_and_fixed(tmp_path: Path, order: str, where: str) -> None:
    base, q = walk(), rotations(order=order)
    signs = np.where(np.random.default_rng(0).random((E, 1)) < 0.5, -1.0, 1.0)
    if where == "within":
        signs = np.where(TIME // 17 % 2 == 1, -1.0, 1.0)[None] * signs
    flipped = q * signs[..., None]
    source = dataset(np.concatenate([base[..., :2], flipped, base[..., 2:]], axis=-1), ahead(base))
    (found,) = findings(source)
    assert "'state' dimensions 2 to 5 are a quaternion whose sign flips" in found.problem
    assert ("100 times within 20 episodes" if where == "within" else "between episodes, in ") in found.problem
    fixed = convert(source, tmp_path, "fix=[quaternions]")
    assert findings(fixed) == []
    stored = np.stack([fixed.episode(i)["state"][:, 2:6] for i in range(E)])
    np.testing.assert_allclose(stored * np.sign((stored * q).sum(-1))[..., None], q, atol=1e-6)
    assert ((stored * q).sum(-1) > 0).all() or ((stored * q).sum(-1) < 0).all()
    fact = fixed.spec.source["fixed"]["quaternions"][0]
    assert (fact["key"], fact["dimensions"]) == ("state", [2, 5])


def convert(source: Dataset, folder: Path, *options: str) -> Dataset:
    """Write a dataset, convert it, and open the result."""
    with EpisodeWriter(folder / "a.zarr", source.spec) as writer:
        for index in range(source.n_episodes):
            writer.add(source.episode(index))
    assert cli.main(["convert", f"source={folder}/a.zarr", f"out={folder}/b.zarr", *options]) == 0
    return open_dataset(folder / "b.zarr")


@pytest.mark.parametrize(("still", "place"), [((0, 50), "start"), ((30, 70), "middle"), ((40, 100), "end")])
def test_idle_stretches_are_found_and_cut(tmp_path: Path, still: tuple[int, int], place: str) -> None:
    base = walk(4)
    frames = np.maximum(np.where(still[1] > TIME, np.minimum(TIME, still[0]), TIME - still[1] + still[0]), 0)
    source = dataset(base[:, frames], ahead(base)[:, frames])
    (found,) = findings(source)
    share = float(found.problem.split("moves in ")[1].split(" %")[0])
    assert share == pytest.approx(still[1] - still[0], abs=4)
    assert f"{'in' if place == 'middle' else 'at'} the {place} of 20 episodes" in found.problem
    fixed = convert(source, tmp_path, "fix=[idle]")
    assert findings(fixed) == []
    assert fixed.n_frames == pytest.approx(E * (T - still[1] + still[0]), abs=4 * E)


def test_episodes_without_motion_and_with_a_gripper_alone_are_named() -> None:
    state = np.concatenate([walk(4), np.where(walk(1, 5) > 0, 1.0, -1.0)], axis=-1)
    state[3] = state[3, :1]
    state[[6, 9], :, :4] = state[[6, 9], :1, :4]
    state[[6, 9], :, 4] = np.where(TIME < 40, 1.0, -1.0)
    still, gripper = findings(dataset(state, ahead(state)))[:2]
    assert still.problem == "hardly anything moves in 1 of 20 episodes: episode 3"
    assert still.remedy.endswith("leave out the episodes with drop=[3]")
    assert gripper.problem.endswith("moves in 2 of 20 episodes: episode 6, episode 9")
    assert gripper.remedy.endswith("drop=[6,9]")


def test_commands_that_are_zero_for_long_are_found() -> None:
    base = walk(4)
    delta = np.concatenate([steps(base), np.sign(walk(1, 5))], axis=-1)
    delta[:, :50, :4] = 0
    (found,) = findings(dataset(base, delta))
    assert found.problem.startswith("the action is 0 for long, in 50 % of the frames, in 20 episodes")


@pytest.mark.parametrize("lag", [-3, 0])
def test_shifted_actions_are_found_and_moved(tmp_path: Path, lag: int) -> None:
    state = walk(4)
    noise = 1e-6 * np.random.default_rng(0).normal(size=state.shape)
    source = dataset(
        np.concatenate([walk(2, 9), state], axis=-1), ahead(state, lag) + noise if lag else state
    )
    (found,) = findings(source, notes=True)
    when = "3 frames earlier" if lag else "of the same frame"
    assert found.problem == f"action dimensions 0, 1, 2, 3 are 'state' {when}"
    fixed = convert(source, tmp_path, "fix=[shift]")
    assert findings(fixed, notes=True) == []
    first = fixed.episode(0)
    np.testing.assert_allclose(first["action"][3:-1], first["state"][4:, 2:], atol=1e-5)


def test_columns_that_repeat_the_action_or_the_clock_are_left_out_as_advised() -> None:
    base = walk()
    seconds = np.broadcast_to(TIME[:, None] / 30 + 0.003 * np.sin(TIME)[:, None], (E, T, 1))
    phase = np.broadcast_to(TIME[:, None] / (T - 1), (E, T, 1))
    source = dataset(base, ahead(base), target=ahead(base), odometer=seconds, progress=phase)
    target, *clocks = findings(source)
    assert target.problem == "'target' repeats the action of its frame exactly"
    assert "'keys=[-target]'" in target.remedy
    assert [c.problem.split("'")[1] for c in clocks] == ["odometer", "progress"]
    assert "'keys=[-odometer]'" in clocks[0].remedy


def test_a_dimension_that_is_noise_is_named() -> None:
    base = walk()
    flicker = 0.3 + 1e-5 * np.random.default_rng(0).choice([0.0, 1.0], (E, T, 1))
    (found,) = findings(dataset(np.concatenate([base, flicker], axis=-1), ahead(base)), notes=True)
    assert found.note
    assert found.problem.startswith("'state' moves by 9.98e-06 at most in dimensions 3")
    assert "normalizer.floor=2e-06" in found.remedy


@pytest.mark.parametrize("key", ["state", "action"])
def test_the_remedy_for_a_spike_lets_the_rest_be_seen(key: str) -> None:
    from flowleap.policy.normalizer import Mode, Normalizer

    columns = {"state": walk(), "action": ahead(walk())}
    columns[key][4, 50, 1] = 1e4
    source = dataset(columns["state"], columns["action"])
    found = next(f for f in findings(source) if "of the range" in f.problem)
    option = f"normalizer.{'obs' if key == 'state' else 'action'}"
    assert found.problem.startswith(f"'{key}' dimension 1: 99 % of the frames lie in 2 % of the range")
    assert found.remedy.endswith(f"train with {option}=quantile")

    def deviation(mode: Mode) -> float:
        normalizer = Normalizer(source.spec, obs=mode, action=mode)
        normalizer.fit(source.columns())
        values = normalizer.normalize(key, torch.as_tensor(source.columns()[key]))[:, 1]
        return float(values[torch.arange(E * T) != 4 * T + 50].std())

    assert deviation("minmax") < 1e-4
    assert 0.2 < deviation("quantile") < 1


def test_unknown_and_needless_repairs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = walk()
    with EpisodeWriter(tmp_path / "a.zarr", Spec({"state": ObsKey((3,))}, 3)) as writer:
        for i in range(E):
            writer.add({"state": base[i], "action": ahead(base)[i]})
    for name, message in (("angle", "did you mean 'angles'"), ("quaternions", "nothing of that to repair")):
        assert (
            cli.main(["convert", f"source={tmp_path}/a.zarr", f"out={tmp_path}/b.zarr", f"fix=[{name}]"]) == 1
        )
        assert message in capsys.readouterr().err
    assert not (tmp_path / "b.zarr").exists()


@pytest.mark.parametrize("bad", [1, 40])
def test_all_bad_episodes_are_named_at_once(bad: int) -> None:
    base = np.tile(walk(), (3, 1, 1))
    ends = np.arange(1, len(base) + 1) * T
    base[:bad, 7, 1] = np.nan
    columns = {
        "state": base.reshape(-1, 3),
        "force": np.ones((len(base) * T, 1)),
        "action": walk(2).repeat(3, 0),
    }
    columns["action"] = columns["action"].reshape(-1, 2)
    source = Dataset.from_arrays(columns, ends)
    with pytest.raises(FlowleapError) as error:
        source.check_finite((i, source.episode(i)) for i in range(len(base)))
    option = "drop=[0]" if bad == 1 else "drop=\"'0:40'\""
    assert f"leave out the episodes with {option}, or the column with 'keys=[-state]'" in str(error.value)
