"""Demonstrations: a task's expert drives the simulator; every attempt depends on its seed alone.

Action noise widens what the demonstrations visit without spoiling what they teach: the noisy action is
executed, the expert's own is recorded (DART, arXiv 1703.09327), so that the data show how to come back.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import Any

import gymnasium
import numpy as np

from flowleap.envs.checks import check_step
from flowleap.envs.task import Observation, Task
from flowleap.envs.workers import clean_start, env_errors, env_failures, ignore_interrupt
from flowleap.policy.core.errors import FlowleapError

_NOISE_STREAM = 0xDA27  # keeps action noise apart from any other generator seeded with the episode's seed


@dataclass(frozen=True)
class Demonstration:
    """One attempt of the expert.

    Attributes:
        seed: what the initial state was drawn from.
        success: whether the task succeeded within its time limit.
        columns: observation key -> [T, *shape], `action` [T, A] float32 and the task's `info_columns`; frame t
            holds what the expert saw and what it wanted to do then.
    """

    seed: int
    success: bool
    columns: dict[str, np.ndarray]


def noise_stream(seed: int) -> np.random.Generator:
    """What draws the noise on the actions of the attempt of `seed`: [A] standard normal numbers a step."""
    return np.random.default_rng([seed, _NOISE_STREAM])


def demonstrate(
    task: Task, env: gymnasium.Env[Any, Any], seed: int, action_noise: float = 0.0, hold_steps: int = 0
) -> Demonstration:
    """Run the expert of `task` once in `env`, one of its environments.

    Args:
        seed: draws the initial state and the noise.
        action_noise: standard deviation of Gaussian noise on the executed action, in units of the action.
        hold_steps: frames that are recorded after the first success.
    """
    assert task.expert is not None
    expert = task.expert(env, seed)
    rng = noise_stream(seed)
    bounds: Any = env.action_space
    spaces: Any = env.observation_space
    obs, info = env.reset(seed=seed)
    check_step(task.name, spaces, obs, 0)
    frames: list[Observation] = []
    stop, success = task.max_steps, False
    while len(frames) < stop:
        action = expert.act(obs)
        frames.append({**obs, "action": action, **{key: info[key] for key in task.recording.info_columns}})
        noise = action_noise * rng.standard_normal(action.shape)
        executed = np.clip(action + noise, bounds.low, bounds.high).astype(np.float32)
        obs, reward, terminated, truncated, info = env.step(executed)
        check_step(task.name, spaces, obs, len(frames), float(reward))
        if info["success"] and not success:
            success, stop = True, min(len(frames) + hold_steps, task.max_steps)
        elif (terminated or truncated) and not success:
            break
    columns = {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}
    return Demonstration(seed, success, columns)


def demonstrations(
    task: Task, first_seed: int, n_envs: int = 1, action_noise: float = 0.0, hold_steps: int = 0
) -> Generator[Demonstration, None, None]:
    """Yield the attempts of seeds `first_seed`, `first_seed + 1`, ... without end, in this order.

    The same whatever `n_envs` (processes; 1 runs in this one). Close the iterator to stop the workers.

    Raises:
        FlowleapError: the task has no expert, the simulator fails, or a worker dies.
    """
    if task.expert is None:
        raise FlowleapError(f"task {task.name} has no scripted expert: train it on recorded demonstrations")
    options = (action_noise, hold_steps)
    seeds = count(first_seed)
    if n_envs == 1:
        with env_failures(task.name):
            env = task.make_env()
        with closing(env):
            for seed in seeds:
                with env_failures(task.name):
                    attempt = demonstrate(task, env, seed, *options)
                yield attempt
        return
    # Every worker is kept busy while the results are taken in order.
    futures: deque[Future[Demonstration]] = deque()
    with clean_start() as method:
        context = multiprocessing.get_context(method)
        pool = ProcessPoolExecutor(n_envs, context, initializer=_start_worker, initargs=(task, os.getpid()))
    try:
        while True:
            while len(futures) < 2 * n_envs:
                with clean_start():  # processes start when work arrives
                    futures.append(pool.submit(_work, next(seeds), *options))
            with env_errors(task.name):
                attempt = futures.popleft().result()
            yield attempt
    finally:
        pool.shutdown(cancel_futures=True)


_worker: tuple[Task, gymnasium.Env[Any, Any]]  # in a worker process: what it works on


def _start_worker(task: Task, owner: int) -> None:
    global _worker
    ignore_interrupt(owner)
    _worker = task, task.make_env()


def _work(seed: int, action_noise: float, hold_steps: int) -> Demonstration:
    with env_failures(_worker[0].name):
        return demonstrate(*_worker, seed, action_noise, hold_steps)
