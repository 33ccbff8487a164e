"""What a verb accepts: options with defaults and help, groups and their choices; and its help page.

All of it is read from signatures and configuration files, so a new option or choice appears here by itself.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowleap.policy.core.registry import Parameter
from flowleap.scripts.cli.compose import CONFIG_DIR, choices, open_choice, parts_of, prepare, session
from flowleap.scripts.cli.verbs import VERBS

MISSING = "???"


@dataclass(frozen=True)
class Options:
    """The options of a verb under some overrides.

    Attributes:
        values: dotted key -> default; `???` where the user must give one.
        chosen: group -> the choice in use; `null` where there is none, `REQUIRED` where the user must choose.
        choices: group -> all choices, sorted; those of nested folders as `folder/name`.
        help: dotted key -> what it means, where that is written.
    """

    values: dict[str, Any]
    chosen: dict[str, str]
    choices: dict[str, list[str]]
    help: dict[str, str]


def load_options(verb: str, overrides: Sequence[str] = ()) -> Options:
    """Read the options of a verb. Overrides (of groups, for instance) that do not compose are left out."""
    words = prepare(verb, overrides)
    with session() as app:
        composed = _compose(app, verb, words)
        runtime = composed.hydra.runtime.choices  # last group first
        chosen = {k: _show(v) for k, v in reversed(runtime.items()) if not k.startswith("hydra/")}
        offered = {group: _choices(app.config_loader.repository, group) for group in chosen}
    tree: Any = OmegaConf.to_container(composed, resolve=False)
    values = {k: v for k, v in _flatten(tree).items() if k not in chosen and not k.startswith("hydra.")}
    texts = yaml_comments(CONFIG_DIR / f"{verb}.yaml")
    for part in parts_of(verb):
        texts |= _part_help(part, chosen.get(part, ""))
    choosable = {group: names for group, names in offered.items() if len(names) > 1}
    return Options(values, {group: chosen[group] for group in choosable}, choosable, texts)


def _part_help(part: str, choice: str) -> dict[str, str]:
    """Dotted key -> help, for the choice in use of a group, or for a part that is none (`choice` is empty)."""
    prefix = f"{part}." if choice else ""
    known = choices(part).get(choice) or open_choice(part, choice)
    if known:
        texts = {key: describe(p) for key, p in known.parameters.items()}
    else:
        texts = yaml_comments(CONFIG_DIR / part / f"{choice}.yaml")
    return {f"{prefix}{key}": text for key, text in texts.items()}


def describe(parameter: Parameter) -> str:
    """Help, and the choices or the range of a parameter, in a line."""
    low, high = (int(x) if x == int(x) else x for x in (parameter.option.low, parameter.option.high))
    if parameter.choices:
        allowed = ", ".join(map(str, parameter.choices))
    elif high < 1e9:
        allowed = f"{low} to {high}"
    else:
        allowed = f"at least {low}" if low > -1e9 else ""
    return f"{parameter.option.help} ({allowed})" if allowed else parameter.option.help


def _compose(app: Any, verb: str, overrides: Sequence[str]) -> DictConfig:
    """Compose with the overrides; where that fails, with those that can be added one after the other."""

    def compose(words: Sequence[str]) -> DictConfig:
        # A sweep's configuration tolerates groups that are still to be chosen.
        config: DictConfig = app.compose_config(verb, list(words), RunMode.MULTIRUN, from_shell=False)
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
    lines = [f"flowleap {verb}: {VERBS[verb].doc}", ""]
    if options.chosen:
        lines.append("Groups, each a choice by name (its values are options too: group.key=value):")
        for group, choice in options.chosen.items():
            lines.append(f"  {group}={choice}")
            names = " | ".join(shorten(options.choices[group]))
            lines += textwrap.wrap(names, width=100, initial_indent=" " * 6, subsequent_indent=" " * 6)
        lines.append("")
    if options.values:
        lines.append("Options:")
        shown = {key: f"{key}={_show(value)}" for key, value in options.values.items()}
        width = min(36, max(map(len, shown.values())))
        lines += [f"  {shown[key]:<{width}}  {options.help.get(key, '')}".rstrip() for key in shown]
        lines.append("")
    more = f"`flowleap {verb} --cfg job ...` prints the whole configuration and stops; -m k=a,b runs both."
    return "\n".join([*lines, more])


def shorten(names: Sequence[str], limit: int = 12) -> list[str]:
    """Fold long families of nested choices into `family/* (count)`."""
    folders = [name.rpartition("/")[0] for name in names]
    size = Counter(folders)
    long = {folder: f"{folder}/* ({n})" for folder, n in size.items() if folder and n > limit}
    return list(dict.fromkeys(long.get(folder, name) for folder, name in zip(folders, names, strict=True)))


def yaml_comments(file: Path) -> dict[str, str]:
    """Return dotted key -> comment (on its line, or else on the lines right above) of a YAML file.

    A comment at the top of the file describes the file, not its first key.
    """
    found: dict[str, str] = {}
    above: list[str] = []
    stack: list[tuple[int, str]] = []  # (indent, key) of the keys around the line
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for line in dropwhile(lambda line: line.startswith("#"), lines):
        if line.lstrip().startswith("#"):
            above.append(line.lstrip("# ").rstrip())
            continue
        match = re.match(r"(\s*)([\w-]+):(?:\s+[^#]*)?(?:#\s*(.*))?$", line)
        if match:
            indent = len(match[1])
            stack = [*((i, k) for i, k in stack if i < indent), (indent, match[2])]
            if comment := match[3] or " ".join(above):
                found[".".join(key for _, key in stack)] = comment
        above = []
    return found


def _choices(repository: Any, group: str) -> list[str]:
    """List the choices of a group, those of nested folders after a slash.

    The repository itself is asked: hydra's `get_group_options` copies all of it, every time.
    """
    names = repository.get_group_options(group, ObjectType.CONFIG)
    for folder in repository.get_group_options(group, ObjectType.GROUP):
        names = [*names, *(f"{folder}/{name}" for name in _choices(repository, f"{group}/{folder}"))]
    return sorted(set(names))


def _flatten(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> leaf; lists and empty mappings are leaves."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and value
        flat |= _flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def _show(value: Any) -> str:
    """Write a default as a user would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else "REQUIRED" if value == MISSING else str(value)
