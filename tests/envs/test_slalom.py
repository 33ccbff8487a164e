"""The slalom: routes, touching, the expert's draw, what the evaluator makes of them."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from flowleap.envs.demonstrate import demonstrate
from flowleap.envs.registry import make_task
from flowleap.envs.report import format_modes, summary
from flowleap.envs.rollout import rollout
from flowleap.envs.tasks.slalom import (
    EFFECTOR_RADIUS,
    GOAL,
    POST_RADIUS,
    POSTS,
    ROUTES,
    START,
    SlalomEnv,
    SlalomExpert,
)

TASK = make_task("probe/slalom")


def drive(env, expert, obs, steps=100):
    """Positions [T + 1, 2] until the episode ends, and the last step's `terminated` and info."""
    positions, terminated, info = [obs["position"]], False, {}
    while not terminated and len(positions) <= steps:
        obs, _, terminated, _, info = env.step(expert.act(obs))
        positions.append(obs["position"])
    return np.stack(positions), terminated, info


def centred(env):
    """Start an episode without jitter."""
    env.reset(seed=0)
    env.data.qpos[:], env.goal = START, np.array(GOAL)
    return env._observe()


def test_the_expert_succeeds_on_a_route_drawn_uniformly_and_apart_from_the_start():
    env = TASK.make_env()
    starts, routes = [], []
    for seed in range(400):
        attempt = demonstrate(TASK, env, seed)
        assert attempt.success
        assert env._info()["mode"] == TASK.expert(env, seed).route
        routes.append(env._info()["mode"])
        starts.append([*attempt.columns["position"][0], *attempt.columns["goal"][0]])
    counts = np.bincount(routes, minlength=8)
    assert ((counts - 50.0) ** 2 / 50.0).sum() < 24.3  # chi-square, 7 degrees of freedom, p = 0.001
    bits = np.array(routes)[:, None] >> np.arange(3) & 1
    correlation = np.corrcoef(np.array(starts).T, bits.T)[:4, 4:]
    assert np.abs(correlation).max() < 3.3 / 20


def test_routes_are_equally_long_mirror_each_other_and_keep_clear():
    env, ways = SlalomEnv(), []
    for route in range(8):
        positions, _, info = drive(env, SlalomExpert(route), centred(env))
        assert (info["success"], info["mode"]) == (True, route)
        ways.append(positions)
        for post in POSTS:
            gap = np.hypot(positions[:, 0], positions[:, 1] - post).min() - POST_RADIUS - EFFECTOR_RADIUS
            assert gap > 0.02
    assert len({len(way) for way in ways}) == 1
    lengths = [np.linalg.norm(np.diff(way, axis=0), axis=1).sum() for way in ways]
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-4)
    for route, way in enumerate(ways):
        np.testing.assert_allclose(ways[7 - route], way * [-1, 1], atol=1e-6)


def test_nothing_tells_the_route_before_the_first_post_and_the_mean_route_hits_it():
    env = SlalomEnv()
    left, right = (drive(env, SlalomExpert(route), centred(env))[0] for route in (7, 0))
    np.testing.assert_array_equal(left[:3], right[:3])
    assert abs(left[16, 0] - right[16, 0]) > 0.1  # the chunk that begins there shows the decision

    class Mean:
        def act(self, obs):
            return np.mean([SlalomExpert(route).act(obs) for route in range(8)], axis=0)

    positions, terminated, info = drive(env, Mean(), centred(env))
    assert (terminated, info["success"], info["mode"]) == (True, False, -1)
    assert math.dist(positions[-1], (0.0, POSTS[0])) < POST_RADIUS + EFFECTOR_RADIUS + 0.01


def test_a_touch_spoils_the_episode_for_good():
    env = SlalomEnv()
    centred(env)
    for _ in range(60):
        *_, terminated, _, info = env.step(np.array([0.0, 0.0]))
    assert (terminated, info["success"]) == (True, False)
    for target in ([-0.15, -0.4], [-0.15, 0.42], GOAL):
        for _ in range(20):
            *_, terminated, _, info = env.step(np.array(target))
    assert math.dist(env.data.qpos, GOAL) < 0.01  # where a clean episode succeeds
    assert (terminated, info) == (True, {"success": False, "mode": 7})


def test_going_back_past_a_post_undoes_its_side():
    env = SlalomEnv()
    centred(env)
    for target in ([-0.15, -0.4], [-0.15, 0.4], [-0.15, 0.1], [0.15, 0.12], [0.15, 0.4]):
        for _ in range(20):
            *_, info = env.step(np.array(target))
        assert info["mode"] == {(-0.15, 0.4): 7, (0.15, 0.4): 3}.get(tuple(target), -1)
    assert ROUTES[3] == "LLR"


def test_an_episode_depends_on_its_seed_alone():
    def states(env):
        obs, _ = env.reset(seed=11)
        frames = [obs]
        for target in np.random.default_rng(0).uniform(-0.3, 0.3, (50, 2)):
            frames.append(env.step(target)[0])
        return np.array([np.concatenate(list(frame.values())) for frame in frames])

    env = SlalomEnv()
    first = states(env)
    np.testing.assert_array_equal(states(env), first)  # posts were hit on the way
    np.testing.assert_array_equal(states(SlalomEnv("rgb_array")), first)


def test_pictures_need_no_gl():
    code = (
        "import sys, numpy as np\n"
        "from flowleap.envs.tasks.slalom import SlalomEnv\n"
        "env = SlalomEnv('rgb_array'); env.reset(seed=0); env.data.qpos[:] = -0.1, 0.1; env.goal[:] = 0.1, 0.4\n"
        "env.step([-0.1, 0.1]); image = env.render()\n"
        "assert (image.shape, image.dtype) == ((384, 192, 3), np.uint8)\n"
        "at = lambda x, y: image[int((0.5 - y) * 384), int(96 + x * 384)].tolist()\n"
        "print(at(-0.1, 0.1), at(0.1, 0.4), at(0.0, 0.24), at(0.15, 0.1), 'OpenGL' in sys.modules)"
    )
    environment = {**os.environ, "MUJOCO_GL": "disable"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout.split("\n")[0] == (
        "[40, 90, 200] [150, 214, 160] [90, 96, 110] [255, 255, 255] False"
    ), result.stderr


@pytest.mark.parametrize(("kind", "share"), [("every route", 1.0), ("always left", 0.0)])
def test_the_evaluator_tells_a_collapsed_policy_from_a_diverse_one(kind, share):
    spec = TASK.spec.with_window(1, 1, 1)

    def actor(obs, noise):
        frame = {key: value[0, -1] for key, value in obs.items()}
        # The goal is drawn anew for each episode and stays: as good as a random choice that is kept.
        route = int(1e6 * (1 + frame["goal"][0])) % 8 if kind == "every route" else 7
        return SlalomExpert(route).act(frame)[None, None]

    seeds = range(160)
    result = rollout(TASK, actor, spec, seeds)
    report = summary(result, TASK)
    modes = report["modes"]
    assert report["success"]["count"] == len(seeds) == sum(modes["successes"].values())
    assert modes["successes"] == modes["episodes"]
    assert modes["max_bits"] == 3.0
    assert modes["entropy_share"] == pytest.approx(share, abs=0.03)
    low, high = modes["interval"]
    assert low <= modes["entropy_share"] <= high
    assert f"LLL {modes['successes']['LLL']}" in format_modes(modes)
    assert rollout(TASK, actor, spec, seeds[:6], n_envs=2).episodes == result.episodes[:6]
