"""UMI stores: actions are the poses that come next, absolute or relative; images in JPEG-XL."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from scipy.spatial.transform import Rotation

from flowleap.datasets.dataset import detect, open_dataset
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.rotations import matrix_from_six
from flowleap.scripts.cli import main as cli

ENDS = np.array([30, 70])


def write(path: Path, robots: int = 1, image: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """A store as UMI's published ones (zarr v2); return its columns."""
    rng = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {}
    for i in range(robots):
        for part, size in (("eef_pos", 3), ("eef_rot_axis_angle", 3), ("gripper_width", 1)):
            columns[f"robot{i}_{part}"] = (np.cumsum(rng.normal(size=(70, size)), 0) * 0.05).astype(
                np.float32
            )
        columns[f"robot{i}_demo_start_pose"] = np.ones((70, 6))
    group = zarr.open_group(path, mode="w", zarr_format=2)
    stored = {f"data/{key}": values for key, values in columns.items()} | {"meta/episode_ends": ENDS}
    for name, values in stored.items():
        array = group.create_array(name, shape=values.shape, dtype=values.dtype, chunks=values.shape)
        array[:] = values
    if image is not None:
        codecs = pytest.importorskip("imagecodecs.numcodecs")
        codecs.register_codecs(verbose=False)
        codec = codecs.Jpegxl(level=99)
        shape = (70, *image.shape)
        array = group.create_array("data/camera0_rgb", shape=shape, dtype=np.uint8, chunks=(1, *image.shape))
        folder = path / "data" / "camera0_rgb"
        meta = json.loads((folder / ".zarray").read_text())
        (folder / ".zarray").write_text(
            json.dumps(meta | {"compressor": {"id": "imagecodecs_jpegxl", "level": 99}})
        )
        for frame in range(70):
            (folder / f"{frame}.0.0.0").write_bytes(codec.encode(np.roll(image, frame, axis=0)))
    return columns


def poses(columns: dict[str, np.ndarray], robot: str) -> np.ndarray:
    """Homogeneous matrices [N, 4, 4]."""
    matrices = np.tile(np.eye(4), (70, 1, 1))
    matrices[:, :3, :3] = Rotation.from_rotvec(columns[f"{robot}_eef_rot_axis_angle"]).as_matrix()
    matrices[:, :3, 3] = columns[f"{robot}_eef_pos"]
    return matrices


def as_matrices(actions: np.ndarray) -> np.ndarray:
    matrices = np.tile(np.eye(4), (len(actions), 1, 1))
    matrices[:, :3, :3], matrices[:, :3, 3] = matrix_from_six(actions[:, 3:9]), actions[:, :3]
    return matrices


@pytest.mark.parametrize("robots", [1, 2])
def test_actions_are_the_next_poses(tmp_path: Path, robots: int) -> None:
    columns = write(tmp_path / "umi.zarr", robots)
    assert detect(tmp_path / "umi.zarr") == "umi"
    with open_dataset(tmp_path / "umi.zarr") as dataset:
        assert dataset.spec.action_dim == 10 * robots
        assert dataset.spec.action_convention == "absolute"
        assert dataset.spec.source["rotation"] == "6d"
        assert "robot0_demo_start_pose" in dataset.unused
        assert len(dataset.spec.observations) == 3 * robots
        whole = dataset.columns()["action"]
        for i in range(robots):
            actions, truth = (
                dataset.episode(1)["action"][:, 10 * i : 10 * i + 10],
                poses(columns, f"robot{i}"),
            )
            np.testing.assert_allclose(as_matrices(actions)[:-1], truth[31:70], atol=1e-6)
            np.testing.assert_allclose(as_matrices(actions)[-1], truth[69], atol=1e-6)
            np.testing.assert_array_equal(actions[:-1, 9], columns[f"robot{i}_gripper_width"][31:70, 0])
            np.testing.assert_array_equal(whole[30:, 10 * i : 10 * i + 10], actions)


def test_relative_actions_compose_to_the_way(tmp_path: Path) -> None:
    truth = poses(write(tmp_path / "umi.zarr"), "robot0")
    with open_dataset(tmp_path / "umi.zarr", poses="relative") as dataset:
        assert dataset.spec.action_convention == "delta"
        steps = as_matrices(dataset.episode(0)["action"])
    place = truth[0]
    for t in range(29):
        place = place @ steps[t]
        np.testing.assert_allclose(place, truth[t + 1], atol=1e-5)
    np.testing.assert_allclose(steps[29], np.eye(4), atol=1e-6)  # the last frame stays
    with pytest.raises(FlowleapError, match="poses=delta of a UMI store is none of absolute, relative"):
        open_dataset(tmp_path / "umi.zarr", poses="delta")


def test_images_in_jpeg_xl_and_zips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = np.random.default_rng(1).integers(0, 255, (32, 32, 3), np.uint8)
    write(tmp_path / "umi.zarr", image=image)
    with zipfile.ZipFile(tmp_path / "umi.zarr.zip", "w") as file:
        for part in sorted((tmp_path / "umi.zarr").rglob("*")):
            if part.is_file():
                file.write(part, part.relative_to(tmp_path / "umi.zarr"))
    for name in ("umi.zarr", "umi.zarr.zip"):
        with open_dataset(tmp_path / name) as dataset:
            frames = dataset.columns()["camera0_rgb"].take(np.array([[0, 5], [69, 3]]))
        expected = [[np.roll(image, k, axis=0) for k in row] for row in ([0, 5], [69, 3])]
        np.testing.assert_array_equal(frames, expected)
    out = tmp_path / "out.zarr"
    assert cli.main(["convert", f"source={tmp_path / 'umi.zarr'}", f"out={out}", "poses=relative"]) == 0
    with open_dataset(out) as dataset:
        np.testing.assert_array_equal(dataset.episode(0)["camera0_rgb"][7], np.roll(image, 7, axis=0))
        assert dataset.spec.action_convention == "delta"
    small: list[Any] = [
        "trainer.steps=2",
        "trainer.batch_size=8",
        "trainer.progress=false",
        "backbone.width=16",
    ]
    words = [
        "train",
        f"dataset={tmp_path / 'umi.zarr'}",
        f"run_dir={tmp_path / 'run'}",
        "keys=[-camera0_rgb]",
        *small,
    ]
    assert cli.main(words) == 0
    assert "; robot0_demo_start_pose (an initial or final state)" in capsys.readouterr().out


def test_a_robot_without_a_part_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "umi.zarr")
    (tmp_path / "umi.zarr" / "data" / "robot0_gripper_width").rename(tmp_path / "width")
    with pytest.raises(FlowleapError, match="no column 'robot0_gripper_width' of 1 numbers"):
        open_dataset(tmp_path / "umi.zarr")
