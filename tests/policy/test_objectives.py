"""Objectives as mathematics: fixed points, stopped gradients, and a net trained to one step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian import GaussianMap
from scipy.stats import beta, kstest, norm
from torch import Tensor, nn

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.flow.derivatives import total_derivative
from flowleap.policy.flow.draws import DrawConfig, FlowBatch, draw_times
from flowleap.policy.flow.flow_map import FlowMap, over_chunk
from flowleap.policy.flow.objective import OBJECTIVES, SAMPLING, Objective
from flowleap.policy.flow.objectives import (
    adaptive_weight,
    alpha_flow,
    consistency_training,
    esd,
    improved_meanflow,
    isd,
    lsd,
    meanflow,
    psd,
    squared_error,
)
from flowleap.policy.flow.samplers import leap_sampler, time_grid
from flowleap.policy.networks.build import build_backbone

BACKBONES = {
    "mlp": {"width": 32, "depth": 2},
    "unet1d": {"channels": [8, 16], "time_dim": 16, "groups": 4},
    "transformer": {"width": 32, "depth": 1, "heads": 2},
}


def make_batch(n: int = 64, diagonal: float = 0.0, progress: float = 0.5) -> FlowBatch:
    generator = torch.Generator().manual_seed(7)
    draw = DrawConfig(diagonal=diagonal).draw(n, 3, 2, generator, progress)
    doubles = {name: getattr(draw, name).double() for name in ("noise", "t", "s", "uniform")}
    return FlowBatch.of(GaussianMap().sample(n), replace(draw, **doubles))


def exact_velocity(batch: FlowBatch) -> FlowBatch:
    """The batch with the marginal velocity in place of z - a: what regression on v tends to on average."""
    return replace(batch, v=GaussianMap().marginal_velocity(batch.x_t, batch.t))


def small_net(name: str = "mlp") -> nn.Module:
    torch.manual_seed(0)
    net = build_backbone({"name": name, **BACKBONES[name]}, action_dim=2, horizon=4, cond_dim=3)[0].double()
    for parameter in net.parameters():  # adaLN-zero starts at zero: a function of nothing
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def random_inputs(n: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    x, v = torch.randn(2, n, 4, 2, generator=generator, dtype=torch.float64)
    t, s = draw_times(n, 1.0, generator)
    return x, v, t.double(), s.double()


def random_batch(n: int = 16) -> FlowBatch:
    x, z, t, s = random_inputs(n)
    return FlowBatch(a=x, z=z, t=t, s=s, v=z - x, uniform=torch.rand(n, dtype=torch.float64))


def gradient(loss: Tensor, net: nn.Module) -> Tensor:
    """All parameter gradients of a scalar, flattened."""
    gradients = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


DISTILLATION: dict[str, tuple[Callable[..., dict[str, Tensor]], str, dict[str, str], float]] = {
    "isd, jvp": (isd, "sd", {"derivative": "jvp"}, 1e-20),
    "isd, difference": (isd, "sd", {"derivative": "difference"}, 1e-8),
    "esd": (esd, "esd", {}, 1e-20),
    "lsd": (lsd, "lsd", {}, 1e-20),
    "psd, uniform": (psd, "psd", {}, 1e-20),
    "psd, half": (psd, "psd", {"midpoint": "half"}, 1e-20),
}


@pytest.mark.parametrize("diagonal", [0.0, 0.75])
@pytest.mark.parametrize("case", DISTILLATION)
def test_distillation_vanishes_at_the_exact_map(case: str, diagonal: float) -> None:
    objective, term, options, tolerance = DISTILLATION[case]
    terms = objective(GaussianMap().flow_map(64), make_batch(diagonal=diagonal), **options)
    assert float(terms[term].max()) < tolerance
    assert float(terms["fm"].mean()) > 0.1  # the anchor keeps the conditional variance


@pytest.mark.parametrize("case", DISTILLATION)
def test_distillation_does_not_vanish_elsewhere(case: str) -> None:
    """A field that is right on the diagonal alone is no fixed point: the test above can fail."""
    objective, term, options, _ = DISTILLATION[case]
    right = GaussianMap()

    def bent(x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        return right(x, t, s, cond) + over_chunk(t - s) * x

    terms = objective(FlowMap(bent, torch.zeros(64, 1, dtype=torch.float64)), make_batch(), **options)
    assert float(terms[term].mean()) > 1e-3


@pytest.mark.parametrize("objective", [meanflow, improved_meanflow])
def test_mean_flow_residual_is_that_of_flow_matching_at_the_exact_map(
    objective: Callable[..., dict[str, Tensor]],
) -> None:
    """With v* for v the residual is zero; with v itself it keeps the conditional variance, as flow matching."""
    u = GaussianMap().flow_map(64)
    (exact,) = objective(u, exact_velocity(make_batch()), derivative="jvp").values()
    assert float(exact.max()) < 1e-20
    (noisy,) = objective(u, make_batch(), derivative="jvp").values()
    assert float(noisy.mean()) > 0.1


def test_alpha_flow_goes_from_flow_matching_to_mean_flow() -> None:
    net = small_net()
    u, batch = FlowMap(net, torch.randn(16, 3, dtype=torch.float64)), random_batch()
    start = alpha_flow(u, replace(batch, progress=0.0))["af"]
    straight = squared_error(u.average_velocity(batch.x_t, batch.t, batch.s), batch.v)
    assert torch.allclose(start, straight, rtol=1e-4)
    end = alpha_flow(u, replace(batch, progress=0.99), derivative="jvp")["af"]
    assert torch.equal(end, meanflow(u, batch, derivative="jvp")["mf"])
    late = gradient(alpha_flow(u, replace(batch, progress=0.5752), floor=0.0)["af"].sum(), net)
    limit = gradient(meanflow(u, batch, derivative="jvp")["mf"].sum(), net)
    assert torch.nn.functional.cosine_similarity(late, limit, dim=0) > 0.999  # alpha is 0.004 there


def test_objectives_whose_fixed_point_the_exact_map_is_not() -> None:
    """Named, because a user should know: these train something else than the flow map.

    Consistency training pairs two points of a straight line, whose clean prediction only agrees for gap -> 0;
    regression and MIP predict means; DDPM predicts noise. Alpha-flow before its end mixes in straight lines.
    """
    u, batch = GaussianMap().flow_map(64), make_batch(progress=0.5)
    assert float(consistency_training(u, batch)["ct"].mean()) > 1e-2
    coarse = consistency_training(u, replace(batch, progress=0.3))["ct"].mean()
    fine = consistency_training(u, replace(batch, progress=0.99))["ct"].mean()
    assert fine < coarse  # and tends to it
    assert float(alpha_flow(u, exact_velocity(batch))["af"].mean()) > 1e-3
    not_maps = {name for name, info in SAMPLING.items() if not info.guided} - {"distillation"}
    assert not_maps == {"consistency_training", "mip", "regression", "ddpm"}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_jvp_equals_finite_differences(backbone: str) -> None:
    """Central differences in float64 pin the exact derivative; the one-sided ones used in training follow."""
    x, v, t, s = random_inputs()
    u = FlowMap(small_net(backbone), torch.randn(16, 3, dtype=torch.float64))
    along = (v, torch.ones_like(t), None)
    exact = total_derivative(u, (x, t, s), along, "jvp")
    eps = 1e-5
    with torch.no_grad():
        ahead = u.average_velocity(x + eps * v, t + eps, s)
        central = (ahead - u.average_velocity(x - eps * v, t - eps, s)) / (2 * eps)
    assert torch.allclose(exact, central, atol=1e-7)
    one_sided = total_derivative(u, (x, t, s), along, "difference")
    assert torch.allclose(exact, one_sided, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(exact, torch.zeros_like(exact), atol=1e-2)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_float32_difference_is_accurate(backbone: str) -> None:
    """In training precision the derivative is within 2 % of the exact one."""
    x, v, t, s = random_inputs(64)
    net, cond = small_net(backbone), torch.randn(64, 3, dtype=torch.float64)
    exact = total_derivative(FlowMap(net, cond), (x, t, s), (v, torch.ones_like(t), None), "jvp")
    single = (x.float(), t.float(), s.float())
    along = (v.float(), torch.ones_like(single[1]), None)
    rough = total_derivative(FlowMap(net.float(), cond.float()), single, along, "difference")
    assert float((rough - exact).norm() / exact.norm()) < 0.02


def test_mixed_precision_keeps_the_derivative_in_float32() -> None:
    """Under bfloat16 autocast the distillation term stays what it is in float32 (the derivative is not rounded)."""
    net, cond = small_net().float(), torch.randn(16, 3)
    x, _, t, s = (value.float() for value in random_inputs())
    z = torch.randn_like(x)
    batch = FlowBatch(a=x, z=z, t=t, s=s, v=z - x, uniform=t)
    for derivative in ("difference", "jvp"):
        plain = isd(FlowMap(net, cond, 0.02), batch, derivative=derivative)["sd"].mean()
        with torch.autocast("cpu", torch.bfloat16):
            mixed = isd(FlowMap(net, cond, 0.02), batch, derivative=derivative)["sd"].mean()
        assert abs(float(mixed.detach() / plain.detach()) - 1) < 0.1, derivative


@pytest.mark.parametrize("derivative", ["jvp", "difference"])
def test_isd_has_no_gradient_through_the_target(derivative: str) -> None:
    """The gradient of the distillation term is that of |u(x,t,s) - constant|^2."""
    net, batch = small_net(), random_batch()
    u = FlowMap(net, torch.randn(16, 3, dtype=torch.float64))
    x, t, s = batch.x_t, batch.t, batch.s
    stopped = gradient(isd(u, batch, derivative=derivative)["sd"].sum(), net)
    gap = over_chunk(t - s)
    with torch.no_grad():
        v = u.velocity(x, t)
        du = total_derivative(u, (x, t, s), (v, torch.ones_like(t), None), derivative)
    by_hand = gradient(squared_error(u.average_velocity(x, t, s), v - gap * du).sum(), net)
    assert torch.allclose(stopped, by_hand, rtol=1e-6, atol=1e-9)
    leaky = gradient(squared_error(u.average_velocity(x, t, s), u.velocity(x, t) - gap * du).sum(), net)
    assert not torch.allclose(stopped, leaky, rtol=1e-2, atol=1e-4)  # a missing stop would be seen
    if derivative == "jvp":
        half_open = gradient(esd(u, batch, stop="derivative")["esd"].sum(), net)
        assert torch.allclose(half_open, leaky, rtol=1e-6, atol=1e-9)


def numeric_gradient(value: Callable[[], Tensor], parameter: Tensor, eps: float = 1e-6) -> Tensor:
    """Central differences of a scalar in a few entries of a parameter."""
    entries = []
    for index in range(3):
        flat = parameter.data.view(-1)
        kept = flat[index].item()
        flat[index] = kept + eps
        up = value()
        flat[index] = kept - eps
        entries.append((up - value()) / (2 * eps))
        flat[index] = kept
    return torch.stack(entries).detach()


def test_esd_and_lsd_differentiate_through_the_derivative() -> None:
    """ESD's gradient is that of its value (nothing stopped); LSD's too, up to its stopped velocity."""
    net, batch = small_net(), random_batch(4)
    u = FlowMap(net, torch.randn(4, 3, dtype=torch.float64))
    weight = net.input.weight

    def value() -> Tensor:
        return esd(u, batch)["esd"].sum()

    (exact,) = torch.autograd.grad(value(), weight)
    assert torch.allclose(exact.view(-1)[:3], numeric_gradient(value, weight), rtol=1e-5, atol=1e-7)

    x, t, s = batch.x_t, batch.t, batch.s
    gap = over_chunk(t - s)
    with torch.no_grad():
        target = u.velocity(u.leap(x, t, s), s)

    def lagrangian() -> Tensor:
        eps = 1e-6
        return squared_error((u.leap(x, t, s + eps) - u.leap(x, t, s - eps)) / (2 * eps), target).sum()

    assert gap.min() >= 0
    term = lsd(u, batch)["lsd"].sum()
    assert torch.allclose(term, lagrangian(), rtol=1e-6)
    (stopped,) = torch.autograd.grad(term, weight)
    (expected,) = torch.autograd.grad(lagrangian(), weight)
    assert torch.allclose(stopped, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["psd", "meanflow", "improved_meanflow", "alpha_flow", "consistency_training"]
)
def test_targets_of_the_others_are_stopped(name: str) -> None:
    """Scaling a stopped target's gradient to zero leaves one path: gradient = 2 residual du / d theta / B."""
    net, batch = small_net(), random_batch()
    u = FlowMap(net, torch.randn(16, 3, dtype=torch.float64))
    options = {"derivative": "jvp"} if "meanflow" in name else {}
    terms = OBJECTIVES[name](u, batch, **options)
    term = terms[name if name == "psd" else list(terms)[-1]]
    if name == "consistency_training":
        prediction = u.leap(batch.x_t, batch.t, torch.zeros_like(batch.t))
        scale = 1 / (batch.t * 0.5 ** int(batch.progress * 9)).clamp(min=1e-3)
    else:
        prediction = u.average_velocity(batch.x_t, batch.t, batch.s)
        scale = torch.full_like(batch.t, 1 / 0.9999962733607158 if name == "alpha_flow" else 1.0)
    # |residual|^2 is known per sample; a linearisation in the prediction alone must give the whole gradient.
    shifted = gradient(term.sum(), net)
    residual = torch.autograd.grad(term.sum(), prediction, allow_unused=True)[0]
    assert residual is None  # a fresh prediction is another node: only parameters connect them
    with torch.no_grad():
        target = _target(name, u, batch)
    by_hand = gradient((scale * squared_error(prediction, target)).sum(), net)
    assert torch.allclose(shifted, by_hand, rtol=1e-5, atol=1e-8)


