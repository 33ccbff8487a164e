"""The mathematics of DESIGN: identities of the exact map, orders of convergence of the samplers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from gaussian import GaussianMap
from torch import Tensor

from flowleap.policy.core.noise import ancestral_noise
from flowleap.policy.flow.derivatives import total_derivative
from flowleap.policy.flow.flow_map import FlowMap, over_chunk
from flowleap.policy.flow.samplers import (
    Prediction,
    Sampler,
    consistency_sampler,
    diffusion_sampler,
    euler_sampler,
    leap_sampler,
    mean_sampler,
    mip_sampler,
    noise_schedule,
    time_grid,
)

B = 64


@pytest.fixture
def exact() -> GaussianMap:
    return GaussianMap()


@pytest.fixture
def triple() -> tuple[Tensor, Tensor, Tensor]:
    """Sorted times t > m > s, [B] each."""
    times = torch.rand(3, B, generator=torch.Generator().manual_seed(2), dtype=torch.float64).sort(0).values
    return times[2], times[1], times[0]


def points() -> Tensor:
    return torch.randn(B, 3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_velocity_is_the_conditional_expectation(exact: GaussianMap) -> None:
    """v* minimises E|v* - (z - a)|^2: the residual is uncorrelated with any function of x_t (Monte Carlo)."""
    n = 200_000
    a = exact.sample(n)
    z = torch.randn(a.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    t = torch.full((n,), 0.6, dtype=torch.float64)
    x = 0.4 * a + 0.6 * z
    residual = (z - a - exact.marginal_velocity(x, t)).flatten(1)
    assert residual.mean(0).abs().max() < 0.02
    assert (residual.T @ x.flatten(1) / n).abs().max() < 0.02


def test_lagrangian_identity(exact: GaussianMap, triple: tuple[Tensor, Tensor, Tensor]) -> None:
    """d_s X_{t->s}(x) = v*(X_{t->s}(x), s)."""
    t, _, s = triple
    x = points()
    moved, rate = torch.func.jvp(lambda s: exact.flow_map(B).leap(x, t, s), (s,), (torch.ones_like(s),))
    assert torch.allclose(rate, exact.marginal_velocity(moved, s), atol=1e-10)


def test_semigroup(exact: GaussianMap, triple: tuple[Tensor, Tensor, Tensor]) -> None:
    """X_{m->s} o X_{t->m} = X_{t->s}."""
    t, m, s = triple
    u, x = exact.flow_map(B), points()
    assert torch.allclose(u.leap(u.leap(x, t, m), m, s), u.leap(x, t, s), atol=1e-12)


@pytest.mark.parametrize(("method", "tolerance"), [("jvp", 1e-10), ("difference", 1e-4)])
def test_eulerian_identity(
    exact: GaussianMap, triple: tuple[Tensor, Tensor, Tensor], method: str, tolerance: float
) -> None:
    """U = v* - (t - s) D_{v*} u."""
    t, _, s = triple
    u, x = exact.flow_map(B), points()
    v = u.velocity(x, t)
    du = total_derivative(u, (x, t, s), (v, torch.ones_like(t), None), method)
    assert torch.allclose(u.average_velocity(x, t, s), v - over_chunk(t - s) * du, atol=tolerance)


def test_leaps_are_exact_on_any_grid(exact: GaussianMap) -> None:
    """One leap, ten leaps and an uneven grid give the same action: what makes NFE a free choice."""
    u, z = exact.flow_map(B), points()
    one = leap_sampler(u, z, time_grid(1, dtype=torch.float64))
    uneven = torch.tensor([1.0, 0.93, 0.4, 0.39, 0.0], dtype=torch.float64)
    for grid in (time_grid(10, dtype=torch.float64), uneven):
        assert torch.allclose(leap_sampler(u, z, grid), one, atol=1e-12)


def test_one_leap_from_noise_has_the_data_distribution(exact: GaussianMap) -> None:
    n = 100_000
    z = torch.randn(n, 3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    a = leap_sampler(exact.flow_map(n), z, time_grid(1, dtype=torch.float64)).flatten(1)
    sigma = exact.basis @ exact.eigenvalues.diag() @ exact.basis.T
    assert (a.mean(0) - exact.mu).abs().max() < 0.02
    assert (torch.cov(a.T) - sigma).abs().max() < 0.03


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0])
def test_a_constant_mean_is_the_exact_map_of_its_gaussian(sigma: float) -> None:
    """Data N(m, sigma^2 I): the head with the constant output m is its flow map, on and off the diagonal."""
    t, s = (
        torch.rand(2, B, generator=torch.Generator().manual_seed(6), dtype=torch.float64).sort(0, True).values
    )
    x, m = points(), torch.tensor([0.3, -0.7], dtype=torch.float64)
    u = FlowMap(lambda x, t, s, cond: m.expand_as(x), torch.zeros(B, 1), sigma)
    deviation_t, deviation_s = (((1 - r) ** 2 * sigma**2 + r**2).sqrt() for r in (t, s))
    centred = x - over_chunk(1 - t) * m
    truth = over_chunk(1 - s) * m + over_chunk(deviation_s / deviation_t) * centred
    assert torch.allclose(u.leap(x, t, s), truth, atol=1e-12)
    velocity = over_chunk((t - (1 - t) * sigma**2) / deviation_t**2) * centred - m
    assert torch.allclose(u.velocity(x, t), velocity, atol=1e-10)
    du = total_derivative(u, (x, t, s), (velocity, torch.ones_like(t), None), "jvp")
    assert torch.allclose(u.average_velocity(x, t, s), velocity - over_chunk(t - s) * du, atol=1e-8)


def test_euler_converges_with_order_one(exact: GaussianMap) -> None:
    """Halving the step halves the error against the exact map."""
    u, z = exact.flow_map(B), points()
    truth = leap_sampler(u, z, time_grid(1, dtype=torch.float64))

    def error(steps: int) -> float:
        return float((euler_sampler(u, z, time_grid(steps, dtype=torch.float64)) - truth).abs().mean())

    orders = [float(torch.tensor(error(n) / error(2 * n)).log2()) for n in (64, 128, 256)]
    assert all(0.9 < order < 1.1 for order in orders), orders


@pytest.mark.parametrize("sigma", [0.0, 0.02])
@pytest.mark.parametrize(
    ("sampler", "grid"),
    [
        (leap_sampler, 1),
        (leap_sampler, 7),
        (euler_sampler, 4),
        (consistency_sampler, 3),
        (mean_sampler, 1),
        (mip_sampler, 2),
        (diffusion_sampler, 8),
        (diffusion_sampler, 100),
    ],
)
def test_nfe_is_the_number_of_network_calls(sampler: Sampler, grid: int, sigma: float) -> None:
    calls: list[int] = []

    def net(x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        assert bool((t >= s).all())
        calls.append(len(x))
        return x

    sampler(FlowMap(net, torch.zeros(2, 1), sigma), torch.randn(2, 3, 2), time_grid(grid))
    assert len(calls) == grid


def test_ancestral_noise_depends_on_the_sample_alone() -> None:
    """DDPM's hundred noises are a function of z: the rest of the batch and the moment do not matter."""
    net: Callable[..., Tensor] = lambda x, t, s, cond: 0.3 * x  # noqa: E731
    z = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(5))
    together = diffusion_sampler(FlowMap(net, torch.zeros(3, 1)), z, time_grid(100))
    alone = diffusion_sampler(FlowMap(net, torch.zeros(1, 1)), z[1:2], time_grid(100))
    assert torch.equal(together[1:2], alone)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [7, 100])
