"""A two-dimensional look at an objective: train it on a toy density, draw what each NFE samples.

    flowleap toy
    flowleap toy objective=regression
    flowleap toy -m objective=isd,meanflow,psd,flow_matching

Seconds of one core. Writes a picture and a JSON with, per NFE, the sliced Wasserstein distance to the data, the
entropy of the modes that are hit over that of the data, and the share of samples that belong to a mode at all.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flowleap.envs.statistics import entropy
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import write_results
from flowleap.policy.training.metrics import progress_bar
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import plain, say, show_table
from flowleap.scripts.studies.plots import toy_samples

SPREAD = 0.1  # standard deviation of every mode
_ANGLES = np.arange(8) * np.pi / 4
_CENTRES = {
    "corners": np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]),
    "two": np.array([[-1.0, 0.0], [1.0, 0.0]]),
    "ring": np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1),
}


def main(cfg: DictConfig) -> dict[str, Any]:
    """Train, sample, draw; return the numbers."""
    import torch

    from flowleap.policy.flow.flow_map import FlowMap
    from flowleap.policy.flow.objective import Objective
    from flowleap.policy.flow.samplers import time_grid
    from flowleap.policy.networks.build import build_backbone

    if cfg.density not in _CENTRES:
        raise FlowleapError(f"density={cfg.density} is unknown; there are {', '.join(_CENTRES)}")
    torch.set_num_threads(1)
    torch.manual_seed(cfg.seed)
    rng = np.random.default_rng(cfg.seed)
    centres = _CENTRES[cfg.density]
    objective = Objective(plain(cfg.objective))
    net, _ = build_backbone(plain(cfg.backbone), action_dim=2, horizon=1, cond_dim=1)
    optimizer = torch.optim.Adam(net.parameters(), cfg.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cfg.steps)
    nothing = torch.zeros(cfg.batch_size, 1)
    start = time.perf_counter()
    with progress_bar(0, cfg.steps, f"toy {objective.name}", True) as advance:
        for step in range(cfg.steps):
            data = torch.from_numpy(_sample(centres, cfg.batch_size, rng))[:, None]
            draw = objective.draw(cfg.batch_size, 1, 2, progress=step / cfg.steps)
            loss, _ = objective.loss(FlowMap(net, nothing, cfg.head_sigma), data, draw)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % 100 == 0:
                advance(step + 1, f"loss {loss.item():.3f}")
    seconds = time.perf_counter() - start
    truth = _sample(centres, cfg.samples, rng)
    noise = torch.randn(cfg.samples, 1, 2, generator=torch.Generator().manual_seed(cfg.seed))
    flow_map = FlowMap(net.eval(), torch.zeros(cfg.samples, 1), cfg.head_sigma)
    drawn: dict[int, np.ndarray] = {}
    for nfe in cfg.nfe:
        with suppress(FlowleapError), torch.no_grad():  # an NFE that the objective does not support
            objective.check_steps(nfe)
            drawn[nfe] = objective.sample(flow_map, noise, time_grid(nfe))[:, 0].numpy()
    rows = [{"nfe": nfe, **describe(samples, truth, centres)} for nfe, samples in drawn.items()]
    out = Path(cfg.out) / f"{cfg.density}_{objective.name}"
    picture = toy_samples(noise[:, 0].numpy(), drawn, truth, out.with_suffix(".png"), objective.name)
    results = {"config": plain(cfg), "train_seconds": seconds, "table": rows}
    path = write_results(out.with_suffix(".json"), results)
    head = ("NFE", "sliced Wasserstein", "entropy share", "on a mode")
    keys = ("sliced_wasserstein", "entropy_share", "on_a_mode")
    table = [(row["nfe"], *(f"{row[key]:.3f}" for key in keys)) for row in rows]
    show_table(head, table, f"{objective.name}, {seconds:.0f} s")
    say(f"wrote {picture}")
    say(f"wrote {path}")
    return results


def describe(samples: np.ndarray, truth: np.ndarray, centres: np.ndarray) -> dict[str, float]:
    """Compare samples [N, 2] with the data: sliced Wasserstein, entropy share, share within 3 sd of a mode."""
    distance = np.linalg.norm(samples[:, None] - centres, axis=2)
    counts = np.bincount(distance.argmin(1)[distance.min(1) < 3 * SPREAD], minlength=len(centres))
    return {
        "sliced_wasserstein": sliced_wasserstein(samples, truth),
        "entropy_share": float(entropy(counts)) / float(np.log2(len(centres))),
        "on_a_mode": float(counts.sum() / len(samples)),
    }


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: int = 64) -> float:
    """Mean over fixed directions of the 1-D Wasserstein-1 distance of two equally large samples [N, D]."""
    d = np.random.default_rng(0).standard_normal((a.shape[1], directions))
    d /= np.linalg.norm(d, axis=0)
    return float(np.abs(np.sort(a @ d, axis=0) - np.sort(b @ d, axis=0)).mean())


def _sample(centres: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    modes = centres[rng.integers(len(centres), size=n)]
    return (modes + SPREAD * rng.standard_normal(modes.shape)).astype(np.float32)


if __name__ == "__main__":
    sys.exit(run_verb("toy"))
