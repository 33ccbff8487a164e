"""Registered gymnasium environments by id: spaces, wrappers, names, return as the score, errors, chance."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Tuple

from flowleap.datasets.dataset import Dataset
from flowleap.envs.registry import list_tasks, make_task, open_families
from flowleap.envs.report import format_line, summary
from flowleap.envs.rollout import rollout
from flowleap.envs.task_data import load_columns
from flowleap.envs.tasks import gym_task
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey

_IMAGE = Box(0, 255, (16, 20, 3), np.uint8)
_ONE = Box(-np.inf, np.inf, (2,), np.float64)
_SPACES = {
    "dict": Dict({"x": Box(-9, 9, (), np.float64), "image": _IMAGE}),
    "discrete": Discrete(3),
    "goal": Dict({"observation": _ONE, "achieved_goal": _ONE, "desired_goal": _ONE}),
    "plain": Box(-9, 9, (1,), np.float64),
    "nested": Dict({"robot": Dict({"qpos": _ONE}), "pair": Tuple((_ONE, Discrete(3)))}),
}
NAMES = ("Line-v0", "mine/Discrete-v0", "mine/Buttons-v0", "mine/Goal-v0", "mine/Nested-v0", "mine/Free-v0")


class Line(gymnasium.Env):
    """A point on a line that an action moves; reaching 1 is success, told at reset and in every step."""

    metadata = {"render_modes": [], "render_fps": 5}  # noqa: RUF012

    def __init__(self, observation="dict", action=None):
        self.observation_space = _SPACES[observation]
        self.action_space = action or Box(-0.25, 0.25, (1,), np.float64)
        self.kind = observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-0.1, 0.1)
        return self._obs(), {"is_success": False}

    def step(self, action):
        assert action.dtype == np.float64
        self.x += float(action[0])
        return self._obs(), self.x, self.x > 2.0, False, {"is_success": self.x > 1.0}

    def _obs(self):
        two = np.array([self.x, -self.x])
        if self.kind == "goal":
            return {"observation": two, "achieved_goal": two + 1, "desired_goal": two + 2}
        if self.kind == "nested":
            return {"robot": {"qpos": two}, "pair": (two + 1, 2)}
        return {"x": np.float64(self.x), "image": np.full((16, 20, 3), 7, np.uint8)}


@pytest.fixture
def line():
    kinds = [{}, {"observation": "discrete"}, {"action": Discrete(2)}, {"observation": "goal"}]
    kinds += [{"observation": "nested"}, {"action": Box(-np.inf, np.inf, (1,), np.float64)}]
    for name, kwargs in zip(NAMES, kinds, strict=True):
        gymnasium.register(name, entry_point=Line, kwargs=kwargs, max_episode_steps=12)
    gym_task._facts.cache_clear()
    yield
    for name in NAMES:
        del gymnasium.registry[name]


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write `my_envs.py` somewhere on the path; gives a function that does so with a body of `step`."""

    def write(step: str = "", reset: str = "", init: str = "", head: str = "") -> str:
        (tmp_path / "my_envs.py").write_text(
            f"""import os, random
import gymnasium, numpy as np
{head}
class Reach(gymnasium.Env):
    metadata = {{"render_modes": []}}
    def __init__(self, render_mode=None):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-2, 2, (2,), np.float32)
        {init}
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, self.np_random.uniform(-1, 1, 3).astype(np.float32)
        {reset}
        return self.x, {{}}
    def step(self, action):
        self.t += 1
        self.x = self.x * np.float32(0.9)
        obs, reward = self.x, -float(np.abs(self.x).sum())
        {step}
        return obs, reward, False, False, {{}}
gymnasium.register("Reach-v0", entry_point="my_envs:Reach", max_episode_steps=9)
"""
        )
        return "gym/my_envs:Reach-v0"

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of worker processes
    gym_task._facts.cache_clear()
    yield write
    sys.modules.pop("my_envs", None)
    gymnasium.registry.pop("Reach-v0", None)


def still(obs, noise):
    return np.zeros((len(noise), 4, 2), np.float32)


