"""Expert policies of Adroit: a network with tanh layers, its weights read from a file that holds numbers only."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.formats.base import DAMAGE, explain
from flowleap.policy.core.errors import FlowleapError

FOLDER = Path("data", "adroit_experts")  # where experts are looked for if nothing else is said
_TINY = 1e-8  # beside the scale of an observation, as in training


class Weights(NamedTuple):
    """A network from an observation [D] to an action [A], float64.

    Attributes:
        layers: matrix [out, in] and bias [out] of each; tanh after all but the last.
        shift, scale: [D], taken off the observation, and what the rest is divided by.
        out_shift, out_scale: [A], of the action.
    """

    layers: list[tuple[NDArray, NDArray]]
    shift: NDArray
    scale: NDArray
    out_shift: NDArray
    out_scale: NDArray


class PolicyExpert:
    """The mean action of a policy; it needs neither the simulator nor a seed."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def act(self, obs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the action [A] in [-1, 1] for `state` [D]."""
        weights = self._weights
        x = (obs["state"].astype(np.float64) - weights.shift) / (weights.scale + _TINY)
        *hidden, (matrix, bias) = weights.layers
        for inner, offset in hidden:
            x = np.tanh(inner @ x + offset)
        action = (matrix @ x + bias) * weights.out_scale + weights.out_shift
        return np.clip(action, -1.0, 1.0).astype(np.float32)


def load_weights(given: str | os.PathLike[str] | None, name: str, obs_dim: int, action_dim: int) -> Weights:
    """Read the expert of `adroit/<name>`.

    The arrays are `weight_0`, `bias_0`, `weight_1`, ..., `in_shift`, `in_scale`, `out_shift` and `out_scale`.

    Args:
        given: the file, or a folder with `<name>.npz`; None is `data/adroit_experts`.

    Raises:
        FlowleapError: there is no such file, it is damaged, or it is no network from D to A numbers.
    """
    path = Path(given or FOLDER).expanduser()
    path = path / f"{name}.npz" if path.is_dir() or given is None else path
    if not path.is_file():
        raise FlowleapError(
            f"adroit/{name}: no expert at '{path}'; task.kwargs.expert=FILE.npz names the weights of one, or a folder "
            f"with {name}.npz (docs/tasks.md says what is in it)"
        )
    with explain(f"'{path}' is no whole .npz of numbers", *DAMAGE), np.load(path, allow_pickle=False) as file:
        arrays = {key: np.asarray(file[key]) for key in file.files}
    depth = sum(key.startswith("weight_") for key in arrays)
    sizes = [obs_dim, *(len(np.atleast_1d(arrays.get(f"bias_{i}", 0))) for i in range(depth - 1)), action_dim]
    shapes: dict[str, tuple[int, ...]] = {"in_shift": (obs_dim,), "in_scale": (obs_dim,)}
    shapes |= {"out_shift": (action_dim,), "out_scale": (action_dim,)}
    for i, (below, above) in enumerate(pairwise(sizes)):
        shapes |= {f"weight_{i}": (above, below), f"bias_{i}": (above,)}
    for key, shape in shapes.items():
        _check(path, key, arrays, shape, name)
    numbers = {key: arrays[key].astype(np.float64) for key in shapes}
    layers = [(numbers[f"weight_{i}"], numbers[f"bias_{i}"]) for i in range(depth)]
    return Weights(layers, *(numbers[key] for key in ("in_shift", "in_scale", "out_shift", "out_scale")))


def _check(path: Path, key: str, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...], name: str) -> None:
    if key not in arrays:
        raise FlowleapError(f"'{path}' has no '{key}': it is no expert (docs/tasks.md says what is in one)")
    found = arrays[key]
    if found.shape != shape or found.dtype.kind != "f":
        raise FlowleapError(
            f"'{path}': '{key}' is {found.dtype} {list(found.shape)}, adroit/{name} needs floats {list(shape)}: "
            "is it the expert of another task?"
        )
    if not np.isfinite(found).all():
        raise FlowleapError(f"'{path}': '{key}' holds NaN or infinity: copy the file again")
