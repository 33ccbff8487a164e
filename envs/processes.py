"""Workers in processes of this machine: how they start, talk, and end."""

from __future__ import annotations

import math
import multiprocessing
import os
import pickle
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import connection
from typing import Any, NamedTuple

import numpy as np

from flowleap.envs.workers import Answer, Arrays, Host, Layout, Lost, RemoteWorkers, Traffic, pack
from flowleap.policy.core.errors import FlowleapError

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_GRACE = 5.0  # s, in which an idle worker closes its environment, and a killed one is gone
_ALIGNED = 64  # bytes


@contextmanager
def clean_start() -> Iterator[str]:
    """Yield a start method for workers that share no state with this process and do not run its script again.

    Plain fork is unsafe beside torch's threads. The other methods import the caller's `__main__` in every
    worker, which would load torch there (seconds, hundreds of MB) and recurse where a script lacks its
    `__main__` guard. Nothing needs that import: what lives in `__main__` is sent by value.

    multiprocessing has no switch for it, but sends no `__main__` that has neither `__file__` nor `__spec__`,
    as in an interactive session: this process looks like one while its workers start, then like itself again.
    Its environment meanwhile gives numpy's linear algebra one thread: there is a worker for every core.
    """
    method = "spawn"
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.set_forkserver_preload([__name__])
        method = "forkserver"
    main: dict[str, Any] = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    usual = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)
    try:
        yield method
    finally:
        main |= hidden
        for name, value in usual.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


class Channel:
    """One end of a pipe, beside memory through which arrays of known shapes go.

    Pickled, two small arrays would take 60 us of this process, a pair of 640 x 480 images 2 ms.
    """

    def __init__(self, pipe: Any, memory: Any, sent: Layout, received: Layout, first: bool) -> None:
        """`first`: whether what this end sends lies first in the memory."""
        parts = _views(memory, (sent, received) if first else (received, sent))
        self._sent, self._received = parts if first else parts[::-1]
        self.pipe = pipe

    def send(self, message: Any, arrays: Arrays) -> None:
        """Send anything that can be pickled, and arrays."""
        for name, value in arrays.items():
            self._sent[name][...] = value
        self.pipe.send_bytes(pickle.dumps((message, tuple(arrays)), pickle.HIGHEST_PROTOCOL))

    def receive(self) -> tuple[Any, Arrays]:
        """Wait for what the other end sends; the arrays are copies."""
        message, names = pickle.loads(self.pipe.recv_bytes())
        return message, {name: self._received[name].copy() for name in names}