def test_pendulum():
    task = pickle.loads(pickle.dumps(make_task("gym/Pendulum-v1")))
    assert task.spec.observations == {"observations": ObsKey((3,))}
    assert (task.spec.action_dim, task.spec.control_hz, task.max_steps) == (1, pytest.approx(20), 200)
    assert (task.scoring.metric, task.scoring.reports_success) == ("sum_reward", False)
    spec = task.spec.with_window(1, 8, 8)
    result = rollout(task, lambda obs, noise: np.zeros((1, 8, 1)), spec, [3, 4])
    report = summary(result, task)
    reference = gymnasium.make("Pendulum-v1")
    for episode in result.episodes:
        reference.reset(seed=episode.seed)
        expected = sum(float(reference.step(np.zeros(1, np.float32))[1]) for _ in range(200))
        assert episode.sum_reward == pytest.approx(expected)
        assert episode.length == 200
    returns = [e.sum_reward for e in result.episodes]
    assert report["headline"]["value"] == report["sum_reward"]["mean"] == pytest.approx(np.mean(returns))
    text = format_line(report)
    assert f"gym/Pendulum-v1: mean return {np.mean(returns):.1f} [" in text
    assert "success" not in text
    assert "max reward" not in text


@pytest.mark.usefixtures("line")
def test_dict_observations_images_and_success():
    task = make_task("gym/Line-v0", max_steps=9)
    assert task.spec.observations == {
        "image": ObsKey((16, 20, 3), "uint8", "rgb"),
        "x": ObsKey((1,)),
    }
    assert (task.scoring.reports_success, task.max_steps) == (True, 9)
    assert make_task("gym/Line-v0").max_steps == 12
    env = task.make_env()
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    spec = task.spec.with_window(1, 3, 3)
    slow, fast = (
        rollout(task, lambda obs, noise, a=a: np.full((1, 3, 1), a), spec, [0]).episodes[0]
        for a in (0.05, 9.0)
    )
    assert (slow.success, slow.length) == (False, 9)
    assert (fast.success, fast.length) == (True, 8 if fast.max_reward <= 2.25 else 9)
    assert "success 1/1" in format_line(
        summary(rollout(task, lambda o, n: np.full((1, 3, 1), 9.0), spec, [0]), task)
    )


class Camera(gymnasium.ObservationWrapper):
    """What a camera of this space might give: half of its range; a corner at 0 and one at the upper end."""

    def __init__(self, env, space, name="image"):
        super().__init__(env)
        self.name, self.observation_space = name, Dict({name: space})

    def observation(self, observation):
        space = self.observation_space[self.name]
        top = 2.0 if np.isinf(space.high.max()) else space.high.max()
        frame = np.full(space.shape, top / 2).astype(space.dtype)
        frame.flat[0], frame.flat[-1] = 0, top
        return {self.name: frame}


RGB = ObsKey((32, 40, 3), "uint8", "rgb")


@pytest.fixture
def camera():
    def register(space, name="image"):
        gymnasium.registry.pop("mine/Camera-v0", None)
        gymnasium.register(
            "mine/Camera-v0",
            entry_point=lambda **_: Camera(Line("plain"), space, name),
            max_episode_steps=5,
        )
        gym_task._facts.cache_clear()
        return "gym/mine/Camera-v0"

    yield register
    gymnasium.registry.pop("mine/Camera-v0", None)


@pytest.mark.parametrize(
    ("space", "name", "key", "middle"),
    [
        (Box(0, 255, (32, 40, 3), np.uint8), "image", RGB, 127),
        (Box(0, 255, (3, 32, 40), np.uint8), "image", RGB, 127),
        (Box(0, 255, (32, 40, 4), np.uint8), "image", RGB, 127),
        (Box(0, 255, (32, 40, 1), np.uint8), "image", RGB, 127),
        (Box(0, 255, (32, 40), np.uint8), "image", RGB, 127),
        (Box(0, 1, (3, 32, 40), np.float32), "image", RGB, 128),
        (Box(0, 255, (32, 40, 3), np.float32), "image", RGB, 128),
        (
            Box(0, 1, (32, 40, 1), np.float64),
            "depth",
            ObsKey((32, 40, 1), "float32", "depth", "m", (0, 1)),
            0.5,
        ),
        (Box(0, 5, (32, 40), np.float32), "z", ObsKey((32, 40, 1), "float32", "depth", "m", (0, 5)), 2.5),
        (
            Box(0, 9e3, (1, 32, 40), np.uint16),
            "d",
            ObsKey((32, 40, 1), "float32", "depth", "mm", (0, 9e3)),
            4500,
        ),
    ],
)
def test_images_of_environments_are_those_of_policies(camera, space, name, key, middle):
    task = make_task(camera(space, name))
    assert task.spec.observations == {name: key}
    obs, _ = task.make_env().reset(seed=0)
    image = obs[name]
    assert (image.shape, image.dtype) == (key.shape, key.dtype)
    assert image[16, 20, 0] == middle
    assert image[0, 0, 0] == 0
    assert (
        image[-1, -1, 0] == middle if space.shape[-1] == 4 else (255 if key.range is None else key.range[1])
    )
    result = rollout(task, lambda obs, noise: np.zeros((1, 3, 1)), task.spec.with_window(2, 3, 3), [0])
    assert result.episodes[0].length == 5


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        (Box(0, 255, (4, 32, 40), np.uint8), "a stack of four frames"),
        (Box(-np.inf, np.inf, (32, 40, 3), np.float32), "an image without bounds"),
        (Box(-3, 3, (32, 40, 3), np.float32), "numbers from -3 to 3, where images hold"),
        (Box(0, 255, (32, 40, 9), np.uint8), "32 x 40 x 9 numbers, neither an image nor a vector"),
    ],
)
def test_what_is_no_image_is_refused(camera, space, problem):
    with pytest.raises(FlowleapError, match=rf"{problem}.*task.kwargs.keys="):
        make_task(camera(space))


