"""The flow map and its samplers.

Time convention (see docs/math.md): t = 1 is noise, t = 0 is data, s <= t, `x_t = (1 - t) a + t z`.
The network outputs the average velocity `u(x_t, t, s)` of the flow from t down to s, so that

    X_{t->s}(x) = x - (t - s) u(x, t, s)          the flow map, one "leap"
    u(x, t, t)                                    the instantaneous velocity
    a = z - u(z, 1, 0)                            the one-step action

Samplers are free functions of (flow map, x, time grid); the number of leaps is the NFE.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Sampler = Callable[["FlowMap", Tensor, Tensor], Tensor]


def over_chunk(t: Tensor) -> Tensor:
    """Reshape per-sample times [B] to [B, 1, 1] so that they broadcast over an action chunk [B, H, A]."""
    return t[:, None, None]


def gaussian_coefficient(t: Tensor, s: Tensor, sigma: float) -> Tensor:
    """k(t, s) such that `u(x, t, s) = k x` is the exact average velocity for data N(0, sigma^2 I); [B].

    With C_t = (1-t)^2 sigma^2 + t^2 the map is X = x sqrt(C_s / C_t), hence k = (1 - sqrt(C_s / C_t)) / (t - s).
    This form of it is free of the 0 / 0 on the diagonal. For sigma -> 0 it is 1 / t.
    """
    variance_t = ((1 - t) * sigma) ** 2 + t**2
    variance_s = ((1 - s) * sigma) ** 2 + s**2
    return ((t + s) * (1 + sigma**2) - 2 * sigma**2) / (variance_t + (variance_t * variance_s).sqrt())


class FlowMap:
    """A network under one batch of observations: `u(x, t, s)` and what follows from it.

    Args:
        net: callable (x [B,H,A], t [B], s [B], cond [B,C]) -> [B,H,A].
        cond: encoded observations [B, C].
        sigma: 0: the network outputs u itself. Positive: it outputs the mean m of Gaussian data
            N(m, sigma^2 I), and `u = k x - (1 + (1 - t) k) m` is the exact average velocity of that Gaussian
            (k: `gaussian_coefficient`). A constant m solves every flow-map identity, so what is left to learn
            is how m depends on (x, t, s); and a = sigma z + m at one step, with no noise to carry through the
            layers only to subtract it.
    """

    def __init__(self, net: Network, cond: Tensor, sigma: float = 0.0) -> None:
        self.net = net
        self.cond = cond
        self.sigma = sigma

    def average_velocity(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """u(x, t, s): average velocity of the flow from t down to s; [B,H,A]."""
        return self._u(x, t, s, self.cond)

    def _u(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        out = self.net(x, t, s, cond)
        if not self.sigma:
            return out
        k = gaussian_coefficient(t, s, self.sigma)
        return over_chunk(k) * x - over_chunk(1 + (1 - t) * k) * out

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """u(x, t, t): the instantaneous (marginal) velocity; [B,H,A]."""
        return self.average_velocity(x, t, t)

    def leap(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """X_{t->s}(x) = x - (t - s) u(x, t, s); [B,H,A]."""
        return x - over_chunk(t - s) * self.average_velocity(x, t, s)

    def velocity_and_average(self, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return (u(x,t,t), u(x,t,s)) from one forward pass on the stacked halves: cheaper than two passes."""
        joint = self._u(
            torch.cat([x, x]), torch.cat([t, t]), torch.cat([t, s]), torch.cat([self.cond, self.cond])
        )
        on_diagonal, off_diagonal = joint.chunk(2)
        return on_diagonal, off_diagonal


def time_grid(steps: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform times 1 = t_0 > t_1 > ... > t_steps = 0; shape [steps + 1]. `steps` is the NFE."""
    return torch.linspace(1.0, 0.0, steps + 1, device=device, dtype=dtype)


def leap_sampler(flow_map: FlowMap, x: Tensor, grid: Tensor) -> Tensor:
    """Compose flow-map leaps over `grid`: exact at any grid for the true map. NFE = len(grid) - 1."""
    for t, s in pairwise(grid.unbind()):
        x = flow_map.leap(x, t.expand(len(x)), s.expand(len(x)))
    return x


def euler_sampler(flow_map: FlowMap, x: Tensor, grid: Tensor) -> Tensor:
    """Euler steps along the instantaneous velocity: the flow-matching sampler. NFE = len(grid) - 1."""
    for t, s in pairwise(grid.unbind()):
        x = x - (t - s) * flow_map.velocity(x, t.expand(len(x)))
    return x


def mean_sampler(flow_map: FlowMap, x: Tensor, grid: Tensor) -> Tensor:
    """One leap from zero noise: the deterministic prediction of a regression policy. NFE = 1."""
    return leap_sampler(flow_map, torch.zeros_like(x), grid)


SAMPLERS: dict[str, Sampler] = {"leap": leap_sampler, "euler": euler_sampler, "mean": mean_sampler}