def _target(name: str, u: FlowMap, batch: FlowBatch) -> Tensor:
    """The stopped target of an objective, written out."""
    x, t, s, gap = batch.x_t, batch.t, batch.s, over_chunk(batch.t - batch.s)
    if name == "psd":
        g = batch.uniform
        m = s + g * (t - s)
        middle = u.leap(x, t, m)
        return (x - u.leap(middle, m, s)) / gap
    if name == "consistency_training":
        r = batch.t - batch.t * 0.5 ** int(batch.progress * 9)
        return u.leap(batch.x(r), r, torch.zeros_like(r))
    if name == "alpha_flow":
        al = 0.9999962733607158
        m = al * s + (1 - al) * t
        return al * batch.v + (1 - al) * u.average_velocity(batch.x(m), m, s)
    v = batch.v if name == "meanflow" else u.velocity(x, t)
    du = total_derivative(u, (x, t, s), (v, torch.ones_like(t), None), "jvp")
    return batch.v - gap * du


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_objective_trains_every_backbone(name: str, backbone: str) -> None:
    """A few steps lower the loss on one batch; every parameter that acts gets a gradient; sampling works."""
    torch.manual_seed(0)
    net = build_backbone({"name": backbone, **BACKBONES[backbone]}, action_dim=2, horizon=4, cond_dim=3)[0]
    objective = Objective({"name": name, "p": 0.0})
    actions, cond = torch.rand(16, 4, 2) * 2 - 1, torch.randn(16, 3)
    draw = objective.draw(16, 4, 2, torch.Generator().manual_seed(0), progress=0.4)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    torch.manual_seed(1)
    other = build_backbone({"name": "mlp", "width": 8, "depth": 1}, action_dim=2, horizon=4, cond_dim=3)[0]
    losses = []
    for _ in range(6):
        loss, _ = objective.loss(FlowMap(net, cond), actions, draw, FlowMap(other, cond))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[1:]) < losses[0]
    assert all(parameter.grad is not None for parameter in net.parameters())
    with torch.no_grad():
        steps = min(objective.check_steps(None), 4) if name == "ddpm" else objective.check_steps(None)
        sample = objective.sample(FlowMap(net, cond), torch.randn(16, 4, 2), time_grid(steps))
    assert sample.shape == (16, 4, 2)
    assert bool(torch.isfinite(sample).all())


