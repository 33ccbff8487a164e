"""A suite of tasks: collected, trained and evaluated, gone on with, and refused under other conditions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flowleap.scripts.cli import main as cli
from flowleap.scripts.cli.compose import CONFIG_DIR
from flowleap.scripts.studies.suite import groups, show
from flowleap.scripts.sweeps import means_of_best

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


def test_the_suite_of_point_clouds_is_the_published_one() -> None:
    """Its difficulties are those of the fifty tasks, and its rows cover it."""
    points, fifty = (
        OmegaConf.load(CONFIG_DIR / "suite" / f"{name}.yaml") for name in ("dp3_points", "metaworld50")
    )
    assert {group: len(tasks) for group, tasks in points.tasks.items()} == {
        "easy": 21,
        "medium": 4,
        "hard": 4,
        "very hard": 5,
    }
    for group, tasks in points.tasks.items():
        assert set(tasks) <= set(fifty.tasks[group])
    every = {task for tasks in points.tasks.values() for task in tasks}
    own, *others = points.published
    assert set(own.scores) == every
    for other in others:
        mean = sum(len(tasks) * other.groups[group] for group, tasks in points.tasks.items()) / len(every)
        assert other.groups["all"] == pytest.approx(mean, abs=1e-3)


def test_published_means_stand_beside_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    row = {
        "objective": "isd",
        "nfe": 1,
        "per_seed": [0.5],
        "success": {"count": 1, "n": 2},
        "mean_of_best": 0.75,
    }
    group = {"group": "hard", "objective": "isd", "nfe": 1, "tasks": 1, "mean": 0.5}
    published = [{"name": "theirs", "differs": "all of it", "groups": {"hard": 0.25}}]
    show({"tasks": {"a": {"group": "hard", "table": [row]}}, "groups": [group], "published": published})
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("0.75", "theirs differs: all of it", "0.25"))


def test_the_mean_of_the_best_checkpoints() -> None:
    def row(step: int, nfe: int, score: float) -> dict[str, object]:
        summary = {"headline": {"value": score}}
        options = {"checkpoint_steps": step, "steps": nfe}
        return {"options": options, "summary": summary, "protocol": {"schedule": [3, 2]}}

    rows = [row(10, 1, 0.2), row(20, 1, 0.9), row(30, 1, 0.7), row(10, 2, 0.4), row(30, 2, 0.6)]
    first, second = means_of_best(rows)
    assert (first["options"], first["checkpoints"]) == ({"steps": 1}, 3)
    assert (first["mean_of_best"], first["last"]) == (pytest.approx(0.8), 0.7)
    assert (second["mean_of_best"], second["last"]) == (pytest.approx(0.5), 0.6)
    assert means_of_best([{**rows[0], "protocol": {"schedule": None}}]) == []
    assert means_of_best([{**rows[0], "options": {"steps": 1}}]) == []
