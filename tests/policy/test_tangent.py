"""Hand-written tangents against torch's forward-mode AD: every rule, and every backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gaussian import GaussianMap
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.flow.dual import RULES, Dual
from flowleap.policy.flow.flow_map import FlowMap, over_chunk
from flowleap.policy.flow.tangent import jvp, linearize
from flowleap.policy.networks.build import BACKBONES, build_backbone

SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"width": 16, "depth": 2},
    "transformer": {"width": 16, "depth": 2, "heads": 2},
    "unet1d": {"channels": [8, 16], "time_dim": 16, "groups": 4},
}
B, H, A, C = 6, 4, 2, 3


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-10, atol=1e-10)


def small_net(name: str, dropout: float = 0.0) -> nn.Module:
    """A float64 network whose weights are all away from zero."""
    torch.manual_seed(0)
    options = SMALL[name] | ({"dropout": dropout} if dropout else {})
    net = build_backbone({"name": name, **options}, A, H, C)[0].double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def plain_layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    axes = tuple(range(-len(shape), 0))
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    y = (x - mean) * (variance + eps).rsqrt()
    return y * (1 if weight is None else weight) + (0 if bias is None else bias)


@contextmanager
def trusted_torch() -> Iterator[None]:
    """Functions whose derivatives of second order are right and exist.

    Torch's forward-mode rule of layer_norm takes the saved moments for constants, so that the gradient of its
    tangent is wrong (pytorch issue 196700), and fused attention has no such rule.
    """
    with sdpa_kernel(SDPBackend.MATH), pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "layer_norm", plain_layer_norm)
        yield


def point() -> tuple[Tensor, Tensor, Tensor]:
    times = torch.rand(2, B, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return rand(B, H, A), times.amax(0), times.amin(0)


def gradients(loss: Tensor, net: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(net.parameters())))


# Functions of x [3, 4, 8] and y [3, 4, 8]; each is run with both moving and with either alone.
W = rand(8, 8, seed=5)
MASK = rand(3, 4, 8, seed=6) > 0
CASES: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: 2 + (x + y) + y[:, :1] + W[0],
    "sub": lambda x, y: 2 - (x - y) - y[0] - W[0] - (W[0] - x),
    "mul": lambda x, y: 2 * (x * y) * y[:, :1] * W[0],
    "div": lambda x, y: x / y / 3 + 2 / x + W[0] / y + y / W[0],
    "pow": lambda x, y: x**2 + y**3.0,
    "neg": lambda x, y: -x * y,
    "matmul": lambda x, y: x @ y.transpose(1, 2) + (x @ W)[..., :4] + (W[:4, :4] @ y)[..., :4],
    "where": lambda x, y: torch.where(MASK, x, y) + torch.where(x > y, x, 0.0) + torch.where(x != y, W[0], x),
    "compare": lambda x, y: x * (x == x) + y * (y < 0) + x * (x <= y) + y * (x >= y),
    "constants": lambda x, y: (
        x * torch.ones_like(x) + torch.zeros_like(y) + x.dim() * y + x.size(1) * x.numel()
    ),
    "cat": lambda x, y: torch.cat([x, y, MASK.double(), x], dim=1),
    "stack": lambda x, y: torch.stack([x, W[:4].expand(3, 4, 8), y], dim=-1),
    "views": lambda x, y: (
        x.flatten(1).unflatten(1, (8, 4)).transpose(1, 2)
        + y.reshape(3, 4, 8)
        + x.view(3, 8, 4).permute(0, 2, 1).contiguous()
        + y.unsqueeze(1).squeeze(1).clone().to(x.dtype)
        + x[:, :, :1].expand(3, 4, 8)
        + y.flip(2)
    ),
    "reductions": lambda x, y: x.sum(-1) * y.mean(2) + x.cumsum(1)[..., 0],
    "chunk": lambda x, y: x.chunk(2, dim=-1)[1] * y.split(4, dim=-1)[0] * x.unbind(1)[2][:, None, :4],
    "linear": lambda x, y: F.linear(x, W, W[0]) + F.linear(y, W),
    "conv1d": lambda x, y: (
        F.conv1d(x, W[:6, :4, None].expand(6, 4, 3), W[0, :6], 2, 1)
        + F.conv1d(y, W[:6, :4, None].expand(6, 4, 3), stride=2, padding=1)
    ),
    "conv_transpose1d": lambda x, y: F.conv_transpose1d(x * y, W[:4, :6, None].expand(4, 6, 4), None, 2, 1),
    "pad": lambda x, y: F.pad(x, (1, 2)) * F.pad(y, (1, 2), mode="replicate"),
    "resample": lambda x, y: F.avg_pool1d(F.interpolate(x * y, scale_factor=2.0), 2),
    "sin": lambda x, y: torch.sin(x) + y.sin(),
    "cos": lambda x, y: torch.cos(x) + y.cos(),
    "exp": lambda x, y: x.exp() + torch.exp(y),
    "log": lambda x, y: (x.square() + 1).log() + y,
    "sqrt": lambda x, y: (x.square() + 1).sqrt() + y.square(),
    "tanh": lambda x, y: torch.tanh(x) + F.tanh(y),
    "sigmoid": lambda x, y: torch.sigmoid(x) + y.sigmoid(),
    "relu": lambda x, y: torch.relu(x) + y.relu(),
    "silu": lambda x, y: F.silu(x) + y,
    "mish": lambda x, y: F.mish(x) + y,
    "gelu": lambda x, y: F.gelu(x) + F.gelu(y, approximate="tanh"),
    "softmax": lambda x, y: F.softmax(x, dim=1) * y.softmax(-1) + torch.softmax(x, -1),
    "layer_norm": lambda x, y: F.layer_norm(x, (8,)) + F.layer_norm(y, (4, 8), W[:4], W[4:]),
    "group_norm": lambda x, y: F.group_norm(x, 2) + F.group_norm(y, 2, W[0, :4], W[1, :4]),
    "group_norm_2d": lambda x, y: F.group_norm((x * y).unflatten(2, (2, 4)).transpose(2, 3), 2, W[0, :4]),
    "dropout": lambda x, y: F.dropout(x, 0.5, training=False) + y,
    "attention": lambda x, y: (
        F.scaled_dot_product_attention(x, y, x) + F.scaled_dot_product_attention(y, y, x)
    ),
}


def test_every_rule_is_covered() -> None:
    """Each rule is called by one of the cases (dropout in training has a test of its own)."""
    called: set[str] = set()

    class Recorder(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            called.add(name)
            return super().__getitem__(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowleap.policy.flow.dual.RULES", Recorder(RULES))
        for function in CASES.values():
            jvp(function, (rand(3, 4, 8), rand(3, 4, 8, seed=1)), (rand(3, 4, 8), rand(3, 4, 8)))
    assert called == set(RULES)


@pytest.mark.parametrize("moving", [(True, True), (True, False), (False, True)], ids=["both", "x", "y"])
@pytest.mark.parametrize("name", CASES)
def test_rule(name: str, moving: tuple[bool, bool]) -> None:
    """Value, tangent, and the gradients of a loss on both, equal torch's."""
    primals = [rand(3, 4, 8, seed=i).requires_grad_() for i in (1, 2)]
    directions = [rand(3, 4, 8, seed=i).requires_grad_() for i in (3, 4)]
    given = [d if m else None for d, m in zip(directions, moving, strict=True)]
    full = [d if m else torch.zeros_like(d) for d, m in zip(directions, moving, strict=True)]
    with trusted_torch():
        want = torch.func.jvp(CASES[name], tuple(primals), tuple(full))
    value, tangent = jvp(CASES[name], primals, given)
    assert close(value, want[0])
    assert close(tangent, want[1])
    assert not tangent.requires_grad

    got = jvp(CASES[name], primals, given, differentiable=True)
    assert close(got[1], want[1])

    def slopes(pair: tuple[Tensor, Tensor]) -> list[Tensor]:
        loss = pair[0].square().sum() + pair[1].square().sum()
        grads = torch.autograd.grad(loss, [*primals, *directions], allow_unused=True)
        return [torch.zeros(3, 4, 8).double() if g is None else g for g in grads]

    assert all(map(close, slopes(got), slopes(want)))


