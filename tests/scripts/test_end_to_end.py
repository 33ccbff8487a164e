"""The path a user walks, on the real Push-T demonstrations: train, resume, eval, export, eval of the export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flowleap.datasets.formats.zarr_writer import EpisodeWriter
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.policy import Policy
from flowleap.scripts.cli import main as cli

pytest.importorskip("gym_pusht")
pytest.importorskip("onnxruntime")

TINY = [
    "backbone.width=32",
    "backbone.depth=1",
    "trainer.batch_size=32",
    "trainer.warmup_steps=5",
    "trainer.device=cpu",
    "trainer.progress=false",
]


def run(*words: str) -> None:
    assert cli.main(list(words)) == 0


@pytest.fixture(scope="module")
def run_dir(pusht_human: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy, trained for a few steps on the human data, stopped half-way and resumed."""
    out = tmp_path_factory.mktemp("e2e") / "run"
    where = [f"dataset={pusht_human}", f"run_dir={out}"]
    run(
        "train",
        "task=pusht/keypoints",
        *where,
        "trainer.steps=40",
        "trainer.stop_at=20",
        "trainer.log_every=20",
        *TINY,
    )
    run("train", f"resume={out}", "trainer.stop_at=0")
    return out


def test_train_writes_what_people_look_for(run_dir: Path) -> None:
    assert (run_dir / "config.yaml").is_file()
    assert (run_dir / "tensorboard").is_dir()
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20, 40]
    assert {"loss", "fm", "sd", "lr", "grad_norm", "samples_per_s"} <= rows[-1].keys()
    policy = Policy.load(run_dir)
    assert policy.spec.observations["keypoints"].shape == (16,)
    assert (policy.spec.n_obs_steps, policy.spec.horizon, policy.spec.n_action_steps) == (2, 16, 8)


def test_eval_and_export_agree(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exported policy, rolled out on the same seeds, reproduces the scores of the checkpoint."""
    common = ["episodes=2", "seed=100000", "videos=0"]
    run("eval", f"checkpoint={run_dir}", "steps=1", "n_envs=1", f"out={tmp_path}/one.json", *common)
    assert "NFE 1" in capsys.readouterr().out
    run("eval", f"checkpoint={run_dir}", "steps=1", "n_envs=2", f"out={tmp_path}/two.json", *common)
    run("export", f"checkpoint={run_dir}", f"out={tmp_path}/export")
    run("eval", f"checkpoint={tmp_path}/export", "n_envs=1", f"out={tmp_path}/export.json", *common)
    one, two, export = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two", "export")
    )
    assert one["rows"] == two["rows"]  # bitwise: outcomes do not depend on n_envs
    assert [row["seed"] for row in one["rows"]] == [100000, 100001]
    assert one["nfe"] == export["nfe"] == 1
    for a, b in zip(one["rows"], export["rows"], strict=True):
        assert a["max_reward"] == pytest.approx(b["max_reward"], abs=0.05)
    assert one["summary"]["success"]["n"] == 2
    assert one["actor"]["training"]["step"] == 40


def test_dry_run_writes_nothing(
    pusht_human: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    where = [f"dataset={pusht_human}", f"run_dir={out}", "trainer.dry_run=true"]
    run("train", "task=pusht/state", *where, *TINY)
    text = capsys.readouterr().out
    assert "51300 windows of 206 episodes and their mirror images" in text
    assert "one step" in text
    assert not out.exists()


def test_own_data_needs_no_simulator(tmp_path: Path) -> None:
    """README's promise: arrays in, a policy out, without any task."""
    rng = np.random.default_rng(0)
    spec = Spec({"joints": ObsKey((5,))}, action_dim=3, control_hz=20.0)
    with EpisodeWriter(tmp_path / "own.zarr", spec, {}) as writer:
        for length in (12, 30):
            writer.add(
                {
                    "joints": rng.normal(size=(length, 5)).astype(np.float32),
                    "action": rng.normal(size=(length, 3)).astype(np.float32),
                }
            )
    run(
        "train",
        f"dataset={tmp_path}/own.zarr",
        f"run_dir={tmp_path}/run",
        "trainer.steps=3",
        "horizon=8",
        *TINY,
    )
    policy = Policy.load(tmp_path / "run")
    assert policy.spec.horizon == 8
    assert policy.spec.control_hz == 20.0
    assert cli.main(["eval", f"checkpoint={tmp_path}/run"]) == 1  # no task to roll out in: said, not crashed


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "task=pusht/keypoints"], 1, "dataset=PATH"),
        (["train", "task=pusht/keypoints", "dataset=/no/such/place.zarr"], 1, "/no/such/place.zarr"),
        (["train", "task=pusht/keypoints", "dataset=x", "trainer.lrr=1"], 2, "trainer.lr"),
        (["train", "task=pusht/keypoints", "dataset=x", "objective=isdd"], 2, "isd"),
        (["train", "task=pusht/keypoint", "dataset=x"], 2, "pusht/keypoints"),
        (["train", "resume=/no/run"], 1, "/no/run"),
        (["eval"], 2, "checkpoint"),
        (["eval", "checkpoint=/no/run"], 1, "/no/run"),
        (["export", "checkpoint=/no/run"], 1, "/no/run"),
    ],
)
def test_mistakes_get_one_line_and_an_exit_code(
    words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_mismatch_between_dataset_task_and_checkpoint(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", f"checkpoint={run_dir}", "task=pusht/state", "episodes=1"]) == 1
    assert "keypoints" in capsys.readouterr().err
    spec = Spec({"joints": ObsKey((5,))}, action_dim=2)
    with EpisodeWriter(tmp_path / "other.zarr", spec, {}) as writer:
        writer.add({"joints": np.zeros((4, 5), np.float32), "action": np.zeros((4, 2), np.float32)})
    assert cli.main(["train", "task=pusht/keypoints", f"dataset={tmp_path}/other.zarr"]) == 1
    assert "joints" in capsys.readouterr().err
    assert cli.main(["train", f"resume={run_dir}", "objective=regression"]) == 1
    assert "cannot change" in capsys.readouterr().err
    assert cli.main(["eval", f"checkpoint={run_dir}", "steps=0", "episodes=1"]) == 1
    assert "steps >= 1" in capsys.readouterr().err
