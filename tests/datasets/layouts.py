"""The same small recording in every format that is read, written as other tools write it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

Episodes = Sequence[Mapping[str, np.ndarray]]
"""Column -> [T, ...] of each episode; the formats' own names of actions are added by them."""


def write_zarr(path: Path, episodes: Episodes) -> Path:
    """A replay buffer without a Spec."""
    import zarr

    group = zarr.open_group(path, mode="w")
    for key in episodes[0]:
        group.create_array(f"data/{key}", data=np.concatenate([e[key] for e in episodes]))
    group.create_array("meta/episode_ends", data=np.cumsum([len(_any(e)) for e in episodes]))
    return path


def write_npz(path: Path, episodes: Episodes) -> Path:
    """One flat file."""
    file = path.with_suffix(".npz")
    columns = {key: np.concatenate([e[key] for e in episodes]) for key in episodes[0]}
    np.savez(file, episode_ends=np.cumsum([len(_any(e)) for e in episodes]), **columns)
    return file


def write_folder(path: Path, episodes: Episodes) -> Path:
    """One .npz an episode."""
    path.mkdir()
    for i, episode in enumerate(episodes):
        np.savez(path / f"{i}.npz", **episode)
    return path


def write_robomimic(path: Path, episodes: Episodes) -> Path:
    """data/demo_N: `action` becomes actions, the others lie in obs/."""
    import h5py

    with h5py.File(path.with_suffix(".hdf5"), "w") as file:
        for i, episode in enumerate(episodes):
            for key, values in episode.items():
                file[f"data/demo_{i}/{'actions' if key == 'action' else f'obs/{key}'}"] = values
            file[f"data/demo_{i}"].attrs["num_samples"] = len(_any(episode))
    return path.with_suffix(".hdf5")


def write_minari(path: Path, episodes: Episodes) -> Path:
    """Observations one frame longer than actions; without `action`, made-up actions."""
    import h5py

    (path / "data").mkdir(parents=True)
    about = {"total_episodes": len(episodes), "total_steps": sum(len(_any(e)) for e in episodes)}
    (path / "data/metadata.json").write_text(json.dumps(about))
    with h5py.File(path / "data/main_data.hdf5", "w") as file:
        for i, episode in enumerate(episodes):
            length = len(_any(episode))
            group = file.create_group(f"episode_{i}")
            group.attrs["total_steps"] = length
            for key, values in ({"action": np.zeros((length, 1))} | dict(episode)).items():
                if key == "action":
                    group["actions"] = values
                else:
                    group[f"observations/{key}"] = np.concatenate([values, values[-1:]])
            for name in ("rewards", "terminations", "truncations"):
                group[name] = np.zeros(length)
    return path


def write_lerobot(path: Path, episodes: Episodes) -> Path:
    """v2.1, one table an episode; features are named as the columns, without a prefix."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (path / "meta").mkdir(parents=True)
    (path / "data").mkdir()
    lines = []
    for i, episode in enumerate(episodes):
        length = len(_any(episode))
        derived = {"timestamp": np.arange(length) / 10, "frame_index": np.arange(length)}
        derived |= {"episode_index": np.full(length, i)}
        rows = {key: pa.array(values.tolist()) for key, values in (derived | dict(episode)).items()}
        pq.write_table(pa.table(rows), path / f"data/{i}.parquet")
        lines.append(json.dumps({"episode_index": i, "length": length}))
    (path / "meta/episodes.jsonl").write_text("\n".join(lines))
    (path / "meta/tasks.jsonl").write_text("")
    first = {key: values for key, values in episodes[0].items() if key not in derived}
    features = {
        key: {"dtype": values.dtype.name, "shape": list(values.shape[1:]) or [1]}
        for key, values in first.items()
    }
    about = {"codebase_version": "v2.1", "fps": 10, "data_path": "data/{episode_index}.parquet"}
    (path / "meta/info.json").write_text(json.dumps(about | {"features": features}))
    return path


LAYOUTS: dict[str, Callable[[Path, Episodes], Path]] = {
    "zarr": write_zarr,
    "npz": write_npz,
    "folder": write_folder,
    "robomimic": write_robomimic,
    "minari": write_minari,
    "lerobot": write_lerobot,
}


def _any(episode: Mapping[str, np.ndarray]) -> np.ndarray:
    return next(iter(episode.values()))
