"""Is one policy better than another? Exact tests, intervals and letters from results of `flowleap eval`.

    flowleap compare runs/isd runs/ddpm                         the newest results of two runs
    flowleap compare isd=runs/isd/eval/x.json ddpm=runs/ddpm/eval/x.json
    flowleap compare 'isd=runs/isd_*' 'ddpm=runs/ddpm_*'        several training seeds of each
    flowleap compare runs/a runs/b sequential=true              could one have stopped earlier?
    flowleap compare runs/a runs/b live=true max_episodes=300   evaluate both now, until it is decided
    flowleap compare calibrate=true                             how often do the tests err?

Policies that were evaluated on the same seeds are compared seed by seed (McNemar, Tango), others as independent
(Boschloo, Newcombe); scores by a bootstrap. Of three or more policies all pairs are tested, with Holm's correction: two
policies share a letter if and only if they are not told apart. A label that stands for several training runs has those
resampled, too.

The sequential test may be looked at after every episode. It asks whether the first policy is better than the second;
`alternative=two-sided` asks which one is, and takes more episodes.
"""

from __future__ import annotations

import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flowleap.envs.actors import LoadedActor, load_actor
from flowleap.envs.conventions import in_actions_of
from flowleap.envs.evaluations import SCORES, Policy, aligned, differing, read_policy, require_comparable
from flowleap.envs.power import power_of_pair
from flowleap.envs.ranking import format_pair, rank
from flowleap.envs.sequential import Evidence, capital, collect_evidence
from flowleap.envs.side_by_side import Duel, side_by_side
from flowleap.envs.task import Task
from flowleap.policy.core.errors import FlowleapError, UsageError, require_int, require_number
from flowleap.policy.core.files import write_results
from flowleap.policy.training.metrics import progress_bar
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.cli.words import labelled
from flowleap.scripts.common import command, plain, recorded_task, say, show_table, task_of
from flowleap.scripts.studies import calibration


def main(cfg: DictConfig) -> dict[str, Any]:
    """Compare `cfg.policies`, print what came of it, write the results JSON and return it."""
    require_number("alpha", cfg.alpha, 1e-6, 0.5)
    if cfg.alternative not in ("greater", "two-sided"):
        raise UsageError(f"alternative={cfg.alternative} is none of greater, two-sided")
    if cfg.calibrate:
        results, name = calibration.measure(cfg), "calibration"
    else:
        labels: dict[str, list[str]] = {}
        for word in cfg.policies:
            label, path = labelled(word)
            labels.setdefault(label, []).append(path)
        if len(labels) < 2:
            raise UsageError("compare needs two policies: flowleap compare runs/a runs/b")
        if (cfg.live or cfg.sequential) and len(labels) > 2:
            raise UsageError(f"the sequential test compares two policies, got {', '.join(labels)}")
        results = _live(cfg, labels) if cfg.live else _finished(cfg, labels)
        name = re.sub(r"[^\w.-]+", "-", "_".join(labels)).strip("-")[:100]
    out = Path(cfg.out or f"runs/compare/{name}.json")
    results = {"command": command("compare"), "config": plain(cfg), **results}
    say(f"results: {write_results(out, results)}")
    if results.get("interrupted"):
        raise KeyboardInterrupt
    return results


def _finished(cfg: DictConfig, labels: dict[str, list[str]]) -> dict[str, Any]:
    """Compare results files."""
    policies = [read_policy(label, words) for label, words in labels.items()]
    require_comparable(policies)
    one = policies[0].evaluations[0]
    metrics = [cfg.metric] if cfg.metric else list(dict.fromkeys([*({"success"} & one.rates), one.headline]))
    conditions = differing(policies)
    files = {p.label: [str(e.path) for e in p.evaluations] for p in policies}
    say(f"{one.task}, protocol {one.protocol}")
    for label, paths in files.items():
        say(f"  {label}: {', '.join(paths)}")
    for name, values in conditions.items():
        say(f"  {name}: {', '.join(f'{v} ({p.label})' for v, p in zip(values, policies, strict=True))}")
    tables = [rank(policies, metric, cfg.alpha) for metric in metrics]
    for table in tables:
        _print_table(table, cfg.alpha)
    results: dict[str, Any] = {
        "task": one.task,
        "protocol": one.protocol,
        "files": files,
        "conditions": conditions,
        "tables": tables,
    }
    if all(len(p.evaluations) == 1 for p in policies):
        say("one training run each: this compares these checkpoints, not the methods that trained them")
        results["power"] = _power(policies, tables[0]) if metrics[0] in one.rates else None
    else:
        counts = ", ".join(f"{len(p.evaluations)} of {p.label}" for p in policies)
        say(
            f"training runs: {counts}. Episodes of one training run are no independent evidence about its method, so "
            "runs are resampled as well as episodes; of a single run only episodes can be"
        )
    if cfg.sequential:
        results["sequential"] = _hindsight(cfg, policies, metrics[-1] if cfg.metric is None else cfg.metric)
    return results


def _print_table(table: dict[str, Any], alpha: float) -> None:
    rows = []
    for row in table["policies"]:
        low, high = row["interval"]
        counted = f"{row['count']}/{row['n']}" if "count" in row else f"{row['runs']} x {row['episodes']}"
        value = f"{row['mean']:.3f} [{low:.3f}, {high:.3f}]"
        rows.append((row["label"], counted, value, row["letters"]))
    show_table(("policy", "episodes", f"{table['metric']} [95 %]", "letters"), rows)
    for pair in table["pairs"]:
        say(format_pair(table["metric"], pair, alpha))