def test_share_of_the_batch_with_the_off_diagonal_term() -> None:
    """`diagonal` gives s = t to a fixed share of the rows, evenly; the term of the others is what it was."""
    objective = Objective({"name": "isd", "diagonal": 0.75})
    draw = objective.draw(64, 4, 2, torch.Generator().manual_seed(0))
    assert int(draw.off_diagonal.sum()) == 16
    assert int(draw[0:16].off_diagonal.sum()) == 4  # each of four processes gets its share
    assert torch.equal(draw.t == draw.s, ~draw.off_diagonal)
    u = FlowMap(small_net().float(), torch.randn(64, 3))
    batch = FlowBatch.of(torch.randn(64, 4, 2), draw)
    some, every = isd(u, batch, derivative="jvp"), isd(u, replace(batch, off=None), derivative="jvp")
    assert torch.allclose(some["sd"], every["sd"], rtol=1e-3, atol=1e-6)
    assert torch.allclose(some["fm"], every["fm"], rtol=1e-4)


def test_guidance_mixes_the_velocity_with_the_blind_one() -> None:
    plain, guided = (
        {"name": "flow_matching", "p": 0.0, "obs_dropout": 0.5, "guidance": w} for w in (1.0, 2.0)
    )
    u, actions = FlowMap(small_net().float(), torch.randn(64, 3)), torch.randn(64, 4, 2)
    draw = Objective(guided).draw(64, 4, 2, torch.Generator().manual_seed(0))
    assert 16 < int(draw.keep.sum()) < 48
    batch = FlowBatch.of(actions, draw)
    blind = u.without_observation().velocity(batch.x_t, batch.t)
    seen = u.velocity(batch.x_t, batch.t)
    keep = over_chunk(draw.keep)
    target = torch.where(keep, 2 * batch.v - blind, batch.v)
    expected = squared_error(torch.where(keep, seen, blind), target).mean()
    assert torch.allclose(Objective(guided).loss(u, actions, draw)[0], expected, rtol=1e-5)
    unguided = squared_error(torch.where(keep, seen, blind), batch.v).mean()
    assert torch.allclose(Objective(plain).loss(u, actions, draw)[0], unguided, rtol=1e-5)


