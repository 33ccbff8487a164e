"""LeRobotDatasets: v2.1 and v3.0 as lerobot lays them out, broken ones, and what lerobot says of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowleap.datasets import dataset as formats
from flowleap.datasets.formats.lerobot_index import DATA_V3, VIDEO_V3
from flowleap.datasets.formats.video import write_frames
from flowleap.envs.task_data import load_columns
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.scripts.cli import main as cli

pytest.importorskip("av", reason="needs flowleap[formats]")
pa = pytest.importorskip("pyarrow", reason="needs flowleap[formats]")
pq = pytest.importorskip("pyarrow.parquet", reason="needs flowleap[formats]")
Change = Callable[[Any], Any]

FPS = 10
LENGTHS = (6, 1, 9)
TOP = "observation.images.top"
FEATURES: dict[str, dict[str, Any]] = {
    "observation.state": {"dtype": "float32", "shape": [3], "names": {"motors": ["x", "y", "z"]}},
    TOP: {"dtype": "video", "shape": [3, 32, 48], "names": ["channels", "height", "width"]},
    "action": {"dtype": "float32", "shape": [2], "names": ["a", "b"]},
    "next.reward": {"dtype": "float32", "shape": [1], "names": None},
    "language": {"dtype": "string", "shape": [1], "names": None},
    **{n: {"dtype": "int64", "shape": [1]} for n in ("frame_index", "episode_index", "index", "task_index")},
    "timestamp": {"dtype": "float32", "shape": [1]},
}


def images(episode: int) -> np.ndarray:
    """A grey that differs from frame to frame by more than a video codec blurs."""
    grey = 20 + 10 * np.arange(LENGTHS[episode]) + 3 * episode
    return np.broadcast_to(grey[:, None, None, None], (len(grey), 32, 48, 3)).astype(np.uint8)


def rows(episode: int) -> dict[str, Any]:
    rng = np.random.default_rng(episode)
    n = LENGTHS[episode]
    return {
        "observation.state": rng.normal(size=(n, 3)).astype(np.float32).tolist(),
        "action": rng.normal(size=(n, 2)).astype(np.float32).tolist(),
        "next.reward": rng.normal(size=n).astype(np.float32),
        "language": ["push"] * n,
        "timestamp": (np.arange(n) / FPS).astype(np.float32),
        "frame_index": np.arange(n),
        "episode_index": np.full(n, episode),
        "index": np.arange(n) + sum(LENGTHS[:episode]),
        "task_index": np.full(n, episode % 2),
    }


def table(*episodes: int) -> Any:
    return pa.concat_tables([pa.table(rows(i)) for i in episodes])


def info(version: str, **more: object) -> dict[str, Any]:
    return {
        "codebase_version": version,
        "robot_type": "so100",
        "fps": FPS,
        "chunks_size": 2,
        "features": FEATURES,
        **more,
    }


def v21(path: Path) -> Path:
    """One table and one video an episode, JSON lines beside them; chunks of two episodes."""
    (path / "meta").mkdir(parents=True)
    data = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    video = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    (path / "meta/info.json").write_text(json.dumps(info("v2.1", data_path=data, video_path=video)))
    lines = [{"episode_index": i, "tasks": ["t"], "length": n} for i, n in enumerate(LENGTHS)]
    (path / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tasks = [{"task_index": 1, "task": "pull"}, {"task_index": 0, "task": "push"}]
    (path / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    for i in range(len(LENGTHS)):
        numbers = {"episode_chunk": i // 2, "episode_index": i}
        file = path / data.format(**numbers)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(i), file)
        write_frames(path / video.format(video_key=TOP, **numbers), images(i), FPS)
    return path


def v30(path: Path) -> Path:
    """Episodes 0 and 1 in one table and one video, episode 2 in the next, as lerobot packs them."""
    (path / "meta/episodes/chunk-000").mkdir(parents=True)
    (path / "meta/info.json").write_text(json.dumps(info("v3.0", data_path=DATA_V3, video_path=VIDEO_V3)))
    listing = []
    for i, n in enumerate(LENGTHS):
        start = LENGTHS[0] / FPS if i == 1 else 0.0
        listing.append(
            {
                "episode_index": i,
                "tasks": ["t"],
                "length": n,
                "dataset_from_index": sum(LENGTHS[:i]),
                "dataset_to_index": sum(LENGTHS[: i + 1]),
                "data/chunk_index": 0,
                "data/file_index": i // 2,
                f"videos/{TOP}/chunk_index": 0,
                f"videos/{TOP}/file_index": i // 2,
                f"videos/{TOP}/from_timestamp": start,
                f"videos/{TOP}/to_timestamp": start + n / FPS,
                "stats/action/mean": [0.0, 0.0],
            }
        )
    pq.write_table(pa.Table.from_pylist(listing), path / "meta/episodes/chunk-000/file-000.parquet")
    tasks = pa.table({"task_index": [1, 0], "__index_level_0__": ["pull", "push"]})
    pq.write_table(tasks, path / "meta/tasks.parquet")
    for number, episodes in enumerate(((0, 1), (2,))):
        file = path / DATA_V3.format(chunk_index=0, file_index=number)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(*episodes), file, row_group_size=4)
        clip = path / VIDEO_V3.format(video_key=TOP, chunk_index=0, file_index=number)
        write_frames(clip, np.concatenate([images(i) for i in episodes]), FPS)
    return path


LAYOUTS = pytest.mark.parametrize("layout", [v21, v30])


@LAYOUTS
def test_both_layouts_are_read(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    with formats.open_dataset(layout(tmp_path / "x")) as source:
        assert source.spec.observations == {
            "state": ObsKey((3,), "float32"),
            "top": ObsKey((32, 48, 3), "uint8", "rgb"),
        }
        assert (source.spec.action_dim, source.spec.control_hz) == (2, 10.0)
        assert source.extra == {"next.reward": ObsKey((1,)), "task_index": ObsKey((), "int64")}
        assert source.attrs["tasks"] == ["push", "pull"]
        assert source.attrs["lerobot"]["robot_type"] == "so100"
        assert source.n_episodes == 3
        for i in (2, 0, 1):
            expected, got = rows(i), source.episode(i)
            np.testing.assert_array_equal(got["state"], np.array(expected["observation.state"], np.float32))
            np.testing.assert_array_equal(got["action"], np.array(expected["action"], np.float32))
            np.testing.assert_array_equal(got["next.reward"][:, 0], expected["next.reward"])
            np.testing.assert_array_equal(got["task_index"], expected["task_index"])
            assert np.abs(got["top"].astype(int) - images(i)).max() <= 3, "another frame is 10 off"


@LAYOUTS
def test_names_tasks_and_axes_survive(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    layout(tmp_path / "x")
    assert cli.main(["convert", f"source={tmp_path}/x", f"out={tmp_path}/a.zarr"]) == 0
    assert cli.main(["convert", f"source={tmp_path}/a.zarr", f"out={tmp_path}/y", "to=lerobot"]) == 0
    written = json.loads((tmp_path / "y/meta/info.json").read_text())
    assert written["robot_type"] == "so100"
    for name in ("observation.state", TOP, "action", "next.reward"):
        assert name in written["features"]
    assert written["features"]["observation.state"]["names"] == {"motors": ["x", "y", "z"]}
    with formats.open_dataset(tmp_path / "y") as back, formats.open_dataset(tmp_path / "a.zarr") as store:
        assert (back.spec, back.attrs, back.extra) == (store.spec, store.attrs, store.extra)
        for i in range(3):
            for key, values in store.episode(i).items():
                np.testing.assert_array_equal(back.episode(i)[key], values)


def broken(path: Path, i: int, change: Change) -> None:
    """Rewrite the table of an episode (v2.1)."""
    file = path / f"data/chunk-{i // 2:03d}/episode_{i:06d}.parquet"
    pq.write_table(change(pq.read_table(file)), file)


def replaced(name: str, values: Any) -> Change:
    return lambda t: t.set_column(t.column_names.index(name), name, pa.array(values))


STATE = rows(2)["observation.state"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.drop_columns(["observation.state"]),
            "'observation.state' is no column of data/chunk-001",
        ),
        (
            lambda t: t.drop_columns(["action"]),
            "'action' is no column of data/chunk-001/episode_000002.parquet",
        ),
        (
            lambda t: t.slice(0, 7),
            "'episode_index' is 2 in 7 of the 7 rows of data/chunk-001/episode_000002.parquet, the metadata say 9",
        ),
        (
            lambda t: pa.concat_tables([t, t.slice(3, 2)]),
            "'episode_index' is 2 in 11 of the 11 rows of .*, the metadata say 9",
        ),
        (
            lambda t: pa.concat_tables([t, table(0)]),
            "'episode_index' is 2 in 9 of the 15 rows of .*, the metadata say 9",
        ),
        (
            replaced("frame_index", [0, 1, 2, 3, 3, 5, 6, 7, 8]),
            "'frame_index' is 3 in two rows: a row is there twice",
        ),
        (
            replaced("observation.state", [*STATE[:4], [1.0], *STATE[5:]]),
            "'state' has cells of different sizes",
        ),
        (
            replaced("observation.state", [s[:2] for s in STATE]),
            r"'state' has shape \(2,\) a frame, .* \(3,\)",
        ),
        (replaced("observation.state", [*STATE[:8], None]), "'state' has empty cells"),
        (replaced("observation.state", ["x"] * 9), "'state' holds string, not numbers"),
        (
            replaced("episode_index", [1] * 9),
            "'episode_index' is 2 in 0 of the 9 rows of .*, the metadata say 9",
        ),
    ],
)
def test_broken_tables_are_named(tmp_path: Path, change: Change, message: str) -> None:
    broken(v21(tmp_path / "x"), 2, change)
    with pytest.raises(FlowleapError, match=rf"x', episode 2:? .*{message}|x', episode 2: {message}"):
        load_columns(None, formats.open_dataset(tmp_path / "x"))


def test_a_truncated_table_is_named(tmp_path: Path) -> None:
    file = v21(tmp_path / "x") / "data/chunk-001/episode_000002.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(
        FlowleapError, match=r"x', episode 2: data/chunk-001/episode_000002\.parquet cannot be read"
    ):
        load_columns(None, formats.open_dataset(tmp_path / "x"))
    file.unlink()
    with pytest.raises(
        FlowleapError, match=r"x', episode 2: data/chunk-001/episode_000002\.parquet is missing"
    ):
        load_columns(None, formats.open_dataset(tmp_path / "x"))


@LAYOUTS
def test_a_video_shorter_than_the_table_is_named(tmp_path: Path, layout: Callable[[Path], Path]) -> None:
    (file,) = layout(tmp_path / "x").glob(
        "videos/**/*000002.mp4" if layout is v21 else "videos/**/file-001.mp4"
    )
    write_frames(file, images(2)[:-2], FPS)

    def refused(message: str) -> None:
        with formats.open_dataset(tmp_path / "x") as source:
            source.episode(1)
            with pytest.raises(FlowleapError, match=message):
                source.episode(2)
            assert "top" not in source.episode(2, ["state", "action"])

    refused(r"x', episode 2: 'top' has 7 frames of the episode, its table 9 rows .*; copy")
    write_frames(file, images(2)[:, :16], FPS)
    refused(r"'top' has frames of \(16, 48\) pixels, the table says \(32, 48\)")
    file.write_bytes(file.read_bytes()[:100])
    refused(r"episode 2: 'top' is damaged .*\.mp4\)")
    file.unlink()
    refused("episode 2: 'top' is missing: no such video")


def test_paths_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    v21(tmp_path / "x")
    for path in ("../{episode_index}.parquet", "/etc/passwd", "{nothing}"):
        (tmp_path / "x/meta/info.json").write_text(json.dumps(info("v2.1", data_path=path)))
        with pytest.raises(FlowleapError, match=r"outside of its folder|bad path template"):
            formats.open_dataset(tmp_path / "x")


def test_versions_and_rates(tmp_path: Path) -> None:
    v30(tmp_path / "x")
    (tmp_path / "x/meta/info.json").write_text(json.dumps(info("v1.6")))
    with pytest.raises(FlowleapError, match=r"is a LeRobotDataset v1\.6; v2\.x and v3\.x are read"):
        formats.open_dataset(tmp_path / "x")
    with pytest.raises(FlowleapError, match=r"needs the frame rate.*control_hz"):
        formats.format_module("lerobot").Writer(tmp_path / "y", Spec({"state": ObsKey((3,))}, 2))


# What we write


def ours(path: Path, video: bool) -> Path:
    spec = Spec(
        {
            "state": ObsKey((3,)),
            "grid": ObsKey((2, 3), "float64"),
            "top": ObsKey((32, 48, 3), "uint8", "rgb"),
        },
        2,
        control_hz=FPS,
        source={"env": "reach"},
    )
    extra = {"reward": ObsKey(())}
    with formats.format_module("lerobot").Writer(path, spec, extra=extra, video=video) as writer:
        for i, n in enumerate(LENGTHS):
            part = {
                "state": np.array(rows(i)["observation.state"]),
                "grid": np.arange(n * 6.0).reshape(n, 2, 3),
                "top": images(i),
                "action": np.array(rows(i)["action"]),
                "reward": rows(i)["next.reward"],
            }
            writer.add(part)
    return path


@pytest.mark.parametrize("video", [False, True])
def test_our_folder_has_the_documented_schema(tmp_path: Path, video: bool) -> None:
    path = ours(tmp_path / "x", video)
    about = json.loads((path / "meta/info.json").read_text())
    assert (about["codebase_version"], about["total_frames"], about["fps"]) == ("v3.0", 16, 10)
    data = pq.read_table(path / about["data_path"].format(chunk_index=0, file_index=0))
    expected = {"action", "observation.grid", "observation.state", "reward"} | set(FEATURES) - {
        TOP,
        "language",
    }
    assert set(data.column_names) == (expected - {"next.reward"}) | (set() if video else {TOP})
    assert data["index"].to_pylist() == list(range(16))
    assert data["episode_index"].to_pylist() == [0] * 6 + [1] + [2] * 9
    listing = pq.read_table(path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["dataset_to_index"] for row in listing] == [6, 7, 16]
    assert listing[0]["tasks"] == ["reach"]
    state = np.concatenate([rows(i)["observation.state"] for i in range(3)])
    statistics = json.loads((path / "meta/stats.json").read_text())
    np.testing.assert_allclose(statistics["observation.state"]["mean"], state.mean(0), rtol=1e-6)
    np.testing.assert_allclose(statistics["observation.state"]["std"], state.std(0), rtol=1e-6)
    pixels = np.concatenate([images(i) for i in range(3)]) / 255
    np.testing.assert_allclose(np.ravel(statistics[TOP]["std"]), pixels.std((0, 1, 2)))
    assert np.shape(statistics[TOP]["max"]) == (3, 1, 1)
    with formats.open_dataset(path) as source:
        for i in range(3):
            assert np.abs(source.episode(i)["top"].astype(int) - images(i)).max() <= 3 * video


def test_frames_are_where_lerobot_looks_for_them(tmp_path: Path) -> None:
    """It accepts no frame that is farther than 0.1 ms from the row's time stamp."""
    import av

    path = ours(tmp_path / "x", True)
    for i, n in enumerate(LENGTHS):
        with av.open(str(path / VIDEO_V3.format(video_key=TOP, chunk_index=0, file_index=i))) as container:
            times = [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]
        np.testing.assert_allclose(times, np.arange(n) / FPS, atol=1e-4)


