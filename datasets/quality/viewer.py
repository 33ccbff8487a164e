"""An episode in the Rerun viewer: cameras, clouds of points, observations and actions on one time line."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION
from flowleap.datasets.interface import Dataset
from flowleap.policy.core.errors import FlowleapError, optional_import
from flowleap.policy.core.files import complete_file
from flowleap.policy.core.spec import ObsKey

_LINES = 64  # numbers of a column that get a line


def show(dataset: Dataset, index: int, target: Path | None) -> str:
    """Stream an episode to a viewer, or write it to `target`; return what was shown, for people.

    Raises:
        FlowleapError: no such episode, or the viewer did not open or closed too early.
    """
    rerun = optional_import("rerun", extra="viewer")
    if not isinstance(index, int) or not 0 <= index < dataset.n_episodes:
        raise FlowleapError(f"'{dataset.path}' has episodes 0 to {dataset.n_episodes - 1}, not {index}")
    columns = dataset.episode(index)
    times = _times(dataset, index, len(columns[ACTION]))
    label, spec = dataset.label(index), dataset.spec
    seen = {key: column for key, column in dataset.fields.items() if column.dense}
    recording = rerun.RecordingStream("flowleap")
    paths = {key: _entity(key, set(spec.observations)) for key in columns}

    def fill() -> None:
        about = f"{dataset.path.name}, {label}\n\n{spec.summary()}"
        recording.send_recording_name(f"{dataset.path.name}, {label}")
        recording.send_blueprint(_blueprint(paths, seen))
        recording.log("about", rerun.TextDocument(about), static=True)
        for key, values in columns.items():
            if key in seen:
                _log_frames(recording, paths[key], values, times, seen[key])
            else:
                _log_lines(recording, paths[key], values.reshape(len(values), -1), times)
        recording.flush()
        recording.disconnect()

    if target is None:
        _open_viewer(recording)
        try:
            fill()
        except RuntimeError as error:  # what the recording raises when the viewer is gone
            raise FlowleapError("the Rerun viewer closed; save=episode.rrd works without it") from error
    else:
        with complete_file(target, "save") as temporary:
            recording.save(temporary)
            fill()
    return f"{label}, {len(times['frame'])} frames of {len(columns)} columns"


def check_target(save: str | None) -> Path | None:
    """Return where to write; raise if that is no place for a recording, or if a viewer has no display."""
    if save is None:
        display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        if sys.platform.startswith("linux") and not display:
            raise FlowleapError(
                "there is no display for the viewer: add save=episode.rrd, copy that file to a machine that has "
                "one, and open it there with `rerun episode.rrd`"
            )
        return None
    target = Path(save).expanduser()
    if target.suffix != ".rrd" or target.is_dir():
        raise FlowleapError(
            f"save={save}: a recording is a file that ends in .rrd, for instance save=episode.rrd"
        )
    return target


def _open_viewer(recording: Any) -> None:
    beside = Path(sys.executable).with_name(
        "rerun"
    )  # an environment that is not activated is not on the PATH
    try:
        rerun = optional_import("rerun", extra="viewer")
        rerun.spawn(executable_path=str(beside) if beside.is_file() else None, recording=recording)
    except Exception as error:  # the viewer is a program of its own, each way to fail has its own exception
        first = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "save=episode.rrd works without it"
        raise FlowleapError(f"the Rerun viewer did not open ({first}); {remedy}") from error


def _times(dataset: Dataset, index: int, length: int) -> dict[str, NDArray]:
    """The time lines: `frame`, and `time` in seconds if time stamps or a rate are known."""
    lines: dict[str, NDArray] = {"frame": np.arange(length)}
    stamps = dataset.times(index)
    if stamps is not None and np.isfinite(stamps).all():
        lines["time"] = stamps.astype(np.float64) - float(stamps[0])
    elif dataset.spec.control_hz:
        lines["time"] = np.arange(length) / dataset.spec.control_hz
    return lines


def _entity(key: str, observations: set[str]) -> str:
    """The place of a column in the recording's tree."""
    rerun = optional_import("rerun", extra="viewer")
    parts = [ACTION] if key == ACTION else ["observation" if key in observations else "extra", key]
    path: str = rerun.new_entity_path(parts)
    return path


def _log_lines(recording: Any, path: str, values: NDArray, times: Mapping[str, NDArray]) -> None:
    """Log numbers [T, size] as one line each."""
    rerun = optional_import("rerun", extra="viewer")
    shown = values[:, :_LINES].astype(np.float64)
    size = shown.shape[1]
    recording.log(path, rerun.SeriesLines(names=[str(i) for i in range(size)]), static=True)
    indexes = [rerun.TimeColumn("frame", sequence=times["frame"])]
    if "time" in times:
        indexes.append(rerun.TimeColumn("time", duration=times["time"]))
    columns = rerun.Scalars.columns(scalars=shown.ravel()).partition([size] * len(shown))
    recording.send_columns(path, indexes=indexes, columns=columns)


def _log_frames(
    recording: Any, path: str, frames: NDArray, times: Mapping[str, NDArray], column: ObsKey
) -> None:
    """Log images [T, H, W, 3] as JPEG: raw ones would fill the viewer's memory; depth and points as they are."""
    rerun = optional_import("rerun", extra="viewer")
    for i, frame in enumerate(frames):
        recording.set_time("frame", sequence=int(times["frame"][i]))
        if "time" in times:
            recording.set_time("time", duration=float(times["time"][i]))
        if column.kind == "depth":
            metre = 1000.0 if column.unit == "mm" else 1.0
            shown = rerun.DepthImage(frame[..., 0], meter=metre, depth_range=column.range)
        elif column.kind == "points":
            shown = rerun.Points3D(frame[:, :3], colors=_colours(frame))
        else:
            shown = rerun.Image(frame).compress()
        recording.log(path, shown)
    recording.reset_time()


def _colours(points: NDArray) -> NDArray[np.uint8] | None:
    """The colours of points [N, 6], which are shares or bytes; None of points without."""
    if points.shape[1] == 3:
        return None
    scale = 255 if points[:, 3:].max(initial=0) <= 1 else 1
    return (points[:, 3:] * scale).clip(0, 255).astype(np.uint8)


def _blueprint(paths: Mapping[str, str], seen: Mapping[str, ObsKey]) -> Any:
    """Cameras and clouds on the left, lines on the right, the action first."""
    blueprint = optional_import("rerun.blueprint", extra="viewer")
    lines = sorted((key for key in paths if key not in seen), key=lambda key: key != ACTION)
    series = [blueprint.TimeSeriesView(origin=paths[key], name=key) for key in lines]
    cameras = [
        (blueprint.Spatial2DView if column.image else blueprint.Spatial3DView)(origin=paths[key], name=key)
        for key, column in seen.items()
    ]
    right = blueprint.Vertical(*series) if len(series) <= 6 else blueprint.Grid(*series)
    return blueprint.Blueprint(
        blueprint.Horizontal(blueprint.Vertical(*cameras), right) if cameras else right
    )
