"""The evaluator: closed-loop episodes, one seed each, on any number of parallel environments.

An episode depends on its seed alone: the seed sets the initial state and, through its own generator, the
noise of every chunk. Outcomes are therefore the same whatever `n_envs` is, also where a worker was lost and its
episode ran again, and two policies evaluated on the same seeds are paired.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from flowleap.envs.chunk_env import ChunkEnv, ServedChunkEnv, chunk_traffic
from flowleap.envs.motion import Motion, motion
from flowleap.envs.task import Observation, Task
from flowleap.envs.workers import TIMEOUT, Restart, env_failures, open_workers
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.noise import episode_noise
from flowleap.policy.core.spec import Spec
from flowleap.policy.deploy.plan import Continuity, Plan


class Actor(Protocol):
    """A policy as the evaluator sees it: numpy in, numpy out, real units."""

    def __call__(self, obs: Observation, noise: np.ndarray) -> np.ndarray:
        """`obs` {key: [B, To, *shape]}, `noise` float32 [B, H, A] -> actions [B, Ta, A]."""
        ...


class Chunker(Protocol):
    """A policy at full length, for chunks that arrive late (see `Continuity`)."""

    def __call__(self, obs: Observation, noise: np.ndarray, prefix: np.ndarray | None = None) -> np.ndarray:
        """`obs` {key: [B, To, *shape]}, `noise` float32 [B, K, H, A], given actions [B, P, A] -> [B, K, N, A].

        Where the plan has a `warm_start`, the keyword `previous` [B, N, A] is what the chunk before holds.
        """
        ...


@dataclass(frozen=True)
class Episode:
    """Outcome of one episode.

    `success`: any step succeeded. `length`: actions executed. `mode`: index in the task's `modes` of the way
    taken, None where it stayed open or the task tells none apart. `outcomes`: the task's further outcomes, None where
    it has none. `motion`: see `motion.motion`, None where an episode was too short.
    """

    seed: int
    success: bool
    max_reward: float
    sum_reward: float
    length: int
    mode: int | None = None
    outcomes: dict[str, bool] | None = None
    motion: Motion | None = None


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
        restarts: workers that died or hung; their episodes were run again, and count once.
    """

    episodes: list[Episode] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    env_seconds: float = 0.0
    wall_seconds: float = 0.0
    n_envs: int = 1
    batched: bool = False
    restarts: list[Restart] = field(default_factory=list)


@dataclass
class _Slot:
    """The episode that one environment is running: its place in the seed list, its noise, its plan, what it did.

    Attributes:
        plan: what comes next, where chunks arrive late.
        rng: draws the noise of its chunks.
        sent: the actions [Ta, A] of each step of the environment.
    """

    position: int
    seed: int
    plan: Plan
    rng: np.random.Generator
    sent: list[np.ndarray] = field(default_factory=list)

    def noise(self, spec: Spec, candidates: int = 1) -> np.ndarray:
        """Noises of the next chunk, float32 [K, H, A]."""
        return self.rng.standard_normal((candidates, spec.horizon, spec.action_dim), dtype=np.float32)

    def motion(self, length: int, low: np.ndarray, high: np.ndarray) -> Motion | None:
        """How smooth the `length` actions of the episode were, which were clipped to bounds [A]."""
        each, delay = len(self.sent[0]), self.plan.settings.delay
        boundaries = range(each + delay, length, each)
        return motion(np.concatenate(self.sent)[:length], boundaries, low, high)


def rollout(
    task: Task,
    actor: Actor | Chunker,
    spec: Spec,
    seeds: Sequence[int],
    n_envs: int = 1,
    batched: bool = False,
    on_progress: Callable[[Episode], None] | None = None,
    continuity: Continuity | None = None,
    worker_timeout: float = TIMEOUT,
    cluster: str | None = None,
    noise: Callable[[int], np.random.Generator] = episode_noise,
) -> Rollout:
    """Run one episode per seed and return their outcomes in the order of `seeds`.

    Args:
        actor: chooses the actions; a `Chunker` where `continuity` is given.
        spec: the policy's Spec, for its keys, To, H and Ta.
        seeds: one non-negative whole number per episode.
        n_envs: environments in parallel, each in a process of its own; 1 runs in this process.
        batched: call the actor once for all environments that wait for it (pays on a GPU). By default it is called
            with B = 1: outcomes are then bitwise independent of `n_envs`, latency is the deployed one.
        on_progress: called with every finished episode, in order of completion.
        continuity: let chunks arrive late, and go over into each other so; `spec` has its `execute` as Ta. The actor is
            called for one environment at a time then.
        worker_timeout: seconds after which an environment that does not answer is replaced; its episode, like that of
            a process that dies, runs again from its seed.
        cluster: run the environments on a Ray cluster: `auto`, or its address. The actor stays here.
        noise: seed -> what draws the noise of the episode's chunks.

    Raises:
        SpecMismatch: the policy does not fit the task.
        FlowleapError: bad seeds, an actor that returns the wrong shape or non-finite values, an environment
            that raises, an episode that loses its worker again and again. Workers are stopped in every case, Ctrl-C
            included.
    """
    start = perf_counter()
    _check_request(task, spec, seeds, n_envs)
    n_envs = min(n_envs, len(seeds))
    result = Rollout(n_envs=n_envs, batched=batched)
    records: dict[int, Episode] = {}  # position in `seeds` -> outcome
    waiting = deque(enumerate(map(int, seeds)))
    slots: dict[int, _Slot] = {}  # worker -> its episode
    make, traffic = partial(ServedChunkEnv, task, spec), chunk_traffic(task, spec)
    with open_workers(task.name, make, n_envs, worker_timeout, cluster, traffic) as workers:

        def begin(worker: int) -> None:
            if waiting:
                position, seed = waiting.popleft()
                slots[worker] = _Slot(position, seed, _plan(continuity, spec), noise(seed))
                workers.ask(worker, seed, "reset", seed)

        for worker in range(n_envs):
            begin(worker)
        while slots:
            since = perf_counter()
            answers = workers.answers()
            result.env_seconds += perf_counter() - since
            ready: list[tuple[int, Observation]] = []
            for worker, answer in answers:
                if answer is None:
                    waiting.appendleft((slots[worker].position, slots[worker].seed))
                elif answer[0] is None:
                    ready.append((worker, answer[1]))
                    continue
                slot = slots.pop(worker)
                begin(worker)
                if answer is not None:
                    record = records[slot.position] = _episode(task, slot, answer[0])
                    if on_progress:
                        on_progress(record)
            for group in [ready] if batched and not continuity and ready else [[each] for each in ready]:
                seen = {key: np.array([obs[key] for _, obs in group]) for key in spec.observations}
                chunks = _choose(actor, seen, [slots[worker] for worker, _ in group], spec, result)
                for (worker, _), chunk in zip(group, chunks, strict=True):
                    workers.ask(worker, slots[worker].seed, "step", action=chunk)
        result.restarts = workers.restarts
    result.episodes = [records[position] for position in range(len(seeds))]
    result.wall_seconds = perf_counter() - start
    return result


