"""Derivatives of the flow map along a direction, three ways.

jvp         forward-mode AD (`torch.func.jvp`), exact
tangent     hand-written tangent rules (`tangent.py`), exact, and one pass gives u and its derivative
difference  one-sided, eps 1e-4: 0.3 % in float32 for moderate time frequencies, no gradient through it
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flowleap.policy.flow.draws import FlowBatch
from flowleap.policy.flow.flow_map import FlowMap, over_chunk
from flowleap.policy.flow.tangent import jvp, linearize

Derivative = Literal["difference", "jvp", "tangent"]
Point = tuple[Tensor, Tensor, Tensor]
Tangents = tuple[Tensor | None, Tensor | None, Tensor | None]


def total_derivative(
    flow_map: FlowMap,
    point: Point,
    tangents: Tangents,
    method: Derivative,
    known: Tensor | None = None,
    differentiable: bool = False,
) -> tuple[Tensor, Tensor]:
    """u(x, t, s) and its derivative along (dx, dt, ds), a None being zero; both [B,H,A].

    With the tangents (v, 1, None) this is D_v u = (d_x u) v + d_t u, the derivative along the flow at fixed s.

    Args:
        flow_map: the flow map u.
        point: (x [B,H,A], t [B], s [B]).
        tangents: (dx, dt, ds).
        method: see the module; autocast is off for all of them, because bfloat16 rounding, divided by eps, would
            swamp a difference.
        known: u(x, t, s) where the caller has it already: saves a pass of `difference`.
        differentiable: let gradients flow through the derivative; `tangent` only, because torch's own derivative of
            a forward-mode derivative is inexact for LayerNorm (2.15: off by 1e-3).

    Returns:
        u, with its graph if gradients are enabled and `known` is None (else `known`), and the derivative, without
        graph unless `differentiable`.
    """
    low_precision = torch.is_autocast_enabled(point[0].device.type)
    with torch.autocast(point[0].device.type, enabled=False):
        if method == "difference":
            eps = 1e-4 if point[0].dtype == torch.float32 else 1e-6
            u = flow_map.average_velocity(*point) if known is None else known
            with torch.no_grad():
                here = flow_map.average_velocity(*point) if low_precision and known is not None else u
                ahead = [x if dx is None else x + eps * dx for x, dx in zip(point, tangents, strict=True)]
                return u, (flow_map.average_velocity(*ahead) - here) / eps
        if method == "tangent":
            if known is None:
                return jvp(flow_map.average_velocity, point, tangents, differentiable=differentiable)
            with torch.no_grad():
                return known, jvp(flow_map.average_velocity, point, tangents)[1]
        full = tuple(torch.zeros_like(x) if dx is None else dx for x, dx in zip(point, tangents, strict=True))
        u = flow_map.average_velocity(*point) if known is None else known
        with torch.no_grad():
            return u, torch.func.jvp(flow_map.average_velocity, point, full)[1]


def self_distilled(
    u: FlowMap, batch: FlowBatch, method: Derivative, differentiable: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What Eulerian self-distillation needs, in the fewest passes: u_tt, v_theta, u_ts, D u and t - s.

    u_tt = u(x_t,t,t) [B,H,A] covers the whole batch, the others its n rows `batch.off`: v_theta is u_tt of these
    rows, u_ts = u(x_t,t,s), D u the derivative of u_ts along (v_theta, 1, 0), and the gap is [n,1,1]. One forward
    pass on u_tt and u_ts, stacked, serves both.
    """
    x, t, off = batch.x_t, batch.t, batch.off
    n = len(t)
    point = (x, t, batch.s) if off is None else (x[off], t[off], batch.s[off])
    cond = u.cond if off is None else u.cond[off]
    stacked = [torch.cat(pair) for pair in zip((x, t, t, u.cond), (*point, cond), strict=True)]
    along = torch.ones_like(point[1])
    low_precision = torch.is_autocast_enabled(x.device.type)
    if method == "tangent" and (differentiable or not low_precision):
        moving, still, rows = stacked[:2], stacked[2:], slice(n, None)
        with torch.autocast(x.device.type, enabled=False):
            joint, push = linearize(
                u.average_velocity_under, moving, still, rows=rows, differentiable=differentiable
            )
            v_theta = joint[:n] if off is None else joint[:n][off]
            du = push(v_theta, along)
    else:
        joint = u.average_velocity_under(*stacked)
        v_theta = joint[:n] if off is None else joint[:n][off]
        u_off = u if off is None else u[off]
        known = joint[n:].detach()
        _, du = total_derivative(u_off, point, (v_theta.detach(), along, None), method, known)
    return joint[:n], v_theta, joint[n:], du, over_chunk(point[1] - point[2])
