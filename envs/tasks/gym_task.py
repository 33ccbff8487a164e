"""any registered gymnasium environment with Box or Dict observations and Box actions, by its id

A Box observation becomes the key `observations`, as Minari calls it; the keys of a Dict keep their names. Images
[H, W, 3] of uint8 stay as they are, all other numbers become float32. The score is the return; success is reported
beside it where the environment's `info` has `success` or `is_success`.

Environments of other packages are known once installed, if they register themselves through gymnasium's entry point
`gymnasium.envs`; gymnasium-robotics is imported where it is installed. Ids that name a module to import
(`module:Env-v0`) are refused, because a task's name may come from somebody else's checkpoint.
"""

from __future__ import annotations

import os
import re
import warnings
from dataclasses import replace
from functools import cache, partial
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Space

from flowleap.envs.rendering import choose_gl
from flowleap.envs.task import Observation, Scoring, Task
from flowleap.envs.tasks.base import Start, Step, import_robotics, origin
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.core.versions import package_versions

TASKS = ()
ANY = "<EnvId>"

OBSERVATION = "observations"
MAX_STEPS = 1000  # where the registration gives no limit
_PACKAGES = ("gymnasium", "gymnasium-robotics", "mujoco")
_SUCCESS = ("success", "is_success")
_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

_SEED_NOTE = "the environment's own seeding: reset(seed=...)."


class GymEnv(gymnasium.Wrapper[Observation, np.ndarray, Any, Any]):
    """A registered environment with Dict observations, without its time limit."""

    def __init__(self, env_id: str, render_mode: str | None = None) -> None:
        super().__init__(_open(env_id, render_mode))
        own = self.env.observation_space
        spaces = own.spaces if isinstance(own, Dict) else {OBSERVATION: own}
        self.observation_space = cast(
            Space[Observation], Dict({key: _frame_space(env_id, key, s) for key, s in spaces.items()})
        )
        self._spaces: dict[str, Box] = dict(cast(Any, self.observation_space).spaces)
        action = self.env.action_space
        if not isinstance(action, Box) or len(action.shape) != 1 or action.dtype.kind != "f":
            raise FlowleapError(f"gym/{env_id}: actions must be a Box of one axis of floats, not {action}")
        low, high = action.low.astype(np.float32), action.high.astype(np.float32)
        self.action_space = Box(low, high, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Reset as the environment does."""
        obs, info = self.env.reset(seed=seed)
        return self._observe(obs), {"success": _success(info)}

    def step(self, action: np.ndarray) -> Step:
        """Step as the environment does."""
        obs, reward, ended, cut, info = self.env.step(np.asarray(action, self.env.action_space.dtype))
        return self._observe(obs), float(reward), bool(ended), bool(cut), {"success": _success(info)}

    def _observe(self, obs: Any) -> Observation:
        frames = obs if isinstance(self.env.observation_space, Dict) else {OBSERVATION: obs}
        return {k: np.asarray(frames[k], s.dtype).reshape(s.shape) for k, s in self._spaces.items()}


def make(name: str, max_steps: int | None = None) -> Task:
    """Build `gym/<name>`; `max_steps` is the registered limit by default."""
    spec, limit, reports_success = _facts(name)
    steps = max_steps or limit
    return Task(
        name=f"gym/{name}",
        make_env=partial(GymEnv, name),
        spec=replace(spec, source=origin(f"gym/{name}", name, _PACKAGES, max_steps=steps)),
        max_steps=steps,
        seed_note=_SEED_NOTE,
        scoring=Scoring("sum_reward", reports_success),
    )


@cache
def _facts(env_id: str) -> tuple[Spec, int, bool]:
    """What only an open environment tells: Spec (without its source), time limit, whether success is told."""
    env = GymEnv(env_id)
    try:
        env.reset(seed=0)
        info = env.env.step(np.zeros_like(env.env.action_space.sample()))[-1]
        period = getattr(env.env.unwrapped, "dt", 0.0)  # MuJoCo's and classic control's name for it, s
        limit = env.env.spec.max_episode_steps if env.env.spec else None
        spec = Spec(
            observations={
                key: ObsKey(box.shape, box.dtype.name, "rgb" if _is_image(box) else "lowdim")
                for key, box in env._spaces.items()
            },
            action_dim=int(cast(Box, env.action_space).shape[0]),
            control_hz=1.0 / period if isinstance(period, float) and period > 0 else 0.0,
        )
        limit = limit or gymnasium.spec(env_id).max_episode_steps or MAX_STEPS
        return spec, limit, any(key in info for key in _SUCCESS)
    except FlowleapError:
        raise
    except Exception as error:
        raise FlowleapError(f"gym/{env_id}: {type(error).__name__}: {error}") from error
    finally:
        env.close()


def _open(env_id: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """Make a registered environment, or say in one line why not."""
    if not _ID.fullmatch(env_id):
        raise FlowleapError(
            f"gym/{env_id}: '{env_id}' is no id of a registered environment, such as Pendulum-v1"
        )
    if env_id not in gymnasium.registry and package_versions("gymnasium-robotics")["gymnasium-robotics"]:
        import_robotics("core")  # registers its environments
    if env_id not in gymnasium.registry:
        raise FlowleapError(
            f"gymnasium knows no environment '{env_id}'{suggest(env_id, gymnasium.registry)} "
            f"({len(gymnasium.registry)} are registered; is the package that brings it installed?)"
        )
    if render_mode and "mujoco" in str(gymnasium.spec(env_id).entry_point):
        os.environ.setdefault("MUJOCO_GL", choose_gl())
    asked = {"render_mode": render_mode} if render_mode else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, UserWarning))
        try:
            return gymnasium.make(env_id, max_episode_steps=-1, disable_env_checker=True, **asked)
        except gymnasium.error.DependencyNotInstalled as error:
            advice = "see gymnasium's documentation for its extras"
            raise FlowleapError(f"gym/{env_id}: {error}; {advice}") from error
        except Exception as error:
            raise FlowleapError(f"gym/{env_id}: {type(error).__name__}: {error}") from error


def _frame_space(env_id: str, key: str, space: Space[Any]) -> Box:
    """The space of one observation key as the policy sees it."""
    if not isinstance(space, Box):
        raise FlowleapError(
            f"gym/{env_id}: observation '{key}' is a {type(space).__name__}, only Box is read "
            "(gymnasium.wrappers.FlattenObservation makes one)"
        )
    if _is_image(space):
        return space
    low, high = (np.atleast_1d(bound).astype(np.float32) for bound in (space.low, space.high))
    return Box(low, high, dtype=np.float32)


def _is_image(space: Box) -> bool:
    return len(space.shape) == 3 and space.shape[2] == 3 and space.dtype == np.uint8


def _success(info: dict[str, Any]) -> bool:
    return any(bool(info.get(key, False)) for key in _SUCCESS)
