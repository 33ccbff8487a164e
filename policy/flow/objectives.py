"""Training objectives, side by side: pure functions (flow map u, batch) -> per-sample loss terms [B].

Notation as in `flow_map.py`: t = 1 is noise, t = 0 is data, s <= t, x_t = (1 - t) a + t z, v = z - a, and the
network gives u(x_t, t, s). `sg` is `.detach()`. Every term is a mean over the chunk, `|.|^2 = mean_{H,A}`;
`adaptive_weight` then turns the summed terms into the scalar loss. Where an objective has a term for s < t, it
covers the rows `batch.off`; the other rows have s = t.

Each function names its paper; docs/math.md tells them apart. The adaptive weight is that of MeanFlow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from flowleap.policy.core.errors import FlowleapError, require_number
from flowleap.policy.core.registry import Registry
from flowleap.policy.flow.derivatives import Derivative, self_distilled, total_derivative
from flowleap.policy.flow.draws import Draw, DrawConfig, FlowBatch
from flowleap.policy.flow.flow_map import FlowMap, over_chunk
from flowleap.policy.flow.samplers import NOISE_LEVELS, SAMPLERS, Prediction, Sampler, noise_schedule

Terms = dict[str, Tensor]
Stop = Literal["none", "derivative"]


def squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each sample over its chunk; [B]."""
    return (prediction - target).square().mean(dim=(1, 2))


def adaptive_weight(loss: Tensor, p: float, c: float = 0.01) -> Tensor:
    """mean_b l_b / sg[l_b + c]^p: p = 0 is the plain mean, p = 1 close to the mean of log l. Scalar."""
    return (loss / (loss.detach() + c) ** p).mean()


def off_diagonal(term: Tensor, batch: FlowBatch) -> Tensor:
    """Spread a term of the rows `batch.off` over the batch, 0 elsewhere; [B]."""
    return term if batch.off is None else torch.zeros_like(batch.t).index_copy(0, batch.off, term)


def off_rows(u: FlowMap, batch: FlowBatch) -> tuple[FlowMap, FlowBatch]:
    """The flow map and the batch, restricted to the rows `batch.off`."""
    if batch.off is None:
        return u, batch
    tensors = {name: getattr(batch, name)[batch.off] for name in ("a", "z", "t", "s", "v", "uniform")}
    return u[batch.off], replace(batch, off=None, **tensors)


def anchor(u: FlowMap, batch: FlowBatch) -> Tensor:
    """|u(x_t,t,t) - v|^2 [B], the boundary condition that flow matching and self-distillation share."""
    return squared_error(u.velocity(batch.x_t, batch.t), batch.v)


def flow_matching(u: FlowMap, batch: FlowBatch) -> Terms:
    """Flow matching (arXiv 2210.02747): |u(x_t,t,t) - v|^2."""
    return {"fm": anchor(u, batch)}


def isd(
    u: FlowMap, batch: FlowBatch, *, derivative: Derivative = "tangent", anchor_weight: float = 1.0
) -> Terms:
    """Improved self-distillation (arXiv 2601.22679), the default: the whole Eulerian target is stopped.

    |u(x_t,t,t) - v|^2 + |u(x_t,t,s) - sg[vbar - (t - s) D_vbar u]|^2,   vbar = sg[u(x_t,t,t)]
    `anchor_weight` multiplies the first term; 0 shows what it is for (the second alone has degenerate solutions).
    """
    u_tt, vbar, u_ts, du, gap = self_distilled(u, batch, derivative)
    sd = squared_error(u_ts, vbar.detach() - gap * du)
    return {"fm": anchor_weight * squared_error(u_tt, batch.v), "sd": off_diagonal(sd, batch)}


def esd(u: FlowMap, batch: FlowBatch, *, stop: Stop = "none") -> Terms:
    """Eulerian self-distillation (arXiv 2505.18825): iSD's residual with the gradient let through.

    |u(x_t,t,t) - v|^2 + |u(x_t,t,s) - u(x_t,t,t) + (t - s) D_u u|^2; `stop=derivative` stops D_u u alone.
    """
    u_tt, v_theta, u_ts, du, gap = self_distilled(u, batch, "tangent", differentiable=stop == "none")
    return {
        "fm": squared_error(u_tt, batch.v),
        "esd": off_diagonal(squared_error(u_ts, v_theta - gap * du), batch),
    }


