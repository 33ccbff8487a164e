"""Tasks by name: listing, errors, optional packages, and that nothing heavy loads early."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from flowleap.envs import Task, list_tasks, make_task, register_task, registry
from flowleap.envs.tasks.metaworld import TASKS
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.versions import package_versions


def test_lists_every_family():
    names = list_tasks()
    families = {"pusht/state", "pusht/keypoints", "metaworld/door-open-v3", "probe/slalom", "robosuite/lift"}
    families |= {f"adroit/{name}" for name in ("door", "hammer", "pen", "relocate")}
    families |= {"ogbench/cube-single", "ogbench/puzzle-4x6-singletask", "ogbench/scene"}
    assert families | {"fetch/push", "fetch/pick_and_place", "pusht/pixels"} <= set(names)
    assert len(names) == len(set(names)) == 81


def test_a_registered_task_is_made_by_name():
    def make(max_steps: int = 5) -> Task:
        return replace(make_task("probe/slalom"), name="own/slalom", max_steps=max_steps)

    register_task("own/slalom", make)
    try:
        assert make_task("own/slalom", max_steps=7).max_steps == 7
        assert "own/slalom" in list_tasks()
        with pytest.raises(FlowleapError, match="did you mean 'max_steps'"):
            make_task("own/slalom", max_step=3)
        for name, message in {"slalom": "family/task", "probe/slalom": "exists", "gym/x": "exists"}.items():
            with pytest.raises(FlowleapError, match=message):
                register_task(name, make)
    finally:
        registry._registered.clear()


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(FlowleapError, match="did you mean 'pusht/keypoints'"):
        make_task("pusht/keypoint")
    with pytest.raises(FlowleapError, match="did you mean 'max_steps'"):
        make_task("metaworld/door-open-v3", max_step=3)


def test_listing_and_making_tasks_loads_no_simulator_and_no_torch():
    code = (
        "import sys; from flowleap.envs.registry import list_tasks, make_task\n"
        "for name in list_tasks(): make_task(name)\n"
        "import flowleap.envs.rollout, flowleap.envs.report, flowleap.envs.demonstrate, flowleap.envs.rendering\n"
        "heavy = {'torch', 'mujoco', 'metaworld', 'gymnasium_robotics', 'gym_pusht', 'robosuite', 'pygame', 'cv2'}\n"
        "heavy |= {'OpenGL', 'imageio', 'ogbench', 'dm_control'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("pusht/state", "gym_pusht", "pusht"),
        ("metaworld/reach-v3", "metaworld", "metaworld"),
        ("adroit/door", "gymnasium_robotics", "robotics"),
        ("fetch/push", "gymnasium_robotics", "robotics"),
        ("robosuite/can", "robosuite", "robosuite"),
        ("ogbench/scene", "ogbench", "ogbench"),
    ],
)
def test_a_missing_package_names_its_extra(monkeypatch, name, module, extra):
    for loaded in [m for m in sys.modules if m.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        FlowleapError, match=rf"{module}.* is not installed: pip install 'flowleap\[{extra}\]'"
    ):
        make_task(name).make_env()


def test_the_static_names_are_those_of_the_installed_metaworld():
    env_dict = pytest.importorskip("metaworld.env_dict")
    policies = pytest.importorskip("metaworld.policies")
    assert sorted(TASKS) == sorted(env_dict.ALL_V3_ENVIRONMENTS) == sorted(policies.ENV_POLICY_MAP)


@pytest.mark.parametrize(
    "name",
    [
        "pusht/state",
        "pusht/keypoints",
        "pusht/pixels",
        "metaworld/door-open-v3",
        "probe/slalom",
        "adroit/door",
        "adroit/pen",
        "fetch/push",
        "ogbench/cube-double",
        "ogbench/scene-singletask",
        "ogbench/puzzle-3x3",
        "gym/Pendulum-v1",
    ],
)
def test_a_task_keeps_its_word(name):
    """Spaces equal the Spec, observations lie in the space, `info["success"]` is there, factories pickle."""
    packages = {"pusht": "gym-pusht", "metaworld": "metaworld", "probe": "mujoco", "gym": "gymnasium"}
    packages |= {"ogbench": "ogbench"}
    package = packages.get(name.split("/")[0], "gymnasium-robotics")
    if not package_versions(package)[package]:
        pytest.skip(f"needs {package}")
    task = pickle.loads(pickle.dumps(make_task(name)))
    env = task.make_env()
    spaces = env.observation_space.spaces
    assert {k: (s.shape, str(s.dtype)) for k, s in spaces.items()} == {
        k: (o.shape, o.dtype) for k, o in task.spec.observations.items()
    }
    assert env.action_space.shape == (task.spec.action_dim,)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    obs, reward, terminated, truncated, info = env.step(env.action_space.low)
    assert env.observation_space.contains(obs)
    assert type(reward) is float
    assert (type(terminated), type(truncated), type(info["success"])) == (bool, bool, bool)
    env.close()
