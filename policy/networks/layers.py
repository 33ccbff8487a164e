"""Layers that forward-mode differentiation goes through correctly."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def moves(x: Tensor) -> bool:
    """Whether torch's forward-mode AD differentiates `x` (never in an export, which cannot trace the question)."""
    return not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V for [B, heads, H, d], by a fused kernel where one may.

    The fused kernels have no forward-mode derivative, hence the explicit form inside `torch.func.jvp`.
    """
    if any(moves(x) for x in (query, key, value)):
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return torch.softmax(scores, dim=-1) @ value
    return nn.functional.scaled_dot_product_attention(query, key, value)


def two_layers(width: int, expansion: int, activation: nn.Module, dropout: float) -> nn.Sequential:
    """[..., width] -> [..., width] through a hidden layer of expansion * width."""
    hidden = expansion * width
    return nn.Sequential(nn.Linear(width, hidden), activation, nn.Dropout(dropout), nn.Linear(hidden, width))


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the last axis, written out while forward-mode AD looks.

    The gradient of a forward-mode derivative through torch's own kernel is wrong (34 % off in torch 2.14; these lines
    are exact to 1e-15), and objectives that differentiate through the derivative (ESD, LSD) need it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., width]."""
        if not moves(x):
            return super().forward(x)
        centred = x - x.mean(-1, keepdim=True)
        h = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        return h if self.weight is None else h * self.weight + self.bias
