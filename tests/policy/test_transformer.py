"""The transformer backbone: shapes, its two forms of attention, initialisation, export, and option errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.networks.build import build_backbone
from flowleap.policy.networks.transformer import TransformerBackbone, attend, embed
from flowleap.policy.policy import Policy

SMALL = {"name": "transformer", "width": 32, "depth": 2, "heads": 4, "expansion": 2}


def small_net(**options: Any) -> TransformerBackbone:
    torch.manual_seed(0)
    net, _ = build_backbone({**SMALL, **options}, action_dim=2, horizon=6, cond_dim=5)
    assert isinstance(net, TransformerBackbone)
    return net


def inputs(batch: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    times = torch.rand(2, batch)
    return torch.randn(batch, 6, 2), times.amax(0), times.amin(0), torch.randn(batch, 5)


def perturb(net: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("tokens", [0, 3])
def test_shapes_and_what_the_output_depends_on(tokens: int) -> None:
    net = small_net(tokens=tokens)
    perturb(net)
    x, t, s, cond = inputs()
    out = net(x, t, s, cond)
    assert out.shape == (7, 6, 2)
    for changed in ((x.flip(1), t, s, cond), (x, t + 0.1, s, cond), (x, t, s + 0.1, cond), (x, t, s, -cond)):
        assert not torch.allclose(net(*changed), out, atol=1e-3)
    assert torch.allclose(net(x[:3], t[:3], s[:3], cond[:3]), out[:3], atol=1e-5)  # samples do not mix


def test_a_condition_in_tokens_is_seen_by_attention_alone() -> None:
    net, (x, t, s, cond) = small_net(tokens=3), inputs()
    perturb(net)
    h, c = embed(net, x, t, s, cond)
    assert h.shape == (7, 3 + 6, 32)
    assert torch.equal(embed(net, x, t, s, -cond)[1], c)  # what modulates knows the times alone
    tokens = h[0, :3]
    assert float((tokens[0] - tokens[1]).abs().max()) > 1e-3  # each has its own part of the condition
    assert torch.equal(h[:, 3:], net.input(x) + net.positions)
    modulated, by_condition = embed(small_net(), x, t, s, cond)
    assert modulated.shape == (7, 6, 32)
    assert not torch.equal(embed(small_net(), x, t, s, -cond)[1], by_condition)


def test_explicit_attention_equals_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward-mode AD takes the explicit form; everything else, gradients included, the fused one."""
    query, key, value = torch.randn(3, 4, 2, 6, 8).unbind()
    fused = attend(query, key, value)
    calls: list[int] = []
    real = F.scaled_dot_product_attention

    def spy(*args: Tensor) -> Tensor:
        calls.append(1)
        return real(*args)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attend(query.requires_grad_(), key, value).sum().backward()
    assert len(calls) == 1
    for moving in range(3):
        parts = [query.detach(), key, value]

        def function(x: Tensor, i: int = moving, parts: list[Tensor] = parts) -> Tensor:
            return attend(*parts[:i], x, *parts[i + 1 :])

        explicit, _ = torch.func.jvp(function, (parts[moving],), (torch.ones(4, 2, 6, 8),))
        assert torch.allclose(explicit, fused, atol=1e-6)
    assert len(calls) == 1
    attend(query, key, value)
    assert len(calls) == 2  # and back again


@pytest.mark.parametrize("tokens", [0, 3])
def test_jvp_equals_central_differences(tokens: int) -> None:
    net = small_net(tokens=tokens).double()
    perturb(net)
    x, t, s, cond = (value.double() for value in inputs())
    v, eps = torch.randn_like(x), 1e-5
    value, tangent = torch.func.jvp(lambda x, t: net(x, t, s, cond), (x, t), (v, torch.ones_like(t)))
    with torch.no_grad():
        ahead, behind = (net(x + e * v, t + e, s, cond) for e in (eps, -eps))
    assert torch.allclose(tangent, (ahead - behind) / (2 * eps), atol=1e-7)
    assert torch.allclose(value, net(x, t, s, cond), atol=1e-12)
    assert float(tangent.detach().abs().mean()) > 0.1


def test_blocks_start_as_the_identity_and_all_learn_after_one_step() -> None:
    net = small_net()
    h, c = torch.randn(3, 6, 32), torch.randn(3, 32)
    for block in net.blocks:
        assert torch.equal(block(h, c), h)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (net(*inputs()) - 1).square().mean().backward()
        optimizer.step()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.norm()) > 0, name


@pytest.mark.parametrize("tokens", [0, 3])
def test_export_repeats_the_eager_policy(tokens: int, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="needs the deploy extra")
    from flowleap.policy.deploy.export import export
    from flowleap.policy.deploy.parity import action_range, eager_chunk
    from flowleap.policy.deploy.runtime import ExportedPolicy

    spec = Spec({"agent_pos": ObsKey((3,))}, 2, 2, 6, 3, 10.0)
    config = {
        "objective": {"name": "isd"},
        "backbone": {**SMALL, "tokens": tokens},
        "encoder": {"name": "lowdim"},
        "head_sigma": 0.1,
    }
    policy = Policy(spec, config)
    rng = np.random.default_rng(0)
    columns = {"agent_pos": rng.normal(size=(50, 3)), "action": rng.uniform([0, -1], [512, 1], (400, 2))}
    policy.normalizer.fit(columns)
    perturb(policy.net)
    policy.save(tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "out")
    exported = ExportedPolicy.load(tmp_path / "out")
    for batch in (1, 5):
        obs = {"agent_pos": rng.normal(size=(batch, 2, 3)).astype(np.float32)}
        noise = rng.standard_normal((batch, 6, 2), dtype=np.float32)
        want, got = eager_chunk(policy, obs, noise, 1), exported.chunk(obs, noise)
        assert (np.abs(want - got) / action_range(policy)).max() < 1e-5
    assert np.ptp(want, axis=0).max() > 1.0  # the actions do depend on what goes in


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 30}, r"backbone\.width: 30 is not divisible by heads=4"),
        ({"heads": 0}, r"backbone\.heads must be a whole number in \[1, 256\]"),
        ({"depth": 2.5}, r"backbone\.depth"),
        ({"expansion": True}, r"backbone\.expansion"),
        ({"dropout": 1.0}, r"backbone\.dropout"),
        ({"tokens": -1}, r"backbone\.tokens"),
        ({"max_frequency": "8"}, r"backbone\.max_frequency"),
        ({"head": 4}, r"no option 'head'.*did you mean 'heads'"),
    ],
)
def test_option_errors_name_the_option(options: dict[str, Any], words: str) -> None:
    with pytest.raises(FlowleapError, match=words):
        small_net(**options)
