"""The studies behind docs/stability.md in miniature: teachers, shares of time, shared runs, cases, and their tables."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flowleap.policy.core.errors import FlowleapError
from flowleap.scripts.cli import main as cli
from flowleap.scripts.cli.run import compose
from flowleap.scripts.studies import benchmark

DOCS = Path(__file__).parents[2] / "docs"
SMALL = "backbone.width=16 backbone.depth=1 trainer.batch_size=8 trainer.warmup_steps=1 trainer.log_every=2"


@pytest.fixture(scope="module")
def slalom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("claims") / "slalom.zarr"
    assert cli.main(["collect", "task=probe/slalom", f"out={path}", "episodes=1", "n_envs=1"]) == 0
    return path


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The verbs that a benchmark runs, here in this process: each is said to take 60 s."""
    calls: list[tuple[str, ...]] = []

    def run(verb: str, *words: str) -> float:
        calls.append((verb, *words))
        assert cli.main([verb, *words]) == 0
        return 60.0

    monkeypatch.setattr(benchmark, "run_flowleap", run)
    return calls


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tables, of results in a folder of the test."""
    monkeypatch.syspath_prepend(str(DOCS))
    tables, claims = importlib.import_module("tables"), importlib.import_module("claims")
    for module in (tables, claims):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    yield claims
    for name in ("tables", "claims"):
        sys.modules.pop(name)


def words(slalom: Path, tmp_path: Path, suite: str, *more: str) -> list[str]:
    fixed = [
        f"suite={suite}",
        "task=probe/slalom",
        f"dataset={slalom}",
        "seeds=[0]",
        "episodes=1",
        "parallel=1",
    ]
    return [*fixed, f"out={tmp_path / suite}", f"results={tmp_path}", *more]


def test_a_student_learns_from_its_row_and_both_share_the_time(
    slalom: Path, tmp_path: Path, called: list[tuple[str, ...]], claims: Any
) -> None:
    (tmp_path / "distillation").mkdir()
    costs = {"isd": 0.04, "flow_matching-teacher": 0.02, "distillation-eulerian": 0.01}
    (tmp_path / "distillation" / "step_seconds.json").write_text(json.dumps(costs))
    given = words(slalom, tmp_path, "distillation", f'train="trainer.steps=4 {SMALL}"', "nfe.isd=[1]")
    given += ["nfe.flow_matching=[1]", "nfe.distillation=[1]", "name=distillation"]
    # The student is named before its teacher.
    every = "objectives=[isd,distillation-eulerian,flow_matching-teacher]"
    result = benchmark.main(compose("benchmark", [*given, every]))
    trained = [next(w for w in call if w.startswith("objective=")) for call in called if call[0] == "train"]
    assert trained == ["objective=isd", "objective=flow_matching", "objective=distillation"]
    isd, student, teacher = result["table"]
    # 0.16 s for iSD; half of it each.
    assert [row["train_steps"] for row in (isd, teacher, student)] == [[4], [4], [8]]
    assert [row["train_minutes"] for row in (isd, teacher, student)] == [[1.0], [1.0], [2.0]]
    (run,) = (run for run in result["runs"] if run["objective"] == "distillation-eulerian")
    assert run["teacher_minutes"] == 1.0
    assert run["gradient_norm"]["largest"] >= run["gradient_norm"]["median"] > 0
    policy = json.loads(
        next((tmp_path / "distillation").glob("distillation*/checkpoints/last/policy.json")).read_text()
    )
    assert "flow_matching_teacher_equal_time_seed0" in policy["info"]["teacher"]["path"]
    text = claims.distillation()
    assert "| distillation-eulerian | 1 |" in text
    assert "| 2.0 |" in text
    assert claims.stability() == ""
    with pytest.raises(FlowleapError, match="learns from flow_matching-teacher, which is no row"):
        benchmark.main(compose("benchmark", [*given, "objectives=[isd,distillation-eulerian]"]))


def test_rows_that_act_differently_share_their_training(
    slalom: Path, tmp_path: Path, called: list[tuple[str, ...]], claims: Any
) -> None:
    given = words(slalom, tmp_path, "levers", f'train="trainer.steps=4 {SMALL}"', "name=claims_levers_slalom")
    result = benchmark.main(compose("benchmark", [*given, "objectives=[isd,isd-warm_start]"]))
    assert [call[0] for call in called] == ["train", "eval", "eval"]
    assert "warm_start=0.15" in called[2]
    assert "warm_start=0.15" not in called[1]
    assert [row["objective"] for row in result["table"]] == ["isd", "isd-warm_start"]
    assert "| isd-warm_start | 1 |" in claims.levers()
    given = words(
        slalom, tmp_path, "stability", f'train="trainer.steps=4 {SMALL}"', "name=claims_stability_slalom"
    )
    benchmark.main(compose("benchmark", [*given, "objectives=[isd,isd-no_anchor]"]))
    text = claims.stability()
    assert "| isd-no_anchor | 1 |" in text
    assert "largest of the last tenth" in text


def test_cases_of_the_toy_share_a_picture(tmp_path: Path, claims: Any) -> None:
    given = ["cases=anchor", "steps=3", "samples=50", "nfe=[1,2]", "name=claims_toy", f"out={tmp_path}"]
    assert cli.main(["toy", *given, '+cases.mip="objective=mip"']) == 0
    result = json.loads((tmp_path / "claims_toy.json").read_text())
    assert result["command"].startswith("flowleap toy cases=anchor")
    assert list(result["fields"])[:2] == ["anchored", "no_anchor"]
    assert result["fields"]["no_anchor"]["terms"]["fm"] == 0.0  # it counts for nothing
    assert result["fields"]["no_anchor"]["velocity_error"] > 0.1  # and is what it is
    rows = {(row["case"], row["nfe"]): row for row in result["table"]}
    assert ("mip", 1) not in rows
    assert rows["anchored", 2]["from_finest"] == 0.0 < rows["anchored", 1]["from_finest"]
    same, other = rows["no_anchor", 1], rows["no_anchor_other_seed", 1]
    assert same["moved"] != other["moved"]
    assert (tmp_path / "claims_toy.png").stat().st_size > 1000
    assert "| no anchor other seed | 2 |" in claims.fixed_points()
    assert cli.main(["toy", *given, '+cases.wrong="objectiv.p=1"']) == 2
