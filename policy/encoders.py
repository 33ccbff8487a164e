"""Observation encoders: a dict of normalised observations {key: [B, To, *shape]} -> cond [B, C]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flowleap.policy.registry import Registry, require_number
from flowleap.policy.spec import FlowleapError, Spec

ENCODERS: Registry[type[nn.Module]] = Registry("encoder")


@ENCODERS.register("lowdim")
class LowdimEncoder(nn.Module):
    """Concatenate all low-dim keys, in the Spec's order, and all To steps: C = To * sum of key sizes.

    Args:
        spec: observation keys and To.
        noise: standard deviation of Gaussian noise added to the normalised observations in training, a guard
            against covariate shift; 0 switches it off.
    """

    def __init__(self, spec: Spec, *, noise: float = 0.0) -> None:
        super().__init__()
        for key, obs in spec.observations.items():
            if obs.kind != "lowdim":
                raise FlowleapError(f"encoder 'lowdim' cannot read observation '{key}' of kind {obs.kind!r}")
        self.noise = require_number("encoder.noise", noise, 0.0, 10.0)
        self.keys = tuple(spec.observations)
        self.dim = spec.n_obs_steps * sum(obs.size for obs in spec.observations.values())

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: [B, To, *shape]} -> [B, C]."""
        frames = torch.cat([obs[key].flatten(2) for key in self.keys], dim=-1).flatten(1)
        return frames + self.noise * torch.randn_like(frames) if self.training and self.noise else frames


def build_encoder(config: Mapping[str, Any], spec: Spec) -> tuple[nn.Module, dict[str, Any]]:
    """Return (encoder with attribute `dim` = C, full config); raise `FlowleapError` on a bad name or option."""
    options = ENCODERS.options(config)
    return ENCODERS[config["name"]](spec, **options), {"name": config["name"], **options}
