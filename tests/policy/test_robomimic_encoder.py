"""The encoder that robomimic and Diffusion Policy use: it is theirs, it trains, and it comes back from files."""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.deploy.export import export
from flowleap.policy.deploy.runtime import ExportedPolicy
from flowleap.policy.networks.encoders import build_encoder
from flowleap.policy.networks.robomimic_encoder import observation_encoder
from flowleap.policy.policy import Policy

SIZE = 72  # its middle, 63 px, leaves the spatial soft-max 2 x 2 places
LOWDIM = {"robot0_eef_pos": ObsKey((3,)), "gripper": ObsKey(())}
SPEC = Spec({"camera.top": ObsKey((SIZE, SIZE, 3), "uint8", "rgb"), **LOWDIM}, 2, n_obs_steps=2, horizon=4)


@pytest.fixture(autouse=True, scope="module")
def _robomimic() -> None:
    pytest.importorskip("robomimic.models.obs_nets", reason="needs robomimic 0.3")


def make_policy() -> Policy:
    torch.manual_seed(0)
    backbone = {"name": "mlp", "width": 16, "depth": 1}
    policy = Policy(SPEC, {"objective": "isd", "backbone": backbone, "encoder": "robomimic"})
    rng = np.random.default_rng(0)
    columns = {key: rng.normal(size=(50, *obs.shape)) for key, obs in LOWDIM.items()}
    policy.normalizer.fit({**columns, "action": rng.normal(size=(50, 2))})
    return policy


def observations(batch: int = 3) -> dict[str, Tensor]:
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (batch, 2, SIZE, SIZE, 3), np.uint8))
    return {"camera.top": images} | {
        key: torch.from_numpy(rng.normal(size=(batch, 2, *obs.shape)).astype(np.float32))
        for key, obs in LOWDIM.items()
    }


def test_it_is_what_robomimic_makes_of_its_own_settings_for_images() -> None:
    """But for GroupNorm in place of BatchNorm, which is Diffusion Policy's change, there at the same places."""
    from robomimic.config import config_factory
    from robomimic.models.obs_nets import obs_encoder_factory
    from robomimic.scripts.generate_paper_configs import modify_config_for_default_image_exp
    from robomimic.utils import obs_utils

    settings = modify_config_for_default_image_exp(config_factory("bc"))
    obs_utils.initialize_obs_utils_with_config(settings)
    shapes = OrderedDict(agentview_image=(3, 84, 84), robot0_eef_pos=(3,))
    kwargs = obs_utils.obs_encoder_kwargs_from_config(settings.observation.encoder)
    theirs = obs_encoder_factory(shapes, encoder_kwargs=kwargs)
    ours = observation_encoder(shapes, {"agentview_image": (76, 76)}, 64, 32)
    norms = 0
    for name, module in list(theirs.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            group = ours.get_submodule(name)
            assert isinstance(group, nn.GroupNorm)
            assert (group.num_groups, group.num_channels) == (module.num_features // 16, module.num_features)
            parent, _, last = name.rpartition(".")
            setattr(theirs.get_submodule(parent), last, group)
            norms += 1
    assert norms == 20
    ours.load_state_dict(theirs.state_dict())  # the same names and shapes
    frames = {"agentview_image": torch.rand(2, 3, 84, 84), "robot0_eef_pos": torch.randn(2, 3)}
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(frames), theirs.eval()(frames), rtol=0, atol=0)
    theirs.train()
    ours.train()
    assert {type(m) for m in ours.modules()} == {type(m) for m in theirs.modules()}


def test_it_trains_and_reads_every_frame_for_itself() -> None:
    policy, obs = make_policy(), observations()
    cond = policy.encode(obs)
    assert cond.shape == (3, 2 * (64 + 3 + 1))
    assert not torch.equal(cond, policy.encode(obs)), "training crops at random"
    frames = cond.unflatten(1, (2, -1))
    for key, part in (("robot0_eef_pos", frames[..., 64:67]), ("gripper", frames[..., 67])):
        torch.testing.assert_close(part, policy.normalizer.normalize(key, obs[key]))
    loss, _ = policy.loss({"obs": obs, "action": torch.randn(3, 4, 2)})
    loss.backward()
    for name, parameter in policy.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert not any(isinstance(m, nn.BatchNorm2d) for m in policy.modules())
    assert "ResNet18Conv" in repr(policy)


def test_evaluation_sees_the_middle_only() -> None:
    policy, obs = make_policy().eval(), observations()
    rim = {**obs, "camera.top": obs["camera.top"].clone()}
    rim["camera.top"][..., :4, :, :] = 0
    rim["camera.top"][..., -5:, :] = 0
    assert torch.equal(policy.encode(obs), policy.encode(rim))
    rim["camera.top"][:, 0, 4:20, 4:20] = 0
    changed = (policy.encode(obs) != policy.encode(rim)).unflatten(1, (2, -1)).any(2).any(0)
    assert changed.tolist() == [True, False]


def test_checkpoint_and_export_give_the_same_actions(tmp_path: Path) -> None:
    policy, obs, z = make_policy().eval(), observations(), torch.randn(3, 4, 2)
    policy.save(tmp_path / "checkpoint")
    loaded = Policy.load(tmp_path / "checkpoint")
    assert loaded.config["encoder"] == {
        "name": "robomimic",
        "features": 64,
        "keypoints": 32,
        "crop": 0.875,
        "noise": 0.0,
    }
    assert torch.equal(loaded.act(obs, z), policy.act(obs, z))
    export(loaded, tmp_path / "export")
    exported = ExportedPolicy.load(tmp_path / "export").act(
        {key: x.numpy() for key, x in obs.items()}, z.numpy()
    )
    np.testing.assert_allclose(exported, policy.act(obs, z).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (ObsKey((5,)), "no observation is one: choose encoder=lowdim"),
        (ObsKey((32, 32, 4), "uint8", "rgb"), "'x': images must be"),
    ],
)
def test_mistakes_are_named(observation: ObsKey, message: str) -> None:
    with pytest.raises(FlowleapError, match=message):
        build_encoder({"name": "robomimic"}, Spec({"x": observation}, 2))


@pytest.mark.parametrize("missing", ["robomimic", "termcolor"])
def test_a_missing_package_names_both_commands(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in [name for name in sys.modules if name.startswith("robomimic")]:
        monkeypatch.delitem(sys.modules, name)
    absent: Any = None
    monkeypatch.setitem(sys.modules, missing, absent)
    commands = "pip install 'flowleap[robomimic]' && pip install --no-deps robomimic==0.3.0"
    with pytest.raises(
        FlowleapError, match=rf"^{missing}(\.models)? is not installed: {re.escape(commands)}$"
    ):
        build_encoder({"name": "robomimic"}, SPEC)
