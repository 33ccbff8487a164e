"""Spaces as Minari writes them: what their parts hold, and choices as one-hot vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError

_MIN_IMAGE_SIDE = 32  # Minari's rule: Box spaces of uint8 from this height and width on are JPEG
_MOST_CHOICES = 1024  # of which one is made a vector; more are indices of something


@dataclass(frozen=True)
class Leaf:
    """A part of a space that is no Dict or Tuple.

    Attributes:
        names: the way to it: keys of Dict spaces, and `_index_0` for the first entry of a Tuple.
        kind: gymnasium's name of the space, None if unknown.
        shape: of one value, None if unknown.
        choices: numbers of choices of a Discrete or MultiDiscrete space.
        starts: their first values.
        jpeg: whether it is stored as JPEG.
    """

    names: tuple[str, ...]
    kind: str | None = None
    shape: tuple[int, ...] | None = None
    choices: tuple[int, ...] = ()
    starts: tuple[int, ...] = ()
    jpeg: bool = False

    @property
    def refusal(self) -> str | None:
        """Why no numbers can be read off it, None if they can."""
        if self.kind not in (None, "Box", "Discrete", "MultiDiscrete", "MultiBinary"):
            return f"is of a {self.kind} space, only numbers are read"
        if sum(self.choices) > _MOST_CHOICES:
            return f"is one of {sum(self.choices)} choices, too many for a one-hot vector"
        return None

    def one_hot(self, values: NDArray) -> NDArray[np.float32]:
        """Return choices [T] or [T, n] as vectors [T, all choices] of zeros, and ones at what was chosen."""
        chosen = values.reshape(len(values), -1)
        if chosen.dtype.kind not in "iu" or chosen.shape[1] != len(self.choices):
            raise FlowleapError(
                f"has dtype {values.dtype} and shape {values.shape}, its space is {self.kind}"
            )
        parts = []
        for i, (n, start) in enumerate(zip(self.choices, self.starts, strict=True)):
            index = chosen[:, i].astype(np.int64) - start
            if ((index < 0) | (index >= n)).any():
                raise FlowleapError(f"is outside of its choices {start} to {start + n - 1}")
            parts.append(np.eye(n, dtype=np.float32)[index])
        return np.concatenate(parts, axis=1)


def leaves(space: Any, jpeg: bool = True) -> list[Leaf]:
    """The parts of a space, given as the JSON text that Minari writes; `jpeg` says that images are encoded."""
    return list(_walk(json.loads(space), (), jpeg)) if isinstance(space, str) else []


def _walk(node: Mapping[str, Any], names: tuple[str, ...], jpeg: bool) -> Iterator[Leaf]:
    inside = node.get("subspaces")
    if isinstance(inside, list):
        inside = {f"_index_{i}": child for i, child in enumerate(inside)}
    kind = str(node["type"])
    if isinstance(inside, Mapping):
        for name, child in inside.items():
            yield from _walk(child, (*names, str(name)), jpeg)
    elif kind == "Box":
        shape = tuple(int(n) for n in node["shape"])
        yield Leaf(names, kind, shape, jpeg=jpeg and _is_image(node, shape))
    elif kind == "Discrete":
        yield Leaf(names, kind, (), (int(node["n"]),), (int(node.get("start", 0)),))
    elif kind == "MultiDiscrete":
        choices = np.asarray(node["nvec"])
        starts = np.broadcast_to(node.get("start", 0), choices.shape)
        flat = tuple(choices.reshape(-1).tolist()), tuple(starts.reshape(-1).tolist())
        yield Leaf(names, kind, choices.shape, *flat)
    elif kind == "MultiBinary":
        yield Leaf(names, kind, tuple(np.atleast_1d(node["n"]).tolist()))
    else:
        yield Leaf(names, kind)


def _is_image(node: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    if node.get("dtype") != "uint8" or len(shape) not in (2, 3) or min(shape[:2]) < _MIN_IMAGE_SIDE:
        return False
    low, high = np.asarray(node.get("low")), np.asarray(node.get("high"))
    return bool(not low.any() and (high == 255).all())