def test_tables_are_cut_and_tasks_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowleap.datasets.formats.lerobot_writer._TABLE_BYTES", 1)
    with formats.open_dataset(ours(tmp_path / "x", False)) as source:
        assert len(list((tmp_path / "x/data").rglob("*.parquet"))) == 3
        np.testing.assert_array_equal(source.episode(2)["top"], images(2))
    spec, extra = Spec({"state": ObsKey((1,))}, 1, control_hz=1), {"task_index": ObsKey((), "int64")}
    writer = formats.format_module("lerobot").Writer(tmp_path / "y", spec, {"tasks": ["a"]}, extra=extra)
    with pytest.raises(FlowleapError, match="'task_index' goes up to 1, but there are 1 tasks"), writer:
        writer.add({"state": np.zeros((1, 1)), "action": np.zeros((1, 1)), "task_index": np.array([1])})


@pytest.mark.parametrize("video", [False, True])
def test_lerobot_reads_what_we_write(tmp_path: Path, video: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset", reason="needs lerobot 0.4")
    if video and not hasattr(pytest.importorskip("torchvision").io, "VideoReader"):
        pytest.skip("needs a torchvision that lerobot can decode with")
    dataset = module.LeRobotDataset("me/mine", root=ours(tmp_path / "x", video), video_backend="pyav")
    assert (dataset.num_episodes, dataset.num_frames, dataset.fps) == (3, 16, 10)
    states = np.concatenate([rows(i)["observation.state"] for i in range(3)]).astype(np.float32)
    pixels = np.concatenate([images(i) for i in range(3)])
    for i in (0, 6, 15):
        item = dataset[i]
        np.testing.assert_array_equal(item["observation.state"].numpy(), states[i])
        assert item["task"] == "reach"
        shown = 255 * item[TOP].permute(1, 2, 0).numpy()
        assert np.abs(shown - pixels[i]).max() < (3.5 if video else 0.01)
