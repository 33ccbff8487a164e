"""Residual MLP over the flattened action chunk, FiLM-conditioned: the default for low-dim policies."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from flowleap.policy.core.registry import Option
from flowleap.policy.networks.layers import LayerNorm, two_layers
from flowleap.policy.networks.time_embedding import MaxFrequency, TimeEmbedding


class FiLMBlock(nn.Module):
    """h + W2 act(W1 (LN(h) * (1 + scale) + shift)); scale and shift come from the conditioning vector."""

    def __init__(self, width: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm = LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(width, 2 * width)
        self.mlp = two_layers(width, expansion, nn.SiLU(), dropout)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """h, c [B, width] -> [B, width]."""
        scale, shift = self.film(c).chunk(2, dim=-1)
        return h + self.mlp(self.norm(h) * (1 + scale) + shift)


class MLPBackbone(nn.Module):
    """FiLM-conditioned residual MLP over the flat chunk: fast on a CPU, the default for state policies."""

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        *,
        width: Annotated[int, Option("channels of the residual stream", 1, 16384)] = 256,
        depth: Annotated[int, Option("residual blocks", 1, 256)] = 3,
        expansion: Annotated[int, Option("hidden width of a block over the width", 1, 16)] = 2,
        dropout: Annotated[
            float, Option("in the blocks, in training; needs an exact derivative", 0, 0.99)
        ] = 0.0,
        max_frequency: MaxFrequency = 8.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.chunk_shape = (horizon, action_dim)
        self.time = TimeEmbedding(width, max_frequency)
        self.condition = nn.Sequential(nn.Linear(cond_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.input = nn.Linear(horizon * action_dim + cond_dim, width)
        self.blocks = nn.ModuleList(FiLMBlock(width, expansion, dropout) for _ in range(depth))
        self.norm = LayerNorm(width)
        self.output = nn.Linear(width, horizon * action_dim)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """Average velocity [B,H,A] at x [B,H,A] and times t, s [B], under cond [B,C]."""
        c = nn.functional.silu(self.time(t, s) + self.condition(cond))
        h = self.input(torch.cat([x.flatten(1), cond], dim=1))
        for block in self.blocks:
            h = block(h, c)
        return self.output(self.norm(h)).unflatten(1, self.chunk_shape)
