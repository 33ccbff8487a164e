"""The columns of a dataset: what a Spec asks of an episode, and whether an episode fits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import psutil
from numpy.typing import ArrayLike, NDArray

from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import ObsKey, Spec

ACTION = "action"
CACHE_BYTES = 1024 * 2**20  # what images and points may take in memory unless said otherwise
Episode = dict[str, NDArray]
"""One episode: key -> [T, *shape]."""
Columns = Mapping[str, Any]
"""key -> [N, *shape] over all frames: an array, or `Frames` where it holds images or points."""


def as_stored(shape: Sequence[int], dtype: np.dtype) -> ObsKey:
    """Describe a column as it lies, by the shape of one frame and its dtype; `Dataset.recognise` finds the images."""
    return ObsKey(tuple(int(n) for n in shape), dtype.name)


def flat_names(originals: Iterable[str], prefixes: Sequence[str]) -> dict[str, str]:
    """Map short names without slashes to the names of another format, in their order.

    The first fitting prefix is cut off (`obs/robot0_eef_pos` is `robot0_eef_pos`); where two would get the same
    name, or one the name of the action, the later one keeps its prefix, with dots for slashes.
    """
    names: dict[str, str] = {}
    for original in originals:
        short = next((original[len(p) :] for p in prefixes if original.startswith(p)), original)
        name = short.replace("/", ".")
        if name in names or name in (ACTION, ""):
            name = original.replace("/", ".")
        while name in names or name == ACTION:
            name += "_"
        names[name] = original
    return names


class Layout:
    """The columns of a dataset with their shapes and dtypes.

    Args:
        spec: the observation keys, and the length of an action (float32 [A]).
        extra: further columns, which are no observations (rewards, indices of tasks); an entry for `action` gives
            the actions another dtype than float32.

    Attributes:
        columns: key -> (shape of one frame, dtype).

    Raises:
        FlowleapError: a key cannot name a column.
    """

    def __init__(self, spec: Spec, extra: Mapping[str, ObsKey] | None = None) -> None:
        self.columns: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        for key, obs in spec.observations.items():
            if key == ACTION:
                raise FlowleapError(f"'{ACTION}' cannot be an observation key: it holds the actions")
            self.columns[key] = (tuple(obs.shape), np.dtype(obs.dtype))
        extra = dict(extra or {})
        action = extra.pop(ACTION, ObsKey((spec.action_dim,)))
        if tuple(action.shape) != (spec.action_dim,):
            raise FlowleapError(f"'{ACTION}' has shape {action.shape}, the Spec says ({spec.action_dim},)")
        for key, column in extra.items():
            if key in self.columns:
                raise FlowleapError(f"'{key}' is an observation key already")
            self.columns[key] = (tuple(column.shape), np.dtype(column.dtype))
        self.columns[ACTION] = ((spec.action_dim,), np.dtype(action.dtype))
        for key in self.columns:
            check_key(key)

    def fit(self, episode: Mapping[str, ArrayLike], where: str) -> Episode:
        """Return the episode as arrays of the right dtypes; those that fit already are passed on.

        Raises:
            FlowleapError: a key is missing or unknown, a shape or the number of frames differs, or a value does not
                fit the dtype or is not finite; the message names key and frame after `where`.
        """
        for key in episode:
            if key not in self.columns:
                raise FlowleapError(f"{where}: '{key}' is not in the Spec{suggest(key, self.columns)}")
        columns: Episode = {}
        for key, (shape, dtype) in self.columns.items():
            if key not in episode:
                raise FlowleapError(f"{where}: '{key}' is missing, the Spec requires it")
            values = np.asarray(episode[key])
            if values.shape[1:] != shape or values.ndim != len(shape) + 1:
                expected = ", ".join(["frames", *map(str, shape)])
                raise FlowleapError(f"{where}: '{key}' has shape {values.shape}, expected ({expected})")
            columns[key] = _cast(values, dtype, f"{where}: '{key}'")
        lengths = {key: len(column) for key, column in columns.items()}
        if len(set(lengths.values())) != 1 or lengths[ACTION] < 1:
            raise FlowleapError(f"{where}: every key needs the same number of frames >= 1, got {lengths}")
        return columns


def vectors(values: NDArray) -> NDArray:
    """Frames [T, ...] as vectors [T, n]; a number a frame, [T], is [T, 1]."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def plain(value: Any) -> Any:
    """Make an attribute JSON-ready: numpy scalars and arrays as numbers and lists, the rest as text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def check_key(key: str) -> None:
    """Raise unless `key` can name a zarr array and a file."""
    bad = not key.isprintable() or any(c in key for c in "/\\") or key.startswith((".", "__"))
    if not key or bad or len(key.encode()) > 200:
        raise FlowleapError(
            f"observation key {key!r} cannot name a column: use letters, digits and underscores"
        )


def _cast(values: NDArray, dtype: np.dtype, where: str) -> NDArray:
    """Return the values in `dtype`; raise if a whole number changes or a value is not finite."""
    if values.dtype == dtype:
        cast = values
    elif values.dtype.kind in "biuf" and np.can_cast(values.dtype, dtype, "same_kind"):
        with np.errstate(over="ignore"):
            cast = values.astype(dtype)
    else:
        raise FlowleapError(f"{where} has dtype {values.dtype}, which does not fit the Spec's {dtype}")
    if dtype.kind == "f" and not np.isfinite(cast).all():
        frame = int(np.argwhere(~np.isfinite(cast))[0, 0])
        raise FlowleapError(f"{where} is not finite at frame {frame}")
    if values.dtype.kind in "iu" and values.dtype != dtype and not np.array_equal(cast, values):
        raise FlowleapError(f"{where} has values of {values.dtype} that {dtype} cannot hold exactly")
    return cast


_SMALL = 256 * 2**20  # below this, nobody asks the system


def require_memory(nbytes: int, where: str) -> None:
    """Raise `FlowleapError` unless `nbytes` fit into the memory that is free.

    A few bytes of metadata can claim any shape, and a system that runs out of memory kills without a word.
    """
    if nbytes > _SMALL and nbytes > free_memory():
        raise FlowleapError(
            f"{where} takes {nbytes / 1e9:,.1f} GB, more than the memory that is free "
            f"({free_memory() / 1e9:.1f} GB): the dataset is damaged, or needs a larger machine"
        )


def free_memory() -> int:
    """Bytes of memory that are free or hold caches."""
    return int(psutil.virtual_memory().available)
