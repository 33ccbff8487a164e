"""Logs of a server as JSON lines, one event a line."""

from __future__ import annotations

import json
import logging
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flowleap.policy.core.errors import FlowleapError

_A_SECOND = 20


class JsonLines(logging.Formatter):
    """{"time": ..., "level": ..., "event": ...} and what belongs to the event."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event: dict[str, Any] = {
            "time": moment,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        event |= getattr(record, "data", {})
        if dropped := getattr(record, "dropped", 0):
            event["dropped"] = dropped
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


class Thinned(logging.Filter):
    """Lets an event pass some times a second, so that nobody fills the disk; the next one says how many did not."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is written."""
        # Of each event: when its second began, how many it had, how many were dropped.
        seen = self._seen.setdefault(str(record.msg)[:40], [0.0, 0, 0])
        now = time.monotonic()
        if now - seen[0] > 1:
            seen[:2] = [now, 0]
        seen[1] += 1
        if seen[1] > _A_SECOND:
            seen[2] += 1
            return False
        record.dropped, seen[2] = int(seen[2]), 0
        return True


def write_logs(name: str, file: str | Path | None = None) -> logging.Handler:
    """Write the events of a logger, and Python's warnings, to a file or to standard error.

    Raises:
        FlowleapError: the file cannot be written.
    """
    try:
        handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    except OSError as error:
        raise FlowleapError(f"log={file}: {error.strerror}") from error
    handler.setFormatter(JsonLines())
    handler.addFilter(Thinned())
    for logger in (logging.getLogger(name), logging.getLogger("py.warnings")):
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(handler)
    logging.captureWarnings(True)
    return handler
