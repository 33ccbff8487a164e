"""How long a run on images will take, before it begins, and what would shorten it."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch

from flowleap.policy.core.views import smaller
from flowleap.policy.training import batches
from flowleap.policy.training.trainer import Trainer

LONG_HOURS = 6.0  # advice is given for runs that take longer
_WINDOWS = 2  # of which a CPU's time is taken
_SIDE = 160  # px; a policy seldom needs images with longer sides


def seconds_a_step(trainer: Trainer) -> float | None:
    """Time one pass forward and backward; weights, random numbers and batches of the training stay as they are.

    A CPU's time is measured on two windows, as it grows with their number; a GPU's on a micro-batch. None for several
    processes and compiled networks, which cannot be tried in passing.
    """
    if trainer.processes > 1 or trainer.config.compile:
        return None
    on_cpu = trainer.accelerator.device.type == "cpu"
    count = min(_WINDOWS if on_cpu else trainer.micro_batch, len(trainer.windows))
    seconds = 0.0
    for _ in range(2):  # the first pass pays for allocation
        start = perf_counter()
        arrays = trainer.windows.gather(np.arange(count))
        batch = batches.to_device(arrays, trainer.accelerator.device)
        draw = trainer.policy.draw(count, torch.Generator().manual_seed(0))
        with trainer.accelerator.autocast():
            loss, _ = trainer.policy.loss(batch, draw, trainer.teacher)
        loss.backward()
        float(loss.detach())  # waits for a GPU
        seconds = perf_counter() - start
    trainer.optimizer.zero_grad(set_to_none=True)
    return seconds * trainer.config.batch_size / count


def in_words(seconds: float) -> str:
    """A time span in the unit that people would use."""
    for name, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.1f} seconds" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"


def advice(trainer: Trainer, seconds: float) -> str | None:
    """What would shorten a run that takes so many seconds; None where it is short or nothing is known."""
    policy = trainer.policy
    images = {key: obs for key, obs in policy.spec.observations.items() if obs.image}
    if seconds < 3600 * LONG_HOURS or not images:
        return None
    sizes = {key: (obs.shape[0], obs.shape[1]) for key, obs in images.items() if max(obs.shape[:2]) > _SIDE}
    ways = []
    if len(set(sizes.values())) == 1 and len(sizes) == len(images):
        ways.append("resize=" + _listed(smaller(next(iter(sizes.values())), _SIDE)))
    elif sizes:
        named = ",".join(f"{key}:{_listed(smaller(size, _SIDE))}" for key, size in sizes.items())
        ways.append(f"resize={{{named}}}")
    if policy.image_frames > 1 and "frames" in policy.config["encoder"]:
        ways.append("encoder.frames=1")
    if trainer.config.batch_size > 32:
        ways.append("trainer.batch_size=32")
    if trainer.accelerator.device.type == "cpu":
        ways.append("a machine with a GPU")
    return f"to shorten it: {', '.join(ways)}" if ways else None


def _listed(size: list[int]) -> str:
    return f"[{size[0]},{size[1]}]"
