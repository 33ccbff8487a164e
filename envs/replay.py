"""Open-loop replay: recorded actions in the simulator, from the recorded initial state.

What a recording did and what the simulator makes of it must agree before a policy is trained on the one and
evaluated in the other. Disagreement has many causes (versions, another controller, skipped frames, a wrong reset) and
one symptom: the replay does not reach what the recording reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from flowleap.datasets.columns import ACTION
from flowleap.datasets.dataset import Dataset
from flowleap.envs.checks import check_step
from flowleap.envs.demonstrate import noise_stream
from flowleap.envs.statistics import rate
from flowleap.envs.task import SCENE, Observation, Task
from flowleap.envs.task_data import task_columns
from flowleap.envs.workers import env_failures
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.versions import package_versions

_REWARDS = ("reward", "rewards")
_FIGURES = ("max_reward", "sum_reward")


@dataclass(frozen=True)
class Replayed:
    """One replayed episode beside its recording.

    Attributes:
        episode: its index in the dataset.
        length: actions executed.
        outcome: `success` (any step), `max_reward`, `sum_reward`, the task's further outcomes and its measures.
        recorded: those of them that the dataset tells.
        reached: the simulator reached what was recorded (see `reaches`).
        start_difference: largest difference between the first observation and the recorded one, in its unit.
        mean_difference: mean over frames of the largest difference.
    """

    episode: int
    length: int
    outcome: dict[str, float]
    recorded: dict[str, float] = field(default_factory=dict)
    reached: bool = False
    start_difference: float = 0.0
    mean_difference: float = 0.0


def replay(
    task: Task,
    env: gymnasium.Env[Any, Any],
    actions: np.ndarray,
    start: Mapping[str, Any] | int,
    action_noise: float = 0.0,
) -> tuple[dict[str, float], Observation]:
    """Execute `actions` [T, A] from a recorded state (the first frame of its columns) or from a seed.

    The episode goes on after success or failure, as long as the recording does. `action_noise` adds the noise that
    `flowleap collect` executed and did not record; it needs a seed.

    Returns:
        the outcome (see `Replayed`), and the observations before each action, key -> [T, *shape].

    Raises:
        FlowleapError: the simulator fails, or actions do not fit it.
    """
    bounds: Any = env.action_space
    if actions.shape[1:] != bounds.shape:
        raise FlowleapError(
            f"task {task.name}: actions have shape {actions.shape[1:]}, expected {bounds.shape}"
        )
    executed = actions
    if action_noise:
        assert isinstance(start, int)
        executed = actions + action_noise * noise_stream(start).standard_normal(actions.shape)
    executed = np.clip(executed, bounds.low, bounds.high).astype(np.float32)
    rewards: list[float] = []
    frames: list[Observation] = []
    flags = dict.fromkeys(("success", *task.scoring.outcomes), False)
    measures = dict.fromkeys(task.scoring.measures, -np.inf)
    spaces: Any = env.observation_space
    with env_failures(task.name):
        if isinstance(start, int):
            obs, _ = env.reset(seed=start)
        else:
            assert task.recording.reset_to is not None
            obs = task.recording.reset_to(env, start)
        for action in executed:
            frames.append(obs)
            obs, reward, _, _, info = env.step(action)
            rewards.append(float(reward))
            check_step(task.name, spaces, obs, len(rewards), rewards[-1])
            for name in flags:
                flags[name] |= bool(info[name])
            for name in measures:
                measures[name] = max(measures[name], float(info[name]))
    outcome = {**flags, "max_reward": max(rewards), "sum_reward": sum(rewards), **measures}
    return outcome, {key: np.stack([frame[key] for frame in frames]) for key in frames[0]}


def replay_dataset(
    task: Task,
    source: Dataset,
    episodes: int,
    tolerance: float,
    on_progress: Callable[[int, str], None] | None = None,
) -> list[Replayed]:
    """Replay the first `episodes` episodes of a dataset one by one; only one is in memory.

    Initial states come from the seeds of episodes of this very task, else from the columns that it can be reset to.

    Args:
        episodes: at most as many as `source`, the opened dataset, has.
        tolerance: see `reaches`.
        on_progress: called after each episode with their number and a text.

    Raises:
        FlowleapError: no initial states, a column is missing, or the simulator fails.
    """
    keys, translate = task_columns(task, source, list(source.fields), match=False)
    states = _state_columns(task, source)
    rewards = [key for key in source.extra if key in _REWARDS]
    wanted = list(dict.fromkeys([*keys, *(states or ()), *rewards]))
    noise = 0.0 if states else float(source.attrs.get("action_noise", 0.0))
    succeeded = source.attrs.get("successes") == source.n_episodes
    rows: list[Replayed] = []
    with env_failures(task.name):
        env = task.make_env()
    with closing(env):
        for index in range(episodes):
            columns = source.episode(index, wanted)
            own = translate({key: columns[key] for key in keys})
            seed = source.seed(index)
            if states is None and seed is None:
                raise FlowleapError(f"'{source.path}', {source.label(index)}: no seed was recorded")
            start: Mapping[str, Any] | int = seed or 0
            if states is not None:
                scene = source.scene(index)
                start = {key: columns[key][0] for key in states} | ({SCENE: scene} if scene else {})
            outcome, seen = replay(task, env, own[ACTION], start, noise)
            known = recorded_outcome(task, columns, succeeded)
            off = differences(seen, own)
            reached = reaches(task, outcome, known, tolerance)
            rows.append(Replayed(index, len(off), outcome, known, reached, float(off[0]), float(off.mean())))
            if on_progress:
                on_progress(len(rows), f"reached {sum(row.reached for row in rows)}/{len(rows)}")
    return rows


def _state_columns(task: Task, source: Dataset) -> tuple[str, ...] | None:
    """The columns to reset to; None where the dataset has the seeds of episodes of this very task.

    Raises:
        FlowleapError: it has neither.
    """
    origin, seeded = source.spec.source, source.seed(0) is not None
    own = task.spec.source.get("env_id") if task.name.startswith("gym/") else task.name
    if seeded and (task.name == origin.get("task") or own == origin.get("env")):
        return None
    states = task.recording.state_keys if task.recording.reset_to else ()
    for keys in states:
        if set(keys) <= set(source.fields):
            return keys
    cannot = "cannot be reset to a recorded state, only to a seed"
    if states:
        cannot = f"needs the column(s) {' or '.join(' + '.join(keys) for keys in states)}"
    reason = f"'{source.path}' has no seeds (`flowleap collect` stores them)"
    reason += ": this dataset cannot be replayed there"
    if seeded:
        recorded = origin.get("task") or origin.get("env") or "an unknown task"
        reason = f"the seeds in '{source.path}' are of {recorded}"
    raise FlowleapError(f"task {task.name} {cannot}, and {reason}")


def recorded_outcome(task: Task, columns: Mapping[str, np.ndarray], succeeded: bool) -> dict[str, float]:
    """What the columns of one recorded episode, key -> [T, *shape], say of its outcome.

    `succeeded`: the dataset as a whole says that every episode did.
    """
    known: dict[str, float] = {"success": True} if succeeded else {}
    for key in _REWARDS:
        if key in columns:
            rewards = np.asarray(columns[key], np.float64)
            known |= {"max_reward": float(rewards.max()), "sum_reward": float(rewards.sum())}
    return known | (task.recording.outcome(columns) if task.recording.outcome else {})


def reaches(
    task: Task, outcome: Mapping[str, float], recorded: Mapping[str, float], tolerance: float
) -> bool:
    """Whether a replay reached what the recording did, by the task's own metric where the recording tells it.

    Success: a recorded one needs a replayed one. A reward or return: at least the recorded one, less `tolerance`
    times its size. Where nothing is recorded: whether the replay succeeds.
    """
    for metric in (task.scoring.metric, "success", *_FIGURES):
        if metric in recorded:
            if metric == "success":
                return bool(outcome[metric]) or not recorded[metric]
            return outcome[metric] >= recorded[metric] - tolerance * abs(recorded[metric])
    return bool(outcome["success"])


def differences(seen: Mapping[str, np.ndarray], recorded: Mapping[str, np.ndarray]) -> np.ndarray:
    """Largest absolute difference of each frame [T] between observations, key -> [T, *shape]."""
    parts = [np.abs(frames.astype(np.float64) - recorded[key]) for key, frames in seen.items()]
    return np.max([part.reshape(len(part), -1).max(axis=1) for part in parts], axis=0)


def version_differences(*recorded: Any) -> list[str]:
    """Name every package whose installed version is not the recorded one, given dicts of package -> version."""
    versions = {k: v for part in recorded if isinstance(part, Mapping) for k, v in part.items() if v}
    installed = package_versions(*versions)
    return [
        f"{name} {version} when recorded, {installed[name] or 'not installed'} here"
        for name, version in versions.items()
        if installed[name] != version
    ]


def replay_summary(task: Task, rows: Sequence[Replayed]) -> dict[str, Any]:
    """Aggregate the episodes.

    Returns:
        `reached`, and per outcome what the replay did and, where known for all episodes, what was recorded: bools as
        {count, n, rate, interval}, rewards as {mean, min}; `start_difference` {max}, `mean_difference` {mean}.
    """
    reached = rate([row.reached for row in rows])
    report: dict[str, Any] = {"task": task.name, "episodes": len(rows), "reached": reached}
    flags = ["success", *task.scoring.outcomes] if task.scoring.reports_success else [*task.scoring.outcomes]
    for name in (*flags, *_FIGURES, *task.scoring.measures):
        replayed = [row.outcome[name] for row in rows]
        report[name] = {"replayed": _describe(replayed, name in flags)}
        if all(name in row.recorded for row in rows):
            report[name]["recorded"] = _describe([row.recorded[name] for row in rows], name in flags)
    report["start_difference"] = {"max": max(row.start_difference for row in rows)}
    report["mean_difference"] = {"mean": float(np.mean([row.mean_difference for row in rows]))}
    return report


def _describe(values: Sequence[float], flags: bool) -> dict[str, Any]:
    if flags:
        return rate([bool(value) for value in values])
    return {"mean": float(np.mean(values)), "min": float(np.min(values))}
