"""A file or folder that appears under its name only when it is complete."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import atomic, remove, temporary_name


class Target:
    """The place where a writer works, and its move to the final name.

    Args:
        path: the final name.
        overwrite: replace what is there, once the new one is complete.
        kind: what a writer of this kind leaves behind, for messages ("zarr store").
        is_kind: whether an existing path is one of those; nothing else is ever overwritten.
        job: names the work; the same job finds the same `temporary` again, and with it what a killed process left.

    Attributes:
        path: the final name.
        temporary: a hidden name beside it.

    Raises:
        FlowleapError: the name is unusable or taken.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        overwrite: bool,
        kind: str,
        is_kind: Callable[[Path], bool],
        job: str | None = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self._overwrite, self._kind, self._is_kind = overwrite, kind, is_kind
        self.check()
        self.temporary = temporary_name(self.path, job)

    def check(self) -> None:
        """Raise unless `path` is free, or may be replaced."""
        if not self.path.name:
            raise FlowleapError(f"'{self.path}' is no name for a dataset; use something like data/pusht.zarr")
        if not self.path.exists():
            return
        if not self._overwrite:
            raise FlowleapError(f"'{self.path}' exists already; choose another name or say overwrite=true")
        if not self._is_kind(self.path):
            raise FlowleapError(f"'{self.path}' is not a {self._kind}: it will not be overwritten")

    def publish(self) -> None:
        """Give the finished work its name."""
        self.check()
        with atomic(self.path, self.temporary):
            pass

    def discard(self) -> None:
        """Remove unfinished work; nothing happens where there is none."""
        remove(self.temporary)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the file system refuses into an error that names the dataset."""
        try:
            yield
        except OSError as error:
            raise FlowleapError(f"cannot write dataset '{self.path}': {error.strerror or error}") from error
