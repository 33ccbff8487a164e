"""Train a policy on demonstrations.

flowleap train task=pusht/keypoints dataset=PATH
flowleap train task=pusht/keypoints dataset=PATH objective=flow_matching trainer.steps=40000
flowleap train dataset=PATH                        your own data, no simulator
flowleap train ... objective=distillation objective.teacher=RUN_DIR      a student of one step of a trained policy
flowleap train ... trainer.dry_run=true            print the plan and one timed step
flowleap train resume=RUN_DIR                      continue exactly where a run stopped
flowleap train resume=RUN_DIR/checkpoints/step_N   or from an earlier checkpoint of it
flowleap train -m trainer.seed=0,1,2 objective=isd,flow_matching task=... dataset=...    a sweep
accelerate launch -m flowleap.scripts.train task=... dataset=...                         several GPUs
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from flowleap.datasets import roles
from flowleap.datasets.columns import ACTION
from flowleap.datasets.dataset import Dataset, open_dataset
from flowleap.datasets.images import plain_inputs
from flowleap.envs.conventions import in_actions_of
from flowleap.envs.registry import make_task
from flowleap.envs.task import Task
from flowleap.envs.task_data import load_columns, with_mirrored, with_recorded_env
from flowleap.policy.core.errors import FlowleapError, require_int
from flowleap.policy.core.limits import ActionLimits
from flowleap.policy.core.spec import WINDOW, Spec
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.cli.paths import escaped
from flowleap.scripts.common import peak_megabytes, plain, say, selected, show_table, timed
from flowleap.scripts.resume import CONFIG, resumed


def main(cfg: DictConfig) -> Path:
    """Train, or continue, a run; return the last checkpoint's directory."""
    before = resumed(cfg) if cfg.resume else None
    if before and before.finished:
        say(before.finished)
        return before.checkpoint
    cfg, run_dir = (before.cfg, before.run_dir) if before else (cfg, _new_run_dir(cfg))
    import torch

    from flowleap.policy.policy import PARTS, Policy
    from flowleap.policy.training.config import TrainerConfig
    from flowleap.policy.training.teacher import teacher_for
    from flowleap.policy.training.trainer import Trainer

    if cfg.dataset is None:
        raise FlowleapError("no dataset given: add dataset=PATH (or resume=RUN_DIR to continue a run)")
    options = TrainerConfig.from_mapping(plain(cfg.trainer))
    task, kwargs = None, {}
    cache = require_int("data.image_cache_mb", cfg.data.image_cache_mb, 0, 2**30) * 2**20
    if (place := Path(cfg.dataset).expanduser()).exists():
        cfg.dataset = escaped(os.path.abspath(place))  # so that the run can go on from another folder
    chosen = selected(cfg)
    if before and not cfg.get("task"):
        chosen["keys"] = before.keys
    with before.data_errors() if before else nullcontext(), open_dataset(cfg.dataset, **chosen) as dataset:
        if cfg.get("task"):
            kwargs = with_recorded_env(cfg.task.name, plain(cfg.task.get("kwargs", {})), dataset)
            task = in_actions_of(make_task(cfg.task.name, **kwargs), dataset.spec)
        data = load_columns(task, dataset, cache, images=cfg.encoder.name != "lowdim")
        unused = {} if task else _unused(dataset, data)
        read_at = os.path.abspath(dataset.path)
    recorded, digest = data.n_episodes, data.attrs["digest"]
    other_data = before.has_other_data(digest) if before else False
    if cfg.data.mirror:
        data = with_mirrored(task, data)
    window = {name: cfg[name] for name in asdict(WINDOW)}
    limits = ActionLimits.of(data.columns([ACTION])[ACTION], data.episode_ends)
    spec = replace(data.spec.with_window(**window), limits=limits)
    torch.manual_seed(options.seed)
    policy = Policy(spec, {part: plain(cfg[part]) for part in PARTS if part in cfg})
    teacher = teacher_for(policy, before.info.get("teacher", {}) if before else None)
    if teacher:
        cfg.objective.teacher = escaped(teacher.notes["path"])
    windows = data.windows(**window, image_frames=policy.image_frames)
    info = {
        "task": {"name": task.name, "kwargs": kwargs} if task else None,
        "dataset": read_at,
        "data": digest,
        "episodes": recorded,
        "mirrored": data.n_episodes > recorded,
        "frames": len(windows),
        **({"teacher": teacher.notes} if teacher else {}),
    }
    evaluate = partial(_evaluate, task, cfg.eval) if task and options.eval_every else None
    taught = teacher.policy if teacher else None
    trainer = Trainer(policy, windows, options, run_dir, evaluate=evaluate, info=info, teacher=taught)
    if unused and trainer.accelerator.is_main_process:
        say(f"not observed: {roles.explain(unused)}; keys=[...] chooses others")
    held = ", ".join(f"'{key}' {dims}" for key, dims in policy.normalizer.noise.items() if dims)
    if held and trainer.accelerator.is_main_process:
        say(f"range taken for noise, not amplified: {held} (normalizer.floor)")
    if trainer.accelerator.is_main_process:
        for key, reason in plain_inputs(spec.observations).items():
            say(f"'{key}': {reason}")
    if options.dry_run:
        print_plan(trainer, spec, info)
        return run_dir
    if before:
        trainer.resume(before.checkpoint, other_data)
    if trainer.accelerator.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(escaped(plain(cfg))), run_dir / CONFIG)
        summary = escape(f" | {spec.summary()} | {len(windows)} windows, {_episodes(info)}")
        Console(soft_wrap=True).print(f"[bold]{escape(str(run_dir))}[/]{summary}")
        _say_how_long(trainer)
    last = trainer.fit()
    if trainer.accelerator.is_main_process and trainer.stop_reason:
        say(trainer.stop_reason)
    return last