def test_adaptive_weight() -> None:
    loss = torch.tensor([0.5, 2.0], requires_grad=True)
    assert adaptive_weight(loss, p=0.0).item() == pytest.approx(1.25)
    (weight,) = torch.autograd.grad(adaptive_weight(loss, p=1.0, c=0.01), loss)
    assert torch.allclose(weight, 0.5 / (loss.detach() + 0.01))  # the weight itself gets no gradient


def test_times_follow_their_distributions() -> None:
    generator = torch.Generator().manual_seed(0)
    t, s = draw_times(20_000, 0.8, generator)
    assert bool((t >= s).all())
    assert float(s.min()) >= 0
    assert float(t.max()) <= 1
    either = torch.cat([t, s]).numpy()  # the unsorted draws, as a set
    assert kstest(either, beta(0.8, 1.0).cdf).pvalue > 1e-3
    assert kstest(either, beta(1.0, 1.0).cdf).pvalue < 1e-3
    logits = torch.logit(torch.cat(draw_times(20_000, 0.8, generator, "logit_normal", -0.4, 1.0))).numpy()
    assert kstest(logits, norm(-0.4, 1.0).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "isdd"}, "did you mean 'isd'"),
        ({"name": "isd", "derivativ": "jvp"}, r"no option 'derivativ'.*did you mean 'derivative'"),
        (
            {"name": "isd", "derivative": "forward"},
            r"objective\.derivative must be one of 'difference', 'jvp'",
        ),
        ({"name": "psd", "midpoint": "third"}, r"objective\.midpoint must be one of 'uniform', 'half'"),
        ({"name": "isd", "p": "one"}, r"objective\.p"),
        ({"name": "isd", "times": "gamma"}, r"objective\.times must be one of 'beta', 'logit_normal'"),
        ({"name": "isd", "diagonal": 1.5}, r"objective\.diagonal"),
        ({"name": "isd", "guidance": 2.0}, r"objective\.guidance needs objective\.obs_dropout > 0"),
        ({"name": "mip", "guidance": 2.0, "obs_dropout": 0.1}, r"objective\.guidance"),
        ({"name": "mip", "balance": 1}, r"objective\.balance must be true or false"),
    ],
)
def test_bad_configurations_are_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(FlowleapError, match=message):
        Objective(config)


