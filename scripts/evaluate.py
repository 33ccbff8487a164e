"""Roll a policy out in simulation: seeded episodes, intervals, a results JSON, videos.

flowleap eval checkpoint=RUN_DIR
flowleap eval checkpoint=RUN_DIR episodes=100 steps=1 videos=2
flowleap eval checkpoint=RUN_DIR protocol=diffusion_policy    under the conditions of published tables
flowleap eval checkpoint=RUN_DIR steps=[1,2,4] n_action_steps=[4,8] noise_seed=[0,1] checkpoint_steps=all   a sweep
flowleap eval checkpoint=RUN_DIR drop=0.2          perturbed; `flowleap robustness` draws the curves
flowleap eval checkpoint=EXPORTED_DIR              the exported policy, without torch
flowleap eval checkpoint=RUN_DIR dataset=PATH      without a simulator: predicted against recorded actions
flowleap eval checkpoint=hf://OWNER/NAME           a policy of the Hugging Face Hub; @REVISION pins it
flowleap eval checkpoint=RUN_DIR cluster=auto      the environments on the CPUs of a Ray cluster

Lists of values are swept, every combination: one table and one JSON.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig

from flowleap.envs.actors import LoadedActor, load_actor
from flowleap.envs.conventions import in_actions_of
from flowleap.envs.perturb import KINDS, Perturbation, perturbed_signals, perturbed_world
from flowleap.envs.power import format_power
from flowleap.envs.protocols import Protocol, find_protocol
from flowleap.envs.rendering import save_video
from flowleap.envs.report import episode_rows, format_line, format_modes, format_motion, summary
from flowleap.envs.rollout import Episode, Rollout, record_episode, rollout
from flowleap.envs.task import Task
from flowleap.envs.workers import default_count
from flowleap.policy.core.errors import FlowleapError, require_int
from flowleap.policy.core.files import remove, write_results
from flowleap.policy.core.noise import episode_noise
from flowleap.policy.core.registry import check_options, parameters_of
from flowleap.policy.core.spec import Spec
from flowleap.policy.deploy.plan import Continuity
from flowleap.policy.training.metrics import progress_bar
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import command, plain, recorded_task, run_dir_of, say, task_of
from flowleap.scripts.offline import evaluate_offline
from flowleap.scripts.sweeps import (
    cases_of,
    checkpoint_at,
    means_of_best,
    show_means_of_best,
    show_sweep,
    sweep,
)


class Evaluation(NamedTuple):
    """What is to be run, checked as far as it can be before; `options` of `rollout` and `record_episode`."""

    actor: LoadedActor
    task: Task
    protocol: Protocol
    perturbation: Perturbation
    continuity: Continuity | None
    spec: Spec
    act: Any
    seeds: range
    noise_seed: int

    @property
    def options(self) -> dict[str, Any]:
        """How chunks arrive, and their noise."""
        noise = partial(episode_noise, noise_seed=self.noise_seed)
        return {"continuity": self.continuity, "noise": noise}

    @property
    def name(self) -> str:
        """Of its results, where the user gives none."""
        words = [re.sub("[/:]", "-", self.task.name), f"nfe{self.actor.nfe}"]
        words += [self.protocol.name] if self.protocol.published else []
        words += [f"{self.continuity.continuity}_delay{self.continuity.delay}"] if self.continuity else []
        if self.continuity and self.continuity.warm_start:
            words.append(f"warm{self.continuity.warm_start:g}")
        words += [f"{kind}{value:g}" for kind, value in self.perturbation.changed().items()]
        words += [f"noise{self.noise_seed}"] if self.noise_seed else []
        return "_".join(words)

    def out(self, given: str | None) -> Path:
        """The results file: the one that the user gives, or one beside the policy."""
        return Path(given) if given else run_dir_of(self.actor.path) / f"eval/{self.name}.json"


def main(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate `cfg.checkpoint`; print what came of it, write the results JSON, and return its content."""
    if cfg.dataset is not None:
        return evaluate_offline(cfg)
    cases = cases_of(cfg)
    if cases is not None:
        rows = sweep(cfg, cases, lambda one: run(prepare(one), one))
        results = {"command": command("eval"), "config": plain(cfg), "evaluations": rows}
        show_sweep(rows)
        if best := means_of_best(rows):
            results["means_of_best"] = best
            show_means_of_best(best)
        task = re.sub("[/:]", "-", rows[0]["summary"]["task"])
        out = (
            Path(cfg.out)
            if cfg.out
            else run_dir_of(Path(rows[0]["actor"]["path"])) / f"eval/{task}_sweep.json"
        )
        say(f"results: {write_results(out, results)}")
        return results
    evaluation = prepare(cfg)
    say(format_power(len(evaluation.seeds)))
    results = run(evaluation, cfg)
    report, seeds = results["summary"], evaluation.seeds
    say(f"NFE {evaluation.actor.nfe} | {format_line(report)}")
    if "modes" in report:
        say(format_modes(report["modes"]))
    if "motion" in report:
        say(format_motion(report["motion"]))
    say(
        f"protocol {evaluation.protocol.name}, seeds {seeds.start}..{seeds.stop - 1}: {evaluation.task.seed_note}"
    )
    for restart in results["restarts"]:
        say(f"seed {restart['seed']} ran again, its worker was lost: {restart['reason']}")
    out = evaluation.out(cfg.out)
    say(f"results: {write_results(out, results)}")
    _record(evaluation, cfg.videos, out)
    return results


