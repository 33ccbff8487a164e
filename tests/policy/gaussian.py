"""Closed-form flow map of Gaussian data N(mu, Sigma): the exact solution that the identities are tested on."""

from __future__ import annotations

import torch
from torch import Tensor

from flowleap.policy.flow.flow_map import FlowMap, over_chunk


class GaussianMap:
    """u(x, t, s) for actions [H, A] ~ N(mu, Sigma), D = H * A; float64, a network as far as FlowMap knows.

    With x_t = (1 - t) a + t z, x_t ~ N((1-t) mu, C_t), C_t = (1-t)^2 Sigma + t^2 I. All C_t commute, so that
    X_{t->s}(x) = (1-s) mu + C_s^{1/2} C_t^{-1/2} (x - (1-t) mu).
    """

    def __init__(self, horizon: int = 3, action_dim: int = 2, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        d = horizon * action_dim
        root = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
        sigma = root @ root.T + 0.05 * torch.eye(d, dtype=torch.float64)
        self.shape = (horizon, action_dim)
        self.mu = torch.randn(d, generator=generator, dtype=torch.float64)
        self.eigenvalues, self.basis = torch.linalg.eigh(sigma)

    def sample(self, n: int, seed: int = 1) -> Tensor:
        """Draw clean chunks [n, H, A]."""
        e = torch.randn(n, len(self.mu), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return (self.mu + e * self.eigenvalues.sqrt() @ self.basis.T).unflatten(1, self.shape)

    def _deviation(self, t: Tensor) -> Tensor:
        """Square roots of the eigenvalues of C_t; [B, D]."""
        t = t[:, None]
        return ((1 - t) ** 2 * self.eigenvalues + t**2).sqrt()

    def marginal_velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v*(x, t) = E[z - a | x_t = x]; [B, H, A]."""
        y = (x.flatten(1) - (1 - t)[:, None] * self.mu) @ self.basis
        rate = (t[:, None] - (1 - t)[:, None] * self.eigenvalues) / self._deviation(t) ** 2
        return ((rate * y) @ self.basis.T - self.mu).unflatten(1, self.shape)

    def map(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """X_{t->s}(x); [B, H, A]."""
        y = (x.flatten(1) - (1 - t)[:, None] * self.mu) @ self.basis
        y = y * self._deviation(s) / self._deviation(t)
        return (y @ self.basis.T + (1 - s)[:, None] * self.mu).unflatten(1, self.shape)

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """Average velocity u(x, t, s), the marginal velocity on the diagonal."""
        diagonal = over_chunk(t == s)
        gap = over_chunk(t - s) + diagonal
        return torch.where(diagonal, self.marginal_velocity(x, t), (x - self.map(x, t, s)) / gap)

    def flow_map(self, batch: int) -> FlowMap:
        """The exact map as a FlowMap."""
        return FlowMap(self, torch.zeros(batch, 1, dtype=torch.float64))
