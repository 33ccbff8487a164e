"""Demonstrations of any format behind one interface: `open_dataset(path)`, or `Dataset.from_arrays(...)`.

    with open_dataset("data/pusht.zarr") as dataset:
        windows = dataset.windows(n_obs_steps=2, horizon=16, n_action_steps=8)
    batch = windows.gather(np.arange(64))

A format is one module; it becomes known through one line in `FORMATS`. The first line of its docstring is what
`flowleap list` shows. It offers

    detect(path) -> bool                              a look at names and first bytes, no imports
    Reader(path, **options) -> Dataset                the options are its own keyword arguments
    Writer(path, spec, attrs, overwrite, extra, ...)  optional: a context manager with `add(episode, seed)`

Optional packages (h5py, pyarrow, av) are imported when a dataset is opened.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from flowleap.datasets.finding import datasets_inside, way_in
from flowleap.datasets.hub import local_path
from flowleap.datasets.interface import MALFORMED, Dataset
from flowleap.datasets.mapping import mapped, observe_points
from flowleap.datasets.selection import MASKS, Selected, chosen_episodes
from flowleap.policy.core.errors import FlowleapError, suggest

__all__ = [
    "FORMATS",
    "Dataset",
    "describe_formats",
    "detect",
    "format_module",
    "open_dataset",
    "writable_formats",
]

FORMATS = {  # in the order in which they are asked whether a path is theirs
    "umi": "flowleap.datasets.formats.umi",
    "zarr": "flowleap.datasets.formats.zarr_store",
    "minari": "flowleap.datasets.formats.minari",
    "lerobot": "flowleap.datasets.formats.lerobot",
    "isaac_lab": "flowleap.datasets.formats.isaac_lab",
    "maniskill": "flowleap.datasets.formats.maniskill",
    "d4rl": "flowleap.datasets.formats.d4rl",
    "aloha": "flowleap.datasets.formats.aloha",
    "robomimic": "flowleap.datasets.formats.robomimic",
    "npz": "flowleap.datasets.formats.npz",
    "rosbag": "flowleap.datasets.formats.rosbag",
}


def describe_formats() -> dict[str, str]:
    """Name -> one line."""
    return {name: (format_module(name).__doc__ or "").splitlines()[0] for name in FORMATS}


def writable_formats() -> list[str]:
    """Names of the formats that can be written."""
    return [name for name in FORMATS if hasattr(format_module(name), "Writer")]


def format_module(name: str) -> ModuleType:
    """Return the module of a format; raise naming the nearest known one."""
    if name not in FORMATS:
        raise FlowleapError(f"no format '{name}' among {', '.join(FORMATS)}{suggest(name, FORMATS)}")
    return importlib.import_module(FORMATS[name])


def detect(path: str | os.PathLike[str]) -> str:
    """Return the name of the format of a path, see `locate`."""
    return locate(path)[1]


def locate(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """Return where the dataset of a path is, and its format: the path itself, or the only dataset inside a folder.

    Where nothing is there, it is a path of `zarr`, whose errors say what is near.

    Raises:
        FlowleapError: a folder with several datasets, or a file that is none.
    """
    place = local_path(path)
    if not place.exists():
        return place, "zarr"
    if (name := _format_of(place)) is not None:
        return place, name
    if not place.is_dir():
        raise FlowleapError(f"'{place}' is in none of the formats {', '.join(FORMATS)}: {way_in(place)}")
    found = datasets_inside(place, lambda inner: _format_of(inner) is not None)
    if len(found) > 1:
        listed = ", ".join(str(inner) for inner in found[:8]) + (", ..." if len(found) > 8 else "")
        raise FlowleapError(f"'{place}' holds {len(found)} datasets, say which one: {listed}")
    inner = found[0] if found else place
    return inner, _format_of(inner) or "zarr"


def _format_of(place: Path) -> str | None:
    """The name of the format of what is at a path itself, None if it is none."""
    return next((name for name in FORMATS if format_module(name).detect(place)), None)


def open_dataset(
    path: str | os.PathLike[str],
    name: str | None = None,
    lenient: bool = False,
    *,
    keys: Sequence[str] | None = None,
    episodes: Any = None,
    drop: Any = None,
    action: str | Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    points: Sequence[str] | None = None,
    resize: Any = None,
    crop: Any = None,
    **options: Any,
) -> Dataset:
    """Open a dataset of any format for reading.

    Args:
        path: file or folder, or `hf://OWNER/NAME` of the Hugging Face Hub (see `hub`).
        name: the format; looked up by `detect` if None.
        lenient: hand out episodes whose rows are out of order, to be looked at.
        keys: the columns to observe, with patterns; None is what the format takes for observations.
        episodes: those to read: how many from the first, a slice as text (`10:20`), or a list; None is all.
        drop: episodes not to read, in the same way.
        action: the column that holds the actions, or several that are put side by side; None goes by their names.
        rename: other names of columns, new -> old; `keys` are the new ones.
        points: columns that are clouds of points, see `mapping.observe_points`; a recorded Spec says so itself.
        resize, crop: the size and the part in which cameras are read, see `Dataset.resize`.
        options: keyword arguments of the format's `Reader`, such as `filter="train"`; None stands for absent.

    Raises:
        FlowleapError: nothing there, an unknown format, an option the format does not have, a damaged file, a column
            or an episode that is not there.
    """
    path = local_path(path)
    mask = options.get("filter")
    if mask is not None and "filter" not in _options_of(name or detect(path)):
        del options["filter"]
    dataset = _open(path, name, lenient, options)
    try:
        if points is not None:
            observe_points(dataset, points, rename)
        if resize is not None or crop is not None:
            dataset.resize(_old_names(resize, rename), _old_names(crop, rename))
        if mask is not None and "filter" not in options:
            episodes = _masked(dataset, mask, episodes)
        view = mapped(dataset, action, rename)
        if keys is not None or episodes is not None or drop is not None:
            view = Selected(view, keys, episodes, drop)
        if view.must_choose:
            remedy = "keys=[NAME] observes one all the same, rename={NEW:OLD} gives it a name of its own"
            raise FlowleapError(f"'{path}' has nothing to observe: {view.must_choose}; {remedy}")
        return view
    except FlowleapError:
        dataset.close()
        raise


def _old_names(option: Any, rename: Mapping[str, str] | None) -> Any:
    """An option that names cameras, by the names that they have before `rename`."""
    names = rename or {}
    return (
        {names.get(key, key): value for key, value in option.items()}
        if isinstance(option, Mapping)
        else option
    )


def _options_of(name: str) -> list[str]:
    """The options of a format's reader."""
    return list(inspect.signature(format_module(name).Reader).parameters)[1:]


