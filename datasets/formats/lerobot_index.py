"""Where each episode of a LeRobotDataset lies: table, rows, videos; v2.x from JSON lines, v3.0 from parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowleap.datasets.formats.base import explain
from flowleap.datasets.formats.video import Clip
from flowleap.policy.core.errors import FlowleapError, optional_import

NOTE = "flowleap.json"  # in meta/: what a store knows and LeRobot has no place for
DERIVED = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that every LeRobotDataset has, and that are made anew when one is written."""

_FIELD = re.compile(r"\{\w+(:0?\d{1,2}d?)?\}")
_DATA_V2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
_VIDEO_V2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
DATA_V3 = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_V3 = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


class Place(NamedTuple):
    """One episode: its index, its number of rows, the table that they are in, and feature -> its part of a video.

    `alone` means that the table holds no other episode.
    """

    episode: int
    length: int
    table: Path
    videos: dict[str, Clip]
    seed: int | None = None
    alone: bool = False


def is_lerobot(path: Path) -> bool:
    """A folder with meta/info.json."""
    return (path / "meta" / "info.json").is_file()


def inside(root: Path, name: str) -> Path:
    """Return a file of the dataset; raise if the name leads out of its folder."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise FlowleapError(f"'{root}' names a file outside of its folder: {name}")
    return root / name


def index_v2(root: Path, info: dict[str, Any], videos: Sequence[str]) -> tuple[list[Place], list[str]]:
    """Read meta/episodes.jsonl and meta/tasks.jsonl; return the episodes and the tasks by index."""
    size = int(info.get("chunks_size") or 1000)
    data, video = info.get("data_path") or _DATA_V2, info.get("video_path") or _VIDEO_V2
    places = []
    for line in _json_lines(root / "meta" / "episodes.jsonl"):
        episode, length = _whole(root, line, "episode_index"), _whole(root, line, "length")
        numbers = {"episode_chunk": episode // size, "episode_index": episode}
        files = {key: _fill(root, video, video_key=key, **numbers) for key in videos}
        clips = {key: Clip(file, 0.0, 0.0, 0, length) for key, file in files.items()}
        places.append(Place(episode, length, _fill(root, data, **numbers), clips, alone=True))
    lines = _json_lines(root / "meta" / "tasks.jsonl")
    tasks = {_whole(root, line, "task_index"): str(line.get("task")) for line in lines}
    return _checked(root, info, places), _by_index(tasks)


def index_v3(root: Path, info: dict[str, Any], videos: Sequence[str]) -> tuple[list[Place], list[str]]:
    """Read meta/episodes/ and meta/tasks.parquet; return the episodes and the tasks by index."""
    data, video = info.get("data_path") or DATA_V3, info.get("video_path") or VIDEO_V3
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise FlowleapError(f"'{root}' has no tables in meta/episodes")
    places = []
    for row in (row for file in files for row in _parquet_rows(root, file)):
        clips = {}
        for key in videos:
            start, end = (float(row.get(f"videos/{key}/{when}_timestamp") or 0.0) for when in ("from", "to"))
            clips[key] = Clip(_numbered(root, row, f"videos/{key}", video, video_key=key), start, end, 0, 0)
        seed, table = row.get("seed"), _numbered(root, row, "data", data)
        episode, length = _whole(root, row, "episode_index"), _whole(root, row, "length")
        places.append(Place(episode, length, table, clips, seed if isinstance(seed, int) else None))
    for key in videos:
        _count_rows(places, key)
    file = root / "meta" / "tasks.parquet"
    tasks: dict[int, str] = {}
    for row in _parquet_rows(root, file) if file.is_file() else []:  # pandas has the texts as its index
        number = _whole(root, row, "task_index")
        tasks[number] = next((value for value in row.values() if isinstance(value, str)), "")
    return _checked(root, info, places), _by_index(tasks)


def _count_rows(places: Sequence[Place], key: str) -> None:
    """Note in the clips of a camera how many rows lie before each in its file, and in the whole file."""
    total: dict[Path, int] = {}
    ordered = sorted(places, key=lambda place: (place.videos[key].start, place.episode))
    for place in ordered:
        clip = place.videos[key]
        place.videos[key] = clip._replace(before=total.get(clip.file, 0))
        total[clip.file] = total.get(clip.file, 0) + place.length
    for place in places:
        clip = place.videos[key]
        place.videos[key] = clip._replace(total=total[clip.file])


def _numbered(root: Path, row: dict[str, Any], folder: str, template: str, **names: str) -> Path:
    """The file whose numbers a row of meta/episodes gives."""
    numbers = {name: _whole(root, row, f"{folder}/{name}") for name in ("chunk_index", "file_index")}
    return _fill(root, template, **names, **numbers)


def _by_index(tasks: dict[int, str]) -> list[str]:
    return [tasks.get(i, "") for i in range(max(tasks, default=-1) + 1)]


def _parquet_rows(root: Path, file: Path) -> list[dict[str, Any]]:
    """Read a small table as dictionaries, less the statistics."""
    parquet = optional_import("pyarrow.parquet", extra="formats")
    pa = optional_import("pyarrow", extra="formats")
    with explain(f"'{root}': {file.relative_to(root)} cannot be read", OSError, pa.ArrowException):
        place = file.absolute()  # pyarrow takes the relative path `a:b` for a URI
        columns = [name for name in parquet.read_schema(place).names if not name.startswith("stats/")]
        rows: list[dict[str, Any]] = parquet.read_table(place, columns=columns).to_pylist()
    return rows


def _json_lines(file: Path) -> list[dict[str, Any]]:
    with explain(f"'{file}' cannot be read", OSError, ValueError, RecursionError):
        lines = file.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise FlowleapError(f"'{file}' must hold one JSON object a line")
    return rows


def _whole(root: Path, row: dict[str, Any], name: str) -> int:
    value = row.get(name)
    if not isinstance(value, int):
        about = f", episode {row['episode_index']}" if "episode_index" in row else ""
        raise FlowleapError(f"'{root}'{about}: its metadata have no whole number '{name}'")
    return value


def _fill(root: Path, template: str, **values: Any) -> Path:
    """Fill a path template of info.json."""
    wrong = f"'{root}': meta/info.json has a bad path template {template!r}"
    with explain(wrong, KeyError, IndexError, ValueError, AttributeError, TypeError):
        # A width could ask for gigabytes of blanks.
        if any(mark in _FIELD.sub("", template) for mark in "{}"):
            raise ValueError("fields are written {name} or {name:03d}")
        return inside(root, template.format(**values))


def _checked(root: Path, info: dict[str, Any], places: list[Place]) -> list[Place]:
    """Sort by index; raise unless there are episodes, each once and with frames, and as many as info.json says."""
    if not places:
        raise FlowleapError(f"'{root}' has no episodes")
    places = sorted(places, key=lambda place: place.episode)
    known: set[int] = set()
    for place in places:
        where = f"'{root}', episode {place.episode}"
        if place.length < 1:
            raise FlowleapError(f"{where}: length is {place.length}, at least 1 is needed")
        if place.episode in known:
            raise FlowleapError(f"{where} is there twice")
        if not place.table.is_file():
            raise FlowleapError(f"{where}: {place.table.relative_to(root)} is missing")
        known.add(place.episode)
    counts = {"total_episodes": len(places), "total_frames": sum(place.length for place in places)}
    for name, count in counts.items():
        if info.get(name) not in (None, count):
            wrong = f"{info[name]}, but the episodes in meta/ make {count}"
            raise FlowleapError(
                f"'{root}': {name} in meta/info.json is {wrong}; copy meta/ again, or correct it"
            )
    return places
