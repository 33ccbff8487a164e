"""The encoder of points: the shortcut through critical points is exact, and what policies with points take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowleap.datasets.formats.zarr_writer import EpisodeWriter
from flowleap.policy.core.errors import FlowleapError, FlowleapWarning
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.deploy.controller import Controller
from flowleap.policy.deploy.export import FORMATS, export
from flowleap.policy.deploy.parity import eager_chunk
from flowleap.policy.deploy.runtime import ExportedPolicy
from flowleap.policy.networks.encoders import build_encoder
from flowleap.policy.networks.point_towers import PointNet
from flowleap.policy.normalizer import Normalizer
from flowleap.policy.policy import Policy
from flowleap.scripts.cli import main as cli

SMALL: dict[str, Any] = {"name": "pointnet", "widths": [16, 32], "features": 6, "state": 4}
SPEC = Spec(
    {"cloud": ObsKey((40, 6), kind="points"), "joints": ObsKey((5,))}, 2, 2, 8, 4, control_hz=10.0
)  # fmt: skip
BOX = np.array([0.1, 2.0, 30.0, 1.0, 1.0, 255.0])  # of the clouds: metres on one axis, bytes on another


def columns(frames: int = 60) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "cloud": (BOX * rng.uniform(size=(frames, 40, 6))).astype(np.float32),
        "joints": rng.normal(size=(frames, 5)).astype(np.float32),
        "action": rng.normal(size=(frames, 2)).astype(np.float32),
    }


def make_policy(**encoder: Any) -> Policy:
    torch.manual_seed(0)
    backbone = {"name": "mlp", "width": 32, "depth": 1}
    policy = Policy(SPEC, {"objective": "isd", "backbone": backbone, "encoder": {**SMALL, **encoder}})
    policy.normalizer.fit(columns())
    with torch.no_grad():
        for parameter in policy.net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


def observations(batch: int = 3) -> dict[str, np.ndarray]:
    data = columns()
    return {key: np.stack([data[key][i : i + 2] for i in range(batch)]) for key in SPEC.observations}


def tensors(batch: int = 3) -> dict[str, Tensor]:
    return {key: torch.from_numpy(x) for key, x in observations(batch).items()}


@pytest.mark.parametrize(
    ("clouds", "points", "widths"), [(5, 200, (16, 32)), (1, 1, (8,)), (3, 7, (8, 8, 64))]
)
def test_critical_points_alone_have_the_output_and_the_gradient_of_all(
    clouds: int, points: int, widths: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    tower = PointNet(3, widths, 5).double()
    x, wanted = torch.randn(clouds, points, 3).double(), torch.randn(clouds, 5).double()
    seen: list[int] = []
    tower.points.register_forward_hook(lambda _m, args, _out: seen.append(args[0].numel() // 3))

    def gradients(out: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((out * wanted).sum(), list(tower.parameters())))

    out = tower(x)
    found = gradients(out)
    plain = tower.project(tower.points(x).amax(1))
    torch.testing.assert_close(out, plain, rtol=1e-12, atol=1e-14)
    for one, other in zip(found, gradients(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert seen[0] == seen[2] == clouds * points
    assert seen[1] <= clouds * min(points, widths[-1])
    torch.testing.assert_close(tower.eval()(x), plain, rtol=0, atol=0)


def test_the_order_of_the_points_does_not_matter() -> None:
    torch.manual_seed(0)
    tower, x = PointNet(3, (16, 32), 5).eval(), torch.randn(4, 50, 3)
    torch.testing.assert_close(tower(x), tower(x[:, torch.randperm(50)]))


@pytest.mark.parametrize("options", [{}, {"frames": 1}, {"state": 0}, {"colours": False}])
def test_shapes_and_gradients(options: dict[str, Any]) -> None:
    policy = make_policy(**options)
    frames, state = options.get("frames", 2), 4 if options.get("state", 4) else 5
    obs = tensors()
    assert policy.image_frames == frames
    assert policy.encode(obs).shape == (3, frames * 6 + 2 * state)
    loss, _ = policy.loss({"obs": obs, "action": torch.randn(3, 8, 2)})
    loss.backward()
    for name, parameter in policy.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    shown = {**obs, "cloud": obs["cloud"][:, -frames:]}
    policy.eval()
    torch.testing.assert_close(policy.encode(shown), policy.encode(obs))


def test_colours_may_be_left_out() -> None:
    policy, obs = make_policy(colours=False).eval(), tensors()
    other = {**obs, "cloud": torch.cat([obs["cloud"][..., :3], torch.rand(3, 2, 40, 3)], -1)}
    torch.testing.assert_close(policy.encode(obs), policy.encode(other), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"points": 10}, {"jitter": 0.1}])
def test_training_alone_draws_points_and_jitters_them(options: dict[str, Any]) -> None:
    policy, plain, obs = make_policy(**options), make_policy(), tensors()
    policy.load_state_dict(plain.state_dict())
    first, second = policy.encode(obs), policy.encode(obs)
    assert not torch.equal(first, second)
    torch.testing.assert_close(policy.eval().encode(obs), plain.eval().encode(obs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("encoder", "key", "message"),
    [
        ("lowdim", ObsKey((9, 3), kind="points"), "'thing'.*'points'.*encoder=pointnet.*keys=\\[-thing\\]"),
        ("cnn", ObsKey((9, 3), kind="points"), "'thing'.*'points'.*encoder=pointnet"),
        ("pointnet", ObsKey((16, 16, 3), "uint8", "rgb"), "'thing'.*'rgb'.*encoder=cnn"),
        ("pointnet", ObsKey((3,)), "no observation is a cloud.*encoder=lowdim"),
    ],
)
def test_an_encoder_says_which_one_would_fit(encoder: str, key: ObsKey, message: str) -> None:
    with pytest.raises(FlowleapError, match=message):
        build_encoder({"name": encoder}, Spec({"thing": key}, 2))


@pytest.mark.parametrize("mode", ["minmax", "gaussian", "quantile"])
def test_all_points_share_the_statistics_of_an_axis(mode: Any) -> None:
    data = columns()
    data["cloud"][:, :, 4] = 0.5  # an axis without extent is centred
    normalizer = Normalizer(SPEC, obs=mode)
    normalizer.fit(data)
    found = normalizer.normalize("cloud", torch.from_numpy(data["cloud"])).double().numpy()
    assert found.shape == data["cloud"].shape
    flat = found.reshape(-1, 6)
    np.testing.assert_allclose(flat[:, 4], 0, atol=1e-6)
    rest = np.delete(flat, 4, axis=1)
    if mode == "gaussian":
        np.testing.assert_allclose(rest.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(rest.std(0), 1, atol=1e-4)
    else:
        ends = np.quantile(rest, (0.01, 0.99) if mode == "quantile" else (0, 1), axis=0)
        np.testing.assert_allclose(ends, [[-1] * 5, [1] * 5], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, :, :30], r"expected \[batch, 2, 40, 6\].*choose 40 of the points"),
        (lambda x: np.concatenate([x, x], -1), r"keep the first 6 channels with points\[..., :6\]"),
        (lambda x: np.moveaxis(x, -1, -2), "put the channels last"),
        (lambda x: np.where(np.arange(6) == 2, np.nan, x), r"nan at index \[0, 0, 0, 2\]"),
    ],
)
def test_points_that_do_not_fit_are_refused_by_name(change: Any, message: str, tmp_path: Path) -> None:
    policy, obs = make_policy(), observations()
    wrong = {**obs, "cloud": change(obs["cloud"]).astype(np.float32)}
    with pytest.raises(FlowleapError, match=f"'cloud'.*{message}"):
        policy.act({key: torch.from_numpy(x) for key, x in wrong.items()})


def test_points_far_from_those_of_training_are_warned_of() -> None:
    policy, obs = make_policy(), tensors()
    obs["cloud"][1, 0, 7, 2] = 1e6
    with pytest.warns(FlowleapWarning, match="'cloud' dimension 2 is 1e\\+06.* to 29.99 of training"):
        policy.act(obs)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_takes_points(form: str, tmp_path: Path) -> None:
    if "openvino" in form:
        pytest.importorskip("openvino")
    policy = make_policy().eval()
    real = observations(20)
    manifest = export(policy, tmp_path / "out", observations=real, format=form, tolerance=np.inf, ddpm=False)
    limit = 1e-5 if FORMATS[form][1] == "float32" else 0.1
    assert manifest["parity"]["rms_relative"] < limit
    if form != "onnx":
        return
    exported, obs = ExportedPolicy.load(tmp_path / "out", unusual="stop"), observations(5)
    noise = np.random.default_rng(0).standard_normal((5, 8, 2), np.float32)
    np.testing.assert_allclose(exported.chunk(obs, noise), eager_chunk(policy, obs, noise, 1), atol=1e-4)
    assert exported.example()["cloud"].shape == (1, 2, 40, 6)
    with pytest.raises(FlowleapError, match=r"'cloud'.*choose 40 of the points"):
        exported.act({**obs, "cloud": obs["cloud"][:, :, 1:]})
    far = obs["cloud"] + 1e6
    with pytest.raises(FlowleapError, match="'cloud' dimension 0"):
        exported.act({**obs, "cloud": far})
    frame = {key: x[0, 0] for key, x in obs.items()}
    with Controller(exported) as controller:
        assert controller.step(frame).shape == (2,)
        with pytest.raises(FlowleapError, match=r"'cloud' is nan at index \[0, 0\]"):
            controller.step({**frame, "cloud": np.full((40, 6), np.nan)})


def test_lerobot_has_no_place_for_points(tmp_path: Path) -> None:
    from flowleap.lerobot.features import check_names, default_names

    for call in (lambda: default_names(SPEC), lambda: check_names(SPEC, {"cloud": "observation.cloud"})):
        with pytest.raises(FlowleapError, match="'cloud' is a cloud of points"):
            call()


def blobs(rng: np.random.Generator, frames: int) -> dict[str, np.ndarray]:
    """Clouds of a blob over a floor; the action is where the blob is."""
    centre = rng.uniform(-1, 1, (frames, 1, 2))
    floor = np.concatenate([rng.uniform(-2, 2, (frames, 40, 2)), np.zeros((frames, 40, 1))], -1)
    height = rng.uniform(0.5, 1.0, (frames, 24, 1))
    blob = np.concatenate([centre + 0.1 * rng.normal(size=(frames, 24, 2)), height], -1)
    order = rng.random((frames, 64, 1)).argsort(1)
    return {
        "cloud": np.take_along_axis(np.concatenate([floor, blob], 1), order, 1).astype(np.float32),
        "joints": rng.normal(size=(frames, 3)).astype(np.float32),
        "action": centre[:, 0].astype(np.float32),
    }


def test_from_recorded_clouds_to_an_exported_policy(tmp_path: Path) -> None:
    """The action is the place of a blob in the cloud: what only an encoder of points finds."""
    rng = np.random.default_rng(0)
    spec = Spec({"cloud": ObsKey((64, 3), kind="points"), "joints": ObsKey((3,))}, 2, control_hz=10.0)
    with EpisodeWriter(tmp_path / "blobs.zarr", spec) as writer:
        for _ in range(40):
            writer.add(blobs(rng, 20))
    run = tmp_path / "run"
    words = (
        "encoder=pointnet encoder.widths=[32,64] n_obs_steps=1 horizon=1 n_action_steps=1 backbone=mlp "
        "backbone.width=64 backbone.depth=2 trainer.steps=300 trainer.batch_size=64 "
        "trainer.lr=0.003 trainer.ema_decay=0.97 trainer.device=cpu trainer.progress=false"
    )
    assert cli.main(["train", f"dataset={tmp_path}/blobs.zarr", f"run_dir={run}", *words.split()]) == 0
    assert cli.main(["export", f"checkpoint={run}", f"out={tmp_path}/out"]) == 0
    exported = ExportedPolicy.load(tmp_path / "out")
    assert exported.manifest["parity"]["observations"] == "dataset"
    assert exported.manifest["parity"]["max_relative"] < 1e-4
    test = blobs(np.random.default_rng(1), 200)
    obs = {key: test[key][:, None] for key in spec.observations}
    error = np.square(exported.act(obs)[:, 0] - test["action"]).mean()
    assert error < 0.1 * test["action"].var(0).mean()
