"""Which columns hold the actions, and other names of columns: the same options for all formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from layouts import LAYOUTS, write_lerobot, write_npz, write_robomimic, write_zarr

from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.frames import Frames
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey
from flowleap.scripts.cli import main as cli

pytest.importorskip("h5py", reason="needs flowleap[formats]")
pytest.importorskip("pyarrow", reason="needs flowleap[formats]")
KINDS = pytest.mark.parametrize("kind", LAYOUTS)


def recording(*names: str) -> list[dict[str, np.ndarray]]:
    """Two episodes: each column counts on from its place in `names`; `hand*` is a number a frame."""
    made = []
    for length in (5, 3):
        steps = np.arange(length, dtype=np.float32)
        made.append(
            {
                key: i + (steps if key.startswith("hand") else np.stack([steps, -steps], 1))
                for i, key in enumerate(names)
            }
        )
    return made


@KINDS
def test_actions_of_several_columns_and_new_names(tmp_path: Path, kind: str) -> None:
    episodes = recording("pos", "arm_cmd", "hand_cmd", "reward_like")
    path = LAYOUTS[kind](tmp_path / "x", episodes)
    chosen = {"action": ["arm_cmd", "hand_cmd"], "rename": {"joints": "pos", "reward": "reward_like"}}
    with open_dataset(path, **chosen) as source:
        assert list(source.spec.observations) == ["joints"]
        assert source.unused["reward"] == "a reward"
        assert source.spec.action_dim == 3
        assert source.attrs["action_columns"][1].endswith("hand_cmd")
        for i, episode in enumerate(episodes):
            got = source.episode(i)
            np.testing.assert_array_equal(got["joints"], episode["pos"])
            np.testing.assert_array_equal(
                got["action"], np.c_[episode["arm_cmd"], episode["hand_cmd"]].astype(np.float32)
            )
        columns = source.columns()
        assert list(columns) == ["joints", "action"]
        np.testing.assert_array_equal(columns["action"][5], [1, 1, 2])
    with open_dataset(path, keys=["joi*"], drop=[0], **chosen) as source:
        np.testing.assert_array_equal(source.columns()["joints"], episodes[1]["pos"])


@KINDS
def test_options_that_name_nothing(tmp_path: Path, kind: str) -> None:
    path = LAYOUTS[kind](tmp_path / "x", recording("pos", "action"))
    for options, message in (
        ({"action": "act"}, "action: '.*' has no column 'act', only .*did you mean 'action'"),
        ({"action": []}, "names no column: say action=NAME"),
        ({"rename": {"joints": "po"}}, "rename: '.*' has no column 'po', only .*did you mean 'pos'"),
        ({"rename": {"action": "pos"}}, "the actions are chosen by action=pos"),
        ({"rename": {"a": "pos", "b": "pos"}}, "two columns of .* would have one name, or one two names"),
        ({"rename": {"a/b": "pos"}}, "cannot name a column"),
        ({"rename": {"a": 3}}, r"say rename=\{NEW:OLD\}"),
    ):
        with pytest.raises(FlowleapError, match=message):
            open_dataset(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("write", [write_zarr, write_npz, write_lerobot, write_robomimic])
def test_actions_of_no_known_name(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(tmp_path / "x", recording("pos", "action_left", "hand_action"))
    with pytest.raises(FlowleapError, match=r"has no column 'action', only .*; action=\[") as caught:
        open_dataset(path)
    remedy = str(caught.value).partition("action=[")[2].partition("]")[0]
    with open_dataset(path, action=remedy.split(",")) as source:
        assert source.spec.action_dim == 3
        np.testing.assert_array_equal(source.episode(0)["action"][1], [2, 0, 3])


@pytest.mark.parametrize("kind", ["zarr", "npz", "folder", "lerobot"])
def test_openpi_names(tmp_path: Path, kind: str) -> None:
    path = LAYOUTS[kind](tmp_path / "x", recording("actions", "state"))
    with open_dataset(path) as source:
        assert list(source.fields) == ["state", "action"]
        np.testing.assert_array_equal(source.episode(0)["action"][2], [2, -2])
        np.testing.assert_array_equal(source.episode(0)["state"][2], [3, -1])


def test_agibot_names(tmp_path: Path) -> None:
    own = ("observation.states.joint.position", "observation.states.end.position")
    names = ("actions.effector.position", "actions.end.position", "actions.joint.position")
    with open_dataset(write_lerobot(tmp_path / "x", recording(*own, *names))) as source:
        assert list(source.spec.observations) == ["states.joint.position", "states.end.position"]
        assert set(source.unused) == {"actions.end.position"}
        np.testing.assert_array_equal(source.episode(0)["action"][1], [5, 3, 3, 1])


def test_aloha_and_so100_names(tmp_path: Path) -> None:
    names = ("observation.state", "observation.effort", "observation.environment_state", "next.reward")
    with open_dataset(write_lerobot(tmp_path / "x", recording(*names, "action", "info"))) as source:
        assert list(source.spec.observations) == ["state", "effort", "environment_state"]
        assert set(source.unused) == {"next.reward", "info"}
    with open_dataset(tmp_path / "x", keys=["observation.effort", "info"]) as source:
        assert list(source.spec.observations) == ["effort", "info"]
    with open_dataset(tmp_path / "x", rename={"q": "observation.state"}) as source:
        assert list(source.spec.observations) == ["q", "effort", "environment_state"]


def test_an_own_store_and_other_actions_of_it(tmp_path: Path) -> None:
    path = write_robomimic(tmp_path / "x", recording("pos", "action", "action_abs"))
    assert cli.main(["convert", f"source={path}", f"out={tmp_path}/y.zarr", "action=action_abs"]) == 0
    with open_dataset(tmp_path / "y.zarr") as source:
        assert (source.spec.action_dim, list(source.spec.observations)) == (2, ["pos"])
        np.testing.assert_array_equal(source.episode(0)["action"][1], [3, 1])
    assert cli.main(["convert", f"source={path}", f"out={tmp_path}/z.zarr", "actions=action_abs"]) == 0


def test_nothing_but_what_is_never_observed(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x", recording("reward", "action"))
    with pytest.raises(FlowleapError, match=r"nothing to observe: reward \(a reward\); keys=\[NAME\]"):
        open_dataset(path)
    for options in ({"keys": ["reward"]}, {"rename": {"score": "reward"}}):
        with open_dataset(path, **options) as source:  # type: ignore[arg-type]
            assert len(source.spec.observations) == 1
    with pytest.raises(FlowleapError, match=r"nothing to observe: time \(a time\)"):
        open_dataset(path, rename={"time": "reward"})


def test_images_of_a_store_under_another_name(tmp_path: Path) -> None:
    import zarr

    path = write_zarr(tmp_path / "x.zarr", recording("pos", "cmd"))
    images = np.random.default_rng(0).integers(0, 255, (8, 16, 16, 3), np.uint8)
    zarr.open_group(path, mode="a").create_array("data/cam_high", data=images)
    depth = np.random.default_rng(1).uniform(0.5, 3, (8, 16, 16)).astype(np.float32)
    zarr.open_group(path, mode="a").create_array("data/depth_high", data=depth)
    with open_dataset(path, action="cmd", rename={"deep": "depth_high"}) as source:
        frames = source.columns()["deep"]
        assert isinstance(frames, Frames)
        np.testing.assert_array_equal(frames.take(np.arange(8))[..., 0], depth)
    with open_dataset(path, action="cmd", rename={"top": "cam_high"}, drop=[0]) as source:
        assert source.spec.observations["top"] == ObsKey((16, 16, 3), "uint8", "rgb")
        windows = load_columns(None, source).windows()
        np.testing.assert_array_equal(windows.gather(np.arange(3))["obs"]["top"][:, 0], images[5:])


def test_every_verb_takes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_zarr(tmp_path / "x.zarr", recording("pos", "arm_cmd", "hand_cmd"))
    chosen = ["action=[arm_cmd,hand_cmd]", "rename={joints:pos}"]
    assert cli.main(["inspect", f"dataset={path}", *chosen]) == 0
    assert "obs joints[2] | action [3]" in capsys.readouterr().out
    train = ["trainer.dry_run=true", "trainer.device=cpu", f"run_dir={tmp_path}/run"]
    assert cli.main(["train", f"dataset={path}", *chosen, *train]) == 0
    assert "joints [" in capsys.readouterr().out
    assert cli.main(["train", f"dataset={path}", *train]) == 1
    assert "has no column 'action'" in capsys.readouterr().err


# The Hugging Face Hub


def test_a_name_of_the_hub_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = "hf://lerobot/pusht, or `hf download lerobot/pusht --repo-type dataset --local-dir data/pusht`"
    with pytest.raises(FlowleapError, match=f"{message} and then dataset=data/pusht"):
        open_dataset("lerobot/pusht")
    (tmp_path / "data").mkdir()
    with pytest.raises(FlowleapError, match="dataset 'data/pusht' does not exist"):
        open_dataset("data/pusht")
    with pytest.raises(FlowleapError, match="write hf://OWNER/NAME"):
        open_dataset("hf://pusht")


def test_datasets_of_the_hub_are_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, asked = write_lerobot(tmp_path / "x", recording("state", "action")), []

    def snapshot_download(
        name: str, *, repo_type: str, revision: str | None, allow_patterns: list[str] | None
    ) -> str:
        assert allow_patterns is None, "a dataset is fetched whole"
        asked.append((name, repo_type, revision))
        if name == "me/gone":
            raise FileNotFoundError("no network")
        return str(path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert cli.main(["inspect", "dataset=hf://me/mine"]) == 0
    with open_dataset("hf://datasets/me/mine@v3.0") as source:
        assert source.path == path
    assert asked == [("me/mine", "dataset", None), ("me/mine", "dataset", "v3.0")]
    with pytest.raises(FlowleapError, match=r"hf://me/gone cannot be fetched \(no network\).*`hf download"):
        open_dataset("hf://me/gone")
