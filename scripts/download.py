"""Fetch public demonstrations: robomimic (Hugging Face Hub) and Push-T (Diffusion Policy).

flowleap download                          lists what there is
flowleap download robomimic/lift_ph        writes data/robomimic/lift_ph.hdf5
flowleap download pusht                    writes data/pusht/, with the zarr store in it

A download that was interrupted goes on when the same command is given again. Proxies are those of the environment
(HTTPS_PROXY). The files are compared with the checksum that their publisher names, where there is one; where they came
from stands beside them in NAME.source.json.
"""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from flowleap.datasets.download import download, unpack
from flowleap.datasets.public_files import PUBLIC, Public
from flowleap.policy.core.errors import FlowleapError, UsageError, suggest
from flowleap.scripts.cli.main import run_verb


def main(cfg: DictConfig) -> None:
    """Fetch `cfg.name` into `cfg.out`, or list what there is."""
    if cfg.name is None:
        for name, public in PUBLIC.items():
            print(f"  {name:<27}  {public.about}")
        return
    name = str(cfg.name)
    if name not in PUBLIC:
        raise UsageError(
            f"no download '{name}'{suggest(name, PUBLIC)} (`flowleap download` lists them; your own files need none: "
            "dataset=PATH)"
        )
    public = PUBLIC[name]
    final = Path(cfg.out).expanduser() / (name if public.suffix == ".zip" else f"{name}{public.suffix}")
    if final.exists():
        print(f"{final} is there already")
    else:
        _download(public, final)
    print(f"flowleap inspect dataset={_dataset(final)}")


def _download(public: Public, final: Path) -> None:
    """Fetch a file, with a progress bar on a terminal, and unpack it if it is a zip."""
    packed = public.suffix == ".zip"
    target = final.with_name(f"{final.name}{public.suffix}") if packed else final
    console = Console(stderr=True)
    parts = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    quiet = not console.is_terminal
    with Progress("{task.description}", *parts, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task(final.name, total=None)
        if not (packed and target.exists()):  # one that could not be unpacked, for want of space
            download(public.file, target, lambda here, total: bar.update(task, completed=here, total=total))
    if packed:
        unpack(target, final)
    print(f"{final}: {public.about}")


def _dataset(final: Path) -> Path:
    """The dataset in what was fetched: the file, or the zarr store inside the folder."""
    if final.is_file():
        return final
    stores = sorted(path for path in final.rglob("*.zarr") if path.is_dir())
    if not stores:
        raise FlowleapError(f"'{final}' holds no zarr store: remove the folder and download again")
    return stores[0]


if __name__ == "__main__":
    sys.exit(run_verb("download"))