def test_the_diffusion_sampler_is_that_of_diffusers(steps: int, prediction: Prediction) -> None:
    """The same network, noise and schedule, step by step through `scheduler.step`."""
    net: Callable[..., Tensor] = lambda x, t, s, cond: torch.sin(2 * x + t[:, None, None])  # noqa: E731
    z = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(5))
    scheduler = noise_schedule("ddpm" if steps == 100 else "ddim", prediction)
    scheduler.set_timesteps(steps)
    drawn = torch.from_numpy(ancestral_noise(z.numpy(), 100))
    x = z.double()
    for i, level in enumerate(scheduler.timesteps.tolist()):
        out = net(x, torch.full((3,), (level + 1) / 100, dtype=torch.float64), None, None)
        if steps == 7 or level == 0:
            x = scheduler.step(out, level, x).prev_sample
        else:
            noise = drawn[:, i + 1].double()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, noise=noise, **__: noise)
                x = scheduler.step(out, level, x).prev_sample
    sampled = diffusion_sampler(FlowMap(net, torch.zeros(3, 1)), z, time_grid(steps), prediction)
    torch.testing.assert_close(sampled.double(), x, atol=2e-4, rtol=0)


def test_the_last_leap_leaves_out_the_residual_noise_of_the_head() -> None:
    """With the constant output m, every grid ends at m, not at m + sigma z."""
    m = torch.tensor([0.3, -0.7])
    u = FlowMap(lambda x, t, s, cond: m.expand_as(x), torch.zeros(2, 1), 0.1)
    for steps in (1, 3):
        assert torch.equal(leap_sampler(u, torch.randn(2, 3, 2), time_grid(steps)), m.expand(2, 3, 2))


def test_mean_sampler_ignores_the_noise() -> None:
    net: Callable[..., Tensor] = lambda x, t, s, cond: x - 1.0  # noqa: E731
    out = mean_sampler(FlowMap(net, torch.zeros(2, 1)), torch.randn(2, 3, 2), time_grid(1))
    assert torch.equal(out, torch.ones(2, 3, 2))
