"""Training objectives, side by side: pure functions (flow map u, batch) -> per-sample loss terms [B].

Notation as in `flow_map.py`: t = 1 is noise, t = 0 is data, s <= t, x_t = (1 - t) a + t z, v = z - a, and the
network gives u(x_t, t, s). `sg` is `.detach()`. Every term is a mean over the chunk, `|.|^2 = mean_{H,A}`;
`adaptive_weight` then turns the summed terms into the scalar loss. Where an objective has a term for s < t, it
covers the rows `batch.off`; the other rows have s = t.

Each function names its paper; docs/math.md tells them apart. The adaptive weight is that of MeanFlow. A new objective
is a function under `@objective(...)`, here or in a file of its own that `objective.py` imports.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.registry import Option, Registry
from flowleap.policy.flow import samplers
from flowleap.policy.flow.derivatives import Derivative, total_derivative, value_and_derivative
from flowleap.policy.flow.draws import DrawConfig, FlowBatch
from flowleap.policy.flow.flow_map import FlowMap, over_chunk
from flowleap.policy.flow.samplers import NOISE_LEVELS, Prediction, Sampler, noise_schedule

Terms = dict[str, Tensor]
Loss = Callable[..., Terms]  # (flow map u, batch, options of its own)


@dataclass(frozen=True, kw_only=True)
class SharedOptions(DrawConfig):
    """The options that every objective has beside its own."""

    p: Annotated[float, Option("adaptive weight l / sg[l + c]^p of a sample; 0: plain mean", 0, 10)] = 1.0
    c: Annotated[float, Option("see p", 1e-12, 1e6)] = 0.01
    guidance: Annotated[
        float,
        Option(
            "weight w of the velocity w v + (1 - w) u(x_t,t,t|no observation); needs obs_dropout > 0", 0, 100
        ),
    ] = 1.0


@dataclass(frozen=True)
class Sampling:
    """How an objective's network is sampled, and at which NFE.

    `guided`: whether the objective regresses on the velocity, so that guidance has a meaning. `options`: the options
    of the objective that its sampler takes too. `ancestral_at`: the NFE at which the sampler draws noise on its way.
    """

    sampler: Sampler
    default_steps: int = 1
    min_steps: int = 1
    max_steps: int | None = None
    guided: bool = True
    options: tuple[str, ...] = ()
    ancestral_at: int | None = None


# Options of single objectives; their defaults stand in the signatures.
AnchorWeight = Annotated[
    float, Option("of the flow-matching term; 0 leaves a condition that degenerate fields solve", 0, 1e3)
]
Stop = Annotated[Literal["none", "derivative"], Option("derivative: stop the gradient through D u alone")]
Midpoint = Annotated[
    Literal["uniform", "half"], Option("where the way is cut; half: the shortcut model (2410.12557)")
]
Halvings = Annotated[int, Option("how often the gap t - r is halved as training goes on", 0, 30)]
Tau = Annotated[float, Option("noise of the second input (1 - t* of the paper)", 1e-3, 0.999)]
Targets = Annotated[
    Literal["own", "ema"], Option("whose velocity and derivative are the target; ema: the averaged weights'")
]
Balance = Annotated[bool, Option("divide each term by the square of its interval")]
Predicted = Annotated[
    Prediction, Option("epsilon, sample (the clean chunk) or v_prediction, as in diffusers")
]

OBJECTIVES: Registry[Loss] = Registry("objective", shared=SharedOptions)
SAMPLING: dict[str, Sampling] = {}


def objective(name: str, sampling: Sampling, **defaults: Any) -> Callable[[Loss], Loss]:
    """Decorator: make a loss function available under `name`; `defaults` replace those of `SharedOptions`."""
    SAMPLING[name] = sampling
    return OBJECTIVES.register(name, **defaults)


def squared_error(prediction: Tensor, target: Tensor, free: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample over its chunk, or over the actions that are `free` (bool [B,H,1]); [B]."""
    squares = (prediction - target).square()
    if free is None:
        return squares.mean(dim=(1, 2))
    return (squares.mean(dim=2, keepdim=True) * free).sum(dim=(1, 2)) / free.sum(dim=(1, 2))


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
    teacher = batch.teacher[batch.off] if batch.teacher else None
    return u[batch.off], replace(batch, off=None, teacher=teacher, **tensors)


