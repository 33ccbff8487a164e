"""Speed of the evaluator: steps per second with a policy that does nothing, over those of plain loops around env.step.

The plain loop runs the same episodes: once alone, and once in as many processes as there are cores, which is what the
machine can do at most. All are taken in turn in one run, so that a slow moment of the machine hits all alike. The start
of processes, and their ends, when some have nothing left to do, do not count.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flowleap.envs.chunk_env import action_bounds
from flowleap.envs.registry import make_task
from flowleap.envs.rollout import Episode, rollout
from flowleap.envs.task import Observation, Task
from flowleap.envs.workers import default_count
from flowleap.policy.core.spec import WINDOW
from flowleap.scripts.common import plain, say, show_table


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Run the measurements, print them, return them."""
    cores, workers = default_count(None), cfg.n_envs or default_count(None, wait_for_caller=True)
    measured = {name: _measure_task(make_task(name), cfg, cores, workers) for name in cfg.tasks}
    rows = [
        (
            name,
            f"{own['serial_steps_per_s']:.0f}",
            f"{own['processes_steps_per_s']:.0f}",
            f"{own['evaluator_steps_per_s']:.0f}",
            f"{100 * own['share_of_serial']:.1f} %",
            f"{100 * own['share_of_processes']:.1f} %",
            f"{own['driver_ms_per_chunk']:.3f}",
        )
        for name, own in measured.items()
    ]
    head = ("task", "one loop, steps/s", f"{cores} loops", f"{workers} workers")
    more = (f"of {cores} x one loop", f"of {cores} loops", "driver, CPU ms a chunk")
    show_table((*head, *more), rows, f"{cfg.episodes} episodes, a policy that does nothing")
    for name, own in measured.items():
        say(f"{name}: the first worker started within {own['start_s']:.2f} s; the rates leave starts out")
    return {"config": plain(cfg), "cores": cores, "workers": workers, "measured": measured}


def _measure_task(task: Task, cfg: DictConfig, cores: int, workers: int) -> dict[str, Any]:
    seeds = range(cfg.seed, cfg.seed + cfg.episodes)
    action = _still(task)
    shares = [list(seeds[i::cores]) for i in range(cores)]
    runs: list[dict[str, float]] = []
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        for _ in range(cfg.repeats):
            alone = _plain_loop(task, action, seeds)
            given = [(task, action, share) for share in shares]
            together = pool.starmap(_plain_loop, given, chunksize=1)
            runs.append(
                {
                    "serial_steps_per_s": alone["steps"] / alone["seconds"],
                    "env_step_per_s": alone["steps"] / alone["step_seconds"],
                    "processes_steps_per_s": sum(each["steps"] / each["seconds"] for each in together),
                    **_evaluator(task, action, seeds, workers),
                }
            )
    medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    # Within a run, so that what the machine did meanwhile cancels.
    shares_of = {
        "share_of_serial": [r["evaluator_steps_per_s"] / r["serial_steps_per_s"] / cores for r in runs],
        "share_of_processes": [r["evaluator_steps_per_s"] / r["processes_steps_per_s"] for r in runs],
        "share_of_env_step": [r["evaluator_steps_per_s"] / r["env_step_per_s"] / cores for r in runs],
    }
    return {**medians, **{key: statistics.median(each) for key, each in shares_of.items()}, "runs": runs}


def _still(task: Task) -> np.ndarray:
    """An action [A] in the middle of its bounds."""
    bounds = action_bounds(task)
    middle = np.zeros(task.spec.action_dim) if bounds is None else bounds.mean(axis=0)
    return middle.astype(np.float32)


def _plain_loop(task: Task, action: np.ndarray, seeds: Any) -> dict[str, float]:
    """Steps, and seconds of whole episodes, and of steps alone, in a loop without flowleap's evaluator."""
    steps, inside = 0, 0.0
    with closing(task.make_env()) as env:
        start = time.perf_counter()
        for seed in seeds:
            env.reset(seed=seed)
            since = time.perf_counter()
            for _ in range(task.max_steps):
                _, _, terminated, truncated, _ = env.step(action)
                steps += 1
                if terminated or truncated:
                    break
            inside += time.perf_counter() - since
        seconds = time.perf_counter() - start
    return {"steps": steps, "seconds": seconds, "step_seconds": inside}


def _evaluator(task: Task, action: np.ndarray, seeds: range, n_envs: int) -> dict[str, float]:
    """Rates and CPU seconds of this process for each chunk, while all workers have work.

    That is after the first episode of each, so that all have started, until nothing waits any more.
    """
    spec = task.spec.with_window(**asdict(WINDOW))
    chunk = np.tile(action, (1, spec.n_action_steps, 1))
    calls: list[tuple[float, float]] = []
    finished: dict[int, float] = {}

    def still(obs: Observation, noise: np.ndarray) -> np.ndarray:
        calls.append((time.perf_counter(), time.process_time()))
        return chunk

    def note(episode: Episode) -> None:
        finished[episode.seed] = time.perf_counter()

    start = time.perf_counter()
    result = rollout(task, still, spec, seeds, n_envs, on_progress=note)
    since, until = max(finished[seed] for seed in seeds[:n_envs]), sorted(finished.values())[-n_envs]
    inside = [call for call in calls if since < call[0] <= until]
    seconds = inside[-1][0] - inside[0][0]
    steps = sum(episode.length for episode in result.episodes) * (len(inside) - 1) / len(calls)
    return {
        "evaluator_steps_per_s": steps / seconds,
        "start_s": calls[0][0] - start,
        "driver_ms_per_chunk": 1e3 * (inside[-1][1] - inside[0][1]) / (len(inside) - 1),
    }
