"""Files and folders that appear under their name only when they are complete."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.versions import package_versions

_SIMULATORS = ("gymnasium", "gym-pusht", "pymunk", "metaworld", "gymnasium-robotics", "robosuite", "mujoco")


def write_results(path: str | os.PathLike[str], results: Mapping[str, Any]) -> Path:
    """Write `results` as JSON, atomically, beside package versions, platform and date; return the path."""
    path = Path(path)
    versions = package_versions("flowleap", "numpy", *_SIMULATORS, "torch", "onnxruntime")
    origin = {
        "versions": {name: version for name, version in versions.items() if version},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps({**results, "origin": origin}, indent=1, allow_nan=False)
    with atomic(path) as temporary:
        temporary.write_text(text + "\n")
    return path


@contextmanager
def atomic(path: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Lend a hidden name beside `path` for a file or a folder, and give what is there the final name at the end.

    What had the name before is replaced; the folder of `path` is created. If the block fails, nothing stays
    under the hidden name, which may be the caller's, see `temporary_name`; a job's is kept when it is killed.
    """
    temporary = temporary or temporary_name(path)
    retired = temporary.with_name(f"{temporary.name}.old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir():
            os.replace(path, retired)
        os.replace(temporary, path)
    finally:
        if retired.exists() and not path.exists():
            os.replace(retired, path)
        remove(temporary)
        remove(retired)


def temporary_name(path: Path, job: str | None = None) -> Path:
    """Return a hidden name beside `path`; the same `job` finds the same one again. The suffix stays."""
    tag = hashlib.sha256(job.encode()).hexdigest()[:8] if job else uuid.uuid4().hex[:8]
    return path.with_name(f".{path.stem}.{tag}.tmp{path.suffix}")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there and can be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Create directory `path` with the contents that `fill(temporary)` writes; all or nothing.

    On a full disk or in a place that is not writable, raise `FlowleapError` and leave nothing half-written.
    """
    try:
        with atomic(path) as temporary:
            temporary.mkdir()
            fill(temporary)
    except (OSError, SafetensorError) as error:
        raise FlowleapError(
            f"cannot write {path}: {error}; free some space or choose another place"
        ) from error


@contextmanager
def complete_file(path: Path, option: str) -> Iterator[Path]:
    """`atomic`, whose errors name `option`, which `path` was given as."""
    try:
        with atomic(path) as temporary:
            yield temporary
    except OSError as error:
        raise FlowleapError(f"cannot write {option}={path}: {error.strerror or error}") from error
