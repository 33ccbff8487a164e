"""gymnasium-robotics, imported without its noise."""

from __future__ import annotations

import contextlib
import io
from typing import Any

from flowleap.policy.core.errors import optional_import


def import_robotics(module: str) -> Any:
    """Import `gymnasium_robotics.<module>` without the notice it prints; raise naming the extra if it is missing."""
    with contextlib.redirect_stderr(io.StringIO()):
        optional_import("gymnasium_robotics", extra="robotics")
        return optional_import(f"gymnasium_robotics.{module}", extra="robotics")