def prepare(cfg: DictConfig) -> Evaluation:
    """Load what `cfg` names, and check that its options fit each other.

    Raises:
        FlowleapError: they do not; the message names the option.
    """
    checkpoint = checkpoint_at(cfg.checkpoint, cfg.checkpoint_steps)
    actor = load_actor(checkpoint, cfg.steps, cfg.weights, cfg.device, cfg.threads, cfg.n_action_steps)
    task = task_of(cfg.get("task")) or recorded_task(actor.task)
    if task is None:
        raise FlowleapError(
            "this policy was trained without a task: add task=NAME (`flowleap list what=tasks`)"
        )
    given = {kind: cfg[kind] for kind in KINDS}
    perturbation = Perturbation(**check_options("eval", KINDS, given, "eval"))
    continuity, spec, act = _late(cfg, actor)
    protocol = find_protocol(cfg.protocol, task.name)
    if protocol.published:
        _refuse_deviations(cfg, protocol, perturbation, continuity)
    seeds = protocol.seeds(cfg.seed, cfg.episodes)
    task = in_actions_of(perturbed_world(task, perturbation), actor.spec)
    actor.spec.require_match(task.spec, f"checkpoint {cfg.checkpoint}", f"task {task.name}")
    task = perturbed_signals(protocol.apply(task, spec), spec, perturbation, actor.range_of)
    noise_seed = require_int("noise_seed", cfg.noise_seed, 0, 2**31 - 1)
    return Evaluation(actor, task, protocol, perturbation, continuity, spec, act, seeds, noise_seed)


def run(evaluation: Evaluation, cfg: DictConfig) -> dict[str, Any]:
    """Run the episodes, with a progress bar; return the results."""
    actor, task, seeds = evaluation.actor, evaluation.task, evaluation.seeds
    n_envs, out = cfg.n_envs or default_count(cfg.cluster, wait_for_caller=True), evaluation.out(cfg.out)
    finished: list[Episode] = []
    with (
        _kept(finished, len(seeds), out.with_name(f"{out.stem}_unfinished.json"), cfg),
        progress_bar(0, len(seeds), f"eval {task.name}", enabled=True) as advance,
    ):

        def on_progress(episode: Episode) -> None:
            finished.append(episode)
            advance(len(finished), f"success {sum(e.success for e in finished)}/{len(finished)}")

        work = {"worker_timeout": cfg.worker_timeout, "cluster": cfg.cluster, **evaluation.options}
        result = rollout(
            task, evaluation.act, evaluation.spec, seeds, n_envs, cfg.batched, on_progress, **work
        )
    continuity = evaluation.continuity
    return {
        "nfe": actor.nfe,
        "summary": summary(result, task),
        "protocol": evaluation.protocol.describe(task),
        "seeds": {"first": seeds.start, "count": len(seeds)},
        "noise_seed": evaluation.noise_seed,
        "perturbation": evaluation.perturbation.changed() or None,
        "spec": evaluation.spec.to_dict(),
        "continuity": asdict(continuity) if continuity else None,
        "actor": {"path": str(cfg.checkpoint), **actor.describe},
        "config": plain(cfg),
        "restarts": [asdict(restart) for restart in result.restarts],
        "rows": episode_rows(result),
    }


