"""MetaWorld from point clouds: upright, without the table, decided by the seed, rendered when looked at."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from flowleap.datasets.dataset import open_dataset
from flowleap.envs import rendering as gl
from flowleap.envs.chunk_env import ChunkEnv
from flowleap.envs.collect import collect
from flowleap.envs.protocols import DP3_METAWORLD
from flowleap.envs.registry import make_task
from flowleap.envs.replay import replay_dataset
from flowleap.envs.task_data import load_columns
from flowleap.envs.tasks.metaworld_cloud import CAMERA, rotation
from flowleap.policy.core.errors import FlowleapError

pytest.importorskip("metaworld.env_dict")


@pytest.mark.usefixtures("renders")
def test_the_cloud_is_upright_and_holds_what_matters_but_not_the_table():
    task = make_task("metaworld/assembly-v3", observe="points")
    with closing(task.make_env()) as env:
        obs, _ = env.reset(seed=3)
        assert {key: value.shape for key, value in obs.items()} == {
            "point_cloud": (512, 3),
            "agent_pos": (9,),
        }
        pose = env.sim.data.camera(CAMERA)
        np.testing.assert_allclose(pose.xpos, [0.6, 0.295, 0.8], atol=1e-6)
        turn = rotation() @ pose.xmat.reshape(3, 3).T  # from the world's axes to the cloud's
        np.testing.assert_allclose(rotation() @ rotation().T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(turn[:, 2], [0, 0, 1], atol=0.02)
        hand, right, left = obs["agent_pos"].reshape(3, 3)
        np.testing.assert_array_equal(hand, env.state[:3])
        assert 0.05 < np.linalg.norm(right - left) < 0.15  # m, an open gripper
        nut, peg = env.state[4:7], env.state[36:39]
        for seen in (right, left, nut, peg):
            there = turn @ (seen - pose.xpos)
            assert np.linalg.norm(obs["point_cloud"] - there, axis=1).min() < 0.05
        height = obs["point_cloud"] @ turn[:, 2] + pose.xpos[2]
        assert (height < 0.005).mean() < 0.25  # what the box leaves of the table: its far corners
        assert height.max() > 0.4  # the arm


@pytest.mark.usefixtures("renders")
def test_clouds_are_made_when_the_policy_looks_and_the_seed_alone_decides_them():
    task = make_task("metaworld/assembly-v3", observe="points", points=64)
    env = ChunkEnv(task, task.spec.with_window(2, 6, 6))
    look, looked = env.env._cloud, []
    env.env._cloud = lambda data: (looked.append(1), look(data))[1]
    first, _ = env.reset(seed=5)
    obs, *_ = env.step(np.full((6, 4), 0.5, np.float32))
    assert len(looked) == 1 + 2
    assert first["point_cloud"].shape == (2, 64, 3)
    assert (obs["point_cloud"][0] != obs["point_cloud"][1]).any()
    env.env._cloud = look
    again, _ = env.reset(seed=5)
    np.testing.assert_array_equal(again["point_cloud"], first["point_cloud"])
    assert (env.reset(seed=6)[0]["point_cloud"] != first["point_cloud"]).any()
    env.close()


@pytest.mark.usefixtures("renders")
def test_demonstrations_of_full_length_are_collected_replayed_and_loaded(tmp_path):
    task = make_task("metaworld/reach-v3", observe="points", points=32, colours=True, max_steps=70)
    attrs = collect(task, tmp_path / "points.zarr", 1, hold_steps=70)
    assert attrs["frames"] == 70
    with open_dataset(tmp_path / "points.zarr") as source:
        assert source.spec.observations == task.spec.observations
        (row,) = replay_dataset(task, source, 1, 0.0)
        assert (row.reached, row.length, row.mean_difference) == (True, 70, 0.0)
        data = load_columns(task, source, images=True)
        assert data.n_episodes == 1
        cloud = source.episode(0, ["point_cloud"])["point_cloud"]
        assert cloud.shape == (70, 32, 6)
        assert 0 <= cloud[..., 3:].min() < cloud[..., 3:].max() <= 1
        with pytest.raises(FlowleapError, match=r"'state'.*recorded with task.kwargs.observe=points"):
            load_columns(make_task("metaworld/reach-v3"), source)


def test_options_that_do_not_fit_are_named_before_a_simulator_starts():
    with pytest.raises(FlowleapError, match=r"task.kwargs.observe must be one of 'state', 'points'"):
        make_task("metaworld/reach-v3", observe="cloud")
    with pytest.raises(FlowleapError, match="leave out one of them"):
        make_task("metaworld/reach-v3", observe="points", cameras=["corner2"])
    with pytest.raises(FlowleapError, match=r"task.kwargs.points"):
        make_task("metaworld/reach-v3", observe="points", points=0)


def test_without_a_backend_clouds_say_how_to_get_one(monkeypatch):
    def fail() -> str:
        raise FlowleapError("no OpenGL backend renders here; try `apt-get install libosmesa6`")

    monkeypatch.setattr(gl, "choose_gl", fail)
    with pytest.raises(FlowleapError, match="apt-get install libosmesa6"):
        make_task("metaworld/reach-v3", observe="points").make_env()


def test_the_protocol_says_where_a_policy_sees_something_else_than_the_published_one():
    points = make_task("metaworld/reach-v3", observe="points")
    applied = DP3_METAWORLD.apply(points, points.spec.with_window(2, 4, 3))
    assert applied.max_steps == 200
    described = DP3_METAWORLD.describe(applied)
    assert described["schedule"] == [15, 5]
    assert "published: point_cloud" not in described["differs"]
    state = make_task("metaworld/reach-v3")
    assert (
        "the policy sees state [39] (published: point_cloud [512, 3], agent_pos [9])"
        in (DP3_METAWORLD.describe(state)["differs"])
    )
    assert replace(DP3_METAWORLD, sees=None).describe(state)["differs"] == DP3_METAWORLD.differs
