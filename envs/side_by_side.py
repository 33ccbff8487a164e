"""Two policies on the same seeds, block after block, until it is decided which is better."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from flowleap.envs.actors import LoadedActor
from flowleap.envs.evaluations import value
from flowleap.envs.rollout import Episode, rollout
from flowleap.envs.sequential import Evidence
from flowleap.envs.task import Task


@dataclass
class Duel:
    """The episodes of both policies so far, and whether somebody broke off."""

    first: list[Episode] = field(default_factory=list)
    second: list[Episode] = field(default_factory=list)
    interrupted: bool = False

    def values(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """The metric of both policies, float64 [T] each."""
        first, second = ([value(e, metric) for e in own] for own in (self.first, self.second))
        return np.array(first, np.float64), np.array(second, np.float64)


def side_by_side(
    contestants: Sequence[tuple[Task, LoadedActor]],
    seeds: Sequence[int],
    block: int,
    n_envs: int,
    evidence: Callable[[Duel], Evidence],
    on_block: Callable[[int, Evidence], None],
) -> Duel:
    """Run two policies, each with its task, on `block` seeds at a time until `evidence` says that it is decided.

    Or until the seeds are used up. After a Ctrl-C the blocks that both have finished count: a test that one may stop at
    any time can be stopped so.

    Raises:
        FlowleapError: what `rollout` raises.
    """
    duel = Duel()
    try:
        for start in range(0, len(seeds), block):
            ours = seeds[start : start + block]
            first, second = (
                rollout(task, actor.act, actor.spec, ours, n_envs).episodes for task, actor in contestants
            )
            duel.first += first
            duel.second += second
            found = evidence(duel)
            on_block(len(duel.first), found)
            if found.decided:
                break
    except KeyboardInterrupt:
        duel.interrupted = True
    return duel
