"""Small recordings in the layouts that people's tools leave: what docs/sources.md walks through.

Every recording is the same task: two joints and a gripper go to a goal; the action is the next position.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

EPISODES, LENGTH = 3, 24


def episodes(size: int = 3) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """State [T, size] and action [T, size] of each episode, float32; the last number is a gripper in [0, 1]."""
    rng = np.random.default_rng(0)
    for _ in range(EPISODES):
        start, goal = rng.uniform(-1, 1, (2, size))
        way = (
            start
            + (goal - start) * np.linspace(0, 1, LENGTH + 1)[:, None]
            + 0.002 * rng.normal(size=(LENGTH + 1, size))
        )
        way[:, -1] = (np.arange(LENGTH + 1) > LENGTH // 2).astype(float)
        yield way[:-1].astype(np.float32), way[1:].astype(np.float32)


def pictures(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 [T, H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 255, (LENGTH, height, width, 3), np.uint8)


def _lerobot(folder: Path, tables: list[dict[str, Any]], features: dict[str, Any], **facts: Any) -> None:
    """LeRobotDataset v2.1."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    one = {"shape": [1], "names": None}
    numbers = ("frame_index", "episode_index", "index", "task_index")
    features = (
        features
        | {"timestamp": {"dtype": "float32", **one}}
        | {n: {"dtype": "int64", **one} for n in numbers}
    )
    (folder / "meta").mkdir(parents=True)
    (folder / "data" / "chunk-000").mkdir(parents=True)
    for e, table in enumerate(tables):
        frames = np.arange(LENGTH)
        table["timestamp"] = (frames / 30).astype(np.float32)
        table |= {"frame_index": frames, "episode_index": np.full(LENGTH, e), "index": e * LENGTH + frames}
        table["task_index"] = np.zeros(LENGTH, np.int64)
        parquet.write_table(pa.table(table), folder / "data" / "chunk-000" / f"episode_{e:06d}.parquet")
    info = {
        "codebase_version": "v2.1",
        "total_episodes": EPISODES,
        "total_frames": EPISODES * LENGTH,
        "total_tasks": 1,
    }
    info |= {"chunks_size": 1000, "fps": 30, "features": features}
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    (folder / "meta" / "info.json").write_text(json.dumps(info | facts))
    lines = [
        json.dumps({"episode_index": e, "tasks": ["reach"], "length": LENGTH}) + "\n" for e in range(EPISODES)
    ]
    (folder / "meta" / "episodes.jsonl").write_text("".join(lines))
    (folder / "meta" / "tasks.jsonl").write_text('{"task_index": 0, "task": "reach"}\n')


def so101(folder: Path) -> None:
    """`lerobot-record` with an SO-101: six joints in degrees, one camera as mp4."""
    import av
    import pyarrow as pa

    tables, floats = [], pa.list_(pa.float32())
    for e, (state, action) in enumerate(episodes(6)):
        tables.append(
            {
                "observation.state": pa.array(list(state * 60), floats),
                "action": pa.array(list(action * 60), floats),
            }
        )
        file = folder / "videos" / "chunk-000" / "observation.images.front" / f"episode_{e:06d}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(file), "w") as container:
            stream: Any = container.add_stream("libx264", rate=Fraction(30))
            stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", {"g": "2"}
            for image in pictures(e):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    joints = [
        "shoulder_pan.pos",
        "shoulder_lift.pos",
        "elbow_flex.pos",
        "wrist_flex.pos",
        "wrist_roll.pos",
        "gripper.pos",
    ]
    vector = {"dtype": "float32", "shape": [6], "names": joints}
    video = {
        "dtype": "video",
        "shape": [48, 64, 3],
        "names": ["height", "width", "channels"],
        "info": {"video.fps": 30},
    }
    features = {"observation.state": vector, "action": vector, "observation.images.front": video}
    _lerobot(folder, tables, features, robot_type="so101_follower")


def openpi(folder: Path) -> None:
    """What openpi's converters write: `image`, `wrist_image`, `state`, `actions`, without a prefix."""
    import pyarrow as pa
    from PIL import Image

    def cell(image: np.ndarray) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    kind, floats = pa.struct([("bytes", pa.binary()), ("path", pa.string())]), pa.list_(pa.float32())
    tables = []
    for e, (state, action) in enumerate(episodes(7)):
        cameras = {
            name: pa.array(list(map(cell, pictures(i + e))), kind)
            for i, name in enumerate(("image", "wrist_image"))
        }
        tables.append(
            cameras | {"state": pa.array(list(state), floats), "actions": pa.array(list(action), floats)}
        )
    camera = {"dtype": "image", "shape": [48, 64, 3], "names": ["height", "width", "channel"]}
    vector = {"dtype": "float32", "shape": [7], "names": None}
    _lerobot(
        folder,
        tables,
        {"image": camera, "wrist_image": camera, "state": vector, "actions": vector},
        robot_type="panda",
    )


