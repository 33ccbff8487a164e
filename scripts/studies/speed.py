"""Time a training step of each objective, the loader, and acting, in one run, and print the ratios.

    flowleap speed
    flowleap speed backbone=mlp batch_size=128 results=docs/results
    flowleap speed 'backbone.channels=[80,160,280]'      a U-Net of 5.7 M parameters
    flowleap speed what=convert megabytes=10000          the conversion of datasets instead
    flowleap speed what=images task=pusht/pixels encoder=cnn dataset=data/pusht.zarr batch_size=64
    flowleap speed what=points frames=2000               training on critical points over training on all points
    flowleap speed what=serve checkpoint=runs/pusht/export_nfe1 client=../openpi/bin/python
    flowleap speed what=formats 'checkpoints=[runs/mlp,runs/unet]' episodes=100     the formats of `flowleap export`
    flowleap speed what=evaluator episodes=40            `flowleap eval` over plain loops around the simulators
    flowleap speed what=latency                          a chunk at NFE 1 and of DDPM-100, for each backbone
    flowleap speed what=combinations                     does every network export in every format? (slow)

The arrays are random with a task's shapes: speed does not depend on their values.
"""

from __future__ import annotations

import platform
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flowleap.datasets.windows import Windows
from flowleap.envs.registry import make_task
from flowleap.policy.core.errors import UsageError
from flowleap.policy.core.files import write_results
from flowleap.policy.core.spec import WINDOW, Spec
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import command, plain, say, show_table, timed
from flowleap.scripts.studies import (
    convert_speed,
    evaluator_speed,
    formats,
    image_speed,
    point_speed,
    serving,
)

BASELINE = "flow_matching"
CASES: dict[str, dict[str, Any]] = {
    BASELINE: {"name": "flow_matching"},
    "isd": {"name": "isd"},
    "isd, a quarter of the batch": {"name": "isd", "diagonal": 0.75},
    "isd, difference": {"name": "isd", "derivative": "difference"},
    "isd, jvp": {"name": "isd", "derivative": "jvp"},
    "meanflow": {"name": "meanflow", "times": "logit_normal", "diagonal": 0.75},
    **{name: {"name": name} for name in ("lsd", "psd", "mip", "ddpm", "regression")},
}
LOADER_BATCHES = 400


def main(cfg: DictConfig) -> dict[str, Any]:
    """Measure, print, write a JSON if a folder for it is given; return the numbers."""
    measures = {
        "training": measure,
        "convert": convert_speed.measure,
        "images": image_speed.measure,
        "points": point_speed.measure,
        "formats": formats.measure,
        "latency": formats.latency,
        "combinations": formats.combinations,
        "serve": serving.measure,
        "evaluator": evaluator_speed.measure,
    }
    if cfg.what not in measures:
        raise UsageError(f"what={cfg.what} is none of {', '.join(measures)}")
    results = {"command": command("speed"), **measures[cfg.what](cfg)}
    if cfg.results:
        own = {
            "training": f"speed_{cfg.backbone.name}",
            "formats": "export_formats",
            "latency": "latency",
            "serve": "serve",
            "combinations": "export_combinations",
        }
        name = own.get(cfg.what) or f"{cfg.what.removesuffix('s')}_speed"
        say(f"results: {write_results(Path(cfg.results) / f'{name}.json', results)}")
    return results


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Time training steps and the loader, print the table, return the numbers."""
    import torch

    from flowleap.policy.policy import Policy
    from flowleap.policy.training.batches import ShuffledIndices
    from flowleap.policy.training.trainer import Trainer, TrainerConfig

    torch.set_num_threads(cfg.threads)
    spec = make_task(cfg.task.name).spec.with_window(**asdict(WINDOW))
    windows = _random_windows(spec, cfg.frames)
    parts = {"backbone": plain(cfg.backbone), "encoder": {"name": "lowdim"}}
    options = TrainerConfig(batch_size=cfg.batch_size, device="cpu", progress=False, threads=cfg.threads)
    trainers: dict[str, Trainer] = {}
    seconds: dict[str, list[float]] = {name: [] for name in CASES}

    def step(trainer: Trainer) -> None:
        trainer.train_step(*trainer.batch())

    with tempfile.TemporaryDirectory() as folder:
        for name, objective in CASES.items():
            policy = Policy(spec, {"objective": objective, **parts})
            trainers[name] = Trainer(policy, windows, options, folder)
        for _ in range(1 + cfg.repeats):  # in turn, so that a slow moment of the machine hits all alike
            for name, trainer in trainers.items():
                seconds[name].append(timed(step, trainer)[1])
    medians = {name: statistics.median(own[1:]) for name, own in seconds.items()}  # the first one allocates
    parameters = sum(p.numel() for p in policy.net.parameters())
    indices = ShuffledIndices(len(windows), cfg.batch_size, 0)
    windows.gather(indices.next())
    _, wall, _ = timed(lambda: windows.gather(indices.next()), times=LOADER_BATCHES)
    loader = LOADER_BATCHES * cfg.batch_size / wall
    share = cfg.batch_size / loader / medians["isd"]
    ratios = {name: value / medians[BASELINE] for name, value in medians.items()}
    rows = [(name, f"{1e3 * value:.1f}", f"{ratios[name]:.2f}x") for name, value in medians.items()]
    title = f"{parameters:,} parameters, batch {cfg.batch_size}"
    show_table(("objective", "ms a training step", "over flow matching"), rows, title)
    say(f"loader: {loader:,.0f} samples/s, {100 * share:.2f} % of an iSD step")
    return {
        "config": plain(cfg),
        "processor": platform.processor() or platform.machine(),
        "parameters": parameters,
        "train_step_ms": {name: 1e3 * value for name, value in medians.items()},
        "ratio_to_flow_matching": ratios,
        "loader": {"samples_per_s": loader, "share_of_isd_step": share},
    }


def _random_windows(spec: Spec, frames: int) -> Windows:
    rng = np.random.default_rng(0)
    shapes = {**{key: obs.shape for key, obs in spec.observations.items()}, "action": (spec.action_dim,)}
    columns = {key: rng.normal(size=(frames, *shape)).astype(np.float32) for key, shape in shapes.items()}
    return Windows(columns, np.linspace(0, frames, 201).astype(np.int64)[1:], spec)


if __name__ == "__main__":
    sys.exit(run_verb("speed"))
