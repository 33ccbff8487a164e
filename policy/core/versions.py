"""Which versions of which packages are installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


def package_versions(*packages: str) -> dict[str, str | None]:
    """Return distribution name -> installed version, None where absent."""
    return {package: _version(package) for package in packages}


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def flowleap_version() -> str:
    """Installed version, or `unknown` when run from a tree that is not installed."""
    return _version("flowleap") or "unknown"
