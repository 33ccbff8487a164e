"""Demonstrations on the disk: a task's expert drives the simulator, its successes are written as an episode store."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from typing import Any

from flowleap.datasets.formats.zarr_store import EpisodeWriter
from flowleap.envs.demonstrate import demonstrations
from flowleap.envs.task import Task
from flowleap.envs.workers import TIMEOUT
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.versions import package_versions


def collect(
    task: Task,
    out: str | os.PathLike[str],
    episodes: int,
    seed: int = 0,
    n_envs: int = 1,
    action_noise: float = 0.0,
    hold_steps: int = 0,
    max_attempts: int | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    worker_timeout: float = TIMEOUT,
    cluster: str | None = None,
) -> dict[str, Any]:
    """Write `episodes` successes of the expert of `task` into the zarr store `out`.

    Attempt i starts from `seed + i`; the store is the same whatever `n_envs`. Whatever ends this early, Ctrl-C
    included, keeps the successes so far.

    Args:
        n_envs: processes; 1 runs in this one.
        action_noise: standard deviation of Gaussian noise on the executed action, which is not recorded.
        hold_steps: frames that are recorded after the first success.
        max_attempts: attempts after which to give up; by default, twice as many as `episodes`.
        overwrite: replace a store at `out`.
        on_progress: called with the numbers of successes and attempts after each attempt.
        worker_timeout, cluster: see `demonstrations`.

    Returns:
        The attributes of the store, with `attempts` and `successes`, and `frames`, their number.

    Raises:
        FlowleapError: no expert, `out` exists, or too few attempts succeed.
    """
    max_attempts = max_attempts or 2 * episodes
    attempts = demonstrations(task, seed, n_envs, action_noise, hold_steps, worker_timeout, cluster)
    attrs: dict[str, Any] = {
        "task": task.name,
        "expert": task.demonstrator,
        "first_seed": seed,
        "seed_note": task.seed_note,
        "action_noise": action_noise,
        "action_label": "the expert's own action, without the noise that was executed",
        "hold_steps": hold_steps,
        "versions": package_versions("flowleap", *task.spec.source.get("versions", ())),
        "attempts": 0,
        "successes": 0,
    }
    columns = task.recording.info_columns
    with EpisodeWriter(out, task.spec, attrs, overwrite, extra=columns) as writer, closing(attempts):
        for attempt in attempts:
            if attempt.success:
                writer.add(attempt.columns, seed=attempt.seed)
            attrs["attempts"] += 1
            attrs["successes"] = writer.n_episodes
            writer.attrs.update(attrs)
            if on_progress:
                on_progress(attrs["successes"], attrs["attempts"])
            if attrs["successes"] == episodes or attrs["attempts"] == max_attempts:
                break
        if not attrs["successes"]:
            raise FlowleapError(f"the expert of {task.name} failed in all of {max_attempts} attempts")
    if attrs["successes"] < episodes:
        raise FlowleapError(
            f"only {attrs['successes']} of {max_attempts} attempts at {task.name} succeeded (kept in '{out}'); "
            "lower action_noise or allow more attempts"
        )
    return {**attrs, "frames": writer.n_frames}
