"""Conditional 1-D U-Net over the action chunk (Diffusion Policy, arXiv 2303.04137), with two times."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.registry import Option
from flowleap.policy.networks.time_embedding import MaxFrequency, TimeEmbedding

Channels = Annotated[Sequence[int], Option("width of each resolution level", 1, 8192)]


def conv_block(c_in: int, c_out: int, kernel: int, groups: int) -> nn.Sequential:
    """Conv1d -> GroupNorm -> Mish, length preserved. GroupNorm, not BatchNorm: EMA weights stay valid."""
    return nn.Sequential(
        nn.Conv1d(c_in, c_out, kernel, padding=kernel // 2), nn.GroupNorm(groups, c_out), nn.Mish()
    )


class ResidualBlock(nn.Module):
    """Two convolutions with FiLM (scale and shift per channel) between them and a skip connection."""

    def __init__(self, c_in: int, c_out: int, cond_dim: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.first = conv_block(c_in, c_out, kernel, groups)
        self.second = conv_block(c_out, c_out, kernel, groups)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, 2 * c_out))
        self.skip = nn.Conv1d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Map x [B, c_in, L] under c [B, cond_dim] to [B, c_out, L]."""
        scale, shift = self.film(c)[..., None].chunk(2, dim=1)
        return self.second(self.first(x) * (1 + scale) + shift) + self.skip(x)


def apply_blocks(blocks: nn.Module, h: Tensor, c: Tensor) -> Tensor:
    """Run the residual blocks of one level one after the other."""
    for block in blocks.children():
        h = block(h, c)
    return h


class UNet1dBackbone(nn.Module):
    """Conditional 1-D U-Net of Diffusion Policy (arXiv 2303.04137) with two times.

    The horizon must be divisible by 2^(len(channels) - 1).
    """

    def __init__(
        self,
        action_dim: int,
        horizon: int,
        cond_dim: int,
        *,
        channels: Channels = (64, 128, 256),
        time_dim: Annotated[int, Option("width of the time embedding", 1, 4096)] = 128,
        kernel: Annotated[int, Option("convolution width, odd", 1, 63)] = 5,
        groups: Annotated[int, Option("GroupNorm groups, dividing every level's width", 1, 1024)] = 8,
        max_frequency: MaxFrequency = 8.0,
    ) -> None:
        super().__init__()
        if not 1 <= len(channels) <= 8 or kernel % 2 == 0:
            raise FlowleapError("backbone unet1d needs 1 to 8 channel levels and an odd kernel")
        for width in channels:
            if width % groups:
                raise FlowleapError(f"backbone.channels: {width} is not divisible by groups={groups}")
        stride = 2 ** (len(channels) - 1)
        if horizon % stride:
            raise FlowleapError(
                f"backbone unet1d with {len(channels)} levels needs a horizon divisible by {stride}, got {horizon}"
            )
        self.time = TimeEmbedding(time_dim, max_frequency)
        c_dim = time_dim + cond_dim

        def block(c_in: int, c_out: int) -> ResidualBlock:
            return ResidualBlock(c_in, c_out, c_dim, kernel, groups)

        levels = list(channels)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for i, (c_in, c_out) in enumerate(zip([action_dim, *levels], levels, strict=False)):
            self.down.append(nn.ModuleList([block(c_in, c_out), block(c_out, c_out)]))
            last = i == len(levels) - 1
            self.shrink.append(nn.Identity() if last else nn.Conv1d(c_out, c_out, 3, stride=2, padding=1))
        self.middle = nn.ModuleList([block(levels[-1], levels[-1]), block(levels[-1], levels[-1])])
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for c_high, c_low in zip(levels[:0:-1], levels[-2::-1], strict=True):
            self.up.append(nn.ModuleList([block(2 * c_high, c_low), block(c_low, c_low)]))
            self.grow.append(nn.ConvTranspose1d(c_low, c_low, 4, stride=2, padding=1))
        self.output = nn.Sequential(
            conv_block(levels[0], levels[0], kernel, groups), nn.Conv1d(levels[0], action_dim, 1)
        )

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """Average velocity [B,H,A] at x [B,H,A] and times t, s [B], under cond [B,C]."""
        c = torch.cat([self.time(t, s), cond], dim=1)
        h = x.transpose(1, 2)
        skips: list[Tensor] = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            h = apply_blocks(level, h, c)
            skips.append(h)
            h = shrink(h)
        h = apply_blocks(self.middle, h, c)
        for level, grow in zip(self.up, self.grow, strict=True):
            h = grow(apply_blocks(level, torch.cat([h, skips.pop()], dim=1), c))
        return self.output(h).transpose(1, 2)