def umi(folder: Path) -> None:
    """UMI's replay buffer: poses, a width and a camera, no action."""
    import zarr

    way = np.concatenate([state for state, _ in episodes(7)])
    group = zarr.open_group(folder, mode="w", zarr_format=2)
    columns = {
        "robot0_eef_pos": way[:, :3],
        "robot0_eef_rot_axis_angle": way[:, 3:6],
        "robot0_gripper_width": way[:, 6:],
    }
    columns |= {f"robot0_demo_{edge}_pose": np.ones((len(way), 6)) for edge in ("start", "end")}
    columns["camera0_rgb"] = np.concatenate([pictures(e) for e in range(EPISODES)])
    ends = np.arange(1, EPISODES + 1) * LENGTH
    for name, values in {f"data/{k}": x for k, x in columns.items()}.items():
        chunks = (1, *values.shape[1:]) if values.ndim == 4 else values.shape
        group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=chunks)[:] = values
    group.create_array("meta/episode_ends", shape=ends.shape, dtype=ends.dtype, chunks=ends.shape)[:] = ends


def aloha(folder: Path) -> None:
    """ACT's recordings: a file an episode."""
    import h5py

    folder.mkdir(parents=True)
    for e, (state, action) in enumerate(episodes(14)):
        with h5py.File(folder / f"episode_{e}.hdf5", "w") as file:
            file.attrs["sim"] = False
            file["observations/qpos"], file["action"] = state, action
            file["observations/qvel"] = file["observations/effort"] = np.gradient(state, axis=0)
            for i, name in enumerate(("cam_high", "cam_left_wrist")):
                file[f"observations/images/{name}"] = pictures(e + i)


def robomimic(file: Path) -> None:
    """Demonstrations of robosuite with observations extracted."""
    import h5py

    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as h5:
        for e, (state, action) in enumerate(episodes(7)):
            demo = h5.create_group(f"data/demo_{e}")
            demo.attrs["num_samples"] = LENGTH
            demo["actions"], demo["states"] = action, np.repeat(state, 4, axis=1)
            demo["rewards"], demo["dones"] = np.zeros(LENGTH), np.arange(LENGTH) == LENGTH - 1
            demo["obs/robot0_eef_pos"], demo["obs/robot0_gripper_qpos"] = state[:, :3], state[:, 6:]
            demo["next_obs/robot0_eef_pos"] = action[:, :3]
        h5["data"].attrs["env_args"] = json.dumps(
            {"env_name": "Lift", "type": 1, "env_kwargs": {"control_freq": 20}}
        )
        h5.create_dataset("mask/train", data=np.array(["demo_0", "demo_2"], dtype=h5py.string_dtype()))


def isaac_lab(file: Path) -> None:
    """Isaac Lab's recorder: initial states with one row an episode, states beside observations."""
    import h5py

    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as h5:
        h5.create_group("data").attrs["env_args"] = json.dumps(
            {"env_name": "Isaac-Stack-Cube-Franka-IK-Rel-v0", "type": 2}
        )
        for e, (state, action) in enumerate(episodes(7)):
            demo = h5.create_group(f"data/demo_{e}")
            demo.attrs["num_samples"], demo.attrs["success"] = LENGTH, True
            demo["actions"], demo["obs/actions"] = action, action
            demo["obs/eef_pos"], demo["obs/gripper_pos"] = state[:, :3], state[:, 6:]
            demo["obs/datagen_info/eef_pose/franka"] = np.tile(np.eye(4, dtype=np.float32), (LENGTH, 1, 1))
            demo["initial_state/articulation/robot/joint_position"] = state[:1]
            demo["states/articulation/robot/joint_position"] = state


def d4rl(file: Path) -> None:
    """D4RL: flat arrays, episodes end at terminals or timeouts."""
    import h5py

    file.parent.mkdir(parents=True, exist_ok=True)
    pairs = list(episodes(3))
    frames = np.arange(EPISODES * LENGTH)
    with h5py.File(file, "w") as h5:
        h5["observations"] = np.concatenate([state for state, _ in pairs])
        h5["actions"] = np.concatenate([action for _, action in pairs])
        h5["rewards"] = np.zeros(len(frames))
        h5["terminals"] = frames == LENGTH - 1
        h5["timeouts"] = (frames % LENGTH == LENGTH - 1) & (frames != LENGTH - 1)
        h5["infos/qpos"] = h5["observations"][()]


def own_numpy(folder: Path) -> None:
    """A file an episode, as a few lines of numpy save it; the width is a scalar a frame."""
    folder.mkdir(parents=True)
    for e, (state, action) in enumerate(episodes()):
        np.savez(
            folder / f"episode_{e}.npz",
            joints=state[:, :2],
            width=state[:, 2],
            action=action,
            time=np.arange(LENGTH) / 10,
        )
