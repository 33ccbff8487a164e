"""Workers: each answers calls on an object of its own, on its own time; one that dies or hangs is replaced.

Three kinds behave alike: in this process, in processes of this machine (`processes`), on a Ray cluster (`ray_workers`).
"""

from __future__ import annotations

import math
import os
import tempfile
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import cloudpickle
import numpy as np

from flowleap.policy.core.errors import FlowleapError, FlowleapWarning, require_number

TIMEOUT = 600.0  # s
MOST_RESTARTS = 2  # of one seed

Arrays = dict[str, np.ndarray]
Answer = tuple[Any, Arrays]  # what a method that workers are asked for returns
Layout = Mapping[str, tuple[tuple[int, ...], str]]  # name -> shape and dtype


@dataclass(frozen=True)
class Restart:
    """A worker that was replaced, and why; what it did for `seed` was done again, from its beginning."""

    seed: int
    reason: str


class Traffic(NamedTuple):
    """The arrays that calls and their answers carry: worth memory that both processes see."""

    calls: Layout
    answers: Layout


class Lost(NamedTuple):
    """In place of an answer: there is none to come."""

    reason: str


class Workers(Protocol):
    """Workers that are asked and answer, in any order; a worker has one question at a time.

    Attributes:
        restarts: those that were replaced.
    """

    restarts: list[Restart]

    def ask(self, worker: int, seed: int, method: str, *args: Any, **arrays: np.ndarray) -> None:
        """Call a method of worker number `worker` on behalf of `seed`, without waiting for its answer."""
        ...

    def answers(self) -> list[tuple[int, Answer | None]]:
        """Wait until there are answers: pairs of a worker and what it returned; None where it was lost.

        What a lost worker knew is gone: begin the work on its seed again, with the same worker number.

        Raises:
            FlowleapError: the method raised, or a seed has lost `MOST_RESTARTS` + 1 workers.
        """
        ...

    def close(self) -> None:
        """Close the objects of idle workers, and end all."""
        ...


@contextmanager
def env_failures(name: str) -> Iterator[None]:
    """Turn whatever an environment of task `name` raises, here, into a `FlowleapError` of one line."""
    try:
        yield
    except FlowleapError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FlowleapError(
            f"task {name}: the environment failed: {reason}{_traceback_file(error)}"
        ) from error


def _traceback_file(error: Exception) -> str:
    """Write the traceback into a file for those who wrote the environment; say where it is, if anywhere."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="flowleap_", suffix=".log", delete=False, encoding="utf-8"
        ) as log:
            log.write("".join(traceback.format_exception(error)))
    except OSError:
        return ""
    return f" (traceback: {log.name})"


@contextmanager
def open_workers(
    name: str,
    make: Callable[[], Any],
    count: int,
    timeout: float = TIMEOUT,
    cluster: str | None = None,
    traffic: Traffic | None = None,
) -> Iterator[Workers]:
    """Lend `count` workers, each with an object from `make()`; end them whatever happens inside.

    Args:
        name: of the task, for messages.
        make: makes an object with a method `close`; the methods that workers are asked for return an `Answer`.
        count: 1 works in this process, unless there is a cluster.
        timeout: seconds after which a worker that has not answered is replaced; one in this process is waited for.
        cluster: `auto` or the address of a Ray cluster.
        traffic: arrays of these names, shapes and dtypes go through shared memory; there are no others then.

    Raises:
        FlowleapError: `make` cannot be sent to workers, or there is no such cluster.
    """
    workers: Workers
    if cluster is not None:
        from flowleap.envs.ray_workers import RayWorkers

        workers = RayWorkers(name, make, timeout, cluster, count)
    elif count == 1:
        workers = _InProcess(name, make)
    else:
        from flowleap.envs.processes import Processes

        workers = Processes(name, make, timeout, traffic or Traffic({}, {}))
    try:
        yield workers
    finally:
        workers.close()


def default_count(cluster: str | None, wait_for_caller: bool = False) -> int:
    """How many workers keep this machine, or the Ray cluster, busy: one a core.

    Args:
        wait_for_caller: they wait for this process between calls; one more has work meanwhile.
    """
    if cluster is None:
        cores = os.cpu_count() or 1
        return cores + 1 if wait_for_caller and cores > 1 else cores
    from flowleap.envs.ray_workers import cpus

    return cpus(cluster)


class _InProcess:
    """The one worker that is this process."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self.restarts: list[Restart] = []
        self._name = name
        with env_failures(name):
            self._object = make()

    def ask(self, worker: int, seed: int, method: str, *args: Any, **arrays: np.ndarray) -> None:
        self._call = getattr(self._object, method), args, arrays

    def answers(self) -> list[tuple[int, Answer | None]]:
        method, args, arrays = self._call
        with env_failures(self._name):
            return [(0, method(*args, **arrays))]

    def close(self) -> None:
        with env_failures(self._name):
            self._object.close()


