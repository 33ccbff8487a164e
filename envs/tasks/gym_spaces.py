"""What a policy sees and does of a gymnasium environment: leaves of its spaces, images, actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Space, Tuple

from flowleap.datasets.images import Picture, recognise, too_many
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import ObsKey

OBSERVATION = "observations"


def several(given: Any) -> list[Any]:
    """An option that takes one or several."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        return list(given)
    return [given] if given else []


def children_of(space: Space[Any]) -> dict[str, tuple[Any, Space[Any]]]:
    """Name -> index and space, of what a Dict or a Tuple holds, named as Minari does; none of other spaces."""
    if isinstance(space, Dict):
        return {str(key).replace("/", "."): (key, child) for key, child in space.spaces.items()}
    if isinstance(space, Tuple):
        return {f"_index_{i}": (i, child) for i, child in enumerate(space.spaces)}
    return {}


def leaves_of(space: Space[Any], name: str = "") -> dict[str, Space[Any]]:
    """Dotted name -> the spaces that hold numbers."""
    children = children_of(space)
    if not children:
        return {name or OBSERVATION: space}
    found: dict[str, Space[Any]] = {}
    for key, (_, child) in children.items():
        found |= leaves_of(child, f"{name}.{key}" if name else key)
    return found


def values_of(space: Space[Any], obs: Any, name: str = "") -> dict[str, Any]:
    """Dotted name -> value, as far as the observation has what its space says."""
    children = children_of(space)
    if not children:
        return {name or OBSERVATION: obs}
    found: dict[str, Any] = {}
    for key, (index, child) in children.items():
        try:
            value = obs[index]
        except (KeyError, IndexError, TypeError):
            continue  # it will be missed
        found |= values_of(child, value, f"{name}.{key}" if name else key)
    return found


def chosen_names(task: str, keys: Any, leaves: Mapping[str, Space[Any]]) -> dict[str, str]:
    """The environment's observations to use -> their names; all by default, see `keys` of `gym_task.make`."""
    if not keys:
        return {key: key for key in leaves}
    keys = keys if isinstance(keys, dict) else {str(key): None for key in several(keys)}
    names = {key: name or key for key, name in keys.items()}
    for key in names:
        if key not in leaves:
            known = f"{', '.join(leaves)}{suggest(str(key), leaves)}"
            raise FlowleapError(f"{task}: keys: the environment observes no '{key}', only {known}")
    if len(set(names.values())) < len(names):
        raise FlowleapError(f"{task}: keys: two observations cannot have the same name")
    return {str(key): str(name) for key, name in names.items()}


def box_of(task: str, key: str, space: Space[Any]) -> Box:
    if not isinstance(space, Box):
        raise FlowleapError(
            f"{task}: observation '{key}' is a {type(space).__name__}, only Box is read; "
            "task.kwargs.wrappers=[FlattenObservation] makes all of them one Box (Discrete: one-hot), "
            "task.kwargs.keys=[...] names those to use"
        )
    return space


def picture_of(task: str, key: str, space: Box) -> Picture | None:
    """How an observation is an image; None where it is none."""
    column = ObsKey(space.shape, space.dtype.name)

    def numbers() -> np.ndarray:
        """The ends of what the space allows, and a third between them: whole only where brightness ends at 255."""
        low, high = space.low.astype(np.float64), space.high.astype(np.float64)
        with np.errstate(invalid="ignore"):
            return np.stack([low, low + (high - low) / 3, high])

    picture = recognise(key, column, numbers)
    leave_out = "task.kwargs.keys=[...] names the observations to use"
    if space.shape[0:1] == (4,) and isinstance(picture, Picture) and picture.channel_axis == 0:
        # Of frames of one channel; datasets hold RGBA so, environments do not.
        picture = "a stack of four frames? Leave that to n_obs_steps, and observe one frame"
    elif isinstance(picture, Picture) and not space.is_bounded() and picture.key.kind != "depth":
        picture = "an image without bounds, which would tell brightness from 0 to 1 from that from 0 to 255"
    problem = picture if isinstance(picture, str) else None if picture else too_many(column)
    if problem:
        raise FlowleapError(f"{task}: observation '{key}' {space.shape} is {problem}; {leave_out}")
    return picture if isinstance(picture, Picture) else None


def frame_box(space: Box, picture: Picture | None) -> Box:
    """The space of one observation key as the policy sees it."""
    if picture:
        far = picture.key.range[1] if picture.key.range else 255
        return Box(0, far, picture.key.shape, np.dtype(picture.key.dtype).type)
    low, high = (np.atleast_1d(bound).astype(np.float32) for bound in (space.low, space.high))
    return Box(low, high, dtype=np.float32)


def action_box(task: str, space: Space[Any]) -> Box:
    if not isinstance(space, Box):
        raise FlowleapError(
            f"{task}: actions are a {type(space).__name__}, and flows move numbers: only Box actions are taken; a "
            "wrapper of your own may offer a Box and choose by its largest number (task.kwargs.wrappers=[module:Class])"
        )
    if len(space.shape) != 1 or space.dtype.kind != "f":
        raise FlowleapError(
            f"{task}: actions must be a Box of one axis of floats, not {space}; a wrapper of your own may offer one "
            "(task.kwargs.wrappers=[module:Class])"
        )
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    return Box(low, high, dtype=np.float32)
