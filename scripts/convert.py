"""Rewrite a dataset as a flowleap store: zarr v3, compressed, with checksums and its Spec.

Reads whatever flowleap reads, episode by episode. Float images that hold whole numbers from 0 to 255 become
uint8, a quarter of the memory. `keys=[...]` keeps some of the observation columns; `task=pusht/keypoints`
maps the recorded columns to that task's observations instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from flowleap.datasets.episodes import EpisodeStore
from flowleap.datasets.writer import ACTION, NO_SEED, EpisodeWriter
from flowleap.envs.registry import make_task
from flowleap.policy.spec import FlowleapError, Spec
from flowleap.scripts.cli import run_verb

Columns = dict[str, NDArray]


def main(cfg: DictConfig) -> None:
    """Write `cfg.source` to `cfg.out`."""
    store = EpisodeStore(cfg.source, fill_missing=cfg.fill_missing)
    spec, keys, transform = _plan(store, cfg)
    if cfg.control_hz:
        spec = replace(spec, control_hz=float(cfg.control_hz))
    if cfg.action_convention:
        spec = replace(spec, action_convention=cfg.action_convention)
    console = Console(stderr=True)
    episodes = track(
        range(store.n_episodes),
        "converting",
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with EpisodeWriter(cfg.out, spec, store.attrs, cfg.overwrite, keep_interrupted=False) as writer:
        for index in episodes:
            columns = transform(store.episode(index, [*keys, ACTION]))
            for key, obs in spec.observations.items():
                if obs.kind == "rgb":
                    columns[key] = to_uint8(columns[key], f"episode {index}: '{key}'")
            seed = NO_SEED if store.episode_seeds is None else int(store.episode_seeds[index])
            writer.add(columns, None if seed == NO_SEED else seed)
    print(f"{writer.path}: {writer.n_episodes} episodes, {writer.n_frames} frames")
    print(spec.summary())


def _plan(
    store: EpisodeStore, cfg: DictConfig
) -> tuple[Spec, list[str], Callable[[Mapping[str, NDArray]], Columns]]:
    """Return the Spec to write, the observation columns to read, and what maps them to the Spec's keys."""
    if cfg.task:
        if cfg["keys"] is not None:
            raise FlowleapError(
                "say task=... or keys=[...], not both: the task decides which columns are read"
            )
        task = make_task(cfg.task.name, **cfg.task.get("kwargs", {}))
        if task.from_recorded is not None:
            return task.spec, [key for key in task.recorded_keys if key != ACTION], task.from_recorded
        return task.spec, list(task.spec.observations), dict
    keys = None if cfg["keys"] is None else list(cfg["keys"])
    spec = store.infer_spec(keys)
    if store.spec is not None:
        known = {key: obs for key, obs in store.spec.observations.items() if key in spec.observations}
        spec = replace(store.spec, observations=spec.observations | known)
    return spec, list(spec.observations), dict


def to_uint8(images: NDArray, where: str) -> NDArray[np.uint8]:
    """Return images as uint8; raise unless every value is a whole number from 0 to 255."""
    with np.errstate(invalid="ignore"):
        cast = images.astype(np.uint8)
    if not np.array_equal(cast, images):
        raise FlowleapError(
            f"{where} is an image with values other than whole numbers 0..255 "
            f"({images.min():g} to {images.max():g}); leave it out with keys=[...]"
        )
    return cast


if __name__ == "__main__":
    sys.exit(run_verb("convert", sys.argv[1:]))
