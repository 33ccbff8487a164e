"""Names to things: checkpoints and configs hold registry names and plain options, never import paths."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from flowleap.policy.core.errors import FlowleapError, require_number, suggest

T = TypeVar("T", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Maps a name to a class or function and checks options against its keyword-only parameters."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make the class or function available under `name`."""

        def decorate(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return decorate

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise FlowleapError(
                f"unknown {self.kind} {name!r}; known: {', '.join(self)}{suggest(str(name), self._entries)}"
            )
        return self._entries[name]

    def options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return `config` without its `name`, filled with defaults.

        Raises:
            FlowleapError: an unknown option, or a value that is none of a `Literal`'s, no flag or no finite number
                where the parameter is one.
        """
        name = config.get("name")
        if not isinstance(name, str):
            raise FlowleapError(f"{self.kind}: 'name' is missing; known: {', '.join(self)}")
        parameters = inspect.signature(self[name], eval_str=True).parameters.values()
        kinds = {p.name: p.annotation for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        known = {p.name: p.default for p in parameters if p.name in kinds}
        given = {key: value for key, value in config.items() if key != "name"}
        for key in given:
            if key not in known:
                raise FlowleapError(
                    f"{self.kind} {name!r} has no option {key!r}; it has: {', '.join(known) or 'none'}"
                    f"{suggest(str(key), known)}"
                )
            _require_kind(f"{self.kind}.{key}", given[key], kinds[key])
        return known | given


def _require_kind(name: str, value: Any, kind: Any) -> None:
    """Check a value against a parameter's annotation, where that is a `Literal`, `bool` or `float`."""
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise FlowleapError(f"{name} must be one of {', '.join(map(repr, get_args(kind)))}, got {value!r}")
    if kind is bool and not isinstance(value, bool):
        raise FlowleapError(f"{name} must be true or false, got {value!r}")
    if kind is float:
        require_number(name, value, -1e9, 1e9)
