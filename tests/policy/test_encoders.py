"""Image encoders: shapes, gradients, crops, what they refuse, and how often they run."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.networks import image_towers as vision
from flowleap.policy.networks.augment import centre_crop, colour_jitter, random_crop
from flowleap.policy.networks.encoders import build_encoder
from flowleap.policy.networks.image_towers import SpatialSoftmax, read_weights
from flowleap.policy.policy import Policy

SMALL: dict[str, Any] = {"name": "cnn", "channels": [8, 8], "features": 6, "frames": 0}


def make_spec(cameras: int, side: int = 32) -> Spec:
    images = {f"camera.{i}": ObsKey((side, side + 8, 3), "uint8", "rgb") for i in range(cameras)}
    return Spec({**images, "joints": ObsKey((5,))}, 2, n_obs_steps=2, horizon=4, n_action_steps=2)


def make_policy(spec: Spec, encoder: dict[str, Any], **objective: Any) -> Policy:
    torch.manual_seed(0)
    backbone = {"name": "mlp", "width": 16, "depth": 1}
    policy = Policy(
        spec, {"objective": {"name": "isd", **objective}, "backbone": backbone, "encoder": encoder}
    )
    rng = np.random.default_rng(0)
    policy.normalizer.fit({"joints": rng.normal(size=(50, 5)), "action": rng.normal(size=(50, 2))})
    return policy


def observations(spec: Spec, batch: int = 3, seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    obs: dict[str, Tensor] = {}
    for key, o in spec.observations.items():
        shape = (batch, spec.n_obs_steps, *o.shape)
        x = (
            rng.integers(0, 256, shape, np.uint8)
            if o.kind == "rgb"
            else rng.normal(size=shape).astype(np.float32)
        )
        obs[key] = torch.from_numpy(x)
    return obs


@pytest.mark.parametrize("pool", ["keypoints", "flatten"])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("cameras", [1, 3])
def test_shapes_and_gradients(cameras: int, shared: bool, pool: str) -> None:
    spec = make_spec(cameras)
    policy = make_policy(spec, {**SMALL, "shared": shared, "pool": pool})
    obs = observations(spec)
    assert policy.encode(obs).shape == (3, cameras * 2 * 6 + 2 * 5)
    assert len(policy.encoder.towers) == (1 if shared else cameras)  # type: ignore[arg-type]
    loss, _ = policy.loss({"obs": obs, "action": torch.randn(3, 4, 2)})
    loss.backward()
    for name, parameter in policy.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert policy.act(obs).shape == (3, 2, 2)


def test_the_encoder_runs_once_a_batch() -> None:
    spec = make_spec(1)
    policy = make_policy(spec, SMALL)
    calls: list[int] = []
    policy.encoder.register_forward_hook(lambda *_: calls.append(1))
    policy.loss({"obs": observations(spec), "action": torch.randn(3, 4, 2)})
    assert len(calls) == 1
    policy.act(observations(spec), steps=4)
    assert len(calls) == 2


def test_every_camera_and_frame_counts_and_frames_limits_them() -> None:
    spec = make_spec(2)
    obs = observations(spec)
    older = {key: x.clone() for key, x in obs.items()}
    older["camera.1"][:, 0] = 255 - older["camera.1"][:, 0]
    for frames, same in ((0, False), (1, True)):
        policy = make_policy(spec, {**SMALL, "frames": frames}).eval()
        cond = policy.encode(obs)
        assert cond.shape == (3, 2 * (frames or 2) * 6 + 2 * 5)
        assert torch.equal(cond, policy.encode(older)) is same
        newer = {key: x.clone() for key, x in obs.items()}
        newer["camera.1"][:, 1] = 255 - newer["camera.1"][:, 1]
        assert not torch.equal(cond, policy.encode(newer))


def test_evaluation_is_deterministic_and_training_is_seeded() -> None:
    spec = make_spec(1)
    policy = make_policy(spec, {**SMALL, "crop": 0.8, "jitter": 0.2})
    obs, z = observations(spec), torch.randn(3, 4, 2)
    assert not torch.equal(policy.encode(obs), policy.encode(obs))
    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        drawn.append(policy.encode(obs))
    assert torch.equal(*drawn)
    first = policy.act(obs, z)
    assert torch.equal(first, policy.act(obs, z))  # although the policy is in training mode
    assert policy.training
    alone = policy.eval().act({key: x[:1] for key, x in obs.items()}, z[:1])
    torch.testing.assert_close(first[:1], alone)


def test_evaluation_sees_the_middle_only() -> None:
    spec = make_spec(1)
    policy = make_policy(spec, {**SMALL, "crop": 0.5}).eval()
    obs = observations(spec)
    rim = {key: x.clone() for key, x in obs.items()}
    middle = rim["camera.0"][:, :, 8:24, 10:30].clone()
    rim["camera.0"][:] = 0
    rim["camera.0"][:, :, 8:24, 10:30] = middle
    assert torch.equal(policy.encode(obs), policy.encode(rim))
    rim["camera.0"][:, :, 8, 10] += 50
    assert not torch.equal(policy.encode(obs), policy.encode(rim))


def test_random_crops_are_places_of_the_image_one_for_all_frames() -> None:
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(12), torch.arange(20), indexing="ij")
    images = torch.stack([y, x, y], -1).to(torch.uint8).expand(200, 2, 12, 20, 3)
    cut = random_crop(images, 9, 16)
    assert cut.shape == (200, 2, 9, 16, 3)
    assert cut.dtype == torch.uint8
    top, left = cut[:, 0, 0, 0, 0], cut[:, 0, 0, 0, 1]
    assert set(top.tolist()) == set(range(4))
    assert set(left.tolist()) == set(range(5))
    for sample, i, j in zip(cut, top.tolist(), left.tolist(), strict=True):
        assert torch.equal(sample, images[0, :, i : i + 9, j : j + 16])
    assert torch.equal(centre_crop(images, 8, 16), images[:, :, 2:10, 2:18])


def test_jitter_changes_samples_apart_and_frames_alike() -> None:
    torch.manual_seed(0)
    images = torch.rand(4, 1, 3, 6, 6).expand(4, 2, 3, 6, 6) * 2 - 1
    changed = colour_jitter(images, 0.3)
    assert torch.equal(changed[:, 0], changed[:, 1])
    shifts = (changed - images).mean((1, 2, 3, 4))
    assert len(set(shifts.tolist())) == 4
    assert shifts.abs().max() <= 0.3 + 1e-5
    assert torch.equal(colour_jitter(images, 0.0), images) or torch.allclose(
        colour_jitter(images, 0.0), images
    )


def test_a_spatial_softmax_finds_a_peak() -> None:
    x = torch.zeros(1, 2, 5, 9)
    x[0, 0, 1, 6], x[0, 1, 4, 0] = 50.0, 50.0
    torch.testing.assert_close(SpatialSoftmax()(x), torch.tensor([[0.5, -1.0, -0.5, 1.0]]))


def test_a_dropped_observation_hides_the_images() -> None:
    spec = make_spec(1)
    policy = make_policy(spec, SMALL, obs_dropout=0.5)
    draw = policy.draw(3)
    hidden = type(draw)(**{**vars(draw), "keep": torch.zeros(3, dtype=torch.bool)})
    action = torch.randn(3, 4, 2)
    losses = [
        policy.loss({"obs": observations(spec, seed=seed), "action": action}, hidden)[0] for seed in (0, 1)
    ]
    assert torch.equal(*losses)


@pytest.mark.parametrize(
    ("observation", "options", "message"),
    [
        (ObsKey((5,)), {}, "no observation is one: choose encoder=lowdim"),
        (ObsKey((32, 32, 4), "uint8", "rgb"), {}, "'x': images must be"),
        (ObsKey((32, 32, 3), "uint8", "rgb"), {"crop": 0.0}, "encoder.crop"),
        (ObsKey((32, 32, 3), "uint8", "rgb"), {"channels": [12]}, "encoder.channels: 12"),
        (ObsKey((32, 32, 3), "uint8", "rgb"), {"frames": 3}, "encoder.frames"),
        (ObsKey((32, 32, 3), "uint8", "rgb"), {"pool": "max"}, "encoder.pool"),
    ],
)
def test_mistakes_are_named(observation: ObsKey, options: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowleapError, match=message):
        build_encoder({**SMALL, **options}, Spec({"x": observation}, 2, n_obs_steps=2))


def test_images_must_be_uint8_and_have_their_encoder() -> None:
    spec = make_spec(1)
    policy = make_policy(spec, SMALL)
    obs = observations(spec)
    with pytest.raises(FlowleapError, match=r"'camera.0': images must be uint8.*float32"):
        policy.act({**obs, "camera.0": obs["camera.0"].float() / 255})
    with pytest.raises(FlowleapError, match=r"'camera.0' of kind 'rgb': choose encoder=cnn"):
        build_encoder({"name": "lowdim"}, spec)
    odd = Spec({**spec.observations, "wrist": ObsKey((16, 16, 3), "uint8", "rgb")}, 2)
    with pytest.raises(FlowleapError, match=r"shared=true needs .* one size"):
        build_encoder({**SMALL, "shared": True}, odd)
    assert build_encoder(SMALL, odd)[0].dim == 2 * 6 + 5


def test_a_checkpoint_rebuilds_the_encoder(tmp_path: Path) -> None:
    spec = make_spec(2)
    policy = make_policy(spec, {**SMALL, "crop": 0.8})
    policy.save(tmp_path / "checkpoint")
    loaded = Policy.load(tmp_path / "checkpoint")
    obs, z = observations(spec), torch.randn(3, 4, 2)
    assert torch.equal(loaded.act(obs, z), policy.act(obs, z))


def test_resnet18_starts_from_local_weights(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models", reason="needs the vision extra")
    spec = make_spec(1)
    reference = models.resnet18(weights=None)
    torch.save(reference.state_dict(), tmp_path / "weights.pth")
    policy = make_policy(spec, {"name": "resnet18", "features": 6, "weights": str(tmp_path / "weights.pth")})
    assert policy.config["encoder"]["weights"] is None  # a checkpoint names no file
    trunk = policy.encoder.towers[0][1]  # type: ignore[index, union-attr]
    assert torch.equal(trunk[0].weight, reference.conv1.weight)  # type: ignore[index, union-attr]
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in policy.modules())
    policy.loss({"obs": observations(spec), "action": torch.randn(3, 4, 2)})[0].backward()
    assert trunk[0].weight.grad.abs().sum() > 0  # type: ignore[index, union-attr]
    (tmp_path / "damaged.pth").write_bytes(b"not a tensor")
    for name, message in (("damaged", "not readable"), ("missing", "does not exist")):
        with pytest.raises(FlowleapError, match=message):
            build_encoder({"name": "resnet18", "weights": str(tmp_path / f"{name}.pth")}, spec)


def test_vit_takes_the_image_size_and_known_names_only() -> None:
    pytest.importorskip("timm", reason="needs the vision extra")
    spec = Spec({"camera": ObsKey((64, 64, 3), "uint8", "rgb")}, 2, n_obs_steps=2, horizon=4)
    encoder, _ = build_encoder({"name": "vit", "model": "vit_tiny_patch16_224", "features": 6}, spec)
    cond = encoder({"camera": torch.randint(0, 256, (2, 2, 64, 64, 3), dtype=torch.uint8)})
    assert cond.shape == (2, 12)
    cond.sum().backward()
    for model in ("resnet18", "hf-hub:someone/vit"):
        with pytest.raises(FlowleapError, match="no vision transformer of timm"):
            build_encoder({"name": "vit", "model": model}, spec)


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in ("torchvision", "torchvision.models", "timm"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(FlowleapError, match=r"pip install 'flowleap\[vision\]'"):
        build_encoder({"name": name}, make_spec(1))


class Touch:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_weights_are_plain_finite_tensors_and_run_no_code(tmp_path: Path) -> None:
    def refused(state: object) -> str:
        torch.save(state, tmp_path / "weights.pth")
        with warnings.catch_warnings(action="error"), pytest.raises(FlowleapError) as error:
            read_weights(str(tmp_path / "weights.pth"))
        return str(error.value)

    assert "save model.state_dict()" in refused({"conv1.weight": Touch(tmp_path / "proof")})
    assert not (tmp_path / "proof").exists()
    assert "'conv1.weight' holds NaN" in refused({"conv1.weight": torch.tensor([1.0, float("nan")])})
    assert "'state_dict' is a dict, not a tensor" in refused({"state_dict": {"conv1.weight": torch.zeros(2)}})
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"conv1.weight": Touch(tmp_path / "proof")}))
    with warnings.catch_warnings(action="error"), pytest.raises(FlowleapError, match="plain tensors"):
        read_weights(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "proof").exists()


def test_vit_weights_of_another_image_size_are_resampled_and_must_be_whole(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="needs the vision extra")
    model, file = "vit_tiny_patch16_224", tmp_path / "vit.pth"
    reference = timm.create_model(model, num_classes=0, img_size=(48, 48))
    state = reference.state_dict()
    torch.save(state, file)
    same = vision.vit((48, 48), model, 6, str(file))[1]
    larger = vision.vit((64, 32), model, 6, str(file))[1]
    assert torch.equal(same.pos_embed, state["pos_embed"])  # type: ignore[arg-type, union-attr]
    assert larger.pos_embed.shape == (1, 1 + 4 * 2, 192)  # type: ignore[union-attr]
    assert torch.equal(larger.pos_embed[:, 0], state["pos_embed"][:, 0])  # type: ignore[index, union-attr]
    assert torch.equal(larger.blocks[3].mlp.fc1.weight, state["blocks.3.mlp.fc1.weight"])  # type: ignore[index, union-attr]
    torch.save({"norm.weight": state["norm.weight"]}, file)
    with pytest.raises(FlowleapError, match=r"holds no vit_tiny_patch16_224: 'blocks.0.attn.*' is missing"):
        vision.vit((48, 48), model, 6, str(file))
    torch.save({**state, "pos_embed": torch.zeros(1, 1 + 9, 384)}, file)
    with pytest.raises(FlowleapError, match=r"does not fit: pos_embed is \[1, 10, 384\]"):
        vision.vit((48, 48), model, 6, str(file))


def test_vit_takes_whole_patches_and_no_batchnorm() -> None:
    pytest.importorskip("timm", reason="needs the vision extra")
    with pytest.raises(FlowleapError, match=r"encoder.crop leaves 43 x 48 px.*whole patches"):
        vision.vit((43, 48), "vit_tiny_patch16_224", 6, None)
    with pytest.raises(FlowleapError, match=r"efficientvit_m0"):
        vision.vit((64, 64), "efficientvit_m0", 6, None)


def test_images_that_nobody_looks_at_need_not_come() -> None:
    spec = make_spec(1)
    policy = make_policy(spec, {**SMALL, "frames": 1}).eval()
    obs = observations(spec)
    latest = {**obs, "camera.0": obs["camera.0"][:, -1:]}
    assert policy.image_frames == 1
    assert torch.equal(policy.encode(latest), policy.encode(obs))
    with pytest.raises(FlowleapError, match=r"'joints': expected \[batch, 2, 5\]"):
        policy.encode({**obs, "joints": obs["joints"][:, -1:]})
    with pytest.raises(FlowleapError, match=r"'camera.0': expected \[batch, 2, 32, 40, 3\]"):
        make_policy(spec, SMALL).encode(latest)
