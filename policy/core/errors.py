"""Errors that the user can act on, and the checks that raise them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any


def require_int(name: str, value: Any, low: int, high: int) -> int:
    """Return `value` if it is a whole number in [low, high]; raise `FlowleapError` naming the option."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FlowleapError(f"{name} must be a whole number in [{low}, {high}], got {value!r}")
    return value


def require_whole(name: str, value: Any) -> None:
    """Raise `FlowleapError` naming the option unless `value` is a whole number of 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise FlowleapError(f"{name} must be a whole number >= 1, got {value!r}")


def require_number(name: str, value: Any, low: float, high: float) -> float:
    """Return `value` as a float if it is a number in [low, high]; raise `FlowleapError` naming the option."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise FlowleapError(f"{name} must be a number in [{low}, {high}], got {value!r}")
    return float(value)


class FlowleapError(Exception):
    """A mistake or a mishap that the user can act on: the message names the thing and the remedy.

    The command line prints it as one line and exits with code 1; anything else is a bug and shows a traceback.
    """


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def optional_import(module: str, extra: str, then: str = "") -> ModuleType:
    """Import an optional dependency, or raise `FlowleapError` naming the pip extra that brings it.

    `then` is a second command, where the extra cannot bring all of it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        command = f"pip install 'flowleap[{extra}]'{then and f' && {then}'}"
        raise FlowleapError(f"{error.name or module} is not installed: {command}") from error


class FlowleapWarning(UserWarning):
    """Something that is worth a line to people."""


class UsageError(FlowleapError):
    """The command line itself is wrong: unknown verb, option or choice, or a required option is missing."""
