"""Writing a LeRobotDataset v3.0: tables of up to 100 MB, statistics, tasks; images as PNG (exact) or mp4 (lossy)."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import Episode, plain
from flowleap.datasets.formats.base import Writer
from flowleap.datasets.formats.lerobot_index import DATA_V3, DERIVED, NOTE, VIDEO_V3, is_lerobot
from flowleap.datasets.formats.lerobot_stats import Statistics
from flowleap.datasets.formats.video import write_frames
from flowleap.policy.core.errors import FlowleapError, optional_import
from flowleap.policy.core.spec import ObsKey, Spec

_TABLE_BYTES = 100 * 2**20
_CHUNK_FILES = 1000
_TASK = "task_index"


class LeRobotWriter(Writer):
    """Writes a LeRobotDataset folder; see `Writer` for the other arguments.

    Args:
        spec: its `control_hz` must be known.
        attrs: kept beside the Spec in `meta/flowleap.json`; `tasks` (texts by index) become LeRobot's tasks.
        extra: columns that are no observations; `task_index` says which task a frame belongs to.
        video: images as mp4, one file an episode, instead of PNG inside the tables.
    """

    kind = "LeRobotDataset"
    is_kind = staticmethod(is_lerobot)

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: Spec,
        attrs: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        extra: Mapping[str, ObsKey] | None = None,
        video: bool = False,
    ) -> None:
        self._video = video
        super().__init__(path, spec, attrs, overwrite, extra)

    def _prepare(self) -> None:
        self._pa = optional_import("pyarrow", extra="formats")
        self._parquet = optional_import("pyarrow.parquet", extra="formats")
        if self.spec.control_hz <= 0:
            raise FlowleapError("LeRobotDataset needs the frame rate, which the source lacks: add control_hz")
        self._clips = self._images if self._video else set()
        tasks = self.attrs.get("tasks") or [self.spec.source.get("env") or "unnamed task"]
        self._tasks = [str(task) for task in tasks]
        self._given = self.attrs.get("lerobot", {})
        self._names = self._choose_names()
        self._features = {name: self._feature(key) for key, name in self._names.items()}
        for name in DERIVED:
            dtype = "float32" if name == "timestamp" else "int64"
            self._features[name] = {"dtype": dtype, "shape": [1], "names": None}
        self._statistics = Statistics()
        self._episodes: list[dict[str, Any]] = []
        self._table: Any = None
        self._file = -1
        self._room = 0

    def _choose_names(self) -> dict[str, str]:
        """Column -> feature: the names that a LeRobotDataset gave, else the customary ones."""
        given = self._given.get("names", {})
        names: dict[str, str] = {}
        for key in self._layout.columns:
            prefix = "observation.images." if key in self._images else "observation."
            name = given.get(key) or (prefix + key if key in self.spec.observations else key)
            while name in names.values() or (name in DERIVED and key != _TASK):
                name += "_"
            names[key] = name
        return names

    def _feature(self, key: str) -> dict[str, Any]:
        """An entry of `features` in info.json; a single number has shape [1] there."""
        shape, dtype = self._layout.columns[key]
        if len(shape) > 5:
            raise FlowleapError(f"'{key}' has {len(shape)} axes, a LeRobotDataset holds five at most")
        kind, axes = dtype.name, self._given.get("axes", {}).get(key)
        if key in self._images:
            kind, axes = "video" if self._video else "image", ["height", "width", "channels"]
        return {"dtype": kind, "shape": list(shape) or [1], "names": axes}

    def _open(self) -> None:
        empty = {key: np.empty((0, *shape), dtype) for key, (shape, dtype) in self._layout.columns.items()}
        derived = dict.fromkeys(DERIVED, np.empty(0, np.int64)) | {"timestamp": np.empty(0, np.float32)}
        self._schema = self._arrow_table(empty, derived).schema
        (self._temporary / "meta" / "episodes" / "chunk-000").mkdir(parents=True)

    def _arrow_table(self, columns: Episode, derived: Mapping[str, NDArray]) -> Any:
        """What the tables hold: all columns but those in videos, and those that LeRobot derives, which come last."""
        stored = [key for key in columns if key not in self._clips and self._names[key] not in DERIVED]
        own = {self._names[key]: self._cells(key, columns[key]) for key in stored}
        return self._pa.table(own | {name: self._pa.array(values) for name, values in derived.items()})

    def _write(self, columns: Episode, length: int, seed: int | None) -> None:
        frames, number = np.arange(length), self.n_episodes
        tasks = columns.get(_TASK, np.zeros(length, np.int64))
        if tasks.min() < 0 or tasks.max() >= len(self._tasks):
            wrong = f"'{_TASK}' goes up to {tasks.max()}, but there are {len(self._tasks)} tasks"
            raise FlowleapError(f"episode {number}: {wrong}")
        stamps = (frames / self.spec.control_hz).astype(np.float32)
        numbers: tuple[NDArray, ...] = (
            stamps,
            frames,
            np.full(length, number),
            frames + self.n_frames,
            tasks,
        )
        derived = dict(zip(DERIVED, numbers, strict=True))
        file = self._append(self._arrow_table(columns, derived))
        row = {"episode_index": number, "tasks": [self._tasks[i] for i in np.unique(tasks)], "length": length}
        row |= _numbered("data", file)
        row |= {"dataset_from_index": self.n_frames, "dataset_to_index": self.n_frames + length}
        row |= _numbered("meta/episodes", 0) | {"seed": seed}
        for key in columns:
            if key in self._clips:
                row |= self._write_clip(self._names[key], columns[key])
        described = {self._names[key]: (values, key in self._images) for key, values in columns.items()}
        row |= self._statistics.add(described | {name: (values, False) for name, values in derived.items()})
        self._episodes.append(row)

    def _write_clip(self, name: str, images: NDArray) -> dict[str, Any]:
        """Write the video of an episode; return what its row in meta/episodes says of it."""
        rate, (height, width) = self.spec.control_hz, images.shape[1:3]
        chunk, file = divmod(self.n_episodes, _CHUNK_FILES)
        place = VIDEO_V3.format(video_key=name, chunk_index=chunk, file_index=file)
        codec = write_frames(self._temporary / place, images, rate)
        about = {"height": height, "width": width, "codec": codec, "pix_fmt": "yuv420p"}
        about |= {"is_depth_map": False, "fps": rate, "channels": 3}
        info = {f"video.{field}": value for field, value in about.items()}
        self._features[name]["info"] = info | {"has_audio": False}
        span = {"from_timestamp": 0.0, "to_timestamp": len(images) / rate}
        place_in_time = {f"videos/{name}/{field}": value for field, value in span.items()}
        return _numbered(f"videos/{name}", self.n_episodes) | place_in_time

    def _cells(self, key: str, values: NDArray) -> Any:
        """Turn [T, *shape] into an arrow array: numbers, (nested) lists, or images as PNG."""
        pa = self._pa
        if key in self._images:
            image = optional_import("PIL.Image", extra="formats")
            cells = []
            for frame in values:
                stream = io.BytesIO()
                image.fromarray(frame).save(stream, "PNG", compress_level=1)
                cells.append({"bytes": stream.getvalue(), "path": None})
            return pa.array(cells, type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        shape = values.shape[1:]
        array = pa.array(np.ascontiguousarray(values).reshape(-1))
        if shape in ((), (1,)):
            return array
        if len(shape) == 1:
            return pa.FixedSizeListArray.from_arrays(array, shape[0])
        for size in reversed(shape):
            array = pa.ListArray.from_arrays(np.arange(0, len(array) + 1, size, dtype=np.int32), array)
        return array

    def _append(self, table: Any) -> int:
        """Write a table to the current file, or to a new one where it would grow too large; return its number."""
        if self._table is None or self._room < table.nbytes:
            self._close()
            self._file += 1
            chunk, file = divmod(self._file, _CHUNK_FILES)
            place = self._temporary / DATA_V3.format(chunk_index=chunk, file_index=file)
            place.parent.mkdir(parents=True, exist_ok=True)
            self._table = self._parquet.ParquetWriter(place, self._schema, compression="snappy")
            self._room = _TABLE_BYTES
        self._table.write_table(table)
        self._room -= table.nbytes
        return self._file

    def _close(self) -> None:
        if self._table is not None:
            self._table.close()

    def _finish(self) -> None:
        meta, rate = self._temporary / "meta", self.spec.control_hz
        robot = self.attrs.get("lerobot", {}).get("robot_type") or self.spec.source.get("robot")
        info = {"codebase_version": "v3.0", "robot_type": robot, "total_episodes": self.n_episodes}
        info |= {"total_frames": self.n_frames, "total_tasks": len(self._tasks), "chunks_size": _CHUNK_FILES}
        info |= {"data_files_size_in_mb": _TABLE_BYTES // 2**20, "video_files_size_in_mb": 200}
        info |= {"fps": int(rate) if rate == int(rate) else rate, "splits": {"train": f"0:{self.n_episodes}"}}
        info |= {"data_path": DATA_V3, "video_path": VIDEO_V3 if self._clips else None}
        info |= {"features": self._features}
        note = self._note() | {"names": self._names}
        for name, data in (("info.json", info), ("stats.json", self._statistics.total()), (NOTE, note)):
            (meta / name).write_text(json.dumps(data, indent=4, ensure_ascii=False, default=plain), "utf-8")
        rows = self._pa.Table.from_pylist(self._episodes)
        self._parquet.write_table(rows, meta / "episodes" / "chunk-000" / "file-000.parquet")
        self._parquet.write_table(_task_table(self._pa, self._tasks), meta / "tasks.parquet")


def _numbered(folder: str, number: int) -> dict[str, Any]:
    """Where a numbered file lies, as a row of meta/episodes says it."""
    return {f"{folder}/chunk_index": number // _CHUNK_FILES, f"{folder}/file_index": number % _CHUNK_FILES}


def _task_table(pa: Any, tasks: list[str]) -> Any:
    """A table that pandas reads with the texts as its index, which is how lerobot looks them up."""
    index = "__index_level_0__"
    fields = ("name", "field_name", "pandas_type", "numpy_type", "metadata")
    rows = [("task_index", "task_index", "int64", "int64", None), (None, index, "unicode", "object", None)]
    about = [dict(zip(fields, row, strict=True)) for row in rows]
    pandas = {"index_columns": [index], "column_indexes": [], "columns": about, "pandas_version": "2.0.0"}
    columns = {"task_index": pa.array(range(len(tasks)), pa.int64()), index: pa.array(tasks, pa.string())}
    return pa.table(columns).replace_schema_metadata({"pandas": json.dumps(pandas)})
