"""Words of a command line that are no `key=value` of hydra's, for the verbs that take such."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from glob import glob
from pathlib import Path

from flowleap.policy.core.errors import UsageError
from flowleap.scripts.cli.verbs import VERBS


def overrides(verb: str, words: Sequence[str]) -> list[str]:
    """The words of a command line as hydra's `key=value`.

    `flowleap download pusht` is `name=pusht`, `flowleap compare a=runs/a runs/b` is `policies=['a=runs/a','runs/b']`.

    Raises:
        UsageError: several words where the verb takes one.
    """
    own = VERBS[verb]
    if own.words:
        options = _options(verb)
        bare = [word for word in words if not _is_override(word, options)]
        return [word for word in words if word not in bare] + _gathered(own.words, bare)
    if not own.word:
        return list(words)
    named = [word if "=" in word else f"{own.word}={word}" for word in words]
    if sum(word.startswith(f"{own.word}=") for word in named) > 1:
        raise UsageError(f"flowleap {verb} takes one {own.word} at a time, got {' '.join(words)}")
    return named


def labelled(word: str) -> tuple[str, str]:
    """The label and the path of a word `LABEL=PATH`; a path alone is its own label."""
    label, equals, path = word.partition("=")
    return (label, path) if equals and not Path(word).exists() else (word, word)


def _options(verb: str) -> list[str]:
    from omegaconf import OmegaConf

    from flowleap.scripts.cli.compose import CONFIG_DIR, parts_of

    return [*map(str, OmegaConf.load(CONFIG_DIR / f"{verb}.yaml")), *parts_of(verb), "hydra"]


def _is_override(word: str, options: Sequence[str]) -> bool:
    """Whether a word is an option; or surely one mistyped, which hydra then names: no path, and almost its name."""
    key, equals, value = word.partition("=")
    name = key.lstrip("+~").partition(".")[0]
    if not equals or Path(word).exists():
        return False
    mistyped = get_close_matches(name, options, n=1, cutoff=0.75) and not ("/" in value or glob(value))
    return name in options or bool(mistyped)


def _gathered(key: str, words: Sequence[str]) -> list[str]:
    from flowleap.scripts.cli.paths import escaped, quoted

    return [f"{key}=[{','.join(quoted(escaped(word)) for word in words)}]"] if words else []
