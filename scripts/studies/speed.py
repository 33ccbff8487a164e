"""Time a training step of each objective, the loader, and acting, in one run, and print the ratios.

    flowleap speed
    flowleap speed backbone=mlp batch_size=128 results=docs/results
    flowleap speed 'backbone.channels=[80,160,280]'      a U-Net of 5.7 M parameters
    flowleap speed what=convert megabytes=10000          the conversion of datasets instead
    flowleap speed what=images task=pusht/pixels encoder=cnn dataset=data/pusht.zarr batch_size=64

The arrays are random with a task's shapes: speed does not depend on their values.
"""

from __future__ import annotations

import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from flowleap.datasets.windows import Windows
from flowleap.envs.registry import make_task
from flowleap.policy.core.errors import UsageError
from flowleap.policy.core.files import write_results
from flowleap.policy.core.spec import WINDOW, Spec
from flowleap.scripts.cli.compose import given_overrides

BASELINE = "flow_matching"
CASES: dict[str, dict[str, Any]] = {
    BASELINE: {"name": "flow_matching"},
    "isd": {"name": "isd"},
    "isd, a quarter of the batch": {"name": "isd", "diagonal": 0.75},
    "isd, difference": {"name": "isd", "derivative": "difference"},
    "isd, jvp": {"name": "isd", "derivative": "jvp"},
    "meanflow": {"name": "meanflow", "times": "logit_normal", "diagonal": 0.75},
    "lsd": {"name": "lsd"},
    "psd": {"name": "psd"},
    "mip": {"name": "mip"},
    "ddpm": {"name": "ddpm"},
    "regression": {"name": "regression"},
}


def main(cfg: DictConfig) -> dict[str, Any]:
    """Measure, print, optionally write `speed.json`; return the numbers."""
    if cfg.what == "convert":
        from flowleap.scripts.studies import convert_speed

        return _written(cfg, "convert_speed", convert_speed.measure(cfg))
    if cfg.what == "images":
        from flowleap.scripts.studies import image_speed

        return _written(cfg, "image_speed", image_speed.measure(cfg))
    if cfg.what != "training":
        raise UsageError(f"what={cfg.what} is none of training, convert, images")
    import torch

    torch.set_num_threads(cfg.threads)
    spec = make_task(cfg.task.name).spec.with_window(**asdict(WINDOW))
    windows = _random_windows(spec, cfg.frames)
    steps: dict[str, Callable[[], float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, objective in CASES.items():
            steps[name], parameters = _training_step(cfg, objective, spec, windows, folder)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():
            step()  # allocation
        for _ in range(cfg.repeats):  # in turn, so that a slow moment of the machine hits all alike
            for name, step in steps.items():
                seconds[name].append(step())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    loader = _loader_rate(windows, cfg.batch_size)
    results: dict[str, Any] = {
        "config": OmegaConf.to_container(cfg, resolve=True),
        "processor": platform.processor() or platform.machine(),
        "parameters": parameters,
        "train_step_ms": {name: 1e3 * value for name, value in medians.items()},
        "ratio_to_flow_matching": {name: value / medians[BASELINE] for name, value in medians.items()},
        "loader": {
            "samples_per_s": loader,
            "share_of_isd_step": cfg.batch_size / loader / medians["isd"],
        },
    }
    _print(Console(), results)
    return _written(cfg, f"speed_{cfg.backbone.name}", results)


def _written(cfg: DictConfig, name: str, measured: dict[str, Any]) -> dict[str, Any]:
    """The results with their command, in a file of their own if a folder for them is given."""
    results = {"command": "flowleap speed " + shlex.join(given_overrides()), **measured}
    if cfg.results:
        place = write_results(Path(cfg.results) / f"{name}.json", results)
        Console().print(f"results: {place}", highlight=False)
    return results


def _random_windows(spec: Spec, frames: int) -> Windows:
    rng = np.random.default_rng(0)
    columns = {
        key: rng.normal(size=(frames, *obs.shape)).astype(np.float32)
        for key, obs in spec.observations.items()
    }
    columns["action"] = rng.normal(size=(frames, spec.action_dim)).astype(np.float32)
    return Windows(columns, np.linspace(0, frames, 201).astype(np.int64)[1:], spec)


def _training_step(
    cfg: DictConfig, objective: dict[str, Any], spec: Spec, windows: Windows, folder: str
) -> tuple[Callable[[], float], int]:
    """Return (a function that does one whole training step and returns its seconds, parameters of the net)."""
    from flowleap.policy.policy import Policy
    from flowleap.policy.training.trainer import Trainer, TrainerConfig

    backbone = OmegaConf.to_container(cfg.backbone, resolve=True)
    policy = Policy(spec, {"objective": objective, "backbone": backbone, "encoder": {"name": "lowdim"}})
    options = TrainerConfig(batch_size=cfg.batch_size, device="cpu", progress=False, threads=cfg.threads)
    trainer = Trainer(policy, windows, options, folder)

    def step() -> float:
        start = time.perf_counter()
        trainer.train_step(*trainer.batch())
        return time.perf_counter() - start

    return step, sum(p.numel() for p in policy.net.parameters())


def _loader_rate(windows: Windows, batch_size: int, batches: int = 400) -> float:
    """Samples a second of shuffling and gathering."""
    from flowleap.policy.training.batches import ShuffledIndices

    indices = ShuffledIndices(len(windows), batch_size, 0)
    windows.gather(indices.next())
    start = time.perf_counter()
    for _ in range(batches):
        windows.gather(indices.next())
    return batches * batch_size / (time.perf_counter() - start)


def _print(console: Console, results: dict[str, Any]) -> None:
    title = f"{results['parameters']:,} parameters, batch {results['config']['batch_size']}"
    table = Table("objective", "ms a training step", "over flow matching", title=title)
    for name, value in results["train_step_ms"].items():
        table.add_row(name, f"{value:.1f}", f"{results['ratio_to_flow_matching'][name]:.2f}x")
    console.print(table)
    loader = results["loader"]
    share = 100 * loader["share_of_isd_step"]
    console.print(
        f"loader: {loader['samples_per_s']:,.0f} samples/s, {share:.2f} % of an iSD step", highlight=False
    )


if __name__ == "__main__":
    from flowleap.scripts.cli.main import run_verb

    sys.exit(run_verb("speed", sys.argv[1:]))
