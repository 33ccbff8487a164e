"""Train a policy on arrays in memory, watch it, act with it: no simulator, no files but the run's own.

    python examples/train_on_arrays.py

A point is to walk to a goal. The demonstrations pass an obstacle on either side, which one policy has to learn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping

import numpy as np
import torch

from flowleap.datasets.dataset import Dataset
from flowleap.policy import Policy, Trainer, TrainerConfig

EPISODES, LENGTH = 200, 40


def demonstrations(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns {key: [N, 2]}, episode after episode (an action is the next position), and where episodes end."""
    progress = np.linspace(0, 1, LENGTH + 1)[None, :, None]
    start, goal = (rng.normal([x, 0], 0.5, (EPISODES, 1, 2)) for x in (-5, 5))
    side = rng.choice([-1.0, 1.0], (EPISODES, 1, 1))
    path = start + progress * (goal - start) + side * np.sin(np.pi * progress) * [0, 2]
    columns = {"position": path[:, :-1], "goal": goal.repeat(LENGTH, axis=1), "action": path[:, 1:]}
    ends = LENGTH * np.arange(1, EPISODES + 1)
    return {key: x.reshape(-1, 2).astype(np.float32) for key, x in columns.items()}, ends


def report(trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
    """What the trainer calls at every log."""
    print(f"step {step:4d}  loss {metrics['loss']:.3f}  {metrics['samples_per_s']:.0f} samples a second")


def main() -> None:
    """Train, then walk 20 times from the left to the right."""
    config = {
        "objective": "isd",
        "backbone": {"name": "mlp", "width": 128, "depth": 2},
        "encoder": "lowdim",
    }
    options = TrainerConfig(steps=400, warmup_steps=50, ema_decay=0.99, progress=False)
    dataset = Dataset.from_arrays(*demonstrations(np.random.default_rng(0)))
    windows = dataset.windows(n_obs_steps=2, horizon=8, n_action_steps=4)
    with tempfile.TemporaryDirectory() as run_dir:
        trainer = Trainer(Policy(windows.spec, config), windows, options, run_dir, callback=report)
        policy = Policy.load(trainer.fit())  # the averaged weights
    walks = 20
    goal = torch.tensor([5.0, 0.0]).expand(walks, 2, 2)
    frames = [torch.tensor([-5.0, 0.0]).expand(walks, 2)]
    while len(frames) <= LENGTH:
        recent = torch.stack([frames[max(len(frames) - 2, 0)], frames[-1]], dim=1)
        frames += policy.act({"position": recent, "goal": goal}).unbind(1)
    path = torch.stack(frames)
    above = int((path[LENGTH // 2, :, 1] > 0).sum())
    print(
        f"mean distance to the goal: {(path[LENGTH] - goal[:, 0]).norm(dim=1).mean():.2f} (10 at the start)"
    )
    print(f"{above} of {walks} walks pass above the obstacle")


if __name__ == "__main__":
    main()
