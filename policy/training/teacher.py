"""The frozen policy that a distillation learns from: loaded, checked, and what its student takes over."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowleap.policy.checkpoint import WEIGHTS
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.hub import policy_folder
from flowleap.policy.policy import Policy

_SAME = ("prefix", "normalizer")  # parts of the policy that student and teacher share
_NETWORK = ("backbone", "encoder", "head_sigma")


@dataclass(frozen=True)
class Teacher:
    """A policy that teaches another.

    Attributes:
        policy: its averaged weights, in eval mode.
        notes: `path`, `sha256` of its weights and the `step` they were taken at: what its student notes of it.
    """

    policy: Policy
    notes: dict[str, Any]


def teacher_for(student: Policy, noted: Mapping[str, Any] | None = None) -> Teacher | None:
    """The teacher that the student's objective names; None where it learns without one.

    The student takes over its normaliser, and its weights where `objective.start=teacher`.

    Args:
        student: a policy that is about to be trained.
        noted: the `notes` on the teacher of a run that goes on.

    Raises:
        FlowleapError: no teacher is named; it has no velocity field, or another Spec, normaliser or network; or it is
            not the one of the run that goes on.
    """
    options = student.objective.options
    if "teacher" not in options:
        return None
    if not options["teacher"]:
        raise FlowleapError(
            f"objective={student.objective.name} learns from a trained policy: add objective.teacher=RUN, a run with "
            "objective=flow_matching on the same data"
        )
    place = f"objective.teacher={options['teacher']}"
    try:
        policy = Policy.load(policy_folder(options["teacher"]))
    except FlowleapError as error:
        moved = "" if noted is None else "; if it is elsewhere now, add +objective.teacher=PLACE"
        raise FlowleapError(f"{place}: {error}{moved}") from error
    _check(student, policy, place)
    student.normalizer.load_state_dict(policy.normalizer.state_dict())
    if options["start"] == "teacher":
        _check_parts(student, policy, _NETWORK, place, "; objective.start=random begins with other weights")
        student.load_state_dict(policy.state_dict())
    assert policy.checkpoint is not None
    digest = hashlib.sha256((policy.checkpoint / WEIGHTS).read_bytes()).hexdigest()
    notes = {"path": str(policy.checkpoint), "sha256": digest, "step": policy.info.get("step")}
    if noted is not None and noted.get("sha256") != digest:
        raise FlowleapError(
            f"{place} is not the teacher that the run began with, which was {noted.get('path')} at step "
            f"{noted.get('step')}: name that one"
        )
    return Teacher(policy.requires_grad_(False), notes)


def _check(student: Policy, teacher: Policy, place: str) -> None:
    """Raise unless the teacher has a velocity for what the student sees and does."""
    if not teacher.objective.sampling.guided:
        raise FlowleapError(
            f"{place} was trained with objective={teacher.objective.name}, which learns no velocity field; train one "
            "with objective=flow_matching"
        )
    teacher.spec.require_match(student.spec, place, "the data")
    mine, theirs = student.spec, teacher.spec
    for name in ("n_obs_steps", "horizon"):
        if getattr(mine, name) != getattr(theirs, name):
            raise FlowleapError(
                f"{place} has {name}={getattr(theirs, name)}, the student {getattr(mine, name)}; give it the teacher's"
            )
    if list(mine.observations) != list(theirs.observations):
        raise FlowleapError(
            f"{place} observes {list(theirs.observations)}, the student {list(mine.observations)}: "
            "keys=[...] chooses the teacher's"
        )
    _check_parts(student, teacher, _SAME, place, "")


def _check_parts(student: Policy, teacher: Policy, parts: tuple[str, ...], place: str, remedy: str) -> None:
    for part in parts:
        mine, theirs = student.config[part], teacher.config[part]
        if mine != theirs:
            raise FlowleapError(
                f"{place} has another {part} than the student: {_difference(theirs, mine)}; give it the teacher's"
                f"{remedy}"
            )


def _difference(theirs: Any, mine: Any) -> str:
    """What differs, by option where these are."""
    if not (isinstance(theirs, Mapping) and isinstance(mine, Mapping)):
        return f"{theirs} instead of {mine}"
    keys = [key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)]
    return ", ".join(f"{key}={theirs.get(key)} instead of {mine.get(key)}" for key in keys)
