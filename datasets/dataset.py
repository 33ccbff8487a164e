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

from flowleap.datasets.interface import MALFORMED, Dataset
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
    "zarr": "flowleap.datasets.formats.zarr_store",
    "minari": "flowleap.datasets.formats.minari",
    "lerobot": "flowleap.datasets.formats.lerobot",
    "robomimic": "flowleap.datasets.formats.robomimic",
    "npz": "flowleap.datasets.formats.npz",
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
    """Return the name of the format of a path; `zarr` where nothing is there, whose errors say what is near."""
    place = Path(path).expanduser()
    if not place.exists():
        return "zarr"
    for name in FORMATS:
        if format_module(name).detect(place):
            return name
    if place.is_dir():
        return "zarr"
    raise FlowleapError(f"'{place}' is in none of the formats {', '.join(FORMATS)}; say format=...")


def open_dataset(
    path: str | os.PathLike[str],
    name: str | None = None,
    *,
    keys: Sequence[str] | None = None,
    episodes: Any = None,
    drop: Any = None,
    **options: Any,
) -> Dataset:
    """Open a dataset of any format for reading.

    Args:
        path: file or folder.
        name: the format; looked up by `detect` if None.
        keys: the columns to observe, with patterns; None is what the format takes for observations.
        episodes: those to read: how many from the first, a slice as text (`10:20`), or a list; None is all.
        drop: episodes not to read, in the same way.
        options: keyword arguments of the format's `Reader`, such as `filter="train"`; None stands for absent.

    Raises:
        FlowleapError: nothing there, an unknown format, an option the format does not have, a damaged file, a column
            or an episode that is not there.
    """
    mask = options.get("filter")
    if mask is not None and "filter" not in _options_of(name or detect(path)):
        del options["filter"]
    dataset = _open(path, name, options)
    if mask is not None and "filter" not in options:
        episodes = _masked(dataset, mask, episodes)
    if keys is None and episodes is None and drop is None:
        return dataset
    try:
        return Selected(dataset, keys, episodes, drop)
    except FlowleapError:
        dataset.close()
        raise


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


def _open(path: str | os.PathLike[str], name: str | None, options: Mapping[str, Any]) -> Dataset:
    name = name or detect(path)
    module = format_module(name)
    given = {key: value for key, value in options.items() if value is not None}
    known = _options_of(name)
    for key in given:
        if key not in known:
            raise FlowleapError(f"format {name} has no option '{key}' ('{path}' was taken for {name})")
    try:
        dataset: Dataset = module.Reader(Path(path).expanduser(), **given)
    except FlowleapError as error:
        if str(path) in str(error) or str(Path(path).expanduser()) in str(error):
            raise
        raise FlowleapError(f"'{path}': {error}") from error
    except MALFORMED as error:  # what a reader did not foresee in a file of others
        reason = f"{type(error).__name__}: {error}"
        raise FlowleapError(f"'{path}' was taken for {name}, and cannot be understood ({reason})") from error
    return dataset
