"""Demonstrations: a task's expert drives the simulator; every attempt depends on its seed alone.

Action noise widens what the demonstrations visit without spoiling what they teach: the noisy action is
executed, the expert's own is recorded (DART, arXiv 1703.09327), so that the data show how to come back.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import gymnasium
import numpy as np

from flowleap.envs.checks import check_step
from flowleap.envs.task import Observation, Task
from flowleap.envs.workers import TIMEOUT, Answer, open_workers
from flowleap.policy.core.errors import FlowleapError

_NOISE_STREAM = 0xDA27  # keeps action noise apart from any other generator seeded with the episode's seed
_AHEAD = 2  # attempts for each worker that wait for an earlier one


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


class _ServedExpert:
    """An environment with its expert, as workers serve it (`workers.open_workers`)."""

    def __init__(self, task: Task, action_noise: float, hold_steps: int) -> None:
        self._task, self._options, self._env = task, (action_noise, hold_steps), task.make_env()

    def attempt(self, seed: int) -> Answer:
        """Demonstrate once."""
        return demonstrate(self._task, self._env, seed, *self._options), {}

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def demonstrations(
    task: Task,
    first_seed: int,
    n_envs: int = 1,
    action_noise: float = 0.0,
    hold_steps: int = 0,
    worker_timeout: float = TIMEOUT,
    cluster: str | None = None,
) -> Generator[Demonstration, None, None]:
    """Yield the attempts of seeds `first_seed`, `first_seed + 1`, ... without end, in this order.

    The same whatever `n_envs` (processes; 1 runs in this one). Close the iterator to stop the workers.

    Args:
        worker_timeout: seconds after which an attempt that is not over is made again by a new worker.
        cluster: work on a Ray cluster: `auto`, or its address.

    Raises:
        FlowleapError: the task has no expert, the simulator fails, or a seed loses its worker again and again.
    """
    if task.expert is None:
        raise FlowleapError(f"task {task.name} has no scripted expert: train it on recorded demonstrations")
    make = partial(_ServedExpert, task, action_noise, hold_steps)
    done: dict[int, Demonstration] = {}
    seeds, asked = count(first_seed), dict[int, int]()  # worker -> its seed
    with open_workers(task.name, make, n_envs, worker_timeout, cluster) as workers:
        for wanted in count(first_seed):
            while True:
                # Others go on meanwhile, but not without end.
                for worker in [w for w in range(n_envs) if w not in asked and len(done) < _AHEAD * n_envs]:
                    asked[worker] = next(seeds)
                    workers.ask(worker, asked[worker], "attempt", asked[worker])
                if wanted in done:
                    break
                for worker, answer in workers.answers():
                    if answer is None:
                        workers.ask(worker, asked[worker], "attempt", asked[worker])
                    else:
                        done[asked.pop(worker)] = answer[0]
            yield done.pop(wanted)
