"""Worker processes: how they start, how parallel environments open, fail and close."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium
from gymnasium import logger
from gymnasium.spaces import Dict
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from flowleap.policy.core.errors import FlowleapError

VectorEnv = SyncVectorEnv | AsyncVectorEnv
MakeEnv = Callable[[], gymnasium.Env[Any, Any]]


@contextmanager
def clean_start() -> Iterator[str]:
    """Yield a start method for workers that share no state with this process and do not run its script again.

    Plain fork is unsafe beside torch's threads. The other methods import the caller's `__main__` in every
    worker, which would load torch there (seconds, hundreds of MB) and recurse where a script lacks its
    `__main__` guard. Nothing needs that import: gymnasium ships what lives in `__main__` by value.

    multiprocessing has no switch for it, but sends no `__main__` that has neither `__file__` nor `__spec__`,
    as in an interactive session: this process looks like one while its workers start, then like itself again.
    """
    method = "spawn"
    if "forkserver" in multiprocessing.get_all_start_methods():
        multiprocessing.set_forkserver_preload([__name__])
        method = "forkserver"
    main: dict[str, Any] = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
    main["__spec__"] = None
    try:
        yield method
    finally:
        main |= hidden


def ignore_interrupt(owner: int) -> None:
    """In any process but `owner` (a process id), ignore Ctrl-C: the owner stops its workers, once."""
    if os.getpid() != owner:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


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
def env_errors(name: str) -> Iterator[None]:
    """As `env_failures`, around environments that may run in worker processes, which may die."""
    with env_failures(name):
        try:
            yield
        except (EOFError, ConnectionError, BrokenProcessPool) as error:
            raise FlowleapError(
                f"task {name}: a worker process died (out of memory, or killed?); "
                "n_envs=1 runs the environment in this process"
            ) from error


class _Workers(AsyncVectorEnv):
    """Environments in processes of their own, whose failures are raised, and not printed as well."""

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        level, logger.min_level = logger.min_level, logger.ERROR + 1
        try:
            super()._raise_if_errors(successes)
        finally:
            logger.min_level = level


@contextmanager
def open_vector_env(make: MakeEnv, n_envs: int, name: str) -> Iterator[VectorEnv]:
    """Open `n_envs` environments, in this process if it is one; close or kill them whatever happens inside.

    They are never reset on their own: pass `options={"reset_mask": ...}` and seeds to `reset`.
    """
    envs: VectorEnv
    with env_errors(name):
        if n_envs == 1:
            envs = SyncVectorEnv([make], autoreset_mode=AutoresetMode.DISABLED)
        else:
            workers = [partial(_make_in_worker, make, os.getpid())] * n_envs
            with clean_start() as method:
                envs = _Workers(workers, context=method, autoreset_mode=AutoresetMode.DISABLED)
    try:
        yield envs
    except BaseException:
        if isinstance(envs, AsyncVectorEnv):
            _kill(envs)  # they may be dead, or busy with an answer that nobody waits for
        raise
    finally:
        if not envs.closed:
            envs.close()


def _make_in_worker(make: MakeEnv, owner: int) -> gymnasium.Env[Any, Any]:
    ignore_interrupt(owner)
    try:
        return make()
    except FlowleapError as error:
        if os.getpid() == owner:
            raise
        stand_in: gymnasium.Env[Any, Any] = gymnasium.Env()
        stand_in.observation_space = _Unmade(error)
        stand_in.action_space = Dict()
        return stand_in


class _Unmade(Dict):
    """The space of an environment that could not be made in its worker, where gymnasium expects no failure.

    The first thing that is done with it, comparing it with the other environments' space, raises the error.
    """

    def __init__(self, error: FlowleapError) -> None:
        super().__init__()
        self._error = error

    def __eq__(self, other: object) -> bool:
        raise self._error


def _kill(envs: AsyncVectorEnv) -> None:
    for process in envs.processes:
        process.kill()
    for process in envs.processes:
        process.join()
    for pipe in envs.parent_pipes:
        if pipe is not None:  # gymnasium's mark for a worker that has raised
            pipe.close()
    envs.closed = True
