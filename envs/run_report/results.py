"""The results JSON of one evaluation, checked, as the page reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from flowleap.envs.protocols import FLOWLEAP, protocol_name

Number = dict[str, Any]
"""A number with its 95 % `interval`: a rate {count, n, rate}, or a {mean}."""

_SEED = 100000  # of the first episode, unless said otherwise


@dataclass(frozen=True)
class Evaluation:
    """One evaluation in simulation.

    Attributes:
        file: its results.
        data: all of them.
        task, protocol: what was evaluated, and the name of the conditions.
        nfe: network function evaluations a chunk.
        metric, value, interval: the headline score.
        success: a rate with count, n and interval; None where the task reports none.
        step: of training; None where nobody noted it.
        conditions: what was not as it is by default, in words.
    """

    file: Path
    data: Mapping[str, Any]
    task: str
    protocol: str
    nfe: int
    metric: str
    value: float
    interval: tuple[float, float]
    success: Number | None
    step: int | None
    conditions: tuple[str, ...]

    @classmethod
    def of(cls, file: Path, data: Mapping[str, Any]) -> Evaluation:
        """Check the content of a file; raise `LookupError`, `TypeError`, `ValueError` or `AttributeError`."""
        summary, actor = data["summary"], data.get("actor") or {}
        headline, training = summary["headline"], actor.get("training") or {}
        low, high = map(float, headline["interval"])
        success = _rate(summary["success"]) if summary.get("reports_success", True) else None
        step = training.get("step")
        latency = summary["latency_ms"]
        finite = [float(latency[name]) for name in ("p50", "p95", "mean")] + [
            float(headline["value"]),
            low,
            high,
        ]
        if not all(map(math.isfinite, finite)):
            raise ValueError("its numbers are not finite")
        for row in data.get("rows", ()):
            if not isinstance(row["seed"], int) or not isinstance(row["success"], bool):
                raise ValueError("its rows are no episodes")
            float(row["max_reward"])
        protocol = protocol_name(data)
        return cls(
            file,
            data,
            str(summary["task"]),
            protocol,
            int(data["nfe"]),
            str(headline["metric"]),
            float(headline["value"]),
            (low, high),
            success,
            step if isinstance(step, int) else None,
            _conditions(data, actor, protocol),
        )

    @property
    def episodes(self) -> int:
        """How many there were."""
        return int(self.data["summary"]["episodes"])

    @property
    def exported(self) -> bool:
        """Whether an export acted, not the checkpoint."""
        return (self.data.get("actor") or {}).get("kind") == "export"

    @property
    def latency(self) -> Mapping[str, Any]:
        """Milliseconds of a call of the policy."""
        latency: Mapping[str, Any] = self.data["summary"]["latency_ms"]
        return latency

    @property
    def measures(self) -> dict[str, Number]:
        """How smooth the motion was, by name; what the file holds of it."""
        motion = self.data["summary"].get("motion")
        return {str(k): v for k, v in motion.items() if _is_mean(v)} if isinstance(motion, dict) else {}

    @property
    def histogram(self) -> tuple[list[float], list[int]] | None:
        """Edges and counts of the latency; None in results of flowleap 0.1."""
        found = self.latency.get("histogram")
        if not isinstance(found, dict):
            return None
        edges, counts = [float(x) for x in found["edges"]], [int(x) for x in found["counts"]]
        fits = len(edges) == len(counts) + 1 and all(0 < a < b for a, b in pairwise(edges))
        return (edges, counts) if fits else None

    def precedence(self) -> tuple[Any, ...]:
        """The order in which evaluations are quoted, the best first; see `RunFolder.headline`."""
        return (
            self.exported,
            -(self.step or 0),
            len(self.conditions),
            -self.episodes,
            self.nfe,
            str(self.file),
        )


def _rate(part: Mapping[str, Any]) -> Number:
    low, high = map(float, part["interval"])
    return {
        "count": int(part["count"]),
        "n": int(part["n"]),
        "rate": float(part["rate"]),
        "interval": [low, high],
    }


def _is_mean(part: Any) -> bool:
    return (
        isinstance(part, dict)
        and isinstance(part.get("mean"), int | float)
        and isinstance(part.get("interval"), list)
        and len(part["interval"]) == 2
    )


def _conditions(data: Mapping[str, Any], actor: Mapping[str, Any], protocol: str) -> tuple[str, ...]:
    config, continuity = data.get("config") or {}, data.get("continuity")
    found = []
    if actor.get("kind") == "export":
        found.append("exported")
    if actor.get("weights", "ema") != "ema":
        found.append(f"{actor['weights']} weights")
    if config.get("n_action_steps"):
        found.append(f"{config['n_action_steps']} actions executed")
    if isinstance(continuity, dict):
        found.append(f"{continuity.get('continuity')}, {continuity.get('delay')} steps late")
        if warm := continuity.get("warm_start"):
            found.append(f"warm start {warm}")
    if config.get("batched"):
        found.append("batched")
    if data.get("noise_seed"):
        found.append(f"noise seed {data['noise_seed']}")
    first = (data.get("seeds") or {}).get("first", _SEED)
    if first != _SEED and protocol == FLOWLEAP.name:
        found.append(f"seeds from {first}")
    found += [f"{kind} {value}" for kind, value in (data.get("perturbation") or {}).items()]
    return tuple(found)


def robustness_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Scores against the strength of perturbations: `title`, and `curves`, kind -> (strengths, scores, intervals).

    Raises `LookupError`, `TypeError`, `ValueError` or `AttributeError`.
    """
    first, curves = Evaluation.of(Path(), data["evaluations"][0]), {}
    for kind, points in data["curves"].items():
        numbers = np.array([[p["strength"], p["score"], *p["interval"]] for p in points], np.float64)
        curves[str(kind)] = (numbers[:, 0], numbers[:, 1], numbers[:, 2:4])
    metric = first.metric.replace("_", " ")
    return {
        "title": f"{first.task}, {metric} at NFE {first.nfe}, protocol {first.protocol}",
        "curves": curves,
    }


