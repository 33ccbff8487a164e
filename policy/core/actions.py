"""Actions in another convention than the environment's: relative to an observation, or with other rotations.

Data may be converted to train better (`flowleap convert rotation=6d actions_as=delta`). The Spec of what is trained on
keeps how it was before; `OwnActions` turns what the policy says back into what environment or robot take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.rotations import Rotations, parse_dims
from flowleap.policy.core.spec import ActionConvention, Spec

CONVENTION = ("rotation", "rotation_dims", "rotation_of", "relative_to", "relative_dims", "relative_of")
"""Entries of `Spec.source` that tell of a conversion."""


class Relative:
    """The change between absolute actions and those relative to an observation of the same frame.

    Args:
        spec: the Spec of the actions there are.
        target: `delta`, action minus observation, or `absolute`, their sum.
        key: the observation; by default the one recorded in the Spec.
        dims: the numbers of an action that are meant, such as `[0:6]` without the gripper; by default those recorded,
            else all. The observation has as many numbers, or as many as the action.

    Attributes:
        spec: the Spec of the changed actions. Its `source` has `relative_to`, the observation; `relative_dims`; and
            `relative_of`, the convention that the environment takes.

    Raises:
        FlowleapError: the actions are as wanted already, or the observation does not fit.
    """

    def __init__(self, spec: Spec, target: str, key: str | None = None, dims: Any = None) -> None:
        source = spec.source
        if target not in get_args(ActionConvention):
            raise FlowleapError(f"actions_as={target} is none of {', '.join(get_args(ActionConvention))}")
        if spec.action_convention == target:
            raise FlowleapError(
                f"the actions are {target} already: leave actions_as={target} out (action_convention=... corrects "
                "what the dataset says of them)"
            )
        recorded = source.get("relative_to")
        if key is None and recorded is not None and recorded not in spec.observations:
            raise FlowleapError(f"the actions are relative to '{recorded}', which has to be observed")
        key = key or recorded
        if key not in spec.observations:
            known = f"{', '.join(spec.observations)}{suggest(str(key), spec.observations)}"
            raise FlowleapError(
                f"actions_as={target} needs relative_to=KEY, the observed position that the actions command; "
                f"{f'{key!r} is none of' if key else 'observed are'} {known}"
            )
        if source.get("rotation") != source.get("rotation_of"):
            raise FlowleapError(
                "first actions_as=..., then rotation=...: these rotations are converted already"
            )
        if dims is None:
            dims = source.get("relative_dims", [[0, spec.action_dim]])
        places = parse_dims(dims, spec.action_dim, "relative_dims")
        self.key: str = key
        self._index = np.concatenate([np.arange(first, last) for first, last in places])
        size = spec.observations[key].size
        if size not in (len(self._index), spec.action_dim):
            raise FlowleapError(
                f"observation '{key}' has {size} numbers, {len(self._index)} of an action are to be relative to it; "
                "relative_dims=[0:3] names others"
            )
        self._rows = self._index if size == spec.action_dim else np.arange(size)
        self._sign = -1 if target == "delta" else 1
        told = {"relative_to": key, "relative_dims": [list(place) for place in places]}
        told["relative_of"] = source.get("relative_of", spec.action_convention)
        convention: Any = target
        self.spec = replace(spec, action_convention=convention, source={**source, **told})

    def __call__(self, actions: NDArray[Any], observed: NDArray[Any]) -> NDArray[Any]:
        """Actions [..., A] with what was observed in their frames, [..., *shape], in the dtype of `actions`."""
        changed = np.array(actions)
        state = np.asarray(observed).reshape(*actions.shape[:-1], -1)[..., self._rows]
        changed[..., self._index] = actions[..., self._index] + self._sign * state
        return changed


class OwnActions:
    """Turns a policy's actions into those of its environment or robot, by what its Spec says of them; numpy only.

        own = OwnActions(policy.spec)
        robot.command(own(chunk[0, i], {"qpos": robot.qpos()}))     # the state right before the action

    Euler angles alone ask scipy.

    Attributes:
        changes: whether there is anything to do.
        spec: the Spec with the actions of the environment.

    Raises:
        FlowleapError: the Spec does not fit itself.
    """

    def __init__(self, spec: Spec) -> None:
        source = spec.source
        self._rotations = self._relative = None
        if source.get("rotation_of") not in (None, source.get("rotation")):
            self._rotations = Rotations(spec, source["rotation_of"])
        elif source.get("rotation") == "6d" and "rotation_of" not in source:  # written before 0.2
            self._rotations = Rotations(spec, "axis_angle")
        if self._rotations:
            spec = self._rotations.spec
        if source.get("relative_of") not in (None, spec.action_convention):
            self._relative = Relative(spec, source["relative_of"])
            spec = self._relative.spec
        self.spec = spec
        self.changes = bool(self._rotations or self._relative)

    def __call__(self, actions: NDArray[Any], obs: Mapping[str, NDArray[Any]] | None = None) -> NDArray[Any]:
        """Actions [..., A] -> [..., A']; `obs` are observations of the same frames, {key: [..., *shape]}."""
        if self._rotations:
            actions = self._rotations(actions)
        if self._relative:
            if obs is None or self._relative.key not in obs:
                raise FlowleapError(
                    f"these actions are relative to '{self._relative.key}': give what is observed"
                )
            actions = self._relative(actions, obs[self._relative.key])
        return actions
