"""Batches gathered ahead of the training step, by threads: numpy and the readers of images release the GIL."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from flowleap.policy.training.batches import IndexStream, Windows


class Prefetcher:
    """An endless stream of (global window indices [B], gathered arrays of this process's `rows` of them).

    `indices`, the stream of global batches, runs ahead, so that its place must be asked for here. Each of the
    `workers`, threads, has one more batch in flight; 0 gathers when asked.
    """

    def __init__(self, windows: Windows, indices: IndexStream, rows: slice, workers: int) -> None:
        self._windows, self._indices, self._rows = windows, indices, rows
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
            batch = self._indices.next()
            return batch, self._windows.gather(batch[self._rows])
        while len(self._ahead) <= self._workers:
            place = self._indices.state_dict()
            batch = self._indices.next()
            self._ahead.append((batch, self._pool.submit(self._windows.gather, batch[self._rows]), place))
        batch, arrays, _ = self._ahead.popleft()
        return batch, arrays.result()

    def state_dict(self) -> dict[str, int]:
        """The stream's place before the first batch that was not handed out."""
        return self._ahead[0][2] if self._ahead else self._indices.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a place that `state_dict` returned."""
        self._ahead.clear()
        self._indices.load_state_dict(state)