def lsd(u: FlowMap, batch: FlowBatch) -> Terms:
    """Lagrangian self-distillation (arXiv 2505.18825).

    |u(x_t,t,t) - v|^2 + |d_s X - sg[u(X,s,s)]|^2,   X = x_t - (t - s) u(x_t,t,s),   d_s X = u - (t - s) d_s u
    """
    off, rows = off_rows(u, batch)
    tangents = (None, None, torch.ones_like(rows.s))
    u_ts, ds_u = total_derivative(off, (rows.x_t, rows.t, rows.s), tangents, "tangent", differentiable=True)
    gap = over_chunk(rows.t - rows.s)
    with torch.no_grad():
        target = off.velocity(rows.x_t - gap * u_ts, rows.s)
    return {
        "fm": anchor(u, batch),
        "lsd": off_diagonal(squared_error(u_ts - gap * ds_u, target), batch),
    }


def psd(u: FlowMap, batch: FlowBatch, *, midpoint: Literal["uniform", "half"] = "uniform") -> Terms:
    """Progressive self-distillation (arXiv 2505.18825); `midpoint=half` is the shortcut model (2410.12557).

    |u(x_t,t,t) - v|^2 + |u(x_t,t,s) - sg[(1 - g) u(x_t,t,m) + g u(X_{t->m},m,s)]|^2,   g = (m - s) / (t - s)
    """
    off, rows = off_rows(u, batch)
    x, t, s = rows.x_t, rows.t, rows.s
    g = rows.uniform if midpoint == "uniform" else torch.full_like(t, 0.5)
    m = s + g * (t - s)
    with torch.no_grad():
        u_tm = off.average_velocity(x, t, m)
        u_ms = off.average_velocity(x - over_chunk(t - m) * u_tm, m, s)
        target = over_chunk(1 - g) * u_tm + over_chunk(g) * u_ms
    term = squared_error(off.average_velocity(x, t, s), target)
    return {"fm": anchor(u, batch), "psd": off_diagonal(term, batch)}


def meanflow(u: FlowMap, batch: FlowBatch, *, derivative: Derivative = "tangent") -> Terms:
    """MeanFlow (arXiv 2505.13447): |u(x_t,t,s) - sg[v - (t - s) D_v u]|^2; rows with s = t are flow matching."""
    return {"mf": _mean_flow(u, batch, derivative, lambda off, rows: rows.v)}


def improved_meanflow(u: FlowMap, batch: FlowBatch, *, derivative: Derivative = "tangent") -> Terms:
    """Improved MeanFlow (arXiv 2512.02012): |V - v|^2, V = u(x_t,t,s) + (t - s) sg[D_{v_theta} u].

    The tangent is the model's own v_theta = u(x_t,t,t), so that the derivative no longer sees the noise of v.
    """
    return {"imf": _mean_flow(u, batch, derivative, lambda off, rows: off.velocity(rows.x_t, rows.t))}


def _mean_flow(
    u: FlowMap,
    batch: FlowBatch,
    derivative: Derivative,
    tangent: Callable[[FlowMap, FlowBatch], Tensor],
) -> Tensor:
    """|u(x_t,t,s) + (t - s) sg[D u] - v|^2 [B] with D along `tangent` on the off-diagonal rows."""
    average = u.average_velocity(batch.x_t, batch.t, batch.s)
    off, rows = off_rows(u, batch)
    with torch.no_grad():
        x, gap = rows.x_t, over_chunk(rows.t - rows.s)
        known = average.detach() if batch.off is None else average.detach()[batch.off]
        tangents = (tangent(off, rows), torch.ones_like(rows.t), None)
        _, du = total_derivative(off, (x, rows.t, rows.s), tangents, derivative, known)
        correction = gap * du
    if batch.off is not None:
        correction = torch.zeros_like(average).index_copy(0, batch.off, correction)
    return squared_error(average, batch.v - correction)


def alpha_flow(
    u: FlowMap,
    batch: FlowBatch,
    *,
    start: float = 0.0,
    end: float = 0.8,
    floor: float = 0.005,
    derivative: Derivative = "tangent",
) -> Terms:
    """alpha-Flow (arXiv 2510.20771): from flow matching (al = 1) to MeanFlow (al -> 0) as training goes on.

    (1 / al) |u(x_t,t,s) - sg[al v + (1 - al) u(x_m,m,s)]|^2,   m = al s + (1 - al) t,   x_m on the straight line.
    al falls along a sigmoid between the shares `start` and `end` of the training; below `floor` it is MeanFlow.
    """
    al = annealed(batch.progress, start, end)
    if al < floor:
        return {"af": meanflow(u, batch, derivative=derivative)["mf"]}
    m = al * batch.s + (1 - al) * batch.t
    with torch.no_grad():
        target = al * batch.v + (1 - al) * u.average_velocity(batch.x(m), m, batch.s)
    return {"af": squared_error(u.average_velocity(batch.x_t, batch.t, batch.s), target) / al}


