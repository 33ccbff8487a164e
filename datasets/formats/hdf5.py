"""HDF5 files of others: links and storage in other files are not followed, names are text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowleap.policy.core.errors import FlowleapError, optional_import


def open_hdf5(path: Path) -> Any:
    """Open a file for reading; raise unless it is a whole HDF5 file."""
    h5py = optional_import("h5py", extra="formats")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise FlowleapError(f"'{path}' is no whole HDF5 file ({error}); copy or record it again") from error


def require_own(node: Any, file: Any) -> None:
    """Raise unless an object, and the data of a dataset, are in the file itself.

    A link or a dataset can name any file of this machine, whose content would be converted, shown and passed on.

    Args:
        node: h5py's low-level identifier of a group or dataset.
        file: that of the file.

    Raises:
        FlowleapError: the message does not name the file.
    """
    h5py = optional_import("h5py", extra="formats")
    elsewhere = h5py.h5f.get_name(node) != h5py.h5f.get_name(file)
    if not elsewhere and isinstance(node, h5py.h5d.DatasetID) and node.get_offset() is None:
        properties = node.get_create_plist()
        virtual = properties.get_layout() == h5py.h5d.VIRTUAL
        elsewhere = virtual or properties.get_external_count() > 0
    if elsewhere:
        raise FlowleapError("is stored in another file, which is not read: merge the files with h5copy")


def text(name: Any) -> str:
    """Return a name as text; h5py hands out bytes where it is no UTF-8.

    Raises:
        FlowleapError: it is no UTF-8. The message does not name the file.
    """
    try:
        return name.decode() if isinstance(name, bytes) else str(name)
    except UnicodeDecodeError as error:
        raise FlowleapError(f"has a name that is no UTF-8: {name!r}") from error
