"""Writing a LeRobotDataset v3.0: tables of up to 100 MB, statistics, tasks; images as PNG (exact) or mp4 (lossy)."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowleap.datasets.columns import ACTION, Episode, Layout, plain
from flowleap.datasets.formats.lerobot_index import DATA_V3, DERIVED, NOTE, VIDEO_V3
from flowleap.datasets.formats.lerobot_stats import Statistics
from flowleap.datasets.formats.video import write_frames
from flowleap.datasets.target import Target
from flowleap.policy.core.errors import FlowleapError, optional_import
from flowleap.policy.core.spec import ObsKey, Spec

_TABLE_BYTES = 100 * 2**20
_CHUNK_FILES = 1000
_TASK = "task_index"


class LeRobotWriter:
    """Context manager that writes a LeRobotDataset folder, which appears when it is complete.

    Args:
        path: the new folder.
        spec: observation keys, shapes and dtypes, the action dimension, and `control_hz`, which LeRobot needs.
        attrs: kept beside the Spec in `meta/flowleap.json`; `tasks` (texts by index) become LeRobot's tasks.
        overwrite: replace an existing LeRobotDataset, once the new one is complete.
        extra: columns that are no observations; `task_index` says which task a frame belongs to.
        video: images as mp4, one file an episode, instead of PNG inside the tables.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        spec: Spec,
        attrs: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        extra: Mapping[str, ObsKey] | None = None,
        video: bool = False,
    ) -> None:
        self._pa = optional_import("pyarrow", extra="formats")
        self._parquet = optional_import("pyarrow.parquet", extra="formats")
        if spec.control_hz <= 0:
            raise FlowleapError(
                "LeRobotDataset needs the frame rate, which the source does not say: add control_hz"
            )
        self.spec = spec
        self.attrs = dict(attrs or {})
        self._extra = dict(extra or {})
        self._layout = Layout(spec, extra)
        self._target = Target(
            path, overwrite, "LeRobotDataset", lambda p: (p / "meta" / "info.json").is_file()
        )
        self.path = self._target.path
        self._rgb = {key for key, obs in spec.observations.items() if obs.kind == "rgb"}
        self._video = video
        tasks = self.attrs.get("tasks")
        self._tasks = (
            [str(task) for task in tasks] if tasks else [str(spec.source.get("env") or "unnamed task")]
        )
        self._names = self._choose_names()
        self._features = {name: self._feature(key) for key, name in self._names.items()} | _derived_features()
        self._statistics = Statistics()
        self._episodes: list[dict[str, Any]] = []
        self._table: Any = None
        self._file = -1
        self._room = 0
        self.n_frames = 0

    @property
    def n_episodes(self) -> int:
        """Episodes added so far."""
        return len(self._episodes)

    def _choose_names(self) -> dict[str, str]:
        """Column -> feature: the names that a LeRobotDataset gave, else the customary ones."""
        given = self.attrs.get("lerobot", {}).get("names", {})
        names: dict[str, str] = {}
        for key in self._layout.columns:
            prefix = "observation.images." if key in self._rgb else "observation."
            name = given.get(key) or (prefix + key if key in self.spec.observations else key)
            while name in names.values() or (name in DERIVED and key != _TASK):
                name += "_"
            names[key] = name
        return names

    def _feature(self, key: str) -> dict[str, Any]:
        """An entry of `features` in info.json; a single number has shape [1] there."""
        shape, dtype = self._layout.columns[key]
        axes = self.attrs.get("lerobot", {}).get("axes", {}).get(key)
        if key in self._rgb:
            kind, axes = "video" if self._video else "image", ["height", "width", "channels"]
        else:
            kind = dtype.name
        if len(shape) > 5:
            raise FlowleapError(f"'{key}' has {len(shape)} axes, a LeRobotDataset holds five at most")
        return {"dtype": kind, "shape": list(shape) or [1], "names": axes}

    def add(self, episode: Mapping[str, ArrayLike], seed: int | None = None) -> None:
        """Append one episode: key -> [T, *shape], equal T >= 1 for every key of the Spec and `action`."""
        columns = self._layout.fit(episode, f"episode {self.n_episodes}")
        length = len(columns[ACTION])
        number = self.n_episodes
        frames = np.arange(length)
        tasks = columns.get(_TASK, np.zeros(length, np.int64))
        if tasks.min() < 0 or tasks.max() >= len(self._tasks):
            raise FlowleapError(
                f"episode {number}: '{_TASK}' goes up to {tasks.max()}, but there are {len(self._tasks)} tasks"
            )
        derived: dict[str, NDArray] = {
            "timestamp": (frames / self.spec.control_hz).astype(np.float32),
            "frame_index": frames,
            "episode_index": np.full(length, number),
            "index": frames + self.n_frames,
            _TASK: tasks,
        }
        table = {
            name: self._cells(key, columns[key])
            for key, name in self._names.items()
            if not self._is_clip(key)
        }
        table |= {name: self._pa.array(values) for name, values in derived.items()}
        with self._target.errors():
            file = self._append(self._pa.table(table, schema=self._schema))
            clips = self._clips(columns)
        statistics: dict[str, tuple[NDArray, bool]] = {
            self._names[key]: (values, key in self._rgb) for key, values in columns.items()
        }
        statistics |= {name: (values, False) for name, values in derived.items()}
        self._episodes.append(
            {
                "episode_index": number,
                "tasks": [self._tasks[i] for i in np.unique(tasks)],
                "length": length,
                "data/chunk_index": file // _CHUNK_FILES,
                "data/file_index": file % _CHUNK_FILES,
                "dataset_from_index": self.n_frames,
                "dataset_to_index": self.n_frames + length,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                "seed": seed,
            }
            | clips
            | self._statistics.add(statistics)
        )
        self.n_frames += length

    def _is_clip(self, key: str) -> bool:
        return self._video and key in self._rgb

    def _clips(self, columns: Episode) -> dict[str, Any]:
        """Write the videos of an episode; return what its row in meta/episodes says of them."""
        row: dict[str, Any] = {}
        chunk, file = divmod(self.n_episodes, _CHUNK_FILES)
        for key in columns:
            if not self._is_clip(key):
                continue
            name = self._names[key]
            place = VIDEO_V3.format(video_key=name, chunk_index=chunk, file_index=file)
            codec = write_frames(self._target.temporary / place, columns[key], self.spec.control_hz)
            height, width = columns[key].shape[1:3]
            self._features[name]["info"] = {
                "video.height": height,
                "video.width": width,
                "video.codec": codec,
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": self.spec.control_hz,
                "video.channels": 3,
                "has_audio": False,
            }
            about = {"chunk_index": chunk, "file_index": file, "from_timestamp": 0.0}
            about["to_timestamp"] = len(columns[key]) / self.spec.control_hz
            row |= {f"videos/{name}/{field}": value for field, value in about.items()}
        return row

    def _cells(self, key: str, values: NDArray) -> Any:
        """Turn [T, *shape] into an arrow array: numbers, (nested) lists, or images as PNG."""
        pa = self._pa
        if key in self._rgb:
            image = optional_import("PIL.Image", extra="formats")
            cells = []
            for frame in values:
                stream = io.BytesIO()
                image.fromarray(frame).save(stream, "PNG", compress_level=1)
                cells.append({"bytes": stream.getvalue(), "path": None})
            return pa.array(cells, type=self._arrow_type(key))
        shape = values.shape[1:]
        array = pa.array(np.ascontiguousarray(values).reshape(-1))
        if shape in ((), (1,)):
            return array
        if len(shape) == 1:
            return pa.FixedSizeListArray.from_arrays(array, shape[0])
        for size in reversed(shape):
            array = pa.ListArray.from_arrays(np.arange(0, len(array) + 1, size, dtype=np.int32), array)
        return array

    def _arrow_type(self, key: str) -> Any:
        pa = self._pa
        if key in self._rgb:
            return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        shape, dtype = self._layout.columns[key]
        kind = pa.from_numpy_dtype(dtype.newbyteorder("="))
        if shape in ((), (1,)):
            return kind
        if len(shape) == 1:
            return pa.list_(kind, shape[0])
        for _ in shape:
            kind = pa.list_(kind)
        return kind

    def _append(self, table: Any) -> int:
        """Write a table to the current file, or to a new one where it would grow too large; return its number."""
        if self._table is None or self._room < table.nbytes:
            if self._table is not None:
                self._table.close()
            self._file += 1
            chunk, file = divmod(self._file, _CHUNK_FILES)
            place = self._target.temporary / DATA_V3.format(chunk_index=chunk, file_index=file)
            place.parent.mkdir(parents=True, exist_ok=True)
            self._table = self._parquet.ParquetWriter(place, self._schema, compression="snappy")
            self._room = _TABLE_BYTES
        self._table.write_table(table)
        self._room -= table.nbytes
        return self._file

    def __enter__(self) -> Self:
        pa = self._pa
        fields = [
            (name, self._arrow_type(key)) for key, name in self._names.items() if not self._is_clip(key)
        ]
        kinds = {"timestamp": pa.float32()}
        fields = [f for f in fields if f[0] not in DERIVED] + [(n, kinds.get(n, pa.int64())) for n in DERIVED]
        self._schema = pa.schema(fields)
        with self._target.errors():
            (self._target.temporary / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._target.errors():
                if self._table is not None:
                    self._table.close()
                if kind is None:
                    self._finish()
                    self._target.publish()
        finally:
            self._target.discard()

    def _finish(self) -> None:
        if not self._episodes:
            raise FlowleapError(f"no episode was added, '{self.path}' is not written")
        meta = self._target.temporary / "meta"
        rate = self.spec.control_hz
        robot = self.attrs.get("lerobot", {}).get("robot_type") or self.spec.source.get("robot")
        info = {
            "codebase_version": "v3.0",
            "robot_type": robot,
            "total_episodes": self.n_episodes,
            "total_frames": self.n_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": _CHUNK_FILES,
            "data_files_size_in_mb": _TABLE_BYTES // 2**20,
            "video_files_size_in_mb": 200,
            "fps": int(rate) if rate == int(rate) else rate,
            "splits": {"train": f"0:{self.n_episodes}"},
            "data_path": DATA_V3,
            "video_path": VIDEO_V3 if self._video and self._rgb else None,
            "features": self._features,
        }
        note = {
            "spec": self.spec.to_dict(),
            "extra": {key: [list(column.shape), column.dtype] for key, column in self._extra.items()},
            "attrs": self.attrs,
            "names": self._names,
        }
        for name, data in (("info.json", info), ("stats.json", self._statistics.total()), (NOTE, note)):
            (meta / name).write_text(json.dumps(data, indent=4, ensure_ascii=False, default=plain), "utf-8")
        rows = self._pa.Table.from_pylist(self._episodes)
        self._parquet.write_table(rows, meta / "episodes" / "chunk-000" / "file-000.parquet")
        self._parquet.write_table(_task_table(self._pa, self._tasks), meta / "tasks.parquet")


def _derived_features() -> dict[str, dict[str, Any]]:
    kinds = {"timestamp": "float32"}
    return {name: {"dtype": kinds.get(name, "int64"), "shape": [1], "names": None} for name in DERIVED}


def _task_table(pa: Any, tasks: list[str]) -> Any:
    """A table that pandas reads with the texts as its index, which is how lerobot looks them up."""
    index = "__index_level_0__"
    about = [
        {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, field, kind, numpy in (
            ("task_index", "task_index", "int64", "int64"),
            (None, index, "unicode", "object"),
        )
    ]
    pandas = {"index_columns": [index], "column_indexes": [], "columns": about, "pandas_version": "2.0.0"}
    table = pa.table(
        {"task_index": pa.array(range(len(tasks)), pa.int64()), index: pa.array(tasks, pa.string())}
    )
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
