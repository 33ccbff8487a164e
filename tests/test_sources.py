"""docs/sources.md, from the files of each tool to a trained policy: its commands run, on small files of that layout."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import recordings

from flowleap.scripts.cli import main as cli

for _package in ("h5py", "pyarrow", "av"):
    pytest.importorskip(_package, reason="needs flowleap[formats]")

PAGE = (Path(__file__).parent.parent / "docs" / "sources.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
SMALL = [
    "trainer.steps=2",
    "trainer.batch_size=8",
    "trainer.progress=false",
    "trainer.device=cpu",
    "backbone.width=16",
]


def bags(folder: Path) -> None:
    """Two bags as the tests of the format write them."""
    pytest.importorskip("rosbags", reason="needs flowleap[ros]")
    from test_rosbag import write

    folder.mkdir()
    for i in range(2):
        write(folder / f"run_{i}", "ros2", 3.0)


FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "LeRobot, SO-100 and SO-101": ("so101", recordings.so101),
    "openpi and LIBERO": ("openpi", recordings.openpi),
    "UMI": ("umi.zarr", recordings.umi),
    "ALOHA and ACT": ("aloha", recordings.aloha),
    "robomimic": ("lift.hdf5", recordings.robomimic),
    "Isaac Lab": ("isaac.hdf5", recordings.isaac_lab),
    "D4RL and Minari": ("d4rl.hdf5", recordings.d4rl),
    "ROS bags": ("bags", bags),
    "Your own numpy": ("own", recordings.own_numpy),
}
OBSERVED = {
    "LeRobot, SO-100 and SO-101": "state[6], front[48, 64, 3] | action [6]",
    "openpi and LIBERO": "action [7]",
    "UMI": "robot0_gripper_width[1] | action [10]",
    "ALOHA and ACT": "qpos[14], cam_high[48, 64, 3] | action [14]",
    "robomimic": "robot0_eef_pos[3], robot0_gripper_qpos[1] | action [7]",
    "Isaac Lab": "eef_pos[3], gripper_pos[1] | action [7]",
    "D4RL and Minari": "[3] | action [3]",
    "ROS bags": "| action [2]",
    "Your own numpy": "joints[2], width[] | action [3]",
}


def test_every_source_is_tested() -> None:
    assert set(SECTIONS) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_from_files_to_a_policy(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    place, write = FILES[name]
    write(tmp_path / place)
    commands = re.findall(r"^    flowleap (.*)$", SECTIONS[name], re.MULTILINE)
    assert any(command.startswith("train") for command in commands)
    for command in commands:
        verb, *words = shlex.split(command)
        assert cli.main([verb, *words, *(SMALL if verb == "train" else [])]) == 0, command
        said = capsys.readouterr().out
        if verb == "train":
            assert OBSERVED[name] in " ".join(said.split()), said
