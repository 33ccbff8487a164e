"""README and documentation: short enough, in step with the results and with the code, no dead links."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flowleap.scripts.cli.run import compose
from flowleap.scripts.cli.verbs import VERBS
from flowleap.scripts.cli.words import overrides

ROOT = Path(__file__).resolve().parent.parent
RESULTS = sorted((ROOT / "docs" / "results").glob("*.json"))
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
PROJECT = [ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
MADE = {  # pages that docs/hooks.py makes
    "docs/index.md",
    "docs/options.md",
    "docs/contributing.md",
    "docs/changelog.md",
    "docs/security.md",
}
README_WORDS = 900


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_readme_is_short() -> None:
    assert len(README.read_text().split()) <= README_WORDS


def test_tables_are_made_from_the_results() -> None:
    command = [sys.executable, str(ROOT / "docs" / "tables.py"), "--check"]
    assert subprocess.run(command).returncode == 0, "run `python docs/tables.py`"


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_results_hold_their_command_and_no_machine_paths(file: Path) -> None:
    text = file.read_text()
    result = json.loads(text)
    assert result["command"].startswith("flowleap ")
    assert "versions" in result["origin"]
    assert not re.search(r'"(/[a-z]|[A-Z]:\\)', text), "an absolute path"


def commands(file: Path) -> list[tuple[str, list[str]]]:
    """The lines `    flowleap VERB key=value ...` of a page, less those with `...`, flags or capital placeholders."""
    text = file.read_text().replace("\\\n", " ")
    lines = re.findall(r"^    flowleap (\w+) *([^#\n]*)", text, re.M)
    found = [(verb, shlex.split(rest)) for verb, rest in lines if verb in VERBS]
    return [
        (verb, words)
        for verb, words in found
        if not any(word == "..." or word.startswith("-") for word in words)
    ]


def test_commands_compose() -> None:
    """Every command line of README and documentation is one that `flowleap` accepts."""
    assert len(commands(README)) >= 8
    lines = {(verb, *words): name_of(file) for file in PAGES for verb, words in commands(file)}
    for (verb, *words), file in lines.items():
        try:
            compose(verb, overrides(verb, words))
        except Exception as error:
            pytest.fail(f"{file}: flowleap {verb} {' '.join(words)}: {error}")


@pytest.mark.parametrize("file", [*PAGES, *PROJECT], ids=name_of)
def test_local_links_exist(file: Path) -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)(?:#[^)]*)?\)", file.read_text()):
        target = (file.parent / link).resolve()
        made = target.relative_to(ROOT).as_posix()
        assert target.exists() or made in MADE or made.startswith("docs/api/"), link


@pytest.mark.parametrize("file", PAGES, ids=name_of)
def test_python_blocks_parse_and_their_imports_exist(file: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", file.read_text(), re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flowleap"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def test_no_marker_without_a_table() -> None:
    """Markers come in pairs, and each table of docs/tables.py stands somewhere."""
    tables = "".join((ROOT / "docs" / name).read_text() for name in ("tables.py", "claims.py"))
    used = set()
    for file in PAGES:
        opened = re.findall(r"^<!-- (\w+) -->$", file.read_text(), re.M)
        closed = re.findall(r"^<!-- /(\w+) -->$", file.read_text(), re.M)
        assert opened == closed, file
        used |= set(opened)
    for name in used:
        assert f"def {name}(" in tables


def test_option_page_has_every_verb_and_option() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        config_keys = importlib.import_module("config_keys")
    finally:
        sys.path.remove(str(ROOT / "docs"))
    page = config_keys.page()
    for verb in VERBS:
        assert f"### flowleap {verb}\n" in page
    for key in ("dataset", "trainer.lr", "objective.p", "backbone.width", "encoder.crop", "head_sigma"):
        assert f"| `{key}` |" in page, key


def test_site_builds(tmp_path: Path) -> None:
    """`mkdocs build --strict`, where mkdocs is installed."""
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "objective.derivative" in (tmp_path / "site" / "options.html").read_text()
    assert "flowleap.policy.policy.Policy.act" in (tmp_path / "site" / "api" / "policy.html").read_text()
