"""Running a verb under hydra: compose its configuration, call its script, explain what hydra refuses.

The configuration of a verb is `flowleap/configs/<verb>.yaml`. hydra neither changes the working directory nor
leaves output folders behind: scripts that write choose their own place.
"""

from __future__ import annotations

import importlib
import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from flowleap.policy.core.errors import UsageError, suggest
from flowleap.scripts.cli.compose import prepare, session
from flowleap.scripts.cli.options import load_options
from flowleap.scripts.cli.paths import quoted
from flowleap.scripts.cli.verbs import VERBS

_QUIET = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra.job.chdir=false"]
_QUIET += ["hydra/job_logging=none", "hydra/hydra_logging=none"]


def sweep_settings(overrides: Sequence[str]) -> list[str]:
    """Settings of hydra for a sweep: one folder for all of it, and runs named after the options that vary.

    The folder is `run_dir` if given, else `runs/sweeps/<date>`; hydra's own `multirun.yaml` goes there, too.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    fixed = {o.key_or_group: o.value() for o in parsed if not o.is_sweep_override()}
    folder = fixed.get("run_dir") or f"runs/sweeps/{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    return [
        "hydra.mode=MULTIRUN",
        f"hydra.sweep.dir={quoted(str(folder))}",
        "hydra.sweep.subdir=.",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]",
    ]


def compose(verb: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Return the configuration that `flowleap VERB overrides...` runs with; works inside a running verb, too."""
    words = prepare(verb, overrides)
    with _objections(verb, words), session():
        return hydra.compose(verb, words)


def run(verb: str, overrides: Sequence[str], flags: Namespace) -> None:
    """Run the `main` of a verb's script under hydra, or do what a flag of hydra (`--cfg job`) asks instead.

    Raises:
        UsageError: an override does not fit the configuration, or a required option is missing.
        Exception: whatever the script raises.
    """
    words = prepare(verb, overrides, flags.multirun)
    failures: list[Exception] = []
    multirun: bool = flags.multirun  # all that the job needs of the flags: it travels to other processes

    def job(config: DictConfig) -> None:
        try:
            importlib.import_module(f"flowleap.scripts.{VERBS[verb].script}").main(config)
        except Exception as error:
            failures.append(error)
            if multirun:  # the other jobs go on, and hydra names only the first that failed
                combination = HydraConfig.get().job.override_dirname
                print(f"error: {combination}: {' '.join(str(error).split())}", file=sys.stderr)
                raise

    try:
        with _objections(verb, words), session() as app:
            if flags.cfg:
                app.show_cfg(verb, words, flags.cfg, flags.package, flags.resolve)
            elif flags.info:
                app.show_info(flags.info, verb, words)
            else:
                settings = [*_QUIET, f"hydra.job.name={verb}", *(sweep_settings(words) if multirun else ())]
                given = {word.partition("=")[0] for word in words}
                words += [word for word in settings if word.partition("=")[0] not in given]
                (app.multirun if multirun else app.run)(verb, job, words)
    except Exception:
        if not failures:
            raise
    if failures:
        if isinstance(failures[0], MissingMandatoryValue):
            raise UsageError(explain(failures[0], verb, words)) from failures[0]
        raise failures[0]


@contextmanager
def _objections(verb: str, words: Sequence[str]) -> Iterator[None]:
    """Turn what hydra has to say against the words of a command line into a `UsageError`."""
    given = " ".join(words)
    try:
        yield
    except (CompactHydraException, OmegaConfBaseException) as error:
        raise UsageError(explain(error, verb, words)) from error
    except ValueError as error:  # `objective=3`
        raise UsageError(f"{error} (given: {given})") from error


def explain(error: Exception, verb: str, words: Sequence[str]) -> str:
    """Say in one line what is wrong with the command line, naming the word and the nearest right one."""
    more = f"(`flowleap {verb} --help` lists the options)"
    text = str(error)
    if isinstance(error, MissingMandatoryValue):
        key = str(getattr(error, "full_key", None) or text.split(":")[-1].strip())
        return f"'{key}' is required: add {key}=... {more}"
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}': write key=value, and quote special characters: key='\"a b\"'"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).partition("/")
        names = load_options(verb).choices.get(group, [])
        known = ", ".join(names) if len(names) <= 12 else "`flowleap list` shows them all"
        return f"unknown {group} '{choice}'{suggest(choice, names)} ({known})"
    if missing := re.match(r"You must specify '([^']+)'", text):
        group = missing[1]
        example = next(iter(load_options(verb).choices.get(group, [])), "...")
        return f"'{group}' is required, for instance {group}={example} {more}"
    if unknown := re.match(r"Could not override '([^']+)'", text):
        options = load_options(verb, words)
        hint = nearest(unknown[1], [*options.choices, *options.values])
        return f"unknown option '{unknown[1]}'{hint} {more}"
    where = getattr(error, "full_key", None)
    cause: Any = error.__cause__ if isinstance(error, ConfigCompositionException) else None
    first = " ".join(part.splitlines()[0] for part in (text, str(cause or "")) if part)
    return f"{where}: {first}" if where else first


def nearest(key: str, known: Sequence[str]) -> str:
    """Return `"; did you mean ...?"`, by the last part of the dotted key if exact, else by the whole."""
    leaf = key.rpartition(".")[2]
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    return f"; did you mean '{same_leaf[0]}'?" if same_leaf else suggest(key, known)
