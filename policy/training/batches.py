"""What a training step is made of: windows of the dataset and a draw, both functions of (seed, step)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.flow.draws import Draw

Batch = dict[str, Any]


class Windows(Protocol):
    """Training windows: `gather(index [B])` -> {"obs": {key: [B,To,...]}, "action": [B,H,A]} as numpy arrays.

    `columns` are the frames that they are cut from, {key: [N, *shape]}: `action` and every low-dim observation.
    """

    def __len__(self) -> int: ...

    def gather(self, index: np.ndarray) -> dict[str, Any]: ...

    @property
    def columns(self) -> Mapping[str, np.ndarray]: ...


class IndexStream(Protocol):
    """An endless, resumable stream of window indices, the global batch [B] at a time."""

    def next(self) -> np.ndarray: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: Mapping[str, int]) -> None: ...


class ShuffledIndices:
    """An endless stream of batches of indices below `n`, reshuffled every epoch, that resumes exactly.

    The order of epoch e is `default_rng([seed, e]).permutation(n)`; batches run across epoch boundaries, so
    every batch is full and every index comes once an epoch.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        if n < 1 or batch_size < 1:
            raise FlowleapError(
                f"cannot draw batches of {batch_size} from {n} windows: both must be at least 1"
            )
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.load_state_dict({"epoch": 0, "position": 0})

    def next(self) -> NDArray[np.int64]:
        """Return the next batch of indices, int64 [batch_size]."""
        parts: list[NDArray[np.int64]] = []
        missing = self.batch_size
        while missing:
            if self.position == self.n:
                self.load_state_dict({"epoch": self.epoch + 1, "position": 0})
            parts.append(self._order[self.position : self.position + missing])
            self.position += len(parts[-1])
            missing -= len(parts[-1])
        return np.concatenate(parts)

    def state_dict(self) -> dict[str, int]:
        """Return the place in the stream; `n` and `seed` are the caller's to keep."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a place that `state_dict` returned."""
        epoch, position = int(state["epoch"]), int(state["position"])
        if epoch < 0 or not 0 <= position <= self.n:
            raise FlowleapError(
                f"state of the index stream (epoch {epoch}, position {position}) does not fit {self.n} windows"
            )
        self.epoch, self.position = epoch, position  # position: indices of this epoch already handed out
        self._order: NDArray[np.int64] = np.random.default_rng([self.seed, epoch]).permutation(self.n)


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
    return {**tensors, **{f"draw.{name}": x.clone() for name, x in draw.tensors().items()}}