@pytest.mark.parametrize("sigma", [0.0, 0.02])
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_backbone(name: str, sigma: float) -> None:
    net, (x, t, s) = small_net(name), point()
    u = FlowMap(net, rand(B, C, seed=2), sigma)
    direction = (rand(B, H, A, seed=3), torch.ones_like(t))
    with trusted_torch():
        want = torch.func.jvp(lambda x, t: u.average_velocity(x, t, s), (x, t), direction)
    dual = u.average_velocity(Dual(x, direction[0]), Dual(t, direction[1]), s)  # type: ignore[arg-type]
    assert isinstance(dual, Dual)
    assert close(dual.tangent, want[1])
    assert float(want[1].detach().abs().min()) > 1e-6
    assert not dual.tangent.requires_grad

    plain = u.average_velocity(x, t, s)
    weight = rand(B, H, A, seed=4)
    assert torch.equal(dual.primal, plain) or name == "transformer"  # whose fused attention rounds otherwise
    for ours, theirs in zip(
        gradients((dual.primal * weight).sum(), net), gradients((plain * weight).sum(), net), strict=True
    ):
        assert torch.equal(ours, theirs) if name != "transformer" else close(ours, theirs)

    _, tangent = jvp(lambda x, t: u.average_velocity(x, t, s), (x, t), direction, differentiable=True)
    slopes = (
        torch.autograd.grad(d.square().sum(), list(net.parameters()), materialize_grads=True)
        for d in (tangent, want[1])  # zero for the last bias, which does not reach the tangent
    )
    for ours, theirs in zip(*slopes, strict=True):
        assert close(ours, theirs)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_linearize_some_rows(name: str, differentiable: bool) -> None:
    """The value of the whole batch at once, and then the derivative of its second half."""
    net, (x, t, s) = small_net(name), point()
    cond, v = rand(B, C, seed=2), rand(B, H, A, seed=3).requires_grad_()
    u = FlowMap(net, cond, 0.02)
    one = torch.ones_like(t)
    value, push = linearize(
        u.average_velocity_under,
        (torch.cat([x, x]), torch.cat([t, t])),
        (torch.cat([t, s]), torch.cat([cond, cond])),
        rows=slice(B, None),
        differentiable=differentiable,
    )
    assert close(value, torch.cat([u.velocity(x, t), u.average_velocity(x, t, s)]))
    du = push(v, one)
    with trusted_torch():
        want = torch.func.jvp(lambda x, t: u.average_velocity(x, t, s), (x, t), (v, one))[1]
    assert close(du, want)
    assert du.requires_grad == differentiable
    if differentiable:
        assert close(*(torch.autograd.grad(d.square().sum(), v)[0] for d in (du, want)))
    else:
        mine, plain = gradients(value.square().sum(), net), u.velocity(x, t).square().sum()
        for a, b in zip(
            mine, gradients(plain + u.average_velocity(x, t, s).square().sum(), net), strict=True
        ):
            assert close(a, b)
    with pytest.raises(FlowleapError, match="taken already"):
        push(v, one)