def test_depth_without_measurement_and_images_beyond_their_bounds(camera, monkeypatch):
    def broken(self, observation):
        return {self.name: np.full((32, 40), self.value, np.float32)}

    monkeypatch.setattr(Camera, "observation", broken)
    monkeypatch.setattr(Camera, "value", np.nan, raising=False)
    obs, _ = make_task(camera(Box(0, 5, (32, 40), np.float32), "depth")).make_env().reset(seed=0)
    assert np.all(obs["depth"] == 0)
    monkeypatch.setattr(Camera, "value", 9.0)
    with pytest.raises(FlowleapError, match=r"mine/Camera-v0: observation 'image' holds images with numbers"):
        make_task(camera(Box(0, 1, (32, 40), np.float32)))


@pytest.mark.usefixtures("line")
def test_nested_observations_are_named_as_minari_does_and_can_be_chosen():
    with pytest.raises(FlowleapError, match=r"observation 'pair._index_1' is a Discrete.*FlattenObservation"):
        make_task("gym/mine/Nested-v0")
    task = make_task("gym/mine/Nested-v0", keys=["robot.qpos", "pair._index_0"])
    assert task.spec.observations == {"robot.qpos": ObsKey((2,)), "pair._index_0": ObsKey((2,))}
    obs, _ = task.make_env().reset(seed=3)
    np.testing.assert_array_equal(obs["pair._index_0"], obs["robot.qpos"] + 1)
    task = make_task("gym/mine/Nested-v0", keys={"robot.qpos": "state"})
    assert list(task.spec.observations) == ["state"]
    assert task.spec.source["kwargs"]["keys"] == {"robot.qpos": "state"}
    for keys, message in [
        (["qpos"], "did you mean 'robot.qpos'"),
        ({"robot.qpos": "a", "pair._index_0": "a"}, "same name"),
    ]:
        with pytest.raises(FlowleapError, match=message):
            make_task("gym/mine/Nested-v0", keys=keys)


@pytest.mark.usefixtures("line")
def test_wrappers_flatten_and_limit():
    task = make_task("gym/mine/Goal-v0", wrappers=["FlattenObservation"])
    assert task.spec.observations == {"observations": ObsKey((6,))}
    obs, _ = task.make_env().reset(seed=1)
    x = obs["observations"][4]  # achieved, desired, observation: gymnasium sorts
    np.testing.assert_allclose(obs["observations"], [x + 1, 1 - x, x + 2, 2 - x, x, -x], rtol=1e-6)
    task = make_task("gym/mine/Nested-v0", wrappers=["FlattenObservation"])
    obs, _ = task.make_env().reset(seed=1)
    np.testing.assert_array_equal(obs["observations"][2:5], [0, 0, 1])  # Discrete(3) is 2
    task = make_task("gym/mine/Goal-v0", wrappers=[{"TimeLimit": {"max_episode_steps": 5}}])
    spec = task.spec.with_window(1, 4, 4)
    assert rollout(task, lambda o, n: np.zeros((1, 4, 1)), spec, [0]).episodes[0].length == 5
    scaled = make_task("gym/Line-v0", wrappers=[{"RescaleAction": {"min_action": -1.0, "max_action": 1.0}}])
    env = scaled.make_env()
    before, _ = env.reset(seed=0)
    np.testing.assert_allclose(env.step(np.ones(1))[0]["x"] - before["x"], 0.25, atol=1e-6)
    for wrappers, message in [
        (["FlattenObservations"], "did you mean 'FlattenObservation'"),
        (["RecordVideo"], "wrapper 'RecordVideo' is none of"),
        (["TimeLimit"], "wrapper TimeLimit: .*max_episode_steps"),
        ([3], "wrappers are names"),
        (["math:Flatten"], "module math has no wrapper 'Flatten'"),
    ]:
        with pytest.raises(FlowleapError, match=message):
            make_task("gym/Line-v0", wrappers=wrappers)


