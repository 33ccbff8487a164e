"""A policy and its export, scored and timed in one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowleap.scripts.cli import main as cli


def test_exports_are_scored_and_timed_beside_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["collect", "task=probe/slalom", "episodes=2", "n_envs=1"]) == 0
    words = [
        "suite=latency",
        "objectives=[isd]",
        "task=probe/slalom",
        "dataset=data/probe/slalom.zarr",
        "seeds=[0]",
        "episodes=2",
    ]
    small = 'train="trainer.steps=4 backbone.width=16 trainer.batch_size=8"'
    assert cli.main(["benchmark", *words, small, "formats=[onnx]", "results=results"]) == 0
    written = json.loads(Path("results/one_step_probe_slalom.json").read_text())
    rows = {(row["objective"], row["nfe"]): row for row in written["table"]}
    assert set(rows) == {("isd", 1), ("isd, onnx", 1)}
    # The export is the policy: the same episodes come out the same.
    assert rows["isd, onnx", 1]["mean_max_reward"] == pytest.approx(
        rows["isd", 1]["mean_max_reward"], abs=1e-3
    )
    assert rows["isd, onnx", 1]["train_steps"] == [4]
    times = {label: entry["p50_ms"] for label, entry in written["latency"]["times"].items()}
    assert set(times) == {"isd, NFE 1", "isd, onnx, NFE 1"}
    assert cli.main(["benchmark", "suite=metaworld50", "formats=[onnx]"]) != 0
