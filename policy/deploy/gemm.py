"""Gemm form: the 1-D U-Net as matrix products, for calls of one short chunk at a time.

A convolution over a chunk of 16 actions is a product of a few rows, [L, taps * C_in] x [taps * C_in, C_out], with a
matrix that a runtime packs once and that int8 kernels take; as a convolution, runtimes arrange it anew at each call.
Channels stand last, so that nothing is transposed for a product, and what many small operations did is done in fewer:
at batch 1 each costs a microsecond whatever its size. The result is that of the network up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from flowleap.policy.deploy.joined import join_linear
from flowleap.policy.networks.unet1d import ResidualBlock, UNet1dBackbone

T = TypeVar("T", bound=nn.Module)


class GemmUNet(nn.Module):
    """A `UNet1dBackbone` with channels last: (x [B,H,A], t [B], s [B], cond [B,C]) -> average velocity [B,H,A]."""

    def __init__(self, net: UNet1dBackbone, horizon: int) -> None:
        super().__init__()
        self.time = net.time
        films = [_only(nn.Linear, block.film) for block in net.modules() if isinstance(block, ResidualBlock)]
        self.widths = [film.out_features // 2 for film in films]
        self.film = join_linear(films, [slice(width) for width in self.widths])
        lengths = [horizon // 2**i for i in range(len(net.down))]
        self.down = nn.ModuleList(map(_blocks, net.down, lengths))
        self.shrink = nn.ModuleList(map(_rows, net.shrink, lengths))
        self.middle = _blocks(net.middle, lengths[-1])
        self.up = nn.ModuleList(map(_blocks, net.up, lengths[::-1]))
        self.grow = nn.ModuleList(map(_rows, net.grow, lengths[::-1]))
        block, last = _only(nn.Sequential, net.output), _only(nn.Conv1d, net.output)
        self.output = nn.Sequential(ConvBlock(block, horizon), Rows(last, horizon))

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """See `UNet1dBackbone.forward`."""
        c = nn.functional.mish(torch.cat([self.time(t, s), cond], dim=1))
        films = iter(self.film(c)[:, None].split([width for width in self.widths for _ in range(2)], dim=2))
        h = x
        skips: list[Tensor] = []
        for level, shrink in zip(self.down, self.shrink, strict=True):
            for block in level.children():
                h = block(h, next(films), next(films))
            skips.append(h)
            h = shrink(h)
        for block in self.middle:
            h = block(h, next(films), next(films))
        for level, grow in zip(self.up, self.grow, strict=True):
            h = torch.cat([h, skips.pop()], dim=2)
            for block in level.children():
                h = block(h, next(films), next(films))
            h = grow(h)
        return self.output(h)


def _blocks(level: nn.Module, length: int) -> nn.ModuleList:
    return nn.ModuleList(Block(m, length) for m in level.children() if isinstance(m, ResidualBlock))


def _only(kind: type[T], parts: nn.Module) -> T:
    """The one part of a kind."""
    (part,) = (m for m in parts.children() if isinstance(m, kind))
    return part


def _rows(layer: nn.Module, length: int) -> nn.Module:
    if isinstance(layer, nn.ConvTranspose1d):
        return RowsTransposed(layer, length)
    return Rows(layer, length) if isinstance(layer, nn.Conv1d) else layer


class Block(nn.Module):
    """A `ResidualBlock` on [B, L, C] whose scale and shift, [B, 1, C], are given."""

    def __init__(self, block: ResidualBlock, length: int) -> None:
        super().__init__()
        self.first, self.second = ConvBlock(block.first, length), ConvBlock(block.second, length)
        self.skip = _rows(block.skip, length)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Map x [B, L, c_in] to [B, L, c_out]."""
        return self.second(self.first(x) * scale + shift) + self.skip(x)