def annealed(progress: float, start: float, end: float) -> float:
    """1 before `start`, 0 after `end`, a sigmoid of slope 25 / 4 (in units of end - start) between."""
    place = (progress - start) / max(end - start, 1e-9) - 0.5
    return 1.0 / (1.0 + math.exp(min(25.0 * place, 700.0)))


def consistency_training(u: FlowMap, batch: FlowBatch, *, halvings: int = 8) -> Terms:
    """Consistency training (arXiv 2303.01469): |f(x_t,t) - sg f(x_r,r)|^2 / (t - r),   f = x - t u(x,t,0).

    r = t (1 - 2^-k) on the same straight line; k grows from 0 (r = 0: f is the clean action) to `halvings`.
    """
    gap = batch.t * 0.5 ** math.floor(batch.progress * (halvings + 1))
    r, zero = batch.t - gap, torch.zeros_like(batch.t)
    with torch.no_grad():
        target = u.leap(batch.x(r), r, zero)
    return {"ct": squared_error(u.leap(batch.x_t, batch.t, zero), target) / gap.clamp(min=1e-3)}


def regression(u: FlowMap, batch: FlowBatch) -> Terms:
    """Behaviour cloning by regression: |p(o) - a|^2 with p(o) = X_{1->0}(0), the leap from zero noise."""
    one, zero = torch.ones_like(batch.t), torch.zeros_like(batch.t)
    return {"mse": squared_error(u.leap(torch.zeros_like(batch.a), one, zero), batch.a)}


def mip(u: FlowMap, batch: FlowBatch, *, tau: float = 0.1, balance: bool = True) -> Terms:
    """Minimal iterative policy (arXiv 2512.01809): |p(o,0,1) - a|^2 + |p(o,a + tau z,tau) - a|^2.

    p is the network itself. `balance` divides each term by the square of its interval (1 - tau and tau).
    """
    one, small = torch.ones_like(batch.t), torch.full_like(batch.t, tau)
    first = squared_error(u.network(torch.zeros_like(batch.a), one, one), batch.a)
    second = squared_error(u.network(batch.a + tau * batch.z, small, small), batch.a)
    w_first, w_second = ((1 - tau) ** -2, tau**-2) if balance else (1.0, 1.0)
    return {"first": w_first * first, "second": w_second * second}


def ddpm(u: FlowMap, batch: FlowBatch, *, prediction: Prediction = "epsilon") -> Terms:
    """Diffusion Policy (arXiv 2303.04137): |eps(x_k,k) - z|^2 at 100 noise levels, cosine schedule.

    The network sees the level as a time (k + 1) / 100; training and sampling use diffusers' schedulers, so that
    `prediction=sample` (the clean chunk) and `v_prediction` mean what they mean there.
    """
    scheduler = noise_schedule("ddpm", prediction)
    level = (batch.uniform * NOISE_LEVELS).long().clamp(max=NOISE_LEVELS - 1)
    noisy = scheduler.add_noise(batch.a, batch.z, level)
    time = (level + 1) / NOISE_LEVELS
    targets = {"epsilon": lambda: batch.z, "sample": lambda: batch.a}
    target = targets.get(prediction, lambda: scheduler.get_velocity(batch.a, batch.z, level))()
    return {"ddpm": squared_error(u.network(noisy, time, time), target)}


@dataclass(frozen=True)
class ObjectiveInfo:
    """What an objective trains (`terms`), how it is sampled, and at which NFE.

    `guided`: whether it regresses on the velocity, so that guidance has a meaning. `sampler_options`: the options
    of the objective that its sampler takes too.
    """

    terms: Callable[..., Terms]
    sampler: Sampler
    default_steps: int = 1
    min_steps: int = 1
    max_steps: int | None = None
    guided: bool = True
    sampler_options: tuple[str, ...] = ()


