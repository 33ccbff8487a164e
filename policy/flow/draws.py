"""The randomness of a training batch, and the batch that objectives see.

Everything random of a step is drawn here, on the CPU, from one generator and for the global batch at once: one
seed means one draw, on any device and with any number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from flowleap.policy.core.registry import Option
from flowleap.policy.flow.flow_map import FlowMap

Times = Literal["beta", "logit_normal"]


@dataclass(frozen=True)
class Draw:
    """The randomness of one training batch; tensors over its B samples.

    Attributes:
        noise: z ~ N(0, I), [B,H,A].
        t, s: times, s <= t, both in [0, 1], [B].
        off_diagonal: bool [B], on the CPU: the rows where s < t may hold; elsewhere s = t.
        uniform: one more U[0, 1) number a sample, for objectives that draw a third time, [B].
        keep: bool [B]: False where the observation is dropped (guidance).
        progress: share of the training that is done, in [0, 1), for objectives that anneal.
        prefix: how many actions of a chunk are given, int64 [B]; None where none ever are.
    """

    noise: Tensor
    t: Tensor
    s: Tensor
    off_diagonal: Tensor
    uniform: Tensor
    keep: Tensor
    progress: float = 0.0
    prefix: Tensor | None = None

    def __getitem__(self, rows: slice) -> Draw:
        return replace(self, **{key: x[rows] for key, x in self.tensors().items()})

    def to(self, device: torch.device) -> Draw:
        """Return the draw on `device` (`off_diagonal` stays on the CPU: it only selects rows)."""
        moved = {key: x.to(device, non_blocking=True) for key, x in self.tensors().items()}
        return replace(self, **moved | {"off_diagonal": self.off_diagonal})

    def tensors(self) -> dict[str, Any]:
        """The fields that are tensors, by name."""
        return {key: x for key, x in vars(self).items() if isinstance(x, Tensor)}


@dataclass(frozen=True)
class FlowBatch:
    """Clean action chunks a [B,H,A] (normalised) with one `Draw`, as an objective sees them.

    Attributes:
        a, z, t, s, uniform, progress: see `Draw`.
        off: indices [n] of the rows where s < t may hold, or None for all rows.
        v: the velocity to regress on, [B,H,A]: z - a, or its guided version.
        teacher: the flow map that gives the targets, where it is not the one in training.
    """

    a: Tensor
    z: Tensor
    t: Tensor
    s: Tensor
    v: Tensor
    uniform: Tensor
    off: Tensor | None = None
    progress: float = 0.0
    teacher: FlowMap | None = None

    @classmethod
    def of(cls, a: Tensor, draw: Draw) -> FlowBatch:
        """The batch of clean chunks [B,H,A] under a draw on the same device."""
        off = None if bool(draw.off_diagonal.all()) else draw.off_diagonal.nonzero()[:, 0].to(a.device)
        return cls(a, draw.noise, draw.t, draw.s, draw.noise - a, draw.uniform, off, draw.progress)

    def x(self, t: Tensor) -> Tensor:
        """(1 - t) a + t z; [B,H,A]."""
        return (1 - t[:, None, None]) * self.a + t[:, None, None] * self.z

    @property
    def gap(self) -> Tensor:
        """T - s, to be multiplied with chunks; [B,1,1]."""
        return (self.t - self.s)[:, None, None]

    @property
    def x_t(self) -> Tensor:
        """X at the batch's own times t; [B,H,A]."""
        return self.x(self.t)


def draw_times(
    batch: int,
    alpha: float = 0.8,
    generator: torch.Generator | None = None,
    times: Times = "beta",
    mean: float = -0.4,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Sorted pair of draws, t >= s; two tensors [B] on the CPU.

    `beta`: Beta(alpha, 1) = U^(1/alpha), alpha = 1 is uniform. `logit_normal`: sigmoid of N(mean, scale^2).
    """
    if times == "beta":
        pair = torch.rand(2, batch, generator=generator) ** (1.0 / alpha)
    else:
        pair = torch.sigmoid(mean + scale * torch.randn(2, batch, generator=generator))
    return pair.amax(0), pair.amin(0)


def spread_rows(batch: int, share: float) -> Tensor:
    """Bool [B], True for a fixed, evenly spread `share` of the rows (so that every process gets as many)."""
    marks = torch.floor(torch.arange(batch + 1, dtype=torch.float64) * share + 1e-9)
    return marks[1:] > marks[:-1]


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """How the randomness of a batch is drawn; options that all objectives share."""

    times: Annotated[
        Times,
        Option(
            "beta: sorted pair of Beta(alpha, 1) draws; logit_normal: of sigmoid(N(time_mean, time_scale^2))"
        ),
    ] = "beta"
    alpha: Annotated[float, Option("of beta; 1 is uniform", 1e-3, 1e3)] = 0.8
    time_mean: Annotated[float, Option("of logit_normal", -100, 100)] = -0.4
    time_scale: Annotated[float, Option("of logit_normal", 1e-3, 100)] = 1.0
    diagonal: Annotated[
        float, Option("share of the batch with s = t, which skips the term for s < t", 0, 1)
    ] = 0.0
    to_data: Annotated[bool, Option("s = 0 in every row with s < t, as consistency models learn")] = False
    gap_growth: Annotated[
        float,
        Option("share of the training over which the gap t - s grows from 0 to what is drawn; 0: off", 0, 1),
    ] = 0.0
    obs_dropout: Annotated[
        float, Option("probability of hiding the observation in training, for guidance", 0, 0.99)
    ] = 0.0

    def draw(
        self,
        batch: int,
        horizon: int,
        action_dim: int,
        generator: torch.Generator | None = None,
        progress: float = 0.0,
    ) -> Draw:
        """Noise, times and the rest of one batch's randomness, on the CPU; `progress` in [0, 1)."""
        noise = torch.randn(batch, horizon, action_dim, generator=generator)
        t, s = draw_times(batch, self.alpha, generator, self.times, self.time_mean, self.time_scale)
        s = torch.zeros_like(s) if self.to_data else s
        if progress < self.gap_growth:
            s = t - progress / self.gap_growth * (t - s)
        off = spread_rows(batch, 1.0 - self.diagonal)
        uniform = torch.rand(batch, generator=generator)
        keep = torch.rand(batch, generator=generator) >= self.obs_dropout
        return Draw(noise, t, torch.where(off, s, t), off, uniform, keep, progress)
