"""The command line that a stored configuration amounts to."""

from __future__ import annotations

import shlex
from collections.abc import Container, Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from flowleap.policy.core.errors import UsageError
from flowleap.scripts.cli.compose import parts_of
from flowleap.scripts.cli.paths import PATHS, escaped, quoted
from flowleap.scripts.cli.run import compose


def command_of(verb: str, config: Mapping[str, Any]) -> str:
    """The words that compose to `config`: choices of groups, and what is not as it is by default.

    Options of other versions, which the verb no longer has, are left out.
    """
    groups = [
        f"{group}={config[group]['name']}"
        for group in parts_of(verb)
        if isinstance(config.get(group), dict) and isinstance(config[group].get("name"), str)
    ]
    try:
        base = compose(verb, groups)
    except UsageError:  # a choice of another version, or of somebody's own
        groups, base = [], compose(verb)
    defaults = dict(_leaves(OmegaConf.to_container(base, resolve=False)))
    words = list(groups)
    for key, value in _leaves(config, known=defaults):
        if key.endswith(".name") or (key in defaults and defaults[key] == value):
            continue
        parent = key.rpartition(".")[0]
        open_ended = parent.endswith("kwargs")  # of a task, which lists only those that it knows
        if key in defaults or open_ended:
            words.append(f"{'' if key in defaults else '+'}{key}={_text(key, value)}")
    return shlex.join(["flowleap", verb, *words])


def _leaves(tree: Any, prefix: str = "", known: Container[str] = ()) -> Iterator[tuple[str, Any]]:
    """Dotted key -> value; a mapping that is the value of a `known` option stays whole."""
    for key, value in tree.items():
        if isinstance(value, dict) and value and f"{prefix}{key}" not in known:
            yield from _leaves(value, f"{prefix}{key}.", known)
        else:
            yield f"{prefix}{key}", value


def _text(key: str, value: Any) -> str:
    """A value in hydra's grammar; a path as it stands."""
    if isinstance(value, str):
        return value if key in PATHS else _word(value)
    if isinstance(value, list):
        return f"[{','.join(_text('', part) for part in value)}]"
    if isinstance(value, dict):
        pairs = (f"{_word(str(k))}:{_text(str(k), part)}" for k, part in value.items())
        return f"{{{','.join(pairs)}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _word(text: str) -> str:
    """A text, in quotes where the grammar would take it for something else."""
    plain = text.replace("_", "").replace("/", "").replace("-", "").replace(".", "")
    return (
        text if plain.isalpha() and plain.lower() not in ("null", "true", "false") else quoted(escaped(text))
    )
