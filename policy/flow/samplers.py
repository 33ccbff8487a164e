"""Samplers: free functions of (flow map, noise x [B,H,A], time grid), from t = 1 down to t = 0.

The number of intervals of the grid is the NFE, the network function evaluations a chunk. Every sampler is
deterministic: one noise x, one action chunk (so that evaluations are paired and exports can be checked).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from flowleap.policy.core.noise import ancestral_noise
from flowleap.policy.flow.flow_map import FlowMap

Sampler = Callable[..., Tensor]  # (flow map, noise x, time grid, options of its own)
Prediction = Literal["epsilon", "sample", "v_prediction"]
NOISE_LEVELS = 100  # of Diffusion Policy
_Steps = Callable[[int, Prediction], list[tuple[float, ...]]]
_constant: Callable[[_Steps], _Steps] = torch.compiler.assume_constant_result


def time_grid(steps: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform times 1 = t_0 > t_1 > ... > t_steps = 0; shape [steps + 1]. `steps` is the NFE."""
    return torch.linspace(1.0, 0.0, steps + 1, device=device, dtype=dtype)


def leap_sampler(flow_map: FlowMap, x: Tensor, grid: Tensor) -> Tensor:
    """Compose flow-map leaps over `grid`, the last one to the clean chunk: exact at any grid for the true map.

    NFE = len(grid) - 1.
    """
    for t, s in pairwise(grid[:-1].unbind()):
        x = flow_map.leap(x, t.expand(len(x)), s.expand(len(x)))
    return flow_map.clean(x, grid[-2].expand(len(x)))


def euler_sampler(flow_map: FlowMap, x: Tensor, grid: Tensor) -> Tensor:
    """Euler steps along the instantaneous velocity: the flow-matching sampler. NFE = len(grid) - 1."""
    for t, s in pairwise(grid.unbind()):
        x = x - (t - s) * flow_map.velocity(x, t.expand(len(x)))
    return x


def consistency_sampler(flow_map: FlowMap, x: Tensor, grid: Tensor) -> Tensor:
    """Predict the clean chunk from each time of `grid`, noise it again with x itself. NFE = len(grid) - 1."""
    noise, clean = x, x
    for t in grid[:-1].unbind():
        noisy = (1 - t) * clean + t * noise
        clean = flow_map.clean(noisy, t.expand(len(x)))
    return clean


def mean_sampler(flow_map: FlowMap, x: Tensor, grid: Tensor) -> Tensor:
    """One leap from zero noise: the deterministic prediction of a regression policy. NFE = 1."""
    return leap_sampler(flow_map, torch.zeros_like(x), grid)


def mip_sampler(flow_map: FlowMap, x: Tensor, grid: Tensor, tau: float = 0.1) -> Tensor:
    """A regression and its refinement: p(o, p(o,0,1), tau). NFE = 2."""
    one = torch.ones_like(x[:, 0, 0])
    first = flow_map.network(torch.zeros_like(x), one, one)
    return flow_map.network(first, tau * one, tau * one)


# Those that may begin anywhere on the flow, not at pure noise alone.
ANY_START = (leap_sampler, euler_sampler)


@cache
def noise_schedule(kind: Literal["ddpm", "ddim"], prediction: Prediction) -> Any:
    """The scheduler of diffusers with Diffusion Policy's settings: 100 levels, cosine, samples clipped to [-1, 1]."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    scheduler = DDPMScheduler if kind == "ddpm" else DDIMScheduler
    cosine: dict[str, Any] = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True}
    return scheduler(num_train_timesteps=NOISE_LEVELS, prediction_type=prediction, **cosine)


@_constant
def _diffusion_steps(steps: int, prediction: Prediction) -> list[tuple[float, ...]]:
    """What each step of DDPM (100 steps) or DDIM does, as numbers, so that it can be exported.

    Returns:
        For each step its time, and the factors of x and of the network's output in the clean chunk; then those of the
        clean chunk, of x, of the output and of the ancestral noise in the next x.
    """
    ancestral = steps == NOISE_LEVELS
    scheduler = noise_schedule("ddpm" if ancestral else "ddim", prediction)
    scheduler.set_timesteps(steps)
    # Of level -1, the clean chunk, and of all others.
    kept = [1.0, *scheduler.alphas_cumprod.double().tolist()]
    levels = scheduler.timesteps.tolist()
    rows: list[tuple[float, ...]] = []
    for level, following in pairwise([*levels, -1]):
        now, then = kept[level + 1], kept[following + 1]
        signal, noise = now**0.5, (1 - now) ** 0.5
        clean = {
            "epsilon": (1 / signal, -noise / signal),
            "sample": (0.0, 1.0),
            "v_prediction": (signal, -noise),
        }
        epsilon = {
            "epsilon": (0.0, 1.0),
            "sample": (1 / noise, -signal / noise),
            "v_prediction": (noise, signal),
        }
        if ancestral:  # equation 7 of arXiv 2006.11239
            step = now / then
            mean = (then**0.5 * (1 - step) / (1 - now), step**0.5 * (1 - then) / (1 - now), 0.0)
            update = (*mean, ((1 - then) / (1 - now) * (1 - step)) ** 0.5)
        else:  # equation 12 of arXiv 2010.02502, eta = 0
            update = (then**0.5, *((1 - then) ** 0.5 * factor for factor in epsilon[prediction]), 0.0)
        rows.append(((level + 1) / NOISE_LEVELS, *clean[prediction], *update))
    return rows


def diffusion_sampler(
    flow_map: FlowMap, x: Tensor, grid: Tensor, prediction: Prediction = "epsilon"
) -> Tensor:
    """DDPM at 100 steps (ancestral), DDIM below; NFE = len(grid) - 1.

    The ancestral noise follows from x, sample by sample: one x, one chunk, whatever else is in the batch. It may be
    given, x being [B,100,H,A] then (see `ancestral_noise`).
    """
    steps = len(grid) - 1
    ancestral = steps == NOISE_LEVELS
    noise = x.new_zeros(steps, x.shape[0], *x.shape[-2:])  # of each step, none at the last
    if ancestral:
        drawn = x if x.ndim == 4 else torch.from_numpy(ancestral_noise(x.cpu().numpy(), steps)).to(x)
        x = drawn[:, 0].clone(memory_format=torch.contiguous_format)
        noise = torch.cat([drawn[:, 1:].transpose(0, 1), noise[:1]]).contiguous()
    rows = torch.tensor(_diffusion_steps(steps, prediction), dtype=x.dtype, device=x.device)

    def step(x: Tensor, row_and_noise: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        row, z = row_and_noise
        level, clean_x, clean_out, of_clean, of_x, of_out, of_noise = row.unbind()
        time = level.expand(x.shape[0])
        out = flow_map.network(x, time, time)
        clean = (clean_x * x + clean_out * out).clamp(-1, 1)
        following = of_clean * clean + of_x * x + of_out * out + of_noise * z
        return following, following.clone()

    # A loop of the exported graph: a hundred networks would be unwieldy.
    if ancestral and torch.compiler.is_compiling():
        from torch._higher_order_ops import scan

        last: Tensor = scan(step, x, (rows, noise))[0]
        return last
    for row, z in zip(rows, noise, strict=True):
        x, _ = step(x, (row, z))
    return x
