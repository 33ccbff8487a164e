"""A robot's control loop around an exported policy: one observation in, one action out, on time.

    policy = ExportedPolicy.load("runs/door/export_nfe1")
    with Controller(policy, continuity="prefix", delay=2) as controller:
        controller.reset()
        while True:
            robot.send(controller.step(robot.read()))     # {key: [*shape]} -> [A]

The next chunk is computed in a thread while the running one is executed. numpy and onnxruntime only.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.inputs import input_advice
from flowleap.policy.core.limits import ActionLimits
from flowleap.policy.core.spec import Spec
from flowleap.policy.deploy.plan import Continuity, Plan, Request

Late = Literal["continue", "hold", "stop"]
_KEPT = 10_000  # latencies that the quantiles are taken of
_WARM_UP = 20


class Chunker(Protocol):
    """What a controller needs of a policy; `ExportedPolicy` has it."""

    spec: Spec
    actions: int
    prefix: int

    def example(self) -> dict[str, NDArray[Any]]:
        """An observation {key: [1,To,*shape]} to warm up with."""
        ...

    def chunk(
        self,
        obs: Mapping[str, NDArray[Any]],
        noise: NDArray[Any] | None = None,
        prefix: NDArray[Any] | None = None,
    ) -> NDArray[np.float32]:
        """Observations {key: [B,To,*shape]}, noise [B,K,H,A], prefix [B,P,A] -> chunks [B,K,N,A]."""
        ...


class LateChunk(FlowleapError):
    """A chunk was not there when it was needed, and `late` is `stop`."""


@dataclass
class Counters:
    """What happened so far.

    Attributes:
        steps: actions that were asked for.
        chunks: that were computed.
        late: steps at which a chunk should have been there and was not.
        held: steps at which the robot was held still for want of a plan.
        limited: steps at which an action was beyond the limits.
        seconds: of the computations of the last chunks.
    """

    steps: int = 0
    chunks: int = 0
    late: int = 0
    held: int = 0
    limited: int = 0
    seconds: deque[float] | None = None

    def summary(self) -> dict[str, Any]:
        """Counts, and the milliseconds p50, p99 and max that chunks took."""
        milliseconds = np.asarray(self.seconds or [0.0]) * 1e3
        p50, p99 = np.quantile(milliseconds, [0.5, 0.99])
        times = {"p50": float(p50), "p99": float(p99), "max": float(milliseconds.max())}
        counts = {name: getattr(self, name) for name in ("steps", "chunks", "late", "held", "limited")}
        return {**counts, "chunk_ms": times}


class Controller:
    """Holds history, plan and limits of one robot; not for several threads at once.

    Args:
        policy: an `ExportedPolicy`.
        continuity, delay, execute, best_of: see `plan.Continuity`; `delay=None` measures the policy and takes the
            steps that its slowest calls (p99) need at `control_hz`, none if it is fast enough to answer within a
            quarter of a step.
        control_hz: steps a second; by default the Spec's.
        late: what is done when a chunk is late: `continue` the running plan as long as it lasts, `hold` still, or
            `stop` with `LateChunk`. A plan that has ended holds still in any case.
        limits: bounds of the actions; by default those of the demonstrations, a tenth of the range wider. None: none.
        background: compute in a thread; else `step` computes where it asks, which gives the same actions and is what
            tests want.
        seed: of the noise.

    Attributes:
        counters: what happened so far.
        settings: the `Continuity` that is in force.
    """

    def __init__(
        self,
        policy: Chunker,
        *,
        continuity: Any = "naive",
        delay: int | None = None,
        execute: int | None = None,
        best_of: int | None = None,
        control_hz: float | None = None,
        late: Late = "continue",
        limits: ActionLimits | Literal["demonstrated"] | None = "demonstrated",
        background: bool = True,
        seed: int | None = None,
    ) -> None:
        self.policy, self.spec, self._late = policy, policy.spec, late
        self._rng = np.random.default_rng(seed)
        self.counters = Counters(seconds=deque(maxlen=_KEPT))
        self.settings = Continuity(continuity=continuity, delay=delay or 0, execute=execute, best_of=best_of)
        if delay is None:
            delay = self._measured_delay(control_hz or self.spec.control_hz, self.settings.candidates)
            self.settings = replace(self.settings, delay=delay)
        self._execute = execute or max(delay, min(self.spec.n_action_steps, policy.actions - delay))
        self.settings.check(policy.actions, self._execute, policy.prefix)
        known = self.spec.limits
        self.limits = known.widened() if known and limits == "demonstrated" else None
        if isinstance(limits, ActionLimits):
            self.limits = limits
        scale = np.subtract(known.high, known.low).astype(np.float32) if known else 1.0
        self._plan = Plan(self.settings, scale)
        self._worker = ThreadPoolExecutor(1, "flowleap") if background and delay else None
        self._pending: Future[NDArray[np.float32]] | None = None
        self.reset()

    def reset(self) -> None:
        """Begin an episode: forget history and plan. Counters go on."""
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        self._plan.reset()
        self._frames: deque[dict[str, NDArray[Any]]] = deque(maxlen=self.spec.n_obs_steps)
        self._previous: NDArray[np.float32] | None = None
        self._since = 0

    def step(self, obs: Mapping[str, Any]) -> NDArray[np.float32]:
        """One control step.

        Args:
            obs: the current frame, {key: [*shape]} in real units; other keys are ignored.

        Returns:
            The action [A], float32, in real units and within the limits.

        Raises:
            FlowleapError: an observation is missing, misshapen, NaN or infinite (the history is as it was), or the
                policy failed; `hold()` says what keeps the robot still. `LateChunk` where `late` is `stop`.
        """
        self._frames.append(self._frame(obs))
        while len(self._frames) < self.spec.n_obs_steps:
            self._frames.appendleft(self._frames[0])
        self.counters.steps += 1
        self._collect(wait=False)
        plan = self._plan
        if plan.asked is None and (plan.now == 0 or self._since >= self._execute):
            self._ask()
        waits = self._is_late()
        action = plan.next()
        self._since += 1
        if action is None or waits:
            self.counters.held += 1
            return self.hold()
        return self._limited(action)

    def hold(self) -> NDArray[np.float32]:
        """The action [A] that keeps the robot still: the last one where actions are positions, else zero.

        Raises:
            FlowleapError: actions are positions, and none was sent yet.
        """
        if self.spec.action_convention == "delta":
            return np.zeros(self.spec.action_dim, np.float32)
        if self._previous is None:
            raise FlowleapError("there is no action to hold yet: keep the robot where it is")
        return self._previous.copy()

    def close(self) -> None:
        """End the thread."""
        if self._worker is not None:
            self._worker.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def _ask(self) -> None:
        """Ask for the chunk that begins at this frame; wait for the first one of an episode."""
        first = self._plan.now == 0
        request = self._plan.ask()
        self._since = 0
        stacked = {key: np.stack([f[key] for f in self._frames])[None] for key in self.spec.observations}
        shape = (1, request.candidates, self.spec.horizon, self.spec.action_dim)
        noise = self._rng.standard_normal(shape, dtype=np.float32)
        if self._worker is None:
            with self._asking_again():
                chunks = self._compute(stacked, noise, request)
            self._plan.receive(chunks)
            return
        self._pending = self._worker.submit(self._compute, stacked, noise, request)
        if first:
            self._collect(wait=True)

    def _compute(
        self, obs: dict[str, NDArray[Any]], noise: NDArray[np.float32], request: Request
    ) -> NDArray[np.float32]:
        """Chunks [K, N, A]."""
        start = perf_counter()
        prefix = None if request.prefix is None else request.prefix[None]
        given = {} if prefix is None else {"prefix": prefix}
        chunks = self.policy.chunk(obs, noise if request.candidates > 1 else noise[:, 0], **given)
        if not np.isfinite(chunks).all():
            raise FlowleapError("the policy gave NaN or infinite actions: they are not sent")
        assert self.counters.seconds is not None
        self.counters.seconds.append(perf_counter() - start)
        self.counters.chunks += 1
        return chunks[0] if request.candidates > 1 else chunks

    def _collect(self, wait: bool) -> None:
        """Take a chunk that has arrived."""
        pending = self._pending
        if pending is None or not (wait or pending.done()):
            return
        self._pending = None
        with self._asking_again():
            chunks = pending.result()
        self._plan.receive(chunks)

    @contextmanager
    def _asking_again(self) -> Iterator[None]:
        """Let the next step ask for a chunk where the policy failed to give one."""
        try:
            yield
        except Exception:
            self._plan.forget()
            self._since = self._execute
            raise

    def _is_late(self) -> bool:
        """Count a chunk that is late; whether the robot waits for it."""
        late = self._plan.late
        self.counters.late += late
        if late and self._late == "stop":
            waited = f"{self._plan.now - (self._plan.asked or 0)} steps"
            raise LateChunk(
                f"a chunk is not there after {waited}, delay={self.settings.delay}: the plan stops here"
            )
        return late and self._late == "hold"

    def _limited(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.limits is not None:
            allowed = self.limits.apply(action, self._previous)
            self.counters.limited += not np.allclose(allowed, action, rtol=1e-5, atol=1e-6)
            action = allowed
        self._previous = action
        return action

    def _frame(self, obs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The current frame, checked; copied, so that the caller may reuse its buffers."""
        frame: dict[str, NDArray[Any]] = {}
        for key, known in self.spec.observations.items():
            if key not in obs:
                raise FlowleapError(f"observation '{key}' is missing; got {sorted(obs)}{suggest(key, obs)}")
            value = np.array(obs[key])
            if value.dtype.kind not in "biuf" or (known.kind == "rgb" and value.dtype != np.uint8):
                expected = "uint8" if known.kind == "rgb" else "numbers"
                advice = input_advice(known, value.shape, str(value.dtype))
                raise FlowleapError(f"observation '{key}': dtype {value.dtype} instead of {expected}{advice}")
            value = known.see(value)
            if value.shape != tuple(known.shape):
                advice = input_advice(known, value.shape, str(value.dtype))
                raise FlowleapError(
                    f"observation '{key}': expected one frame {list(known.shape)}, got {list(value.shape)}{advice}"
                )
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                where = np.argwhere(~np.isfinite(value))[0].tolist()
                raise FlowleapError(
                    f"observation '{key}' is {value[tuple(where)]} at index {where}: check the sensor"
                )
            frame[key] = value
        return frame

    def _measured_delay(self, hz: float, candidates: int) -> int:
        """Steps that slow calls of the policy take, by a few calls."""
        if hz <= 0:
            raise FlowleapError("delay: neither the policy nor control_hz says how long a step is")
        noise = np.zeros((1, candidates, self.spec.horizon, self.spec.action_dim), np.float32)
        obs = self.policy.example()
        seconds = []
        for _ in range(_WARM_UP):
            start = perf_counter()
            self.policy.chunk(obs, noise if candidates > 1 else noise[:, 0])
            seconds.append(perf_counter() - start)
        steps = float(np.quantile(seconds[1:], 0.99)) * hz
        return 0 if steps < 0.25 else math.ceil(steps)
