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

_MODULES = {
    "hydra-core": "hydra",
    "gym-pusht": "gym_pusht",
    "imageio-ffmpeg": "imageio_ffmpeg",
    "pillow": "PIL",
}


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
    broken = []
    sections = [
        machine(),
        packages(),
        torch_devices(),
        rendering() if cfg.gl else (),
        storage(Path(cfg.run_dir)),
    ]
    for section in sections:
        for check in section:
            colour = "red" if check.broken else "yellow" if check.remedy else "green"
            table.add_row(escape(check.name), f"[{colour}]{escape(check.found)}[/]", escape(check.remedy))
            if check.broken:
                broken.append(check.name)
        table.add_section()
    console.print(table)
    if broken:
        raise FlowleapError(
            f"broken core packages: {', '.join(broken)}; pip install --force-reinstall flowleap"
        )
    console.print("\nflowleap can train and evaluate here.")


def machine() -> Iterator[Check]:
    """Interpreter, platform, cores."""
    yield Check("flowleap", metadata.version("flowleap"))
    yield Check("python", f"{platform.python_version()} ({sys.executable})")
    yield Check("platform", platform.platform())
    yield Check("cores", f"{usable_cores()} usable of {os.cpu_count()}")


def usable_cores() -> int:
    """Cores this process may run on, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def packages() -> Iterator[Check]:
    """Every requirement of the flowleap distribution: core packages are imported, optional ones looked up."""
    extras = metadata.metadata("flowleap").get_all("Provides-Extra") or []
    requirements = [Requirement(text) for text in metadata.requires("flowleap") or []]
    requirements = [r for r in requirements if r.name != "flowleap"]  # extras that stand for others
    for extra in (None, *extras):
        for requirement in requirements:
            marker = requirement.marker
            core = marker is None or marker.evaluate({"extra": ""})
            if extra is None and core:
                yield core_package(requirement)
            elif extra is not None and not core and marker is not None and marker.evaluate({"extra": extra}):
                yield optional_package(requirement, extra)


def core_package(requirement: Requirement) -> Check:
    """Import a package that flowleap cannot do without and compare its version."""
    name = requirement.name
    try:
        importlib.import_module(_MODULES.get(name, name))
        version = metadata.version(name)
    except Exception as error:  # a broken binary package raises anything
        first = (str(error).splitlines() or [""])[0]
        return Check(name, f"{type(error).__name__}: {first}", f"pip install '{requirement}'", broken=True)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(name, f"{version}, needs {requirement.specifier}", f"pip install '{requirement}'", True)
    return Check(name, version)


def optional_package(requirement: Requirement, extra: str) -> Check:
    """Look an optional package up and compare its version."""
    name, remedy = f"[{extra}] {requirement.name}", f"pip install 'flowleap[{extra}]'"
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(name, "not installed", remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(name, f"{version}, needs {requirement.specifier}", remedy)
    return Check(name, version)


def torch_devices() -> Iterator[Check]:
    """Devices that torch sees and whether they know bfloat16."""
    try:
        import torch
    except Exception:  # reported among the packages
        return
    yield Check("device cpu", f"{torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Check(
            f"device cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bf16}"
        )
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
    folder = run_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            yield Check(f"run_dir {run_dir}", "writable")
    except OSError as error:
        yield Check(
            f"run_dir {run_dir}", f"not writable: {error.strerror}", "choose another with run_dir=..."
        )
    free = shutil.disk_usage(folder).free / 2**30
    yield Check(
        "disk", f"{free:.0f} GiB free", "" if free >= 5 else "free some: a run with videos may need 5 GiB"
    )


if __name__ == "__main__":
    sys.exit(run_verb("doctor", sys.argv[1:]))
