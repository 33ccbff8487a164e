"""Results files as `flowleap eval` writes them, from made-up outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowleap.envs.registry import make_task
from flowleap.envs.report import episode_rows, summary
from flowleap.envs.rollout import Episode, Rollout
from flowleap.policy.core.files import write_results


def write_evaluation(
    path: Path,
    successes: Sequence[bool],
    scores: Sequence[float] | None = None,
    task: str = "metaworld/door-open-v3",
    first_seed: int = 100000,
    nfe: int = 1,
    **more: Any,
) -> Path:
    """Write one; the policy lies two folders above, as in a run."""
    scores = [float(x) for x in successes] if scores is None else scores
    rows = [
        Episode(first_seed + i, bool(s), float(x), 2 * float(x), 10)
        for i, (s, x) in enumerate(zip(successes, scores, strict=True))
    ]
    result = Rollout(rows, [0.001], n_envs=1)
    results = {
        "nfe": nfe,
        "summary": summary(result, make_task(task)),
        "spec": {"n_action_steps": 8},
        "continuity": None,
        "actor": {"path": str(path.parent.parent), "kind": "checkpoint"},
        "config": {"weights": "ema", "task": None},
        "rows": episode_rows(result),
    }
    return write_results(path, results | more)
