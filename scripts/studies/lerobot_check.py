"""Does an export do in LeRobot what it does here, and in time? Needs lerobot 0.6.1, on Python 3.12.

    flowleap lerobot checkpoint=runs/pusht/export_nfe1
    flowleap lerobot checkpoint=runs/pusht/export_nfe1 results=docs/results/lerobot.json

lerobot-eval and `flowleap eval` roll the export of `pusht/keypoints` out on the same seeds with the same noise; every
action is compared. Then lerobot-rollout drives a fake robot, once computing each chunk when it is needed, once ahead of
time (RTC).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flowleap.envs.chunk_env import action_bounds
from flowleap.envs.registry import make_task
from flowleap.envs.rollout import rollout
from flowleap.lerobot.features import ENVIRONMENT_STATE, STATE, default_names
from flowleap.lerobot.folder import write_files
from flowleap.policy.core.errors import FlowleapError, optional_import
from flowleap.policy.core.files import write_results
from flowleap.policy.core.spec import Spec
from flowleap.policy.core.versions import package_versions
from flowleap.policy.deploy.runtime import ExportedPolicy
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import command, say, show_table

TASK = "pusht/keypoints"
NAMES = {"agent_pos": STATE, "keypoints": ENVIRONMENT_STATE}
TOLERANCE = 1e-6


def main(cfg: DictConfig) -> dict[str, Any]:
    """Compare, drive, print; write the JSON where one is asked for, and return it."""
    optional_import("lerobot", extra="lerobot")
    export = Path(cfg.checkpoint)
    policy = ExportedPolicy.load(export)
    if not set(NAMES) <= set(policy.spec.observations):
        raise FlowleapError(
            f"{export} is no export of {TASK}: it observes {sorted(policy.spec.observations)}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        evaluation = compare(export, policy, Path(scratch), cfg.seed, cfg.episodes)
        drives = [
            drive(export, policy.spec, Path(scratch), cfg, mode, threshold)
            for mode, threshold in [("sync", None), *(("rtc", q) for q in cfg.queue_thresholds)]
        ]
    rows = [
        (
            run["inference"],
            run.get("queue_threshold", ""),
            f"{run['served']}/{run['ticks']}",
            f"{run['rate_hz']:.2f}",
            f"{run['answer_ms']['p99']:.1f}",
            f"{run['cpu_share']:.2f}",
            f"{run['mean_second_difference']:.1f}",
        )
        for run in drives
    ]
    head = ("inference", "threshold", "ticks served", "Hz", "p99 ms to act", "CPU, cores", "2nd difference")
    show_table(head, rows, f"lerobot-rollout, {cfg.seconds} s at {cfg.fps} Hz")
    results = {
        "command": command("lerobot"),
        "lerobot": package_versions("lerobot")["lerobot"],
        "policy": {
            "steps": policy.steps,
            "horizon": policy.spec.horizon,
            "digest": policy.manifest["sha256"],
        },
        "eval": evaluation,
        "rollout": drives,
    }
    if cfg.results:
        say(f"results: {write_results(cfg.results, results)}")
    return results


def compare(export: Path, policy: ExportedPolicy, scratch: Path, seed: int, episodes: int) -> dict[str, Any]:
    """Roll out in both, and compare the actions.

    Raises:
        FlowleapError: lerobot-eval fails, or an action differs by more than `TOLERANCE`.
    """
    bounds = action_bounds(make_task(TASK))
    folder = _with_names(export, policy.spec, NAMES, scratch / "eval", bounds)
    out = scratch / "lerobot_eval"
    _run(
        "lerobot_eval",
        f"--policy.path={folder}",
        "--env.type=pusht",
        "--env.obs_type=environment_state_agent_pos",
        f"--seed={seed}",
        f"--policy.noise_seed={seed}",
        f"--eval.n_episodes={episodes}",
        # One batch: lerobot records no more. Its worker processes do not know gym-pusht.
        f"--eval.batch_size={episodes}",
        "--eval.use_async_envs=false",
        "--eval.recording=true",
        f"--output_dir={out}",
    )
    theirs = [_recorded(out, i, episodes) for i in range(episodes)]
    report = json.loads((out / "eval_info.json").read_text())["per_task"][0]["metrics"]
    ours, rewards = own_actions(policy, range(seed, seed + episodes))
    apart = [
        float(np.abs(a - b).max()) if a.shape == b.shape else np.inf
        for a, b in zip(ours, theirs, strict=True)
    ]
    worst = max(apart)
    rewarded = float(np.abs(np.subtract(rewards, report["max_rewards"])).max())
    actions = sum(map(len, ours))
    say(
        f"{actions} actions of {episodes} episodes: largest difference {worst:.2g} px, of the max reward {rewarded:.2g}"
    )
    if not worst <= TOLERANCE:
        raise FlowleapError(
            f"lerobot-eval and flowleap eval differ by up to {worst:.3g} px an action, in one of {apart}"
        )
    return {
        "task": TASK,
        "first_seed": seed,
        "episodes": episodes,
        "actions": actions,
        "max_abs_difference": worst,
        "max_reward_difference": rewarded,
        "mean_max_reward": float(np.mean(rewards)),
    }


def own_actions(policy: ExportedPolicy, seeds: Sequence[int]) -> tuple[list[np.ndarray], list[float]]:
    """The actions [T, A] that `flowleap eval` executes in each episode, and each one's max reward."""
    bounds = action_bounds(make_task(TASK))
    chunks: list[np.ndarray] = []

    def act(obs: Any, noise: np.ndarray) -> np.ndarray:
        chunks.append(policy.act(obs, noise)[0])
        return chunks[-1][None]

    actions, rewards = [], []
    for seed in seeds:
        chunks.clear()
        episode = rollout(make_task(TASK), act, policy.spec, [seed]).episodes[0]
        chosen = np.concatenate(chunks)[: episode.length]
        actions.append(chosen if bounds is None else np.clip(chosen, *bounds))
        rewards.append(episode.max_reward)
    return actions, rewards


