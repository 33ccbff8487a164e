"""What `flowleap inspect` finds suspicious, in data that are made so, and not in the human demonstrations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.formats.zarr_store import EpisodeWriter
from flowleap.datasets.quality.checks import Checks
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.scripts.cli import main as cli

SPEC = Spec({"q": ObsKey((2,)), "timestamp": ObsKey((), "float64")}, 3)
Episodes = list[dict[str, np.ndarray]]


def episodes() -> Episodes:
    """Ten smooth episodes; the last action is a gripper that opens and closes."""
    made = []
    for i in range(10):
        t = np.arange(50.0)
        wave = np.sin(t / 8 + i)
        made.append(
            {
                "q": np.stack([wave, np.cos(t / 9 + i)], axis=1),
                "timestamp": t / 10,
                "action": np.stack([0.9 * wave, wave**3, np.sign(wave + 1e-9)], axis=1),
            }
        )
    return made


def findings(path: Path, made: Episodes) -> list[str]:
    with EpisodeWriter(path, SPEC) as writer:
        for episode in made:
            writer.add(episode)
    with open_dataset(path) as source:
        checks = Checks(source)
    assert checks.lengths.tolist() == [len(episode["action"]) for episode in made]
    assert all(finding.remedy for finding in checks.findings)
    return [finding.problem for finding in checks.findings]


def test_smooth_data_are_not_suspicious(tmp_path: Path) -> None:
    assert findings(tmp_path / "a.zarr", episodes()) == []


def test_each_fault_is_found_alone(tmp_path: Path) -> None:
    constant, clipped, jumping, late, twice = (episodes() for _ in range(5))
    for episode in constant:
        episode["q"][:, 1] = 3
    for episode in clipped:
        episode["action"][:, 0] = np.clip(episode["action"][:, 0], -9, 0.5)
    jumping[4]["action"][20, 1] *= -1
    jumping[4]["action"][20, 1] = 1 if jumping[4]["action"][19, 1] < 0 else -1
    late[7]["timestamp"][30:] += 0.2
    twice[9] = twice[2]
    (found,) = findings(tmp_path / "a.zarr", constant)
    assert found == "'q' is constant in dimensions 1"
    (found,) = findings(tmp_path / "b.zarr", clipped)
    assert found.startswith("action dimension 0 is clipped: 0.5 in ")
    (found,) = findings(tmp_path / "c.zarr", jumping)
    assert found == "action dimension 1 jumps by more than half its range in 1 episodes: episode 4"
    (found,) = findings(tmp_path / "d.zarr", late)
    assert found == "time stamps with gaps in 1 episodes: episode 7"
    (found,) = findings(tmp_path / "e.zarr", twice)
    assert found == "the same low-dim data 2 times: episode 2, episode 9"


def test_inspect_reads_other_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py", reason="needs flowleap[formats]")
    findings(tmp_path / "a.zarr", episodes())
    assert cli.main(["convert", f"source={tmp_path}/a.zarr", f"out={tmp_path}/a.hdf5"]) == 0
    assert cli.main(["inspect", f"dataset={tmp_path}/a.hdf5"]) == 0
    text = capsys.readouterr().out
    for part in ("a.hdf5 (robomimic)", "10, of 50 to 50 frames", "500 frames", "nothing suspicious"):
        assert part in text, part


def test_time_stamps_against_the_rate(tmp_path: Path) -> None:
    odd = episodes()
    odd[3]["timestamp"] *= 2
    (problem,) = findings(tmp_path / "odd.zarr", odd)
    assert problem == "time stamps of another rate than in the other episodes in 1: episode 3"
    with open_dataset(tmp_path / "odd.zarr", drop=[0]) as source:
        (finding,) = Checks(source).findings
    assert finding.problem.endswith("episode 3")
    assert finding.remedy == "resample these episodes, or leave out the episodes with drop=[0,3]"
    back = episodes()
    back[4]["timestamp"][[10, 11]] = back[4]["timestamp"][[11, 10]]
    with EpisodeWriter(tmp_path / "back.zarr", SPEC) as writer:
        for episode in back:
            writer.add(episode)
    with open_dataset(tmp_path / "back.zarr", lenient=True) as source:
        (found,) = Checks(source).findings
    assert "'timestamp' goes back from 1.1 to 1.0 at frame 11" in found.problem
    assert found.remedy.endswith("drop=[4]")