def record_episode(
    task: Task,
    actor: Actor | Chunker,
    spec: Spec,
    seed: int,
    continuity: Continuity | None = None,
    noise: Callable[[int], np.random.Generator] = episode_noise,
) -> tuple[np.ndarray, Episode]:
    """Replay the episode of `seed` in this process with the renderer on.

    Same seed, same noise and B = 1, hence the outcome that `rollout` recorded (unless it ran `batched`).

    Returns:
        frames uint8 [T + 1, height, width, 3], the initial state first, and the record.
    """
    _check_request(task, spec, [seed], 1)
    frames: list[np.ndarray] = []
    slot, result, ended = _Slot(0, seed, _plan(continuity, spec), noise(seed)), Rollout(), False
    with env_failures(task.name):
        env = ChunkEnv(
            task, spec, render_mode="rgb_array", on_frame=lambda: frames.append(np.asarray(env.render()))
        )
    with closing(env):
        with env_failures(task.name):
            obs, _ = env.reset(seed=seed)
        while not ended:
            batch = {key: value[None] for key, value in obs.items()}
            chunk = _choose(actor, batch, [slot], spec, result)[0]
            with env_failures(task.name):
                obs, _, ended, _, info = env.step(chunk)
    return np.stack(frames), _episode(task, slot, info)


def _plan(continuity: Continuity | None, spec: Spec) -> Plan:
    limits = spec.limits
    scale = np.subtract(limits.high, limits.low).astype(np.float32) if limits else 1.0
    return Plan(continuity or Continuity(), scale)


def _choose(
    actor: Actor | Chunker, obs: Observation, slots: Sequence[_Slot], spec: Spec, result: Rollout
) -> np.ndarray:
    """The next actions [B, Ta, A] of some episodes, float32, by what they see."""
    plan = slots[0].plan
    if plan.settings == Continuity():
        noise = np.concatenate([slot.noise(spec) for slot in slots])
        expected: tuple[int | None, ...] = (len(noise), spec.n_action_steps, spec.action_dim)
        chosen = _call(actor, (obs, noise), expected, "[B, Ta, A]", result)
    else:
        request = plan.ask()
        noise = slots[0].noise(spec, request.candidates)[None]
        prefix = () if request.prefix is None else (request.prefix[None],)
        if request.candidates == 1:
            noise = noise[:, 0]
        previous: dict[str, np.ndarray] = (
            {} if request.previous is None else {"previous": request.previous[None]}
        )
        expected = (*noise.shape[:-2], None, spec.action_dim)
        chunks = _call(actor, (obs, noise, *prefix), expected, "[B, K, N, A]", result, **previous)
        plan.receive(chunks.reshape(-1, *chunks.shape[-2:]))
        actions = [plan.next() for _ in range(spec.n_action_steps)]
        chosen = np.stack([action for action in actions if action is not None])[None]
    chosen = chosen.astype(np.float32)  # also a copy: the actor may use its array again
    for slot, actions_of_slot in zip(slots, chosen, strict=True):
        slot.sent.append(actions_of_slot)
    return chosen


def _call(
    actor: Any,
    given: tuple[Any, ...],
    expected: tuple[int | None, ...],
    axes: str,
    result: Rollout,
    **more: np.ndarray,
) -> np.ndarray:
    """Call the actor, note its latency, and check that it returned finite numbers of the expected shape."""
    start = perf_counter()
    chunk = np.asarray(actor(*given, **more))
    result.latencies.append(perf_counter() - start)
    if chunk.ndim != len(expected) or any(
        e not in (None, n) for e, n in zip(expected, chunk.shape, strict=True)
    ):
        raise FlowleapError(
            f"the policy returned actions of shape {chunk.shape}, expected {axes} = {expected}"
        )
    if not np.isfinite(chunk).all():
        raise FlowleapError(
            "the policy returned NaN or infinite actions: check its weights and its normaliser"
        )
    return chunk


def _episode(task: Task, slot: _Slot, info: dict[str, Any]) -> Episode:
    return Episode(
        seed=slot.seed,
        success=bool(info["success"]),
        max_reward=float(info["max_reward"]),
        sum_reward=float(info["sum_reward"]),
        length=int(info["length"]),
        mode=int(info["mode"]) if info["mode"] >= 0 else None,
        outcomes={name: bool(info[name]) for name in task.scoring.outcomes} or None,
        motion=slot.motion(int(info["length"]), *info["bounds"]),
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
