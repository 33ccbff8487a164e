"""What a training step is made of: windows of the dataset and a draw, both functions of (seed, step)."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from flowleap.policy.flow.draws import Draw

Batch = dict[str, Any]


class Windows(Protocol):
    """Training windows: `gather(index [B])` -> {"obs": {key: [B,To,...]}, "action": [B,H,A]} as numpy arrays."""

    def __len__(self) -> int: ...

    def gather(self, index: np.ndarray) -> dict[str, Any]: ...


class Sampler(Protocol):
    """An endless, resumable source of window indices, the global batch at a time."""

    def next(self) -> np.ndarray: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: Mapping[str, int]) -> None: ...


def seed_of(*numbers: int) -> int:
    """Hash numbers (seed, step, ...) to a seed for torch."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) & (2**63 - 1)


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed torch's generators of the CPU and of `device` alone: `torch.manual_seed` is slow where CUDA sleeps."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def rows_of(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    return {"obs": {key: x[rows] for key, x in batch["obs"].items()}, "action": batch["action"][rows]}


def to_device(arrays: Mapping[str, Any], device: torch.device) -> Batch:
    """A gathered batch as tensors on `device`."""

    def move(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return {"obs": {key: move(x) for key, x in arrays["obs"].items()}, "action": move(arrays["action"])}


def describe_bad(windows: np.ndarray, arrays: Mapping[str, Any]) -> str:
    """Name the first input that is not finite, with its window, or say that all of them are finite."""
    for name, x in {**arrays["obs"], "action": arrays["action"]}.items():
        finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if not finite.all():
            return f"'{name}' of window {windows[np.argmin(finite)]} is not finite; repair the dataset"
    return "its inputs are finite; lower trainer.lr or trainer.grad_clip"


def as_tensors(windows: np.ndarray, arrays: Mapping[str, Any], draw: Draw) -> dict[str, Tensor]:
    """A batch and its draw as one flat dict: `window` [B], `action`, `obs.<key>`, `draw.<field>`; real units."""
    inputs = {"action": arrays["action"], **{f"obs.{key}": x for key, x in arrays["obs"].items()}}
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in {"window": windows, **inputs}.items()}
    drawn = {f"draw.{name}": x.clone() for name, x in vars(draw).items() if isinstance(x, Tensor)}
    return {**tensors, **drawn}


class Prefetcher:
    """An endless stream of (global window indices [B], gathered arrays of this process's rows).

    Args:
        windows: the training windows.
        sampler: the source of the indices; it runs ahead, so that its place must be asked for here.
        rows: this process's rows of a global batch.
        workers: threads, each with one more batch in flight; 0 gathers when asked.
    """

    def __init__(self, windows: Windows, sampler: Sampler, rows: slice, workers: int) -> None:
        self._windows, self._sampler, self._rows = windows, sampler, rows
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, "gather") if workers else None
        self._ahead: deque[tuple[np.ndarray, Future[dict[str, Any]], dict[str, int]]] = deque()

    @property
    def most(self) -> int:
        """How many batches are in memory at once, at most: the one in use and those ahead."""
        return self._workers + 1

    def next(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the next batch; errors of the gathering threads are raised here."""
        if self._pool is None:
            indices = self._sampler.next()
            return indices, self._windows.gather(indices[self._rows])
        while len(self._ahead) <= self._workers:
            place = self._sampler.state_dict()
            indices = self._sampler.next()
            self._ahead.append((indices, self._pool.submit(self._windows.gather, indices[self._rows]), place))
        indices, arrays, _ = self._ahead.popleft()
        return indices, arrays.result()

    def state_dict(self) -> dict[str, int]:
        """The sampler's place before the first batch that was not handed out."""
        return self._ahead[0][2] if self._ahead else self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a place that `state_dict` returned."""
        self._ahead.clear()
        self._sampler.load_state_dict(state)