@pytest.mark.usefixtures("line")
def test_actions_without_bounds():
    task = make_task("gym/mine/Free-v0", keys=["x"])
    result = rollout(task, lambda o, n: np.full((1, 4, 1), 7.5), task.spec.with_window(1, 4, 4), [0])
    assert (result.episodes[0].length, result.episodes[0].max_reward) == (1, pytest.approx(7.5, abs=0.11))


@pytest.mark.usefixtures("line")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gym/Pendulum-v11", "knows no environment 'Pendulum-v11'; did you mean 'Pendulum-v1'"),
        ("gym/Nothing-v0", "stands before it: task=gym/MODULE:Nothing-v0"),
        ("gym/json/Nothing-v0", "stands before it: task=gym/json:json/Nothing-v0"),
        ("gym/no_such_module:Reach-v0", "no module 'no_such_module' to import: .*PYTHONPATH=FOLDER"),
        ("gym/json:Reach-v0", "'Reach-v0'.* json did not register it"),
        ("gym/a:b:Reach-v0", "'a:b:Reach-v0' is no id of an environment"),
        ("gym/CartPole-v1", "actions are a Discrete, and flows move numbers: only Box actions"),
        ("gym/mine/Buttons-v0", "actions are a Discrete"),
        ("gym/mine/Discrete-v0", "observation 'observations' is a Discrete, only Box is read"),
        ("gym", "unknown task 'gym'"),
        ("gym/", "unknown task 'gym/'"),
    ],
)
def test_what_does_not_fit_is_named(name, message):
    with pytest.raises(FlowleapError, match=message):
        make_task(name)


def test_modules_of_ones_own(own_module):
    name = own_module()
    assert make_task(name).max_steps == 9
    task = make_task("gym/Reach-v0", imports="my_envs")
    assert task.spec.source["kwargs"] == {"max_steps": 9, "imports": ["my_envs"]}
    spec = task.spec.with_window(1, 4, 4)
    one, two = (rollout(task, still, spec, [5, 6, 7], n_envs=n).episodes for n in (1, 2))
    assert one == two
    with pytest.raises(FlowleapError, match=r"my_envs.Reach is not registered; .*register\('Reach-v0'"):
        make_task("gym/my_envs:Reach")
    kwargs = {"imports": ["a"], "wrappers": ["FlattenObservation", "b.c:D", {"e:F": {"g": 1}}]}
    assert gym_task.imported_modules("gym/m:X-v0", kwargs) == ["m", "a", "b.c", "e"]
    assert gym_task.imported_modules("gym/X-v0", {"imports": 5, "wrappers": {"a:B": {}}}) == ["5", "a"]


