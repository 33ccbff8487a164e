"""LeRobotDataset v2.0, v2.1 and v3.0: parquet tables, PNG or mp4 images; written as v3.0; no lerobot import

`observation.state` becomes `state`, `observation.images.top` becomes `top`; other numbers are extra columns, unless
none is called `observation*`; texts are left out. Images of 16 bits are depth, as are videos that say so. The rows of
an episode are those with its `episode_index`, in the order of `frame_index`, and frames of videos are counted (see
`video.frames_of_rows`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets import order
from flowleap.datasets.columns import ACTION, Episode, flat_names, require_memory
from flowleap.datasets.formats.base import DAMAGE, Source, explain, read_json
from flowleap.datasets.formats.lerobot_depth import PIXELS, depth_codes, is_depth
from flowleap.datasets.formats.lerobot_index import DERIVED, NOTE, index_v2, index_v3, inside
from flowleap.datasets.formats.lerobot_index import is_lerobot as detect
from flowleap.datasets.formats.lerobot_writer import LeRobotWriter as Writer
from flowleap.datasets.formats.video import Clock, frames_of_rows, read_clock, read_frames
from flowleap.policy.core.errors import FlowleapError, optional_import
from flowleap.policy.core.spec import ObsKey

__all__ = ["Reader", "Writer", "detect"]

_PREFIXES = ["observation.images.", "observation."]
_TIME, _FRAME = "timestamp", "frame_index"
_PICTURES = ("image", "depth")
# Of Pillow's modes, those whose numbers are no colours: mm or metres.
_PIXELS = {"I;16": "uint16", "I;16B": "uint16", "I": "int32", "F": "float32"}


class Reader(Source):
    """A LeRobotDataset folder."""

    def __init__(self, path: Path) -> None:
        self._pa = optional_import("pyarrow", extra="formats")
        self._parquet = optional_import("pyarrow.parquet", extra="formats")
        self.path = path
        self._info = read_json(path / "meta" / "info.json")
        version = str(self._info.get("codebase_version", ""))
        if not version.startswith(("v2.", "v3.")):
            raise FlowleapError(
                f"'{path}' is a LeRobotDataset {version or 'of unknown version'}; v2.x and v3.x are read: convert it "
                "with the scripts of lerobot"
            )
        features = self._info.get("features")
        if not isinstance(features, dict):
            raise FlowleapError(f"'{path}': meta/info.json has no features")
        self._features: dict[str, dict[str, Any]] = features
        videos = [name for name, feature in features.items() if feature.get("dtype") == "video"]
        self._places, tasks = (index_v2 if version.startswith("v2.") else index_v3)(path, self._info, videos)
        self.n_episodes = len(self._places)
        self._fps = float(self._info.get("fps") or 0)
        if self._fps <= 0:
            raise FlowleapError(f"'{path}': meta/info.json has no frame rate (fps)")
        # What was read last: rows by columns, whose rows a table holds, and when the frames of a camera are shown.
        self._tables: dict[tuple[str, ...], tuple[Any, Any]] = {}
        self._numbered: tuple[Any, list[NDArray[np.int64]]] = (None, [])
        self._counts = False  # whether that table has `frame_index`
        self._clocks: dict[str, tuple[Any, Clock]] = {}
        note = path / "meta" / NOTE
        if note.is_file():
            self._read_note(read_json(note), f"'{path}', meta/{NOTE}")
        else:
            self._infer(tasks)
        self.stored = self._names

    def _infer(self, tasks: list[str]) -> None:
        """Describe the columns of a dataset that others wrote."""
        columns: dict[str, ObsKey] = {}
        refused: dict[str, str] = {}
        for name, feature in self._features.items():
            try:
                if name not in DERIVED and (column := self._column(name, feature)) is not None:
                    columns[name] = column
            except FlowleapError as error:
                refused[name] = str(error)
        self.refused = refused
        action = columns.pop(ACTION, None)
        names = flat_names(_observed(columns), _PREFIXES)
        observations = {key: columns.pop(name) for key, name in names.items()}
        rest = {name if name not in names else f"{name}_": name for name in columns}
        extra = {key: columns[name] for key, name in rest.items()}
        if len(tasks) > 1:
            rest["task_index"], extra["task_index"] = "task_index", ObsKey((), "int64")
        self._names = names | rest | ({ACTION: ACTION} if action else {})
        self._stored = {**observations, **extra} | ({ACTION: action} if action else {})
        robot = self._info.get("robot_type")
        self.describe(observations, action, extra, control_hz=self._fps, source={"robot": robot})
        axes = {key: self._features[name].get("names") for key, name in self._names.items()}
        about = {
            "names": {key: name for key, name in self._names.items() if key != name},
            "axes": {key: names for key, names in axes.items() if names is not None},
            "robot_type": robot,
        }
        self.attrs = {"tasks": tasks, "lerobot": about}

    def _read_note(self, note: Mapping[str, Any], where: str) -> None:
        """Take the columns from what `Writer` noted."""
        self.take_note(note, where)
        with explain(f"{where} is damaged", KeyError, TypeError, ValueError, AttributeError):
            self._names = dict(note["names"])
            self._stored = self.fields
            lost = [self._names[key] for key in self.fields if self._names[key] not in self._features]
        if lost:
            raise FlowleapError(f"{where} names '{lost[0]}', which meta/info.json does not have")

    def _read(self, index: int, keys: Sequence[str]) -> Episode:
        """Read some columns of one episode."""
        place = self._places[index]
        kinds = {key: self._features[self._names[key]]["dtype"] for key in keys}
        tabled = {self._names[key] for key in keys if kinds[key] != "video"}
        rows = self._rows(index, sorted(tabled | {_TIME}))
        columns: Episode = {}
        for key, kind in kinds.items():
            name, column = self._names[key], self._stored[key]
            shape = tuple(column.shape)
            try:
                if kind == "video" and column.kind == "depth":
                    codes = self._video(index, name, rows[_TIME], shape, PIXELS)
                    columns[key] = depth_codes(self._features[name]).metres(codes)
                elif kind == "video":
                    columns[key] = self._video(index, name, rows[_TIME], shape)
                elif kind in _PICTURES:
                    columns[key] = self._images(rows[name], column)
                else:
                    columns[key] = _in_dtype(_numbers(self._pa, rows[name], shape), column.dtype)
            except FlowleapError as error:
                file = place.videos[name].file if kind == "video" else place.table
                remedy = f"; copy or encode it again{self.or_without(index)}" if kind == "video" else ""
                raise self.error(index, key, f"{error} ({file.relative_to(self.path)}){remedy}") from error
        return columns

    def times(self, index: int) -> NDArray:
        """Time stamps of the frames, [T] seconds."""
        rows = self._rows(index, [_TIME])
        with self.naming(index, _TIME):
            return _numbers(self._pa, rows[_TIME], ())

    def disorder(self, index: int) -> str | None:
        """What is wrong with the time stamps, or a column beside; the rows are in the order of `frame_index`."""
        problem = order.problem(self.times(index))
        return super().disorder(index) if problem is None else f"'{_TIME}' {problem}"

    def _order(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which rows of the table are the episode's, in the order of its frames, and the numbers of the frames.

        The table's own `episode_index` and `frame_index` (else `index`) decide: where an episode begins is
        often wrong in metadata.
        """
        place = self._places[index]
        if self._numbered[0] != place.table:
            with self._reading(index):
                file = self._parquet.ParquetFile(place.table.absolute())
                self._require(index, file, ["episode_index"])
                counts = [name for name in (_FRAME, "index") if name in file.schema_arrow.names]
                names, self._counts = ["episode_index", *counts[:1]], _FRAME in counts
                require_memory(8 * len(names) * file.metadata.num_rows, f"'{self.path}': its rows")
                table = file.read(columns=names)
            found = []
            for name in names:
                with self.naming(index, name):
                    found.append(_numbers(self._pa, table[name], ()).astype(np.int64))
            self._numbered = place.table, found
        episodes, *counted = self._numbered[1]
        rows = np.flatnonzero(episodes == place.episode)
        if len(rows) != place.length or (place.alone and len(episodes) != place.length):
            says = f"is {place.episode} in {len(rows)} of the {len(episodes)} rows"
            where = f"{place.table.relative_to(self.path)}, the metadata say {place.length}: repair the rows"
            raise self.error(index, "episode_index", f"{says} of {where}{self.or_without(index)}")
        frames = counted[0][rows] if counted else np.arange(len(rows))
        ordered = np.argsort(frames, kind="stable")
        rows, frames = rows[ordered], frames[ordered]
        if np.any(np.diff(frames) == 0):
            twice = int(frames[np.argmin(np.diff(frames) != 0)])
            raise self.error(
                index,
                _FRAME,
                f"is {twice} in two rows: a row is there twice; repair them{self.or_without(index)}",
            )
        return rows, frames if self._counts else np.arange(len(rows))

    @contextmanager
    def _reading(self, index: int) -> Iterator[None]:
        """Let what goes wrong with a table name it."""
        place = self._places[index]
        where = f"'{self.path}', episode {place.episode}: {place.table.relative_to(self.path)} cannot be read"
        with explain(where, OSError, self._pa.ArrowException):
            yield

    def _require(self, index: int, file: Any, names: Sequence[str]) -> None:
        """Raise unless a table has columns."""
        table = self._places[index].table.relative_to(self.path)
        for name in names:
            if name not in file.schema_arrow.names:
                raise self.error(index, name, f"is no column of {table}")

    def _rows(self, index: int, names: Sequence[str]) -> Any:
        """Read the rows of an episode; the row groups read last are kept for the next one."""
        place = self._places[index]
        rows, _ = self._order(index)
        begin, end = int(rows.min()), int(rows.max()) + 1
        with self._reading(index):
            file = self._parquet.ParquetFile(place.table.absolute())
            self._require(index, file, names)
            ends = np.cumsum([0, *(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))])
            first = int(np.searchsorted(ends, begin, side="right")) - 1
            last = int(np.searchsorted(ends, end, side="left"))
            groups = list(range(first, last))
            where = f"'{self.path}', episode {place.episode}: its rows"
            require_memory(8 * _size(file.metadata, groups, names), where)
            wanted, kept = (place.table, first, last), self._tables.get(tuple(names))
            if kept is None or kept[0] != wanted:
                kept = self._tables[tuple(names)] = wanted, file.read_row_groups(groups, columns=list(names))
        rows = rows - int(ends[first])
        in_one = np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows)))
        return kept[1].slice(int(rows[0]), len(rows)) if in_one else kept[1].take(self._pa.array(rows))

    def _video(
        self, index: int, name: str, stamps: Any, shape: tuple[int, ...], pixels: str = "rgb24"
    ) -> NDArray:
        """Read the frames of a camera that belong to the rows."""
        clip = self._places[index].videos[name]
        if not clip.file.is_file():
            raise FlowleapError("is missing: no such video")
        if name not in self._clocks or self._clocks[name][0] != clip.file:
            self._clocks[name] = clip.file, read_clock(clip.file)
        clock, (_, frames) = self._clocks[name][1], self._order(index)
        times = _numbers(self._pa, stamps, ()).astype(np.float64)
        ticks = clock.ticks[frames_of_rows(clock, clip, frames, times, self._fps)]
        return read_frames(clip.file, ticks, shape, pixels)

    def _images(self, cells: Any, column: ObsKey) -> NDArray:
        """Decode cells {bytes, path}, as the image feature of Hugging Face datasets stores them; one at a time."""
        image = optional_import("PIL.Image", extra="formats")
        damage = (OSError, ValueError, TypeError, SyntaxError, image.DecompressionBombError)
        frames: list[NDArray] = []
        for cell in (scalar.as_py() for scalar in cells):
            data: Any = cell.get("bytes") if isinstance(cell, dict) else cell
            with explain(f"holds a damaged image at frame {len(frames)}", *damage):
                if data is None and isinstance(cell, dict) and cell.get("path"):
                    data = inside(self.path, str(cell["path"])).read_bytes()
                picture = image.open(io.BytesIO(data))
                size = (picture.height, picture.width)
                dtype, shape = _PIXELS.get(picture.mode, "uint8"), tuple(column.shape[:2])
                if dtype != column.dtype:  # Pillow would clip depth to white
                    wrong = f"holds {dtype} numbers at frame {len(frames)}, {column.dtype} ones in the first episode"
                    raise FlowleapError(f"{wrong}: colours and depth belong in columns of their own")
                if size != shape:  # before it is decoded, whatever its size
                    wrong = f"has {size} pixels at frame {len(frames)}, meta/info.json says {shape}"
                    raise FlowleapError(wrong)
                frames.append(
                    np.asarray(picture.convert("RGB") if dtype == "uint8" else picture).astype(dtype)
                )
        return np.stack(frames)

    def _column(self, name: str, feature: Mapping[str, Any]) -> ObsKey | None:
        """Describe a feature of info.json as it lies; None for texts and the like.

        Raises:
            FlowleapError: it is depth, and nothing says in which unit.
        """
        dtype, shape = str(feature.get("dtype")), tuple(int(n) for n in feature.get("shape") or ())
        if dtype != "video" and dtype not in _PICTURES:
            try:
                return ObsKey(shape, dtype) if np.dtype(dtype).kind in "biuf" else None
            except TypeError:
                return None
        if len(shape) != 3:
            return None
        axes = [str(axis)[:1] for axis in feature.get("names") or ()]
        channels_first = axes.index("c") == 0 if "c" in axes else shape[2] not in (1, 3, 4)
        height, width = shape[1:] if channels_first else shape[:2]
        if dtype == "video" and is_depth(feature):
            return ObsKey((height, width, 1), "float32", "depth", "m", (0.0, depth_codes(feature).high))
        if dtype == "video" or (pixels := self._pixels(name)) == "uint8":
            return ObsKey((height, width, 3), "uint8", "rgb")
        return ObsKey((height, width), pixels)

    def _pixels(self, name: str) -> str:
        """Dtype of the pixels of an image feature, by the first one."""
        image = optional_import("PIL.Image", extra="formats")
        with suppress(FlowleapError, *DAMAGE):  # whoever reads the column will hear of it
            cell = self._rows(0, [name])[name][0].as_py()
            data = cell.get("bytes") or inside(self.path, str(cell["path"])).read_bytes()
            return _PIXELS.get(image.open(io.BytesIO(data)).mode, "uint8")
        return "uint8"

    def label(self, index: int) -> str:
        """The episode's own index."""
        return f"episode {self._places[index].episode}"

    def seed(self, index: int) -> int | None:
        """The seed that `Writer` noted."""
        return self._places[index].seed


