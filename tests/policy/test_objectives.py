"""Objectives as mathematics: fixed points, stopped gradients, and a net trained to one step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gaussian import GaussianMap
from scipy.stats import beta, kstest
from torch import Tensor, nn

from flowleap.policy.backbones import build_backbone
from flowleap.policy.flow_map import FlowMap, leap_sampler, over_chunk, time_grid
from flowleap.policy.objectives import (
    FlowBatch,
    Objective,
    adaptive_weight,
    draw_times,
    isd,
    squared_error,
    total_derivative,
)
from flowleap.policy.spec import FlowleapError


def make_batch(n: int = 64) -> FlowBatch:
    generator = torch.Generator().manual_seed(7)
    a = GaussianMap().sample(n)
    z = torch.randn(a.shape, generator=generator, dtype=torch.float64)
    t, s = draw_times(n, 0.8, generator)
    return FlowBatch(a, z, t.double(), s.double())


def small_net(name: str = "mlp") -> nn.Module:
    torch.manual_seed(0)
    options = {"mlp": {"width": 32, "depth": 2}, "unet1d": {"channels": [8, 16], "time_dim": 16, "groups": 4}}
    return build_backbone({"name": name, **options[name]}, action_dim=2, horizon=4, cond_dim=3)[0].double()


def random_inputs(n: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    x, v = torch.randn(2, n, 4, 2, generator=generator, dtype=torch.float64)
    t, s = draw_times(n, 1.0, generator)
    return x, v, t.double(), s.double()


@pytest.mark.parametrize(("derivative", "tolerance"), [("jvp", 1e-20), ("difference", 1e-8)])
def test_isd_distillation_vanishes_at_the_exact_map(derivative: str, tolerance: float) -> None:
    terms = isd(GaussianMap().flow_map(64), make_batch(), derivative=derivative)
    assert float(terms["sd"].max()) < tolerance
    assert float(terms["fm"].mean()) > 0.1  # the anchor keeps the conditional variance


def test_isd_distillation_does_not_vanish_elsewhere() -> None:
    """A wrong map (that of other data) is no fixed point: the test above can fail."""
    wrong = GaussianMap(seed=5)
    right = GaussianMap()

    def mixed(x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        on_diagonal = over_chunk(t == s)
        return torch.where(on_diagonal, right(x, t, s, cond), wrong(x, t, s, cond))

    terms = isd(FlowMap(mixed, torch.zeros(64, 1, dtype=torch.float64)), make_batch(), derivative="jvp")
    assert float(terms["sd"].mean()) > 1e-2


@pytest.mark.parametrize("backbone", ["mlp", "unet1d"])
def test_jvp_equals_finite_differences(backbone: str) -> None:
    """Central differences in float64 pin the exact derivative; the one-sided ones used in training follow."""
    x, v, t, s = random_inputs()
    u = FlowMap(small_net(backbone), torch.randn(16, 3, dtype=torch.float64))
    exact = total_derivative(u, x, t, s, v, "jvp")
    eps = 1e-5
    with torch.no_grad():
        ahead = u.average_velocity(x + eps * v, t + eps, s)
        central = (ahead - u.average_velocity(x - eps * v, t - eps, s)) / (2 * eps)
    assert torch.allclose(exact, central, atol=1e-8)
    one_sided = total_derivative(u, x, t, s, v, "difference")
    assert torch.allclose(exact, one_sided, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(exact, torch.zeros_like(exact), atol=1e-2)


@pytest.mark.parametrize("backbone", ["mlp", "unet1d"])
def test_float32_difference_is_accurate(backbone: str) -> None:
    """In training precision the derivative is within 2 % of the exact one."""
    x, v, t, s = random_inputs(64)
    net, cond = small_net(backbone), torch.randn(64, 3, dtype=torch.float64)
    exact = total_derivative(FlowMap(net, cond), x, t, s, v, "jvp")
    u = FlowMap(net.float(), cond.float())
    rough = total_derivative(u, x.float(), t.float(), s.float(), v.float(), "difference")
    assert float((rough - exact).norm() / exact.norm()) < 0.02


def test_mixed_precision_keeps_the_derivative_in_float32() -> None:
    """Under bfloat16 autocast the distillation term stays what it is in float32 (the derivative is not rounded)."""
    net, cond = small_net().float(), torch.randn(16, 3)
    x, _, t, s = (value.float() for value in random_inputs())
    batch = FlowBatch(a=x, z=torch.randn_like(x), t=t, s=s)
    plain = isd(FlowMap(net, cond, 0.02), batch)["sd"].mean()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = isd(FlowMap(net, cond, 0.02), batch)["sd"].mean()
    assert abs(float(mixed / plain) - 1) < 0.1


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_no_gradient_through_the_target(derivative: str) -> None:
    """The gradient of the distillation term is that of |u(x,t,s) - constant|^2."""
    net, cond = small_net(), torch.randn(16, 3, dtype=torch.float64)
    x, _, t, s = random_inputs()
    batch = FlowBatch(a=x, z=torch.randn_like(x), t=t, s=s)
    u = FlowMap(net, cond)

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), allow_unused=False)]
        )

    stopped = gradient(isd(u, batch, derivative=derivative)["sd"].sum())
    x_t = batch.x_t
    with torch.no_grad():
        v = u.velocity(x_t, t)
        constant = v - over_chunk(t - s) * total_derivative(u, x_t, t, s, v, derivative)
    by_hand = gradient(squared_error(u.average_velocity(x_t, t, s), constant).sum())
    assert torch.allclose(stopped, by_hand, rtol=1e-6, atol=1e-9)

    leaky_target = u.velocity(x_t, t) - over_chunk(t - s) * total_derivative(u, x_t, t, s, v, derivative)
    leaky = gradient(squared_error(u.average_velocity(x_t, t, s), leaky_target).sum())
    assert not torch.allclose(stopped, leaky, rtol=1e-2, atol=1e-4)  # a missing stop would be seen


def test_adaptive_weight() -> None:
    loss = torch.tensor([0.5, 2.0], requires_grad=True)
    assert adaptive_weight(loss, p=0.0).item() == pytest.approx(1.25)
    (gradient,) = torch.autograd.grad(adaptive_weight(loss, p=1.0, c=0.01), loss)
    assert torch.allclose(gradient, 0.5 / (loss.detach() + 0.01))  # the weight itself gets no gradient


def test_times_are_a_sorted_beta_pair() -> None:
    t, s = draw_times(20_000, 0.8, torch.Generator().manual_seed(0))
    assert bool((t >= s).all())
    assert float(s.min()) >= 0
    assert float(t.max()) <= 1
    either = torch.cat([t, s]).numpy()  # the unsorted draws, as a set
    assert kstest(either, beta(0.8, 1.0).cdf).pvalue > 1e-3
    assert kstest(either, beta(1.0, 1.0).cdf).pvalue < 1e-3


def test_unknown_names_and_options_are_named() -> None:
    with pytest.raises(FlowleapError, match="did you mean 'isd'"):
        Objective({"name": "isdd"})
    with pytest.raises(FlowleapError, match=r"no option 'derivativ'.*did you mean 'derivative'"):
        Objective({"name": "isd", "derivativ": "jvp"})
    with pytest.raises(FlowleapError, match=r"objective\.p"):
        Objective({"name": "isd", "p": "one"})
    with pytest.raises(FlowleapError, match="derivative must be"):
        Objective({"name": "isd", "derivative": "forward"})
    with pytest.raises(FlowleapError, match="supports steps from 1 to 1"):
        Objective({"name": "regression"}).check_steps(2)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: int = 64) -> float:
    """Mean over random directions of the 1-D Wasserstein-1 distance of two equally large samples [N, D]."""
    rng = np.random.default_rng(0)
    d = rng.standard_normal((a.shape[1], directions))
    d /= np.linalg.norm(d, axis=0)
    return float(np.abs(np.sort(a @ d, axis=0) - np.sort(b @ d, axis=0)).mean())


def test_one_step_isd_learns_a_mixture() -> None:
    """From scratch, no teacher: four modes in 2-D, sampled with a single network call."""
    torch.manual_seed(0)
    objective = Objective({"name": "isd"})
    backbone = {"name": "mlp", "width": 96, "depth": 2, "max_frequency": 30.0}
    net = build_backbone(backbone, action_dim=2, horizon=1, cond_dim=1)[0]
    centres = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])

    def data(n: int) -> Tensor:
        return (centres[torch.randint(4, (n,))] + 0.1 * torch.randn(n, 2))[:, None]

    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    cond = torch.zeros(256, 1)
    for _ in range(1500):
        loss, _ = objective.loss(FlowMap(net, cond), data(256), objective.draw(256, 1, 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        u = FlowMap(net, torch.zeros(4000, 1))
        samples = leap_sampler(u, torch.randn(4000, 1, 2), time_grid(1))[:, 0]
    distance = sliced_wasserstein(samples.numpy(), data(4000)[:, 0].numpy())
    gaussian_guess = sliced_wasserstein(torch.randn(4000, 2).numpy(), data(4000)[:, 0].numpy())
    nearest = torch.cdist(samples, centres).argmin(1).bincount(minlength=4)
    assert distance < 0.08 < gaussian_guess / 2, distance
    assert int(nearest.min()) > 600  # no mode lost (expected 1000 each)
