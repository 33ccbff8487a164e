"""any gymnasium environment with Box observations and actions, by its id, or as module:<EnvId>

A Box observation becomes the key `observations`, as Minari calls it; the keys of a Dict keep their names, those of
nested Dict and Tuple spaces are joined as Minari does (`robot.qpos`, `pair._index_0`). Images are recognised as
those of datasets are (`datasets.images`): channels first, one channel, floats from 0 to 1, depth; all other numbers
become float32. The score is the return; success is reported beside it where the
environment's `info` has `success` or `is_success`.

Environments of other packages are known once installed, if they register themselves through the entry point
`gymnasium.envs`; gymnasium-robotics is imported where it is installed. Others are named with the module that registers
them, `gym_pusht:gym_pusht/PushT-v0`, or in `imports`. A task's name may come from somebody else's checkpoint: whoever
builds a task from one asks `imported_modules` first.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import random
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Annotated, Any, NamedTuple, cast

import gymnasium
import numpy as np
from gymnasium.envs import registration
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Dict, Space

from flowleap.envs.checks import check_step
from flowleap.envs.rendering import choose_gl
from flowleap.envs.task import Observation, Scoring, Task
from flowleap.envs.tasks.base import Start, Step, import_robotics, origin
from flowleap.envs.tasks.gym_spaces import (
    action_box,
    box_of,
    chosen_names,
    frame_box,
    leaves_of,
    picture_of,
    several,
    values_of,
)
from flowleap.envs.workers import env_failures
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.registry import Option
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.core.versions import package_versions

TASKS = ()
ANY = "<EnvId>"

MAX_STEPS = 1000  # where the registration gives no limit
_PACKAGES = ("gymnasium", "gymnasium-robotics", "mujoco")
_SUCCESS = ("success", "is_success")
_NAME = re.compile(
    r"(?:([A-Za-z_][\w.]*):)?([\w.-]+(?:/[\w.-]+)?)"
)  # gymnasium's [module:][namespace/]name[-vN]
_PLUGINS = "gymnasium.envs"
_PROBE_STEPS = 3
# Those of gymnasium.wrappers that change what an environment gives or takes, and write no files.
WRAPPERS = (
    *("FlattenObservation", "FilterObservation", "RescaleObservation", "ReshapeObservation"),
    *("ResizeObservation", "GrayscaleObservation", "TimeAwareObservation", "AddRenderObservation"),
    *("ClipAction", "RescaleAction", "RepeatAction", "StickyAction", "ClipReward", "TimeLimit"),
)

_SEED_NOTE = "the environment's own seeding: reset(seed=...)."


class _Wanted(NamedTuple):
    """Which environment a task is made of; hashable, and small enough to travel to worker processes.

    `spec`: the registration, found once, in the process that builds the task. `wrappers` and `keys`: as JSON.
    """

    task: str
    spec: EnvSpec
    wrappers: str
    keys: str


class GymEnv(gymnasium.Wrapper[Observation, np.ndarray, Any, Any]):
    """A registered environment with Dict observations, without its time limit.

    Attributes:
        own_generators: give it global random generators of its own, seeded by the episode; for environments that draw
            from those of numpy and Python.
        reports_success: whether the infos of the steps so far told of success.
        pictures: key -> how the environment gives images, and what makes of them those of a policy.
    """

    def __init__(self, wanted: _Wanted, own_generators: bool = False, render_mode: str | None = None) -> None:
        super().__init__(_wrapped(wanted, render_mode))
        self._task, self.own_generators = wanted.task, own_generators
        self._generators: Any = None
        self.reports_success = False
        leaves = leaves_of(self.env.observation_space)
        self._names = chosen_names(wanted.task, json.loads(wanted.keys), leaves)
        self._raw: dict[str, Box] = {
            name: box_of(wanted.task, key, leaves[key]) for key, name in self._names.items()
        }
        self.pictures = {
            name: picture
            for name, box in self._raw.items()
            if (picture := picture_of(wanted.task, name, box))
        }
        spaces = {name: frame_box(box, self.pictures.get(name)) for name, box in self._raw.items()}
        self.observation_space = cast(Space[Observation], Dict(cast(Any, spaces)))
        self._spaces, self._steps = spaces, 0
        self.action_space = action_box(wanted.task, self.env.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Start:
        """Reset as the environment does."""
        if self.own_generators and (seed is not None or self._generators is None):
            self._generators = _seeded(seed or 0)
        with self._lent_generators():
            obs, info = self.env.reset(seed=seed)
        self._steps = 0
        return self._observe(obs), {"success": _success(info)}

    def step(self, action: np.ndarray) -> Step:
        """Step as the environment does."""
        with self._lent_generators():
            obs, reward, ended, cut, info = self.env.step(np.asarray(action, self.env.action_space.dtype))
        self._steps += 1
        self.reports_success |= any(key in info for key in _SUCCESS)
        return self._observe(obs), float(reward), bool(ended), bool(cut), {"success": _success(info)}

    def _observe(self, obs: Any) -> Observation:
        found = values_of(self.env.observation_space, obs)
        raw = {name: found[key] for key, name in self._names.items() if key in found}
        for key in self.pictures.keys() & raw.keys():
            if self.pictures[key].key.kind == "depth":  # where nothing was measured
                raw[key] = np.nan_to_num(raw[key], nan=0.0, posinf=0.0, neginf=0.0)
        check_step(self._task, self._raw, raw, self._steps)
        for key in self.pictures.keys() & raw.keys():
            try:
                raw[key] = self.pictures[key](np.asarray(raw[key])[None])[0]
            except FlowleapError as error:
                raise FlowleapError(f"task {self._task}: observation '{key}' {error}") from error
        with np.errstate(over="ignore"):  # infinity is found by who looks at the observation
            return {key: np.asarray(raw[key], s.dtype).reshape(s.shape) for key, s in self._spaces.items()}

    @contextmanager
    def _lent_generators(self) -> Iterator[None]:
        """Let the environment draw from generators of its own, where it draws from the global ones."""
        if not self.own_generators:
            yield
            return
        others = _global_state()
        _set_global_state(self._generators)
        try:
            yield
        finally:
            self._generators = _global_state()
            _set_global_state(others)


def make(
    name: str,
    *,
    max_steps: Annotated[
        int | None, Option("actions in an episode; null is the limit it is registered with", 1)
    ] = None,
    imports: Annotated[
        str | Sequence[str], Option("modules that register environments, such as my_envs")
    ] = (),
    wrappers: Annotated[
        Sequence[str],
        Option("wrappers of gymnasium or module:Class, the innermost first: FlattenObservation"),
    ] = (),
    keys: Annotated[
        Sequence[str] | None, Option("observations to use: [state], or {state: its name in the dataset}")
    ] = None,
) -> Task:
    """Build `gym/<name>`.

    Args:
        max_steps: the time limit; the registered one by default.
        imports: modules to import first; one alone may stand in the name, `module:EnvId`.
        wrappers: applied in their order; one with arguments is a mapping, `{RescaleAction: {min_action: -1,
            max_action: 1}}`.
        keys: the environment's observations to use, all by default; a mapping gives them the names that they have in
            a dataset.

    Raises:
        FlowleapError: no such module or environment, spaces that a policy cannot use, or an environment that fails.
    """
    limits = {} if max_steps is None else {"max_steps": max_steps}
    modules, wrappers = several(imports), several(wrappers)
    facts = _facts(name, tuple(map(str, modules)), _json("wrappers", wrappers), _json("keys", keys))
    steps = max_steps or facts.limit
    told = {"imports": modules, "wrappers": wrappers, "keys": keys}
    kwargs = {key: json.loads(_json(key, value)) for key, value in told.items() if value} | limits
    source = origin(f"gym/{name}", facts.wanted.spec.id, _PACKAGES, **{"max_steps": steps, **kwargs})
    return Task(
        name=f"gym/{name}",
        make_env=partial(GymEnv, facts.wanted, facts.own_generators),
        spec=replace(facts.spec, source=source),
        max_steps=steps,
        seed_note=_SEED_NOTE,
        scoring=Scoring("sum_reward", facts.reports_success),
    )


def imported_modules(name: str, kwargs: Mapping[str, Any]) -> list[str]:
    """The modules that a task `gym/...` of this name and options asks to import."""
    found = [name.removeprefix("gym/").partition(":")[0]] if ":" in name else []
    found += map(str, several(kwargs.get("imports")))
    wrappers = several(kwargs.get("wrappers"))
    names = [next(iter(entry), "") if isinstance(entry, Mapping) else entry for entry in wrappers]
    return found + [str(wrapper).partition(":")[0] for wrapper in names if ":" in str(wrapper)]


class _Facts(NamedTuple):
    """What only an open environment tells: its Spec is without source, `limit` is in steps."""

    wanted: _Wanted
    spec: Spec
    limit: int
    reports_success: bool
    own_generators: bool


@cache
def _facts(name: str, imports: tuple[str, ...], wrappers: str, keys: str) -> _Facts:
    task = f"gym/{name}"
    registered = _find(name, imports)
    wanted = _Wanted(task, registered, wrappers, keys)
    env = GymEnv(wanted)
    try:
        with env_failures(task):
            _look_for_chance(env)
            period = getattr(env.env.unwrapped, "dt", 0.0)  # MuJoCo's and classic control's name for it, s
        spec = Spec(
            observations={
                key: env.pictures[key].key if key in env.pictures else ObsKey(box.shape, box.dtype.name)
                for key, box in env._spaces.items()
            },
            action_dim=int(cast(Box, env.action_space).shape[0]),
            control_hz=1.0 / period if isinstance(period, float) and period > 0 else 0.0,
        )
        limit = registered.max_episode_steps or MAX_STEPS
        return _Facts(wanted, spec, limit, env.reports_success, env.own_generators)
    finally:
        env.close()


def _look_for_chance(env: GymEnv) -> None:
    """Let a seed give the same episode, or name what keeps it from that; return the infos that were seen.

    Environments that draw from the global generators get some of their own.
    """
    if _alike(_short_episode(env), _short_episode(env)):
        return
    env.own_generators = True
    if _alike(_short_episode(env), _short_episode(env)):
        problem = "draws from the global random generators instead of self.np_random: they are seeded for it"
    else:
        env.own_generators = False
        problem = (
            "gives another episode for the same seed: its scores cannot be repeated (self.np_random can)"
        )
    print(f"warning: task {env._task}: the environment {problem}", file=sys.stderr)


def _short_episode(env: GymEnv) -> list[np.ndarray]:
    """Observations and rewards of a few actions from seed 0."""
    bounds = cast(Box, env.action_space)
    action = np.clip(np.zeros(bounds.shape, np.float32), bounds.low, bounds.high)
    obs, _ = env.reset(seed=0)
    check_step(env._task, env._spaces, obs, 0)
    seen = [*obs.values()]
    for step in range(1, _PROBE_STEPS + 1):
        obs, reward, ended, cut, _ = env.step(action)
        check_step(env._task, env._spaces, obs, step, reward)
        seen += [*obs.values(), np.array(reward)]
        if ended or cut:
            break
    return seen


def _alike(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(
        np.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(one, other, strict=True)
    )


def _find(name: str, imports: Sequence[str]) -> EnvSpec:
    """The registration of `[module:]EnvId`, or say in one line why there is none."""
    parts = _NAME.fullmatch(name)
    if not parts:
        raise FlowleapError(
            f"gym/{name}: '{name}' is no id of an environment, such as Pendulum-v1 or my_envs:Reach-v0"
        )
    module, env_id = parts[1], parts[2]
    loaded = [_import(f"gym/{name}", each) for each in [*imports, *([module] if module else [])]]
    if env_id not in gymnasium.registry:
        _load_plugins()
    if env_id not in gymnasium.registry and package_versions("gymnasium-robotics")["gymnasium-robotics"]:
        import_robotics("core")  # registers its environments
    if env_id in gymnasium.registry:
        return gymnasium.registry[env_id]
    for each in loaded:
        if hasattr(each, env_id):
            raise FlowleapError(
                f"gym/{name}: {each.__name__}.{env_id} is not registered; end the module with "
                f"gymnasium.register('{env_id}-v0', entry_point='{each.__name__}:{env_id}'), and say "
                f"task=gym/{each.__name__}:{env_id}-v0"
            )
    likely = env_id.partition("/")[0] if "/" in env_id else "MODULE"
    module = likely if likely.isidentifier() and importlib.util.find_spec(likely) else "MODULE"
    where = f"the module that registers it stands before it: task=gym/{module}:{env_id}"
    if loaded:
        where = f"{', '.join(each.__name__ for each in loaded)} did not register it"
    raise FlowleapError(
        f"gymnasium knows no environment '{env_id}'{suggest(env_id, gymnasium.registry)} "
        f"({len(gymnasium.registry)} are registered; {where})"
    )


def _import(task: str, module: str) -> Any:
    try:
        with env_failures(task):
            return importlib.import_module(module)
    except FlowleapError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        missing = error.__cause__.name or module
        remedy = f"is the package installed? `PYTHONPATH=FOLDER flowleap ...` finds {missing}.py in a folder"
        raise FlowleapError(f"{task}: no module '{missing}' to import: {remedy}") from error


@cache
def _load_plugins() -> None:
    """Let installed packages register their environments; gymnasium itself stopped to do that with 1.0."""
    for point in importlib.metadata.entry_points(group=_PLUGINS):
        root = point.name in ("__root__", "__internal__")
        try:
            with nullcontext() if root else registration.namespace(point.name):
                register = point.load()
                if callable(register):
                    register()
        except Exception as error:  # one broken package is no reason to know none of the others
            registration.current_namespace = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"warning: {point.value} does not register its environments: {reason}", file=sys.stderr)


def _wrapped(wanted: _Wanted, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    """Make the environment, or say in one line why not, and put its wrappers around it."""
    if render_mode and "mujoco" in str(wanted.spec.entry_point):
        os.environ.setdefault("MUJOCO_GL", choose_gl())
    asked = {"render_mode": render_mode} if render_mode else {}
    with env_failures(wanted.task), warnings.catch_warnings():
        warnings.simplefilter("ignore", (DeprecationWarning, UserWarning))
        try:
            env = gymnasium.make(wanted.spec, max_episode_steps=-1, disable_env_checker=True, **asked)
        except gymnasium.error.DependencyNotInstalled as error:
            advice = "see gymnasium's documentation for its extras"
            raise FlowleapError(f"{wanted.task}: {error}; {advice}") from error
    for entry in json.loads(wanted.wrappers):
        env = _wrapper(wanted.task, entry, env)
    return env


def _wrapper(task: str, entry: Any, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Put one wrapper, a name or {name: arguments}, around an environment."""
    name, given = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else (entry, {})
    if not isinstance(name, str) or not isinstance(given, dict):
        raise FlowleapError(f"{task}: wrappers are names or {{name: {{argument: value}}}}, not {entry!r}")
    module, _, kind = name.rpartition(":")
    if not module and kind not in WRAPPERS:
        known = f"{', '.join(WRAPPERS)}{suggest(kind, WRAPPERS)}"
        raise FlowleapError(f"{task}: wrapper '{kind}' is none of {known} (your own: module:Class)")
    home = _import(task, module) if module else gymnasium.wrappers
    if not hasattr(home, kind):
        raise FlowleapError(f"{task}: module {module} has no wrapper '{kind}'{suggest(kind, dir(home))}")
    try:
        wrapped: gymnasium.Env[Any, Any] = getattr(home, kind)(env, **given)
    except Exception as error:
        example = f"'task.kwargs.wrappers=[{{{name}:{{ARGUMENT:VALUE}}}}]'"
        raise FlowleapError(f"{task}: wrapper {name}: {error} (arguments: {example})") from error
    return wrapped


def _success(info: dict[str, Any]) -> bool:
    return any(bool(info.get(key, False)) for key in _SUCCESS)


def _json(name: str, value: Any) -> str:
    try:
        return json.dumps(value, default=_plain)
    except TypeError as error:
        raise FlowleapError(f"task.kwargs.{name}: {error}") from error


def _plain(value: Any) -> Any:
    """What hydra made of a mapping or a list."""
    return dict(value) if isinstance(value, Mapping) else list(value)


def _global_state() -> tuple[Any, Any]:
    return np.random.get_state(), random.getstate()  # noqa: NPY002


def _set_global_state(state: tuple[Any, Any]) -> None:
    np.random.set_state(state[0])  # noqa: NPY002
    random.setstate(state[1])


def _seeded(seed: int) -> tuple[Any, Any]:
    """The state of the global generators after a seed, which are left as they are."""
    return np.random.RandomState(seed % 2**32).get_state(), random.Random(seed).getstate()
