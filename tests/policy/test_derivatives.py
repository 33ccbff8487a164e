"""Derivatives of the flow map: networks that nobody foresaw, gradients through the derivative, what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_objectives import BACKBONES, random_batch, small_net
from torch import Tensor, nn

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.flow.derivatives import total_derivative, value_and_derivative
from flowleap.policy.flow.flow_map import FlowMap
from flowleap.policy.flow.objective import Objective
from flowleap.policy.flow.objectives import esd, lsd
from flowleap.policy.networks.build import BACKBONES as REGISTRY
from flowleap.policy.networks.layers import LayerNorm
from flowleap.policy.networks.time_embedding import TimeEmbedding
from flowleap.policy.policy import Policy

SPEC = Spec({"state": ObsKey((3,))}, action_dim=2, n_obs_steps=1, horizon=4, n_action_steps=2)


class Unforeseen(nn.Module):
    """A backbone of operations that no file of ours mentions: einsum, RMSNorm, nn.MultiheadAttention."""

    def __init__(
        self, action_dim: int, horizon: int, cond_dim: int, *, width: int = 16, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.time = TimeEmbedding(width, 8.0)
        self.mix = nn.Parameter(torch.randn(horizon, horizon) / horizon)
        self.input, self.condition = nn.Linear(action_dim, width), nn.Linear(cond_dim, width)
        self.norm = nn.RMSNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, dropout=dropout, batch_first=True)
        self.output = nn.Linear(width, action_dim)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        h = torch.einsum("bhc,hk->bkc", self.input(x), self.mix)
        h = self.norm(h + (self.time(t, s) + self.condition(cond))[:, None])
        return self.output(h + self.attention(h, h, h, need_weights=False)[0])


@pytest.fixture
def unforeseen() -> Iterator[str]:
    """The backbone above, registered while a test runs."""
    REGISTRY.register("unforeseen")(Unforeseen)
    yield "unforeseen"
    del REGISTRY._entries["unforeseen"]


def config(backbone: str, **options: object) -> dict[str, object]:
    return {
        "objective": {"name": "isd"},
        "backbone": {"name": backbone, **options},
        "encoder": {"name": "lowdim"},
    }


def test_a_new_backbone_works_under_the_default_derivative(unforeseen: str) -> None:
    """One file, no rule anywhere: it trains, and its difference is its derivative."""
    torch.manual_seed(0)
    policy = Policy(SPEC, config(unforeseen) | {"objective": {"name": "isd", "p": 0.0}})
    assert policy.objective.options["derivative"] == "difference"
    batch = {"obs": {"state": torch.randn(64, 1, 3)}, "action": torch.rand(64, 4, 2) * 2 - 1}
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    draw = policy.draw(64, torch.Generator().manual_seed(0))
    losses = []
    for _ in range(30):
        loss, _ = policy.loss(batch, draw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert all(p.grad is not None for p in policy.net.parameters())

    x, v = torch.randn(2, 16, 4, 2, dtype=torch.float64)
    t = torch.rand(16, dtype=torch.float64)
    u, along = FlowMap(policy.net.double(), torch.randn(16, 3).double()), (v, torch.ones_like(t), None)
    eps = 1e-5
    with torch.no_grad():
        ahead = u.average_velocity(x + eps * v, t + eps, t / 2)
        central = (ahead - u.average_velocity(x - eps * v, t - eps, t / 2)) / (2 * eps)
    assert torch.allclose(total_derivative(u, (x, t, t / 2), along, "difference"), central, atol=1e-5)
    assert float(central.abs().mean()) > 1e-2


def test_random_masks_are_refused_where_they_would_be_subtracted(unforeseen: str) -> None:
    """Not by the name of an option: whatever drops in the network counts."""
    for backbone, name in (("mlp", "blocks"), ("transformer", "blocks"), (unforeseen, "attention")):
        with pytest.raises(FlowleapError, match=rf"'{name}.*derivative=jvp"):
            Policy(SPEC, config(backbone, dropout=0.1))
        exact = config(backbone, dropout=0.1) | {"objective": {"name": "isd", "derivative": "jvp"}}
        assert Policy(SPEC, exact).objective.options["derivative"] == "jvp"


def test_the_exact_derivative_of_older_checkpoints_is_jvp() -> None:
    assert Objective({"name": "isd", "derivative": "tangent"}).config["derivative"] == "jvp"


def test_the_value_of_the_jvp_carries_the_graph_of_the_plain_pass() -> None:
    net, batch = small_net(), random_batch()
    u = FlowMap(net, torch.randn(16, 3, dtype=torch.float64))
    point, along = (batch.x_t, batch.t, batch.s), (batch.v, torch.ones_like(batch.t), None)
    value, derivative = value_and_derivative(u, point, along)
    plain = u.average_velocity(*point)
    assert torch.allclose(value, plain, atol=1e-12)
    ours, theirs = (
        torch.autograd.grad(out.square().sum(), list(net.parameters()), materialize_grads=True)
        for out in (value, plain)
    )
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(ours, theirs, strict=True))
    assert derivative.requires_grad
    assert not total_derivative(u, point, along, "jvp").requires_grad


def test_layer_norm_is_torchs_own_and_its_double_derivative_is_exact() -> None:
    torch.manual_seed(0)
    ours, theirs = LayerNorm(8).double(), nn.LayerNorm(8).double()
    ours.weight.data += torch.rand(8)
    theirs.load_state_dict(ours.state_dict())
    x, v = torch.randn(2, 5, 8, dtype=torch.float64)
    value, tangent = torch.func.jvp(ours, (x,), (v,))
    assert torch.equal(ours(x), theirs(x))
    assert torch.allclose(value, theirs(x), atol=1e-14)
    assert torch.allclose(tangent, torch.func.jvp(theirs, (x,), (v,))[1], atol=1e-14)

    def through(norm: nn.Module, weight: Tensor) -> Tensor:
        return torch.func.jvp(lambda h: norm(h @ weight), (x,), (v,))[1].square().sum()

    weight = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    exact = torch.autograd.grad(through(ours, weight), weight)[0]
    assert torch.autograd.gradcheck(lambda w: through(ours, w), weight)
    wrong = torch.autograd.grad(through(theirs, weight), weight)[0]
    if not torch.allclose(wrong, exact):  # torch mended it once this fails to hold: ours can go then
        assert float((wrong - exact).norm() / exact.norm()) > 0.01


@pytest.mark.parametrize("term", [esd, lsd], ids=["esd", "lsd"])
@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_through_the_derivative(name: str, term: object) -> None:
    """The gradient of ESD's and LSD's value, nothing stopped but LSD's target, against central differences."""
    torch.manual_seed(1)
    net, batch = small_net(name), random_batch(4)
    u = FlowMap(net, torch.randn(4, 3, dtype=torch.float64))
    target = None
    if term is lsd:  # its stopped target, held while the parameters move
        with torch.no_grad():
            target = u.velocity(u.leap(batch.x_t, batch.t, batch.s), batch.s)

    def value() -> Tensor:
        if target is None:
            return esd(u, batch)["esd"].sum()
        along_s = (None, None, torch.ones_like(batch.s))
        u_ts, ds_u = value_and_derivative(u, (batch.x_t, batch.t, batch.s), along_s)
        return (u_ts - batch.gap * ds_u - target).square().mean(dim=(1, 2)).sum()

    loss = esd(u, batch)["esd"].sum() if term is esd else lsd(u, batch)["lsd"].sum()
    assert torch.allclose(loss, value())
    parameters = list(net.parameters())
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        direction = torch.randn_like(parameter)
        kept, eps = parameter.data.clone(), 1e-6
        parameter.data = kept + eps * direction
        up = value()
        parameter.data = kept - eps * direction
        slope = (up - value()) / (2 * eps)
        parameter.data = kept
        assert torch.allclose((gradient * direction).sum(), slope.detach(), rtol=1e-4, atol=1e-6)
