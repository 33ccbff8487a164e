"""Derivatives of the flow map along a direction.

difference  one-sided, eps 1e-4, one more pass: 0.3 % in float32 for moderate time frequencies; any network, no rules
jvp         forward-mode AD (`torch.func.jvp`), exact, for networks whose every operation has a forward derivative
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from flowleap.policy.core.registry import Option
from flowleap.policy.flow.flow_map import FlowMap

Method = Literal["difference", "jvp"]
Derivative = Annotated[
    Method, Option("difference: one more pass, any network; jvp: forward-mode AD, exact and a third slower")
]
Point = tuple[Tensor, Tensor, Tensor]
Tangents = tuple[Tensor | None, Tensor | None, Tensor | None]

EPS = {torch.float32: 1e-4, torch.float64: 1e-6}


@torch.no_grad()
def total_derivative(
    u: FlowMap, point: Point, tangents: Tangents, method: Method, value: Tensor | None = None
) -> Tensor:
    """The derivative of u(x, t, s) along (dx, dt, ds), a None being zero; [B,H,A], without graph.

    With the tangents (v, 1, None) this is D_v u = (d_x u) v + d_t u, the derivative along the flow at fixed s.

    The point is (x [B,H,A], t [B], s [B]); `value`, u(x, t, s) if known, saves a pass of `difference`.
    """
    device = point[0].device.type
    # In float32 whatever the autocast: bfloat16 rounding, divided by eps, would swamp a difference.
    low_precision = torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False):
        if method == "jvp":
            return value_and_derivative(u, point, tangents)[1]
        eps = EPS[point[0].dtype]
        here = u.average_velocity(*point) if value is None or low_precision else value
        ahead = (x if dx is None else x + eps * dx for x, dx in zip(point, tangents, strict=True))
        return (u.average_velocity(*ahead) - here) / eps


def value_and_derivative(u: FlowMap, point: Point, tangents: Tangents) -> tuple[Tensor, Tensor]:
    """u(x, t, s) and its exact derivative along (dx, dt, ds), both [B,H,A] and both with their graphs.

    Gradients flow through the derivative into the network and into the tangents: what LSD and ESD need. Networks
    whose layer norm is `networks.layers.LayerNorm` get them right; torch's own is off by a third there.
    """
    with torch.autocast(point[0].device.type, enabled=False):
        full = tuple(torch.zeros_like(x) if dx is None else dx for x, dx in zip(point, tangents, strict=True))
        out: tuple[Tensor, ...] = torch.func.jvp(u.average_velocity, point, full)
        return out[0], out[1]
