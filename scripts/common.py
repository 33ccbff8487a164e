"""What the scripts share: text and tables on the terminal, the words behind results, a policy's task, clocks."""

from __future__ import annotations

import json
import multiprocessing
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from flowleap.datasets.selection import Selection
from flowleap.envs.registry import make_task
from flowleap.envs.task import Task
from flowleap.envs.tasks.gym_task import imported_modules
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.hub import Address
from flowleap.policy.core.registry import parameters_of
from flowleap.scripts.cli.compose import given_overrides


def say(text: str) -> None:
    """Print a line as it is: no colours, no line breaks, so that paths can be copied."""
    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def show_table(head: Iterable[str], rows: Iterable[Iterable[Any]], title: str | None = None) -> None:
    """Print a table."""
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)


def plain(node: Any) -> Any:
    """A part of a configuration as lists and dicts, references resolved; what is none stays as it is."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def selected(cfg: DictConfig) -> dict[str, Any]:
    """What a verb's options say of the columns and episodes to read; runs of earlier versions say nothing."""
    return {name: plain(cfg.get(name)) for name in parameters_of(Selection)}


def command(verb: str) -> str:
    """The running command line, to be stored beside its results."""
    return f"flowleap {verb} {shlex.join(given_overrides())}"


def task_of(node: Any) -> Task | None:
    """The task that a configuration names with its `kwargs`; None if it names none."""
    named = plain(node)
    if not isinstance(named, dict) or not isinstance(named.get("name"), str):
        return None
    kwargs = named.get("kwargs")
    return make_task(named["name"], **(kwargs if isinstance(kwargs, dict) else {}))


def recorded_task(recorded: Any) -> Task | None:
    """The task that somebody's checkpoint names; see `task_of`.

    Raises:
        FlowleapError: it wants a module imported, which a file may not ask for; the message says how the user may.
    """
    modules = asked_imports(recorded)
    if modules:
        options = {f"task.kwargs.{k}": v for k, v in (recorded.get("kwargs") or {}).items() if v}
        words = [f"task={recorded['name']}", *(f"{k}={hydra_text(v)}" for k, v in options.items())]
        raise FlowleapError(
            f"the task of this policy imports {', '.join(modules)}, which code of yours may do and a file may not: "
            f"say it yourself: {' '.join(map(shlex.quote, words))}"
        )
    return task_of(recorded)


def asked_imports(recorded: Any) -> list[str]:
    """The modules that a recorded task wants to be imported."""
    named = recorded.get("name") if isinstance(recorded, dict) else None
    if not isinstance(named, str) or not named.startswith("gym/"):
        return []
    kwargs = recorded.get("kwargs")
    return imported_modules(named, kwargs if isinstance(kwargs, dict) else {})


def hydra_text(value: Any) -> str:
    """A value as hydra reads it: lists and mappings without quotes."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}:{hydra_text(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(hydra_text, value))}]"
    return "null" if value is None else str(value)


def run_dir_of(checkpoint: Path) -> Path:
    """The run directory of a checkpoint; what lies in none (an export, a copy) is its own.

    The cache of the Hugging Face Hub is no place for results: those of its policies have a folder below `runs`.
    """
    address = Address.cached_at(checkpoint)
    if address is not None:
        return Path("runs", "hub", *address.name.split("/"), str(address.revision)[:8])
    return checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint


def logged(run_dir: Path, key: str) -> list[dict[str, float]]:
    """The rows of a run's `metrics.jsonl` that hold `key`; none if there is no run."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [row for row in map(json.loads, lines) if key in row]


def timed(work: Callable[..., Any], *args: Any, times: int = 1) -> tuple[Any, float, float]:
    """Do `work(*args)` so many times; return its last result, and the seconds of wall clock and of CPU of all."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(times):
        result = work(*args)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def apart(work: Callable[..., Any], *args: Any) -> Any:
    """The result of `work(*args)` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, args)


def peak_megabytes() -> float:
    """The largest resident size of this process so far, in MB."""
    status = Path("/proc/self/status")
    known = status.read_text().partition("VmHWM:")[2].split() if status.exists() else []
    # Linux, unless a sandbox hides it; getrusage gives a fresh process the peak of its parent there.
    if known:
        return int(known[0]) / 1e3
    peak: float | None = getattr(psutil.Process().memory_info(), "peak_wset", None)
    if peak is not None:  # Windows, which has no `resource`
        return peak / 1e6
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1e6 if sys.platform == "darwin" else 1e3)