def offline_of(file: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    """The comparison with recorded actions in a results file, checked as far as the page reads it.

    Raises `LookupError`, `TypeError`, `ValueError` or `AttributeError`.
    """
    found, baselines = data["offline"], ("policy", "repeat_last", "mean_action")
    error = found["error"]
    horizon = {name: list(map(float, error["horizon"][name])) for name in baselines}
    dimensions = [
        {
            "numbers": [float(part["policy"][name]) for name in ("mean", "median", "p95")]
            + [float(part[name]["mean"]) for name in baselines[1:]]
            + [float(part["spread"])],
            "outside": float(part["outside"]),
            "range": float(width),
            "levels": part["levels"],
        }
        for part, width in zip(found["dimensions"], found["range"], strict=True)
    ]
    drawn: dict[str, dict[str, Any]] = {
        str(name): {
            "episode": str(part["episode"]),
            "error": float(part["error"]),
            **{key: np.asarray(part[key], np.float64) for key in ("recorded", "predicted")},
        }
        for name, part in found["drawn"].items()
    }
    if any(p["recorded"].ndim != 2 or p["recorded"].shape != p["predicted"].shape for p in drawn.values()):
        raise ValueError("the episodes that it draws do not fit")
    return {
        "file": str(file),
        "command": str(data.get("command") or ""),
        **{key: str(found[key]) for key in ("dataset", "data", "caution")},
        **{key: int(found[key]) for key in ("nfe", "frames", "noises", "episodes")},
        "error": {name: float(error[name]) for name in (*baselines, "executed")},
        "horizon": horizon,
        "dimensions": dimensions,
        "best_of": {int(k): float(value) for k, value in found["best_of"].items()},
        "spread": float(found["spread"]),
        "two_ways": None if found["two_ways"] is None else float(found["two_ways"]),
        "worst_episodes": [(str(p["episode"]), float(p["error"])) for p in found["worst_episodes"]],
        "worst_frames": [
            (str(p["episode"]), int(p["frame"]), float(p["error"])) for p in found["worst_frames"]
        ],
        "drawn": drawn,
    }