def test_entry_points_register(own_module, tmp_path, capsys):
    own_module(head="def register(): gymnasium.register('Late-v3', entry_point='my_envs:Reach')")
    info = tmp_path / "mine-0.1.dist-info"
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 0.1\n")
    points = "[gymnasium.envs]\nlab = my_envs:register\n__root__ = my_envs:Absent\n"
    info.joinpath("entry_points.txt").write_text(points)
    gym_task._load_plugins.cache_clear()
    try:
        assert make_task("gym/lab/Late-v3").spec.source["env_id"] == "lab/Late-v3"
        assert "warning: my_envs:Absent does not register its environments" in capsys.readouterr().err
    finally:
        gymnasium.registry.pop("lab/Late-v3", None)
        gym_task._load_plugins.cache_clear()


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("obs = obs if self.t < 6 else obs * np.nan", r"'observations' is nan at index \[0\] at step 6"),
        ("obs = obs if self.t < 6 else obs + [0, 1e39, 0]", r"'observations' is inf at index \[1\] at step 6"),
        ("reward = reward if self.t < 6 else np.inf", "returned the reward inf at step 6"),
        ("obs = obs if self.t < 6 else obs[:2]", r"has shape \(2,\), its space says \(3,\), at step 6"),
        ("obs = obs if self.t < 6 else obs.astype(complex)", "is complex128, its space says float32, at step 6"),
        (
            "\n        if self.t == 6: raise RuntimeError('gripper lost\\nreset by peer')",
            r"the environment failed: RuntimeError: gripper lost reset by peer \(traceback: .*\.log\)",
        ),
        ("\n        if self.t == 6: raise ConnectionError('no answer')", "failed: ConnectionError: no answer"),
        ("\n        if self.t == 6: raise Odd(1, 2)", "failed: Odd: 1 and 2"),
    ],
)  # fmt: skip
def test_a_faulty_environment_is_the_culprit(own_module, capfd, step, message, n_envs):
    odd = "class Odd(Exception):\n    def __init__(self, a, b): super().__init__(f'{a} and {b}')"
    task = make_task(own_module(step, head=odd))
    with pytest.raises(FlowleapError, match=f"task gym/my_envs:Reach-v0: .*{message}") as caught:
        rollout(task, still, task.spec.with_window(1, 4, 4), [0, 1], n_envs=n_envs)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    if "traceback:" in str(caught.value):
        log = Path(str(caught.value).rpartition("traceback: ")[2].rstrip(")"))
        assert "my_envs.py" in log.read_text()
        log.unlink()


def test_an_environment_that_cannot_be_made_in_a_worker(own_module, capfd):
    init = "\n        if os.getpid() != OWNER: raise OSError('port in use')"
    task = make_task(own_module(init=init, head=f"OWNER = {os.getpid()}"))
    with pytest.raises(FlowleapError, match="Reach-v0: the environment failed: OSError: port in use"):
        rollout(task, still, task.spec.with_window(1, 4, 4), [0, 1], n_envs=2)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("draw", ["np.random.uniform(-1, 1, 3)", "[random.random()] * 3"])
def test_global_generators_are_seeded_for_who_draws_from_them(own_module, capsys, draw):
    task = make_task(own_module(reset=f"self.x = np.float32({draw})", step=f"obs = obs + np.float32({draw})"))
    assert "Reach-v0: the environment draws from the global random generators" in capsys.readouterr().err
    spec = task.spec.with_window(1, 4, 4)
    np.random.seed(1)  # noqa: NPY002
    expected = np.random.get_state()[1]  # noqa: NPY002
    seen = [rollout(task, still, spec, [5, 6, 7], n_envs=n).episodes for n in (1, 2, 1)]
    assert seen[0] == seen[1] == seen[2]
    assert len({episode.sum_reward for episode in seen[0]}) == 3
    np.testing.assert_array_equal(np.random.get_state()[1], expected)  # noqa: NPY002


def test_an_environment_without_a_seed_is_named(own_module, capsys):
    make_task(own_module(reset="self.x = np.random.default_rng().uniform(-1, 1, 3).astype(np.float32)"))
    assert "gives another episode for the same seed" in capsys.readouterr().err


@pytest.mark.usefixtures("line")
def test_a_dataset_with_other_names_says_how_to_map():
    rows = np.zeros((6, 2), np.float32)
    data = Dataset.from_arrays(
        {"state": rows, "goal": rows + 1, "other": rows[:, :1], "action": rows[:, :1]}, [6]
    )
    with pytest.raises(FlowleapError) as caught:
        load_columns(make_task("gym/mine/Goal-v0", keys={"observation": "obs", "desired_goal": "goal"}), data)
    message = str(caught.value)
    assert "offers only ['state', 'goal', 'other', 'action']" in message
    assert "observes obs [2], goal [2]: 'task.kwargs.keys={obs:state,goal:goal}'" in message
    task = make_task("gym/mine/Goal-v0", keys={"observation": "state", "desired_goal": "goal"})
    loaded = load_columns(task, data)
    assert list(loaded.spec.observations) == ["state", "goal"]


def test_mujoco_environments_of_gymnasium_are_tasks():
    task = make_task("gym/HalfCheetah-v5")
    assert (task.spec.observations, task.spec.action_dim) == ({"observations": ObsKey((17,))}, 6)
    assert task.spec.control_hz == pytest.approx(20)
    env = task.make_env()
    first = env.reset(seed=1)[0]["observations"]
    assert np.array_equal(first, env.reset(seed=1)[0]["observations"])


def test_open_families_are_listed_apart():
    assert not any(name.startswith("gym/") for name in list_tasks())
    assert "module:<EnvId>" in open_families()["gym/<EnvId>"]
