"""Counters and times of a server, in the text format of Prometheus."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """Seconds, counted by buckets."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(_BUCKETS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str) -> list[str]:
        """In Prometheus' words."""
        lines, below = [], 0
        for bound, count in zip([*map(str, _BUCKETS), "+Inf"], self.counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {below}"]


class Metrics:
    """All that a server counts.

    Args:
        results: what becomes of requests; a count each.
        refusals: why connections are refused; a count each.
    """

    def __init__(self, results: Sequence[str], refusals: Sequence[str]) -> None:
        self.requests = dict.fromkeys(results, 0)
        self.refused = dict.fromkeys(refusals, 0)
        self.connections = self.accepted = self.episodes = self.restarts = self.received = 0
        self.inference_cpu = 0.0
        self.inference, self.latency = Histogram(), Histogram()

    def text(self) -> str:
        """The page that Prometheus reads."""
        p = "flowleap"
        lines: list[str] = []

        def add(name: str, kind: str, about: str, samples: list[str]) -> None:
            lines.extend([f"# HELP {p}_{name} {about}", f"# TYPE {p}_{name} {kind}", *samples])

        def labelled(name: str, label: str, values: dict[str, int]) -> list[str]:
            return [f'{p}_{name}{{{label}="{key}"}} {value}' for key, value in values.items()]

        results = labelled("requests_total", "result", self.requests)
        add("requests_total", "counter", "Requests by what became of them.", results)
        reasons = labelled("refused_connections_total", "reason", self.refused)
        add("refused_connections_total", "counter", "Connections refused.", reasons)
        plain: list[tuple[str, str, str, float]] = [
            ("connections", "gauge", "Open connections.", self.connections),
            ("connections_total", "counter", "Connections accepted.", self.accepted),
            ("episodes_total", "counter", "Episodes begun.", self.episodes),
            ("history_restarts_total", "counter", "Histories too old to go on with.", self.restarts),
            ("received_bytes_total", "counter", "Bytes of requests.", self.received),
            ("inference_cpu_seconds_total", "counter", "CPU of the policy's thread.", self.inference_cpu),
        ]
        for name, kind, about, value in plain:
            add(name, kind, about, [f"{p}_{name} {value}"])
        for name, about, times in (
            ("inference_seconds", "Time of the policy.", self.inference),
            ("request_seconds", "Time from a request to its reply.", self.latency),
        ):
            add(name, "histogram", about, times.lines(f"{p}_{name}"))
        cpu = [f"process_cpu_seconds_total {time.process_time():.6f}"]
        lines += ["# TYPE process_cpu_seconds_total counter", *cpu]
        if resident := _resident_bytes():
            lines += [
                "# TYPE process_resident_memory_bytes gauge",
                f"process_resident_memory_bytes {resident}",
            ]
        return "\n".join(lines) + "\n"


def _resident_bytes() -> int | None:
    """Memory of this process, where the system says (Linux)."""
    status = Path("/proc/self/status")
    try:
        return int(status.read_text().partition("VmRSS:")[2].split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None
