"""Check this machine: versions, devices, rendering backends, optional parts and how to get them, disk.

The exit code is 0 unless a package that flowleap cannot do without is missing or broken.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig
from packaging.requirements import Requirement
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowleap.policy.core.errors import FlowleapError
from flowleap.scripts.cli.main import run_verb

_IMPORTED_AS = {"hydra-core": "hydra", "pillow": "PIL"}  # where it is not the package's name


class Check(NamedTuple):
    """One line: what was looked at, what was found, and what to do about it."""

    name: str
    found: str
    remedy: str = ""
    broken: bool = False


def main(cfg: DictConfig) -> None:
    """Print the checks; raise if a core package is broken."""
    console = Console(highlight=False)
    console.width = max(console.width, 110)
    table = Table("", "found", "remedy", box=None, title="flowleap doctor", title_justify="left")
    broken, graphics = [], rendering() if cfg.gl else ()
    for section in (machine(), packages(), torch_devices(), graphics, storage(Path(cfg.run_dir))):
        for check in section:
            colour = "red" if check.broken else "yellow" if check.remedy else "green"
            table.add_row(escape(check.name), f"[{colour}]{escape(check.found)}[/]", escape(check.remedy))
            if check.broken:
                broken.append(check.name)
        table.add_section()
    console.print(table)
    if broken:
        names = ", ".join(broken)
        raise FlowleapError(f"broken core packages: {names}; pip install --force-reinstall flowleap")
    console.print("\nflowleap can train and evaluate here.")


def machine() -> Iterator[Check]:
    """Interpreter, platform, cores."""
    yield Check("flowleap", metadata.version("flowleap"))
    yield Check("python", f"{platform.python_version()} ({sys.executable})")
    yield Check("platform", platform.platform())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("cores", f"{usable} usable of {os.cpu_count()}")


def packages() -> Iterator[Check]:
    """Every requirement of the flowleap distribution: core packages are imported, optional ones looked up."""
    requirements = [Requirement(text) for text in metadata.requires("flowleap") or []]
    requirements = [r for r in requirements if r.name != "flowleap"]  # extras that stand for others

    def of(extra: str) -> list[Requirement]:
        return [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})]

    core = of("")
    yield from map(core_package, core)
    for extra in metadata.metadata("flowleap").get_all("Provides-Extra") or []:
        yield from (optional_package(r, extra) for r in of(extra) if r not in core)


def core_package(requirement: Requirement) -> Check:
    """Import a package that flowleap cannot do without and compare its version."""
    name, remedy = requirement.name, f"pip install '{requirement}'"
    try:
        importlib.import_module(_IMPORTED_AS.get(name, name))
        version = metadata.version(name)
    except Exception as error:  # a broken binary package raises anything
        first = (str(error).splitlines() or [""])[0]
        return Check(name, f"{type(error).__name__}: {first}", remedy, broken=True)
    return _compared(Check(name, version, remedy, broken=True), requirement)


def optional_package(requirement: Requirement, extra: str) -> Check:
    """Look an optional package up and compare its version."""
    name, remedy = f"[{extra}] {requirement.name}", f"pip install 'flowleap[{extra}]'"
    try:
        return _compared(Check(name, metadata.version(requirement.name), remedy), requirement)
    except metadata.PackageNotFoundError:
        return Check(name, "not installed", remedy)


def _compared(check: Check, requirement: Requirement) -> Check:
    """A check that found a version: as it is if the version will not do, else without a remedy."""
    if requirement.specifier.contains(check.found, prereleases=True):
        return Check(check.name, check.found)
    return check._replace(found=f"{check.found}, needs {requirement.specifier}")


def torch_devices() -> Iterator[Check]:
    """Devices that torch sees and whether they know bfloat16."""
    try:
        import torch
    except Exception:  # reported among the packages
        return
    yield Check("device cpu", f"{torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        size = f"{properties.total_memory / 2**30:.0f} GiB"
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Check(f"device cuda:{index}", f"{properties.name}, {size}, {bf16}")
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build of torch"
        yield Check("device cuda", f"none ({built})")
    if torch.backends.mps.is_available():
        yield Check("device mps", "available")


def rendering() -> Iterator[Check]:
    """Rendering backends of mujoco, each tried; one that works is enough."""
    from flowleap.envs.rendering import choose_gl, probe_gl

    for backend, result in probe_gl().items():
        yield Check(f"GL {backend}", result)
    try:
        choose_gl()
    except FlowleapError as error:
        yield Check("videos", "no, everything else works without", str(error))


def storage(run_dir: Path) -> Iterator[Check]:
    """Whether runs can be written, and the space that is left."""
    folder, name = run_dir.absolute(), f"run_dir {run_dir}"
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield Check(name, "writable")
    except OSError as error:
        yield Check(name, f"not writable: {error.strerror}", "choose another with run_dir=...")
    free = shutil.disk_usage(folder).free / 2**30
    remedy = "" if free >= 5 else "free some: a run with videos may need 5 GiB"
    yield Check("disk", f"{free:.0f} GiB free", remedy)


if __name__ == "__main__":
    sys.exit(run_verb("doctor"))
