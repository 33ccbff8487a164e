"""Speed and memory of `flowleap convert`: low-dim robomimic HDF5 to zarr, beside a plain h5py and zarr loop.

Every measurement is a process of its own on a fresh synthetic file in the page cache. Memory is the peak resident
size, at the full size and at a tenth of it: it does not grow with the file.
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from flowleap.policy.core.errors import optional_import

KEYS = {
    "robot0_eef_pos": 3,
    "robot0_eef_quat": 4,
    "robot0_gripper_qpos": 2,
    "object": 14,
    "robot0_joint_pos": 7,
}
ACTION_DIM = 7
_BLOCK = 64 * 2**20


class Measured(NamedTuple):
    """Seconds of CPU and wall clock, and the peak resident size in MB."""

    cpu: float
    wall: float
    peak_mb: float


def measure(cfg: DictConfig) -> dict[str, Any]:
    """Run the measurements, print them, return them."""
    seconds: dict[str, list[Measured]] = {"flowleap convert": [], "h5py + zarr loop": []}
    work = {"flowleap convert": convert, "h5py + zarr loop": plain_loop}
    with tempfile.TemporaryDirectory(dir=cfg.scratch) as folder:
        large, small = Path(folder) / "large.hdf5", Path(folder) / "small.hdf5"
        megabytes = write_synthetic(large, cfg.megabytes, cfg.frames_an_episode)
        write_synthetic(small, cfg.megabytes / 10, cfg.frames_an_episode)
        peak_small = apart(convert, small, Path(folder) / "small.zarr").peak_mb
        for turn in range(cfg.repeats):  # in turn, so that a slow moment of the machine hits both
            for name, job in work.items():
                out = Path(folder) / f"{turn}.{len(name)}.zarr"
                seconds[name].append(apart(job, large, out))
                shutil.rmtree(out)
    best = {name: min(runs, key=lambda run: run.cpu) for name, runs in seconds.items()}
    result = {
        "megabytes": megabytes,
        "frames_an_episode": cfg.frames_an_episode,
        "mb_per_cpu_s": {name: megabytes / run.cpu for name, run in best.items()},
        "mb_per_wall_s": {name: megabytes / min(run.wall for run in runs) for name, runs in seconds.items()},
        "runs": {name: [run._asdict() for run in runs] for name, runs in seconds.items()},
        "peak_mb": {
            "whole file": max(run.peak_mb for run in seconds["flowleap convert"]),
            "a tenth of it": peak_small,
        },
    }
    show(Console(), result)
    return result


def write_synthetic(path: Path, megabytes: float, frames: int) -> float:
    """Write random walks as a robomimic file of about this size; return the size of its arrays in MB (1e6 bytes)."""
    h5py = optional_import("h5py", extra="formats")
    rng = np.random.default_rng(0)
    walks = {f"obs/{key}": np.cumsum(rng.normal(size=(frames, n)), axis=0) for key, n in KEYS.items()}
    walks["actions"] = rng.uniform(-1, 1, (frames, ACTION_DIM))
    size = sum(values.nbytes for values in walks.values()) / 1e6
    count = max(1, round(megabytes / size))
    with h5py.File(path, "w") as file:
        for i in range(count):
            group = file.create_group(f"data/demo_{i}")
            group.attrs["num_samples"] = frames
            for name, values in walks.items():
                group.create_dataset(name, data=values + i)
    return count * size


def convert(source: Path, out: Path) -> None:
    """Do what `flowleap convert source=... out=...` does."""
    from flowleap.scripts.cli.run import compose
    from flowleap.scripts.convert import main

    main(compose("convert", [f"source='{source}'", f"out='{out}'"]))


def plain_loop(source: Path, out: Path) -> None:
    """Do what a short script would: no checks, no checksums, no way to continue; zarr's default compression."""
    import zarr

    h5py = optional_import("h5py", extra="formats")
    group = zarr.create_group(out)
    with h5py.File(source) as file:
        data = file["data"]
        names = [f"obs/{key}" for key in KEYS] + ["actions"]
        arrays: dict[str, Any] = {}

        def flush(block: list[dict[str, NDArray]]) -> None:
            for name in names:
                values = np.concatenate([episode[name] for episode in block])
                if name not in arrays:
                    shape, chunks = (0, values.shape[1]), (2**21 // (8 * values.shape[1]), values.shape[1])
                    arrays[name] = group.create_array(
                        f"data/{name}", shape=shape, chunks=chunks, dtype=values.dtype
                    )
                arrays[name].append(values)

        for block in blocks({name: data[demo][name][()] for name in names} for demo in data):
            flush(block)


def blocks(episodes: Iterator[dict[str, NDArray]]) -> Iterator[list[dict[str, NDArray]]]:
    """Gather episodes into lists of about 64 MiB."""
    block: list[dict[str, NDArray]] = []
    size = 0
    for episode in episodes:
        block.append(episode)
        size += sum(values.nbytes for values in episode.values())
        if size >= _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def apart(job: Callable[[Path, Path], None], source: Path, out: Path) -> Measured:
    """Run a job in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_timed, (job, source, out))


def _timed(job: Callable[[Path, Path], None], source: Path, out: Path) -> Measured:
    cpu, wall = time.process_time(), time.perf_counter()
    job(source, out)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Measured(cpu, wall, peak / (1e6 if sys.platform == "darwin" else 1e3))


def show(console: Console, result: dict[str, Any]) -> None:
    """Print the result."""
    size = f"{result['megabytes']:,.0f} MB of low-dim HDF5, {result['frames_an_episode']} frames an episode"
    table = Table("", "MB per CPU second", "MB per second", title=size)
    for name, rate in result["mb_per_cpu_s"].items():
        table.add_row(name, f"{rate:.0f}", f"{result['mb_per_wall_s'][name]:.0f}")
    console.print(table)
    whole, tenth = result["peak_mb"]["whole file"], result["peak_mb"]["a tenth of it"]
    console.print(f"peak memory: {whole:.0f} MB, {tenth:.0f} MB for a tenth of the file", highlight=False)
