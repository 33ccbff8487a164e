"""Train and evaluate objectives on equal terms: same network, data, training and evaluation seeds.

    flowleap benchmark task=pusht/keypoints dataset=PATH
    flowleap benchmark suite=objectives task=pusht/keypoints dataset=PATH
    flowleap benchmark task=metaworld/push-v3 dataset=PATH objectives=[isd] nfe.isd=[1] seeds=[0]
    flowleap benchmark dataset=PATH 'objectives=[isd,isd-quarter]' '+own={isd-quarter: "objective.diagonal=0.75"}'
    flowleap benchmark suite=stability task=pusht/keypoints dataset=PATH name=claims_pusht_keypoints
    flowleap benchmark suite=distillation task=pusht/keypoints dataset=PATH name=distillation
    flowleap benchmark suite=latency task=pusht/keypoints dataset=PATH
    flowleap benchmark suite=metaworld50

A row is an objective, or `objective-variant` with the variant's overrides in `own`, or in `acting` those of its
evaluations: rows that differ in these alone share their training. A row of `teachers` learns from the row that it names
there, of the same seed, and the minutes of both count.

`budget=[steps]` gives every objective equal gradient steps; `budget=[steps,time]` adds a second table, where an
objective with a cheaper step than the first one's gets more steps, so that training takes as long, or the share of it
that `time_share` says. Rows run in processes of their own, one CPU thread each. What is finished is not repeated, so an
interrupted benchmark goes on where it stopped. With `formats`, the first objective is also evaluated as exported, and a
chunk of all is timed in turn at the end. A suite of tasks also collects the demonstrations of each.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from omegaconf import DictConfig

from flowleap.envs.protocols import FLOWLEAP, Protocol, find_protocol, one_protocol
from flowleap.envs.registry import make_task
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import write_results
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import command, logged, plain, say
from flowleap.scripts.studies.benchmark_tables import aggregate, differences, markdown, print_tables
from flowleap.scripts.studies.formats import chunk_times
from flowleap.scripts.studies.plots import score_curves
from flowleap.scripts.studies.suite import Suite, collected, show

_T = TypeVar("_T")
_R = TypeVar("_R")

EPISODES = 100  # where the protocol leaves their number open
TIMING = "train_seconds.json"
STEP_COST = "step_seconds.json"
COMMAND = (sys.executable, "-m", "flowleap.scripts.cli.main")
TRAINING = ("trainer.threads=1", "trainer.device=cpu", "trainer.progress=false")

_running: set[subprocess.Popen[bytes]] = set()  # by `run_flowleap`, in any thread
_stopping = threading.Event()
_training: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)  # of runs that rows share


class Row(NamedTuple):
    """One training and the NFEs it is evaluated at; `budget` is `steps` or `time`, `teacher` a run to learn from."""

    objective: str
    seed: int
    nfes: tuple[int, ...]
    train: tuple[str, ...]
    run_dir: Path
    budget: str
    teacher: Path | None


def main(cfg: DictConfig) -> dict[str, Any]:
    """Run all rows, write `<results>/<name>.{json,md}` (`.png`: of more than one point), print and return them."""
    if cfg.get("task") is None or cfg.parallel < 1 or not set(cfg.budget) <= {"steps", "time"}:
        raise FlowleapError("benchmark needs task=NAME, parallel >= 1 and budget=[steps], [time] or both")
    if cfg.tasks:
        if cfg.formats:
            raise FlowleapError(
                "formats compares what one task's policy is exported in; a suite of tasks has none"
            )
        return _suite(cfg)
    protocol = _decide_seeds(cfg)
    metric = protocol.metric or make_task(cfg.task.name).scoring.metric
    records = _records(cfg, partial(_in_threads, threads=cfg.parallel))
    results: dict[str, Any] = {"command": command("benchmark"), "config": plain(cfg), "metric": metric}
    results["protocol"] = {"name": one_protocol(records)}
    for budget in cfg.budget:
        own = [record for record in records if record["budget"] == budget]
        suffix = "" if budget == cfg.budget[0] else f"_equal_{budget}"
        results[f"table{suffix}"] = aggregate(own, cfg.episodes, metric)
        results[f"paired_differences{suffix}"] = differences(own, metric)
    if cfg.formats:
        results["latency"] = chunk_times(_timed(cfg))
    results["runs"] = [{key: value for key, value in e.items() if key != "rows"} for e in records]
    path = write_results(Path(cfg.results) / f"{cfg.name.replace('/', '_')}.json", results)
    path.with_suffix(".md").write_text(markdown(results))
    if len(results["table"]) > 1 or any(run["curve"] for run in results["runs"]):
        title = f"{cfg.task.name}, training seeds {', '.join(map(str, cfg.seeds))}"
        score_curves(results["table"], results["runs"], metric, path.with_suffix(".png"), title)
    print_tables(results)
    say(f"results: {path}, .md")
    return results


def _records(cfg: DictConfig, each: Callable[..., Iterable[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """What came of every row, `each` being a `map`; those that learn from others are trained after them."""
    order = list(cfg.objectives)
    for name, teacher in cfg.teachers.items():
        if name in order and (teacher not in order or teacher in cfg.teachers):
            raise FlowleapError(
                f"teachers: {name} learns from {teacher}, which is no row that learns from data alone"
            )
    found: list[dict[str, Any]] = []
    for students in (False, True):
        names = [name for name in order if (name in cfg.teachers) == students]
        for records in each(lambda row: _run(cfg, row), _rows(cfg, names)):
            found += records
    # An export stands behind its policy.
    return sorted(
        found, key=lambda record: (record["seed"], order.index(record["objective"].partition(", ")[0]))
    )


def _decide_seeds(cfg: DictConfig) -> Protocol:
    """Fill in the evaluation seeds that `cfg` leaves to its protocol, which is returned."""
    protocol = find_protocol(cfg.protocol, cfg.task.name)
    if cfg.schedule and not protocol.schedule:
        raise FlowleapError(
            f"schedule=true: published scores of protocol={protocol.name} are no means over checkpoints"
        )
    seeds = protocol.seeds(cfg.eval_seed, cfg.episodes or (None if protocol.published else EPISODES))
    cfg.eval_seed, cfg.episodes = seeds.start, len(seeds)
    return protocol


def _suite(cfg: DictConfig) -> dict[str, Any]:
    """Collect, train on and evaluate every task of a suite; write `<results>/<name>.json`, print and return it."""
    suite = Suite(cfg, Path(cfg.results) / f"{cfg.name}.json")

    def run(task: str) -> None:
        own = suite.task_config(task)
        _decide_seeds(own)
        collected(own, run_flowleap)
        suite.add(task, _records(own, map))

    _in_threads(run, suite.left, cfg.parallel)
    suite.add_experts()
    results = suite.write()
    show(results)
    say(f"results: {suite.path}")
    return results


def _in_threads(work: Callable[[_T], _R], things: Iterable[_T], threads: int) -> list[_R]:
    """The result of `work` for each, so many at once; Ctrl-C ends the processes that they wait for."""
    _stopping.clear()
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(pool.map(work, things))
        except (KeyboardInterrupt, SystemExit):
            # End the processes that are running, and start no more; the threads that wait for them end with them.
            pool.shutdown(wait=False, cancel_futures=True)
            _stopping.set()
            for process in list(_running):
                process.terminate()
            raise


def _rows(cfg: DictConfig, objectives: Sequence[str]) -> list[Row]:
    """The rows of some objectives, seed by seed, so that a benchmark cut short has compared them on fewer seeds."""
    rows: list[Row] = []
    runs: dict[tuple[str, ...], Path] = {}
    for seed, budget, objective in product(cfg.seeds, cfg.budget, objectives):
        teacher = cfg.teachers.get(objective)
        place = _run_dir(cfg, teacher, seed, budget) if teacher else None
        words = _train_words(cfg, objective, seed, place)
        if budget == "time":
            steps = f"trainer.steps={_equal_time_steps(cfg, objective, words, place)}"
            words = (*(word for word in words if not word.startswith("trainer.steps=")), steps)
        nfes = tuple(cfg.nfe.get(objective, cfg.nfe.get(objective.partition("-")[0], [1])))
        run_dir = _run_dir(cfg, objective, seed, budget)
        if objective in cfg.acting:
            run_dir = runs.get(words, run_dir)
        runs.setdefault(words, run_dir)
        rows.append(Row(objective, seed, nfes, words, run_dir, budget, place))
    return rows


def _run_dir(cfg: DictConfig, objective: str, seed: int, budget: str) -> Path:
    name = objective.replace("-", "_") + ("" if budget == "steps" else "_equal_time")
    return Path(cfg.out) / f"{name}_seed{seed}"


def _equal_time_steps(cfg: DictConfig, objective: str, words: Sequence[str], teacher: Path | None) -> int:
    """Gradient steps that take the row's share of the first objective's time, by the CPU time of a step."""
    file = Path(cfg.out) / STEP_COST
    costs: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
    for name in (cfg.objectives[0], objective):
        if name not in costs:
            costs[name] = step_cost(cfg, name, teacher)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(costs))
    steps = [int(word.partition("=")[2]) for word in words if word.startswith("trainer.steps=")]
    if not steps:
        raise FlowleapError('budget=[time] needs trainer.steps in train="..."')
    share: float = cfg.time_share.get(objective, 1.0)
    return max(1, round(share * steps[-1] * costs[cfg.objectives[0]] / costs[objective]))


def step_cost(cfg: DictConfig, objective: str, teacher: Path | None, steps: int = 400) -> float:
    """CPU seconds of one gradient step: those of 60 + `steps` steps less those of 60, in processes of their own."""
    spent = []
    for count in (60, 60 + steps):
        with tempfile.TemporaryDirectory() as folder:
            alone = ("trainer.eval_every=0", "trainer.patience=0")  # an evaluation is no gradient step
            fixed = (f"run_dir={folder}/run", f"trainer.stop_at={count}", *alone)
            taught = teacher if objective in cfg.teachers else None
            spent.append(run_flowleap("train", *_train_words(cfg, objective, 0, taught), *fixed))
    return max(spent[1] - spent[0], 1e-6) / steps


def _train_words(cfg: DictConfig, objective: str, seed: int, teacher: Path | None) -> tuple[str, ...]:
    base = (f"task={cfg.task.name}", f"dataset={cfg.dataset}", f"objective={objective.partition('-')[0]}")
    taught = () if teacher is None else (f"objective.teacher={teacher}",)
    own = (*shlex.split(cfg.train), *shlex.split(cfg.own.get(objective, "")))
    return (*base, *taught, f"trainer.seed={seed}", *TRAINING, *own)


def _run(cfg: DictConfig, row: Row) -> list[dict[str, Any]]:
    """Train one row unless it is finished, evaluate it at every NFE, and return one record each."""
    timing = row.run_dir / TIMING
    with _training[row.run_dir]:
        if not timing.exists():
            if (row.run_dir / "checkpoints" / "last").exists():
                seconds = run_flowleap("train", f"resume={row.run_dir}")
            else:
                seconds = run_flowleap("train", *row.train, f"run_dir={row.run_dir}")
            timing.write_text(json.dumps(seconds))
            say(f"trained {row.run_dir} in {seconds / 60:.1f} CPU minutes")
    taught = json.loads((row.teacher / TIMING).read_text()) if row.teacher else 0.0
    protocol = "" if cfg.protocol == FLOWLEAP.name else f"_{cfg.protocol}"
    acting = shlex.split(cfg.acting.get(row.objective, ""))
    protocol += f"_{row.objective}" if acting else ""
    trained: dict[str, Any] = {
        "budget": row.budget,
        "seed": row.seed,
        "train_minutes": round((json.loads(timing.read_text()) + taught) / 60, 2),
        "teacher_minutes": round(taught / 60, 2) if row.teacher else None,
        "gradient_norm": _norms(logged(row.run_dir, "grad_norm_largest")),
    }
    records: list[dict[str, Any]] = []

    def add(label: str, nfe: int, checkpoint: Path, curve: list[dict[str, Any]]) -> None:
        ta = "null" if cfg.n_action_steps is None else cfg.n_action_steps
        name = f"nfe{nfe}_ta{cfg.n_action_steps or 'task'}_{cfg.eval_seed}x{cfg.episodes}{protocol}.json"
        words = (f"steps={nfe}", f"n_action_steps={ta}", f"protocol={cfg.protocol}", *acting)
        result = evaluate(cfg, checkpoint, checkpoint / "eval" / name, *words)
        if not records:  # an export knows neither
            trained["train_steps"] = result["actor"]["training"]["step"]
            trained["parameters"] = result["actor"]["parameters"]
        records.append(
            {
                "objective": label,
                "nfe": nfe,
                **trained,
                "protocol": result.get("protocol"),
                "summary": result["summary"],
                "curve": curve,
                "rows": result["rows"],
            }
        )
        if cfg.schedule:
            each = find_protocol(cfg.protocol, cfg.task.name).episodes
            everywhere = (*words, "checkpoint_steps=all", f"episodes={each}")
            swept = evaluate(cfg, checkpoint, checkpoint / "eval" / f"schedule_{each}_{name}", *everywhere)
            records[-1]["schedule"] = swept["means_of_best"][0]

    evaluations = logged(row.run_dir, "eval/score")  # during training, with `trainer.eval_every`
    for nfe in row.nfes:
        add(
            row.objective,
            nfe,
            row.run_dir,
            [{"step": e["step"], "score": e["eval/score"]} for e in evaluations],
        )
    if row.objective == cfg.objectives[0] and row.budget == cfg.budget[0]:
        for form in cfg.formats:
            add(f"{row.objective}, {form}", row.nfes[0], _exported(row, form), [])
    return records


def _exported(row: Row, form: str) -> Path:
    """The export of a trained row at its first NFE, from its folder if it is there already."""
    out = row.run_dir / f"export_{form}"
    if not out.exists():
        run_flowleap(
            "export",
            f"checkpoint={row.run_dir}",
            f"out={out}",
            f"format={form}",
            f"steps={row.nfes[0]}",
            "ddpm=false",
        )
    return out


def _timed(cfg: DictConfig) -> dict[str, tuple[Path, int]]:
    """What is timed: label -> run or export, NFE; of the first training seed."""
    seed = cfg.seeds[0]
    own = [row for row in _rows(cfg, cfg.objectives) if row.seed == seed and row.budget == cfg.budget[0]]
    places = {f"{row.objective}, NFE {nfe}": (row.run_dir, nfe) for row in own for nfe in row.nfes}
    first = own[0]
    return places | {
        f"{first.objective}, {form}, NFE {first.nfes[0]}": (_exported(first, form), first.nfes[0])
        for form in cfg.formats
    }


def _norms(rows: Sequence[dict[str, float]]) -> dict[str, float] | None:
    """Gradient norms of a training before clipping: the median, and the largest of all and in the last tenth."""
    if not rows:
        return None
    largest = [row["grad_norm_largest"] for row in rows]
    late = largest[-max(1, len(largest) // 10) :]
    median = float(np.median([row["grad_norm"] for row in rows]))
    return {"median": median, "largest": max(largest), "largest_in_the_last_tenth": max(late)}


def evaluate(cfg: DictConfig, run_dir: Path, out: Path, *words: str) -> dict[str, Any]:
    """The results of `flowleap eval` for a run, from `out` if they are there already; the last of `words` prevail."""
    if not out.exists():
        episodes = (f"episodes={cfg.episodes}", f"seed={cfg.eval_seed}", "n_envs=1", "videos=0")
        run_flowleap("eval", f"checkpoint={run_dir}", *episodes, *words, f"out={out}")
    results: dict[str, Any] = json.loads(out.read_text())
    return results


def run_flowleap(verb: str, *words: str) -> float:
    """Run a verb in a process of its own on one CPU thread; return its CPU seconds. Its error line becomes ours."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    line = [*COMMAND, verb, *words]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        _running.add(process)
        try:
            if _stopping.is_set():
                process.terminate()
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            _running.discard(process)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            message = errors.read().strip()[-800:]
            raise FlowleapError(f"flowleap {verb} {' '.join(words)} failed: {message}")
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(run_verb("benchmark"))
