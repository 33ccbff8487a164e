"""What a long conversion has finished: one line appended after each block of episodes, read after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from flowleap.policy.core.errors import FlowleapError

try:
    import fcntl
except ImportError:  # Windows: nothing there guards against starting the same job twice
    fcntl = None  # type: ignore[assignment]


class Journal:
    """An append-only file: the job's name, then the lengths and seeds of the episodes of each finished block.

    A line is written after the block's data, so what the journal names is there. A last line that was cut off is
    dropped. While it is open, the file is locked.
    """

    def __init__(self, file: Path, job: str) -> None:
        self.file, self._job = file, job
        self._stream: IO[str]

    def open(self) -> tuple[list[int], list[int]]:
        """Open or begin the file; return lengths and seeds of the episodes that a killed process finished."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = stream = self.file.open("a+", encoding="utf-8", newline="\n")
        if fcntl is not None:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self.close()
                raise FlowleapError(f"another process is writing {self.file.parent}: wait for it") from error
        stream.seek(0)
        blocks, valid = _read(stream.read(), self._job)
        stream.truncate(valid)
        if not valid:
            self.restart()
        return [n for b in blocks for n in b["lengths"]], [s for b in blocks for s in b["seeds"]]

    def append(self, lengths: list[int], seeds: list[int]) -> None:
        """Note a finished block."""
        self._write({"lengths": lengths, "seeds": seeds})

    def restart(self) -> None:
        """Forget all blocks."""
        self._stream.truncate(0)
        self._write({"job": self._job})

    def close(self) -> None:
        """Release the lock."""
        self._stream.close()

    def remove(self) -> None:
        """Delete the file: the work is complete."""
        self.close()
        self.file.unlink()

    def _write(self, line: dict[str, object]) -> None:
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()


def _read(text: str, job: str) -> tuple[list[dict[str, list[int]]], int]:
    """Return the blocks of a journal of this job, and how many bytes of it are sound."""
    blocks: list[dict[str, list[int]]] = []
    valid = 0
    for number, line in enumerate(text.splitlines(keepends=True)):
        try:
            entry: Any = json.loads(line) if line.endswith("\n") else None
            if number == 0:
                if entry["job"] != job:
                    return [], 0
            else:
                blocks.append({"lengths": list(entry["lengths"]), "seeds": list(entry["seeds"])})
        except (ValueError, TypeError, KeyError):
            break
        valid += len(line.encode())
    return blocks, valid
