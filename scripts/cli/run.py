"""Running a verb under hydra: compose its configuration, call its script, explain what hydra refuses.

The configuration of a verb is `flowleap/configs/<verb>.yaml`. hydra neither changes the working directory nor
leaves output folders behind: scripts that write choose their own place.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
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
from flowleap.scripts.cli.compose import CONFIG_MODULE, VERSION_BASE, register_tasks
from flowleap.scripts.cli.verbs import VERBS

_QUIET = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.job.chdir=false",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)


def sweep_settings(overrides: Sequence[str]) -> list[str]:
    """Settings of hydra for a sweep: one folder for all of it, and runs named after the options that vary.

    The folder is `run_dir` if given, else `runs/sweeps/<date>`; hydra's own `multirun.yaml` goes there, too.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    fixed = {o.key_or_group: o.value() for o in parsed if not o.is_sweep_override()}
    folder = fixed.get("run_dir") or f"runs/sweeps/{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    return [
        f"hydra.sweep.dir={str(folder)!r}",
        "hydra.sweep.subdir=.",
        f"hydra.job.config.override_dirname.exclude_keys=[{','.join(fixed)}]",
    ]


def compose(verb: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Return the configuration that `flowleap VERB overrides...` runs with; works inside a running verb, too."""
    register_tasks(overrides)
    shared = GlobalHydra.instance()
    outer, shared.hydra = shared.hydra, None
    try:
        with hydra.initialize_config_module(CONFIG_MODULE, version_base=VERSION_BASE):
            return hydra.compose(verb, list(overrides))
    except (CompactHydraException, OmegaConfBaseException) as error:
        raise UsageError(explain(error, verb)) from error
    finally:
        shared.hydra = outer


def run(verb: str, overrides: Sequence[str], flags: Sequence[str] = ()) -> None:
    """Run the `main` of a verb's script under hydra, or do what a flag of hydra (`--cfg job`) asks instead.

    Raises:
        UsageError: an override does not fit the configuration, or a required option is missing.
        Exception: whatever the script raises.
    """
    register_tasks(overrides)
    failures: list[Exception] = []
    multirun = "-m" in flags or "--multirun" in flags

    def job(config: DictConfig) -> None:
        try:
            # Only now: a wrong command line is reported before torch is imported.
            importlib.import_module(f"flowleap.scripts.{VERBS[verb].script}").main(config)
        except Exception as error:
            failures.append(error)
            if multirun:  # the other jobs go on, and hydra names only the first that failed
                combination = HydraConfig.get().job.override_dirname
                print(f"error: {combination}: {' '.join(str(error).split())}", file=sys.stderr)
                raise

    given = {word.partition("=")[0] for word in overrides}
    try:
        settings = [*_QUIET, f"hydra.job.name={verb}", *(sweep_settings(overrides) if multirun else ())]
        defaults = [word for word in settings if word.partition("=")[0] not in given]
        with _hydra_process(f"flowleap {verb}", [*overrides, *defaults, *flags]):
            hydra.main(config_path=f"pkg://{CONFIG_MODULE}", config_name=verb, version_base=VERSION_BASE)(
                job
            )()
    except (CompactHydraException, OmegaConfBaseException) as error:
        if not failures:  # hydra's own objection, not the script's
            raise UsageError(explain(error, verb)) from error
    except ValueError as error:  # what hydra raises for flags that exclude each other, or `objective=3`
        if not failures:
            raise UsageError(f"{error} (given: {' '.join([*overrides, *flags])})") from error
    if failures:
        if isinstance(failures[0], MissingMandatoryValue):
            raise UsageError(explain(failures[0], verb)) from failures[0]
        raise failures[0]


@contextmanager
def _hydra_process(program: str, argv: list[str]) -> Iterator[None]:
    """Lend hydra its command line, and make it raise errors where it would print them and exit."""
    old_argv, old_setting = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [program, *argv], "1"
    try:
        yield
    finally:
        sys.argv = old_argv
        if old_setting is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = old_setting


def explain(error: Exception, verb: str) -> str:
    """Say in one line what is wrong with the command line, naming the word and the nearest right one."""
    from flowleap.scripts.cli.options import load_options

    more = f"(`flowleap {verb} --help` lists the options)"
    text = str(error)
    if isinstance(error, MissingMandatoryValue):
        key = str(getattr(error, "full_key", None) or text.split(":")[-1].strip())
        return f"'{key}' is required: add {key}=... {more}"
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}': write key=value, and quote special characters: key='\"a b\"'"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).partition("/")
        choices = load_options(verb).choices.get(group, [])
        known = ", ".join(choices) if len(choices) <= 12 else "`flowleap list` shows them all"
        return f"unknown {group} '{choice}'{suggest(choice, choices)} ({known})"
    if missing := re.match(r"You must specify '([^']+)'", text):
        group = missing[1]
        example = next(iter(load_options(verb).choices.get(group, [])), "...")
        return f"'{group}' is required, for instance {group}={example} {more}"
    if unknown := re.match(r"Could not override '([^']+)'", text):
        options = load_options(verb)
        return (
            f"unknown option '{unknown[1]}'{nearest(unknown[1], [*options.choices, *options.values])} {more}"
        )
    where = getattr(error, "full_key", None)
    cause: Any = error.__cause__ if isinstance(error, ConfigCompositionException) else None
    first = " ".join(part.splitlines()[0] for part in (text, str(cause or "")) if part)
    return f"{where}: {first}" if where else first


def nearest(key: str, known: Sequence[str]) -> str:
    """Return `"; did you mean ...?"`, by the last part of the dotted key if exact, else by the whole."""
    leaf = key.rpartition(".")[2]
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    return f"; did you mean '{same_leaf[0]}'?" if same_leaf else suggest(key, known)