def _observed(columns: Mapping[str, ObsKey]) -> list[str]:
    """Names of the features that may be observed.

    Those of lerobot begin with `observation`. Of others (openpi: `state`, `image`), images are, and numbers where none
    of those begin so: then their names decide (`roles`).
    """
    own = {name for name in columns if name.startswith("observation")}
    if not any(columns[name].kind == "lowdim" for name in own):
        return list(columns)
    return [name for name, column in columns.items() if name in own or column.image]


def _size(metadata: Any, groups: Sequence[int], names: Sequence[str]) -> int:
    """Count the values of some columns in some row groups of a table, in lists too."""
    roots = [metadata.schema.column(i).path.split(".")[0] for i in range(metadata.num_columns)]
    columns = [i for i, root in enumerate(roots) if root in names]
    return sum(metadata.row_group(g).column(i).num_values for g in groups for i in columns)


def _in_dtype(values: NDArray, dtype: str) -> NDArray:
    """Return a table's values in the dtype that info.json declares; raise if a whole number changes."""
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(dtype)
        back = cast.astype(values.dtype)
    if values.dtype.kind == "f" and cast.dtype.kind == "f":  # tables of others hold float64 for float32
        return cast
    if not np.array_equal(back, values):
        raise FlowleapError(f"has values of {values.dtype} that {dtype} (meta/info.json) cannot hold")
    return cast


def _numbers(pa: Any, column: Any, shape: tuple[int, ...]) -> NDArray:
    """Turn a table's column into [T, *shape]; raise, without its name, where cells are missing or of other sizes."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    sizes = [len(array)]
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        if array.null_count:
            raise FlowleapError("has empty cells")
        kind = array.type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            break
        array, rows = array.flatten(), array
        lengths = np.asarray(rows.value_lengths())
        if len(lengths) and np.any(lengths != lengths[0]):
            row = int(np.argmax(lengths != lengths[0])) // math.prod(sizes[1:])
            raise FlowleapError(f"has cells of different sizes, the first at frame {row}")
        sizes.append(int(lengths[0]) if len(lengths) else 0)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise FlowleapError(f"holds {kind}, not numbers")
    if math.prod(sizes[1:]) != math.prod(shape):
        raise FlowleapError(f"has shape {tuple(sizes[1:])} a frame, meta/info.json says {shape}")
    return array.to_numpy(zero_copy_only=False).reshape(sizes[0], *shape)
