"""What readers and writers share: errors that name the column, notes, and names that appear when all is written."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

from numpy.typing import ArrayLike

from flowleap.datasets import roles
from flowleap.datasets.columns import ACTION, Episode, Layout
from flowleap.datasets.interface import Dataset
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import atomic, remove, temporary_name
from flowleap.policy.core.spec import ObsKey, Spec

DAMAGE = (OSError, RuntimeError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged file may raise."""


@contextmanager
def explain(problem: str, *kinds: type[Exception], remedy: str = "") -> Iterator[None]:
    """Turn errors of some kinds into one for people: the problem, the error itself, and what to do."""
    try:
        yield
    except kinds as error:
        raise FlowleapError(f"{problem} ({error}){remedy}") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object."""
    with explain(f"'{file}' cannot be read", OSError, ValueError, RecursionError):
        data = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise FlowleapError(f"'{file}' holds no JSON object")
    return data


class Source(Dataset):
    """A dataset that others may have written."""

    @contextmanager
    def naming(self, index: int, key: str) -> Iterator[None]:
        """Let what goes wrong with a column name file, episode and column."""
        try:
            yield
        except FlowleapError as error:
            raise self.error(index, key, str(error).lstrip()) from error
        except DAMAGE as error:
            raise self.error(index, key, f"is damaged ({error}); copy the file again") from error

    def describe(
        self, observations: dict[str, ObsKey], action: ObsKey | None, extra: dict[str, ObsKey], **facts: Any
    ) -> None:
        """Set Spec, extra columns and (no) attributes; `facts` are further fields of the Spec.

        Columns are described as they lie, and what `_read` needs is there: a few frames are looked at. Actions become
        vectors, whatever their shape; None is for none of a known name, see `Dataset.has_action`.
        """
        columns, odd = self.recognise({**extra, **observations})
        extra = {key: columns[key] for key in extra}
        observations, others, self.reasons = roles.split({key: columns[key] for key in observations}, odd)
        if not observations and not others:
            raise FlowleapError(f"'{self.path}' has no column beside '{ACTION}' to observe")
        if not observations:
            observations, others, self.must_choose = others, {}, roles.explain(self.reasons)
        self.has_action = action is not None
        action = ObsKey((1,)) if action is None else replace(action, shape=(action.size,))
        extra = {**extra, **others}
        self.extra = extra if action.dtype == "float32" else {**extra, ACTION: action}
        facts["source"] = {"dataset": self.path.name, **facts.get("source", {})}
        self.spec, self.attrs = Spec(observations, action_dim=action.size, **facts), {}

    def take_note(self, note: Any, where: str) -> None:
        """Take Spec, extra columns and attributes from what `Writer` noted; `where` is for messages."""
        with explain(f"{where} is damaged", KeyError, TypeError, ValueError, AttributeError):
            self.spec = Spec.from_dict(note["spec"], where)
            self.extra = {key: ObsKey(tuple(shape), dtype) for key, (shape, dtype) in note["extra"].items()}
            self.attrs = dict(note["attrs"])


class Writer(ABC):
    """Context manager that writes a dataset, which appears under its name when it is complete.

    Args:
        path: the new file or folder.
        spec: observation keys, shapes and dtypes, the action dimension, the rate and where the data come from.
        attrs: facts that the Spec has no place for; `self.attrs` may be changed until the block ends. Values that
            JSON does not know are written as lists or strings.
        overwrite: replace an existing dataset of the same format, once the new one is complete.
        extra: columns that are no observations, see `columns.Layout`.

    Raises:
        FlowleapError: `path` exists, a key cannot be a column name, an episode does not fit the Spec, nothing
            was added, or the file system refuses (full disk, permissions).
    """

    kind: ClassVar[str]
    """What is written, for messages."""
    _job: str | None = None
    """Names the work where another process can continue it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: Spec,
        attrs: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        extra: Mapping[str, ObsKey] | None = None,
    ) -> None:
        self.spec, self.attrs, self._extra = spec, dict(attrs or {}), dict(extra or {})
        self._layout = Layout(spec, extra)
        self._images = {key for key, obs in spec.observations.items() if obs.kind == "rgb"}
        self._prepare()
        self.path, self._overwrite = Path(path).expanduser(), overwrite
        self._check_name()
        self._temporary = temporary_name(
            self.path, self._job
        ).absolute()  # of a killed process, for the same job
        self.n_episodes = self.n_frames = 0

    @staticmethod
    @abstractmethod
    def is_kind(path: Path) -> bool:
        """Whether an existing path is one of those, and may be overwritten."""

    def _prepare(self) -> None:  # noqa: B027, most need nothing
        """Import packages, and refuse what the format cannot hold."""

    @abstractmethod
    def _open(self) -> None:
        """Begin, under the temporary name."""

    @abstractmethod
    def _write(self, columns: Episode, length: int, seed: int | None) -> None:
        """Take one episode of the right columns and dtypes."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what comes after the last episode."""

    @abstractmethod
    def _close(self) -> None:
        """Close the files, whether the work is done or given up."""

    def _keeps(self, kind: type[BaseException] | None) -> bool:
        """Whether the work is given its name after such an exception."""
        return kind is None

    def _check_name(self) -> None:
        """Raise unless `path` is free, or may be replaced."""
        if not self.path.name:
            raise FlowleapError(f"'{self.path}' is no name for a dataset; use something like data/pusht.zarr")
        if not self.path.exists():
            return
        if not self._overwrite:
            raise FlowleapError(f"'{self.path}' exists already; choose another name or say overwrite=true")
        if not self.is_kind(self.path):
            raise FlowleapError(f"'{self.path}' is not a {self.kind}: it will not be overwritten")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the file system refuses into an error that names the dataset."""
        try:
            yield
        except OSError as error:
            raise FlowleapError(f"cannot write dataset '{self.path}': {error.strerror or error}") from error

    def _note(self) -> dict[str, Any]:
        """What a store knows and another format has no place for; `Source.take_note` reads it."""
        extra = {key: [list(column.shape), column.dtype] for key, column in self._extra.items()}
        return {"spec": self.spec.to_dict(), "extra": extra, "attrs": self.attrs}

    def add(self, episode: Mapping[str, ArrayLike], seed: int | None = None) -> None:
        """Append one episode: key -> [T, *shape], equal T >= 1 for every key of the Spec and `action`."""
        columns = self._layout.fit(episode, f"episode {self.n_episodes}")
        length = len(columns[ACTION])
        with self._errors():
            self._write(columns, length, seed)
        self.n_episodes += 1
        self.n_frames += length

    def __enter__(self) -> Self:
        with self._errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        keeps = self._keeps(kind)
        try:
            with self._errors():
                try:
                    if kind is None and not self.n_episodes:
                        raise FlowleapError(f"no episode was added, '{self.path}' is not written")
                    if keeps:
                        self._finish()
                finally:
                    self._close()
                if keeps:
                    self._check_name()
                    with atomic(self.path, self._temporary):
                        pass
        finally:
            # A job that SIGTERM ends is not given up: the next process goes on with it.
            if not self._job or kind is None or not issubclass(kind, SystemExit):
                remove(self._temporary)
