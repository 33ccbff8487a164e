"""Actions relative to an observation, with other rotations, and both: there and back."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from flowleap.policy.core.actions import OwnActions, Relative
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.rotations import Rotations
from flowleap.policy.core.spec import ObsKey, Spec

ARM = Spec({"qpos": ObsKey((3,)), "pose": ObsKey((7,)), "object": ObsKey((5,))}, 7)


def test_relative_to_all_or_some_numbers() -> None:
    rng = np.random.default_rng(0)
    actions, pose, qpos = (rng.normal(size=(4, n)).astype(np.float32) for n in (7, 7, 3))
    whole = Relative(ARM, "delta", "pose")
    np.testing.assert_array_equal(whole(actions, pose), actions - pose)
    part = Relative(ARM, "delta", "qpos", "1:4")
    expected = actions.copy()
    expected[:, 1:4] -= qpos
    np.testing.assert_array_equal(part(actions, qpos), expected)
    same_places = Relative(ARM, "delta", "pose", ["0:2", "5:7"])
    expected = actions.copy()
    expected[:, [0, 1, 5, 6]] -= pose[:, [0, 1, 5, 6]]
    np.testing.assert_array_equal(same_places(actions, pose), expected)
    assert part.spec.action_convention == "delta"
    assert part.spec.source == {"relative_to": "qpos", "relative_dims": [[1, 4]], "relative_of": "absolute"}
    back = Relative(part.spec, "absolute")
    np.testing.assert_allclose(back(part(actions, qpos), qpos), actions, atol=1e-6)
    assert back.spec.action_convention == "absolute"
    assert not OwnActions(back.spec).changes


def test_own_actions_undo_both_conversions() -> None:
    rng = np.random.default_rng(1)
    actions, qpos = rng.uniform(-1, 1, (6, 7)), rng.normal(size=(6, 3))
    relative = Relative(ARM, "delta", "qpos", "0:3")
    turned = Rotations(relative.spec, "6d", "3:6")
    stored = turned(relative(actions, qpos))
    own = OwnActions(turned.spec)
    assert (own.changes, own.spec.action_dim, own.spec.action_convention) == (True, 7, "absolute")
    np.testing.assert_allclose(own(stored, {"qpos": qpos}), actions, atol=1e-12)
    np.testing.assert_allclose(own(stored[2], {"qpos": qpos[2]}), actions[2], atol=1e-12)
    with pytest.raises(FlowleapError, match="relative to 'qpos': give what is observed"):
        own(stored)
    with pytest.raises(FlowleapError, match=r"first actions_as"):
        Relative(Rotations(ARM, "6d", "3:6").spec, "delta", "qpos", "0:3")


def test_a_robot_needs_numpy_alone() -> None:
    script = (
        "import sys; sys.modules['scipy'] = sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from flowleap.policy.core.actions import OwnActions\n"
        "from flowleap.policy.core.spec import ObsKey, Spec\n"
        "source = {'rotation': '6d', 'rotation_dims': [[0, 6]], 'rotation_of': 'axis_angle'}\n"
        "own = OwnActions(Spec({'x': ObsKey((1,))}, 6, source=source))\n"
        "print(own(np.array([1., 0, 0, 0, 0, -2])).round(6).tolist())\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout == "[1.570796, 0.0, 0.0]\n", result.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("delta",), r"needs relative_to=KEY, .*observed are qpos, pose, object"),
        (("delta", "qpo"), r"'qpo' is none of .*did you mean 'qpos'"),
        (("delta", "object"), r"'object' has 5 numbers, 7 of an action"),
        (("delta", "qpos", "0:4"), r"'qpos' has 3 numbers, 4 of an action"),
        (("delta", "pose", "0:9"), "relative_dims='0:9': parts must be"),
        (("absolute", "pose"), "absolute already"),
        (("relative", "pose"), "actions_as=relative is none of absolute, delta"),
    ],
)
def test_what_does_not_fit_is_refused(given, message) -> None:
    with pytest.raises(FlowleapError, match=message):
        Relative(ARM, *given)
