"""HDF5 files of others: links and storage in other files are not followed, names are text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowleap.datasets.formats.base import Source, explain
from flowleap.policy.core.errors import FlowleapError, optional_import


class Hdf5Source(Source):
    """A dataset in one HDF5 file, which must be whole."""

    def __init__(self, path: Path, file: Path) -> None:
        self._h5, self.path = optional_import("h5py", extra="formats"), path
        with explain(f"'{file}' is no whole HDF5 file", OSError, remedy="; copy or record it again"):
            self._file = self._h5.File(file, "r")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _require_own(self, node: Any) -> None:
        """Raise unless an object, given as h5py's low-level identifier, and its data are in the file itself.

        A link or a dataset can name any file of this machine, whose content would be converted, shown and passed on.
        The message does not name the file.
        """
        h5py = self._h5
        elsewhere = h5py.h5f.get_name(node) != h5py.h5f.get_name(self._file.id)
        if not elsewhere and isinstance(node, h5py.h5d.DatasetID) and node.get_offset() is None:
            properties = node.get_create_plist()
            virtual = properties.get_layout() == h5py.h5d.VIRTUAL
            elsewhere = virtual or properties.get_external_count() > 0
        if elsewhere:
            raise FlowleapError("is stored in another file, which is not read: merge the files with h5copy")

    def _text(self, name: Any, where: str) -> str:
        """Return a name as text; raise where it is no UTF-8, which h5py hands out as bytes."""
        try:
            return name.decode() if isinstance(name, bytes) else str(name)
        except UnicodeDecodeError as error:
            raise FlowleapError(f"'{self.path}': {where} has a name that is no UTF-8: {name!r}") from error

    def _numeric(self, node: Any) -> bool:
        """Whether an object is a dataset of numbers with a row a frame."""
        return isinstance(node, self._h5.Dataset) and node.dtype.kind in "biuf" and node.ndim >= 1