def _power(policies: list[Policy], table: dict[str, Any]) -> dict[str, Any]:
    """Print what as many episodes can tell: of the pair with the fewest."""
    pair = min(table["pairs"], key=lambda pair: min(pair["episodes"]))
    known = {policy.label: policy for policy in policies}
    (first,), (second,), paired = aligned(known[pair["a"]], known[pair["b"]], table["metric"])
    found, line = power_of_pair(first, second, paired)
    say(line)
    return found


def _hindsight(cfg: DictConfig, policies: list[Policy], metric: str) -> dict[str, Any]:
    """After which episode of two finished evaluations one could have stopped, in the order of the seeds."""
    first, second, paired = aligned(policies[0], policies[1], metric)
    if not paired or len(first) > 1 or len(second) > 1:
        raise FlowleapError("the sequential test needs one training run of each policy, on the same seeds")
    bounds = None if policies[0].is_rate(metric) else _bounds(cfg)
    evidence = collect_evidence(first[0], second[0], bounds, cfg.alpha, cfg.alternative)
    return _verdict(evidence, [p.label for p in policies], metric)


def _live(cfg: DictConfig, labels: dict[str, list[str]]) -> dict[str, Any]:
    """Evaluate two policies side by side until it is decided."""
    for name in ("max_episodes", "block"):
        require_int(name, cfg[name], 1, 1_000_000)
    paths = [path for words in labels.values() for path in words]
    if len(paths) > 2:
        raise UsageError("live=true compares one policy with another: give one folder each")
    contestants = [_contestant(cfg, path) for path in paths]
    (task, _), (other, _) = contestants
    if task.name != other.name:
        raise FlowleapError(f"not comparable: the tasks of the policies are {task.name} and {other.name}")
    metric = cfg.metric or task.scoring.metric
    rates = ("success", *task.scoring.outcomes)
    if metric not in (*rates, *SCORES):
        raise UsageError(f"metric={metric} is none of {', '.join((*rates, *SCORES))}")
    bounds = None if metric in rates else _bounds(cfg)

    def evidence(duel: Duel) -> Evidence:
        return collect_evidence(*duel.values(metric), bounds, cfg.alpha, cfg.alternative)

    evidence(Duel())  # what is missing for it is missed now, not after the first block
    seeds = range(cfg.seed, cfg.seed + cfg.max_episodes)
    with progress_bar(0, len(seeds), f"{task.name}, both", enabled=True) as advance:

        def on_block(done: int, found: Evidence) -> None:
            advance(done, f"E = {capital(found.forward[-1]):.2g} of {1 / cfg.alpha:g}")

        duel = side_by_side(contestants, seeds, cfg.block, cfg.n_envs, evidence, on_block)
    if not duel.first:
        raise KeyboardInterrupt
    values, names = duel.values(metric), list(labels)
    say(f"{task.name}, seeds {seeds[0]}..{seeds[len(duel.first) - 1]}: {task.seed_note}")
    actors = [actor for _, actor in contestants]
    for label, own, actor in zip(names, values, actors, strict=True):
        say(f"  {label}: NFE {actor.nfe}, {metric} {own.mean():.3f} over {len(own)} episodes")
    return {
        "task": task.name,
        "sequential": _verdict(evidence(duel), names, metric),
        "interrupted": duel.interrupted,
        "policies": {
            label: {
                "path": path,
                "nfe": actor.nfe,
                "rows": [{k: v for k, v in asdict(e).items() if k != "motion"} for e in episodes],
            }
            for label, path, actor, episodes in zip(
                names, paths, actors, (duel.first, duel.second), strict=True
            )
        },
    }


def _contestant(cfg: DictConfig, path: str) -> tuple[Task, LoadedActor]:
    """A policy that is ready to act, and its task in its actions."""
    actor = load_actor(path, cfg.steps, cfg.weights, cfg.device, cfg.threads, cfg.n_action_steps)
    task = task_of(cfg.get("task")) or recorded_task(actor.task)
    if task is None:
        raise FlowleapError(f"{path} was trained without a task: add task=NAME (`flowleap list what=tasks`)")
    task = in_actions_of(task, actor.spec)
    actor.spec.require_match(task.spec, f"policy {path}", f"task {task.name}")
    return task, actor


def _bounds(cfg: DictConfig) -> tuple[float, float]:
    bounds = plain(cfg.bounds)
    if not isinstance(bounds, list) or len(bounds) != 2:
        raise UsageError(f"bounds={bounds}: give the lowest and the highest score, bounds=[0,1]")
    return require_number("bounds", bounds[0], -1e12, 1e12), require_number("bounds", bounds[1], -1e12, 1e12)


def _verdict(evidence: Evidence, labels: list[str], metric: str) -> dict[str, Any]:
    """Print and return what a sequential test found."""
    verdict = evidence.verdict(*labels)
    say(f"sequential, {metric}, {evidence.alternative}: {verdict}")
    return {
        "metric": metric,
        "alternative": evidence.alternative,
        "alpha": evidence.alpha,
        "episodes": len(evidence.forward),
        "stopped_after": evidence.stopped_after,
        "futile_after": evidence.futile_after,
        "verdict": verdict,
        "evidence": capital(evidence.forward).tolist(),
        "evidence_for_the_second": capital(evidence.backward).tolist(),
    }


if __name__ == "__main__":
    sys.exit(run_verb("compare"))
