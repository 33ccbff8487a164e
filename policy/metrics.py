"""Where training numbers go: JSONL, TensorBoard, and a progress bar with ETA."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class MetricsLog:
    """Appends rows to `run_dir/metrics.jsonl` and scalars to TensorBoard in `run_dir/tensorboard`.

    Args:
        run_dir: created if missing.
        step: rows of later steps, left by a run that went further than its last checkpoint, are dropped.
    """

    def __init__(self, run_dir: Path, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        run_dir.mkdir(parents=True, exist_ok=True)
        self.path = run_dir / "metrics.jsonl"
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step] if step else []
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, self.path)
        self._file = self.path.open("a", buffering=1)
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def _lines(self) -> list[str]:
        if not self.path.exists():
            return []
        return [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("}\n")]

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """Record one row of scalars."""
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **row}) + "\n")
        for key, value in row.items():
            self._board.add_scalar(key if "/" in key else f"train/{key}", value, step)

    def close(self) -> None:
        """Flush both logs."""
        self._file.close()
        self._board.close()


@contextmanager
def progress_bar(done: int, total: int, title: str, enabled: bool) -> Iterator[Callable[[int, str], None]]:
    """Yield `advance(done, text)`; shows title, bar, count, elapsed time and ETA when `enabled`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, disable=not enabled) as progress:
        task = progress.add_task(title, total=total, completed=done, note="")
        yield lambda done, text: progress.update(task, completed=done, note=text)
