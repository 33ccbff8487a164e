"""The flow map and its samplers.

Time convention (see docs/math.md): t = 1 is noise, t = 0 is data, s <= t, `x_t = (1 - t) a + t z`.
The network outputs the average velocity `u(x_t, t, s)` of the flow from t down to s, so that

    X_{t->s}(x) = x - (t - s) u(x, t, s)          the flow map, one "leap"
    u(x, t, t)                                    the instantaneous velocity
    a = z - u(z, 1, 0)                            the one-step action

`samplers.py` composes leaps over a time grid; the number of leaps is the NFE.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Network = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Prefix(NamedTuple):
    """Actions of a chunk that are decided already, and given to the network (training-time RTC, arXiv 2512.05964).

    The network takes and returns one channel more: in, the mask; out, nothing.

    Attributes:
        actions: clean and normalised, [B,H,A]; only the known ones count.
        known: bool [B,H,1].
    """

    actions: Tensor
    known: Tensor


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
        prefix: the actions that are given, of a policy that was trained to go on from some.
    """

    def __init__(self, net: Network, cond: Tensor, sigma: float = 0.0, prefix: Prefix | None = None) -> None:
        self.net = net
        self.cond = cond
        self.sigma = sigma
        self.prefix = prefix

    def __getitem__(self, rows: Tensor) -> FlowMap:
        """The flow map of the samples `rows` (indices [n], perhaps repeated)."""
        prefix = self.prefix and Prefix(*(part[rows] for part in self.prefix))
        return FlowMap(self.net, self.cond[rows], self.sigma, prefix)

    def __add__(self, other: FlowMap) -> FlowMap:
        """The flow map of the samples of both."""
        prefix = None
        if self.prefix and other.prefix:
            prefix = Prefix(*(torch.cat(parts) for parts in zip(self.prefix, other.prefix, strict=True)))
        return FlowMap(self.net, torch.cat([self.cond, other.cond]), self.sigma, prefix)

    @property
    def free(self) -> Tensor | None:
        """Bool [B,H,1]: the actions that are not given; None where none are."""
        return None if self.prefix is None else ~self.prefix.known

    def without_observation(self) -> FlowMap:
        """The flow map that sees no observation: a zero conditioning vector stands for it."""
        return FlowMap(self.net, torch.zeros_like(self.cond), self.sigma, self.prefix)

    def keep_observation(self, keep: Tensor) -> FlowMap:
        """The flow map that sees the observation of the samples `keep` (bool [B]) alone."""
        return FlowMap(self.net, self.cond * keep[:, None], self.sigma, self.prefix)

    def network(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The network's raw output [B,H,A]: for objectives that are no flow maps."""
        if self.prefix is None:
            return self.net(x, t, s, self.cond)
        actions, known = self.prefix
        x = torch.cat([torch.where(known, actions, x), known.to(x.dtype)], dim=2)
        return torch.where(known, actions, self.net(x, t, s, self.cond)[..., :-1])

    def average_velocity(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """u(x, t, s): average velocity of the flow from t down to s; [B,H,A]."""
        out = self.network(x, t, s)
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

    def clean(self, x: Tensor, t: Tensor) -> Tensor:
        """X_{t->0}(x), the clean chunk; of the Gaussian head only the mean m(x, t, 0); [B,H,A].

        sigma is a smoothing for training. The data are not known to have that spread, so the last leap leaves out
        the residual noise that X_{t->0} would carry, as the last step of a diffusion sampler does.
        """
        zero = torch.zeros_like(t)
        return self.network(x, t, zero) if self.sigma else self.leap(x, t, zero)
