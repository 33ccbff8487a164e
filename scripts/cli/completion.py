"""Tab completion of verbs, groups, choices and options: `eval "$(flowleap -sc install=bash)"`.

The shell function asks `flowleap -sc query=bash` for the words that fit at the cursor, one a line.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from flowleap.policy.core.errors import UsageError
from flowleap.scripts.cli.verbs import VERBS

# bash splits words at `=` and `:`; what it considers the current word begins after the last of them.
_INSTALL = r"""
_flowleap_complete() {
    local line=${COMP_LINE:0:COMP_POINT} IFS=$'\n' word head
    word=${line##* }
    head=${word%"${word##*[=:]}"}
    [[ $COMP_WORDBREAKS == *=* ]] || head=
    COMPREPLY=($(COMP_LINE=$line flowleap -sc query=bash 2>/dev/null))
    COMPREPLY=("${COMPREPLY[@]#"$head"}")
}
complete -o nospace -o bashdefault -o default -F _flowleap_complete flowleap
""".lstrip()

_ZSH = "autoload -U +X compinit && compinit; autoload -U +X bashcompinit && bashcompinit\n"

_SCRIPTS = {
    "install=bash": _INSTALL,
    "install=zsh": _ZSH + _INSTALL,
    "uninstall=bash": "complete -r flowleap; unset -f _flowleap_complete\n",
    "uninstall=zsh": "complete -r flowleap; unset -f _flowleap_complete\n",
}


def main(argv: Sequence[str]) -> None:
    """Print a shell script (install, uninstall), or the candidates for the line in `COMP_LINE` (query)."""
    if list(argv) == ["query=bash"]:
        print("\n".join(candidates(os.environ.get("COMP_LINE", ""))))
    elif len(argv) == 1 and argv[0] in _SCRIPTS:
        print(_SCRIPTS[argv[0]], end="")
    else:
        raise UsageError(f'-sc takes one of {", ".join(_SCRIPTS)}: eval "$(flowleap -sc install=bash)"')


def candidates(line: str) -> list[str]:
    """Return the words that complete the last word of a command line; none for a value that is a path.

    A finished word of a verb ends in a space; an option ends in `=`, a group of options in `.`.
    """
    _, *words, current = [*line.split(), ""] if line.endswith(" ") else line.split() or [""]
    if not words:
        return [f"{verb} " for verb in VERBS if verb.startswith(current)]
    if words[0] not in VERBS:
        return []
    from flowleap.scripts.cli.options import load_options

    options = load_options(words[0], [word for word in words[1:] if "=" in word])
    key, equals, _ = current.partition("=")
    if equals:
        if key in options.choices:
            values = options.choices[key]
        elif isinstance(options.values.get(key), bool):
            values = ["true", "false"]
        else:
            values = []
        return [f"{key}={value}" for value in values if f"{key}={value}".startswith(current)]
    names = [*(f"{group}=" for group in options.choices), *(f"{name}=" for name in options.values)]
    depth = current.count(".") + 1
    shown = {name if name.count(".") < depth else ".".join(name.split(".")[:depth]) + "." for name in names}
    return sorted(name for name in shown if name.startswith(current))
