"""Files and folders that appear under their name only when they are complete."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.versions import package_versions

_PACKAGES = (
    "flowleap",
    "numpy",
    "gymnasium",
    "gym-pusht",
    "pymunk",
    "metaworld",
    "gymnasium-robotics",
    "robosuite",
    "mujoco",
    "torch",
    "onnxruntime",
)


def write_results(path: str | os.PathLike[str], results: Mapping[str, Any]) -> Path:
    """Write `results` as JSON, atomically, beside package versions, platform and date; return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = {
        "versions": {name: version for name, version in package_versions(*_PACKAGES).items() if version},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps({**results, "origin": origin}, indent=1, allow_nan=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)
    return path


def write_directory(path: Path, fill: Callable[[Path], None]) -> None:
    """Create directory `path` with the contents that `fill(temporary)` writes; all or nothing.

    Raises:
        FlowleapError: the disk is full or the place is not writable; nothing half-written remains.
    """
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}")
    retired = path.with_name(f".{path.name}.old{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        fill(temporary)
        if path.exists():
            os.replace(path, retired)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise FlowleapError(
            f"cannot write {path}: {error}; free some space or choose another place"
        ) from error
    finally:
        if retired.exists() and not path.exists():
            os.replace(retired, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


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
