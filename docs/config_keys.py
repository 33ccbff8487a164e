"""Every option of every verb and of every choice of a group, as a page of the documentation.

python docs/config_keys.py       print the page

All of it is read from the command line's own help, so that the page says what `flowleap VERB --help` says.
`docs/hooks.py` writes the page anew whenever the site is built.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from flowleap.scripts.cli.options import help_text, load_options
from flowleap.scripts.cli.verbs import VERBS

GROUPS = {  # group -> the verb whose options it belongs to
    "objective": "train",
    "backbone": "train",
    "encoder": "train",
    "trainer": "train",
    "suite": "benchmark",
}
_LINE = re.compile(r"^  (?P<key>[\w.@/-]+)=(?P<default>.*?)(?:\s{2,}(?P<help>\S.*))?$")
_HEAD = """# Every option

Written by `docs/config_keys.py` from what `flowleap VERB --help` prints. An option is given as `key=value`; a group,
such as `objective`, is given by the name of one of its choices, whose own options are then `objective.key=value`.
`flowleap VERB --cfg job ...` prints the whole configuration of a command line. `REQUIRED` marks what has no default;
`null` stands for "not given".
"""


class Row(NamedTuple):
    """One option."""

    key: str
    default: str
    help: str


def options(verb: str, *overrides: str) -> list[Row]:
    """The options of a verb with their defaults, in the order of its help."""
    lines = help_text(verb, list(overrides)).splitlines()
    if "Options:" not in lines:
        return []
    rows = []
    for line in lines[lines.index("Options:") + 1 :]:
        match = _LINE.match(line)
        if not match:
            break
        rows.append(Row(match["key"], match["default"].strip(), match["help"] or ""))
    return rows


def table(rows: list[Row]) -> str:
    """The options as a Markdown table."""

    def cell(text: str) -> str:
        """Prose: `|` would end the cell, `<` begin a tag, and `*`, `_` and brackets be taken for markup."""
        parts = re.split(r"(`[^`]*`)", text)
        prose = [re.sub(r"([*_\[\]])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
        parts[::2] = prose
        return "".join(parts).replace("|", r"\|")

    def code(text: str) -> str:
        return f"`` {text} ``".replace("|", r"\|") if "`" in text else f"`{text}`".replace("|", r"\|")

    lines = ["| option | default | |", "| --- | --- | --- |"]
    lines += [
        f"| {code(row.key)} | {code(row.default) if row.default else ''} | {cell(row.help)} |" for row in rows
    ]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    parts = [_HEAD, "## Verbs\n"]
    for verb, entry in VERBS.items():
        chosen = load_options(verb)
        inside = tuple(f"{group}." for group in GROUPS if chosen.choices.get(group))
        own = [row for row in options(verb) if not row.key.startswith(inside)]
        summary = entry.summary[0].upper() + entry.summary[1:]
        parts.append(f"### flowleap {verb}\n\n{summary}.\n\n    {entry.example}\n")
        groups = [
            f"[`{group}={choice}`](#{group})" if group in GROUPS else f"`{group}={choice}`"
            for group, choice in chosen.chosen.items()
        ]
        if groups:
            parts.append(f"Groups: {', '.join(groups)}.\n")
        parts.append(f"{table(own)}\n" if own else "It has no options of its own.\n")
    parts.append("## Groups\n")
    for group, verb in GROUPS.items():
        choices = load_options(verb).choices.get(group, [])
        if not choices:  # nothing to choose: its options stand with the verb's
            continue
        parts.append(f"### {group}\n")
        for choice in choices:
            rows = [
                row
                for row in options(verb, f"{group}={choice}")
                if row.key.startswith(f"{group}.") and row.key != f"{group}.name"
            ]
            if len(choices) > 1:
                parts.append(f"#### {group}={choice}\n")
            parts.append(f"{table(rows)}\n" if rows else f"Sets options of `flowleap {verb}`.\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page())
