"""Record demonstrations: a task's scripted expert, its successes kept, written as an episode store.

    flowleap collect task=metaworld/door-open-v3 episodes=100
    flowleap collect task=metaworld/push-v3 episodes=100 action_noise=0.1 out=data/push_noisy.zarr
    flowleap collect task=metaworld/push-v3 episodes=1000 cluster=auto      on the CPUs of a Ray cluster

Attempt i starts from `seed + i`; the dataset is the same whatever `n_envs`. Ctrl-C keeps what was recorded.
"""

from __future__ import annotations

import sys
from typing import Any

from omegaconf import DictConfig

from flowleap.envs.collect import collect
from flowleap.envs.registry import make_task
from flowleap.envs.statistics import wilson
from flowleap.envs.workers import default_count
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.training.metrics import progress_bar
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import say


def main(cfg: DictConfig) -> dict[str, Any]:
    """Collect `cfg.episodes` successes into the store `cfg.out`; return what its attributes say about them.

    Raises:
        FlowleapError: no expert, `out` exists, or too few attempts succeed (the successes are kept then).
    """
    _check(cfg)
    task = make_task(cfg.task.name, **cfg.task.kwargs)
    n_envs = min(cfg.n_envs or default_count(cfg.cluster), cfg.episodes)
    most = int(cfg.episodes * cfg.max_attempts_factor)
    kept = 0
    try:
        with progress_bar(0, cfg.episodes, f"collect {task.name}", enabled=True) as advance:

            def on_progress(successes: int, attempts: int) -> None:
                nonlocal kept
                kept = successes
                advance(successes, f"expert {successes}/{attempts}")

            options = (cfg.action_noise, cfg.hold_steps, most, cfg.overwrite, on_progress)
            work = {"worker_timeout": cfg.worker_timeout, "cluster": cfg.cluster}
            attrs = collect(task, cfg.out, cfg.episodes, cfg.seed, n_envs, *options, **work)
    except (KeyboardInterrupt, SystemExit):  # Ctrl-C, SIGTERM
        if kept:
            say(f"{cfg.out}: {kept} episodes are kept")
        raise
    low, high = wilson(attrs["successes"], attrs["attempts"])
    say(
        f"{cfg.out}: {attrs['successes']} episodes, {attrs['frames']} frames of {task.name}; the expert "
        f"succeeded in {attrs['successes']} of {attrs['attempts']} attempts [{low:.3f}, {high:.3f}] "
        f"(seeds {cfg.seed}..{cfg.seed + attrs['attempts'] - 1})"
    )
    return attrs


def _check(cfg: DictConfig) -> None:
    lowest = {"episodes": 1, "seed": 0, "hold_steps": 0, "action_noise": 0, "max_attempts_factor": 1}
    for key, least in lowest.items():
        value = cfg[key]
        whole = key not in ("action_noise", "max_attempts_factor")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or value < least:
            raise FlowleapError(f"{key}={value} must be a {'whole ' if whole else ''}number >= {least}")
    if cfg.n_envs is not None and (not isinstance(cfg.n_envs, int) or cfg.n_envs < 1):
        raise FlowleapError(f"n_envs={cfg.n_envs} must be a whole number >= 1, or null")


if __name__ == "__main__":
    sys.exit(run_verb("collect"))
