"""The README tells what the results say, and the results say how they were made."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowleap.scripts.cli.main import override
from flowleap.scripts.cli.run import compose

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))


def test_readme_tables_are_made_from_the_results() -> None:
    command = [sys.executable, str(ROOT / "docs" / "tables.py"), "--check"]
    assert subprocess.run(command).returncode == 0, "run `python docs/tables.py`"


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_results_hold_their_command_and_no_machine_paths(file: Path) -> None:
    text = file.read_text()
    result = json.loads(text)
    assert result["command"].startswith("flowleap ")
    assert "versions" in result["origin"]
    assert not re.search(r'"(/[a-z]|[A-Z]:\\)', text), "an absolute path"


def test_commands_of_the_readme_compose() -> None:
    """Every `flowleap VERB key=value` line of the README is a valid command line."""
    lines = re.findall(r"^    flowleap (\w+) ([^#\n]*)", (ROOT / "README.md").read_text(), re.M)
    assert len(lines) >= 8
    for verb, rest in lines:
        compose(verb, [override(verb, word) for word in rest.split()])


def test_local_links_of_the_readme_exist() -> None:
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", (ROOT / "README.md").read_text())
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
