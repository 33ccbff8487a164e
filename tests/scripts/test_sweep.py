"""Sweeps: `flowleap train -m` over seeds and objectives, in turn and through joblib; runs of earlier versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from flowleap.datasets.formats.zarr_writer import EpisodeWriter
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.policy import Policy
from flowleap.scripts.cli import main as cli


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command line that trains for two steps on a small dataset; runs go to a fresh working directory."""
    rng = np.random.default_rng(0)
    with EpisodeWriter(tmp_path / "data.zarr", Spec({"joints": ObsKey((3,))}, action_dim=2), {}) as writer:
        for _ in range(2):
            columns = {
                key: rng.normal(size=(20, n)).astype(np.float32) for key, n in (("joints", 3), ("action", 2))
            }
            writer.add(columns)
    monkeypatch.chdir(tmp_path)
    trainer = {
        "steps": 2,
        "batch_size": 8,
        "warmup_steps": 1,
        "device": "cpu",
        "progress": "false",
        "threads": 1,
    }
    options = [f"trainer.{key}={value}" for key, value in trainer.items()]
    return [
        "train",
        "dataset=data.zarr",
        "backbone.width=16",
        "backbone.depth=1",
        "horizon=4",
        "n_action_steps=2",
        *options,
    ]


def test_one_run_a_combination(words: list[str], tmp_path: Path) -> None:
    assert cli.main([*words, "--multirun", "trainer.seed=0,1", "objective=isd,flow_matching"]) == 0
    (sweep,) = (tmp_path / "runs" / "sweeps").iterdir()
    runs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert runs[0].name == "0_objective-isd_trainer.seed-0"
    seen = set()
    for run in runs:
        info = json.loads((run / "checkpoints" / "last" / "policy.json").read_text())
        seen.add((info["policy"]["objective"]["name"], info["info"]["trainer"]["seed"]))
        assert info["info"]["step"] == 2
    assert seen == {(name, seed) for name in ("isd", "flow_matching") for seed in (0, 1)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.zarr", "runs"]
    assert cli.main(["train", f"resume={runs[0]}", "trainer.steps=3"]) == 0  # the name needs no quotes


def test_a_failing_job_fails_the_sweep_but_not_the_others(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "-m", "trainer.lr=-1,1e-3,-2", "run_dir=sweep"]) == 1
    stderr = capsys.readouterr().err
    assert "error: trainer.lr=-1: trainer.lr must be" in stderr
    assert "error: trainer.lr=-2: trainer.lr must be" in stderr
    assert [path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()] == ["1_trainer.lr-0.001"]


def test_joblib_launcher(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "run_dir=sweep"]
    assert cli.main([*words, "-m", "trainer.seed=0,1", "trainer.lr=1e-3,-1", *launcher]) == 1
    assert "trainer.lr must be" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == [
        "0_trainer.lr-0.001_trainer.seed-0",
        "2_trainer.lr-0.001_trainer.seed-1",
    ]
    Policy.load(tmp_path / "sweep" / "2_trainer.lr-0.001_trainer.seed-1")


def test_a_run_of_an_earlier_version_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config.yaml has keys that have moved since; what is stored next has today's."""
    old = Path(__file__).resolve().parent.parent / "data" / "v0.1"
    for name in ("run", "store.zarr"):
        shutil.copytree(old / name, tmp_path / name, symlinks=True)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "resume=run", "trainer.stop_at=0", "trainer.threads=1"]) == 0
    assert Policy.load(tmp_path / "run").spec.horizon == 16
    stored = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert stored.data == {"mirror": True, "image_cache_mb": 1024}
    assert "mirror" not in stored
    info = json.loads((tmp_path / "run" / "checkpoints" / "last" / "policy.json").read_text())
    assert info["info"]["step"] == 12
