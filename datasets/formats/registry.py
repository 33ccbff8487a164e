"""The dataset formats by name: which one a path is in, how to read it, how to write it.

A format is one module; it becomes known through one line in `FORMATS`. The first line of its docstring is what
`flowleap list` shows. It offers

    detect(path) -> bool                              a look at names and first bytes, no imports
    open_source(path, **options) -> Source            reading; the options are its own keyword arguments
    Writer(path, spec, attrs, overwrite, extra, ...)  optional: a context manager with `add(episode, seed)`

Optional packages (h5py, pyarrow, av) are imported when a dataset is opened.
"""

from __future__ import annotations

import importlib
import inspect
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from flowleap.datasets.formats.source import MALFORMED, Source
from flowleap.policy.core.errors import FlowleapError, suggest

FORMATS = {  # in the order in which they are asked whether a path is theirs
    "zarr": "flowleap.datasets.formats.zarr_source",
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


def open_source(path: str | os.PathLike[str], name: str | None = None, **options: Any) -> Source:
    """Open a dataset of any format for reading.

    Args:
        path: file or folder.
        name: the format; looked up by `detect` if None.
        options: keyword arguments of the format's `open_source`, such as `filter="train"`; None stands for absent.

    Raises:
        FlowleapError: nothing there, an unknown format, an option the format does not have, a damaged file.
    """
    name = name or detect(path)
    module = format_module(name)
    given = {key: value for key, value in options.items() if value is not None}
    known = list(inspect.signature(module.open_source).parameters)[1:]
    for key in given:
        if key not in known:
            raise FlowleapError(f"format {name} has no option '{key}' ('{path}' was taken for {name})")
    try:
        source: Source = module.open_source(Path(path).expanduser(), **given)
    except FlowleapError as error:
        if str(path) in str(error) or str(Path(path).expanduser()) in str(error):
            raise
        raise FlowleapError(f"'{path}': {error}") from error
    except MALFORMED as error:  # what a reader did not foresee in a file of others
        raise FlowleapError(
            f"'{path}' was taken for {name}, and cannot be understood ({type(error).__name__}: {error})"
        ) from error
    return source
