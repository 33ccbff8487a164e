"""Speed and memory of training from images: the share that is not forward and backward, and the loader alone.

Every case is a process of its own: frames read from the disk, frames in memory as uint8, and, for comparison, what a
short script would do: a torch DataLoader over float32 frames in memory. Both clocks are given, because seconds of the
wall clock count whatever else the machine does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict
from itertools import chain, repeat
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.windows import Windows
from flowleap.envs.registry import make_task
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import WINDOW
from flowleap.scripts.common import apart, peak_megabytes, plain, show_table, timed

CASES = {"from the disk": 0, "in memory, uint8": 2**40}  # name -> bytes of the cache
PLAIN = "DataLoader, float32 in memory"
LOADER_BATCHES = 40


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Run the measurements, print them, return them."""
    if cfg.dataset is None:
        raise FlowleapError("no dataset given: add dataset=PATH, a store with images for the task")
    options = plain(cfg)
    measured: dict[str, dict[str, float]] = {name: apart(_case, name, options) for name in (*CASES, PLAIN)}
    rows = []
    for name, numbers in measured.items():
        training = ["", "", ""]
        if "network_share" in numbers:
            share = f"{100 * numbers['network_share']:.1f} %"
            training = [f"{numbers['step_ms']:.0f}", f"{numbers['batch_ms']:.1f}", share]
        loader = f"{numbers['loader_windows_per_cpu_s']:,.0f}"
        rows.append([name, *training, loader, f"{numbers['peak_mb']:.0f}"])
    head = ("frames", "ms a step", "ms a batch", "forward, backward", "loader, windows/CPU s", "peak MB")
    show_table(head, rows)
    return {"config": options, "measured": measured}


def _case(name: str, options: dict[str, Any]) -> dict[str, float]:
    """One case, in a fresh process."""
    import torch

    cfg = OmegaConf.create(options)
    torch.set_num_threads(cfg.threads)
    numbers = plain_loader(cfg) if name == PLAIN else training(cfg, CASES[name])
    return {**numbers, "peak_mb": peak_megabytes()}


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
    parts = {"objective": {"name": "isd"}, "backbone": plain(cfg.backbone), "encoder": plain(cfg.encoder)}
    policy = Policy(windows.spec, parts)
    options = {"batch_size": cfg.batch_size, "threads": cfg.threads, "workers": 0}
    seconds: list[tuple[list[float], list[float]]] = []  # of a batch and of a step, by both clocks
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(policy, windows, TrainerConfig(**options, device="cpu", progress=False), folder)
        trainer.train_step(*trainer.batch())  # allocation
        for _ in range(cfg.repeats):
            batch, *waiting = timed(trainer.batch)
            _, *working = timed(trainer.train_step, *batch)
            seconds.append((waiting, working))
    (wait, wait_cpu), (work, work_cpu) = np.median(seconds, axis=0).tolist()
    indices = ShuffledIndices(len(windows), cfg.batch_size, 0)
    return {
        "step_ms": 1e3 * work,
        "batch_ms": 1e3 * wait,
        "network_share": work / (work + wait),
        "network_share_cpu": work_cpu / (work_cpu + wait_cpu),
        **_rate(lambda: windows.gather(indices.next()), cfg.batch_size),
    }


def plain_loader(cfg: DictConfig) -> dict[str, float]:
    """A torch DataLoader, one window at a time, over frames that were made float32 in [0, 1] beforehand."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    windows = _windows(cfg, 2**40)
    steps = np.arange(1 - (cfg.encoder.get("frames") or windows.spec.n_obs_steps), 1)
    # The frames alone, decoded once: what is compared is how they get into a batch.
    shapes = {key: obs.shape for key, obs in windows.spec.observations.items() if obs.kind == "rgb"}
    frames = {key: torch.empty((len(windows), *shape)) for key, shape in shapes.items()}
    for start in range(0, len(windows), 256):
        rows = np.arange(start, min(start + 256, len(windows)))
        images = windows.gather(rows)["obs"]
        for key, column in frames.items():
            column[rows] = torch.from_numpy(images[key][:, -1]).float() / 255

    class Plain(Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return len(windows)

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            return {key: column[np.maximum(i + steps, 0)] for key, column in frames.items()}

    loader = DataLoader(Plain(), batch_size=cfg.batch_size, shuffle=True)
    batches = chain.from_iterable(repeat(loader))
    return _rate(lambda: next(batches), cfg.batch_size)


def _rate(batch: Callable[[], Any], size: int) -> dict[str, float]:
    """Windows a second of the loader alone, by both clocks."""
    batch()
    _, wall, cpu = timed(lambda: [batch() for _ in range(LOADER_BATCHES)])
    windows = LOADER_BATCHES * size
    return {"loader_windows_per_s": windows / wall, "loader_windows_per_cpu_s": windows / cpu}
