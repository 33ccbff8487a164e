"""What a policy sees of its cameras: depth, views of larger frames, and words about images that it cannot take."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.core.views import View
from flowleap.policy.networks.encoders import build_encoder
from flowleap.policy.policy import Policy
from flowleap.policy.training import estimate
from flowleap.policy.training.config import TrainerConfig
from flowleap.policy.training.trainer import Trainer

VIEW = View((48, 64), (0, 8, 48, 48), (24, 24))
TOP = ObsKey((24, 24, 3), "uint8", "rgb", views=(VIEW,))
DEPTH = ObsKey((24, 24, 1), "float32", "depth", "mm", (0.0, 2000.0), (VIEW,))
SPEC = Spec({"top": TOP, "depth": DEPTH, "joints": ObsKey((5,))}, 2, 2, 4, 2)
SMALL: dict[str, Any] = {"name": "cnn", "channels": [8, 8], "features": 6}


def make_policy(spec: Spec = SPEC) -> Policy:
    torch.manual_seed(0)
    parts = {"objective": "isd", "backbone": {"name": "mlp", "width": 16, "depth": 1}, "encoder": SMALL}
    policy = Policy(spec, parts).eval()
    rng = np.random.default_rng(0)
    policy.normalizer.fit({"joints": rng.normal(size=(50, 5)), "action": rng.normal(size=(50, 2))})
    with torch.no_grad():
        for parameter in policy.net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


def camera_frames(batch: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "top": rng.integers(0, 256, (batch, 2, 48, 64, 3), np.uint8),
        "depth": rng.uniform(0, 2000, (batch, 2, 48, 64, 1)).astype(np.float32),
        "joints": rng.normal(size=(batch, 2, 5)).astype(np.float32),
    }


def tensors(obs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(x) for key, x in obs.items()}


def test_frames_of_the_cameras_size_are_seen_as_in_training() -> None:
    policy, obs, noise = make_policy(), camera_frames(), torch.randn(3, 4, 2)
    seen = {**obs, "top": VIEW(obs["top"]), "depth": VIEW(obs["depth"])}
    assert seen["top"].shape == (3, 2, 24, 24, 3)
    chunk = policy.act(tensors(obs), noise)
    torch.testing.assert_close(chunk, policy.act(tensors(seen), noise), rtol=0, atol=0)
    other = {**obs, "top": 255 - obs["top"]}
    assert (policy.act(tensors(other), noise) - chunk).abs().max() > 1e-4


def test_depth_is_scaled_by_its_range_and_clipped_and_what_was_not_measured_is_0() -> None:
    spec = Spec({"depth": ObsKey((24, 24, 1), "float32", "depth", "mm", (0.0, 2000.0))}, 2)
    tower: Any = torch.nn.Identity()
    encoder: Any = build_encoder({**SMALL, "crop": 1.0, "jitter": 0.5}, spec)[0].train()
    inputs: list[torch.Tensor] = []
    tower = encoder.towers[0]
    tower.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    encoder(
        {"depth": torch.tensor([0.0, 500.0, 2000.0, 9000.0]).reshape(4, 1, 1, 1, 1).expand(-1, 1, 24, 24, 1)}
    )
    assert inputs[0].shape == (4, 3, 24, 24)
    assert inputs[0].amax((1, 2, 3)).tolist() == inputs[0].amin((1, 2, 3)).tolist() == [-1.0, -0.5, 1.0, 1.0]
    policy, obs = make_policy(), camera_frames()
    noise = torch.randn(3, 4, 2)
    holes = {**obs, "depth": obs["depth"].copy()}
    obs["depth"][:, :, 10:20, 20:30] = 0
    holes["depth"][:, :, 10:20, 20:30] = np.nan
    assert torch.equal(policy.act(tensors(obs), noise), policy.act(tensors(holes), noise))


def test_training_fits_depth_and_colours() -> None:
    policy = make_policy().train()
    obs = {key: VIEW(x) if key != "joints" else x for key, x in camera_frames().items()}
    loss, _ = policy.loss({"obs": tensors(obs), "action": torch.randn(3, 4, 2)})
    loss.backward()
    for tower in policy.encoder.towers:  # type: ignore[union-attr]
        assert max(float(p.grad.abs().max()) for p in tower.parameters() if p.grad is not None) > 0


def test_an_encoder_of_plain_numbers_refuses_depth() -> None:
    with pytest.raises(
        FlowleapError, match=r"'depth' of kind 'depth': choose encoder=cnn, or .*keys=\[-depth\]"
    ):
        Policy(
            Spec({"depth": ObsKey((24, 24, 1), "float32", "depth", "m", (0.0, 2.0)), "x": ObsKey((2,))}, 2),
            {"objective": "isd", "backbone": "mlp", "encoder": "lowdim"},
        )


WRONG = [
    ("top", lambda x: np.moveaxis(x, -1, -3), r"channels last with np.moveaxis\(images, -3, -1\)"),
    ("top", lambda x: np.concatenate([x, x[..., :1]], -1), r"fourth channel with images\[..., :3\]"),
    (
        "top",
        lambda x: x[..., 0],
        r"images\[..., None\], then repeat a grey channel with np.repeat\(images, 3",
    ),
    ("top", lambda x: x[..., :1], r"repeat a grey channel with np.repeat\(images, 3, axis=-1\)"),
    ("top", lambda x: (x / 255).astype(np.float32), r"\(255 \* images\).round\(\).astype\(np.uint8\)"),
    ("top", lambda x: x[..., ::2, ::2, :][..., :20, :, :], r"give images of 24 x 24 or 48 x 64 px"),
    ("depth", lambda x: x[..., 0], r"add the axis of channels with images\[..., None\]"),
]


@pytest.mark.parametrize(("key", "change", "words"), WRONG)
def test_images_of_another_layout_are_refused_with_what_to_do(key: str, change: Any, words: str) -> None:
    obs = camera_frames()
    with pytest.raises(FlowleapError, match=rf"observation '{key}'.*{words}"):
        make_policy().act(tensors({**obs, key: np.ascontiguousarray(change(obs[key]))}))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Any, dict[str, Any]]:
    pytest.importorskip("onnxruntime")
    from flowleap.policy.deploy.export import export
    from flowleap.policy.deploy.runtime import ExportedPolicy

    policy, out = make_policy(), tmp_path_factory.mktemp("cameras") / "export"
    report = export(policy, out)
    return policy, ExportedPolicy.load(out), report


def test_an_export_takes_the_cameras_frames(exported: tuple[Policy, Any, dict[str, Any]]) -> None:
    policy, runtime, report = exported
    assert report["parity"]["max_relative"] < 1e-4
    obs, noise = camera_frames(), np.random.default_rng(2).standard_normal((3, 4, 2), dtype=np.float32)
    obs["depth"][:, :, :5] = np.inf
    eager = policy.act(tensors(obs), torch.from_numpy(noise)).numpy()
    np.testing.assert_allclose(runtime.act(obs, noise), eager, atol=1e-4)
    seen = {key: policy.spec.observations[key].see(x) for key, x in obs.items()}
    np.testing.assert_array_equal(runtime.act(obs, noise), runtime.act(seen, noise))
    whole = {**obs, "depth": np.nan_to_num(obs["depth"], posinf=0).astype(np.uint16)}
    assert np.abs(runtime.act(whole, noise) - eager).max() < 0.01  # what a depth camera gives, as it is


@pytest.mark.parametrize(("key", "change", "words"), WRONG)
def test_an_export_refuses_other_layouts_with_what_to_do(
    exported: tuple[Policy, Any, dict[str, Any]], key: str, change: Any, words: str
) -> None:
    obs = camera_frames()
    with pytest.raises(FlowleapError, match=rf"observation '{key}'.*{words}"):
        exported[1].act({**obs, key: change(obs[key])})


def test_a_checkpoint_keeps_the_views(tmp_path: Path) -> None:
    policy = make_policy()
    policy.save(tmp_path / "saved")
    loaded = Policy.load(tmp_path / "saved")
    assert loaded.spec == policy.spec
    obs, noise = tensors(camera_frames()), torch.randn(3, 4, 2)
    assert torch.equal(loaded.act(obs, noise), policy.act(obs, noise))


class LargeImages:
    """Windows of one camera of 240 x 320 px."""

    columns: ClassVar = {
        "joints": np.random.default_rng(0).normal(size=(9, 5)),
        "action": np.random.default_rng(1).normal(size=(9, 2)),
    }

    def __len__(self) -> int:
        return 9

    def gather(self, index: np.ndarray) -> dict[str, Any]:
        n = len(index)
        obs = {"top": np.zeros((n, 2, 240, 320, 3), np.uint8), "joints": np.zeros((n, 2, 5), np.float32)}
        return {"obs": obs, "action": np.zeros((n, 4, 2), np.float32)}


def test_a_long_run_says_what_would_shorten_it(tmp_path: Path) -> None:
    spec = Spec({"top": ObsKey((240, 320, 3), "uint8", "rgb"), "joints": ObsKey((5,))}, 2, 2, 4, 2)
    parts = {
        "objective": "isd",
        "backbone": {"name": "mlp", "width": 16, "depth": 1},
        "encoder": {**SMALL, "frames": 0},
    }
    options = TrainerConfig(steps=10, batch_size=64, device="cpu", progress=False, workers=0)
    trainer = Trainer(Policy(spec, parts), LargeImages(), options, tmp_path)
    before = [x.clone() for x in trainer.policy.state_dict().values()]
    seconds = estimate.seconds_a_step(trainer)
    assert seconds is not None
    assert 0 < seconds < 600
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.policy.state_dict().values(), strict=True))
    assert all(p.grad is None for p in trainer.policy.parameters())
    assert estimate.advice(trainer, 3600) is None
    assert estimate.advice(trainer, 48 * 3600) == (
        "to shorten it: resize=[120,160], encoder.frames=1, trainer.batch_size=32, a machine with a GPU"
    )
    assert estimate.in_words(48 * 3600) == "2.0 days"
