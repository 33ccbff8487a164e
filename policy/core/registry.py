"""Names to things, and the one place where an option's default, type, range and help text are written.

Checkpoints and configs hold registry names and plain options, never import paths. What an entry can be told stands in
its own signature, as keyword-only parameters:

    @BACKBONES.register("mlp")
    class MLPBackbone(nn.Module):
        def __init__(self, action_dim, horizon, cond_dim, *,
                     width: Annotated[int, Option("channels of the residual stream", 1, 16384)] = 256): ...

Python callers, checkpoints, hydra's groups, `--help` and the documentation all read that line.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from flowleap.policy.core.errors import FlowleapError, require_int, require_number, suggest

T = TypeVar("T", bound=Callable[..., Any])
_IN_WORDS = {bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Option:
    """What an option means and may be, beside its type and default; written as `Annotated[type, Option(...)]`.

    Attributes:
        help: one line for people.
        low, high: inclusive bounds of a number, or of each number of a sequence.
    """

    help: str
    low: float = -1e9
    high: float = 1e9


@dataclass(frozen=True)
class Parameter:
    """An option of a registered class or function, as its signature tells it.

    Attributes:
        kind: the type without its annotation: int, float, bool, str, a `Literal`, a sequence, or one of them or None.
        default: `inspect.Parameter.empty` where there is none.
        option: help text and bounds.
    """

    kind: Any
    default: Any
    option: Option

    @property
    def choices(self) -> tuple[Any, ...]:
        """What a `Literal` allows; empty for other types."""
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()


def parameters_of(entry: Callable[..., Any]) -> dict[str, Parameter]:
    """The options of a function, a class or a keyword-only dataclass, in the order of the signature."""
    # Of a dataclass, the class itself: its `__init__` does not know the modules that inherited fields come from.
    function = entry.__init__ if isinstance(entry, type) and not is_dataclass(entry) else entry  # type: ignore[misc]
    hints = get_type_hints(function, include_extras=True)
    found: dict[str, Parameter] = {}
    for p in inspect.signature(entry).parameters.values():
        if p.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        kind, option = hints.get(p.name, Any), Option("")
        if get_origin(kind) is Annotated:
            kind, *extras = get_args(kind)
            option = next((extra for extra in extras if isinstance(extra, Option)), option)
        found[p.name] = Parameter(kind, p.default, option)
    return found


def check_options(
    where: str, known: Mapping[str, Parameter], given: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    """Defaults with `given` on top, every value checked; messages say `where` and name `prefix.option`.

    Raises:
        FlowleapError: an unknown option (with the nearest known one), or a value of another type or out of range.
    """
    for key in given:
        if key not in known:
            raise FlowleapError(
                f"{where} has no option {key!r}; it has: {', '.join(known) or 'none'}{suggest(str(key), known)}"
            )
    values = {key: p.default for key, p in known.items()} | dict(given)
    return {key: _checked(f"{prefix}.{key}", value, known[key]) for key, value in values.items()}


def _checked(name: str, value: Any, parameter: Parameter) -> Any:
    """The value, in the parameter's type."""
    kind, option = parameter.kind, parameter.option
    if value is inspect.Parameter.empty:
        raise FlowleapError(f"{name} is required")
    if get_origin(kind) in (Union, UnionType):
        if value is None and NoneType in get_args(kind):
            return None
        kind = next(k for k in get_args(kind) if k is not NoneType)
    if get_origin(kind) is Literal:
        # `True == 1`: a flag is no number, and the other way round.
        if not any(value == choice and type(value) is type(choice) for choice in get_args(kind)):
            raise FlowleapError(
                f"{name} must be one of {', '.join(map(repr, get_args(kind)))}, got {value!r}"
            )
    elif kind in (bool, str):
        if not isinstance(value, kind):
            raise FlowleapError(f"{name} must be {_IN_WORDS[kind]}, got {value!r}")
    elif kind is int:
        require_int(name, value, int(option.low), int(option.high))
    elif kind is float:
        return require_number(name, value, option.low, option.high)
    elif get_origin(kind) in (Sequence, tuple, list):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise FlowleapError(f"{name} must be a list, got {value!r}")
        inner = next(k for k in get_args(kind) if k is not Ellipsis)
        return [_checked(name, x, Parameter(inner, None, option)) for x in value]
    return value


class Registry(Generic[T]):
    """Maps a name to a class or function and checks options against its keyword-only parameters.

    Args:
        kind: what it holds, for messages; also the name of hydra's group.
        shared: a keyword-only dataclass of options that entries have beside their own; each entry may name
            another one, and set other defaults, when it is registered.
    """

    def __init__(self, kind: str, shared: Callable[..., Any] | None = None) -> None:
        self.kind = kind
        self._shared = shared
        self._entries: dict[str, T] = {}
        self._shared_by: dict[str, tuple[Callable[..., Any] | None, dict[str, Any]]] = {}

    def register(
        self, name: str, shared: Callable[..., Any] | None = None, /, **defaults: Any
    ) -> Callable[[T], T]:
        """Decorator: make the class or function available under `name`; `defaults` are of shared options."""

        def decorate(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name], self._shared_by[name] = entry, (shared or self._shared, defaults)
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

    def parameters(self, name: str) -> dict[str, Parameter]:
        """All options of an entry: its own, then the shared ones."""
        own = parameters_of(self[name])
        shared, defaults = self._shared_by[name]
        others = parameters_of(shared) if shared else {}
        return own | {key: replace(p, default=defaults.get(key, p.default)) for key, p in others.items()}

    def options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return `config` without its `name`, filled with defaults and checked as in `check_options`."""
        name = config.get("name")
        if not isinstance(name, str):
            raise FlowleapError(f"{self.kind}: 'name' is missing; known: {', '.join(self)}")
        given = {key: value for key, value in config.items() if key != "name"}
        return check_options(f"{self.kind} {name!r}", self.parameters(name), given, self.kind)
