"""The averaged weights: an exponential moving average with warm-up."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from flowleap.policy.training.sharding import whole


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """A copy of a module for the average of its weights, in eval mode; the decay warms up, min(decay, (1+n)/(10+n))."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], n_averaged: Tensor | int) -> None:
        n = int(n_averaged)
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(module, multi_avg_fn=update).eval()  # type: ignore[arg-type]


def update_average(average: AveragedModel, module: nn.Module) -> None:
    """Take the module's weights, which may be sharded, into the average."""
    average.update_parameters(_Whole(module))  # type: ignore[arg-type]


class _Whole:
    """A module's parameters and buffers, gathered when asked for: what `AveragedModel` averages."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def parameters(self) -> Iterator[Tensor]:
        """Each parameter, whole."""
        return (whole(p.detach()) for p in self.module.parameters())

    def buffers(self) -> Iterator[Tensor]:
        """Each buffer."""
        return (whole(b) for b in self.module.buffers())