def _say_how_long(trainer: Any) -> None:
    """Print what a run on images will take, and what would shorten it; others begin at once."""
    from flowleap.policy.training import estimate

    images = any(obs.image for obs in trainer.policy.spec.observations.values())
    seconds = estimate.seconds_a_step(trainer) if images else None
    if seconds is None:
        return
    left = seconds * ((trainer.config.stop_at or trainer.config.steps) - trainer.step)
    say(f"about {estimate.in_words(seconds)} a step, {estimate.in_words(left)} in all")
    if (shorter := estimate.advice(trainer, left)) is not None:
        say(shorter)


def _evaluate(task: Task, options: DictConfig, policy: Any, step: int) -> Mapping[str, float]:
    """The trainer's periodic evaluation: a short rollout of the EMA policy on seeds of its own."""
    from flowleap.envs.actors import policy_actor
    from flowleap.envs.report import summary
    from flowleap.envs.rollout import rollout

    seeds = range(options.seed, options.seed + options.episodes)
    actor = policy_actor(policy, options.steps)
    report = summary(rollout(task, actor, policy.spec, seeds, n_envs=options.n_envs), task)
    return {
        "score": report["headline"]["value"],
        "success": report["success"]["rate"],
        "max_reward": report["max_reward"]["mean"],
        "nfe": policy.objective.check_steps(options.steps),
    }


def _unused(dataset: Dataset, data: Dataset) -> dict[str, str]:
    """Columns that are not trained on, and why."""
    left_out = [key for key in dataset.spec.observations if key not in data.spec.observations]
    reason = "images and points train from zarr: `flowleap convert` first, and encoder=cnn or pointnet"
    return dataset.unused | dict.fromkeys(left_out, reason)


def _episodes(info: Mapping[str, Any]) -> str:
    return f"{info['episodes']} episodes" + (" and their mirror images" if info["mirrored"] else "")


def _new_run_dir(cfg: DictConfig) -> Path:
    """The directory of a new run; never one that holds another run already."""
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        hydra = HydraConfig.get()
        # Only characters that need no quotes when the path is given to another verb.
        varied = re.sub(r"[^\w.+-]+", "-", hydra.job.override_dirname.replace(",", "_"))
        run_dir = Path(cfg.run_dir or hydra.sweep.dir) / f"{hydra.job.num}_{varied}".rstrip("_")[:200]
    else:
        name = cfg.task.name.replace(":", "-") if cfg.get("task") else Path(cfg.dataset or "run").stem
        run_dir = Path(cfg.run_dir or f"runs/{name}/{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    if (run_dir / "checkpoints").exists():
        again = shlex.quote(f"resume={run_dir}")
        raise FlowleapError(
            f"{run_dir} holds a run already: continue it with {again} or choose another run_dir"
        )
    return run_dir


def print_plan(trainer: Any, spec: Spec, info: Mapping[str, Any]) -> None:
    """Print what would be trained, one timed step, and the time and memory that follow from it."""
    from flowleap.policy.training import estimate

    config, parts = trainer.config, trainer.policy.config
    batch, draw = trainer.batch()
    trainer.train_step(batch, draw)  # the first step pays for allocation
    _, seconds, _ = timed(lambda: trainer.train_step(*trainer.batch()))
    parameters = sum(p.numel() for p in trainer.policy.parameters())
    size = 4 * batch["action"].numel() + sum(x.numel() * x.element_size() for x in batch["obs"].values())
    epochs = config.steps * config.batch_size / info["frames"]
    rows: dict[str, str] = {
        "spec": spec.summary(),
        "data": f"{info['frames']} windows of {_episodes(info)}",
        "policy": f"{parts['objective']['name']} + {parts['backbone']['name']}, {parameters:,} parameters",
        "observations": ", ".join(f"{key} {list(x.shape)}" for key, x in batch["obs"].items()),
        **{
            f"{'points' if spec.observations[key].kind == 'points' else 'images'} '{key}'": text
            for key, text in trainer.windows.describe_dense().items()
        },
        "actions": str(list(batch["action"].shape)),
        "steps": f"{config.steps:,} x {config.batch_size} = {epochs:.1f} epochs",
        "device": f"{trainer.accelerator.device}, {trainer.accelerator.num_processes} process(es)",
        "memory": f"weights, gradients, Adam and EMA {20 * parameters / 1e6:.0f} MB, "
        f"{trainer.batches.most} batch(es) of {size / 1e6:.1f} MB, "
        f"peak of this process so far {peak_megabytes():.0f} MB",
        "one step": f"{seconds * 1e3:.1f} ms",
        "whole run": f"about {estimate.in_words(seconds * config.steps)}",
    }
    show_table(("what", "value"), rows.items(), "plan (nothing is written)")
    if (shorter := estimate.advice(trainer, seconds * config.steps)) is not None:
        say(shorter)


if __name__ == "__main__":
    sys.exit(run_verb("train"))
