"""Per-key affine normalisation, part of the policy's state: a policy can never run without its statistics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.registry import Option
from flowleap.policy.core.spec import Spec

Mode = Literal["minmax", "gaussian", "quantile", "identity"]
ACTION = "action"
_QUANTILES = (0.01, 0.99)
_MANY = 2**26  # numbers of a cloud
_ROUNDING = 1e-6  # spreads below this share of the magnitude are rounding
_SMALL = 3e-3  # of the key's largest spread: less than this may be a sensor's noise ...
_WHITE = 0.7  # ... and is if a frame differs from the next by this much of its deviation (white noise: 1.4)


class Affine(nn.Module):
    """y = x * scale + offset over the last axes of one key."""

    scale: Tensor
    offset: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("offset", torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Raw -> normalised."""
        return x * self.scale + self.offset

    def inverse(self, y: Tensor) -> Tensor:
        """Normalised -> raw."""
        return (y - self.offset) / self.scale


class Normalizer(nn.Module):
    """Affine maps for every observation key and the action, fitted once on the dataset.

    `minmax` maps to [-1, 1], `gaussian` to zero mean and unit variance, `quantile` the middle 98 % to [-1, 1], so
    that a few spikes do not squeeze all else; where these 98 % are one number, the whole range counts.

    Attributes:
        noise: key -> flat indices of the dimensions that vary, but so little that `fit` took it for noise.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        obs: Annotated[Mode, Option("of observations")] = "minmax",
        action: Annotated[Mode, Option("of actions")] = "minmax",
        floor: Annotated[
            float,
            Option("spreads (half ranges, deviations) below this are noise, in the data's units", 0, 1e9),
        ] = 1e-4,
    ) -> None:
        super().__init__()
        self.floor = floor
        self.noise: dict[str, list[int]] = {}
        shapes = {key: o.statistics_shape for key, o in spec.observations.items() if not o.image}
        shapes[ACTION] = (spec.action_dim,)
        self.clouds = {key for key, o in spec.observations.items() if o.kind == "points"}
        self.modes = {key: action if key == ACTION else obs for key in shapes}
        self.index = {key: i for i, key in enumerate(shapes)}  # module names may not hold dots, keys may
        self.maps = nn.ModuleList(Affine(tuple(shape)) for shape in shapes.values())

    @property
    def config(self) -> dict[str, Any]:
        """Plain data from which the (unfitted) normaliser can be rebuilt."""
        obs = next((mode for key, mode in self.modes.items() if key != ACTION), "identity")
        return {"obs": obs, "action": self.modes[ACTION], "floor": self.floor}

    def range_of(self, key: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Scale and offset of a key, each [*shape], of points [channels]; None where it is not normalised."""
        if self.modes[key] == "identity":
            return None
        return self._map(key).scale.cpu().numpy(), self._map(key).offset.cpu().numpy()

    def _map(self, key: str) -> Affine:
        return self.maps[self.index[key]]  # type: ignore[return-value]

    @property
    def fitted(self) -> bool:
        """Whether `fit` has changed anything; data that need no change may be fitted again."""
        return any(bool((m.scale != 1).any() or (m.offset != 0).any()) for m in self.maps)  # type: ignore

    def fit(self, columns: Mapping[str, np.ndarray]) -> None:
        """Set the statistics from whole columns [N, *shape], one vectorised pass a key.

        Points of all frames count together: a cloud is moved and scaled along its axes and colours, as a whole.

        A dimension whose spread is noise must not be amplified: a locked joint that is locked elsewhere tomorrow would
        be a signal of a size never seen. Noise is less than `floor`, less than the rounding of the numbers, or small
        beside the key's largest spread and without memory from frame to frame. Of observations, such dimensions keep
        unit scale and are only centred; of actions, their spread counts as `floor`, so that they are repeated exactly.

        Raises:
            FlowleapError: a key is missing or holds NaN or infinite values.
        """
        for key, mode in self.modes.items():
            if key not in columns:
                raise FlowleapError(f"normalizer: the data has no key '{key}'; it has {sorted(columns)}")
            if mode == "identity":
                continue
            x = _points(columns[key]) if key in self.clouds else np.asarray(columns[key])
            low, high = x.min(0).astype(np.float64), x.max(0).astype(np.float64)
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise FlowleapError(f"normalizer: key '{key}' holds NaN or infinite values")
            if mode == "gaussian":
                center, spread = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
            else:
                center, spread = (low + high) / 2, (high - low) / 2
            if mode == "quantile":
                first, last = np.quantile(x, _QUANTILES, axis=0).astype(np.float64)
                some = last - first > _ROUNDING * np.maximum(np.abs(first), np.abs(last))
                center, spread = (
                    np.where(some, (first + last) / 2, center),
                    np.where(some, (last - first) / 2, spread),
                )
            rounding = _ROUNDING * np.maximum(np.maximum(np.abs(low), np.abs(high)), 1.0)
            noise = spread <= np.maximum(rounding, self.floor)
            if key not in self.clouds:  # whose points have no order, hence no memory
                noise |= _flickers(x, spread)
            self.noise[key] = np.flatnonzero(noise & (high > low)).tolist()
            # Near a large offset, float32 has few digits left for what is less than a hundred times its rounding.
            least = np.maximum(np.maximum(self.floor, spread), 100 * rounding) if key == ACTION else 1.0
            scale = 1.0 / np.where(noise, least, spread)
            affine = self._map(key)
            affine.scale.copy_(torch.as_tensor(scale))
            affine.offset.copy_(torch.as_tensor(-center * scale))

    def normalize(self, key: str, x: Tensor) -> Tensor:
        """Raw -> normalised, last axes = the key's shape; raise `FlowleapError` for an unknown key."""
        if key not in self.index:
            raise FlowleapError(f"normalizer has no key '{key}'; it has {sorted(self.index)}")
        return self._map(key)(x)

    def unnormalize(self, key: str, y: Tensor) -> Tensor:
        """Normalised -> raw units."""
        return self._map(key).inverse(y)


def _points(column: Any) -> np.ndarray:
    """The points of all frames [N, n, channels] of a cloud; [points, channels].

    Of a column that may lie on the disk, every k-th frame, so that at most `_MANY` numbers are read.
    """
    count, *frame = column.shape
    if not isinstance(column, np.ndarray):
        step = max(1, -(-count * math.prod(frame) // _MANY))
        column = column.take(np.arange(0, count, step), axis=0)
    points: np.ndarray = column.reshape(-1, frame[-1])
    return points


def _flickers(x: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Which dimensions of [N, *shape] vary little beside the others, and without memory; bool [*shape]."""
    small = (spread > 0) & (spread < _SMALL * spread.max(initial=0))
    flat, found = x.reshape(len(x), -1), small.ravel().copy()
    for dim in np.flatnonzero(found):
        values = flat[:, dim].astype(np.float64)
        found[dim] = np.diff(values).std() > _WHITE * values.std()
    return found.reshape(spread.shape)