def test_nfe_contract() -> None:
    allowed = {"regression": (1, 1), "mip": (2, 2), "ddpm": (1, 100)}
    for name in OBJECTIVES:
        objective = Objective({"name": name})
        low, high = allowed.get(name, (1, None))
        assert objective.check_steps(None) == objective.check_steps(objective.sampling.default_steps)
        for bad in [low - 1, *([high + 1] if high else []), True, 1.0]:
            with pytest.raises(FlowleapError, match=f"'{name}' supports steps"):
                objective.check_steps(bad)  # type: ignore[arg-type]


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: int = 64) -> float:
    """Mean over random directions of the 1-D Wasserstein-1 distance of two equally large samples [N, D]."""
    rng = np.random.default_rng(0)
    d = rng.standard_normal((a.shape[1], directions))
    d /= np.linalg.norm(d, axis=0)
    return float(np.abs(np.sort(a @ d, axis=0) - np.sort(b @ d, axis=0)).mean())


def test_one_step_isd_learns_a_mixture() -> None:
    """From scratch, no teacher: four modes in 2-D, sampled with a single network call.

    p = 0, because the adaptive weight looks at each sample's own residual and so prefers modes to means: with p = 1
    the four modes are found, but in unequal shares (docs/math.md).
    """
    torch.manual_seed(0)
    objective = Objective({"name": "isd", "p": 0.0})
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
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        u = FlowMap(net, torch.zeros(4000, 1))
        samples = leap_sampler(u, torch.randn(4000, 1, 2), time_grid(1))[:, 0]
    distance = sliced_wasserstein(samples.numpy(), data(4000)[:, 0].numpy())
    gaussian_guess = sliced_wasserstein(torch.randn(4000, 2).numpy(), data(4000)[:, 0].numpy())
    nearest = torch.cdist(samples, centres).argmin(1).bincount(minlength=4)
    assert distance < 0.15 < gaussian_guess / 2, (distance, gaussian_guess)
    assert int(nearest.min()) > 600  # no mode lost (expected 1000 each)
