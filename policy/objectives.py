"""Training objectives, side by side: pure functions (flow map, batch) -> per-sample loss terms [B].

Notation as in `flow_map.py`. `sg` is `.detach()`. Every term is a mean over the chunk, `|.|^2 = mean_{H,A}`;
`adaptive_weight` then turns the summed terms into the scalar loss.

Sources: flow matching arXiv 2210.02747; iSD arXiv 2601.22679 (improved self-distillation); the adaptive weight
is that of MeanFlow, arXiv 2505.13447.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowleap.policy.flow_map import SAMPLERS, FlowMap, Sampler, over_chunk
from flowleap.policy.registry import Registry, require_number
from flowleap.policy.spec import FlowleapError

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Draw:
    """The randomness of one training batch: noise z [B,H,A] and times s <= t [B], all in [0, 1]."""

    noise: Tensor
    t: Tensor
    s: Tensor

    def __getitem__(self, rows: slice) -> Draw:
        return Draw(self.noise[rows], self.t[rows], self.s[rows])

    def to(self, device: torch.device) -> Draw:
        """Return the draw on `device`."""
        return Draw(self.noise.to(device), self.t.to(device), self.s.to(device))


@dataclass(frozen=True)
class FlowBatch:
    """Clean action chunks a [B,H,A] (normalised) with one `Draw`."""

    a: Tensor
    z: Tensor
    t: Tensor
    s: Tensor

    @property
    def x_t(self) -> Tensor:
        """(1 - t) a + t z; [B,H,A]."""
        return (1 - over_chunk(self.t)) * self.a + over_chunk(self.t) * self.z

    @property
    def v(self) -> Tensor:
        """Conditional velocity z - a; [B,H,A]."""
        return self.z - self.a


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample over its chunk; [B]."""
    return (prediction - target).square().mean(dim=(1, 2))


