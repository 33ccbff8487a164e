"""Training on the critical points of clouds, over training on all points: time of a step, and how many there are.

A cloud of 512 points and 9 numbers of proprioception, as in the MetaWorld tasks of DP3. Both policies have the same
weights and see the same batch, so the difference of their losses says whether the shortcut is exact.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import asdict
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flowleap.datasets.windows import Windows
from flowleap.policy.core.spec import WINDOW, ObsKey, Spec
from flowleap.scripts.common import plain, say, show_table, timed

SPEC = Spec({"cloud": ObsKey((512, 3), kind="points"), "state": ObsKey((9,))}, 4)
ENCODER = {"name": "pointnet"}


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Time training steps in turn, print the table, return the numbers."""
    import torch

    from flowleap.policy.networks.point_towers import PointNet
    from flowleap.policy.policy import Policy
    from flowleap.policy.training.config import TrainerConfig
    from flowleap.policy.training.trainer import Trainer

    torch.set_num_threads(cfg.threads)
    rng = np.random.default_rng(0)
    shapes = {**{key: obs.shape for key, obs in SPEC.observations.items()}, "action": (SPEC.action_dim,)}
    columns = {k: rng.normal(size=(cfg.frames, *shape)).astype(np.float32) for k, shape in shapes.items()}
    windows = Windows(columns, [cfg.frames], SPEC.with_window(**asdict(WINDOW)))
    parts = {"objective": {"name": "isd"}, "backbone": plain(cfg.backbone), "encoder": ENCODER}
    options = TrainerConfig(
        batch_size=cfg.batch_size, device="cpu", progress=False, threads=cfg.threads, workers=0
    )
    trainers: dict[str, Trainer] = {}
    seen: list[int] = []  # points in the pass with gradients
    with tempfile.TemporaryDirectory() as folder:
        for name in ("critical points", "all points"):
            torch.manual_seed(0)
            trainers[name] = Trainer(Policy(windows.spec, parts), windows, options, folder)
        for module in trainers["all points"].policy.modules():
            if isinstance(module, PointNet):
                module.critical = lambda clouds, tower=module: tower.points(clouds).amax(1)
        for module in trainers["critical points"].policy.modules():
            if isinstance(module, PointNet):
                module.points.register_forward_hook(
                    lambda _module, inputs, out: seen.append(len(inputs[0])) if out.requires_grad else None
                )
        losses = {name: trainer.train_step(*trainer.batch())["loss"] for name, trainer in trainers.items()}
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for _ in range(cfg.repeats):
            for name, trainer in trainers.items():
                batch = trainer.batch()
                seconds[name].append(timed(trainer.train_step, *batch)[2])  # CPU seconds: whatever else runs
    milliseconds = {name: 1e3 * statistics.median(own) for name, own in seconds.items()}
    clouds = cfg.batch_size * windows.spec.n_obs_steps
    critical = statistics.mean(seen) / clouds
    first, second = (float(loss) for loss in losses.values())
    rows = [(name, f"{value:.0f}") for name, value in milliseconds.items()]
    show_table(("the pass with gradients sees", "CPU ms a step"), rows, f"batch {cfg.batch_size}, 512 points")
    say(
        f"{critical:.0f} of 512 points are critical; the losses of the first step differ by {abs(first - second):.1g}"
    )
    return {
        "config": plain(cfg),
        "critical_points": critical,
        "step_cpu_ms": milliseconds,
        "loss_difference": abs(first - second),
    }
