"""Policies that go on from given actions: what is given, what the loss counts, what an export does with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.deploy.export import export
from flowleap.policy.deploy.runtime import ExportedPolicy
from flowleap.policy.flow.derivatives import total_derivative
from flowleap.policy.flow.flow_map import FlowMap, Prefix
from flowleap.policy.flow.objective import OBJECTIVES
from flowleap.policy.flow.objectives import squared_error
from flowleap.policy.normalizer import ACTION
from flowleap.policy.policy import Policy

H, A, P, B = 8, 2, 3, 5
SPEC = Spec({"state": ObsKey((3,))}, A, n_obs_steps=2, horizon=H, n_action_steps=4)
BACKBONES: dict[str, dict[str, Any]] = {
    "mlp": {"width": 32, "depth": 1},
    "transformer": {"width": 32, "depth": 1},
    "unet1d": {"channels": [16, 32], "groups": 4},
}


def make(objective: str = "isd", backbone: str = "mlp", prefix: int = P) -> Policy:
    torch.manual_seed(0)
    config = {
        "objective": objective,
        "backbone": {"name": backbone, **BACKBONES[backbone]},
        "encoder": "lowdim",
    }
    policy = Policy(SPEC, {**config, "prefix": prefix})
    with torch.no_grad():
        for weight in policy.net.parameters():  # the blocks of a transformer begin as the identity
            weight += 0.1 * torch.randn_like(weight)
    rng = np.random.default_rng(0)
    columns = {ACTION: rng.normal(3, 2, (100, A)), "state": rng.normal(size=(100, 3))}
    policy.normalizer.fit({key: x.astype(np.float32) for key, x in columns.items()})
    return policy


def batch(seed: int = 0) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {"state": torch.randn(B, 2, 3, generator=rng)}, 3 + 2 * torch.randn(B, H, A, generator=rng)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_and_backbone_goes_on_from_what_is_given(objective: str, backbone: str) -> None:
    policy = make(objective, backbone).eval()
    obs, actions = batch()
    steps = {"ddpm": 4, "mip": 2}.get(objective, 1)
    z = torch.randn(B, H, A, generator=torch.Generator().manual_seed(1))
    given = policy.chunk(obs, z, steps, actions[:, :P])
    torch.testing.assert_close(given[:, :P], actions[:, :P])
    other = policy.chunk(obs, z, steps, actions[:, :P] + 1.0)
    free = policy.chunk(obs, z, steps)
    assert (given[:, P:] - other[:, P:]).abs().max() > 1e-5  # the rest depends on it
    assert (given[:, P:] - free[:, P:]).abs().max() > 1e-5
    loss, _ = policy.train().loss(
        {"obs": obs, "action": actions}, teacher=make("flow_matching", backbone).eval()
    )
    loss.backward()
    assert torch.isfinite(loss)


def test_the_loss_counts_the_rest_alone_and_noise_at_given_actions_is_not_seen() -> None:
    policy = make()
    obs, actions = batch()
    draw = policy.draw(B, torch.Generator().manual_seed(2))
    assert draw.prefix is not None
    assert 0 <= int(draw.prefix.min()) <= int(draw.prefix.max()) <= P
    known = torch.arange(H)[None, :, None] < draw.prefix[:, None, None]
    assert known.any()
    noise = torch.where(known, torch.full_like(draw.noise, 7.0), draw.noise)
    first, _ = policy.loss({"obs": obs, "action": actions}, draw)
    second, _ = policy.loss({"obs": obs, "action": actions}, type(draw)(**{**vars(draw), "noise": noise}))
    torch.testing.assert_close(first, second)


def test_the_error_of_free_actions_is_their_mean() -> None:
    x, y = torch.randn(B, H, A), torch.randn(B, H, A)
    free = torch.arange(H)[None, :, None] >= torch.arange(B)[:, None, None]
    expected = [squared_error(x[b : b + 1, b:], y[b : b + 1, b:]) for b in range(B)]
    torch.testing.assert_close(squared_error(x, y, free), torch.cat(expected))
    torch.testing.assert_close(
        squared_error(x, y, torch.ones(B, H, 1, dtype=torch.bool)), squared_error(x, y)
    )


def test_derivatives_of_a_flow_map_with_a_prefix_agree() -> None:
    policy = make().double()
    known = (torch.arange(H)[None, :, None] < 2).expand(B, H, 1)
    x, v, actions = torch.randn(3, B, H, A, dtype=torch.float64)
    cond = torch.randn(B, policy.encoder.dim, dtype=torch.float64)  # type: ignore[call-overload]
    u = FlowMap(policy.net, cond, 0.02, Prefix(actions, known))
    t = torch.full((B,), 0.7, dtype=torch.float64)
    along = (v, torch.ones_like(t), None)
    exact, rough = (total_derivative(u, (x, t, 0.2 * t), along, method) for method in ("jvp", "difference"))
    torch.testing.assert_close(exact, rough, rtol=1e-4, atol=1e-4)
    moved = total_derivative(u, (x, t, 0.2 * t), (torch.where(known, v + 5, v), *along[1:]), "jvp")
    # Beside u's own x, what is given does not move: the network has no derivative along it.
    torch.testing.assert_close(moved[:, 2:], exact[:, 2:])


def test_a_policy_without_a_prefix_is_what_it_was() -> None:
    plain = make(prefix=0)
    assert plain.net.input.in_features == make().net.input.in_features - H  # type: ignore[union-attr]
    assert plain.draw(4).prefix is None
    obs, actions = batch()
    with pytest.raises(FlowleapError, match=r"not trained to go on .*prefix=N"):
        plain.chunk(obs, None, 1, actions[:, :1])
    with pytest.raises(FlowleapError, match="goes on from 3 actions at most, got 4"):
        make().chunk(obs, None, 1, actions[:, :4])
    with pytest.raises(FlowleapError, match="prefix=8 leaves nothing of a chunk of horizon=8"):
        make(prefix=8)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_an_export_takes_given_actions_and_several_noises(backbone: str, tmp_path: Path) -> None:
    policy = make(backbone=backbone).eval()
    steps = 1 if backbone == "unet1d" else 2  # a second pass of its many layers takes long to trace
    export(policy, tmp_path / "out", steps)
    exported = ExportedPolicy.load(tmp_path / "out", unusual="ignore")
    assert (exported.prefix, exported.actions) == (P, H)
    obs, actions = batch()
    arrays, given = {"state": obs["state"].numpy()}, actions.numpy()
    noise = np.random.default_rng(3).standard_normal((B, 4, H, A), dtype=np.float32)
    for count in range(P + 1):
        prefix = given[:, :count]
        want = policy.chunk(obs, torch.from_numpy(noise), steps, torch.from_numpy(prefix)).detach().numpy()
        got = exported.chunk(arrays, noise, prefix)
        assert got.shape == (B, 4, H, A)
        np.testing.assert_allclose(got, want, atol=2e-4)
        one = exported.chunk(arrays, noise[:, 2], prefix)
        np.testing.assert_allclose(one, got[:, 2], atol=2e-4)
    assert exported.act(arrays, noise[:, 0], given[:, :1]).shape == (B, 4, A)
    np.testing.assert_allclose(
        exported.chunk(arrays, noise, given[:, :0]), exported.chunk(arrays, noise), atol=1e-6
    )
    for wrong in (given[:, :4], given[:2, :2], given[0, :2], given[:, :2, :1]):
        with pytest.raises(FlowleapError, match=r"prefix: expected \[5, 3 or fewer, 2\]"):
            exported.chunk(arrays, noise, wrong)
    with pytest.raises(FlowleapError, match="hold NaN"):
        exported.chunk(arrays, noise, np.full((B, 1, A), np.nan, np.float32))