class ConvBlock(nn.Module):
    """Conv1d -> GroupNorm -> Mish on [B, L, C]."""

    def __init__(self, block: nn.Sequential, length: int) -> None:
        super().__init__()
        conv, norm = _only(nn.Conv1d, block), _only(nn.GroupNorm, block)
        self.conv = Rows(conv, length)
        self.groups, self.eps = norm.num_groups, norm.eps
        shape = norm.num_groups, 1, norm.num_channels // norm.num_groups
        # Negated, for `mish_of_minus`.
        self.weight = nn.Parameter(-norm.weight.detach().view(shape))
        self.bias = nn.Parameter(-norm.bias.detach().view(shape))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, c_in] -> [B, L, c_out]."""
        h = self.conv(x).unflatten(2, (self.groups, -1)).transpose(1, 2)
        shape = h.shape[2:]
        h = nn.functional.instance_norm(h.flatten(2), eps=self.eps).unflatten(2, shape)
        return mish_of_minus(h * self.weight + self.bias).transpose(1, 2).flatten(2)


def mish_of_minus(x: Tensor) -> Tensor:
    """Mish of -x, from functions that runtimes have vector code for (softplus is none): -x tanh(-log sigmoid(x))."""
    return x * torch.tanh(torch.log(torch.sigmoid(x)))


class Rows(nn.Module):
    """A `Conv1d` over [B, L, C_in]: the rows that a place sees side by side, times one matrix; [B, L', C_out]."""

    places: Tensor

    def __init__(self, conv: nn.Conv1d, length: int) -> None:
        super().__init__()
        kernel, stride, padding = _sizes(conv)
        self.length = (length + 2 * padding - kernel) // stride + 1
        starts = [stride * i - padding for i in range(self.length)]
        self.pointwise = kernel == stride == 1 and not padding
        self.register_buffer("places", _places([[a + tap for tap in range(kernel)] for a in starts], length))
        self.linear = _linear(conv.weight.permute(2, 1, 0).flatten(0, 1), conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, C_in] -> [B, L', C_out]."""
        rows = x if self.pointwise else gather(x, self.places)
        # Two axes: this product and the bias are one operation then.
        return self.linear(rows.reshape(-1, self.linear.in_features)).unflatten(0, (-1, self.length))


class RowsTransposed(nn.Module):
    """A `ConvTranspose1d` over [B, L, C_in]: a product for each place within a stride; [B, L * stride, C_out]."""

    def __init__(self, conv: nn.ConvTranspose1d, length: int) -> None:
        super().__init__()
        kernel, stride, padding = _sizes(conv)
        assert kernel - 2 * padding + int(conv.output_padding[0]) == stride
        self.length, self.stride = length, stride
        self.linears = nn.ModuleList()
        for phase in range(stride):
            taps = [tap for tap in range(kernel) if (phase + padding - tap) % stride == 0]
            shifts = [(phase + padding - tap) // stride for tap in taps]
            places = _places([[i + shift for shift in shifts] for i in range(length)], length)
            self.register_buffer(f"places{phase}", places)
            self.linears.append(_linear(conv.weight[:, :, taps].permute(2, 0, 1).flatten(0, 1), conv.bias))

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, C_in] -> [B, L * stride, C_out]."""
        parts = []
        for phase, linear in enumerate(self.linears):
            rows = gather(x, self.get_buffer(f"places{phase}"))
            parts.append(linear(rows.reshape(-1, rows.shape[1] // self.length * rows.shape[2])))
        return torch.stack(parts, dim=1).unflatten(0, (-1, self.length)).flatten(1, 2)


def gather(x: Tensor, places: Tensor) -> Tensor:
    """The rows `places` [P] of x [B, L, C] with a row of zeros behind it; [B, P, C]."""
    return nn.functional.pad(x, (0, 0, 0, 1)).index_select(1, places)


def _sizes(conv: nn.Conv1d | nn.ConvTranspose1d) -> tuple[int, int, int]:
    """Kernel, stride and padding."""
    assert (conv.groups, conv.dilation) == (1, (1,))
    return conv.kernel_size[0], conv.stride[0], int(conv.padding[0])


def _places(rows: Sequence[Sequence[int]], length: int) -> Tensor:
    """The places one after the other; `length`, the row of zeros, for those outside."""
    flat = torch.tensor([place for row in rows for place in row])
    return torch.where((flat >= 0) & (flat < length), flat, length)


def _linear(matrix: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(matrix.shape[0], matrix.shape[1], bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(matrix.T)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer
