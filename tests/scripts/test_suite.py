"""A suite of tasks: collected, trained and evaluated, gone on with, and refused under other conditions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flowleap.scripts.cli import main as cli
from flowleap.scripts.studies.suite import groups

WORDS = [
    "suite=metaworld50",
    "tasks.easy=[probe/slalom]",
    "only=[probe/slalom]",
    "demonstrations=2",
    'collect="action_noise=0.0"',
    "seeds=[0]",
    "episodes=2",
    "parallel=1",
    "results=results",
    "published=[{name: theirs, differs: nothing, scores: {probe/slalom: 0.5}}]",
]
TRAIN = 'train="trainer.steps=4 backbone.width=16 trainer.batch_size=8"'


def test_a_suite_goes_on_and_needs_the_same_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["benchmark", *WORDS, TRAIN]) == 0
    written = json.loads(Path("results/metaworld50.json").read_text())
    (task,) = written["tasks"]
    assert task == "probe/slalom"
    assert written["tasks"][task]["table"][0]["success"]["n"] == 2
    assert written["tasks"][task]["expert"] == {**written["tasks"][task]["expert"], "count": 2, "n": 2}
    assert written["command"].startswith("flowleap benchmark suite=metaworld50")
    assert "theirs" in capsys.readouterr().out
    # Without its runs and data, too.
    shutil.rmtree("runs")
    shutil.rmtree("data")
    assert cli.main(["benchmark", *WORDS, TRAIN]) == 0
    assert not Path("runs/benchmark").exists()
    assert json.loads(Path("results/metaworld50.json").read_text())["tasks"] == written["tasks"]
    assert cli.main(["benchmark", *WORDS, TRAIN, "episodes=3"]) != 0
    assert "episodes=2" in capsys.readouterr().err
    assert cli.main(["benchmark", *WORDS, TRAIN, "only=[probe/slalon]"]) != 0
    assert "probe/slalom" in capsys.readouterr().err
    Path("results/metaworld50.json").write_text('{"tasks": ')
    assert cli.main(["benchmark", *WORDS, TRAIN]) != 0
    assert "cut short" in capsys.readouterr().err


def test_demonstrations_that_are_too_few_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["collect", "task=probe/slalom", "episodes=1", "n_envs=1"]) == 0
    assert cli.main(["benchmark", *WORDS, TRAIN]) != 0
    error = capsys.readouterr().err
    assert "data/probe/slalom.zarr" in error
    assert "1 episode" in error


def test_a_group_is_the_mean_over_its_tasks() -> None:
    def entry(group: str, counts: list[int]) -> dict[str, object]:
        per_seed = [count / 10 for count in counts]
        success = {"count": sum(counts), "n": 10 * len(counts)}
        row = {"objective": "isd", "nfe": 1, "score": sum(per_seed) / len(counts), "per_seed": per_seed}
        return {"group": group, "table": [{**row, "success": success}]}

    found = {"a": entry("easy", [10, 8]), "b": entry("easy", [6, 6]), "c": entry("hard", [1, 3])}
    easy, hard, both = groups(found)
    assert (easy["group"], easy["tasks"], easy["mean"], easy["per_seed"]) == ("easy", 2, 0.75, [0.8, 0.7])
    assert (hard["mean"], both["tasks"]) == (0.2, 3)
    assert both["mean"] == pytest.approx((0.9 + 0.6 + 0.2) / 3)
    assert (both["success"]["count"], both["success"]["n"]) == (34, 60)
