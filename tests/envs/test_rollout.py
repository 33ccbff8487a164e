"""The evaluator: seeds, history, chunks, failures, recording."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from flowleap.envs.chunk_env import ChunkEnv
from flowleap.envs.registry import make_task
from flowleap.envs.rendering import film_strip, save_video
from flowleap.envs.rollout import record_episode, rollout
from flowleap.envs.task import Task
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec, SpecMismatch

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file

RAISE = 0.75  # an action that breaks `LineEnv`


class LineEnv(gymnasium.Env):
    """A point on a line, moved by an action in [-1, 1]; reward is its position; success above 3."""

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = Dict({"x": Box(-np.inf, np.inf, (1,), np.float32)})
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self.actions: list[float] = []

    def obs(self) -> dict[str, np.ndarray]:
        return {"x": np.array([self.x], np.float32)}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.x = float(self.np_random.uniform())
        self.actions = []
        return self.obs(), {}

    def step(self, action: np.ndarray) -> Any:
        if action[0] == RAISE:
            raise ValueError("the motor is on fire")
        self.actions.append(float(action[0]))
        self.x += float(action[0])
        success = self.x > 3
        return self.obs(), self.x, success, False, {"success": success}

    def render(self) -> np.ndarray:
        return np.full((16, 16, 3), min(255, int(50 * abs(self.x))), np.uint8)


def line_task(max_steps: int = 20) -> Task:
    spec = Spec({"x": ObsKey((1,))}, action_dim=1)
    return Task("test/line", LineEnv, spec, max_steps, "the seed draws x")


SPEC = line_task().spec.with_window(n_obs_steps=3, horizon=6, n_action_steps=4)


def noisy(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
    """Depends on the whole history and on the noise."""
    return (noise[:, :4] + 0.1 * obs["x"].sum(axis=1, keepdims=True)).astype(np.float32)


def constant(value: float):
    return lambda obs, noise: np.full((len(noise), 4, 1), value, np.float32)


def test_chunk_env_history_clipping_and_end():
    env = ChunkEnv(line_task(), SPEC)
    obs, _ = env.reset(seed=1)
    x = env.env.x
    np.testing.assert_array_equal(obs["x"], np.float32([[x], [x], [x]]))
    obs, _, ended, _, info = env.step(np.full((4, 1), 0.5))
    np.testing.assert_allclose(obs["x"][:, 0], [x + 1.0, x + 1.5, x + 2.0], rtol=1e-6)
    assert (ended, info) == (False, {})
    obs, _, ended, _, info = env.step(np.full((4, 1), 7.0))  # clipped to 1, ends inside the chunk
    assert env.env.actions == [0.5] * 4 + [1.0] * len(env.env.actions[4:])
    assert ended
    assert len(env.env.actions) < 8
    assert info["success"] is True
    assert info["length"] == len(env.env.actions)
    assert info["max_reward"] == env.env.x
    assert info["mode"] == -1  # the task tells no modes apart
    before = list(env.env.actions)
    again, _, ended, _, same = env.step(np.ones((4, 1)))  # nothing happens after the end
    assert (ended, same, env.env.actions) == (True, info, before)
    np.testing.assert_array_equal(again["x"], obs["x"])


def test_time_limit_inside_a_chunk_and_any_step_success():
    result = rollout(line_task(max_steps=6), constant(-0.1), SPEC, [0])
    assert (result.episodes[0].length, result.episodes[0].success) == (6, False)
    assert result.episodes[0].mode is None


@pytest.mark.parametrize("n_envs", [2, 3])
def test_outcomes_do_not_depend_on_the_number_of_environments(n_envs):
    pytest.importorskip("gym_pusht")
    task = make_task("pusht/keypoints")
    spec = task.spec.with_window(2, 16, 8)

    def actor(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        agent = obs["agent_pos"][:, -1:]
        block = obs["keypoints"].mean(axis=1).reshape(-1, 8, 2).mean(axis=1)[:, None]
        reach = np.linspace(0.2, 1.2, 8)[None, :, None]
        return (agent + reach * (block - agent) + 40 * noise[:, :8]).astype(np.float32)

    seeds = [100003, 7, 100001, 12, 5]
    serial = rollout(task, actor, spec, seeds)
    parallel = rollout(task, actor, spec, seeds, n_envs=n_envs)
    assert parallel.episodes == serial.episodes
    assert [e.seed for e in parallel.episodes] == seeds
    assert max(e.max_reward for e in serial.episodes) > 0.05  # the actor does touch the block
    assert len(serial.latencies) == len(parallel.latencies)


def test_noise_depends_on_seed_and_chunk_only():
    seen: dict[float, list[np.ndarray]] = {}

    def actor(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        assert noise.shape == (1, 6, 1)
        assert noise.dtype == np.float32
        seen.setdefault(order[0], []).append(noise[0])
        return np.zeros((1, 4, 1), np.float32)

    order = [0.0]
    rollout(line_task(8), actor, SPEC, [5, 6])
    order[0] = 1.0
    rollout(line_task(8), actor, SPEC, [6, 5])
    first, second = seen[0.0], seen[1.0]
    for a, b in [(0, 2), (1, 3), (2, 0), (3, 1)]:
        np.testing.assert_array_equal(first[a], second[b])
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


def test_batched_calls_once_for_all_waiting_environments():
    sizes: list[int] = []

    def actor(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        assert obs["x"].shape == (len(noise), 3, 1)
        if 2 not in sizes:
            time.sleep(0.5)  # the other environment, too, comes to wait
        sizes.append(len(noise))
        return noisy(obs, noise)

    seeds = range(5)
    batched = rollout(line_task(), actor, SPEC, seeds, n_envs=2, batched=True)
    assert set(sizes) == {1, 2}
    assert batched.episodes == rollout(line_task(), noisy, SPEC, seeds, n_envs=2).episodes


def test_progress_reports_every_episode_once():
    seen = []
    result = rollout(line_task(), noisy, SPEC, range(4), n_envs=2, on_progress=seen.append)
    assert sorted(e.seed for e in seen) == [0, 1, 2, 3]
    assert set(seen) == set(result.episodes)


@pytest.fixture
def no_workers_left() -> Iterator[None]:
    """Fail unless every process that the test started has ended (those of other tests' pools may live on)."""
    before = set(multiprocessing.active_children())
    yield
    deadline = time.monotonic() + 10
    while (left := set(multiprocessing.active_children()) - before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


@pytest.mark.usefixtures("no_workers_left")
@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize(
    ("actor", "message"),
    [
        (lambda obs, noise: np.zeros((len(noise), 3, 1)), r"shape \(1, 3, 1\), expected .* \(1, 4, 1\)"),
        (constant(np.nan), "NaN"),
        (constant(RAISE), "test/line: the environment failed: ValueError: the motor is on fire"),
    ],
)
def test_failures_are_one_clear_line(n_envs, actor, message):
    with pytest.raises(FlowleapError, match=message) as caught:
        rollout(line_task(), actor, SPEC, range(3), n_envs=n_envs)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_workers_left")
def test_an_interrupt_stops_the_workers():
    def interrupted(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout(line_task(), interrupted, SPEC, range(3), n_envs=2)


def test_bad_requests():
    with pytest.raises(FlowleapError, match="no seeds"):
        rollout(line_task(), noisy, SPEC, [])
    with pytest.raises(FlowleapError, match="seed -1"):
        rollout(line_task(), noisy, SPEC, [0, -1])
    with pytest.raises(FlowleapError, match="n_envs=0"):
        rollout(line_task(), noisy, SPEC, [0], n_envs=0)
    other = Spec({"y": ObsKey((1,))}, action_dim=1)
    with pytest.raises(SpecMismatch, match="'y'"):
        rollout(line_task(), noisy, other, [0])


def test_workers_have_one_thread_and_import_neither_torch_nor_the_callers_script(tmp_path):
    """A script without `__main__` guard, with torch loaded, evaluates in parallel; the workers stay lean."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('top level')\n"
        "import sys, types; sys.modules['torch'] = types.ModuleType('torch')\n"
        "import gymnasium, numpy as np\n"
        "from gymnasium.spaces import Box, Dict\n"
        "from flowleap.envs import Task\n"
        "from flowleap.envs.rollout import rollout\n"
        "from flowleap.policy.core.spec import ObsKey, Spec\n"
        "class Env(gymnasium.Env):\n"
        "    render_mode = None\n"
        "    observation_space = Dict({'x': Box(-1, 1, (1,), np.float32)})\n"
        "    action_space = Box(-1, 1, (1,), np.float32)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return {'x': np.zeros(1, np.float32)}, {}\n"
        "    def step(self, action):\n"
        "        import os, sys\n"
        "        info = {'success': 'torch' in sys.modules or os.environ['OMP_NUM_THREADS'] != '1'}\n"
        "        return {'x': np.zeros(1, np.float32)}, 0.0, True, False, info\n"
        "task = Task('t/t', lambda render_mode=None: Env(), Spec({'x': ObsKey((1,))}, 1), 5, '')\n"
        "result = rollout(task, lambda o, n: np.zeros((1, 1, 1)), task.spec, range(4), n_envs=2)\n"
        "print([e.success for e in result.episodes], hasattr(sys.modules['__main__'], '__file__'))\n"
        "print(__import__('os').environ['OMP_NUM_THREADS'])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    command = [sys.executable, str(script)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["top level", "[False, False, False, False] True", "3"]


@pytest.mark.parametrize("seed", [0, 3])
def test_a_recorded_episode_is_the_evaluated_one(seed):
    evaluated = rollout(line_task(), noisy, SPEC, [1, seed], n_envs=2).episodes[1]
    frames, record = record_episode(line_task(), noisy, SPEC, seed)
    assert asdict(record) == asdict(evaluated)
    assert frames.shape == (record.length + 1, 16, 16, 3)
    assert frames.dtype == np.uint8


def test_a_recorded_pusht_episode_is_the_evaluated_one():
    pytest.importorskip("gym_pusht")
    task = make_task("pusht/state")
    spec = task.spec.with_window(1, 8, 8)

    def actor(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        return (256 + 120 * noise).astype(np.float32)

    short = replace(task, max_steps=40)
    evaluated = rollout(short, actor, spec, [11]).episodes[0]
    frames, record = record_episode(short, actor, spec, 11)
    assert record == evaluated
    assert frames.shape == (41, 384, 384, 3)
    assert (frames[0] != frames[-1]).any()


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_videos_are_written_whole(tmp_path, suffix):
    imageio = pytest.importorskip("imageio.v3")
    pytest.importorskip("imageio_ffmpeg")
    frames = np.zeros((6, 31, 48, 3), np.uint8)  # H.264 needs even sides
    frames[:, :, :, 0] = np.linspace(0, 250, 6)[:, None, None]
    path = save_video(tmp_path / "v" / f"a{suffix}", frames, fps=10)
    assert len(imageio.imread(path, index=None)) == 6
    assert list(path.parent.iterdir()) == [path]
    assert film_strip(frames, count=3).shape == (31, 144, 3)
    with pytest.raises(FlowleapError, match=r"a\.avi"):
        save_video(tmp_path / "a.avi", frames, fps=10)
