"""Point towers: clouds [M, N, channels] -> features [M, D]. An MLP for every point, and the maximum over all points.

PointNet (arXiv 1612.00593) as DP3 (arXiv 2403.03954) has it: LayerNorm, no BatchNorm, no transformation of the input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowleap.policy.core.errors import FlowleapError

_AT_ONCE = 2**14  # points


class PointNet(nn.Module):
    """[M, N, channels] -> [M, features], whatever the order of the points.

    The maximum of a feature is that of one point, the critical one, and no other has a gradient. In training, a pass
    without gradients finds these points, and the pass with gradients sees no others: the same output and the same
    gradient for about half the time (`flowleap speed what=points`).

    Args:
        channels: numbers of a point.
        widths: of the layers that each point goes through.
        features: D.
    """

    def __init__(self, channels: int, widths: Sequence[int], features: int) -> None:
        super().__init__()
        if not 1 <= len(widths) <= 8:
            raise FlowleapError(f"encoder.widths needs 1 to 8 layers, got {len(widths)}")
        layers: list[nn.Module] = []
        for before, after in zip([channels, *widths], widths, strict=False):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU(inplace=True)]
        self.points = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Linear(widths[-1], features), nn.LayerNorm(features))

    def forward(self, clouds: Tensor) -> Tensor:
        """[M, N, channels] -> [M, features]."""
        alone = self.training and torch.is_grad_enabled()
        return self.project(self.critical(clouds) if alone else self.points(clouds).amax(1))

    @torch.compiler.disable  # how many points are critical differs from batch to batch
    def critical(self, clouds: Tensor) -> Tensor:
        """The maxima [M, widths[-1]], computed from the points that they are of."""
        count, size = clouds.shape[:2]
        with torch.no_grad():  # a part at a time, which stays in the caches of a CPU
            parts = clouds.split(max(1, _AT_ONCE // size))
            best = torch.cat([self.points(part).argmax(1) for part in parts])
        best = best + size * torch.arange(count, device=best.device)[:, None]  # [M, width], among all points
        critical = torch.zeros(count * size, dtype=torch.bool, device=best.device)
        critical[best] = True
        place = critical.cumsum(0) - 1
        return self.points(clouds.flatten(0, 1)[critical]).gather(0, place[best])
