"""Where each episode of a LeRobotDataset lies: table, rows, videos; v2.x from JSON lines, v3.0 from parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    """One episode: its index, rows [offset, offset + length) of a table, and feature -> (video, start in seconds)."""

    episode: int
    length: int
    table: Path
    offset: int
    videos: dict[str, tuple[Path, float]]
    seed: int | None = None


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FlowleapError(f"'{file}' cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise FlowleapError(f"'{file}' holds no JSON object")
    return data


def inside(root: Path, name: str) -> Path:
    """Return a file of the dataset; raise if the name leads out of its folder."""
    path = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise FlowleapError(f"'{root}' names a file outside of its folder: {name}")
    return path


def index_v2(root: Path, info: dict[str, Any], videos: Sequence[str]) -> tuple[list[Place], list[str]]:
    """Read meta/episodes.jsonl and meta/tasks.jsonl; return the episodes and the tasks by index."""
    size = int(info.get("chunks_size") or 1000)
    places = []
    for line in _json_lines(root / "meta" / "episodes.jsonl"):
        episode, length = _whole(root, line, "episode_index"), _whole(root, line, "length")
        numbers = {"episode_chunk": episode // size, "episode_index": episode}
        table = _fill(root, info.get("data_path") or _DATA_V2, **numbers)
        files = {
            key: (_fill(root, info.get("video_path") or _VIDEO_V2, video_key=key, **numbers), 0.0)
            for key in videos
        }
        places.append(Place(episode, length, table, 0, files))
    tasks = {
        _whole(root, t, "task_index"): str(t.get("task")) for t in _json_lines(root / "meta" / "tasks.jsonl")
    }
    return _checked(root, places), _by_index(tasks)


def index_v3(root: Path, info: dict[str, Any], videos: Sequence[str]) -> tuple[list[Place], list[str]]:
    """Read meta/episodes/ and meta/tasks.parquet; return the episodes and the tasks by index."""
    rows: list[dict[str, Any]] = []
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    for file in files:
        rows += _parquet_rows(root, file, without="stats/")
    if not files:
        raise FlowleapError(f"'{root}' has no tables in meta/episodes")
    first: dict[Path, int] = {}
    places = []
    for row in rows:
        numbers = {name: _whole(root, row, f"data/{name}") for name in ("chunk_index", "file_index")}
        table = _fill(root, info.get("data_path") or DATA_V3, **numbers)
        start = _whole(root, row, "dataset_from_index")
        first[table] = min(start, first.get(table, start))
        clips = {}
        for key in videos:
            numbers = {
                name: _whole(root, row, f"videos/{key}/{name}") for name in ("chunk_index", "file_index")
            }
            clip = _fill(root, info.get("video_path") or VIDEO_V3, video_key=key, **numbers)
            clips[key] = (clip, float(row.get(f"videos/{key}/from_timestamp") or 0.0))
        seed = row.get("seed")
        seed = seed if isinstance(seed, int) else None
        episode, length = _whole(root, row, "episode_index"), _whole(root, row, "length")
        places.append(Place(episode, length, table, start, clips, seed))
    places = [place._replace(offset=place.offset - first[place.table]) for place in places]
    return _checked(root, places), _tasks_v3(root)


def _tasks_v3(root: Path) -> list[str]:
    """Read the tasks: a column `task_index`, and the texts in the index column of a pandas table."""
    file = root / "meta" / "tasks.parquet"
    if not file.is_file():
        return []
    tasks: dict[int, str] = {}
    for row in _parquet_rows(root, file):
        number = _whole(root, row, "task_index")
        tasks[number] = next((value for value in row.values() if isinstance(value, str)), "")
    return _by_index(tasks)


def _by_index(tasks: dict[int, str]) -> list[str]:
    return [tasks.get(i, "") for i in range(max(tasks, default=-1) + 1)]


def _parquet_rows(root: Path, file: Path, without: str | None = None) -> list[dict[str, Any]]:
    """Read a small table as dictionaries, less the columns that begin with `without`."""
    parquet = optional_import("pyarrow.parquet", extra="formats")
    pa = optional_import("pyarrow", extra="formats")
    try:
        names = parquet.read_schema(file).names
        columns = [name for name in names if without is None or not name.startswith(without)]
        rows: list[dict[str, Any]] = parquet.read_table(file, columns=columns).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise FlowleapError(f"'{root}': {file.relative_to(root)} cannot be read ({error})") from error
    return rows


def _json_lines(file: Path) -> list[dict[str, Any]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise FlowleapError(f"'{file}' cannot be read: {error}") from error
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
    try:
        # A width could ask for gigabytes of blanks.
        if any(mark in _FIELD.sub("", template) for mark in "{}"):
            raise ValueError("fields are written {name} or {name:03d}")
        return inside(root, template.format(**values))
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise FlowleapError(
            f"'{root}': meta/info.json has a bad path template {template!r} ({error})"
        ) from error


def _checked(root: Path, places: list[Place]) -> list[Place]:
    """Sort by index; raise unless there are episodes, each of them once and with frames."""
    places = sorted(places, key=lambda place: place.episode)
    if not places:
        raise FlowleapError(f"'{root}' has no episodes")
    for place, following in zip(places, [*places[1:], None], strict=True):
        if place.length < 1:
            raise FlowleapError(
                f"'{root}', episode {place.episode}: length is {place.length}, at least 1 is needed"
            )
        if following is not None and place.episode == following.episode:
            raise FlowleapError(f"'{root}', episode {place.episode} is there twice")
        if not place.table.is_file():
            raise FlowleapError(
                f"'{root}', episode {place.episode}: {place.table.relative_to(root)} is missing"
            )
    return places