def draw_times(batch: int, alpha: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Sorted pair of Beta(alpha, 1) draws, t >= s; two tensors [B] on the CPU. Beta(alpha, 1) = U^(1/alpha)."""
    pair = torch.rand(2, batch, generator=generator) ** (1.0 / alpha)
    return pair.amax(0), pair.amin(0)


def adaptive_weight(loss: Tensor, p: float, c: float = 0.01) -> Tensor:
    """mean_b l_b / sg[l_b + c]^p: p = 0 is the plain mean, p = 1 close to the mean of log l. Scalar."""
    return (loss / (loss.detach() + c) ** p).mean()


def total_derivative(
    flow_map: FlowMap, x: Tensor, t: Tensor, s: Tensor, v: Tensor, method: str, u: Tensor | None = None
) -> Tensor:
    """D_v u = (d_x u) v + d_t u, the derivative of u(x, t, s) along the flow at fixed s; [B,H,A], no gradient.

    `jvp` is exact (forward-mode AD, tangent (v, 1, 0)). `difference` is one-sided and needs one more forward
    pass when u(x,t,s) is given: accurate to 0.3 % in float32 at eps 1e-4 for moderate embedding frequencies,
    useless in bfloat16, hence the disabled autocast.
    """
    if torch.is_autocast_enabled(x.device.type):
        u = None  # computed in low precision: its rounding, divided by eps, would swamp the derivative
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        if method == "jvp":
            return torch.func.jvp(
                lambda x, t: flow_map.average_velocity(x, t, s), (x, t), (v, torch.ones_like(t))
            )[1]
        eps = 1e-4 if x.dtype == torch.float32 else 1e-6
        if u is None:
            u = flow_map.average_velocity(x, t, s)
        return (flow_map.average_velocity(x + eps * v, t + eps, s) - u) / eps


def isd(flow_map: FlowMap, batch: FlowBatch, *, derivative: str = "difference") -> Terms:
    """Improved self-distillation (arXiv 2601.22679), the default: anchor + stop-gradiented Eulerian target.

    L_FM = |u(x_t,t,t) - v|^2
    L_SD = |u(x_t,t,s) - sg[vbar - (t - s) D_vbar u]|^2,   vbar = sg[u(x_t,t,t)]
    """
    x, t, s = batch.x_t, batch.t, batch.s
    u_tt, u_ts = flow_map.velocity_and_average(x, t, s)
    vbar = u_tt.detach()
    du = total_derivative(flow_map, x, t, s, vbar, derivative, u=u_ts.detach())
    target = vbar - over_chunk(t - s) * du
    return {"fm": squared_error(u_tt, batch.v), "sd": squared_error(u_ts, target)}


def flow_matching(flow_map: FlowMap, batch: FlowBatch) -> Terms:
    """Flow matching (arXiv 2210.02747): L = |u(x_t,t,t) - v|^2."""
    return {"fm": squared_error(flow_map.velocity(batch.x_t, batch.t), batch.v)}


def regression(flow_map: FlowMap, batch: FlowBatch) -> Terms:
    """Behaviour cloning by regression: L = |p(o) - a|^2 with p(o) = X_{1->0}(0), the leap from zero noise."""
    one, zero = torch.ones_like(batch.t), torch.zeros_like(batch.t)
    return {"mse": squared_error(flow_map.leap(torch.zeros_like(batch.a), one, zero), batch.a)}


@dataclass(frozen=True)
class ObjectiveInfo:
    """What an objective trains (`terms`), how it is sampled, and at which NFE."""

    terms: Callable[..., Terms]
    sampler: Sampler
    default_steps: int
    max_steps: int | None = None


OBJECTIVES = {
    "isd": ObjectiveInfo(isd, SAMPLERS["leap"], default_steps=1),
    "flow_matching": ObjectiveInfo(flow_matching, SAMPLERS["euler"], default_steps=10),
    "regression": ObjectiveInfo(regression, SAMPLERS["mean"], default_steps=1, max_steps=1),
}
_TERMS: Registry[Callable[..., Terms]] = Registry("objective")
for _name, _info in OBJECTIVES.items():
    _TERMS.register(_name)(_info.terms)


class Objective:
    """A named objective with its options: draws the randomness of a batch and computes the scalar loss.

    Args:
        config: `name`, the options of that objective's function, and the shared ones: `p` and `c` (adaptive
            weight), `alpha` (times are a sorted pair of Beta(alpha, 1) draws; 1 is uniform).

    Raises:
        FlowleapError: unknown name or option, value out of range.
    """

    SHARED: Mapping[str, float] = {"p": 1.0, "c": 0.01, "alpha": 0.8}

    def __init__(self, config: Mapping[str, Any]) -> None:
        shared = {**self.SHARED, **{key: value for key, value in config.items() if key in self.SHARED}}
        self.p = require_number("objective.p", shared["p"], 0.0, 10.0)
        self.c = require_number("objective.c", shared["c"], 1e-12, 1e6)
        self.alpha = require_number("objective.alpha", shared["alpha"], 1e-3, 1e3)
        own = {key: value for key, value in config.items() if key not in self.SHARED}
        self.options = _TERMS.options(own)
        self.name: str = own["name"]
        self.info = OBJECTIVES[self.name]
        if self.options.get("derivative", "jvp") not in ("jvp", "difference"):
            raise FlowleapError(
                f"objective.derivative must be 'jvp' or 'difference', got {self.options['derivative']!r}"
            )

    @property
    def config(self) -> dict[str, Any]:
        """Plain data from which the objective can be rebuilt."""
        return {"name": self.name, **self.options, "p": self.p, "c": self.c, "alpha": self.alpha}

    def draw(
        self, batch: int, horizon: int, action_dim: int, generator: torch.Generator | None = None
    ) -> Draw:
        """Noise [B,H,A] and times [B] for one batch, on the CPU (so that one seed means one draw anywhere)."""
        noise = torch.randn(batch, horizon, action_dim, generator=generator)
        return Draw(noise, *draw_times(batch, self.alpha, generator))

    def loss(self, flow_map: FlowMap, actions: Tensor, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (scalar loss, detached mean of each term) for normalised action chunks [B,H,A]."""
        terms = self.info.terms(flow_map, FlowBatch(actions, draw.noise, draw.t, draw.s), **self.options)
        total = torch.stack(list(terms.values())).sum(0)
        return adaptive_weight(total, self.p, self.c), {k: v.detach().mean() for k, v in terms.items()}

    def check_steps(self, steps: int | None) -> int:
        """Return the NFE to use (`None`: the objective's default); raise `FlowleapError` where unsupported."""
        if steps is None:
            return self.info.default_steps
        limit = self.info.max_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or (limit and steps > limit):
            allowed = f"steps from 1 to {limit}" if limit else "steps >= 1"
            raise FlowleapError(f"objective '{self.name}' supports {allowed}, got {steps!r}")
        return steps