class Host:
    """The object of a worker that is elsewhere, made at the first call: the limit of its time holds for that, too.

    Args:
        name: of the task, for messages.
        packed: what `pack` made of the function that makes the object.
    """

    def __init__(self, name: str, packed: bytes) -> None:
        self._name, self._packed = name, packed
        self._object: Any = None

    def call(self, method: str, args: tuple[Any, ...], arrays: Arrays) -> Answer | FlowleapError:
        """Call a method of the object; what it raises is returned, as text: its class may be unknown elsewhere."""
        try:
            with env_failures(self._name):
                if self._object is None:
                    self._object = cloudpickle.loads(self._packed)()
                answer: Answer = getattr(self._object, method)(*args, **arrays)
                return answer
        except FlowleapError as error:
            return FlowleapError(str(error))

    def close(self) -> None:
        """Close the object."""
        if self._object is not None:
            self._object.close()


def pack(name: str, make: Callable[[], Any]) -> bytes:
    """`make` for a `Host`; what lives in `__main__` goes by value."""
    try:
        packed: bytes = cloudpickle.dumps(make)
    except Exception as error:  # whatever the objects inside raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise FlowleapError(
            f"task {name}: its environment cannot be sent to a worker ({reason}); n_envs=1 runs it in this process"
        ) from error
    return packed


class RemoteWorkers(ABC):
    """Workers that may be lost: the book of who was asked for what, until when.

    A worker starts when it is asked for the first time.
    """

    def __init__(self, name: str, timeout: float) -> None:
        self.restarts: list[Restart] = []
        self._name, self._timeout = name, require_number("worker_timeout", timeout, 1e-3, math.inf)
        self._asked: dict[int, tuple[int, float]] = {}  # busy worker -> its seed, the end of its time

    def ask(self, worker: int, seed: int, method: str, *args: Any, **arrays: np.ndarray) -> None:
        """See `Workers`."""
        self._send(worker, method, args, arrays)
        self._asked[worker] = seed, time.monotonic() + self._timeout

    def answers(self) -> list[tuple[int, Answer | None]]:
        """See `Workers`."""
        found: dict[int, Answer | FlowleapError | Lost] = {}
        while not found:
            left = min((end for _, end in self._asked.values()), default=math.inf) - time.monotonic()
            found = self._receive(max(left, 0.0))
            now = time.monotonic()
            late = Lost(f"no answer within {self._timeout:g} s")
            found |= {w: late for w, (_, end) in self._asked.items() if end <= now and w not in found}
        return [(worker, self._accept(worker, answer)) for worker, answer in found.items()]

    def _accept(self, worker: int, answer: Answer | FlowleapError | Lost) -> Answer | None:
        seed, _ = self._asked.pop(worker)
        if isinstance(answer, FlowleapError):
            raise answer
        if not isinstance(answer, Lost):
            return answer
        self._kill(worker)
        self.restarts.append(Restart(seed, answer.reason))
        times = sum(restart.seed == seed for restart in self.restarts)
        if times > MOST_RESTARTS:
            raise FlowleapError(
                f"task {self._name}: seed {seed} has lost {times} workers, the last one: {answer.reason}; "
                "n_envs=1 without a cluster runs it in this process, worker_timeout=SECONDS waits longer"
            )
        again = f"its episode runs again ({times} of at most {MOST_RESTARTS} times)"
        warnings.warn(
            f"task {self._name}, seed {seed}: its worker is replaced: {answer.reason}; {again}",
            FlowleapWarning,
            stacklevel=2,
        )
        return None

    @abstractmethod
    def close(self) -> None:
        """See `Workers`."""

    @abstractmethod
    def _send(self, worker: int, method: str, args: tuple[Any, ...], arrays: Arrays) -> None:
        """Start the worker unless it runs, and call it; one that is dead is found so when it does not answer."""

    @abstractmethod
    def _receive(self, seconds: float) -> dict[int, Answer | FlowleapError | Lost]:
        """The answers of busy workers, at least one unless the time is over; what became of those that died."""

    @abstractmethod
    def _kill(self, worker: int) -> None:
        """End a worker at once; the next call starts a new one."""