def drive(
    export: Path, spec: Spec, scratch: Path, cfg: DictConfig, inference: str, threshold: int | None
) -> dict[str, Any]:
    """Let lerobot-rollout drive the fake robot; how many of its ticks got an action before the next one was due."""
    names = default_names(spec)
    folder = _with_names(export, spec, names, scratch / "rollout")
    log = scratch / "robot.json"
    words = [
        f"--policy.path={folder}",
        "--robot.type=flowleap_fake",
        f"--robot.joints={sum(known.size for known in spec.observations.values())}",
        f"--robot.actions={spec.action_dim}",
        "--robot.start=256",
        f"--robot.log={log}",
        f"--inference.type={inference}",
        f"--fps={cfg.fps}",
        f"--duration={cfg.seconds}",
        "--return_to_initial_position=false",
    ]
    words += [] if threshold is None else [f"--inference.queue_threshold={threshold}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    _run("lerobot_rollout", *words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seen = json.loads(log.read_text())
    counted = served(seen["observed_s"], seen["commanded_s"], cfg.fps)
    counted["nominal_ticks"] = round(cfg.seconds * cfg.fps)
    # How much the commands shake: fresh noise at every tick does.
    counted["mean_second_difference"] = float(np.abs(np.diff(seen["commands"], n=2, axis=0)).mean())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result = {"inference": inference, "seconds": cfg.seconds, "fps": cfg.fps, **counted}
    # What the program's start takes is in it, the same for all.
    result["cpu_share"] = cpu / cfg.seconds
    return result if threshold is None else {**result, "queue_threshold": threshold}


def served(observed: Sequence[float], commanded: Sequence[float | None], fps: float) -> dict[str, Any]:
    """Of the ticks observed at those seconds, how many got their action within a period; and how fast they came.

    Returns:
        `ticks`, `served`, `share`; `rate_hz`, of the ticks; `answer_ms`, from observation to action, {p50, p99}.
    """
    answers = [b - a for a, b in zip(observed, commanded, strict=True) if b is not None]
    good = sum(answer <= 1 / fps for answer in answers)
    p50, p99 = np.quantile(answers, [0.5, 0.99]) * 1e3
    return {
        "ticks": len(observed),
        "served": good,
        "share": good / len(observed),
        "rate_hz": (len(observed) - 1) / (observed[-1] - observed[0]),
        "answer_ms": {"p50": float(p50), "p99": float(p99)},
    }


def _with_names(
    export: Path, spec: Spec, names: Mapping[str, str], folder: Path, clip: np.ndarray | None = None
) -> Path:
    """A copy of the export with LeRobot's files."""
    if not folder.exists():
        shutil.copytree(export, folder, ignore=shutil.ignore_patterns("eval", "*.mp4"))
        write_files(folder, spec, names, clip)
    return folder


def _run(program: str, *words: str) -> None:
    """One of lerobot's programs, of this Python, that knows our plugin."""
    plugin = "--policy.discover_packages_path=flowleap.lerobot"
    line = [sys.executable, "-m", f"lerobot.scripts.{program}", plugin, *words]
    result = subprocess.run(
        line, capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if result.returncode:
        last = result.stderr.strip().splitlines()[-1:] or ["no message"]
        raise FlowleapError(f"{program.replace('_', '-')} ended with code {result.returncode}: {last[0]}")


def _recorded(out: Path, index: int, episodes: int) -> np.ndarray:
    """The actions [T, A] of an environment, from the LeRobotDataset that lerobot-eval recorded."""
    parquet = optional_import("pyarrow.parquet", extra="formats")
    folder = out / "recordings" / "pusht_0" / (f"env_{index}" if episodes > 1 else "")
    tables = [
        parquet.read_table(file, columns=["action"]) for file in sorted(folder.glob("data/*/*.parquet"))
    ]
    return np.concatenate([np.stack(table["action"].to_numpy()) for table in tables]).astype(np.float32)


if __name__ == "__main__":
    sys.exit(run_verb("lerobot"))
