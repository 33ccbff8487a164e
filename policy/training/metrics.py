"""Where training numbers go: JSONL, TensorBoard, and a progress bar with ETA."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from flowleap.policy.core.files import atomic


class MetricsLog:
    """Appends rows to `run_dir/metrics.jsonl` and scalars to TensorBoard in `run_dir/tensorboard`.

    Rows of steps after `step`, left by a run that went further than its last checkpoint, are dropped.
    """

    def __init__(self, run_dir: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / "metrics.jsonl"
        lines = self.path.read_text().splitlines(keepends=True) if step and self.path.exists() else []
        kept = [x for x in lines if x.endswith("}\n") and json.loads(x)["step"] <= step]
        with atomic(self.path) as temporary:
            temporary.write_text("".join(kept))
        self._file = self.path.open("a", buffering=1)
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Record one row of scalars."""
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **row}) + "\n")
        for key, value in row.items():
            self._board.add_scalar(key if "/" in key else f"train/{key}", value, step)

    def close(self) -> None:
        """Flush both logs."""
        self._file.close()
        self._board.close()


LARGEST = "grad_norm"  # the scalar whose largest value counts, too


class Meter:
    """Means of the scalars of the steps since the last reading, the largest `LARGEST`, and how fast the steps went."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._largest: Tensor | None = None
        self._steps, self._waited, self._start = 0, 0.0, time.perf_counter()

    def add(self, scalars: Mapping[str, Tensor], waited: float) -> None:
        """Take a step's scalars (on any device, without waiting for it) and its seconds spent on the batch."""
        for key, value in scalars.items():
            self._sums[key] = self._sums[key] + value if key in self._sums else value
        if LARGEST in scalars:
            norm = scalars[LARGEST]
            self._largest = norm if self._largest is None else torch.maximum(self._largest, norm)
        self._steps += 1
        self._waited += waited

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave what happens inside out of the speed."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def read(self, batch_size: int, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means over the steps, `samples_per_s` (of batches of a size) and `data_share`; starts afresh.

        `average` takes the vector of means to its average over processes.
        """
        means = average(torch.stack(list(self._sums.values())) / self._steps).tolist()
        elapsed = time.perf_counter() - self._start
        row = dict(zip(self._sums, means, strict=True))
        if self._largest is not None:  # of all processes together, as the gradient is
            row[f"{LARGEST}_largest"] = float(self._largest)
        row |= {"samples_per_s": self._steps * batch_size / elapsed, "data_share": self._waited / elapsed}
        self._reset()
        return row


@contextmanager
def progress_bar(done: int, total: int, title: str, enabled: bool) -> Iterator[Callable[[int, str], None]]:
    """Yield `advance(done, text)`; shows title, bar, count, elapsed time and ETA when `enabled`."""
    counts = ("{task.description}", BarColumn(), "{task.completed}/{task.total}", TimeElapsedColumn())
    left = ("ETA", TimeRemainingColumn(), "{task.fields[note]}")
    with Progress(*counts, *left, disable=not enabled) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")
        yield lambda done, text: progress.update(task, completed=done, note=text)