def _masked(dataset: Dataset, mask: str, episodes: Any) -> list[int]:
    """The episodes of a filter that a conversion kept in the attributes."""
    masks = dataset.attrs.get(MASKS)
    if not isinstance(masks, dict) or mask not in masks:
        known = f", only {', '.join(masks)}{suggest(mask, masks)}" if isinstance(masks, dict) else ""
        raise FlowleapError(
            f"'{dataset.path}' has no filter '{mask}'{known}; episodes=[...] names episodes by number"
        )
    n = dataset.n_episodes
    wanted = range(n) if episodes is None else chosen_episodes(episodes, n, "episodes", dataset.path)
    return [index for index in wanted if index in masks[mask]]


def _open(
    path: str | os.PathLike[str], name: str | None, lenient: bool, options: Mapping[str, Any]
) -> Dataset:
    place = Path(path).expanduser()
    if name is None or (place.is_dir() and not format_module(name).detect(place)):
        place, found = locate(path)
        name = name or found
    module = format_module(name)
    given = {key: value for key, value in options.items() if value is not None}
    known = _options_of(name)
    for key in given:
        if key not in known:
            others = ", ".join(other for other in FORMATS if key in _options_of(other)) or "none"
            raise FlowleapError(
                f"format {name} has no option '{key}' ('{path}' was taken for {name}; of the formats, {others} have it)"
            )
    try:
        dataset: Dataset = module.Reader(place, **given)
        dataset.lenient = lenient
    except FlowleapError as error:
        if str(path) in str(error) or str(Path(path).expanduser()) in str(error):
            raise
        raise FlowleapError(f"'{path}': {error}") from error
    except MALFORMED as error:  # what a reader did not foresee in a file of others
        reason = f"{type(error).__name__}: {error}"
        raise FlowleapError(f"'{path}' was taken for {name}, and cannot be understood ({reason})") from error
    return dataset
