"""An environment of one's own, from a file to a score, as docs/tasks.md walks it; and what a checkpoint may not ask."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flowleap.scripts.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = ["trainer.steps=40", "trainer.warmup_steps=4", "backbone.width=16", "backbone.depth=1"]
SMALL += ["trainer.device=cpu", "trainer.progress=false"]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """A folder with the page's two files, run; and its commands."""
    text = (ROOT / "docs" / "tasks.md").read_text()
    section = text.partition("## Your own gymnasium environment")[2].partition("\n## ")[0]
    environment, script = re.findall(r"^```python\n(.*?)^```", section, re.M | re.S)
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_envs.py").write_text(environment)
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return folder, [shlex.split(line) for line in re.findall(r"^    (flowleap .*)$", section, re.M)]


def run(folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowleap.scripts.cli.main", *words[1:]]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_page_leads_from_a_file_to_a_score(walk: tuple[Path, list[list[str]]]) -> None:
    folder, (train, evaluate) = walk
    result = run(folder, [*train, *SMALL])
    assert result.returncode == 0, result.stderr
    result = run(folder, [*evaluate, "episodes=3", "n_envs=2", "videos=0"])
    assert result.returncode == 0, result.stderr
    assert "gym/my_envs:Reach-v0: mean return" in result.stdout
    scores = json.loads((folder / "runs/reach/eval/gym-my_envs-Reach-v0_nfe1.json").read_text())
    assert len(scores["rows"]) == 3
    assert list(scores["spec"]["observations"]) == ["state"]

    result = run(folder, ["flowleap", "eval", "checkpoint=runs/reach", "episodes=1"])
    assert result.returncode == 1
    assert "the task of this policy imports my_envs" in result.stderr
    told = shlex.split(result.stderr.partition("say it yourself: ")[2])
    result = run(folder, ["flowleap", "eval", "checkpoint=runs/reach", "episodes=1", "videos=0", *told])
    assert result.returncode == 0, result.stderr
    result = run(folder, ["flowleap", "export", "checkpoint=runs/reach"])
    assert result.returncode == 0, result.stderr
    assert "synthetic" not in result.stdout


def test_other_names_are_an_error_whose_remedy_works(walk: tuple[Path, list[list[str]]]) -> None:
    folder, (train, _) = walk
    plain = [word for word in train if not word.startswith(("task.kwargs", "run_dir"))]
    result = run(folder, plain)
    assert result.returncode == 1
    remedy = re.search(r"'(task\.kwargs\.keys=\S+)'", result.stderr)
    assert remedy, result.stderr
    assert remedy[1] == "task.kwargs.keys={observations:state}"


def test_help_tells_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help", "task=gym/my_envs:Reach-v0"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"task\.kwargs\.imports=\[\] +modules that register environments", text)
