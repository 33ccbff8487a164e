"""The `flowleap` command: finds the verb, hands the rest of the line to hydra, turns errors into one line.

Importing this module costs nothing but the standard library, so that `flowleap --help` answers at once; hydra
and torch load when a verb runs.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import NoReturn

from flowleap.policy.core.errors import FlowleapError, FlowleapWarning, UsageError, suggest
from flowleap.scripts.cli.verbs import VERBS
from flowleap.scripts.cli.words import overrides

_COMPLETION_FLAGS = ("-sc", "--shell-completion")
_OVERVIEW = '''flowleap: one-step robot policies, trained from scratch by self-distillation.

usage: flowleap VERB key=value ...

{verbs}

  flowleap VERB --help      every option with its default, choices and examples
  flowleap VERB --cfg job   print the configuration that a command line amounts to, and stop
  flowleap VERB -m k=a,b    one run for each combination of values
  flowleap --version

Tab completion, for this shell or in its start-up file (bash; or zsh):
  eval "$(flowleap -sc install=bash)"'''


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code.

    0 success, 1 a mishap or a bug, 2 a wrong command line, 130 interrupted. SIGTERM exits with 143.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help") or args == ["help"]:
        width = max(map(len, VERBS))
        verbs = [f"  {v.name:<{width}}  {v.summary}\n{'':{width + 6}}{v.example}" for v in VERBS.values()]
        print(_OVERVIEW.format(verbs="\n".join(verbs)))
        return 0
    if args[0] == "--version":
        print(f"flowleap {version('flowleap')}")
        return 0
    if args[0] == "help":
        args = [args[1], "--help", *args[2:]]
    return run_verb(args[0], args[1:])


def run_verb(verb: str, argv: Sequence[str] | None = None) -> int:
    """Run one verb with hydra overrides and flags (those of the process by default); return the exit code.

    Errors are reported on stderr.

    Scripts call this under `if __name__ == "__main__"`, so that `python -m flowleap.scripts.train` and
    `accelerate launch -m flowleap.scripts.train` behave like `flowleap train`.
    """
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # a terminal that lacks a letter (Windows) is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _orderly_termination(), _plain_warnings():
            _dispatch(verb, list(sys.argv[1:] if argv is None else argv))
        return 0
    except FlowleapError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe (`| head`) is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        traceback.print_exc()
        print(f"error: this is a bug in flowleap ({type(error).__name__}), please report it", file=sys.stderr)
        return 1


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Let our warnings be one line, without the place in the code that they come from."""
    usual = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        ours = issubclass(category, FlowleapWarning)
        return f"warning: {message}\n" if ours else usual(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = usual


@contextmanager
def _orderly_termination() -> Iterator[None]:
    """Let SIGTERM unwind like an exit, so that child processes end and unfinished files go.

    A forked child gets the signal's usual effect.
    """
    owner = os.getpid()

    def handler(signum: int, frame: object) -> None:
        if os.getpid() != owner:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        print("terminated", file=sys.stderr)
        sys.exit(128 + signum)

    try:
        previous = signal.signal(signal.SIGTERM, handler)
    except ValueError:  # not the main thread: nobody sends us signals there
        previous = None
    try:
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _dispatch(verb: str, argv: list[str]) -> None:
    """Check the words of the command line, then do what they say."""
    if verb in _COMPLETION_FLAGS:
        from flowleap.scripts.cli import completion

        return completion.main(argv)
    if verb not in VERBS:
        known = f"(verbs: {', '.join(VERBS)})"
        if "=" in verb or verb.startswith("-"):
            raise UsageError(f"the verb comes first: flowleap VERB {verb} {known}")
        raise UsageError(f"unknown verb '{verb}'{suggest(verb, VERBS)} {known}")
    words, flags = _split(verb, argv)
    if flags.help:
        from flowleap.scripts.cli.options import help_text

        print(help_text(verb, words))
    else:
        from flowleap.scripts.cli import run

        run.run(verb, words, flags)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _split(verb: str, argv: Sequence[str]) -> tuple[list[str], argparse.Namespace]:
    """Return the overrides and the flags; raise for a flag that is none.

    Flags are help and those of hydra that make sense here (`--experimental-rerun` does not, it unpickles its file).
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-p", "--package")
    parser.add_argument("--resolve", action="store_true")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("-m", "--multirun", action="store_true")
    one.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    info = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    one.add_argument("-i", "--info", choices=info)
    flags, words = parser.parse_known_args(argv)
    for word in words:
        flag, _, value = word.partition("=")
        if flag in _COMPLETION_FLAGS:
            raise UsageError('completion is set up without a verb: eval "$(flowleap -sc install=bash)"')
        if flag.startswith("-"):
            name = flag.lstrip("-").replace("-", "_")
            written = f"{name}={value or '...'} (`flowleap {verb} --help` lists them)"
            raise UsageError(f"unknown flag '{flag}': options are written {written}")
    return overrides(verb, words), flags


if __name__ == "__main__":
    sys.exit(main())
