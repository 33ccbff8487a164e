"""Tasks in a policy's convention: the environment gets its own actions, whatever a policy or a dataset speaks."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.formats.zarr_store import EpisodeWriter
from flowleap.envs.conventions import in_actions_of
from flowleap.envs.replay import replay_dataset
from flowleap.envs.rollout import rollout
from flowleap.envs.task import Recording, Task
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec, SpecMismatch
from flowleap.scripts.cli import main as cli

SPEC = Spec({"pose": ObsKey((7,)), "object": ObsKey((2,))}, 7)
BOTH = [
    "rotation=6d",
    "rotation_dims=[3:6]",
    "actions_as=delta",
    "relative_to=pose",
    "relative_dims=[0:3,6:7]",
]


class Follow(gymnasium.Env):
    """Goes to the commanded pose [7], bounded by 2; every action that it gets is noted."""

    taken: list[np.ndarray]

    def __init__(self, render_mode: str | None = None) -> None:
        spaces = {key: Box(-np.inf, np.inf, obs.shape, np.float32) for key, obs in SPEC.observations.items()}
        self.observation_space, self.action_space = Dict(spaces), Box(-2, 2, (7,), np.float32)
        self.render_mode, self.images = render_mode, ("none",)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.pose = self.np_random.uniform(-1, 1, 7).astype(np.float32)
        Follow.taken = []
        return self.obs(), {"success": False}

    def step(self, action):
        Follow.taken.append(np.array(action))
        self.pose = (self.pose + 0.5 * (action - self.pose)).astype(np.float32)
        return self.obs(), 0.0, False, False, {"success": bool(self.pose[0] > 5)}

    def obs(self):
        return {"pose": self.pose, "object": np.zeros(2, np.float32)}


def go_to(env: Follow, first: dict) -> dict:
    env.reset(seed=0)
    env.pose = first["pose"]
    return env.obs()


def task(spec: Spec = SPEC) -> Task:
    recording = Recording(reset_to=go_to, state_keys=(("pose",),))
    return Task("own/follow", Follow, spec, 12, "the seed draws the pose", recording=recording)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """Two episodes of commanded poses."""
    env, rng = Follow(), np.random.default_rng(3)
    with EpisodeWriter(tmp_path / "own.zarr", SPEC) as writer:
        for seed in range(2):
            obs, rows = env.reset(seed=seed)[0], []
            for action in rng.uniform(-1.5, 1.5, (6, 7)).astype(np.float32):
                rows.append({**obs, "action": action})
                obs = env.step(action)[0]
            writer.add({key: np.stack([row[key] for row in rows]) for key in rows[0]})
    return tmp_path / "own.zarr"


@pytest.mark.parametrize("suffix", ["zarr", "hdf5"])
def test_converted_data_replay_as_they_were_recorded(recorded: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"new.{suffix}"
    assert cli.main(["convert", f"source={recorded}", f"out={out}", *BOTH]) == 0
    with open_dataset(recorded) as before, open_dataset(out) as after:
        assert (after.spec.action_dim, after.spec.action_convention) == (10, "delta")
        original, pose = (before.columns([key])[key] for key in ("action", "pose"))
        delta = after.columns(["action"])["action"]
        np.testing.assert_allclose(delta[:, :3], original[:, :3] - pose[:, :3], atol=1e-6)
        np.testing.assert_allclose(delta[:, 9], original[:, 6] - pose[:, 6], atol=1e-6)
        view = in_actions_of(task(), after.spec)
        rows = replay_dataset(view, after, 2, 0.0)
        np.testing.assert_allclose(Follow.taken, before.episode(1)["action"], atol=1e-5)
        assert max(row.mean_difference for row in rows) < 1e-5
        loaded = load_columns(view, after)
        assert loaded.spec.action_dim == 10
    back = ["rotation=axis_angle", f"source={out}", f"out={tmp_path}/half.zarr"]
    assert cli.main(["convert", *back]) == 0
    back = ["actions_as=absolute", f"source={tmp_path}/half.zarr", f"out={tmp_path}/back.zarr"]
    assert cli.main(["convert", *back]) == 0
    with open_dataset(tmp_path / "back.zarr") as data:
        np.testing.assert_allclose(data.columns(["action"])["action"], original, atol=1e-5)
        assert data.spec.action_convention == "absolute"
        assert in_actions_of(task(), data.spec).spec == task().spec


def test_a_policy_of_deltas_moves_the_environment_by_them() -> None:
    told = {"relative_to": "pose", "relative_dims": [[0, 7]], "relative_of": "absolute"}
    spec = replace(SPEC, action_convention="delta", source=told)
    view = in_actions_of(task(), spec)
    step = np.linspace(0, 0.3, 7, dtype=np.float32)
    rollout(view, lambda obs, noise: np.tile(step, (1, 4, 1)), spec.with_window(1, 4, 4), [7])
    env = Follow()
    pose = env.reset(seed=7)[0]["pose"]
    expected = [pose + step * (1 + 0.5 * i) for i in range(12)]  # it goes half of the way each time
    rollout(view, lambda obs, noise: np.tile(step, (1, 4, 1)), spec.with_window(1, 4, 4), [7])
    np.testing.assert_allclose(Follow.taken, np.clip(expected, -2, 2), atol=1e-5)
    rollout(view, lambda obs, noise: np.tile(step * 99, (1, 4, 1)), spec.with_window(1, 4, 4), [7])
    assert np.max(Follow.taken) == 2.0


def test_what_cannot_be_turned_is_refused(recorded: Path, tmp_path: Path, capsys) -> None:
    delta = replace(SPEC, action_convention="delta")
    message = r"uses 'delta', task own/follow 'absolute'; .*actions_as=\.\.\. relative_to=KEY"
    with pytest.raises(SpecMismatch, match=message):
        rollout(in_actions_of(task(), delta), lambda o, n: n, delta, [0])
    told = {"relative_to": "pose", "relative_of": "absolute"}
    unseen = replace(delta, observations={"object": ObsKey((2,))}, source=told)
    with pytest.raises(FlowleapError, match="relative to 'pose', which has to be observed"):
        in_actions_of(task(), unseen)
    for words, message in [
        (["actions_as=delta"], "needs relative_to=KEY"),
        (["relative_to=pose"], "relative_to belongs to actions_as="),
        (["rotation_dims=[3:6]"], "rotation_dims belongs to rotation="),
        (["rotation=6d"], "nothing says that the 7 numbers of an action hold rotations"),
    ]:
        assert cli.main(["convert", f"source={recorded}", f"out={tmp_path}/no.zarr", *words]) != 0
        assert message in capsys.readouterr().err


def test_images_are_asked_of_the_environment_inside() -> None:
    told = {"rotation": "6d", "rotation_dims": [[3, 9]], "rotation_of": "axis_angle"}
    view = in_actions_of(task(), replace(SPEC, action_dim=10, source=told))
    env = view.make_env()
    assert env.has_wrapper_attr("images")
    env.set_wrapper_attr("images", ("top",))
    assert env.unwrapped.images == ("top",)
    assert isinstance(view.make_env, partial)