_LEAP, _EULER = SAMPLERS["leap"], SAMPLERS["euler"]
OBJECTIVES = {
    "isd": ObjectiveInfo(isd, _LEAP),
    "flow_matching": ObjectiveInfo(flow_matching, _EULER, default_steps=10),
    "meanflow": ObjectiveInfo(meanflow, _LEAP),
    "improved_meanflow": ObjectiveInfo(improved_meanflow, _LEAP),
    "esd": ObjectiveInfo(esd, _LEAP),
    "lsd": ObjectiveInfo(lsd, _LEAP),
    "psd": ObjectiveInfo(psd, _LEAP),
    "alpha_flow": ObjectiveInfo(alpha_flow, _LEAP),
    "consistency_training": ObjectiveInfo(consistency_training, SAMPLERS["consistency"], guided=False),
    "mip": ObjectiveInfo(
        mip, SAMPLERS["mip"], 2, min_steps=2, max_steps=2, guided=False, sampler_options=("tau",)
    ),
    "regression": ObjectiveInfo(regression, SAMPLERS["mean"], max_steps=1, guided=False),
    "ddpm": ObjectiveInfo(
        ddpm,
        SAMPLERS["diffusion"],
        NOISE_LEVELS,
        max_steps=NOISE_LEVELS,
        guided=False,
        sampler_options=("prediction",),
    ),
}
_TERMS: Registry[Callable[..., Terms]] = Registry("objective")
for _name, _info in OBJECTIVES.items():
    _TERMS.register(_name)(_info.terms)


class Objective:
    """A named objective with its options: draws the randomness of a batch and computes the scalar loss.

    Args:
        config: `name`, the options of that objective's function, and the shared ones: those of `DrawConfig`
            (times, share of s = t, observation dropout), `p` and `c` (adaptive weight) and `guidance`: the
            weight w of the guided velocity w v + (1 - w) u(x_t,t,t|no observation), 1 is off.

    Raises:
        FlowleapError: unknown name or option, value out of range.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.draws, own = DrawConfig.take(config)
        self.p = require_number("objective.p", own.pop("p", 1.0), 0.0, 10.0)
        self.c = require_number("objective.c", own.pop("c", 0.01), 1e-12, 1e6)
        self.guidance = require_number("objective.guidance", own.pop("guidance", 1.0), 0.0, 100.0)
        self.options = _TERMS.options(own)
        self.name: str = own["name"]
        self.info = OBJECTIVES[self.name]
        if self.guidance != 1.0 and not (self.info.guided and self.draws.obs_dropout):
            raise FlowleapError(
                "objective.guidance needs objective.obs_dropout > 0 and an objective that regresses on the "
                f"velocity, got guidance={self.guidance:g} with '{self.name}'"
            )

    @property
    def config(self) -> dict[str, Any]:
        """Plain data from which the objective can be rebuilt."""
        shared = {"p": self.p, "c": self.c, "guidance": self.guidance, **asdict(self.draws)}
        return {"name": self.name, **self.options, **shared}

    def draw(
        self,
        batch: int,
        horizon: int,
        action_dim: int,
        generator: torch.Generator | None = None,
        progress: float = 0.0,
    ) -> Draw:
        """Noise, times and the rest of one batch's randomness, on the CPU; `progress` in [0, 1)."""
        return self.draws.draw(batch, horizon, action_dim, generator, progress)

    def loss(self, flow_map: FlowMap, actions: Tensor, draw: Draw) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (scalar loss, detached mean of each term) for normalised action chunks [B,H,A]."""
        batch = FlowBatch.of(actions, draw)
        if self.draws.obs_dropout:
            blind = flow_map.without_observation()
            flow_map = flow_map.keep_observation(draw.keep)
            if self.guidance != 1.0:
                with torch.no_grad():
                    guided = self.guidance * batch.v + (1 - self.guidance) * blind.velocity(
                        batch.x_t, batch.t
                    )
                batch = replace(batch, v=torch.where(over_chunk(draw.keep), guided, batch.v))
        terms = self.info.terms(flow_map, batch, **self.options)
        total = torch.stack(list(terms.values())).sum(0)
        return adaptive_weight(total, self.p, self.c), {k: v.detach().mean() for k, v in terms.items()}

    def sample(self, flow_map: FlowMap, noise: Tensor, grid: Tensor) -> Tensor:
        """Normalised action chunks [B,H,A] from noise [B,H,A] over a time grid, NFE = len(grid) - 1."""
        own = {name: self.options[name] for name in self.info.sampler_options}
        return self.info.sampler(flow_map, noise, grid, **own)

    def check_steps(self, steps: int | None) -> int:
        """Return the NFE to use (`None`: the objective's default); raise `FlowleapError` where unsupported."""
        if steps is None:
            return self.info.default_steps
        low, high = self.info.min_steps, self.info.max_steps
        if isinstance(steps, bool) or not isinstance(steps, int) or not low <= steps <= (high or math.inf):
            allowed = f"steps from {low} to {high}" if high else f"steps >= {low}"
            raise FlowleapError(f"objective '{self.name}' supports {allowed}, got {steps!r}")
        return steps
