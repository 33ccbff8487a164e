"""The examples run, and do what they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def output_of(name: str) -> str:
    """What an example prints, in a process of its own: it may register names."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_train_on_arrays() -> None:
    *steps, distance, walks = output_of("train_on_arrays").splitlines()
    assert len(steps) == 4
    assert float(distance.split()[5]) < 2
    assert 2 <= int(walks.split()[0]) <= 18  # both sides


def test_new_backbone() -> None:
    assert "actions: (1, 4, 2)" in output_of("new_backbone")
