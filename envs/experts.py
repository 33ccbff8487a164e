"""Scripted demonstrators, and the noise that widens what they visit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np

from flowleap.envs.registry import Expert, optional_import


class MetaWorldExpert:
    """MetaWorld's scripted policy of one task."""

    def __init__(self, name: str, env: gymnasium.Env[Any, Any]) -> None:
        # Its gains exceed the action bounds on purpose, and it says so every time.
        warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high")
        policies = optional_import("metaworld.policies", extra="metaworld")
        self._env: Any = env
        self._policy = policies.ENV_POLICY_MAP[name]()

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action [4], clipped to [-1, 1] as the environment would."""
        state = obs.get("state", self._env.state)  # cameras do not show it
        action = self._policy.get_action(state.astype(np.float64))
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def metaworld_expert(name: str, env: gymnasium.Env[Any, Any], seed: int) -> Expert:
    """Make the expert of `metaworld/<name>`; it needs no seed."""
    return MetaWorldExpert(name, env)
