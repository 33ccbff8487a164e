"""A task's environment seen at the rate of the policy: observation history in, action chunks executed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import closing
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space

from flowleap.envs.checks import check_step
from flowleap.envs.task import Observation, Task
from flowleap.envs.workers import Answer, Traffic, env_failures
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import Spec


class ChunkEnv(gymnasium.Wrapper[Observation, np.ndarray, Observation, np.ndarray]):
    """Executes one action chunk per step, so that one message per chunk crosses a process boundary.

    Observation: per key of `spec` the last To frames [To, *shape], the first frame repeated at the start.
    Action: Ta actions [Ta, A], each clipped to the environment's bounds. Execution stops where the episode
    ends, after `task.max_steps` actions at the latest; the info of that step is the episode's record:
    `success` (any step), `max_reward`, `sum_reward`, `length`, `mode` (the last step's; -1: none), the task's further
    `outcomes` (any step), and `bounds` (low [A], high [A]) that actions were clipped to. Later steps change nothing.

    Images and point clouds are rendered where the policy will see them, which are the last To frames of a chunk; in
    between, the observation repeats older ones.
    """

    def __init__(
        self,
        task: Task,
        spec: Spec,
        render_mode: str | None = None,
        on_frame: Callable[[], None] | None = None,
    ) -> None:
        """`on_frame` is called after every reset and every single action, for recording."""
        with env_failures(task.name):
            env = task.make_env(render_mode=render_mode)
        super().__init__(env)
        self._task = task.name
        self._max_steps = task.max_steps
        self._names = ("success", *task.scoring.outcomes)
        self._n_obs_steps = spec.n_obs_steps
        self._keys = tuple(spec.observations)
        self._images = tuple(key for key, obs in spec.observations.items() if obs.dense)
        self._has_images, self._shown = env.has_wrapper_attr("images"), False
        self._on_frame = on_frame
        self._bounds = _box(self.env.action_space)
        spaces: Any = self.env.observation_space
        self._spaces = {key: _box(spaces[key]) for key in self._keys}
        self._dtypes = {key: obs.dtype for key, obs in task.spec.observations.items()}
        for key, space in self._spaces.items():
            if space.shape != tuple(task.spec.observations[key].shape):
                raise FlowleapError(
                    f"task {task.name}: observation '{key}' has shape {space.shape} in the environment's space, "
                    f"{tuple(task.spec.observations[key].shape)} in the task's Spec"
                )
        self.action_space = _repeat(self._bounds, spec.n_action_steps)
        self.observation_space = cast(
            Space[Observation],
            Dict({key: _repeat(space, spec.n_obs_steps) for key, space in self._spaces.items()}),
        )
        self._frames: deque[Observation] = deque(maxlen=spec.n_obs_steps)
        self._rewards: list[float] = []
        self._flags: dict[str, bool] = {}
        self._mode, self._finished = -1, True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start the episode of `seed`."""
        if self._has_images:
            self._show_images(True)
        with env_failures(self._task):
            obs, _ = self.env.reset(seed=seed)
            check_step(self._task, self._spaces, obs, 0)
        self._rewards, self._mode, self._finished = [], -1, False
        self._flags = dict.fromkeys(self._names, False)
        self._frames.extend([self._select(obs)] * self._n_obs_steps)
        if self._on_frame:
            self._on_frame()
        return self._stacked(), {}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Execute up to Ta actions [Ta, A]."""
        unseen = len(action) - self._n_obs_steps
        taken: list[tuple[Observation, float, dict[str, Any]]] = []
        with env_failures(self._task):
            try:
                for i, single in enumerate(action.clip(self._bounds.low, self._bounds.high)):
                    if self._finished:
                        break
                    if self._has_images:
                        self._show_images(i >= unseen)
                    obs, reward, terminated, truncated, info = self.env.step(single)
                    taken.append((obs, float(reward), info))
                    length = len(self._rewards) + len(taken)
                    self._finished = terminated or truncated or length >= self._max_steps
                    if self._on_frame:
                        self._on_frame()
            finally:  # one after the other these look-ups are twice as fast as between steps of a simulator
                for each in taken:
                    self._note(*each)
        return self._stacked(), 0.0, self._finished, False, self._record() if self._finished else {}

    def _note(self, obs: Observation, reward: float, info: dict[str, Any]) -> None:
        self._rewards.append(reward)
        check_step(self._task, self._spaces, obs, len(self._rewards), reward, self._images)
        for name in self._names:
            self._flags[name] |= bool(info[name])
        self._mode = int(info.get("mode", -1))
        self._frames.append(self._select(obs))

    def _show_images(self, shown: bool) -> None:
        if shown != self._shown:
            self._shown = shown
            self.env.set_wrapper_attr("images", self._images if shown else ())

    def _select(self, obs: Observation) -> Observation:
        return {key: obs[key] if key in obs else self._frames[-1][key] for key in self._keys}

    def _stacked(self) -> Observation:
        return {
            key: np.array([frame[key] for frame in self._frames], self._dtypes[key]) for key in self._keys
        }

    def _record(self) -> dict[str, Any]:
        figures = {"max_reward": max(self._rewards), "sum_reward": sum(self._rewards)}
        bounds = self._bounds.low, self._bounds.high
        return {**self._flags, **figures, "length": len(self._rewards), "mode": self._mode, "bounds": bounds}


class ServedChunkEnv:
    """A `ChunkEnv` as workers serve it (`workers.open_workers`)."""

    def __init__(self, task: Task, spec: Spec) -> None:
        self._env = ChunkEnv(task, spec)

    def reset(self, seed: int) -> Answer:
        """Start the episode of `seed`: None, and the observation."""
        return None, self._env.reset(seed=seed)[0]

    def step(self, action: np.ndarray) -> Answer:
        """Execute actions [Ta, A]: the episode's record where they ended it, else None; and the observation."""
        obs, _, ended, _, info = self._env.step(action)
        return info if ended else None, obs

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def chunk_traffic(task: Task, spec: Spec) -> Traffic:
    """The arrays that a `ServedChunkEnv` is given and returns."""
    seen = {key: task.spec.observations[key] for key in spec.observations}
    action = ((spec.n_action_steps, spec.action_dim), "float32")
    return Traffic(
        {"action": action}, {key: ((spec.n_obs_steps, *obs.shape), obs.dtype) for key, obs in seen.items()}
    )


def action_bounds(task: Task) -> np.ndarray | None:
    """Least and greatest action [2, A], to which `ChunkEnv` clips; None where nothing is bounded."""
    with env_failures(task.name):
        env = task.make_env()
    with closing(env):
        box = _box(env.action_space)
    return np.stack([box.low, box.high]) if np.isfinite([box.low, box.high]).all() else None


def _box(space: Space[Any]) -> Box:
    if not isinstance(space, Box):
        raise FlowleapError(f"observations and actions must be Box spaces, not {type(space).__name__}")
    return space


def _repeat(box: Box, times: int) -> Box:
    low, high = (np.repeat(bound[None], times, axis=0) for bound in (box.low, box.high))
    return Box(low, high, dtype=box.dtype)
