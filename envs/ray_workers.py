"""Workers on a Ray cluster: one actor with a CPU each; the policy stays in this process.

The nodes need the same flowleap, simulators and modules of one's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from flowleap.envs.workers import Answer, Arrays, Host, Lost, RemoteWorkers, pack
from flowleap.policy.core.errors import FlowleapError, optional_import


def connect(address: str) -> Any:
    """Join the Ray cluster at `address`, or stay in the one that this process has joined; return the module `ray`.

    Raises:
        FlowleapError: Ray is not installed, or no cluster answers.
    """
    ray = optional_import("ray", extra="ray")
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise FlowleapError(
                f"cluster={address}: no Ray cluster there ({reason}); `ray start --head` starts one"
            ) from error
    return ray


def cpus(address: str) -> int:
    """How many workers the cluster at `address` has room for."""
    return int(connect(address).cluster_resources().get("CPU", 0))


class RayWorkers(RemoteWorkers):
    """See `open_workers`."""

    def __init__(self, name: str, make: Callable[[], Any], timeout: float, address: str, count: int) -> None:
        super().__init__(name, timeout)
        self._ray = connect(address)
        if count > (room := cpus(address)):
            raise FlowleapError(
                f"n_envs={count} exceeds the {room} CPUs of the Ray cluster: say n_envs={room} or less"
            )
        self._packed = pack(name, make)
        # A CPU each, for which Ray limits numpy's linear algebra to one thread.
        self._host = self._ray.remote(num_cpus=1)(Host)
        self._actors: dict[int, Any] = {}
        self._calls: dict[Any, int] = {}  # reference to the answer to come -> worker

    def _send(self, worker: int, method: str, args: tuple[Any, ...], arrays: Arrays) -> None:
        if worker not in self._actors:
            self._actors[worker] = self._host.remote(self._name, self._packed)
        self._calls[self._actors[worker].call.remote(method, args, arrays)] = worker

    def _receive(self, seconds: float) -> dict[int, Answer | FlowleapError | Lost]:
        timeout = None if math.isinf(seconds) else seconds
        ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=timeout)
        if ready:  # and whatever else has come
            ready, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        return {self._calls.pop(call): self._answer(call) for call in ready}

    def _answer(self, call: Any) -> Answer | FlowleapError | Lost:
        try:
            answer = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            return Lost(f"Ray says {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
        if isinstance(answer, FlowleapError):
            return answer
        return answer[0], {name: np.array(value) for name, value in answer[1].items()}  # Ray's are read-only

    def _kill(self, worker: int) -> None:
        self._calls = {call: other for call, other in self._calls.items() if other != worker}
        self._ray.kill(self._actors.pop(worker))

    def close(self) -> None:
        """See `Workers`."""
        idle = [actor for worker, actor in self._actors.items() if worker not in self._asked]
        with suppress(self._ray.exceptions.RayError):
            self._ray.get([actor.close.remote() for actor in idle], timeout=5.0)
        for worker in list(self._actors):
            self._kill(worker)
