"""Paths on the command line: taken as they stand, whatever characters they hold.

hydra reads commas, brackets, equals signs and accents as grammar, and OmegaConf replaces `${...}`. So options
that are paths are handed to hydra quoted and escaped. A value that is quoted as hydra wants it is understood, too;
`null` is no path. In a sweep (`-m`), commas part the values of a path like those of any option; a path with a comma
needs quotes there: `'dataset="a,b.zarr",c.zarr'`.
"""

from __future__ import annotations

import os
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

PATHS = {"checkpoint", "dataset", "html", "out", "results", "resume", "run_dir", "save", "scratch", "source"}
PATHS |= {"encoder.weights", "objective.teacher", "api_key_file", "client", "log"}
"""Options of any verb that are paths."""

_QUOTED = r"""(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
_PIECE = re.compile(rf"\s*{_QUOTED}\s*(?=,|$)|[^,]+", re.DOTALL)


def as_it_stands(word: str, multirun: bool = False) -> str:
    """An override for hydra that means the path in `word`, literally; other options as they are."""
    key, _, value = word.partition("=")
    if key.lstrip("+") not in PATHS or value in ("", "null"):
        return word
    pieces = [piece.strip() for piece in _PIECE.findall(value)] if multirun else [value]
    return f"{key}={','.join(_protected(os.path.expanduser(_unquoted(piece))) for piece in pieces)}"


def quoted(text: str) -> str:
    """A text as a value of hydra's grammar."""
    return QuotedString(text, Quote.single).with_quotes()


def escaped(value: Any) -> Any:
    """Plain values (lists and dicts of them, too) as OmegaConf must be given them to interpolate nothing."""
    if isinstance(value, dict):
        return {key: escaped(x) for key, x in value.items()}
    if isinstance(value, list):
        return [escaped(x) for x in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def _unquoted(text: str) -> str:
    """What a text in quotes means to hydra; others are what they are."""
    value = _parsed(text) if re.fullmatch(_QUOTED, text, re.DOTALL) else None
    return value if isinstance(value, str) else text


def _protected(path: str) -> str:
    """A path as hydra must be given it; those that mean themselves stay readable."""
    text: str = escaped(path)
    return text if text == path == _parsed(text) else quoted(text)


def _parsed(value: str) -> Any:
    """What hydra reads in a value, None if nothing."""
    try:
        return OverridesParser.create().parse_override(f"path={value}").value()
    except HydraException:
        return None
