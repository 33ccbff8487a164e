"""Opening a zarr group in a folder or a zip, and saying what is there instead."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import zarr
import zarr.storage

from flowleap.datasets.formats.base import explain
from flowleap.policy.core.errors import FlowleapError, suggest

LAYOUT = "a dataset is a zarr folder with data/<key> and meta/episode_ends"


def open_group(path: Path) -> tuple[zarr.Group, Path | zipfile.Path]:
    """Open a zarr group, and the folder or zip that it is in, or say what is there instead."""
    if not path.exists():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        stores = sorted(name for name in siblings if name.endswith(".zarr") and name[0] != ".")
        beside = f"; '{path.parent}' holds {', '.join(stores[:8])}" if stores else ""
        hint = f"{suggest(path.name, siblings)}{beside}"
        raise FlowleapError(f"dataset '{path}' does not exist{hint} ({LAYOUT})")
    root: Path | zipfile.Path = path
    store: Any = path
    inside = ""
    if path.is_file() and (path.suffix == ".zip" or zipfile.is_zipfile(path)):
        broken = f"dataset '{path}' is not a whole zip file"
        with explain(broken, OSError, zipfile.BadZipFile, remedy="; copy the dataset again"):
            root, store = zipfile.Path(zipfile.ZipFile(path)), zarr.storage.ZipStore(path, mode="r")
        stores = zipped_stores(path)
        if len(stores) != 1:
            found = f"the zarr stores {', '.join(stores[:8])}" if stores else "no zarr store"
            remedy = f"unpack it with `python -m zipfile -e {path} FOLDER`, and give what is in there"
            raise FlowleapError(f"dataset '{path}' is a zip with {found}; {remedy}")
        inside = stores[0]
    try:
        return zarr.open_group(store, mode="r", path=inside, use_consolidated=False), root
    except Exception as error:  # FileNotFoundError, ContainsArrayError, JSON errors: all mean the same here
        below = sorted(p.name for p in path.glob("[!.]*.zarr")) if path.is_dir() else []
        hint = f"; it contains {', '.join(below[:8])}" if below else ""
        raise FlowleapError(f"dataset '{path}' is not a zarr group: {LAYOUT}{hint}") from error


def zipped_stores(path: Path) -> list[str]:
    """The folders in a zip that are groups in no other group: where its stores are."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (OSError, zipfile.BadZipFile):
        return []
    places = (name.rpartition("/") for name in names)
    groups = {folder for folder, _, file in places if file in (".zgroup", "zarr.json")}

    def is_inside(group: str) -> bool:
        parts = group.split("/")
        return bool(group) and any("/".join(parts[:i]) in groups for i in range(len(parts)))

    return sorted(group for group in groups if not is_inside(group))
