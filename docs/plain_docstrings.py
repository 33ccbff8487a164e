"""Docstrings are plain text; Markdown would read `[0, 1] [1]` as a link and `<name>` as a tag. A griffe extension.

Outside of backticks and indented code, brackets, asterisks and angle brackets are escaped.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_CODE = re.compile(r"(`+[^`]*`+)")
_MARKUP = re.compile(r"([\[\]*]|(?<!^)>)")


class PlainDocstrings(griffe.Extension):
    """Escapes every docstring as it is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the object's docstring in place."""
        if obj.docstring is not None:
            obj.docstring.value = escape(obj.docstring.value)


def escape(text: str) -> str:
    """Return a docstring with its markup outside of code escaped."""
    lines, code, before = [], False, "x"
    for line in text.splitlines():
        indented = line.startswith("    ")
        code = indented and (code or not before.strip()) if line.strip() else code
        lines.append(line if code else _escape_line(line))
        before = line
    return "\n".join(lines)


def _escape_line(line: str) -> str:
    parts = _CODE.split(line)
    for i in range(0, len(parts), 2):
        parts[i] = _MARKUP.sub(r"\\\1", parts[i]).replace("<", "&lt;")
    return "".join(parts)
