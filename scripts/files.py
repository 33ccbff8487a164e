"""A file that appears under its name only when it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flowleap.policy.spec import FlowleapError


@contextmanager
def complete_file(path: Path, option: str) -> Iterator[Path]:
    """Lend a temporary name beside `path`, and give it the final one if the block ends well.

    Raises:
        FlowleapError: the file system refuses; the message names `option`, which `path` was given as.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise FlowleapError(f"cannot write {option}={path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
