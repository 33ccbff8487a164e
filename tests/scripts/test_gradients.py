"""The gradient-norm study in miniature."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowleap.scripts.cli import main as cli
from flowleap.scripts.studies import gradients


def test_study_reports_every_case(pusht_human: Path, tmp_path: Path) -> None:
    words = [
        f"dataset={pusht_human}",
        "only=[isd,isd-no_anchor]",
        'train="backbone.width=16 backbone.depth=1 trainer.batch_size=8"',
        "steps=20",
        "episodes=0",
        f"out={tmp_path / 'runs'}",
        f"results={tmp_path}",
    ]
    assert cli.main(["gradients", *words]) == 0
    result = json.loads((tmp_path / "gradient_norms.json").read_text())
    assert list(result["cases"]) == ["isd", "isd-no_anchor"]
    for case in result["cases"].values():
        assert 0 < case["median"] <= case["q95"] <= case["largest"]
        assert (case["ended"], case["score"]) == ("whole", None)
    assert result["cases"]["isd"]["median"] != result["cases"]["isd-no_anchor"]["median"]
    assert (tmp_path / "gradient_norms.png").stat().st_size > 1000


def test_a_training_that_ends_in_nan_is_a_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from flowleap.policy.core.errors import FlowleapError

    def diverge(verb: str, *words: str) -> float:
        run = Path(next(w for w in words if w.startswith("run_dir=")).partition("=")[2])
        run.mkdir(parents=True)
        rows = [{"step": 10, "grad_norm": 1.0}, {"step": 20, "grad_norm": 1e9}]
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
        raise FlowleapError("loss is NaN or infinite at step 21")

    monkeypatch.setattr(gradients, "run_flowleap", diverge)
    cfg = OmegaConf.create(
        {
            "task": {"name": "pusht/keypoints"},
            "dataset": "x",
            "steps": 30,
            "seed": 0,
            "train": "",
            "episodes": 5,
        }
    )
    case, _ = gradients._case(cfg, "objective=esd", tmp_path / "run")
    assert (case["ended"], case["largest"], case["score"]) == ("NaN", 1e9, None)


def test_unknown_case_is_named(pusht_human: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gradients", f"dataset={pusht_human}", "only=[isd-no_anker]"]) == 1
    assert "did you mean 'isd-no_anchor'" in capsys.readouterr().err
