"""Rotations of recorded actions: axis-angle, matrix, and the 6-D representation of Zhou et al. (arXiv 1812.07035).

Axis-angle jumps where a rotation passes pi, which a network fits badly; the first two rows of the rotation matrix,
flattened, are continuous. Everything works over leading axes, in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError, optional_import
from flowleap.policy.core.spec import Spec

Representation = Literal["axis_angle", "6d"]
_ARM = {"axis_angle": 7, "6d": 10}  # position (3), rotation (3 or 6), gripper (1)
_SIZE = {"axis_angle": 3, "6d": 6}
_SMALL = 1e-6  # rows of a 6-D rotation that are shorter, once orthogonal, have no direction


def _scipy() -> Any:
    return optional_import("scipy.spatial.transform", extra="formats").Rotation


def matrix_from_axis_angle(vector: NDArray) -> NDArray[np.float64]:
    """[..., 3] (rad) -> [..., 3, 3]."""
    matrices: NDArray[np.float64] = _scipy().from_rotvec(np.reshape(vector, (-1, 3))).as_matrix()
    return matrices.reshape(*np.shape(vector), 3)


def axis_angle_from_matrix(matrix: NDArray) -> NDArray[np.float64]:
    """[..., 3, 3] -> [..., 3] (rad, length at most pi)."""
    vectors: NDArray[np.float64] = _scipy().from_matrix(np.reshape(matrix, (-1, 3, 3))).as_rotvec()
    return vectors.reshape(np.shape(matrix)[:-1])


def six_from_matrix(matrix: NDArray) -> NDArray[np.float64]:
    """[..., 3, 3] -> [..., 6]: the first two rows."""
    m = np.asarray(matrix, np.float64)
    return m[..., :2, :].reshape(*m.shape[:-2], 6)


def matrix_from_six(six: NDArray) -> NDArray[np.float64]:
    """[..., 6] -> [..., 3, 3]: Gram-Schmidt on the two rows, then their cross product.

    Raises:
        FlowleapError: the two rows are parallel, or one is zero.
    """
    six = np.asarray(six, np.float64)
    a, b = six[..., :3], six[..., 3:]
    length = np.linalg.norm(a, axis=-1, keepdims=True)
    a = a / np.where(length == 0, 1.0, length)
    b = b - np.sum(a * b, axis=-1, keepdims=True) * a
    rest = np.linalg.norm(b, axis=-1, keepdims=True)
    if np.any(length < _SMALL) or np.any(rest < _SMALL):
        raise FlowleapError("a 6-D rotation needs two rows that are not parallel")
    b = b / rest
    return np.stack([a, b, np.cross(a, b)], axis=-2)


def convert_rotations(actions: NDArray, source: Representation, target: Representation) -> NDArray:
    """Change the rotations of actions made of arms: position (3), rotation, gripper (1).

    Args:
        actions: [..., 7 n] with axis-angle or [..., 10 n] with 6-D rotations, for n arms.
        source, target: representation there is, and wanted.

    Returns:
        [..., 10 n] or [..., 7 n], in the dtype of `actions`.
    """
    size = _SIZE[source]
    arms = actions.reshape(*actions.shape[:-1], -1, _ARM[source])
    position, rotation, gripper = arms[..., :3], arms[..., 3 : 3 + size], arms[..., 3 + size :]
    matrix = matrix_from_axis_angle(rotation) if source == "axis_angle" else matrix_from_six(rotation)
    turned = six_from_matrix(matrix) if target == "6d" else axis_angle_from_matrix(matrix)
    out = np.concatenate([position, turned.astype(actions.dtype), gripper], axis=-1)
    return out.reshape(*actions.shape[:-1], -1)


class Rotations:
    """The change of a dataset's action rotations.

    Args:
        spec: the Spec of the actions there are; `source["rotation"]` says how they are represented (axis_angle if
            it says nothing).
        target: the representation wanted.

    Attributes:
        spec: the Spec of the changed actions, whose `source["rotation"]` is `target`.

    Raises:
        FlowleapError: an unknown representation, the one there is already, or actions of another length than
            7 or 10 an arm.
    """

    def __init__(self, spec: Spec, target: str) -> None:
        source = spec.source.get("rotation", "axis_angle")
        if target not in _ARM or source not in _ARM:
            raise FlowleapError(f"rotation={target} is none of {', '.join(_ARM)}")
        if source == target:
            raise FlowleapError(f"the actions have {source} rotations already: leave rotation={target} out")
        arms, rest = divmod(spec.action_dim, _ARM[source])
        if rest:
            raise FlowleapError(
                f"rotation={target} needs actions of {_ARM[source]} numbers an arm (position 3, rotation "
                f"{_SIZE[source]}, gripper 1), these have {spec.action_dim}"
            )
        self._source, self._target = cast(Representation, source), cast(Representation, target)
        self.spec = replace(spec, action_dim=arms * _ARM[target], source={**spec.source, "rotation": target})

    def __call__(self, actions: NDArray) -> NDArray:
        """[T, A] -> [T, A']."""
        return convert_rotations(actions, self._source, self._target)
