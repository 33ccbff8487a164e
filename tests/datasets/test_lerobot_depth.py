"""Depth in LeRobotDatasets: images of 16 bits, floats, lists in tables, and videos of 12-bit codes."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recordings

from flowleap.datasets.dataset import open_dataset
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey
from flowleap.policy.policy import Policy

av = pytest.importorskip("av", reason="needs flowleap[formats]")
pytest.importorskip("pyarrow", reason="needs flowleap[formats]")

H, W = 32, 48
NAME = "observation.images.depth"
QUANTISER = {"video.depth_min": 0.01, "video.depth_max": 10.0, "video.shift": 3.5, "video.use_log": True}


def metres(episode: int) -> np.ndarray:
    """Depth [T, H, W] that differs by frame, with a corner that was not measured."""
    depth = np.linspace(0.3, 4.0, H * W).reshape(H, W) + 0.05 * np.arange(recordings.LENGTH)[:, None, None]
    depth[:, :4, :4] = 0
    return depth + 0.5 * episode * (depth > 0)


def dataset(folder: Path, feature: dict[str, Any], column: Any = None) -> Path:
    tables = []
    for episode, (state, action) in enumerate(recordings.episodes()):
        tables.append({"observation.state": state.tolist(), "action": action.tolist()})
        if column is not None:
            tables[-1][NAME] = column(metres(episode))
    features = {n: {"dtype": "float32", "shape": [3], "names": None} for n in ("observation.state", "action")}
    recordings._lerobot(folder, tables, features | {NAME: feature})
    return folder


def cells(dtype: str, kind: str) -> Any:
    from PIL import Image

    def encoded(frame: np.ndarray) -> dict[str, Any]:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, kind)
        return {"bytes": stream.getvalue(), "path": None}

    scale = 1000 if dtype == "uint16" else 1
    return lambda depth: [encoded((frame * scale).astype(dtype)) for frame in depth]


HWC, CHW = {"names": ["height", "width", "channel"]}, {"names": ["channel", "height", "width"]}


@pytest.mark.parametrize(
    ("feature", "column", "unit"),
    [
        ({"dtype": "image", "shape": [H, W, 1], **HWC}, cells("uint16", "PNG"), "mm"),
        ({"dtype": "depth", "shape": [1, H, W], **CHW}, cells("uint16", "TIFF"), "mm"),
        ({"dtype": "image", "shape": [H, W, 1], "names": None}, cells("float32", "TIFF"), "m"),
        ({"dtype": "float32", "shape": [H, W], "names": None}, lambda depth: depth.tolist(), "m"),
        (
            {"dtype": "uint16", "shape": [H, W, 1]},
            lambda d: (d * 1000).astype("uint16")[..., None].tolist(),
            "mm",
        ),
    ],
)
def test_depth_in_tables(tmp_path: Path, feature: dict[str, Any], column: Any, unit: str) -> None:
    source = open_dataset(dataset(tmp_path / "d", feature, column))
    key = source.spec.observations["depth"]
    assert (key.shape, key.dtype, key.kind, key.unit) == ((H, W, 1), "float32", "depth", unit)
    scale = 1000 if unit == "mm" else 1
    assert key.range == pytest.approx((0, (4.0 + 1.0 + 0.05 * recordings.LENGTH) * scale), rel=0.1)
    depth = source.episode(2)["depth"]
    np.testing.assert_allclose(depth[..., 0], metres(2) * scale, atol=1 if unit == "mm" else 1e-6)
    assert (depth[:, 0, 0] == 0).all()


def video(folder: Path, pixels: str = "gray12le", about: dict[str, Any] | None = None) -> Path:
    """What lerobot 0.6 records: lossless HEVC of codes on a logarithmic scale."""
    low, high, shift = 0.01, 10.0, 3.5
    feature = {"dtype": "video", "shape": [H, W, 1], "names": ["height", "width", "channels"]}
    feature["info"] = {"is_depth_map": True, "video.pix_fmt": pixels} | (
        QUANTISER if about is None else about
    )
    dataset(folder, feature)
    for episode in range(recordings.EPISODES):
        depth = metres(episode)
        ends = np.log(low + shift), np.log(high + shift)
        share = (np.log(np.clip(depth, low, high) + shift) - ends[0]) / (ends[1] - ends[0])
        codes = np.where(depth > 0, np.rint(share * 4095), 0).astype(np.uint16)
        file = folder / f"videos/chunk-000/{NAME}/episode_{episode:06d}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(file), "w") as container:
            stream = container.add_stream("libx265", rate=Fraction(30))
            stream.width, stream.height, stream.pix_fmt = W, H, "gray12le"
            stream.options = {"x265-params": "lossless=1:log-level=none", "g": "2"}
            for frame in codes:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray12le")))
            container.mux(stream.encode())
    return folder


def test_depth_in_videos(tmp_path: Path) -> None:
    source = open_dataset(video(tmp_path / "d"))
    assert source.spec.observations["depth"] == ObsKey((H, W, 1), "float32", "depth", "m", (0.0, 10.0))
    for episode in range(recordings.EPISODES):
        depth = source.episode(episode)["depth"][..., 0]
        # Half a step of the code: log(13.5 / 3.51) / 4095 of (depth + 3.5 m).
        np.testing.assert_allclose(depth, metres(episode), atol=0.5 * 1.347 / 4095 * 9.6)
        assert (depth[:, :4, :4] == 0).all()


@pytest.mark.parametrize(
    "about", [{}, {"video.depth_max": None}, {"video.shift": -1.0}, {"video.depth_max": 0.0}]
)
def test_depth_that_nothing_explains_is_named(tmp_path: Path, about: dict[str, Any]) -> None:
    source = open_dataset(video(tmp_path / "d", about={**QUANTISER, **about} if about else {}))
    assert list(source.spec.observations) == ["state"]
    assert "cannot be read: a video of depth" in source.unused[NAME]


def test_colours_among_depth_are_named(tmp_path: Path) -> None:
    def column(depth: np.ndarray) -> Any:
        grey = depth.max() > 6
        return cells("uint8" if grey else "uint16", "PNG")(np.minimum(depth, 1) if grey else depth)

    folder = dataset(tmp_path / "d", {"dtype": "image", "shape": [H, W, 1], "names": None}, column)
    source = open_dataset(folder)
    source.episode(0)
    with pytest.raises(
        FlowleapError, match="holds uint8 numbers at frame 0, uint16 ones in the first episode"
    ):
        source.episode(2)


def test_depth_of_lerobot_trains(tmp_path: Path) -> None:
    from flowleap.scripts.cli import main as cli

    video(tmp_path / "d")
    store, run = tmp_path / "d.zarr", tmp_path / "run"
    assert cli.main(["convert", f"source={tmp_path / 'd'}", f"out={store}", "resize=[16,24]"]) == 0
    small = ["backbone.width=16", "trainer.steps=2", "trainer.batch_size=8", "trainer.device=cpu"]
    words = [f"dataset={store}", f"run_dir={run}", "encoder=cnn", "trainer.progress=false", *small]
    assert cli.main(["train", *words]) == 0
    policy = Policy.load(run)
    assert policy.spec.observations["depth"].summary() == "[16, 24, 1] 0 to 10 m of [32, 48]"
