"""Write a checkpoint as ONNX, to act without torch: normaliser, encoder, head at a fixed NFE, unnormaliser.

    flowleap export checkpoint=RUN_DIR
    flowleap export checkpoint=hf://OWNER/NAME         a policy of the Hugging Face Hub
    flowleap export checkpoint=RUN_DIR steps=4 out=door_nfe4
    flowleap export checkpoint=RUN_DIR format=onnx-int8 episodes=100   8 bits; does it succeed as often?
    flowleap export checkpoint=RUN_DIR format=openvino                 for Intel processors
    flowleap eval checkpoint=RUN_DIR/export_nfe1       roll the export out
    flowleap export checkpoint=RUN_DIR lerobot=true    a folder that lerobot opens, too

The export is compared with the eager policy on observations of the dataset before it appears.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from flowleap.envs.actors import policy_actor
from flowleap.envs.chunk_env import action_bounds
from flowleap.envs.comparison import paired_difference
from flowleap.envs.rollout import rollout
from flowleap.envs.statistics import mean, rate
from flowleap.lerobot.folder import names_of, write_files
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import write_results
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import (
    asked_imports,
    command,
    plain,
    recorded_task,
    run_dir_of,
    say,
    show_table,
    task_of,
)
from flowleap.scripts.recorded import recorded_windows, run_config

if TYPE_CHECKING:
    from flowleap.policy.deploy.runtime import ExportedPolicy
    from flowleap.policy.policy import Policy

PARITY_WINDOWS = 1024
_AT_ONCE = 16


def main(cfg: DictConfig) -> Path:
    """Export `cfg.checkpoint`, print parity and latency, and return the exported folder."""
    from flowleap.policy.deploy.export import export
    from flowleap.policy.policy import Policy

    policy = Policy.load(cfg.checkpoint, cfg.weights)
    names = names_of(policy.spec, plain(cfg.lerobot), policy.info.get("lerobot")) if cfg.lerobot else None
    steps = policy.objective.check_steps(cfg.steps)
    name = f"export_nfe{steps}{cfg.format.removeprefix('onnx').replace('openvino', '-openvino')}"
    out = Path(cfg.out) if cfg.out else run_dir_of(policy.checkpoint or Path(cfg.checkpoint)) / name
    simulate = _simulation(policy, steps, cfg.episodes, cfg.seed, cfg.n_envs) if cfg.episodes else None
    observations = dataset_observations(cfg.dataset, policy)
    if observations is None:
        where = policy.info.get("dataset") or "unknown"
        say(f"training dataset ({where}) not found: comparing on synthetic observations")
    report = export(
        policy,
        out,
        steps,
        observations=observations,
        tolerance=None if cfg.tolerance is None else float(cfg.tolerance),
        format=cfg.format,
        convolutions=cfg.convolutions,
        ddpm=cfg.ddpm,
        simulate=simulate,
    )
    _print_report(report)
    if names:
        write_files(out, policy.spec, names, _bounds(policy.info))
        say(f"lerobot: {', '.join(f'{key} is {name}' for key, name in names.items())}")
    if cfg.results:
        say(f"results: {write_results(cfg.results, {'command': command('export'), **report})}")
    say(f"exported: {out}")
    return out


def _simulation(policy: Policy, steps: int, episodes: int, seed: int, n_envs: int) -> Any:
    """What rolls out a policy and its export on the same seeds, and compares them episode by episode."""
    task = recorded_task(policy.info.get("task"))
    if task is None:
        raise FlowleapError("episodes=N compares in simulation, but this policy was trained without a task")

    def simulate(policy: Policy, exported: ExportedPolicy) -> dict[str, Any]:
        seeds = list(range(seed, seed + episodes))
        say(f"simulation: {episodes} episodes of {task.name}, the policy and its export")
        report: dict[str, Any] = {"task": task.name, "seeds": seeds}
        outcomes = {}
        for name, act in (("eager", policy_actor(policy, steps)), ("exported", exported.act)):
            outcomes[name] = rollout(task, act, policy.spec, seeds, n_envs).episodes
            report[name] = {
                "score": mean(np.array([e.max_reward for e in outcomes[name]])),
                "success": rate([e.success for e in outcomes[name]]),
                "scores": [e.max_reward for e in outcomes[name]],
                "successes": [e.success for e in outcomes[name]],
            }
        for metric, field in (("score", "max_reward"), ("success", "success")):
            ours, theirs = ([float(getattr(e, field)) for e in outcomes[k]] for k in ("exported", "eager"))
            report[f"{metric}_difference"] = paired_difference([ours], [theirs])
        return report

    return simulate


def dataset_observations(dataset: str | None, policy: Policy) -> dict[str, np.ndarray] | None:
    """Windows spread over the dataset, {key: [N, To, *shape]}; None if the training dataset is not here."""
    spec, info = policy.spec, policy.info
    if dataset is None:
        dataset = info.get("dataset")
        if not isinstance(dataset, str) or not Path(dataset).exists():
            return None
    config = run_config(policy.checkpoint) if policy.checkpoint else {}
    windows = recorded_windows(dataset, info.get("task"), spec, config).windows
    index = np.linspace(0, len(windows) - 1, min(PARITY_WINDOWS, len(windows))).astype(np.int64)
    parts: dict[str, list[np.ndarray]] = {key: [] for key in spec.observations}
    for rows in np.array_split(index, -(-len(index) // _AT_ONCE)):  # cameras may take large images
        gathered = windows.gather(rows)["obs"]
        for key, seen in parts.items():
            seen.append(spec.observations[key].see(gathered[key]))
    return {key: np.concatenate(seen) for key, seen in parts.items()}


def _bounds(info: Mapping[str, Any]) -> np.ndarray | None:
    """Least and greatest action [2, A] of the task's environment; None where there is none, or it has no bounds."""
    task = None if asked_imports(info.get("task")) else task_of(info.get("task"))
    try:
        return action_bounds(task) if task else None
    except FlowleapError as error:
        say(f"lerobot: actions are not kept in the environment's bounds, which does not open: {error}")
        return None


