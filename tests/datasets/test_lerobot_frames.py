"""Which frame of a video belongs to a row: grey levels encode episode and frame, so a wrong frame is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowleap.datasets.dataset import open_dataset
from flowleap.datasets.formats.lerobot_index import DATA_V3, VIDEO_V3
from flowleap.datasets.formats.video import Clip, Clock, frames_of_rows, write_frames
from flowleap.policy.core.errors import FlowleapError
from flowleap.scripts.cli import main as cli

pytest.importorskip("av", reason="needs flowleap[formats]")
pa = pytest.importorskip("pyarrow", reason="needs flowleap[formats]")
pq = pytest.importorskip("pyarrow.parquet", reason="needs flowleap[formats]")

FPS, LENGTHS = 30, (20, 12)
TOP, WRIST = "observation.images.top", "observation.images.wrist"
VIDEO_V2 = "videos/{video_key}/{episode_index:06d}.mp4"
DATA_V2 = "data/{episode_index:06d}.parquet"
Clocks = Callable[[np.ndarray], np.ndarray]


def greys(episode: int, frames: int) -> np.ndarray:
    """uint8 [frames, 16, 32, 3]; neighbours differ by 5, more than a codec blurs."""
    grey = 20 + 110 * episode + 5 * np.arange(frames)
    return np.broadcast_to(grey[:, None, None, None], (frames, 16, 32, 3)).astype(np.uint8)


def table(episode: int, clock: Clocks = lambda t: t, order: np.ndarray | None = None) -> Any:
    n = LENGTHS[episode]
    state = np.stack([np.full(n, episode), np.arange(n)], 1).astype(np.float32)
    rows = pa.table(
        {
            "observation.state": pa.array(state.tolist()),
            "action": pa.array(state.tolist()),
            "timestamp": clock(np.arange(n) / FPS),
            "frame_index": np.arange(n),
            "episode_index": np.full(n, episode),
            "index": np.arange(n) + sum(LENGTHS[:episode]),
        }
    )
    return rows if order is None else rows.take(order)


def write_info(path: Path, version: str, cameras: tuple[str, ...] = (TOP,), **paths: str) -> None:
    numbers = {"dtype": "float32", "shape": [2]}
    features = {c: {"dtype": "video", "shape": [16, 32, 3]} for c in cameras}
    about = {"codebase_version": version, "fps": FPS, **paths}
    about["features"] = features | {"observation.state": numbers, "action": numbers}
    (path / "meta").mkdir(parents=True)
    (path / "meta/info.json").write_text(json.dumps(about))


def v21(
    path: Path, tables: list[Any] | None = None, rate: float = FPS, videos: list[Any] | None = None
) -> Path:
    """One table and one video an episode."""
    write_info(path, "v2.1", data_path=DATA_V2, video_path=VIDEO_V2)
    lines = [json.dumps({"episode_index": i, "length": n}) for i, n in enumerate(LENGTHS)]
    (path / "meta/episodes.jsonl").write_text("\n".join(lines))
    (path / "meta/tasks.jsonl").write_text("")
    (path / "data").mkdir()
    for i, n in enumerate(LENGTHS):
        pq.write_table(tables[i] if tables else table(i), path / DATA_V2.format(episode_index=i))
        clip = videos[i] if videos else greys(i, n)
        write_frames(path / VIDEO_V2.format(video_key=TOP, episode_index=i), clip, rate)
    return path


def v30(path: Path, rate: float = FPS, order: np.ndarray | None = None, **wrong: list[float]) -> Path:
    """Both episodes in one table, one video of `top`, but a video each of `wrist`; `wrong` replaces metadata."""
    write_info(path, "v3.0", (TOP, WRIST), data_path=DATA_V3, video_path=VIDEO_V3)
    listing = []
    for i, n in enumerate(LENGTHS):
        start = sum(LENGTHS[:i])
        row: dict[str, Any] = {"episode_index": i, "length": n, "data/chunk_index": 0, "data/file_index": 0}
        row |= {"dataset_from_index": start, "dataset_to_index": start + n}
        for camera, file, first in ((TOP, 0, start / FPS), (WRIST, i, 0.0)):
            row |= {f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": file}
            row |= {
                f"videos/{camera}/from_timestamp": first,
                f"videos/{camera}/to_timestamp": first + n / FPS,
            }
        listing.append(row | {name: values[i] for name, values in wrong.items()})
        wrist = VIDEO_V3.format(video_key=WRIST, chunk_index=0, file_index=i)
        write_frames(path / wrist, greys(i, n), FPS)
    (path / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(listing), path / "meta/episodes/chunk-000/file-000.parquet")
    file = path / DATA_V3.format(chunk_index=0, file_index=0)
    file.parent.mkdir(parents=True)
    rows = pa.concat_tables([table(i) for i in range(2)])
    pq.write_table(rows if order is None else rows.take(order), file, row_group_size=7)
    both = np.concatenate([greys(i, n) for i, n in enumerate(LENGTHS)])
    write_frames(path / VIDEO_V3.format(video_key=TOP, chunk_index=0, file_index=0), both, rate)
    return path


def assert_right(path: Path, episodes: tuple[int, ...] = (1, 0)) -> None:
    """Every row has its own state, in order, and the frame of every camera that belongs to it."""
    with open_dataset(path) as source:
        for i in episodes:
            got, n = source.episode(i), LENGTHS[i]
            np.testing.assert_array_equal(got["state"], np.stack([np.full(n, i), np.arange(n)], 1))
            np.testing.assert_array_equal(got["action"], got["state"])
            for camera in {"top", "wrist"} & set(got):
                wrong = np.abs(got[camera].astype(int) - greys(i, n)).max()
                assert wrong <= 2, f"{camera}, episode {i}: a frame off is 5"


@pytest.mark.parametrize(
    "clock",
    [
        lambda t: 0.013 + t + np.random.default_rng(0).uniform(-0.25, 0.25, len(t)) / FPS,
        lambda t: 1.76e9 + t,
        lambda t: (1.76e9 + t).astype(np.float32),
        lambda t: 7.0 + 1.3 * t,
        lambda t: np.floor(1.76e9 + t).astype(np.int64),
    ],
    ids=["jitter", "UNIX", "UNIX as float32", "another rate", "whole seconds"],
)
def test_clocks_of_the_hardware(tmp_path: Path, clock: Clocks) -> None:
    assert_right(v21(tmp_path / "x", [table(i, clock) for i in range(2)]))


@pytest.mark.parametrize("rate", [25, 30, 50])
def test_as_many_frames_as_rows_whatever_the_rate(tmp_path: Path, rate: int) -> None:
    assert_right(v21(tmp_path / "a", rate=rate))
    assert_right(v30(tmp_path / "b", rate=rate))


def test_more_frames_and_a_faster_camera(tmp_path: Path) -> None:
    longer = [greys(i, n + 5) for i, n in enumerate(LENGTHS)]
    assert_right(v21(tmp_path / "longer", videos=longer))
    thrice = [np.repeat(greys(i, n), 3, axis=0) for i, n in enumerate(LENGTHS)]
    assert_right(v21(tmp_path / "faster", videos=thrice, rate=3 * FPS))
    jumps = [table(i, lambda t: t + (t > 0.2)) for i in range(2)]
    with (
        open_dataset(v21(tmp_path / "unclear", jumps, videos=longer)) as source,
        pytest.raises(FlowleapError, match=r"episode 0: 'top' has 25 frames at 30 a second for 20 rows"),
    ):
        source.episode(0)


def test_a_slower_camera_shows_its_frames_longer(tmp_path: Path) -> None:
    half = [greys(i, n)[::2] for i, n in enumerate(LENGTHS)]
    with open_dataset(v21(tmp_path / "x", videos=half, rate=FPS / 2)) as source:
        expected = np.repeat(half[1], 2, axis=0).astype(int)
        assert np.abs(source.episode(1)["top"] - expected).max() <= 2


def test_frames_that_are_missing(tmp_path: Path) -> None:
    short = [greys(0, 20), greys(1, 11)]
    v21(tmp_path / "a", videos=short)
    assert_right(tmp_path / "a", (0,))
    with (
        open_dataset(tmp_path / "a") as source,
        pytest.raises(FlowleapError, match=r"episode 1: 'top' has 11 frames of the episode, its table 12"),
    ):
        source.episode(1)
    assert cli.main(["convert", f"source={tmp_path}/a", f"out={tmp_path}/a.zarr", "drop=[1]"]) == 0
    v30(tmp_path / "b")
    file = tmp_path / "b" / VIDEO_V3.format(video_key=TOP, chunk_index=0, file_index=0)
    write_frames(file, np.concatenate(short), FPS)
    with (
        open_dataset(tmp_path / "b") as source,
        pytest.raises(FlowleapError, match=r"episode 1: 'top' has 11 frames of the episode, its table 12"),
    ):
        source.episode(1)
    assert_right(tmp_path / "b", (0,))
    slow = v21(tmp_path / "c", videos=short, rate=10)
    with (
        open_dataset(slow) as source,
        pytest.raises(FlowleapError, match="has 11 frames at 10 a second for 12 rows at 30 a second: which"),
    ):
        source.episode(1)


def test_the_metadata_of_where_an_episode_begins_are_not_needed(tmp_path: Path) -> None:
    assert_right(v30(tmp_path / "a", dataset_from_index=[0, 13], dataset_to_index=[20, 25]))
    begin, end = (f"videos/{TOP}/{when}_timestamp" for when in ("from", "to"))
    assert_right(v30(tmp_path / "b", **{begin: [0.0, 0.02 + 20 / FPS], end: [20 / FPS, 0.02 + 32 / FPS]}))


def test_rows_out_of_order_are_sorted(tmp_path: Path) -> None:
    mixed = np.random.default_rng(1).permutation(sum(LENGTHS))
    assert_right(v30(tmp_path / "a", order=mixed))
    assert_right(v21(tmp_path / "b", [table(0, order=np.arange(20)[::-1].copy()), table(1)]))
    without = [table(i, order=mixed[mixed < n]).drop_columns(["frame_index"]) for i, n in enumerate(LENGTHS)]
    longer = [greys(i, n + 5) for i, n in enumerate(LENGTHS)]
    assert_right(v21(tmp_path / "c", without, videos=longer))


def test_time_stamps_that_go_back_are_refused(tmp_path: Path) -> None:
    back = [table(0), table(1, lambda t: np.where(t > 0.2, t - 0.1, t))]
    v21(tmp_path / "x", back)
    message = (
        r"x', episode 1: 'timestamp' goes back from 0.2 to 0.13\d* at frame 7: the rows are out of order"
    )
    with open_dataset(tmp_path / "x") as source, pytest.raises(FlowleapError, match=message):
        source.columns(["state", "action"])
    with open_dataset(tmp_path / "x", lenient=True) as source:
        assert source.disorder(0) is None
        assert source.disorder(1) is not None


def test_totals_that_the_episodes_do_not_make(tmp_path: Path) -> None:
    file = v21(tmp_path / "x") / "meta/info.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps(about | {"total_episodes": 2, "total_frames": 33}))
    with pytest.raises(FlowleapError, match=r"total_frames in meta/info\.json is 33, .* make 32"):
        open_dataset(tmp_path / "x")


def test_numbers_of_frames_that_were_lost() -> None:
    """Rows 3 and 4 were lost; the video has their frames, or lost them, too."""
    rows, clip = np.array([0, 1, 2, 5, 6]), Clip(Path("x"), 0.0, 0.0, 0, 5)
    for count, expected in ((7, [0, 1, 2, 5, 6]), (5, [0, 1, 2, 3, 4])):
        clock = Clock(np.arange(count), 0.1)
        assert frames_of_rows(clock, clip, rows, rows / 10, 10.0).tolist() == expected
