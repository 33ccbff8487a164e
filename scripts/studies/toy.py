"""A two-dimensional look at an objective: train it on a toy density, draw what each NFE samples.

    flowleap toy
    flowleap toy objective=regression
    flowleap toy -m objective=isd,meanflow,psd,flow_matching
    flowleap toy cases=anchor          several trainings, a row of the picture each: what holds without the anchor?

Seconds of one core each. Writes a picture and a JSON with, per NFE, the sliced Wasserstein distance to the data, the
entropy of the modes that are hit over that of the data, the share of samples that belong to a mode at all, and how far
the samples are from their noise and from those of the largest NFE (root mean square); of the field, the terms of the
loss and the error of its velocity on fresh data.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig

from flowleap.envs.statistics import entropy
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import write_results
from flowleap.policy.training.metrics import progress_bar
from flowleap.scripts.cli.compose import given_overrides
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.cli.run import compose
from flowleap.scripts.common import command, plain, say, show_table
from flowleap.scripts.studies.plots import toy_samples

SPREAD = 0.1  # standard deviation of every mode
_ANGLES = np.arange(8) * np.pi / 4
_CENTRES = {
    "corners": np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]),
    "two": np.array([[-1.0, 0.0], [1.0, 0.0]]),
    "ring": np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1),
}


class Outcome(NamedTuple):
    """What a training ended in: its field on fresh data, its samples by NFE, and what they came from and should be."""

    seconds: float
    field: dict[str, Any]
    noise: np.ndarray
    drawn: dict[int, np.ndarray]
    truth: np.ndarray


def main(cfg: DictConfig) -> dict[str, Any]:
    """Train, sample, draw, case by case; return the numbers."""
    if cfg.density not in _CENTRES:
        raise FlowleapError(f"density={cfg.density} is unknown; there are {', '.join(_CENTRES)}")
    cases: dict[str, str] = plain(cfg.get("cases")) or {}
    words = [word for word in given_overrides() if not word.startswith(("cases", "+cases"))]
    configs = {name: compose("toy", [*words, *shlex.split(own)]) for name, own in cases.items()}
    outcomes = {name: _train(one, name) for name, one in (configs or {cfg.objective.name: cfg}).items()}
    rows = [row for name, outcome in outcomes.items() for row in _rows(cfg, name, outcome)]
    out = Path(cfg.out) / (cfg.name or f"{cfg.density}_{cfg.objective.name}")
    picture = toy_samples({name: o[2:] for name, o in outcomes.items()}, out.with_suffix(".png"))
    fields = {name: {"train_seconds": o.seconds, **o.field} for name, o in outcomes.items()}
    results = {"command": command("toy"), "config": plain(cfg), "fields": fields, "table": rows}
    path = write_results(out.with_suffix(".json"), results)
    keys = ("sliced_wasserstein", "entropy_share", "on_a_mode", "moved", "from_finest")
    table = [(row["case"], row["nfe"], *(f"{row[key]:.3f}" for key in keys)) for row in rows]
    show_table(("", "NFE", *(key.replace("_", " ") for key in keys)), table)
    say(f"wrote {picture}")
    say(f"wrote {path}")
    return results


def _train(cfg: DictConfig, name: str) -> Outcome:
    """Train one case and sample it at every NFE that its objective supports."""
    import torch

    from flowleap.policy.flow.draws import FlowBatch
    from flowleap.policy.flow.flow_map import FlowMap
    from flowleap.policy.flow.objective import Objective
    from flowleap.policy.flow.objectives import anchor
    from flowleap.policy.flow.samplers import time_grid
    from flowleap.policy.networks.build import build_backbone

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
    with progress_bar(0, cfg.steps, f"toy {name}", True) as advance:
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
    flow_map = FlowMap(net.eval(), torch.zeros(cfg.samples, 1), cfg.head_sigma)
    draw = objective.draw(cfg.samples, 1, 2, progress=(cfg.steps - 1) / cfg.steps)
    noise = torch.randn(cfg.samples, 1, 2, generator=torch.Generator().manual_seed(cfg.seed))
    drawn: dict[int, np.ndarray] = {}
    with torch.no_grad():
        data = torch.from_numpy(truth)[:, None]
        _, terms = objective.loss(flow_map, data, draw)
        error = anchor(flow_map, FlowBatch.of(data, draw)).mean()
        for nfe in cfg.nfe:
            with suppress(FlowleapError):  # an NFE that the objective does not support
                objective.check_steps(nfe)
                drawn[nfe] = objective.sample(flow_map, noise, time_grid(nfe))[:, 0].numpy()
    field = {"terms": {key: float(value) for key, value in terms.items()}, "velocity_error": float(error)}
    return Outcome(seconds, field, noise[:, 0].numpy(), drawn, truth)


def _rows(cfg: DictConfig, name: str, outcome: Outcome) -> Iterator[dict[str, Any]]:
    """A line an NFE: how samples are spread, how far they are from their noise and from those of the largest NFE."""
    finest = outcome.drawn[max(outcome.drawn)]
    for nfe, samples in outcome.drawn.items():
        distances = {"moved": samples - outcome.noise, "from_finest": samples - finest}
        rms = {key: float(np.sqrt(np.square(x).sum(1).mean())) for key, x in distances.items()}
        yield {"case": name, "nfe": nfe, **describe(samples, outcome.truth, _CENTRES[cfg.density]), **rms}


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
