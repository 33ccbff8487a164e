"""docs/robot.md, from recording to running: its commands, on the fake robot process of the example."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flowleap.scripts.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "robot.md").read_text(encoding="utf-8")


def test_the_page_leads_to_a_robot_that_reaches_its_goals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The programs of the robot run in processes of their own, the verbs in this one."""
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^    (.*)$", PAGE, re.MULTILINE)
    assert [shlex.split(command)[1] for command in commands[1:4]] == ["inspect", "train", "export"]
    said = ""
    for command in commands:
        program, *words = shlex.split(command)
        if program == "flowleap":
            words += ["trainer.device=cpu", "trainer.progress=false"] if words[0] == "train" else []
            assert cli.main(words) == 0, capsys.readouterr().err
            said += capsys.readouterr().out
        else:
            line = [sys.executable, str(ROOT / words[0]), *words[1:]]
            done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr
            said += done.stdout
    offline = re.search(r"of a chunk, ([\d.]+) % of its executed part", said)
    assert offline
    assert float(offline[1]) < 5
    reached = re.search(r"reached (\d) of 5 goals", said)
    assert reached
    assert int(reached[1]) >= 4
