"""Shared fixtures: where the real demonstrations are, and small policies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported, and for the processes that tests start: on a busy machine, several threads spend their time
# waiting for each other (see `policy/training/processes.py`).
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

ROOT = Path(__file__).resolve().parent.parent
# For `gaussian`, `browser`, `layouts`, `results` and `worker_tasks`.
sys.path += [str(ROOT / "tests" / folder) for folder in ("policy", "scripts", "datasets", "envs")]


@pytest.fixture(scope="session")
def pusht_human() -> Path:
    """The human Push-T demonstrations, or skip."""
    data = Path(os.environ.get("FLOWLEAP_DATA", ROOT.parent / "shared" / "data"))
    path = data / "pusht_human" / "pusht_cchi_v7_replay.zarr"
    if not path.is_dir():
        pytest.skip(f"needs {path} (set FLOWLEAP_DATA)")
    return path


@pytest.fixture(scope="session")
def renders() -> None:
    """Skip where no OpenGL backend works."""
    from flowleap.envs.rendering import choose_gl
    from flowleap.policy.core.errors import FlowleapError

    try:
        choose_gl()
    except FlowleapError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def few_timed_calls() -> Iterator[None]:
    """Each export times its policy for a second; here nobody reads the figures."""
    from flowleap.policy.deploy import parity

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "_LATENCY_SECONDS", 0.02)
        yield
