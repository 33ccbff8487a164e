"""Rotations in actions, and their 6-D representation (Zhou et al., arXiv 1812.07035).

Axis-angle jumps where a rotation passes pi, a quaternion where it changes its sign, Euler angles at their poles, which
a network fits badly; the first two rows of the rotation matrix, flattened, are continuous. Everything works over
leading axes, in float64. What a robot needs to turn 6-D back is numpy alone; the rest asks scipy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError, optional_import
from flowleap.policy.core.spec import Spec

SIZES = {"axis_angle": 3, "euler": 3, "quaternion": 4, "6d": 6, "matrix": 9}
"""Representation -> its numbers: rad; rad about the fixed axes x, y, z; x, y, z, w; two rows; three rows."""

Dims = list[tuple[int, int]]
"""Parts of an action, each from its first number to the one after its last."""

_BY_SIZE = {3: "axis_angle", 4: "quaternion", 6: "6d", 9: "matrix"}
_ARM = {"axis_angle": 7, "6d": 10}  # position (3), rotation (3 or 6), gripper (1)
_SMALL = 1e-6  # rows of a 6-D rotation that are shorter, once orthogonal, have no direction


def _scipy() -> Any:
    return optional_import("scipy.spatial.transform", extra="formats").Rotation


def matrix_from(kind: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """[..., SIZES[kind]] -> [..., 3, 3].

    Raises:
        FlowleapError: the numbers are no rotation (a quaternion of zeros, parallel rows).
    """
    flat = np.asarray(values, np.float64).reshape(-1, SIZES[kind])
    if kind == "6d":
        matrices = matrix_from_six(flat)
    else:
        rotation = _scipy()
        try:
            if kind == "axis_angle":
                turned = rotation.from_rotvec(flat)
            elif kind == "euler":
                turned = rotation.from_euler("xyz", flat)
            elif kind == "quaternion":
                turned = rotation.from_quat(flat)
            else:
                turned = rotation.from_matrix(flat.reshape(-1, 3, 3))
        except ValueError as error:
            raise FlowleapError(f"these are no rotations as {kind}: {error}") from error
        matrices = turned.as_matrix()
    return matrices.reshape(*np.shape(values)[:-1], 3, 3)


def from_matrix(kind: str, matrix: NDArray[Any]) -> NDArray[np.float64]:
    """[..., 3, 3] -> [..., SIZES[kind]]; angles up to pi, quaternions with w >= 0."""
    matrix = np.asarray(matrix, np.float64)
    lead = matrix.shape[:-2]
    if kind == "6d":
        return matrix[..., :2, :].reshape(*lead, 6)
    if kind == "matrix":
        return matrix.reshape(*lead, 9)
    if kind == "euler":
        angles: NDArray[np.float64] = _scipy().from_matrix(matrix.reshape(-1, 3, 3)).as_euler("xyz")
        return angles.reshape(*lead, 3)
    quaternion = _quaternion(matrix)
    if kind == "quaternion":
        return quaternion
    sine = np.linalg.norm(quaternion[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternion[..., 3:])
    return quaternion[..., :3] * np.where(sine > 0, angle / np.where(sine > 0, sine, 1.0), 2.0)


def matrix_from_six(six: NDArray[Any]) -> NDArray[np.float64]:
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


def _quaternion(m: NDArray[np.float64]) -> NDArray[np.float64]:
    """[..., 3, 3] -> [..., 4] (x, y, z, w >= 0).

    A matrix gives 4 q q^T; its row with the largest diagonal entry is q times a number well away from zero.
    """
    products = np.empty((*m.shape[:-2], 4, 4))
    products[..., :3, :3] = m + np.swapaxes(m, -1, -2)
    skew = m - np.swapaxes(m, -1, -2)
    products[..., 3, :3] = products[..., :3, 3] = np.stack(
        [skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1
    )
    trace = np.trace(m, axis1=-2, axis2=-1)
    for i in range(3):
        products[..., i, i] = 1 + 2 * m[..., i, i] - trace
    products[..., 3, 3] = 1 + trace
    best = np.argmax(np.diagonal(products, axis1=-2, axis2=-1), axis=-1)
    q = np.take_along_axis(products, best[..., None, None], axis=-2)[..., 0, :]
    q = q / np.linalg.norm(q, axis=-1, keepdims=True)
    positive: NDArray[np.float64] = np.where(q[..., 3:] < 0, -q, q)
    return positive


def parse_dims(given: Any, size: int, name: str) -> Dims:
    """Parts of an action of `size` numbers, from `[3:6,10:13]`, `3:6` or `[[3, 6]]`.

    Raises:
        FlowleapError: it is none of these, or the parts overlap or leave the action.
    """
    parts = [given] if isinstance(given, str) else given
    found: Dims = []
    try:
        for part in parts:
            first, last = map(int, part.split(":")) if isinstance(part, str) else map(int, part)
            found.append((first, last))
    except (TypeError, ValueError) as error:
        raise FlowleapError(
            f"{name}={given!r}: say which numbers of an action, such as {name}=[3:6]"
        ) from error
    ends = [0]
    for first, last in found:
        if not ends[-1] <= first < last <= size:
            raise FlowleapError(
                f"{name}={given!r}: parts must be in order, apart, and within the {size} numbers of an action"
            )
        ends.append(last)
    if not found:
        raise FlowleapError(f"{name} names no part of an action")
    return found


class Rotations:
    """The change of the rotations in actions.

    Args:
        spec: the Spec of the actions there are; `source` may say what their rotations are and where (see below).
        target: the representation wanted, one of `SIZES`.
        dims: where the rotations are, such as `[3:6]`; by default what the Spec says.
        kind: what they are; by default what the Spec says, else what their number of numbers says.

    Attributes:
        spec: the Spec of the changed actions. Its `source` has `rotation`, the representation; `rotation_dims`, where
            they are in these actions; and `rotation_of`, the representation that the environment takes.

    Raises:
        FlowleapError: an unknown representation, the one there is already, or nothing says where the rotations are.
    """

    def __init__(self, spec: Spec, target: str, dims: Any = None, kind: str | None = None) -> None:
        source = spec.source
        kind = kind or (source.get("rotation") if dims is None else None)
        for name, value in (("rotation", target), ("rotation_from", kind)):
            if value is not None and value not in SIZES:
                raise FlowleapError(f"{name}={value} is none of {', '.join(SIZES)}")
        self._dims = _places(spec, kind, dims)
        sizes = {last - first for first, last in self._dims}
        self._kind = kind or _BY_SIZE.get(min(sizes), "")
        if sizes != {SIZES.get(self._kind)}:
            raise FlowleapError(
                f"rotation_dims: parts of {sorted(sizes)} numbers are no rotations "
                f"({', '.join(f'{name} {n}' for name, n in SIZES.items())}); rotation_from=... says what they are"
            )
        if self._kind == target:
            raise FlowleapError(f"the actions have {target} rotations already: leave rotation={target} out")
        self._target = target
        grown, places, shift = SIZES[target] - SIZES[self._kind], [], 0
        for first, _ in self._dims:
            places.append([first + shift, first + shift + SIZES[target]])
            shift += grown
        told = {"rotation": target, "rotation_dims": places}
        told["rotation_of"] = source.get("rotation_of", self._kind)
        self.spec = replace(spec, action_dim=spec.action_dim + shift, source={**source, **told})

    def __call__(self, actions: NDArray[Any]) -> NDArray[Any]:
        """[..., A] -> [..., A'], in the dtype of `actions`."""
        parts, done = [], 0
        for first, last in self._dims:
            turned = from_matrix(self._target, matrix_from(self._kind, actions[..., first:last]))
            parts += [actions[..., done:first], turned.astype(actions.dtype)]
            done = last
        return np.concatenate([*parts, actions[..., done:]], axis=-1)


def _places(spec: Spec, kind: str | None, dims: Any) -> Dims:
    """Where the rotations are: as asked, as recorded, or in arms of position, rotation and gripper."""
    if dims is not None:
        return parse_dims(dims, spec.action_dim, "rotation_dims")
    if "rotation_dims" in spec.source:
        return parse_dims(spec.source["rotation_dims"], spec.action_dim, "rotation_dims")
    kind = kind or ("axis_angle" if _of_poses(spec.source.get("env_args")) else "")
    size = _ARM.get(kind, 0)
    if not size or spec.action_dim % size:
        raise FlowleapError(
            f"nothing says that the {spec.action_dim} numbers of an action hold rotations (they may be joint angles); "
            "if they do, say which: rotation_dims=[3:6]"
        )
    return [(start + 3, start + size - 1) for start in range(0, spec.action_dim, size)]


def _of_poses(node: Any) -> bool:
    """Whether robosuite's `env_args` name a controller of poses, in whatever depth its version keeps it."""
    if isinstance(node, Mapping):
        return node.get("type") in ("OSC_POSE", "IK_POSE") or any(map(_of_poses, node.values()))
    return isinstance(node, Sequence) and not isinstance(node, str) and any(map(_of_poses, node))
