"""Rendering beside torch: two libraries with an LLVM each in one process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flowleap.envs.rendering import choose_gl
from flowleap.policy.core.errors import FlowleapError

PROGRAM = """
from flowleap.envs.rendering import _self_test, choose_gl
_self_test(choose_gl())
import triton
print("both")
"""


def test_triton_can_be_imported_after_rendering() -> None:
    pytest.importorskip("triton", reason="comes with torch on Linux")
    try:
        choose_gl()
    except FlowleapError as error:
        pytest.skip(str(error))
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200, check=False
    )
    assert (result.returncode, result.stdout) == (0, "both\n"), result.stderr
