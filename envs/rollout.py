"""The evaluator: closed-loop episodes, one seed each, on any number of parallel environments.

An episode depends on its seed alone: the seed sets the initial state and, through its own generator, the
noise of every chunk. Outcomes are therefore the same whatever `n_envs` is, and two policies evaluated on the
same seeds are paired.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from flowleap.envs.chunk_env import ChunkEnv
from flowleap.envs.task import Observation, Task
from flowleap.envs.workers import env_errors, env_failures, open_vector_env
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.noise import episode_noise
from flowleap.policy.core.spec import Spec


class Actor(Protocol):
    """A policy as the evaluator sees it: numpy in, numpy out, real units."""

    def __call__(self, obs: Observation, noise: np.ndarray) -> np.ndarray:
        """`obs` {key: [B, To, *shape]}, `noise` float32 [B, H, A] -> actions [B, Ta, A]."""
        ...


@dataclass(frozen=True)
class Episode:
    """Outcome of one episode.

    `success`: any step succeeded. `length`: actions executed. `mode`: index in the task's `modes` of the way
    taken, None where it stayed open or the task tells none apart. `outcomes`: the task's further outcomes, None where
    it has none.
    """

    seed: int
    success: bool
    max_reward: float
    sum_reward: float
    length: int
    mode: int | None = None
    outcomes: dict[str, bool] | None = None


@dataclass
class Rollout:
    """Outcomes in the order of the seeds given, and where the time went.

    Attributes:
        episodes: one record per seed.
        latencies: seconds of every actor call (one environment per call unless `batched`).
        env_seconds: waiting for environments: resets and steps, which run in parallel where `n_envs` > 1.
        wall_seconds: everything, the start of the workers included.
        n_envs: environments that ran in parallel.
        batched: whether one actor call served all waiting environments.
    """

    episodes: list[Episode] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    env_seconds: float = 0.0
    wall_seconds: float = 0.0
    n_envs: int = 1
    batched: bool = False


@dataclass
class _Slot:
    """The episode that one environment is running: its place in the seed list, and its noise."""

    position: int
    seed: int
    started: bool = False

    def __post_init__(self) -> None:
        self._rng = episode_noise(self.seed)

    def noise(self, spec: Spec) -> np.ndarray:
        """Noise of the next chunk, float32 [H, A]."""
        return self._rng.standard_normal((spec.horizon, spec.action_dim), dtype=np.float32)


def rollout(
    task: Task,
    actor: Actor,
    spec: Spec,
    seeds: Sequence[int],
    n_envs: int = 1,
    batched: bool = False,
    on_progress: Callable[[Episode], None] | None = None,
) -> Rollout:
    """Run one episode per seed and return their outcomes in the order of `seeds`.

    Args:
        spec: the policy's Spec, for its keys, To, H and Ta.
        seeds: one non-negative whole number per episode.
        n_envs: environments in parallel, each in a process of its own; 1 runs in this process.
        batched: call the actor once for all waiting environments (pays on a GPU). By default it is called
            with B = 1: outcomes are then bitwise independent of `n_envs`, latency is the deployed one.
        on_progress: called with every finished episode, in order of completion.

    Raises:
        SpecMismatch: the policy does not fit the task.
        FlowleapError: bad seeds, an actor that returns the wrong shape or non-finite values, an environment
            that raises, a worker that dies. Workers are stopped in every case, Ctrl-C included.
    """
    start = perf_counter()
    _check_request(task, spec, seeds, n_envs)
    n_envs = min(n_envs, len(seeds))
    result = Rollout(n_envs=n_envs, batched=batched)
    records: dict[int, Episode] = {}  # position in `seeds` -> outcome
    waiting = deque(_Slot(position, int(seed)) for position, seed in enumerate(seeds))
    slots: dict[int, _Slot] = {}  # environment -> its episode
    chunks = np.zeros((n_envs, spec.n_action_steps, spec.action_dim), np.float32)
    obs: Observation = {}
    with open_vector_env(partial(ChunkEnv, task, spec), n_envs, task.name) as envs:
        while waiting or slots:
            for index in range(n_envs):
                if index not in slots and waiting:
                    slots[index] = waiting.popleft()
            if any(not slot.started for slot in slots.values()):
                with _timed_env(task, result):
                    obs = _reset(envs, slots, n_envs)
            for group in [list(slots)] if batched else [[index] for index in slots]:
                noise = np.stack([slots[index].noise(spec) for index in group])
                chunks[group] = _act(actor, {k: v[group] for k, v in obs.items()}, noise, spec, result)
            with _timed_env(task, result):
                obs, _, ended, _, info = envs.step(chunks)
            for index in [index for index in slots if ended[index]]:
                slot = slots.pop(index)
                record = _episode(task, slot.seed, {key: value[index] for key, value in info.items()})
                records[slot.position] = record
                if on_progress:
                    on_progress(record)
    result.episodes = [records[position] for position in range(len(seeds))]
    result.wall_seconds = perf_counter() - start
    return result


def record_episode(task: Task, actor: Actor, spec: Spec, seed: int) -> tuple[np.ndarray, Episode]:
    """Replay the episode of `seed` in this process with the renderer on.

    Same seed, same noise and B = 1, hence the outcome that `rollout` recorded (unless it ran `batched`).

    Returns:
        frames uint8 [T + 1, height, width, 3], the initial state first, and the record.
    """
    _check_request(task, spec, [seed], 1)
    frames: list[np.ndarray] = []
    slot, result, ended = _Slot(0, seed), Rollout(), False
    with env_failures(task.name):
        env = ChunkEnv(
            task, spec, render_mode="rgb_array", on_frame=lambda: frames.append(np.asarray(env.render()))
        )
    with closing(env):
        with env_failures(task.name):
            obs, _ = env.reset(seed=seed)
        while not ended:
            batch = {key: value[None] for key, value in obs.items()}
            chunk = _act(actor, batch, slot.noise(spec)[None], spec, result)[0]
            with env_failures(task.name):
                obs, _, ended, _, info = env.step(chunk)
    return np.stack(frames), _episode(task, seed, info)


def _reset(envs: Any, slots: dict[int, _Slot], n_envs: int) -> Observation:
    """Start the episodes that have not started; the other environments stay as they are."""
    mask = np.zeros(n_envs, np.bool_)
    seeds: list[int | None] = [None] * n_envs
    for index, slot in slots.items():
        if not slot.started:
            mask[index], seeds[index], slot.started = True, slot.seed, True
    obs: Observation = envs.reset(seed=seeds, options={"reset_mask": mask})[0]
    return obs


def _act(actor: Actor, obs: Observation, noise: np.ndarray, spec: Spec, result: Rollout) -> np.ndarray:
    """Call the actor, note its latency, and check that it returned finite numbers [B, Ta, A]."""
    start = perf_counter()
    chunk = np.asarray(actor(obs, noise))
    result.latencies.append(perf_counter() - start)
    expected = (len(noise), spec.n_action_steps, spec.action_dim)
    if chunk.shape != expected:
        raise FlowleapError(
            f"the policy returned actions of shape {chunk.shape}, expected [B, Ta, A] = {expected}"
        )
    if not np.isfinite(chunk).all():
        raise FlowleapError(
            "the policy returned NaN or infinite actions: check its weights and its normaliser"
        )
    return chunk


def _episode(task: Task, seed: int, info: dict[str, Any]) -> Episode:
    return Episode(
        seed=int(seed),
        success=bool(info["success"]),
        max_reward=float(info["max_reward"]),
        sum_reward=float(info["sum_reward"]),
        length=int(info["length"]),
        mode=int(info["mode"]) if info["mode"] >= 0 else None,
        outcomes={name: bool(info[name]) for name in task.scoring.outcomes} or None,
    )


def _check_request(task: Task, spec: Spec, seeds: Sequence[int], n_envs: int) -> None:
    spec.require_match(task.spec, "the policy", f"task {task.name}")
    if len(seeds) == 0:
        raise FlowleapError("no seeds given: there is nothing to evaluate")
    for seed in seeds:
        if not isinstance(seed, int | np.integer) or seed < 0:
            raise FlowleapError(f"seed {seed!r} is not a non-negative whole number")
    if n_envs < 1:
        raise FlowleapError(f"n_envs={n_envs}: at least one environment is needed")


@contextmanager
def _timed_env(task: Task, result: Rollout) -> Iterator[None]:
    start = perf_counter()
    with env_errors(task.name):
        yield
    result.env_seconds += perf_counter() - start
