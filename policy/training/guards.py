"""What ends a training run before its last step: a signal, a loss that is not finite, a score that stalls."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

NEVER = 2**62


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that a step is never cut in half; the second one raises."""
    caught: list[int] = []

    def handler(signum: int, frame: Any) -> None:
        caught.append(signum)
        if len(caught) > 1:
            raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()  # nobody sends signals to another one
    previous = {n: signal.signal(n, handler) for n in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        yield lambda: bool(caught)
    finally:
        for restored, old in previous.items():
            signal.signal(restored, old)


class FiniteGuard:
    """Remembers what the latest steps were made of and what came out, until somebody looks.

    The outcomes stay on the device, so that a step waits for nothing and a look costs one transfer. Windows are
    kept by index only: a batch and its draw can be rebuilt exactly from the indices and the step.
    """

    def __init__(self) -> None:
        self._windows: dict[int, np.ndarray] = {}
        self._outcomes: dict[int, Tensor] = {}

    def start(self, step: int, windows: np.ndarray) -> None:
        """Note the window indices [B] of a step's global batch."""
        self._windows[step] = windows

    def end(self, step: int, *scalars: Tensor) -> None:
        """Note the scalars of a step that must be finite."""
        self._outcomes[step] = torch.stack([x.detach().float() for x in scalars])

    def first_bad(self) -> int:
        """The first step with a non-finite outcome, or `NEVER`; finite steps are forgotten."""
        if not self._outcomes:
            return NEVER
        finite = torch.stack(list(self._outcomes.values())).isfinite().all(1).cpu()
        if not finite.all():
            return list(self._outcomes)[int(finite.int().argmin())]
        newest = next(reversed(self._outcomes))
        self._windows = {step: x for step, x in self._windows.items() if step > newest}
        self._outcomes.clear()
        return NEVER

    def windows(self, step: int) -> np.ndarray:
        """The window indices of a step since the last look."""
        return self._windows[step]


@dataclass
class EarlyStopping:
    """Counts in `stale` the evaluations since the `best` score; `patience` of them end a run, 0 never."""

    patience: int
    best: float = -math.inf
    stale: int = 0

    def update(self, score: float) -> bool:
        """Take a score, higher is better; return whether to stop."""
        if score > self.best:
            self.best, self.stale = score, 0
        else:
            self.stale += 1
        return 0 < self.patience <= self.stale

    def state_dict(self) -> dict[str, float]:
        """Return best score and count."""
        return {"best": self.best, "stale": self.stale}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from what `state_dict` returned."""
        self.best, self.stale = float(state["best"]), int(state["stale"])
