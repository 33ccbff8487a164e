"""Speed and memory of `flowleap convert`: low-dim robomimic HDF5 to zarr, beside a plain h5py and zarr loop.

Every measurement is a process of its own on a fresh synthetic file in the page cache. Memory is the peak resident
size, at the full size and at a tenth of it: it does not grow with the file.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from flowleap.policy.core.errors import optional_import
from flowleap.scripts.cli.run import compose
from flowleap.scripts.common import apart, peak_megabytes, say, show_table, timed
from flowleap.scripts.convert import main

_ARM = {"obs/robot0_eef_pos": 3, "obs/robot0_eef_quat": 4, "obs/robot0_gripper_qpos": 2}
COLUMNS = {**_ARM, "obs/object": 14, "obs/robot0_joint_pos": 7, "actions": 7}
_BLOCK = 64 * 2**20


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Run the measurements, print them, return them."""
    jobs = {"flowleap convert": convert, "h5py + zarr loop": plain_loop}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    with tempfile.TemporaryDirectory(dir=cfg.scratch) as folder:
        large, small, out = (Path(folder) / name for name in ("large.hdf5", "small.hdf5", "out.zarr"))
        megabytes = write_synthetic(large, cfg.megabytes, cfg.frames_an_episode)
        write_synthetic(small, cfg.megabytes / 10, cfg.frames_an_episode)
        tenth = apart(_measured, convert, small, out)["peak_mb"]
        for _ in range(cfg.repeats):  # in turn, so that a slow moment of the machine hits both
            for name, job in jobs.items():
                shutil.rmtree(out)
                runs[name].append(apart(_measured, job, large, out))
    whole = max(run["peak_mb"] for run in runs["flowleap convert"])
    per_cpu_s, per_wall_s = (
        {name: megabytes / min(run[clock] for run in own) for name, own in runs.items()}
        for clock in ("cpu", "wall")
    )
    rows = [(name, f"{per_cpu_s[name]:.0f}", f"{per_wall_s[name]:.0f}") for name in runs]
    size = f"{megabytes:,.0f} MB of low-dim HDF5, {cfg.frames_an_episode} frames an episode"
    show_table(("", "MB per CPU second", "MB per second"), rows, size)
    say(f"peak memory: {whole:.0f} MB, {tenth:.0f} MB for a tenth of the file")
    return {
        "megabytes": megabytes,
        "frames_an_episode": cfg.frames_an_episode,
        "mb_per_cpu_s": per_cpu_s,
        "mb_per_wall_s": per_wall_s,
        "runs": runs,
        "peak_mb": {"whole file": whole, "a tenth of it": tenth},
    }


def write_synthetic(path: Path, megabytes: float, frames: int) -> float:
    """Write random walks as a robomimic file of about this size; return the size of its arrays in MB (1e6 bytes)."""
    h5py = optional_import("h5py", extra="formats")
    rng = np.random.default_rng(0)
    columns = {name: np.cumsum(rng.normal(size=(frames, n)), axis=0) for name, n in COLUMNS.items()}
    columns["actions"] = rng.uniform(-1, 1, columns["actions"].shape)
    size = sum(values.nbytes for values in columns.values()) / 1e6
    count = max(1, round(megabytes / size))
    with h5py.File(path, "w") as file:
        for i in range(count):
            group = file.create_group(f"data/demo_{i}")
            group.attrs["num_samples"] = frames
            for name, values in columns.items():
                group.create_dataset(name, data=values + i)
    return count * size


def convert(source: Path, out: Path) -> None:
    """Do what `flowleap convert source=... out=...` does."""
    main(compose("convert", [f"source='{source}'", f"out='{out}'"]))


def plain_loop(source: Path, out: Path) -> None:
    """Do what a short script would: no checks, no checksums, no way to continue; zarr's default compression."""
    import zarr

    h5py = optional_import("h5py", extra="formats")
    group = zarr.create_group(out)
    arrays = {
        name: group.create_array(f"data/{name}", shape=(0, n), chunks=(2**21 // (8 * n), n), dtype="f8")
        for name, n in COLUMNS.items()
    }
    with h5py.File(source) as file:
        demos = list(file["data"].values())
        at_once = -(-_BLOCK // sum(demos[0][name].nbytes for name in COLUMNS))
        for start in range(0, len(demos), at_once):  # about 64 MiB
            block = [{name: demo[name][()] for name in COLUMNS} for demo in demos[start : start + at_once]]
            for name, array in arrays.items():
                array.append(np.concatenate([episode[name] for episode in block]))


def _measured(job: Callable[[Path, Path], None], source: Path, out: Path) -> dict[str, float]:
    _, wall, cpu = timed(job, source, out)
    return {"cpu": cpu, "wall": wall, "peak_mb": peak_megabytes()}
