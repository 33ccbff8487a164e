"""What one robot is about to do: chunks that arrive late, and how one goes over into the next.

A chunk is asked for with an observation, and its first action belongs to that frame; it arrives `delay` control steps
later, when the robot has executed as many actions of the chunk before. The same object drives a robot
(`controller.Controller`) and a simulated delay (`envs.rollout`), so that what is measured is what runs. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.registry import Option

Mode = Literal["naive", "prefix", "best_of", "ensemble"]
ENSEMBLE_DECAY = 0.01  # of ACT (arXiv 2304.13705): the oldest chunk weighs most


@dataclass(frozen=True, kw_only=True)
class Continuity:
    """When chunks are asked for and used, and how they go on from the running one.

    naive      the new chunk replaces the running one when it arrives
    prefix     the policy (trained with prefix=N) is given the actions that are executed meanwhile and goes on from them
    best_of    of several chunks, drawn in one call, the one nearest to the running one; several ways stay one way
    ensemble   the mean of all chunks that cover a step, as ACT does (arXiv 2304.13705)
    """

    continuity: Annotated[Mode, Option("how a chunk goes on from the one before, see docs/realtime.md")] = (
        "naive"
    )
    delay: Annotated[int, Option("control steps until a chunk arrives", 0, 1000)] = 0
    execute: Annotated[
        int | None, Option("control steps from one chunk to the next; null is the policy's Ta", 1)
    ] = None
    best_of: Annotated[
        int | None, Option("chunks to choose from; null is 16 for best_of, else 1", 1, 1024)
    ] = None

    warm_start: Annotated[
        float,
        Option(
            "w: a chunk starts at t = 1 - w from w times the running one, the rest noise (2603.12480)",
            0,
            0.99,
        ),
    ] = 0.0

    @property
    def candidates(self) -> int:
        """K, how many chunks are drawn at a time."""
        return self.best_of or (16 if self.continuity == "best_of" else 1)

    def check(self, n_actions: int, execute: int, prefix: int) -> None:
        """Raise `FlowleapError` unless chunks of `n_actions` last, and the policy can go on from a prefix."""
        if self.delay > execute:
            raise FlowleapError(
                f"delay={self.delay} exceeds execute={execute}: a chunk would be asked for before the last one is "
                f"there; say execute={self.delay} or more"
            )
        if self.delay + execute > n_actions:
            raise FlowleapError(
                f"chunks of {n_actions} actions end before the next one is there: delay={self.delay} + "
                f"execute={execute} is more"
            )
        if self.continuity == "prefix" and self.delay > prefix:
            trained = f"prefix={prefix}" if prefix else "none"
            raise FlowleapError(
                f"continuity=prefix with delay={self.delay} needs a policy trained with prefix={self.delay} or more, "
                f"this one has {trained}"
            )


class Request(NamedTuple):
    """What a policy is asked for.

    Attributes:
        prefix: actions [d, A] that are executed until the chunk arrives; None where none are given.
        candidates: how many chunks are wanted.
        previous: what the running chunk holds for the N steps from now on, its last action repeated [N, A]; None where
            the new one does not start from it.
    """

    prefix: NDArray[np.float32] | None
    candidates: int
    previous: NDArray[np.float32] | None = None


class _Chunk(NamedTuple):
    start: int  # the step of its first action
    active: int  # the step from which it is used
    actions: NDArray[np.float32]


class Plan:
    """The plan of one robot; time is counted in control steps.

    Args:
        settings: see `Continuity`.
        scale: what counts as one in a dimension when chunks are compared, [A].

    Attributes:
        now: the step whose action comes next.
    """

    def __init__(self, settings: Continuity, scale: NDArray[np.float32] | float = 1.0) -> None:
        self.settings, self._scale = settings, np.maximum(scale, 1e-9)
        self.reset()

    def reset(self) -> None:
        """Forget everything: an episode begins."""
        self.now = 0
        self._chunks: list[_Chunk] = []
        self._asked: int | None = None

    @property
    def asked(self) -> int | None:
        """The step at which a chunk was asked for that has not arrived; None where none is awaited."""
        return self._asked

    @property
    def late(self) -> bool:
        """Whether a chunk is awaited that should be there."""
        return (
            self._asked is not None and bool(self._chunks) and self.now >= self._asked + self.settings.delay
        )

    def ask(self) -> Request:
        """Ask for the chunk that begins now."""
        self._asked = self.now
        prefix = None
        if self.settings.continuity == "prefix" and self._chunks and self.settings.delay:
            ahead = [self._action(self.now + i) for i in range(self.settings.delay)]
            known = [action for action in ahead if action is not None]
            prefix = np.stack(known) if known else None
        return Request(
            prefix, self.settings.candidates, self._running() if self.settings.warm_start else None
        )

    def receive(self, candidates: NDArray[np.float32]) -> None:
        """Take the answer to the last `ask`, chunks [K, N, A]: used `delay` steps after it, or now where that is past.

        The first chunk of an episode is used at once: there is nothing to do meanwhile.
        """
        assert self._asked is not None
        start, self._asked = self._asked, None
        active = max(start + self.settings.delay, self.now) if self._chunks else self.now
        self._chunks.append(_Chunk(start, active, candidates[self._nearest(start, candidates)]))
        last = self._chunks[-1].active
        if self.settings.continuity != "ensemble":  # the one before is needed until then
            self._chunks = [c for c in self._chunks[-2:] if c.active == last or last > self.now]
        self._chunks = [c for c in self._chunks if c.start + len(c.actions) > self.now]

    def forget(self) -> None:
        """Give up on the chunk that was asked for."""
        self._asked = None

    def next(self) -> NDArray[np.float32] | None:
        """The action [A] of this step, and on to the next; None where the plan has ended."""
        action = self._action(self.now)
        self.now += 1
        return action

    def _action(self, step: int) -> NDArray[np.float32] | None:
        """What is planned for a step, by what has arrived."""
        covering = [
            c for c in self._chunks if c.active <= step and c.start <= step < c.start + len(c.actions)
        ]
        if not covering:
            return None
        if self.settings.continuity != "ensemble":
            return covering[-1].actions[step - covering[-1].start]
        weights = np.exp(-ENSEMBLE_DECAY * np.arange(len(covering)))
        actions = np.stack([c.actions[step - c.start] for c in covering])
        return (weights[:, None] * actions).sum(0).astype(np.float32) / np.float32(weights.sum())

    def _running(self) -> NDArray[np.float32] | None:
        """The running chunk from now on, as long as it was; None where none is running."""
        if not self._chunks:
            return None
        last = self._chunks[-1]
        steps = np.minimum(np.arange(len(last.actions)) + self.now - last.start, len(last.actions) - 1)
        return last.actions[steps]

    def _nearest(self, start: int, candidates: NDArray[np.float32]) -> int:
        """The candidate that is nearest to the running plan, over the steps that both cover."""
        if len(candidates) == 1 or not self._chunks:
            return 0
        running = self._chunks[-1]
        count = min(running.start + len(running.actions) - start, candidates.shape[1])
        if count <= 0:
            return 0
        planned = running.actions[start - running.start :][:count]
        away = np.square((candidates[:, :count] - planned) / self._scale).mean((1, 2))
        return int(away.argmin())