def _refuse_deviations(
    cfg: DictConfig, protocol: Protocol, perturbation: Perturbation, continuity: Continuity | None
) -> None:
    """Raise `FlowleapError` where an option changes what a published protocol fixes, other than the seeds."""
    for kind, value in perturbation.changed().items():
        protocol.refuse(f"{kind}={value}", "its environment is not perturbed")
    if continuity is not None:
        late = {key: value for key, value in asdict(continuity).items() if value not in (None, 0, "naive")}
        options = " ".join(f"{key}={value}" for key, value in late.items()) or "execute"
        protocol.refuse(options, "its chunks arrive at once and replace each other")
    limit = (plain(cfg.get("task")) or {}).get("kwargs", {}).get("max_steps")
    if limit is not None and protocol.max_steps not in (None, limit):
        protocol.refuse(f"task.kwargs.max_steps={limit}", f"its episodes have {protocol.max_steps} steps")


@contextmanager
def _kept(finished: list[Episode], count: int, path: Path, cfg: DictConfig) -> Iterator[None]:
    """Whatever ends an evaluation early, write down what is known of the episodes that are over."""
    try:
        yield
    except (FlowleapError, KeyboardInterrupt, SystemExit):
        if finished:
            rows = episode_rows(Rollout(sorted(finished, key=lambda episode: episode.seed)))
            write_results(path, {"unfinished": True, "config": plain(cfg), "rows": rows})
            say(f"{len(finished)} of {count} episodes are over, and kept: {path}")
        raise
    remove(path)  # of an earlier attempt


def _late(cfg: DictConfig, actor: LoadedActor) -> tuple[Continuity | None, Spec, Any]:
    """How chunks arrive and go on, with the Spec and the callable that this needs; None where they arrive at once."""
    given = {name: cfg[name] for name in parameters_of(Continuity)}
    continuity = Continuity(**check_options("eval", parameters_of(Continuity), given, "eval"))
    if continuity == Continuity():
        return None, actor.spec, actor.act
    window = actor.spec.n_action_steps
    execute = continuity.execute or max(continuity.delay, min(window, actor.actions - continuity.delay))
    continuity.check(actor.actions, execute, actor.prefix)
    chunk = actor.chunk
    if continuity.warm_start:
        if actor.warm is None:
            raise FlowleapError(
                "warm_start needs a checkpoint whose sampler may begin at any time of the flow: exports begin at "
                "t = 1, as do consistency training, DDPM, MIP and regression"
            )
        chunk = actor.warm(continuity.warm_start)
    return continuity, actor.spec.with_window(actor.spec.n_obs_steps, actor.spec.horizon, execute), chunk


def _record(evaluation: Evaluation, count: int, out: Path) -> None:
    """Film the first episodes, beside the results."""
    task, spec = evaluation.task, evaluation.spec
    for seed in evaluation.seeds[:count]:
        path = out.with_name(f"{out.stem}_seed{seed}.mp4")
        try:
            frames, _ = record_episode(task, evaluation.act, spec, seed, **evaluation.options)
            save_video(path, frames, fps=task.spec.control_hz or 10)
        except FlowleapError as error:  # no GL backend, no imageio: the scores stand, the pictures do not
            say(f"no video: {error}")
            break
        say(f"video: {path}")


if __name__ == "__main__":
    sys.exit(run_verb("eval"))
