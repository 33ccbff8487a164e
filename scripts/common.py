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

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from flowleap.envs.registry import make_task
from flowleap.envs.task import Task
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


def command(verb: str) -> str:
    """The running command line, to be stored beside its results."""
    return f"flowleap {verb} {shlex.join(given_overrides())}"


def task_of(node: Any) -> Task | None:
    """The task that a configuration, or what was recorded of one, names with its `kwargs`; None if it names none."""
    named = plain(node)
    if not isinstance(named, dict) or not isinstance(named.get("name"), str):
        return None
    kwargs = named.get("kwargs")
    return make_task(named["name"], **(kwargs if isinstance(kwargs, dict) else {}))


def run_dir_of(checkpoint: Path) -> Path:
    """The run directory of a checkpoint; what lies in none (an export, a copy) is its own."""
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
    peak = status.read_text().partition("VmHWM:")[2].split() if status.exists() else []
    if peak:  # Linux, unless a sandbox hides it; getrusage gives a fresh process the peak of its parent there
        return int(peak[0]) / 1e3
    import resource  # Windows has none

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (1e6 if sys.platform == "darwin" else 1e3)
