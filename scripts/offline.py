"""The branch of `flowleap eval` for people without a simulator: predicted against recorded actions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flowleap.datasets.offline import follow, predict_at, spread_frames
from flowleap.datasets.offline_summary import summarise
from flowleap.envs.actors import load_actor
from flowleap.policy.core.errors import UsageError, require_int
from flowleap.policy.core.files import write_results
from flowleap.policy.training.metrics import progress_bar
from flowleap.scripts.common import command, plain, run_dir_of, say, show_table
from flowleap.scripts.recorded import held_out, recorded_windows, run_config
from flowleap.scripts.studies.plots import predicted_and_recorded
from flowleap.scripts.sweeps import cases_of

CAUTION = (
    "a low error does not mean success: what the policy sees next follows from what it did, and small errors add up; "
    "nor does a high one mean failure: it may have taken another way"
)


def evaluate_offline(cfg: DictConfig) -> dict[str, Any]:
    """Compare the policy's chunks with those recorded in `cfg.dataset`; print, write and return the results."""
    if cases_of(cfg) is not None:
        raise UsageError("dataset=... compares one policy at one NFE at a time: no lists of values")
    actor = load_actor(cfg.checkpoint, cfg.steps, cfg.weights, cfg.device, cfg.threads, cfg.n_action_steps)
    options = cfg.offline
    noises = require_int("offline.noises", options.noises, 1, 256)
    count = require_int("offline.frames", options.frames, 1, 100_000)
    config = run_config(actor.path)
    unseen = held_out(cfg.dataset, actor.describe.get("training") or {}, config)
    episodes = plain(options.episodes)
    if episodes is None and unseen:
        episodes = unseen
    windows, labels, numbers = recorded_windows(cfg.dataset, actor.task, actor.spec, config, episodes)
    frames = spread_frames(windows.episode_ends, count)
    with progress_bar(0, len(frames), "eval offline", enabled=True) as advance:
        done: list[int] = []

        def on_progress(number: int) -> None:
            done.append(number)
            advance(sum(done), "")

        found = predict_at(actor.chunk, windows, frames, noises, cfg.noise_seed, on_progress)
    report = summarise(found, windows, actor.spec.limits, labels)
    report["data"] = _provenance(unseen, numbers)
    drawn = {"median": report["median_episode"], "worst": report["worst_episodes"][0]}
    report["drawn"] = {
        name: {**part, **follow(actor.chunk, windows, part["index"], cfg.noise_seed)}
        for name, part in drawn.items()
    }
    dataset = Path(cfg.dataset).stem
    out = Path(cfg.out or run_dir_of(actor.path) / f"eval/offline_{dataset}_nfe{actor.nfe}.json")
    results = {
        "command": command("eval"),
        "nfe": actor.nfe,
        "spec": actor.spec.to_dict(),
        "actor": {"path": str(cfg.checkpoint), **actor.describe},
        "config": plain(cfg),
        "offline": {"dataset": str(cfg.dataset), "nfe": actor.nfe, "caution": CAUTION, **report},
    }
    _show(results["offline"])
    say(f"results: {write_results(out, results)}")
    picture = predicted_and_recorded(report["drawn"], f"{dataset}, NFE {actor.nfe}", out.with_suffix(".png"))
    say(f"plot: {picture}")
    return results


def _provenance(unseen: list[int] | None, numbers: list[int]) -> str:
    """Whether the policy was trained on what it is compared with, in words."""
    if unseen is None:
        return "another dataset than the policy was trained on, or it was trained on a filter of this one"
    held = len(set(unseen) & set(numbers))
    if held == len(numbers):
        return "episodes of its dataset that the policy was not trained on"
    if held:
        return f"its dataset; it was trained on {len(numbers) - held} of these {len(numbers)} episodes"
    return (
        "the very episodes that the policy was trained on, which says little: train with drop='90:' (for instance), "
        "and the episodes left out are compared"
    )


def _show(report: Mapping[str, Any]) -> None:
    """Print the report: a table of dimensions, and a line for each other question."""
    say(
        f"NFE {report['nfe']} | {report['frames']} frames of {report['episodes']} episodes of {report['dataset']}"
    )
    say(f"  {report['data']}")
    head = ("dim", "mean", "median", "p95", "last action", "mean action", "spread", "outside", "range")
    rows = []
    for index, part in enumerate(report["dimensions"]):
        numbers = [part["policy"][name] for name in ("mean", "median", "p95")]
        numbers += [part[name]["mean"] for name in ("repeat_last", "mean_action")] + [part["spread"]]
        shown = [f"{number:.3g}" for number in numbers]
        rows.append((index, *shown, f"{100 * part['outside']:.1f} %", f"{report['range'][index]:.3g}"))
    show_table(head, rows, "error of each action dimension, in its own unit")
    error, best = report["error"], report["best_of"]
    say(
        f"error over the range: {_percent(error['policy'])} of a chunk, {_percent(error['executed'])} of its executed "
        f"part; repeating the last action {_percent(error['repeat_last'])}, the mean action "
        f"{_percent(error['mean_action'])}"
    )
    steps = error["horizon"]["policy"]
    say(f"  first step {_percent(steps[0])}, last step ({len(steps)}) {_percent(steps[-1])}")
    if report["noises"] > 1:
        most = str(report["noises"])
        groups = report["two_ways"]
        ways = "" if groups is None else f"; at {_percent(groups)} of the frames they fall into two groups"
        say(
            f"  best of {most} noises {_percent(best[most])}; spread over noises {_percent(report['spread'])}{ways}"
        )
    for index, part in enumerate(report["dimensions"]):
        if (levels := part["levels"]) is not None:
            changed = "" if levels["changed"] is None else f", of the changes {_percent(levels['changed'])}"
            say(
                f"  dimension {index} has {len(levels['values'])} values: the nearest is the recorded one in "
                f"{_percent(levels['agreement'])}{changed}; always the most frequent one: {_percent(levels['always'])}"
            )
    worst = ", ".join(f"{part['episode']} {_percent(part['error'])}" for part in report["worst_episodes"][:5])
    say(f"  worst episodes: {worst}")
    worst = ", ".join(
        f"{part['episode']} frame {part['frame']} {_percent(part['error'])}"
        for part in report["worst_frames"][:3]
    )
    say(f"  worst frames: {worst}")
    say(f"  {CAUTION}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