def test_linearize_refuses_a_moved_batch_axis() -> None:
    for function in (lambda x: x.transpose(0, 1), lambda x: x.mean(), lambda x: x[:2]):
        with pytest.raises(FlowleapError, match="batch axis"):
            linearize(function, (rand(3, 4),))


def test_exact_map_solves_the_eulerian_identity() -> None:
    """The identity u = v* - (t - s) D u at the closed-form map of Gaussian data."""
    times = torch.rand(2, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, t, s = rand(16, 3, 2), times.amax(0), times.amin(0)
    u = GaussianMap().flow_map(16)
    v = u.velocity(x, t)
    value, du = jvp(u.average_velocity, (x, t, s), (v, torch.ones_like(t), None))
    assert close(value, v - over_chunk(t - s) * du)
    assert float(du.abs().mean()) > 0.1


@pytest.mark.parametrize("name", ["mlp", "transformer"])
@pytest.mark.parametrize("joint", [False, True])
def test_dropout_shares_one_mask(name: str, joint: bool) -> None:
    """With the generator at the same place, primal and tangent are those of one masked network."""
    net, (x, t, s) = small_net(name, dropout=0.5).train(), point()
    u, v, one = FlowMap(net, rand(B, C, seed=2)), rand(B, H, A, seed=3), torch.ones_like(t)

    def masked(x: Tensor, t: Tensor) -> Tensor:
        torch.manual_seed(3)
        return u.average_velocity(x, t, s)

    if joint:
        value, push = linearize(
            lambda x, t, s, cond: (torch.manual_seed(3), u.average_velocity_under(x, t, s, cond))[1],
            (x, t),
            (s, u.cond),
        )
        tangent = push(v, one)
    else:
        value, tangent = jvp(masked, (x, t), (v, one))
    eps = 1e-5
    central = (masked(x + eps * v, t + eps) - masked(x - eps * v, t - eps)) / (2 * eps)
    assert close(value, masked(x, t))
    assert torch.allclose(tangent, central, atol=1e-7)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (lambda x: torch.erf(x), "'erf'"),
        (lambda x: x.acos(), "'acos'"),
        (lambda x: F.elu(x), "'elu'"),
        (lambda x: F.linear(W, x), "'linear'"),
        (lambda x: x**x, "'pow'"),
        (lambda x: F.layer_norm(W, (8,), x[0]), "layer_norm"),
    ],
)
def test_missing_rule_names_function_and_remedy(function: Any, word: str) -> None:
    with pytest.raises(FlowleapError, match=r"objective\.derivative=jvp works") as caught:
        jvp(function, (rand(8, 8),), (rand(8, 8),))
    assert word in str(caught.value)


def test_no_tangent_work_without_a_tangent() -> None:
    """What does not depend on the moving inputs stays a plain tensor."""
    net, (x, t, s) = small_net("mlp"), point()
    seen: list[type] = []
    net.condition.register_forward_hook(lambda module, args, out: seen.append(type(out)))  # type: ignore[union-attr]
    net.time.register_forward_hook(lambda module, args, out: seen.append(type(out)))  # type: ignore[union-attr]
    jvp(FlowMap(net, rand(B, C)).average_velocity, (x, t, s), (rand(B, H, A), None, None))
    assert seen == [Tensor, Tensor]
