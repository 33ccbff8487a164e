"""Per-key affine normalisation, part of the policy's state: a policy can never run without its statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.registry import Option
from flowleap.policy.core.spec import Spec

Mode = Literal["minmax", "gaussian", "identity"]
ACTION = "action"


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

    `minmax` maps to [-1, 1], `gaussian` to zero mean and unit variance.
    """

    def __init__(
        self,
        spec: Spec,
        *,
        obs: Annotated[Mode, Option("of observations")] = "minmax",
        action: Annotated[Mode, Option("of actions")] = "minmax",
    ) -> None:
        super().__init__()
        shapes = {key: o.shape for key, o in spec.observations.items() if o.kind == "lowdim"}
        shapes[ACTION] = (spec.action_dim,)
        self.modes = {key: action if key == ACTION else obs for key in shapes}
        self.index = {key: i for i, key in enumerate(shapes)}  # module names may not hold dots, keys may
        self.maps = nn.ModuleList(Affine(tuple(shape)) for shape in shapes.values())

    @property
    def config(self) -> dict[str, Any]:
        """Plain data from which the (unfitted) normaliser can be rebuilt."""
        obs = next((mode for key, mode in self.modes.items() if key != ACTION), "identity")
        return {"obs": obs, "action": self.modes[ACTION]}

    def _map(self, key: str) -> Affine:
        return self.maps[self.index[key]]  # type: ignore[return-value]

    @property
    def fitted(self) -> bool:
        """Whether `fit` has changed anything; data that need no change may be fitted again."""
        return any(bool((m.scale != 1).any() or (m.offset != 0).any()) for m in self.maps)  # type: ignore

    def fit(self, columns: Mapping[str, np.ndarray]) -> None:
        """Set the statistics from whole columns [N, *shape], one vectorised pass a key.

        Dimensions that hardly vary (range or deviation below 1e-6 of their magnitude) keep unit scale and are
        only centred: amplifying a constant would turn sensor noise into a signal.

        Raises:
            FlowleapError: a key is missing or holds NaN or infinite values.
        """
        for key, mode in self.modes.items():
            if key not in columns:
                raise FlowleapError(f"normalizer: the data has no key '{key}'; it has {sorted(columns)}")
            if mode == "identity":
                continue
            x = np.asarray(columns[key])
            low, high = x.min(0).astype(np.float64), x.max(0).astype(np.float64)
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise FlowleapError(f"normalizer: key '{key}' holds NaN or infinite values")
            if mode == "minmax":
                center, spread = (low + high) / 2, (high - low) / 2
            else:
                center, spread = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
            magnitude = np.maximum(np.maximum(np.abs(low), np.abs(high)), 1.0)
            scale = 1.0 / np.where(spread > 1e-6 * magnitude, spread, 1.0)
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
