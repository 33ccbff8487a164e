"""A task as a policy sees it whose actions were converted: the environment takes them, turned back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from flowleap.envs.task import EnvFactory, Observation, Task
from flowleap.envs.tasks.base import Start, Step
from flowleap.policy.core.actions import CONVENTION, OwnActions
from flowleap.policy.core.spec import Spec


class ConvertedActions(gymnasium.Wrapper[Observation, np.ndarray, Observation, np.ndarray]):
    """Takes actions [A] as a Spec describes them, unbounded; the environment gets its own, inside of its bounds."""

    def __init__(self, make_env: EnvFactory, spec: Spec, render_mode: str | None = None) -> None:
        super().__init__(make_env(render_mode=render_mode))
        self._own, self._bounds = OwnActions(spec), self.env.action_space
        self.action_space = Box(-np.inf, np.inf, (spec.action_dim,), np.float32)
        self._seen: Observation = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Reset as the environment does."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._seen = obs
        return obs, info

    def step(self, action: np.ndarray) -> Step:
        """Turn the action back, and step."""
        bounds: Any = self._bounds
        own = np.clip(self._own(np.asarray(action, np.float64), self._seen), bounds.low, bounds.high)
        obs, reward, ended, cut, info = self.env.step(own.astype(np.float32))
        self._seen = {**self._seen, **obs}
        return obs, float(reward), ended, cut, info

    def reset_to(self, reset: Any, first: Any) -> Observation:
        """Put the environment into a recorded state, by the task's own function."""
        self._seen = reset(self.env, first)
        return self._seen


def in_actions_of(task: Task, spec: Spec) -> Task:
    """The task for actions that `spec` (of a dataset or a policy) describes; the task itself where they are its own.

    A mirror symmetry and an expert know the environment's own actions, and are left out.
    """
    own = OwnActions(spec)
    fits = own.spec.action_dim == task.spec.action_dim
    if not own.changes or not fits or own.spec.action_convention != task.spec.action_convention:
        return task
    told = {key: spec.source[key] for key in CONVENTION if key in spec.source}
    recording, reset = task.recording, task.recording.reset_to
    if reset is not None:
        recording = replace(recording, reset_to=partial(_reset_to, reset))
    changed = replace(
        task.spec,
        action_dim=spec.action_dim,
        action_convention=spec.action_convention,
        source={**task.spec.source, **told},
    )
    OwnActions(changed)  # raises where the task does not observe what the actions are relative to
    make_env = partial(ConvertedActions, task.make_env, changed)
    return replace(task, spec=changed, make_env=make_env, recording=recording, mirror=None, expert=None)


def _reset_to(reset: Any, env: ConvertedActions, first: Any) -> Observation:
    return env.reset_to(reset, first)