def _size(shape: tuple[int, ...], dtype: str) -> int:
    return -(-math.prod(shape) * np.dtype(dtype).itemsize // _ALIGNED) * _ALIGNED


def _views(memory: Any, layouts: tuple[Layout, Layout]) -> list[Arrays]:
    at = 0
    parts: list[Arrays] = []
    for layout in layouts:
        parts.append({})
        for name, (shape, dtype) in layout.items():
            flat = np.frombuffer(memory, dtype, math.prod(shape), at)
            parts[-1][name] = flat.reshape(shape)
            at += _size(shape, dtype)
    return parts


class _Running(NamedTuple):
    process: Any
    channel: Channel


class _Watched(selectors.SelectSelector):
    """A selector of what Windows can wait for: pipes and processes."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready within so many seconds."""
        keys: dict[Any, selectors.SelectorKey] = {key.fileobj: key for key in self.get_map().values()}
        return [(keys[each], selectors.EVENT_READ) for each in connection.wait(keys, timeout)]


class Processes(RemoteWorkers):
    """See `open_workers`."""

    def __init__(self, name: str, make: Callable[[], Any], timeout: float, traffic: Traffic) -> None:
        super().__init__(name, timeout)
        self._packed, self._traffic = pack(name, make), traffic
        self._running: dict[int, _Running] = {}
        # `connection.wait` would tell the system of all of them anew at each call.
        self._watched = selectors.DefaultSelector() if os.name == "posix" else _Watched()

    def _start(self) -> _Running:
        calls, answers = self._traffic
        size = sum(_size(*each) for layout in self._traffic for each in layout.values())
        with clean_start() as method:
            context: Any = multiprocessing.get_context(method)
            memory = context.RawArray("B", max(size, 1))
            here, there = context.Pipe()
            given = (there, memory, self._traffic, self._name, self._packed)
            process = context.Process(target=_serve, args=given, daemon=True)
            process.start()
        there.close()
        for each in (here, process.sentinel):
            self._watched.register(each, selectors.EVENT_READ)
        return _Running(process, Channel(here, memory, calls, answers, first=True))

    def _send(self, worker: int, method: str, args: tuple[Any, ...], arrays: Arrays) -> None:
        if worker not in self._running:
            self._running[worker] = self._start()
        with suppress(OSError):
            self._running[worker].channel.send((method, args), arrays)

    def _receive(self, seconds: float) -> dict[int, Answer | FlowleapError | Lost]:
        busy = {worker: self._running[worker] for worker in self._asked}
        pipes = {running.channel.pipe: worker for worker, running in busy.items()}
        # A pipe tells of a death, too, unless a process that the environment has started holds its other end.
        deaths = {running.process.sentinel: worker for worker, running in busy.items()}
        events = self._watched.select(None if math.isinf(seconds) else seconds)
        ready = [event.fileobj for event, _ in events]
        for worker in [
            w for w, own in self._running.items() if w not in busy and own.process.sentinel in ready
        ]:
            self._kill(worker)  # idle: the next call starts another
        found: dict[int, Answer | FlowleapError | Lost] = {}
        for worker in [pipes[each] for each in ready if each in pipes]:
            try:
                answer, arrays = busy[worker].channel.receive()
            except (EOFError, OSError):
                found[worker] = Lost(_fate(busy[worker].process))
            else:
                found[worker] = answer if isinstance(answer, FlowleapError) else (answer, arrays)
        for worker in [deaths[each] for each in ready if each in deaths]:
            # An answer may have come between the two looks.
            if worker not in found and not busy[worker].channel.pipe.poll():
                found[worker] = Lost(_fate(busy[worker].process))
        return found

    def _kill(self, worker: int) -> None:
        process, channel = self._running.pop(worker)
        for each in (channel.pipe, process.sentinel):
            self._watched.unregister(each)
        process.kill()
        process.join(_GRACE)
        channel.pipe.close()

    def close(self) -> None:
        """See `Workers`."""
        idle = [running for worker, running in self._running.items() if worker not in self._asked]
        for running in idle:
            with suppress(OSError):
                running.channel.send(None, {})
        end = time.monotonic() + _GRACE
        for running in idle:
            running.process.join(max(0.0, end - time.monotonic()))
        for worker in list(self._running):
            self._kill(worker)
        self._watched.close()


def _fate(process: Any) -> str:
    """What became of a process that hangs up."""
    process.join(_GRACE)
    code = process.exitcode
    if code is None:
        return "it does not answer any more"
    if code >= 0:
        return f"it exited with code {code}"
    by = signal.Signals(-code).name
    return f"it was killed by {by}{' (out of memory?)' if by == 'SIGKILL' else ''}"


def _serve(pipe: Any, memory: Any, traffic: Traffic, name: str, packed: bytes) -> None:
    """What a worker process does: answer calls until it is told to end, or whoever calls is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who ends its workers
    host, channel = Host(name, packed), Channel(pipe, memory, traffic.answers, traffic.calls, first=False)
    with suppress(EOFError, OSError):
        while (received := channel.receive())[0] is not None:
            (method, args), arrays = received
            answer = host.call(method, args, arrays)
            channel.send(*((answer, {}) if isinstance(answer, FlowleapError) else answer))
    with suppress(Exception):  # nobody is left to tell
        host.close()
