"""Rotations of actions against scipy and the matrix exponential; where they are, and where they are not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from flowleap.policy.core import rotations
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.rotations import Rotations
from flowleap.policy.core.spec import ObsKey, Spec

POSES = {"env_args": {"env_kwargs": {"controller_configs": {"type": "OSC_POSE"}}}}
POSES_15 = {
    "env_args": {"env_kwargs": {"controller_configs": {"body_parts": {"right": {"type": "OSC_POSE"}}}}}
}


def spec(size: int, **source) -> Spec:
    return Spec({"state": ObsKey((1,))}, size, source=source)


def vectors() -> np.ndarray:
    """Random rotations, and the corners: none, tiny, just below pi, about each axis."""
    rng = np.random.default_rng(0)
    random = rng.normal(size=(2000, 3))
    random *= rng.uniform(0, np.pi, (2000, 1)) / np.linalg.norm(random, axis=1, keepdims=True)
    axes = np.concatenate([np.eye(3), -np.eye(3), random[:50] / np.linalg.norm(random[:50], axis=1)[:, None]])
    angles = [0.0, 1e-12, 1e-7, 1e-5, 1.0, np.pi / 2, np.pi - 1e-5, np.pi - 1e-9]
    return np.concatenate([random, *(axes * angle for angle in angles)])


def test_matrices_are_the_exponential_of_the_cross_product() -> None:
    v = vectors()[::7]
    cross = np.cross(np.eye(3), v[:, None, :]).swapaxes(1, 2)  # columns v x e_i, negated
    matrices = rotations.matrix_from("axis_angle", v)
    np.testing.assert_allclose(matrices, expm(-cross), atol=1e-13)
    assert rotations.matrix_from("axis_angle", v.reshape(1, -1, 3)).shape == (1, len(v), 3, 3)


@pytest.mark.filterwarnings("ignore:Gimbal lock")
def test_each_representation_is_scipys_and_comes_back() -> None:
    v = vectors()
    truth = Rotation.from_rotvec(v)
    matrix = truth.as_matrix()
    expected = {
        "axis_angle": v,
        "euler": truth.as_euler("xyz"),
        "quaternion": truth.as_quat(canonical=True),
        "6d": np.concatenate([matrix[:, 0], matrix[:, 1]], axis=1),
        "matrix": matrix.reshape(-1, 9),
    }
    assert expected.keys() == rotations.SIZES.keys()
    for kind, values in expected.items():
        np.testing.assert_allclose(rotations.matrix_from(kind, values), matrix, atol=1e-13, err_msg=kind)
        found = rotations.from_matrix(kind, matrix)
        assert found.shape == values.shape == (len(v), rotations.SIZES[kind])
        np.testing.assert_allclose(rotations.matrix_from(kind, found), matrix, atol=1e-8, err_msg=kind)
        one_name = np.linalg.norm(v, axis=1) < np.pi - 1e-4  # the sign is free half a turn away
        if kind == "euler":
            one_name &= np.abs(np.abs(values[:, 1]) - np.pi / 2) > 1e-3
        np.testing.assert_allclose(found[one_name], values[one_name], atol=1e-8, err_msg=kind)


def test_six_numbers_need_not_be_orthogonal() -> None:
    matrix = rotations.matrix_from("axis_angle", vectors())
    six = rotations.from_matrix("6d", matrix)
    stretched = six * 3 + np.concatenate([0 * six[:, :3], six[:, :3]], axis=1)
    np.testing.assert_allclose(rotations.matrix_from_six(stretched), matrix, atol=1e-13)
    with pytest.raises(FlowleapError, match="not parallel"):
        rotations.matrix_from_six(np.array([[1.0, 0, 0, 2, 0, 0]]))
    with pytest.raises(FlowleapError, match="no rotations as quaternion"):
        rotations.matrix_from("quaternion", np.zeros((1, 4)))


@pytest.mark.parametrize("source", [POSES, POSES_15])
def test_actions_of_one_and_two_arms(source: dict) -> None:
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (5, 4, 14)).astype(np.float32)
    there = Rotations(spec(14, **source), "6d")
    six = there(actions)
    assert (six.shape, six.dtype) == ((5, 4, 20), np.float32)
    np.testing.assert_array_equal(six[..., [0, 1, 2, 9, 10, 19]], actions[..., [0, 1, 2, 6, 7, 13]])
    second = Rotation.from_rotvec(actions[0, 0, 10:13]).as_matrix()
    np.testing.assert_allclose(six[0, 0, 13:19], second[:2].reshape(6), atol=1e-6)
    told = {key: value for key, value in there.spec.source.items() if key != "env_args"}
    assert told == {"rotation": "6d", "rotation_dims": [[3, 9], [13, 19]], "rotation_of": "axis_angle"}
    back = Rotations(there.spec, "axis_angle")
    np.testing.assert_allclose(back(six), actions, atol=1e-6)
    assert (back.spec.action_dim, back.spec.source["rotation_dims"]) == (14, [[3, 6], [10, 13]])


@pytest.mark.parametrize(
    ("dims", "kind", "read"),
    [
        ("1:5", None, lambda x: Rotation.from_quat(x)),
        ([[1, 4]], None, lambda x: Rotation.from_rotvec(x)),
        (["1:4"], "euler", lambda x: Rotation.from_euler("xyz", x)),
    ],
)
def test_the_user_says_where_the_rotation_is_and_what(dims, kind, read) -> None:
    actions = np.random.default_rng(2).uniform(-1, 1, (9, 8))
    change = Rotations(spec(8), "6d", dims, kind)
    size = 4 if dims == "1:5" else 3
    turned = change(actions)
    np.testing.assert_allclose(
        turned[:, 1:7], read(actions[:, 1 : 1 + size]).as_matrix()[:, :2].reshape(9, 6), atol=1e-14
    )
    np.testing.assert_array_equal(
        turned[:, [0, *range(7, turned.shape[1])]], np.delete(actions, range(1, 1 + size), 1)
    )
    again = Rotations(change.spec, change.spec.source["rotation_of"])(turned)
    if size == 4:
        quaternions = actions[:, 1:5] / np.linalg.norm(actions[:, 1:5], axis=1, keepdims=True)
        actions[:, 1:5] = np.where(quaternions[:, 3:] < 0, -quaternions, quaternions)
    np.testing.assert_allclose(again, actions, atol=1e-12)


def test_stores_written_before_they_told_where() -> None:
    assert Rotations(spec(20, rotation="6d"), "axis_angle").spec.action_dim == 14


@pytest.mark.parametrize(
    ("size", "source", "given", "message"),
    [
        (14, {}, ("6d",), r"nothing says that the 14 numbers .* joint angles.*rotation_dims=\[3:6\]"),
        (7, {}, ("6d",), "nothing says that the 7 numbers"),
        (7, {"env_args": {"env_kwargs": {"controller_configs": {"type": "JOINT_POSITION"}}}}, ("6d",), "nothing"),
        (6, POSES, ("6d",), "nothing says that the 6 numbers"),
        (7, POSES, ("rotation_6d",), r"rotation=rotation_6d is none of axis_angle, euler, quaternion, 6d, matrix"),
        (7, POSES, ("axis_angle",), "axis_angle rotations already"),
        (7, {}, ("6d", "3:5"), r"parts of \[2\] numbers are no rotations"),
        (7, {}, ("6d", "3:6", "quaternion"), r"parts of \[3\] numbers are no rotations"),
        (7, {}, ("6d", "3:6", "rpy"), "rotation_from=rpy is none of"),
        (7, {}, ("6d", "5:8"), "within the 7 numbers"),
        (9, {}, ("6d", ["3:6", "5:8"]), "in order, apart"),
        (7, {}, ("6d", [3]), "say which numbers of an action"),
        (7, {"rotation": "6d", "rotation_dims": [[0, 60]]}, ("axis_angle",), "within the 7 numbers"),
        (7, {"rotation": "6d", "rotation_dims": {"a": 1}}, ("axis_angle",), "say which numbers"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(size, source, given, message) -> None:
    with pytest.raises(FlowleapError, match=message):
        Rotations(spec(size, **source), *given)
