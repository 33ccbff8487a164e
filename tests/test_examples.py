"""Every program in `examples/` runs to its end, as a user starts it, and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# serve_client.py needs a server: tests/policy/test_serve.py.
EXAMPLES = sorted(
    file
    for file in (Path(__file__).resolve().parent.parent / "examples").glob("*.py")
    if file.stem != "serve_client"
)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines
    assert not list(tmp_path.iterdir())  # what it writes goes with it
    if example.stem == "train_on_arrays":
        *steps, distance, walks = lines
        assert len(steps) == 4
        assert float(distance.split()[5]) < 2
        assert 2 <= int(walks.split()[0]) <= 18  # both sides
    if example.stem == "new_backbone":
        assert lines[-1] == "actions: (1, 4, 2)"
