"""Where the dataset is: in a folder that is none itself (a download, an unpacked archive), or in no format at all."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

_DEPTH = 3
_MOST = 2000  # files and folders that are looked at


def datasets_inside(folder: Path, is_dataset: Callable[[Path], bool]) -> list[Path]:
    """The datasets in a folder and the folders below it, but not those inside of others.

    Hidden names are left out, and links to folders, which may lead anywhere.
    """
    found: list[Path] = []
    level, left = [folder], _MOST
    for _ in range(_DEPTH):
        below: list[Path] = []
        for parent in level:
            with os.scandir(parent) as entries:
                places = sorted(Path(entry) for entry in itertools.islice(entries, left))
            left -= len(places)
            for place in places:
                if place.name.startswith("."):
                    continue
                if is_dataset(place):
                    found.append(place)
                elif place.is_dir() and not place.is_symlink():
                    below.append(place)
        level = below
    return found


def way_in(file: Path) -> str:
    """How what is in a file of no known format becomes a dataset: a line of Python, where there is one."""
    suffix, new = file.suffix.lower(), str(file.with_suffix(".npz"))
    ends = "episode_ends holds the frame after each episode's last one"
    if suffix == ".npy":
        save = f"np.savez({new!r}, state=np.load({str(file)!r}), action=ACTIONS, episode_ends=[N])"
        return f"one array has no names: save those of observations and actions together, {save}; {ends}"
    if suffix in (".csv", ".tsv", ".txt"):
        comma = "','" if suffix == ".csv" else "None"
        line = (
            f"import numpy as np; d = np.loadtxt({str(file)!r}, delimiter={comma}, skiprows=1); "
            f"np.savez({new!r}, state=d[:, :-1], action=d[:, -1:], episode_ends=[len(d)])"
        )
        return f'with your columns and ends, python -c "{line}" makes a dataset of a table; {ends}'
    if suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib"):
        return (
            "pickles can run code, so they are not read: where you trust it, load it yourself and save "
            f"np.savez({new!r}, state=STATES, action=ACTIONS, episode_ends=[N]); {ends}"
        )
    if suffix in (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".zst"):
        return "unpack it, and give the folder as the dataset"
    return "write it anew, see 'Recordings of your own' in docs/data.md, or say format=..."
