"""Rotations of actions: axis-angle is the matrix exponential, 6-D the first two rows of the matrix."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import expm

from flowleap.datasets import rotations
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec


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
    cross = np.cross(np.eye(3), v[:, None, :]).swapaxes(
        1, 2
    )  # columns: v x e_i, with the sign of e_i x v turned
    matrices = rotations.matrix_from_axis_angle(v)
    np.testing.assert_allclose(matrices, expm(-cross), atol=1e-13)
    assert rotations.matrix_from_axis_angle(v.reshape(1, -1, 3)).shape == (1, len(v), 3, 3)


def test_there_and_back() -> None:
    v = vectors()
    matrix = rotations.matrix_from_axis_angle(v)
    np.testing.assert_allclose(rotations.axis_angle_from_matrix(matrix), v, atol=1e-8)
    six = rotations.six_from_matrix(matrix)
    np.testing.assert_array_equal(six, np.concatenate([matrix[:, 0], matrix[:, 1]], axis=1))
    np.testing.assert_allclose(rotations.matrix_from_six(six), matrix, atol=1e-14)
    stretched = rotations.matrix_from_six(six * 3 + np.concatenate([0 * six[:, :3], six[:, :3]], axis=1))
    np.testing.assert_allclose(stretched, matrix, atol=1e-13)
    with pytest.raises(FlowleapError, match="not parallel"):
        rotations.matrix_from_six(np.array([[1.0, 0, 0, 2, 0, 0]]))


def test_actions_of_one_and_two_arms() -> None:
    rng = np.random.default_rng(1)
    actions = rng.uniform(-1, 1, (5, 4, 14)).astype(np.float32)
    six = rotations.convert_rotations(actions, "axis_angle", "6d")
    assert (six.shape, six.dtype) == ((5, 4, 20), np.float32)
    np.testing.assert_array_equal(six[..., [0, 1, 2, 9, 10, 19]], actions[..., [0, 1, 2, 6, 7, 13]])
    np.testing.assert_allclose(rotations.convert_rotations(six, "6d", "axis_angle"), actions, atol=1e-6)


def test_what_does_not_fit_is_refused() -> None:
    spec = Spec({"state": ObsKey((1,))}, 6)
    with pytest.raises(FlowleapError, match=r"needs actions of 7 numbers an arm .* these have 6"):
        rotations.Rotations(spec, "6d")
    with pytest.raises(FlowleapError, match="rotation=euler is none of axis_angle, 6d"):
        rotations.Rotations(spec, "euler")
    with pytest.raises(FlowleapError, match="axis_angle rotations already"):
        rotations.Rotations(spec, "axis_angle")
