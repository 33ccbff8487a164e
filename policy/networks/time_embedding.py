"""Time embedding shared by the backbones."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from flowleap.policy.core.registry import Option

MaxFrequency = Annotated[
    float, Option("of the time embedding, rad; several modes need more (30), see docs/math.md", 1.0, 1e4)
]


class TimeEmbedding(nn.Module):
    """Fourier features of (t, t - s) -> MLP -> [B, dim].

    The gap t - s is embedded rather than s so that the diagonal s = t is one exact value. Frequencies are
    geometric in [1, max_frequency] rad: the self-distillation target contains d_t u, and DDPM-style embeddings
    (t x 1000) make that derivative so steep that training and finite differences fail.
    """

    frequencies: Tensor

    def __init__(self, dim: int, max_frequency: float, n_frequencies: int = 16) -> None:
        super().__init__()
        exponents = torch.linspace(0.0, 1.0, n_frequencies)
        self.register_buffer("frequencies", max_frequency**exponents)
        self.mlp = nn.Sequential(nn.Linear(4 * n_frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        """Embed times t, s [B] -> [B, dim]."""
        angles = torch.stack([t, t - s], dim=1)[..., None] * self.frequencies
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.mlp(features.flatten(1).to(t.dtype))