def teacher_of(batch: FlowBatch) -> FlowMap:
    """The flow map that the targets come from; raise `FlowleapError` where there is none."""
    if batch.teacher is None:
        raise FlowleapError(
            "this objective takes its targets from another network: objective.teacher=RUN names a trained one, and "
            "objective.targets=ema takes that of the trainer"
        )
    return batch.teacher


def diagonal_and_off(u: FlowMap, batch: FlowBatch, off: FlowMap, rows: FlowBatch) -> tuple[Tensor, Tensor]:
    """u(x_t,t,t) [B,H,A] of the whole batch and u(x_t,t,s) [n,H,A] of its rows `off`, in one pass."""
    x, t = torch.cat([batch.x_t, rows.x_t]), torch.cat([batch.t, rows.t])
    out = (u + off).average_velocity(x, t, torch.cat([batch.t, rows.s]))
    return out[: len(batch.t)], out[len(batch.t) :]


def anchor(u: FlowMap, batch: FlowBatch) -> Tensor:
    """|u(x_t,t,t) - v|^2 [B], the boundary condition that flow matching and self-distillation share."""
    return squared_error(u.velocity(batch.x_t, batch.t), batch.v, u.free)


@objective("flow_matching", Sampling(samplers.euler_sampler, default_steps=10))
def flow_matching(u: FlowMap, batch: FlowBatch) -> Terms:
    """Flow matching (arXiv 2210.02747): |u(x_t,t,t) - v|^2, sampled by 10 Euler steps by default."""
    return {"fm": anchor(u, batch)}


@objective("isd", Sampling(samplers.leap_sampler))
def isd(
    u: FlowMap,
    batch: FlowBatch,
    *,
    derivative: Derivative = "difference",
    anchor_weight: AnchorWeight = 1.0,
    targets: Targets = "own",
) -> Terms:
    """Improved self-distillation (arXiv 2601.22679), the default: one step from scratch.

    |u(x_t,t,t) - v|^2 + |u(x_t,t,s) - sg[vbar - (t - s) D_vbar u]|^2,   vbar = sg[u(x_t,t,t)]
    The whole Eulerian target is stopped. `anchor_weight` multiplies the first term; `targets=ema` takes vbar and
    D_vbar u from the averaged weights (arXiv 2603.12480).
    """
    off, rows = off_rows(u, batch)
    u_tt, u_ts = diagonal_and_off(u, batch, off, rows)
    if targets == "own":
        vbar, known = (u_tt if batch.off is None else u_tt[batch.off]).detach(), u_ts.detach()
        guide = off
    else:
        guide, known = teacher_of(rows), None
        with torch.no_grad():
            vbar = guide.velocity(rows.x_t, rows.t)
    tangents = (vbar, torch.ones_like(rows.t), None)
    du = total_derivative(guide, (rows.x_t, rows.t, rows.s), tangents, derivative, known)
    fm = squared_error(u_tt, batch.v, u.free)
    sd = squared_error(u_ts, vbar - rows.gap * du, off.free)
    return {"fm": anchor_weight * fm, "sd": off_diagonal(sd, batch)}


@objective("esd", Sampling(samplers.leap_sampler))
def esd(u: FlowMap, batch: FlowBatch, *, stop: Stop = "none") -> Terms:
    """Eulerian self-distillation (arXiv 2505.18825): iSD's residual, with gradients through the derivative.

    |u(x_t,t,t) - v|^2 + |u(x_t,t,s) - u(x_t,t,t) + (t - s) D_u u|^2; `stop=derivative` stops D_u u alone.
    """
    off, rows = off_rows(u, batch)
    u_tt = u.velocity(batch.x_t, batch.t)
    v_theta = u_tt if batch.off is None else u_tt[batch.off]
    tangents = (v_theta, torch.ones_like(rows.t), None)
    u_ts, du = value_and_derivative(off, (rows.x_t, rows.t, rows.s), tangents)
    residual = squared_error(u_ts, v_theta - rows.gap * (du if stop == "none" else du.detach()), off.free)
    return {"fm": squared_error(u_tt, batch.v, u.free), "esd": off_diagonal(residual, batch)}


