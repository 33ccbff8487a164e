"""What a verb accepts: options with defaults and comments, groups and their choices; and its help page.

All of it is read from the configuration files, so a new option or choice appears here by itself.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowleap import configs
from flowleap.scripts.cli.compose import CONFIG_MODULE, VERSION_BASE, register_tasks
from flowleap.scripts.cli.verbs import VERBS

CONFIG_DIR = Path(configs.__file__).parent
SCRIPTS = Path(__file__).parent.parent
MISSING = "???"


@dataclass(frozen=True)
class Options:
    """The options of a verb under some overrides.

    Attributes:
        values: dotted key -> default; `???` where the user must give one.
        chosen: group -> the choice in use; `null` where there is none, `REQUIRED` where the user must choose.
        choices: group -> all choices, sorted; those of nested folders as `folder/name`.
    """

    values: dict[str, Any]
    chosen: dict[str, str]
    choices: dict[str, list[str]]


def load_options(verb: str, overrides: Sequence[str] = ()) -> Options:
    """Read the options of a verb. Overrides (of groups, for instance) that do not compose are left out."""
    register_tasks(overrides)
    with hydra.initialize_config_module(CONFIG_MODULE, version_base=VERSION_BASE):
        app = GlobalHydra.instance().hydra
        assert app is not None
        composed = _compose(app, verb, overrides)
        runtime = composed.hydra.runtime.choices  # last group first
        picked = {k: _show(v) for k, v in reversed(runtime.items()) if not k.startswith("hydra/")}
        choices = {group: _choices(app.config_loader, group) for group in picked}
    tree = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(tree, dict)
    del tree["hydra"]
    values = {key: value for key, value in _flatten(tree).items() if key not in picked}
    return Options(values, picked, choices)


def _compose(app: Any, verb: str, overrides: Sequence[str]) -> DictConfig:
    """Compose with the overrides; where that fails, with those that can be added one after the other."""

    def compose(words: Sequence[str]) -> DictConfig:
        config: DictConfig = app.compose_config(
            verb,
            list(words),
            run_mode=RunMode.MULTIRUN,  # tolerates groups that are still to be chosen
            from_shell=False,
            with_log_configuration=False,
        )
        return config

    with suppress(CompactHydraException, OmegaConfBaseException):
        return compose(overrides)
    accepted: list[str] = []
    for override in overrides:
        with suppress(CompactHydraException, OmegaConfBaseException):
            compose([*accepted, override])
            accepted.append(override)
    return compose(accepted)


def help_text(verb: str, overrides: Sequence[str] = ()) -> str:
    """Return the help page of a verb."""
    options = load_options(verb, overrides)
    comments = yaml_comments(CONFIG_DIR / f"{verb}.yaml")
    for group, choice in options.chosen.items():
        file = CONFIG_DIR / group / f"{choice}.yaml"
        comments |= {f"{group}.{key}": text for key, text in yaml_comments(file).items()}
    lines = [f"flowleap {verb}: {_docstring(verb)}", ""]
    if options.chosen:
        lines.append("Groups, each a choice by name (its values are options too: group.key=value):")
        for group, choice in options.chosen.items():
            lines.append(f"  {group}={choice}")
            lines += textwrap.wrap(
                " | ".join(shorten(options.choices[group])),
                width=100,
                initial_indent="      ",
                subsequent_indent="      ",
            )
        lines.append("")
    if options.values:
        lines.append("Options:")
        shown = {key: f"{key}={_show(value)}" for key, value in options.values.items()}
        width = min(36, max(map(len, shown.values())))
        for key, text in shown.items():
            lines.append(f"  {text:<{width}}  {comments.get(key, '')}".rstrip())
        lines.append("")
    lines += [
        "Example:",
        f"  {VERBS[verb].example}",
        "",
        f"`flowleap {verb} --cfg job ...` prints the whole configuration and stops; -m k=a,b runs both.",
    ]
    return "\n".join(lines)


def shorten(choices: Sequence[str], limit: int = 12) -> list[str]:
    """Fold long families of nested choices into `family/* (count)`."""
    folded: list[str] = []
    for choice in choices:
        folder = choice.rpartition("/")[0]
        family = [name for name in choices if name.rpartition("/")[0] == folder]
        entry = f"{folder}/* ({len(family)})" if folder and len(family) > limit else choice
        if entry not in folded:
            folded.append(entry)
    return folded


def yaml_comments(file: Path) -> dict[str, str]:
    """Return dotted key -> comment (on its line, or else on the lines right above) of a YAML file.

    A comment at the top of the file describes the file, not its first key: see `file_comment`.
    """
    found: dict[str, str] = {}
    above: list[str] = []
    stack: list[tuple[int, str]] = []  # (indent, key) of the keys around the line
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for line in lines[len(_top_comment(lines)) :]:
        if line.lstrip().startswith("#"):
            above.append(line.lstrip("# ").rstrip())
            continue
        match = re.match(r"(\s*)([\w-]+):(?:\s+[^#]*)?(?:#\s*(.*))?$", line)
        if match:
            indent = len(match[1])
            stack = [*((i, k) for i, k in stack if i < indent), (indent, match[2])]
            comment = match[3] or " ".join(above)
            if comment:
                found[".".join(key for _, key in stack)] = comment
        above = []
    return found


def file_comment(file: Path) -> str:
    """Return the comment at the top of a YAML file, as one line."""
    lines = _top_comment(file.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ").rstrip() for line in lines)


def _top_comment(lines: Sequence[str]) -> list[str]:
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return list(lines[:count])


def _choices(loader: Any, group: str) -> list[str]:
    """List the choices of a group, those of nested folders after a slash."""
    names = loader.get_group_options(group, ObjectType.CONFIG)
    for folder in loader.get_group_options(group, ObjectType.GROUP):
        names = [*names, *(f"{folder}/{name}" for name in _choices(loader, f"{group}/{folder}"))]
    return sorted(set(names))


def _flatten(tree: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> leaf; lists and empty mappings are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _show(value: Any) -> str:
    """Write a default as a user would type it."""
    if value is None:
        return "null"
    if value == MISSING:
        return "REQUIRED"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _docstring(verb: str) -> str:
    """Return the docstring of the verb's script, which is not imported for it."""
    source = (SCRIPTS / f"{VERBS[verb].script.replace('.', '/')}.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or VERBS[verb].summary