def _print_report(report: Mapping[str, Any]) -> None:
    parity, latency = report["parity"], report["latency"]
    say(
        f"parity with eager torch at NFE {report['steps']}, {parity['windows']} {parity['observations']} "
        f"observations, tolerance {parity['tolerance']:g}:"
    )
    rows = [
        (case["batch"], case["draws"], f"{case['max_abs']:.2e}", f"{case['max_relative']:.2e}")
        for case in parity["cases"]
    ]
    show_table(("batch", "draws", "max abs error", "relative to the action range"), rows)
    worst = ", ".join(f"{value:.2g}" for value in parity["max_abs_per_dimension"])
    say(
        f"largest error of each action dimension, real units: {worst}; over the range, root mean square: "
        f"{parity['rms_relative']:.1e}"
    )
    line = "{} {p50_ms:.3f} / {p95_ms:.3f}"
    times = [line.format(name, **value) for name, value in latency.items() if isinstance(value, dict)]
    ratio = f"{latency['speedup']:.1f}x eager"
    if "speedup_over_ddpm100" in latency:
        ratio += f", {latency['speedup_over_ddpm100']:.0f}x DDPM-100"
    say(f"latency, batch 1, one thread, p50 / p95 ms: {', '.join(times)} ({ratio} at p50)")
    if simulated := report.get("simulation"):
        for metric in ("score", "success"):
            difference = simulated[f"{metric}_difference"]
            low, high = difference["interval"]
            say(f"{metric}, exported minus eager: {difference['mean']:+.3f} [{low:+.3f}, {high:+.3f}]")


if __name__ == "__main__":
    sys.exit(run_verb("export"))