@objective("lsd", Sampling(samplers.leap_sampler))
def lsd(u: FlowMap, batch: FlowBatch) -> Terms:
    """Lagrangian self-distillation (arXiv 2505.18825).

    |u(x_t,t,t) - v|^2 + |d_s X - sg[u(X,s,s)]|^2,   X = x_t - (t - s) u(x_t,t,s),   d_s X = u - (t - s) d_s u
    """
    off, rows = off_rows(u, batch)
    along_s = (None, None, torch.ones_like(rows.s))
    u_ts, ds_u = value_and_derivative(off, (rows.x_t, rows.t, rows.s), along_s)
    with torch.no_grad():
        target = off.velocity(rows.x_t - rows.gap * u_ts, rows.s)
    residual = squared_error(u_ts - rows.gap * ds_u, target, off.free)
    return {"fm": anchor(u, batch), "lsd": off_diagonal(residual, batch)}


@objective("psd", Sampling(samplers.leap_sampler))
def psd(u: FlowMap, batch: FlowBatch, *, midpoint: Midpoint = "uniform") -> Terms:
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
    term = squared_error(off.average_velocity(x, t, s), target, off.free)
    return {"fm": anchor(u, batch), "psd": off_diagonal(term, batch)}


@objective("meanflow", Sampling(samplers.leap_sampler), times="logit_normal", diagonal=0.75)
def meanflow(u: FlowMap, batch: FlowBatch, *, derivative: Derivative = "difference") -> Terms:
    """MeanFlow (arXiv 2505.13447): |u(x_t,t,s) - sg[v - (t - s) D_v u]|^2; rows with s = t are flow matching."""
    return {"mf": _mean_flow(u, batch, derivative, lambda off, rows: rows.v)}


@objective("improved_meanflow", Sampling(samplers.leap_sampler), times="logit_normal", diagonal=0.5)
def improved_meanflow(u: FlowMap, batch: FlowBatch, *, derivative: Derivative = "difference") -> Terms:
    """Improved MeanFlow (arXiv 2512.02012): |V - v|^2, V = u(x_t,t,s) + (t - s) sg[D_{v_theta} u].

    The tangent is the model's own v_theta = u(x_t,t,t), so that the derivative no longer sees the noise of v.
    """
    return {"imf": _mean_flow(u, batch, derivative, lambda off, rows: off.velocity(rows.x_t, rows.t))}


def _mean_flow(
    u: FlowMap, batch: FlowBatch, derivative: Derivative, tangent: Callable[[FlowMap, FlowBatch], Tensor]
) -> Tensor:
    """|u(x_t,t,s) + (t - s) sg[D u] - v|^2 [B] with D along `tangent` on the off-diagonal rows."""
    average = u.average_velocity(batch.x_t, batch.t, batch.s)
    off, rows = off_rows(u, batch)
    with torch.no_grad():
        known = average if batch.off is None else average[batch.off]
        tangents = (tangent(off, rows), torch.ones_like(rows.t), None)
        du = total_derivative(off, (rows.x_t, rows.t, rows.s), tangents, derivative, known.detach())
        correction = rows.gap * du
    if batch.off is not None:
        correction = torch.zeros_like(average).index_copy(0, batch.off, correction)
    return squared_error(average, batch.v - correction, u.free)


