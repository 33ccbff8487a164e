"""The files behind a zarr store, in a folder or in a zip, for the checks that zarr leaves out."""

from __future__ import annotations

import zipfile
from pathlib import Path

from flowleap.policy.core.errors import FlowleapError


class Folder:
    """Files below a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def folders(self, name: str) -> list[str]:
        """Names of the folders in a folder; none if it is not there."""
        folder = self._path / name
        return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []

    def size(self, name: str) -> int | None:
        """Bytes of a file, None if it is not there."""
        file = self._path / name
        return file.stat().st_size if file.is_file() else None

    def head(self, name: str, n: int) -> bytes:
        """The first bytes of a file."""
        with (self._path / name).open("rb") as stream:
            return stream.read(n)


class Zip:
    """Files inside a zip. The directory at its end is read once."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise FlowleapError(
                f"dataset '{path}' is not a whole zip file ({error}); copy the dataset again"
            ) from error
        self._sizes = {info.filename: info.file_size for info in self._file.infolist() if not info.is_dir()}

    def folders(self, name: str) -> list[str]:
        """Names of the folders in a folder; none if it is not there."""
        prefix = f"{name}/"
        inside = (file[len(prefix) :].split("/") for file in self._sizes if file.startswith(prefix))
        return sorted({parts[0] for parts in inside if len(parts) > 1})

    def size(self, name: str) -> int | None:
        """Bytes of a file before compression, None if it is not there."""
        return self._sizes.get(name)

    def head(self, name: str, n: int) -> bytes:
        """The first bytes of a file."""
        with self._file.open(name) as stream:
            return stream.read(n)


def open_files(path: Path) -> Folder | Zip:
    """Return the files of a store: a zip if `path` is a file named or made like one, else a folder."""
    if path.is_file() and (path.suffix == ".zip" or zipfile.is_zipfile(path)):
        return Zip(path)
    return Folder(path)


def blosc_size(header: bytes) -> int:
    """Return the compressed size that a Blosc chunk states in its 16-byte header."""
    return int.from_bytes(header[12:16], "little") if len(header) == 16 else 16
