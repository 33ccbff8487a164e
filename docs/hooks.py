"""Pages that mkdocs builds from elsewhere, so that nothing is written twice and nothing goes stale.

index.md, contributing.md, changelog.md and security.md are files of the root; options.md is written by
`config_keys.py`; the API pages, one a folder, name every public module that the folder holds.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
COPIED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
FOLDERS = ("policy", "envs", "datasets")
RENAMED = {"flowleap.policy.deploy.lerobot": "flowleap.lerobot"}


def packages() -> dict[str, list[str]]:
    """API page -> the modules on it, the package itself first where it has an `__init__.py`."""
    pages = {}
    for top in FOLDERS:
        nested = [p.parent for p in sorted((ROOT / top).rglob("__init__.py")) if p.parent != ROOT / top]
        for folder in [ROOT / top, *nested]:
            dotted = "flowleap." + ".".join(folder.relative_to(ROOT).parts)
            dotted = RENAMED.get(dotted, dotted)
            modules = [
                f"{dotted}.{p.stem}" for p in sorted(folder.glob("*.py")) if not p.stem.startswith("_")
            ]
            own = [dotted] if (folder / "__init__.py").is_file() else []
            pages[f"api/{dotted.removeprefix('flowleap.')}.md"] = own + modules
    return pages


def on_config(config: Any) -> Any:
    """Add the API pages to the navigation, under `Reference`."""
    api = [{page.removeprefix("api/").removesuffix(".md"): page} for page in packages()]
    for section in config.nav:
        if "Reference" in section:
            section["Reference"].append({"Python API": api})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are no files below docs/."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        config_keys = importlib.reload(importlib.import_module("config_keys"))
    finally:
        sys.path.remove(str(ROOT / "docs"))
    pages = {page: _copied((ROOT / name).read_text()) for name, page in COPIED.items()}
    pages["options.md"] = config_keys.page()
    for page, modules in packages().items():
        name = page.removeprefix("api/").removesuffix(".md")
        blocks = [f"::: {module}" for module in modules]
        if modules[0] == f"flowleap.{name}":  # the package: its heading is the page's
            # What it imports is documented where it is defined.
            blocks[0] += "\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
            blocks[0] += "      members: false"
            names = exported(ROOT / "typings" / "flowleap" / name.replace(".", "/") / "__init__.py")
            if names:
                listed = ", ".join(f"`{exported_name}`" for exported_name in names)
                blocks.insert(1, f"`from {modules[0]} import` {listed}")
        pages[page] = "\n\n".join([f"# flowleap.{name}", *blocks]) + "\n"
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def exported(file: Path) -> list[str]:
    """The names in `__all__` of a package."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and any(ast.unparse(target) == "__all__" for target in node.targets):
            return list(ast.literal_eval(node.value))
    return []


def _copied(text: str) -> str:
    """A file of the root as a page: links into docs/ lose the folder, those to other copied files become pages."""
    text = re.sub(r"\]\(docs/", "](", text)
    text = re.sub(r'(src|href)="docs/', r'\1="', text)
    for name, page in COPIED.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text
