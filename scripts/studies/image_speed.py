"""Speed and memory of training from images: the share that is not forward and backward, and the loader alone.

Every case is a process of its own: frames read from the disk, frames in memory as uint8, and, for comparison, what a
short script would do: a torch DataLoader over float32 frames in memory. Both clocks are given, because seconds of the
wall clock count whatever else the machine does.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from flowleap.datasets.columns import ACTION
from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.windows import Windows
from flowleap.envs.registry import make_task
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import WINDOW

CASES = {"from the disk": 0, "in memory, uint8": 2**40}  # name -> bytes of the cache
PLAIN = "DataLoader, float32 in memory"
LOADER_BATCHES = 40


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Run the measurements, print them, return them."""
    if cfg.dataset is None:
        raise FlowleapError("no dataset given: add dataset=PATH, a store with images for the task")
    plain = OmegaConf.to_container(cfg, resolve=True)
    context = multiprocessing.get_context("spawn")
    measured: dict[str, dict[str, float]] = {}
    for name in (*CASES, PLAIN):
        with context.Pool(1) as pool:
            measured[name] = pool.apply(_apart, (name, plain))
    show(Console(), measured)
    return {"config": plain, "measured": measured}


def _apart(name: str, options: dict[str, Any]) -> dict[str, float]:
    """One case, in a fresh process."""
    import torch

    cfg = OmegaConf.create(options)
    torch.set_num_threads(cfg.threads)
    numbers = plain_loader(cfg) if name == PLAIN else training(cfg, CASES[name])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**numbers, "peak_mb": peak / (1e6 if sys.platform == "darwin" else 1e3)}


def _windows(cfg: DictConfig, cache_bytes: int) -> Windows:
    task = make_task(cfg.task.name, **cfg.task.kwargs)
    data = load_columns(task, open_dataset(cfg.dataset), cache_bytes)
    return data.windows(**asdict(WINDOW), image_frames=cfg.encoder.get("frames") or None)


def training(cfg: DictConfig, cache_bytes: int) -> dict[str, float]:
    """Whole training steps of iSD, batches gathered in turn: nothing of the loader hides behind the network."""
    from flowleap.policy.policy import Policy
    from flowleap.policy.training.batches import ShuffledIndices
    from flowleap.policy.training.config import TrainerConfig
    from flowleap.policy.training.trainer import Trainer

    windows = _windows(cfg, cache_bytes)
    parts = {name: OmegaConf.to_container(cfg[name], resolve=True) for name in ("backbone", "encoder")}
    policy = Policy(windows.spec, {"objective": {"name": "isd"}, **parts})
    lowdim = {key: np.stack([x.min(0), x.max(0)]) for key, x in _lowdim(windows).items()}
    policy.normalizer.fit(lowdim)
    indices = ShuffledIndices(len(windows), cfg.batch_size, 0)
    options = TrainerConfig(
        batch_size=cfg.batch_size, device="cpu", progress=False, threads=cfg.threads, workers=0
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(policy, windows, options, folder)
        trainer.train_step(*trainer.batch())  # allocation
        gather: list[tuple[float, float]] = []
        step: list[tuple[float, float]] = []
        for _ in range(cfg.repeats):
            batch, seconds = _timed(trainer.batch)
            gather.append(seconds)
            step.append(_timed(partial(trainer.train_step, *batch))[1])
    waits, works = (statistics.median(wall for wall, _ in times) for times in (gather, step))
    wait_cpu, work_cpu = (statistics.median(cpu for _, cpu in times) for times in (gather, step))
    return {
        "step_ms": 1e3 * works,
        "batch_ms": 1e3 * waits,
        "network_share": works / (works + waits),
        "network_share_cpu": work_cpu / (work_cpu + wait_cpu),
        **_rate(lambda: windows.gather(indices.next()), cfg.batch_size),
    }


def _lowdim(windows: Windows) -> dict[str, np.ndarray]:
    batch = windows.gather(np.arange(0, len(windows), 97))
    flat = {key: x[:, -1] for key, x in batch["obs"].items() if x.dtype != np.uint8}
    return {**flat, ACTION: batch["action"][:, 0]}


def plain_loader(cfg: DictConfig) -> dict[str, float]:
    """A torch DataLoader, one window at a time, over frames that were made float32 in [0, 1] beforehand."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    windows = _windows(cfg, 2**40)
    keys = [key for key, obs in windows.spec.observations.items() if obs.kind == "rgb"]
    steps = np.arange(1 - (cfg.encoder.get("frames") or windows.spec.n_obs_steps), 1)
    # The frames alone, decoded once: what is compared is how they get into a batch.
    frames: dict[str, torch.Tensor] = {}
    for key in keys:
        shape = (len(windows), *windows.spec.observations[key].shape)
        frames[key] = torch.empty(shape)
        for start in range(0, len(windows), 256):
            rows = np.arange(start, min(start + 256, len(windows)))
            images = windows.gather(rows)["obs"][key][:, -1]
            frames[key][start : start + len(rows)] = torch.from_numpy(images).float() / 255

    class Plain(Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return len(windows)

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            return {key: frames[key][np.maximum(i + steps, 0)] for key in keys}

    batches = iter(DataLoader(Plain(), batch_size=cfg.batch_size, shuffle=True))
    return _rate(lambda: next(batches), cfg.batch_size)


def _timed(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """Result, and seconds of wall clock and of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - wall, time.process_time() - cpu)


def _rate(batch: Callable[[], Any], size: int) -> dict[str, float]:
    """Windows a second of the loader alone, by both clocks."""
    batch()
    _, (wall, cpu) = _timed(lambda: [batch() for _ in range(LOADER_BATCHES)] and None)
    return {
        "loader_windows_per_s": LOADER_BATCHES * size / wall,
        "loader_windows_per_cpu_s": LOADER_BATCHES * size / cpu,
    }


def show(console: Console, measured: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    table = Table(
        "frames", "ms a step", "ms a batch", "forward, backward", "loader, windows/CPU s", "peak MB"
    )
    for name, numbers in measured.items():
        timed = "network_share" in numbers
        table.add_row(
            name,
            f"{numbers['step_ms']:.0f}" if timed else "",
            f"{numbers['batch_ms']:.1f}" if timed else "",
            f"{100 * numbers['network_share']:.1f} %" if timed else "",
            f"{numbers['loader_windows_per_cpu_s']:,.0f}",
            f"{numbers['peak_mb']:.0f}",
        )
    console.print(table)
