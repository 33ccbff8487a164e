"""`flowleap replay`: recorded actions, executed from recorded states or seeds, reach what was recorded, or do not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from flowleap.datasets.formats.zarr_store import EpisodeStore, EpisodeWriter
from flowleap.envs.registry import make_task
from flowleap.envs.replay import reaches, version_differences
from flowleap.envs.tasks import pusht
from flowleap.scripts.cli import main as cli
from flowleap.scripts.cli.run import compose
from flowleap.scripts.replay import main


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def fails(capsys: pytest.CaptureFixture[str], *words: str, code: int = 1) -> str:
    """Run a replay that must fail with `code` and one line on stderr; return the line."""
    assert cli.main(["replay", *words]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def collect(task: str, *words: str) -> Path:
    assert cli.main(["collect", f"task={task}", "episodes=2", "n_envs=1", "out=a.zarr", *words]) == 0
    return Path("a.zarr")


# Push-T


def test_the_human_demonstrations_in_place(pusht_human: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gym_pusht")
    words = ["task=pusht/keypoints", f"dataset={pusht_human}", "episodes=3", "out=r.json"]
    assert cli.main(["replay", *words]) == 0
    out = capsys.readouterr().out
    assert "pusht/keypoints: 3/3 = 1.000 [0.4" in out
    assert "does not say which versions" in out
    result = json.loads(Path("r.json").read_text())
    assert result["command"].startswith("flowleap replay task=pusht/keypoints ")
    assert "gym-pusht" in result["origin"]["versions"]
    for row in result["rows"]:
        assert row["reached"]
        assert row["outcome"]["coverage"] > 0.86
        assert row["start_difference"] < 1e-3  # the angle is set before the position
        assert row["mean_difference"] < 1.0
        assert 0 < row["recorded"]["coverage"] <= row["outcome"]["coverage"] + 0.02
    assert result["summary"]["coverage"]["replayed"]["mean"] == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("name", ["state", "keypoints"])
def test_a_state_is_recovered_from_either_observation(name: str) -> None:
    rng = np.random.default_rng(0)
    state = np.column_stack([rng.uniform(50, 450, (20, 4)), rng.uniform(-3, 3, 20)])
    observe = pusht.state_observation if name == "state" else pusht.keypoints_observation
    np.testing.assert_allclose(pusht.recorded_state(observe(state)), state, atol=1e-4)


def test_actions_in_the_wrong_order_do_not_reach_it(pusht_human: Path) -> None:
    """The check finds what it is there for: states and actions that do not belong together."""
    pytest.importorskip("gym_pusht")
    source = EpisodeStore(pusht_human)
    task = make_task("pusht/state")
    assert task.recording.translate is not None
    with EpisodeWriter("wrong.zarr", task.spec) as writer:
        own = source.episode(0, ["state", "action"])
        writer.add(task.recording.translate({**own, "action": own["action"][::-1]}))
        writer.add(task.recording.translate(own))
    result = main(compose("replay", ["task=pusht/state", "dataset=wrong.zarr"]))
    wrong, right = result["rows"]
    assert wrong["mean_difference"] > 20 > 1 > right["mean_difference"]
    assert right["reached"]
    assert not wrong["reached"]
    assert result["summary"]["reached"]["count"] == 1
    assert result["version_differences"] == []


# Adroit


def test_the_adroit_demonstrations_in_place(pusht_human: Path) -> None:
    from flowleap.policy.core.versions import package_versions

    if not package_versions("gymnasium-robotics")["gymnasium-robotics"]:
        pytest.skip("needs pip install 'flowleap[robotics]'")
    file = pusht_human.parent.parent / "adroit_door_human" / "door_human_25.npz"
    result = main(compose("replay", ["task=adroit/door", f"dataset={file}", "episodes=2"]))
    for row, returned in zip(result["rows"], (524.7, 235.0), strict=True):
        assert row["reached"]
        assert row["outcome"]["sum_reward"] == pytest.approx(returned, rel=0.02)
        assert row["outcome"]["hinge_above_1_rad"] == row["recorded"]["hinge_above_1_rad"] is True
        assert row["outcome"]["success"] == row["recorded"]["success"] is False
    assert Path("runs/replay/adroit_door.json").is_file()


# Seeds


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_collected_episodes_replay_exactly_from_their_seeds(noise: float) -> None:
    store = collect("probe/slalom", f"action_noise={noise * 0.05}")
    result = main(compose("replay", ["task=probe/slalom", f"dataset={store}"]))
    for row in result["rows"]:
        assert row["reached"]
        assert row["outcome"]["success"]
        assert row["recorded"]["success"]
        assert row["start_difference"] == row["mean_difference"] == 0.0


def test_metaworld_replays_exactly_from_its_seeds() -> None:
    pytest.importorskip("metaworld")
    store = collect("metaworld/reach-v3")
    result = main(compose("replay", ["task=metaworld/reach-v3", f"dataset={store}"]))
    assert [row["mean_difference"] for row in result["rows"]] == [0.0, 0.0]
    assert result["summary"]["success"]["replayed"]["count"] == 2


def test_versions_that_differ_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    store = EpisodeStore(collect("probe/slalom"))
    assert store.spec is not None
    old = dataclasses.replace(store.spec, source={**store.spec.source, "versions": {"mujoco": "2.1.0"}})
    with EpisodeWriter("old.zarr", old) as writer:
        assert store.episode_seeds is not None
        for index, seed in enumerate(store.episode_seeds):
            writer.add(store.episode(index), seed=int(seed))
    assert cli.main(["replay", "task=probe/slalom", "dataset=old.zarr"]) == 0
    assert "mujoco 2.1.0 when recorded, 3." in capsys.readouterr().out
    assert version_differences({"no-such-package": "1"}, None) == [
        "no-such-package 1 when recorded, not installed here"
    ]


# Errors


def test_what_cannot_be_replayed_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    spec = make_task("probe/slalom").spec
    columns = {key: np.zeros((3, *obs.shape), np.float32) for key, obs in spec.observations.items()}
    with EpisodeWriter("noseed.zarr", spec) as writer:
        writer.add(columns | {"action": np.zeros((3, 2), np.float32)})
    other = dataclasses.replace(spec, source={"task": "probe/other"})
    with EpisodeWriter("other.zarr", other) as writer:
        writer.add(columns | {"action": np.zeros((3, 2), np.float32)}, seed=4)
    dataset = "task=probe/slalom", "dataset=noseed.zarr"
    assert "cannot be reset to a recorded state, only to a seed, and 'noseed.zarr' has no seeds" in fails(
        capsys, *dataset
    )
    assert "the seeds in 'other.zarr' are of probe/other" in fails(
        capsys, "task=probe/slalom", "dataset=other.zarr"
    )
    assert "needs column 'agent_pos'" in fails(capsys, "task=pusht/state", "dataset=noseed.zarr")
    assert "'task' is required" in fails(capsys, "dataset=noseed.zarr", code=2)
    assert "episodes=0 must be" in fails(capsys, *dataset, "episodes=0")
    assert not Path("runs").exists()


def test_the_rule_of_reaching() -> None:
    door, board = make_task("adroit/door"), make_task("pusht/state")
    reached = {"success": False, "max_reward": 0.89, "sum_reward": 100.0}
    assert reaches(board, reached, {"max_reward": 0.9}, 0.02)
    assert not reaches(board, reached, {"max_reward": 0.92}, 0.02)
    assert not reaches(board, reached, {}, 0.02)
    assert reaches(door, reached, {"success": False, "sum_reward": 500.0}, 0.02)
    assert not reaches(door, reached, {"success": True}, 0.02)
    assert reaches(door, reached, {"sum_reward": 101.0}, 0.02)
    assert not reaches(door, reached, {"sum_reward": 110.0}, 0.02)
    assert reaches(door, {"success": False, "sum_reward": -101.0}, {"sum_reward": -100.0}, 0.02)
