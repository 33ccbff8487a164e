"""A task whose environment misbehaves where it is told to, for the tests of workers."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from flowleap.envs.task import Task
from flowleap.policy.core.spec import ObsKey, Spec

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file

Fault = Callable[[int, int], None]  # seed, step


class DriftEnv(gymnasium.Env):
    """A point that drifts at random and is pushed; an episode ends after 12 steps; success beyond 1."""

    def __init__(self, fault: Fault | None, closed: Path | None, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = Dict({"x": Box(-np.inf, np.inf, (2,), np.float32)})
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.fault, self.closed = fault, closed

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        super().reset(seed=seed)
        self.seed, self.t = seed, 0
        self.x = self.np_random.normal(size=2).astype(np.float32)
        return {"x": self.x}, {}

    def step(self, action: np.ndarray) -> Any:
        self.t += 1
        if self.fault:
            self.fault(self.seed, self.t)
        self.x = self.x + 0.1 * action + self.np_random.normal(scale=0.1, size=2).astype(np.float32)
        return {"x": self.x}, float(self.x[0]), self.t == 12, False, {"success": bool(self.x[0] > 1)}

    def close(self) -> None:
        if self.closed:
            (self.closed / str(os.getpid())).touch()


class Follow:
    """An expert that pushes against the drift."""

    def act(self, obs: Any) -> np.ndarray:
        return np.clip(-obs["x"], -1, 1)


def drift_task(fault: Fault | None = None, closed: Path | None = None) -> Task:
    spec = Spec({"x": ObsKey((2,))}, action_dim=2)
    make = partial(DriftEnv, fault, closed)
    return Task("test/drift", make, spec, 12, "the seed draws x", expert=lambda env, seed: Follow())


SPEC = drift_task().spec.with_window(n_obs_steps=2, horizon=4, n_action_steps=3)


def policy(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
    """Depends on the whole history and on the noise."""
    return (noise[:, :3] - 0.3 * obs["x"].sum(axis=1, keepdims=True)).astype(np.float32)


def once(folder: Path, seed: int, fault: Callable[[], Any], times: int = 1) -> Fault:
    """Do `fault` at step 5 of the episode of `seed`, so many times in all; what has happened is noted in a folder."""

    def happen(at: int, step: int) -> None:
        done = len(list(folder.iterdir()))
        if (at, step) == (seed, 5) and done < times:
            (folder / str(done)).touch()
            fault()

    return happen


def die() -> None:
    """End this process as the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    """Never come back."""
    while True:
        time.sleep(60)
