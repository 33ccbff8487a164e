"""Which columns a policy may observe, and why not the others: one rule for all formats.

What is written beside the observations for people and programs (time stamps, indices, rewards, ends, stages, actions
under another name, initial states) would be trained on without a word, and be missing or another on the robot: a
policy that has seen the reward of a frame has seen its action, and one that has seen the date fails next month.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from flowleap.datasets.images import too_many
from flowleap.policy.core.spec import ObsKey

_TIME = {"timestamp", "timestamps", "stamp", "stamps", "time", "times", "clock", "secs", "nsecs", "datetime"}
_INDEX = {"index", "idx", "indices", "id", "ids", "uuid", "number", "count", "counter"}
_COUNTED = {
    "step",
    "steps",
    "timestep",
    "timesteps",
    "frame",
    "frames",
    "episode",
    "episodes",
    "trajectory",
    "traj",
}
_REWARD = {
    "reward",
    "rewards",
    "return",
    "returns",
    "rtg",
    "discount",
    "discounts",
    "advantage",
    "advantages",
}
_END = {"done", "dones", "terminal", "terminals", "terminated", "termination", "terminations", "terminate"}
_END |= {"truncated", "truncation", "truncations", "timeout", "timeouts", "success", "successes"}
_STAGE = {"stage", "stages", "phase", "phases", "subtask", "subtasks", "intervention", "interventions"}
_STAGE |= {"annotation", "annotations", "label", "labels"}
_ACTION = {"action", "actions"}
_EARLIER = {"prev", "previous", "last", "past", "history"}
_INITIAL = {"init", "initial"}
_EDGE = {("demo", "start"), ("demo", "end"), ("episode", "start"), ("episode", "end")}
_FIRSTS = {("is", "first"), ("is", "last"), ("is", "terminal"), ("is", "pad"), ("is", "padding")}


def words(name: str) -> list[str]:
    """The words of a column's name in lower case: `obs/robot0_eefPos` is obs, robot0, eef, pos."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^0-9a-z]+", parts.lower()) if word]


def no_observation(name: str) -> str | None:
    """Why a column of this name is no observation, in a few words; None where nothing speaks against it."""
    parts = words(name)
    if not parts:
        return None
    last, pairs = parts[-1], set(pairwise(parts))
    if last in _TIME or parts == ["t"]:
        return "a time"
    if last in _INDEX and (
        len(parts) == 1 or set(parts) & (_COUNTED | {"task", "demo", "env", "sample", "seed"})
    ):
        return "an index"
    if parts in (["seed"], ["global", "index"]) or (
        set(parts) <= _COUNTED | {"env", "sim"} and set(parts) & _COUNTED
    ):
        return "a count"
    if last in _REWARD or {"reward", "rewards"} & set(parts[-2:]):
        return "a reward"
    if last in _END or pairs & _FIRSTS:
        return "the end of an episode"
    if set(parts) & _STAGE:
        return "a stage or a label"
    if set(parts) & _ACTION and not set(parts) & _EARLIER:
        return "an action"
    if parts[0] == "next" and len(parts) > 1:
        return "one frame ahead"
    if set(parts[:1]) & _INITIAL or pairs & _EDGE:
        return "an initial or final state"
    return None


def split(
    columns: Mapping[str, ObsKey], odd: Mapping[str, str] | None = None
) -> tuple[dict[str, ObsKey], dict[str, ObsKey], dict[str, str]]:
    """Split columns into observations, others, and the reasons for these.

    Images and points are looked at whatever their name: none of the reasons has a picture. What is as large as an image
    and is none (`odd` says why, where it is known) is no observation unless it is asked for: nobody means a network of
    thousands of plain inputs.
    """
    reasons: dict[str, str] = {}
    for key, column in columns.items():
        reason = None if column.dense else no_observation(key) or (odd or {}).get(key) or too_many(column)
        if reason is not None:
            reasons[key] = reason
    observed = {key: column for key, column in columns.items() if key not in reasons}
    return observed, {key: columns[key] for key in reasons}, reasons


def explain(reasons: Mapping[str, str]) -> str:
    """One line: which columns are not observed, and why; empty where there are none."""
    grouped: dict[str, list[str]] = {}
    for key, reason in reasons.items():
        grouped.setdefault(reason, []).append(key)
    return "; ".join(f"{', '.join(keys)} ({reason})" for reason, keys in grouped.items())
