"""Which versions of which packages are installed."""

from __future__ import annotations

import importlib
import importlib.metadata
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from flowleap.policy.core.errors import optional_import as optional_import


def package_versions(*packages: str) -> dict[str, str | None]:
    """Return distribution name -> installed version, None where absent."""
    return {package: _version(package) for package in packages}


@cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def flowleap_version() -> str:
    """Installed version, or `unknown` when run from a tree that is not installed."""
    try:
        return version("flowleap")
    except PackageNotFoundError:
        return "unknown"