@objective("alpha_flow", Sampling(samplers.leap_sampler), times="logit_normal", diagonal=0.25)
def alpha_flow(
    u: FlowMap,
    batch: FlowBatch,
    *,
    start: Annotated[float, Option("share of the training at which alpha begins to fall from 1", 0, 1)] = 0.0,
    end: Annotated[float, Option("share at which it is 0", 0, 1)] = 0.8,
    floor: Annotated[float, Option("below it the term is MeanFlow's", 0, 1)] = 0.005,
    derivative: Derivative = "difference",
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
    return {"af": squared_error(u.average_velocity(batch.x_t, batch.t, batch.s), target, u.free) / al}


def annealed(progress: float, start: float, end: float) -> float:
    """1 before `start`, 0 after `end`, a sigmoid of slope 25 / 4 (in units of end - start) between."""
    place = (progress - start) / max(end - start, 1e-9) - 0.5
    return 1.0 / (1.0 + math.exp(min(25.0 * place, 700.0)))


@objective("consistency_training", Sampling(samplers.consistency_sampler, guided=False))
def consistency_training(u: FlowMap, batch: FlowBatch, *, halvings: Halvings = 8) -> Terms:
    """Consistency training (arXiv 2303.01469): |f(x_t,t) - sg f(x_r,r)|^2 / (t - r),   f = x - t u(x,t,0).

    r = t (1 - 2^-k) on the same straight line; k grows from 0 (r = 0: f is the clean action) to `halvings`.
    """
    gap = batch.t * 0.5 ** math.floor(batch.progress * (halvings + 1))
    r, zero = batch.t - gap, torch.zeros_like(batch.t)
    with torch.no_grad():
        target = u.leap(batch.x(r), r, zero)
    return {"ct": squared_error(u.leap(batch.x_t, batch.t, zero), target, u.free) / gap.clamp(min=1e-3)}


@objective("regression", Sampling(samplers.mean_sampler, max_steps=1, guided=False), p=0.0)
def regression(u: FlowMap, batch: FlowBatch) -> Terms:
    """Behaviour cloning by regression: |p(o) - a|^2 with p(o) = X_{1->0}(0), the leap from zero noise."""
    one, zero = torch.ones_like(batch.t), torch.zeros_like(batch.t)
    return {"mse": squared_error(u.leap(torch.zeros_like(batch.a), one, zero), batch.a, u.free)}


@objective("mip", Sampling(samplers.mip_sampler, 2, 2, 2, guided=False, options=("tau",)), p=0.0)
def mip(u: FlowMap, batch: FlowBatch, *, tau: Tau = 0.1, balance: Balance = True) -> Terms:
    """Minimal iterative policy (arXiv 2512.01809): |p(o,0,1) - a|^2 + |p(o,a + tau z,tau) - a|^2.

    p is the network itself. `balance` divides each term by the square of its interval (1 - tau and tau).
    """
    one, small = torch.ones_like(batch.t), torch.full_like(batch.t, tau)
    first = squared_error(u.network(torch.zeros_like(batch.a), one, one), batch.a, u.free)
    second = squared_error(u.network(batch.a + tau * batch.z, small, small), batch.a, u.free)
    w_first, w_second = ((1 - tau) ** -2, tau**-2) if balance else (1.0, 1.0)
    return {"first": w_first * first, "second": w_second * second}


@objective(
    "ddpm",
    Sampling(samplers.diffusion_sampler, NOISE_LEVELS, 1, NOISE_LEVELS, False, ("prediction",), NOISE_LEVELS),
    p=0.0,
)
def ddpm(u: FlowMap, batch: FlowBatch, *, prediction: Predicted = "epsilon") -> Terms:
    """Diffusion Policy (arXiv 2303.04137): |eps(x_k,k) - z|^2 at 100 noise levels, cosine schedule.

    The network sees the level as a time (k + 1) / 100; training and sampling use diffusers' schedulers, so that
    `prediction=sample` (the clean chunk) and `v_prediction` mean what they mean there.
    """
    scheduler = noise_schedule("ddpm", prediction)
    level = (batch.uniform * NOISE_LEVELS).long().clamp(max=NOISE_LEVELS - 1)
    noisy = scheduler.add_noise(batch.a, batch.z, level)
    time = (level + 1) / NOISE_LEVELS
    if prediction == "v_prediction":
        target = scheduler.get_velocity(batch.a, batch.z, level)
    else:
        target = batch.z if prediction == "epsilon" else batch.a
    return {"ddpm": squared_error(u.network(noisy, time, time), target, u.free)}
