"""The conditioning layers of all blocks as one product, for calls of one chunk at a time.

Every block of a backbone maps the same vector to its own scales and shifts; at batch 1 one large product is faster than
many small ones, and more so in int8, which rounds the vector at each. The time is the same for the whole batch when a
policy acts, and is embedded once. The result is that of the network up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowleap.policy.networks.mlp import FiLMBlock, MLPBackbone
from flowleap.policy.networks.transformer import DiTBlock, TransformerBackbone, embed, modulate


def join_linear(layers: Sequence[nn.Linear], larger: Sequence[slice]) -> nn.Linear:
    """Layers of one input side by side; the outputs of each in its slice of `larger` come out larger by one."""
    joined = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers))
    biases = [layer.bias.detach().clone() for layer in layers]
    for bias, part in zip(biases, larger, strict=True):
        bias[part] += 1
    with torch.no_grad():
        joined.weight.copy_(torch.cat([layer.weight for layer in layers]))
        joined.bias.copy_(torch.cat(biases))
    return joined


class JoinedMLP(nn.Module):
    """An `MLPBackbone`: (x [B,H,A], t [B], s [B], cond [B,C]) -> average velocity [B,H,A]."""

    def __init__(self, net: MLPBackbone) -> None:
        super().__init__()
        self.chunk_shape = net.chunk_shape
        self.time, self.condition, self.input = net.time, net.condition, net.input
        self.blocks, self.norm, self.output = net.blocks, net.norm, net.output
        films = [block.film for block in net.blocks if isinstance(block, FiLMBlock)]
        self.width = films[0].out_features // 2
        self.film = join_linear(films, [slice(self.width)] * len(films))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """See `MLPBackbone.forward`."""
        c = nn.functional.silu(self.time(t[:1], s[:1]) + self.condition(cond))
        films = iter(self.film(c).split(self.width, dim=1))
        h = self.input(torch.cat([x.flatten(1), cond], dim=1))
        for block in self.blocks:
            assert isinstance(block, FiLMBlock)
            h = h + block.mlp(block.norm(h) * next(films) + next(films))
        return self.output(self.norm(h)).unflatten(1, self.chunk_shape)


class JoinedTransformer(nn.Module):
    """A `TransformerBackbone`: (x [B,H,A], t [B], s [B], cond [B,C]) -> average velocity [B,H,A]."""

    def __init__(self, net: TransformerBackbone) -> None:
        super().__init__()
        self.time, self.condition, self.input, self.positions = (
            net.time,
            net.condition,
            net.input,
            net.positions,
        )
        self.blocks, self.norm, self.output, self.tokens = net.blocks, net.norm, net.output, net.tokens
        layers = [block.modulation for block in net.blocks if isinstance(block, DiTBlock)]
        self.width = net.output.in_features
        self.modulation = join_linear([*layers, net.modulation], [slice(0)] * (len(layers) + 1))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """See `TransformerBackbone.forward`."""
        h, c = embed(self, x, t[:1], s[:1], cond)
        parts = iter(self.modulation(c).split(self.width, dim=1))
        for block in self.blocks:
            assert isinstance(block, DiTBlock)
            scale1, shift1, gate1, scale2, shift2, gate2 = (next(parts) for _ in range(6))
            h = h + gate1[:, None] * block.attention(modulate(block.norm1(h), scale1, shift1))
            h = h + gate2[:, None] * block.mlp(modulate(block.norm2(h), scale2, shift2))
        return self.output(modulate(self.norm(h[:, self.tokens :]), next(parts), next(parts)))
