"""Transformer over the action tokens with adaptive layer norm, "adaLN-zero" (DiT, arXiv 2212.09748).

The condition modulates the layers as the times do, or stands beside the actions as tokens of its own.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.registry import Option
from flowleap.policy.networks.layers import LayerNorm, attend, two_layers
from flowleap.policy.networks.time_embedding import MaxFrequency, TimeEmbedding


def embed(net: Any, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens [B, tokens + H, width] that a backbone begins with, and what modulates them [B, width].

    The tokens of the condition, if it has some, come first; else the condition is in what modulates.
    """
    actions, seen, times = net.input(x) + net.positions, net.condition(cond), net.time(t, s)
    if not net.tokens:
        return actions, nn.functional.silu(times + seen)
    return torch.cat([seen.unflatten(1, (net.tokens, -1)), actions], dim=1), nn.functional.silu(times)


def modulate(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift [B, width] the tokens h [B, H, width]."""
    return h * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """Attention, then an MLP, each modulated before and gated after by the conditioning vector.

    The gates start at zero, so that a deep stack starts as the identity.
    """

    def __init__(self, width: int, heads: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = LayerNorm(width, elementwise_affine=False)
        self.mlp = two_layers(width, expansion, nn.GELU(approximate="tanh"), dropout)
        self.dropout = nn.Dropout(dropout)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def attention(self, h: Tensor) -> Tensor:
        """Multi-head self-attention over the tokens h [B, H, width]."""
        qkv = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in self.qkv(h).chunk(3, dim=-1))
        return self.projection(attend(*qkv).transpose(1, 2).flatten(2))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Tokens h [B, H, width] under c [B, width] -> [B, H, width]."""
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(c).chunk(6, dim=-1)
        h = h + gate1[:, None] * self.dropout(self.attention(modulate(self.norm1(h), scale1, shift1)))
        return h + gate2[:, None] * self.dropout(self.mlp(modulate(self.norm2(h), scale2, shift2)))


class TransformerBackbone(nn.Module):
    """Transformer over the action tokens with adaLN-zero conditioning (DiT, arXiv 2212.09748)."""

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        *,
        width: Annotated[int, Option("channels of a token, divisible by the heads", 1, 16384)] = 256,
        depth: Annotated[int, Option("blocks", 1, 256)] = 4,
        heads: Annotated[int, Option("attention heads", 1, 256)] = 4,
        expansion: Annotated[int, Option("hidden width of a block's MLP over the width", 1, 16)] = 4,
        dropout: Annotated[
            float, Option("in and after a block's branches, in training; needs an exact derivative", 0, 0.99)
        ] = 0.0,
        max_frequency: MaxFrequency = 8.0,
        tokens: Annotated[
            int,
            Option(
                "the condition as so many tokens beside the actions' (2608.16153); 0: by adaptive norm", 0, 64
            ),
        ] = 0,
    ) -> None:
        super().__init__()
        if width % heads:
            raise FlowleapError(f"backbone.width: {width} is not divisible by heads={heads}")
        self.time = TimeEmbedding(width, max_frequency)
        self.tokens = tokens
        seen = nn.Linear(width, width * max(tokens, 1))  # the bias tells the tokens apart
        self.condition = nn.Sequential(nn.Linear(cond_dim, width), nn.SiLU(), seen)
        self.input = nn.Linear(action_dim, width)
        self.positions = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.blocks = nn.ModuleList(DiTBlock(width, heads, expansion, dropout) for _ in range(depth))
        self.norm = LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        # Not zero, unlike DiT's: with both gates and output at zero the blocks would learn from step three on only.
        self.output = nn.Linear(width, action_dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """Average velocity [B,H,A] at x [B,H,A] and times t, s [B], under cond [B,C]."""
        h, c = embed(self, x, t, s, cond)
        for block in self.blocks:
            h = block(h, c)
        scale, shift = self.modulation(c).chunk(2, dim=-1)
        return self.output(modulate(self.norm(h[:, self.tokens :]), scale, shift))
