"""Perturbations: an environment made harder than the demonstrations were; the episode's seed alone decides how."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from flowleap.envs.task import EnvFactory, Observation, Task
from flowleap.envs.tasks.base import SimEnv, Start, Step
from flowleap.envs.workers import env_failures
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.registry import Option, parameters_of
from flowleap.policy.core.spec import ObsKey, Spec

# Keep the draws of each perturbation apart from those of the others, and from the episode's own.
_START_STREAM, _NOISE_STREAM, _DROP_STREAM = 0x57A7, 0x0B5E, 0xD209


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """What is changed; the defaults change nothing."""

    obs_noise: Annotated[
        float, Option("noise on observations: sd over half the range that the policy was trained on", 0, 100)
    ] = 0.0
    drop: Annotated[
        float, Option("probability that an observation is lost and the one before it seen again", 0, 1)
    ] = 0.0
    action_delay: Annotated[int, Option("control steps by which actions are executed late", 0, 1000)] = 0
    start_noise: Annotated[
        float, Option("shift of initial states: sd over half the range that they are drawn from", 0, 100)
    ] = 0.0
    friction: Annotated[float, Option("factor on every friction of a MuJoCo model", 0, 1000)] = 1.0
    mass: Annotated[float, Option("factor on every mass and inertia of a MuJoCo model", 1e-3, 1000)] = 1.0

    def changed(self) -> dict[str, Any]:
        """The options that change something."""
        return {key: value for key, value in vars(self).items() if value != KINDS[key].default}


KINDS = parameters_of(Perturbation)


def perturbed_world(task: Task, perturbation: Perturbation) -> Task:
    """`task` with other initial states and physics.

    Raises:
        FlowleapError: the task's states cannot be set. Its environments raise if they have no MuJoCo model.
    """
    make_env = task.make_env
    if perturbation.start_noise:
        if task.shift_start is None:
            raise FlowleapError(f"start_noise: the initial states of task {task.name} cannot be moved")
        make_env = partial(ShiftedStart, make_env, task.shift_start, perturbation.start_noise)
    if (perturbation.friction, perturbation.mass) != (1.0, 1.0):
        make_env = partial(ScaledPhysics, make_env, task.name, perturbation.friction, perturbation.mass)
    return replace(task, make_env=make_env)


def perturbed_signals(
    task: Task,
    spec: Spec,
    perturbation: Perturbation,
    range_of: Callable[[str], tuple[NDArray[Any], NDArray[Any]] | None],
) -> Task:
    """`task` with noisy or lost observations and late actions, for a policy with `spec`.

    Args:
        range_of: the normalisation (scale, offset) of a low-dim key in the policy. What it maps to 1 is the noise's
            unit: half the range of the training data, or what its `normalizer.obs` takes. A dimension that it leaves at
            scale 1 did not vary in training, or is a flag, and gets no noise.

    Raises:
        FlowleapError: noise is wanted, and the policy knows no range.
    """
    make_env = task.make_env
    if perturbation.action_delay:
        hold = task.spec.action_convention == "absolute"
        make_env = partial(DelayedActions, make_env, perturbation.action_delay, hold)
    if perturbation.obs_noise:
        units = {key: _unit(key, obs, range_of) for key, obs in spec.observations.items()}
        deviations = {key: perturbation.obs_noise * unit for key, unit in units.items()}
        make_env = partial(NoisyObservations, make_env, deviations)
    if perturbation.drop:
        make_env = partial(DroppedObservations, make_env, perturbation.drop)
    return replace(task, make_env=make_env)


def available(task: Task) -> list[str]:
    """The kinds of perturbation that a task can have."""
    with env_failures(task.name):
        env = task.make_env()
    with closing(env):
        simulated = _physics(env) is not None
    missing = {"start_noise": task.shift_start is None, "friction": not simulated, "mass": not simulated}
    return [kind for kind in KINDS if not missing.get(kind)]


def _unit(key: str, obs: ObsKey, range_of: Callable[[str], Any]) -> NDArray[np.float64]:
    """Half the range of an observation, [*shape]; of an image, a number [1]."""
    if obs.kind == "rgb":
        return np.array([255 / 2])
    if obs.kind == "depth":
        near, far = obs.range or (0.0, 0.0)
        return np.array([(far - near) / 2])
    known = range_of(key)
    if known is None:
        raise FlowleapError(
            f"obs_noise: the policy knows no range of '{key}' (it was trained with normalizer.obs=identity, or is an "
            "export of flowleap 0.1: export it again)"
        )
    scale = np.asarray(known[0], np.float64)
    return np.where(scale == 1.0, 0.0, 1.0 / scale)


class _Perturbed(gymnasium.Wrapper[Observation, np.ndarray, Observation, np.ndarray]):
    """Draws from a generator of its own, which the seed of a reset decides."""

    def __init__(self, make_env: EnvFactory, render_mode: str | None, stream: int = 0) -> None:
        super().__init__(make_env(render_mode=render_mode))
        self._stream, self._rng = stream, np.random.default_rng(stream)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        if seed is not None:
            self._rng = np.random.default_rng([seed, self._stream])
        return self.env.reset(seed=seed, options=options)


class ShiftedStart(_Perturbed):
    """Moves the initial state at random, in the task's own way."""

    def __init__(
        self,
        make_env: EnvFactory,
        shift: Callable[[Any, np.random.Generator, float], Observation],
        strength: float,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(make_env, render_mode, _START_STREAM)
        self._shift, self._strength = shift, strength

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Reset, then move."""
        _, info = super().reset(seed=seed, options=options)
        return self._shift(self.env.unwrapped, self._rng, self._strength), info


class ScaledPhysics(_Perturbed):
    """Scales frictions, masses and inertias of a MuJoCo model after each reset.

    A reset happens in the unchanged world, so that it depends on the seed alone.
    """

    def __init__(
        self, make_env: EnvFactory, name: str, friction: float, mass: float, render_mode: str | None = None
    ) -> None:
        super().__init__(make_env, render_mode)
        if _physics(self.env) is None:
            raise FlowleapError(f"friction and mass: task {name} is not simulated by MuJoCo")
        self._factors = dict.fromkeys(("geom_friction", "pair_friction"), friction)
        self._factors |= dict.fromkeys(("body_mass", "body_inertia", "body_subtreemass", "dof_M0"), mass)
        # How soft contacts and limits are follows from these.
        self._factors |= dict.fromkeys(("body_invweight0", "dof_invweight0", "tendon_invweight0"), 1 / mass)
        self._before: list[tuple[NDArray[Any], NDArray[Any]]] = []  # arrays of the model, and what they held

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Reset, then scale."""
        for array, values in self._before:
            array[:] = values
        start = super().reset(seed=seed, options=options)
        model = _physics(self.env)  # some compile a new one
        self._before = [(array, array.copy()) for array in (getattr(model, name) for name in self._factors)]
        for name, factor in self._factors.items():
            getattr(model, name)[:] *= factor
        return start


class DelayedActions(_Perturbed):
    """Executes each action some steps after it was commanded.

    Until the first one is due, the robot holds: it repeats the first command where actions are absolute, and is sent
    zeros where they are displacements.
    """

    def __init__(
        self, make_env: EnvFactory, delay: int, absolute: bool, render_mode: str | None = None
    ) -> None:
        super().__init__(make_env, render_mode)
        self._delay, self._absolute = delay, absolute
        self._commanded: deque[np.ndarray] = deque()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Reset; no command is under way."""
        self._commanded.clear()
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> Step:
        """Execute the action [A] that is due."""
        first = action if self._absolute else np.zeros_like(action)
        if not self._commanded:
            self._commanded.extend([first] * self._delay)
        self._commanded.append(action)
        obs, reward, terminated, truncated, info = self.env.step(self._commanded.popleft())
        return obs, float(reward), terminated, truncated, info


class NoisyObservations(_Perturbed):
    """Adds normal noise to every frame of observations; images stay within their numbers.

    Args:
        deviations: key -> standard deviations, [*shape] or [1].
    """

    def __init__(
        self,
        make_env: EnvFactory,
        deviations: Mapping[str, NDArray[np.float64]],
        render_mode: str | None = None,
    ) -> None:
        super().__init__(make_env, render_mode, _NOISE_STREAM)
        self._deviations = deviations

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Reset; the first frame is noisy, too."""
        obs, info = super().reset(seed=seed, options=options)
        return self._noisy(obs), info

    def step(self, action: np.ndarray) -> Step:
        """Step."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._noisy(obs), float(reward), terminated, truncated, info

    def _noisy(self, obs: Observation) -> Observation:
        return {
            key: self._one(key, value) if key in self._deviations else value for key, value in obs.items()
        }

    def _one(self, key: str, value: np.ndarray) -> np.ndarray:
        noisy = value + self._deviations[key] * self._rng.standard_normal(value.shape)
        if value.dtype.kind in "ui":
            whole = np.iinfo(value.dtype)
            noisy = noisy.round().clip(whole.min, whole.max)
        return noisy.astype(value.dtype)


class DroppedObservations(_Perturbed):
    """Loses frames of observations at random, each by itself, and shows the last one that arrived again."""

    def __init__(self, make_env: EnvFactory, probability: float, render_mode: str | None = None) -> None:
        super().__init__(make_env, render_mode, _DROP_STREAM)
        self._probability, self._last = probability, Observation()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Reset; the first frame arrives."""
        self._last, info = super().reset(seed=seed, options=options)
        return self._last, info

    def step(self, action: np.ndarray) -> Step:
        """Step."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        if self._rng.random() >= self._probability:
            self._last = {**self._last, **obs}  # images that nobody asked for are not there
        return self._last, float(reward), terminated, truncated, info


def _physics(env: gymnasium.Env[Any, Any]) -> Any:
    """The MuJoCo model of an environment; None where it has none."""
    bare = env.unwrapped
    model = bare.physics() if isinstance(bare, SimEnv) else getattr(bare, "model", None)
    return model if hasattr(model, "geom_friction") else None
