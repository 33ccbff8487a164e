"""Policy: shapes, units, modes, and checkpoints that rebuild themselves and cannot be abused."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import flowleap.policy
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec, SpecMismatch
from flowleap.policy.normalizer import Normalizer
from flowleap.policy.policy import Policy

SPEC = Spec(
    observations={"robot.pos": ObsKey((3,)), "block": ObsKey((2, 2))},
    action_dim=2,
    n_obs_steps=2,
    horizon=8,
    n_action_steps=4,
    control_hz=10.0,
)
CONFIG: dict[str, Any] = {
    "objective": {"name": "isd"},
    "backbone": {"name": "mlp", "width": 32, "depth": 1},
    "encoder": {"name": "lowdim"},
    "normalizer": {"obs": "minmax", "action": "minmax"},
    "head_sigma": 0.1,
}


def columns(n: int = 200) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    block = rng.normal(size=(n, 2, 2)).astype(np.float32)
    block[:, 0, 1] = 7.0  # constant
    return {
        "robot.pos": rng.uniform(100, 500, (n, 3)).astype(np.float32),
        "block": block,
        "action": rng.uniform(0, 512, (n, 2)).astype(np.float32),
    }


def make_policy(**changes: Any) -> Policy:
    torch.manual_seed(0)
    policy = Policy(SPEC, {**CONFIG, **changes})
    policy.normalizer.fit(columns())
    return policy


def observations(n: int = 5) -> dict[str, Tensor]:
    data = columns(2 * n)
    return {k: torch.from_numpy(data[k]).unflatten(0, (n, 2)) for k in SPEC.observations}


@pytest.mark.parametrize("objective", ["isd", "flow_matching", "regression"])
@pytest.mark.parametrize("backbone", [{"name": "mlp", "width": 16}, {"name": "unet1d", "channels": [8, 16]}])
def test_every_objective_trains_and_acts_with_every_backbone(
    objective: str, backbone: dict[str, Any]
) -> None:
    policy = make_policy(objective={"name": objective}, backbone=backbone)
    action = torch.from_numpy(columns(40)["action"]).unflatten(0, (5, 8))
    loss, terms = policy.loss({"obs": observations(), "action": action})
    loss.backward()
    assert torch.isfinite(loss)
    assert all(not value.requires_grad for value in terms.values())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters())
    chunk = policy.act(observations())
    assert chunk.shape == (5, 4, 2)
    assert chunk.dtype == torch.float32


def test_act_is_in_real_units_and_keeps_the_mode() -> None:
    policy = make_policy(encoder={"name": "lowdim", "noise": 0.5})
    noise = torch.randn(5, 8, 2)
    policy.train()
    first = policy.act(observations(), noise)
    assert policy.training  # evaluation inside training must not leave it in eval mode
    assert torch.equal(first, policy.act(observations(), noise))  # no training noise in act
    assert float(first.abs().max()) > 10  # pixels, not [-1, 1]
    assert not torch.equal(first, policy.act(observations(), torch.randn(5, 8, 2)))


def test_act_names_bad_input() -> None:
    policy, obs = make_policy(), observations()
    with pytest.raises(FlowleapError, match="'block' is missing"):
        policy.act({"robot.pos": obs["robot.pos"]})
    with pytest.raises(FlowleapError, match=r"'block': expected \[batch, 2, 2, 2\], got \[5, 1, 2, 2\]"):
        policy.act({**obs, "block": obs["block"][:, :1]})
    with pytest.raises(FlowleapError, match=r"noise: expected \[5, 8, 2\]"):
        policy.act(obs, torch.randn(5, 4, 2))
    with pytest.raises(FlowleapError, match="supports steps >= 1"):
        policy.act(obs, steps=0)


def test_dropout_needs_the_exact_derivative() -> None:
    backbone = {"name": "mlp", "width": 16, "dropout": 0.1}
    with pytest.raises(FlowleapError, match="derivative=jvp"):
        make_policy(backbone=backbone, objective={"name": "isd", "derivative": "difference"})
    make_policy(backbone=backbone, objective={"name": "isd", "derivative": "jvp"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"name": "mpl"}}, "did you mean 'mlp'"),
        ({"backbone": {"name": "mlp", "width": -1}}, r"backbone\.width"),
        ({"backbone": {"name": "unet1d", "channels": [8, 16, 32, 64, 64]}}, "divisible by 16"),
        ({"encoder": {"name": "lowdim", "nois": 1.0}}, "did you mean 'noise'"),
        ({"normalizer": {"obs": "max"}}, r"normalizer\.obs must be one of"),
        ({"head": {}}, "no part 'head'"),
    ],
)
def test_config_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowleapError, match=message):
        make_policy(**changes)


def test_normalizer_minmax_and_gaussian() -> None:
    data = columns()
    for mode in ("minmax", "gaussian"):
        normalizer = Normalizer(SPEC, obs=mode, action=mode)
        normalizer.fit(data)
        for key, x in data.items():
            raw = torch.from_numpy(x)
            y = normalizer.normalize(key, raw)
            assert torch.allclose(normalizer.unnormalize(key, y), raw, rtol=1e-4, atol=1e-3)
            constant = torch.zeros(raw.shape[1:], dtype=torch.bool)
            if key == "block":
                constant[0, 1] = True
                assert float(y[:, 0, 1].abs().max()) < 1e-5  # centred, not amplified
                nudged = raw.clone()
                nudged[:, 0, 1] += 0.25
                assert torch.allclose(
                    normalizer.normalize(key, nudged)[:, 0, 1], torch.tensor(0.25), atol=1e-5
                )
            free = y[:, ~constant]
            if mode == "minmax":
                assert torch.allclose(free.amin(0), torch.tensor(-1.0), atol=1e-5)
                assert torch.allclose(free.amax(0), torch.tensor(1.0), atol=1e-5)
            else:
                assert torch.allclose(free.mean(0), torch.tensor(0.0), atol=1e-4)
                assert torch.allclose(free.std(0, correction=0), torch.tensor(1.0), atol=1e-4)


def fit(
    column: np.ndarray, mode: str = "minmax", key: str = "state", **options: Any
) -> tuple[Normalizer, np.ndarray]:
    """Fit a normaliser on one column [N, D], of observations or of actions; return it and the scale [D]."""
    column = np.asarray(column, np.float32)
    other = np.zeros((len(column), 1), np.float32)
    spec = Spec(
        {"state": ObsKey((column.shape[1] if key == "state" else 1,))},
        column.shape[1] if key == "action" else 1,
    )
    normalizer = Normalizer(spec, obs=mode, action=mode, **options)  # type: ignore[arg-type]
    normalizer.fit({"state": other, "action": other} | {key: column})
    scale, _ = normalizer.range_of(key) or (np.ones(1), None)
    return normalizer, scale


NOISE = {
    "a locked joint whose encoder flickers": lambda t, rng: 0.7 + 1.5e-3 * rng.integers(0, 2, len(t)),
    "a sensor's noise": lambda t, rng: 0.3 + 2e-5 * rng.normal(size=len(t)),
    "a constant with rounding": lambda t, rng: 0.7 + 1.2e-7 * rng.integers(0, 2, len(t)),
    "rounding of a large number": lambda t, rng: 1e6 + 0.06 * rng.integers(0, 2, len(t)),
}
SIGNAL = {
    "a small but steady motion": lambda t, rng: 1e-3 * np.sin(t / 40),
    "a gripper": lambda t, rng: (t // 50 % 2).astype(float),
    "a force": lambda t, rng: 200 * np.sin(t / 30),
}


@pytest.mark.parametrize("mode", ["minmax", "gaussian", "quantile"])
def test_noise_is_not_amplified_and_small_signals_are(mode: str) -> None:
    t, rng = np.arange(2000), np.random.default_rng(0)
    moving = np.sin(t / 50)
    for name, make in NOISE.items():
        normalizer, scale = fit(np.stack([moving, make(t, rng)], 1), mode)
        assert scale[1] == 1, name
        assert normalizer.noise == {"state": [1], "action": []}, name
        moved = torch.tensor([[0.0, float(make(t, rng)[0]) + 0.05]])  # locked elsewhere tomorrow
        assert abs(float(normalizer.normalize("state", moved)[0, 1])) < 0.13, name
    for name, make in SIGNAL.items():
        normalizer, _ = fit(np.stack([moving, make(t, rng)], 1), mode)
        y = normalizer.normalize(
            "state", torch.tensor(np.stack([moving, make(t, rng)], 1), dtype=torch.float32)
        )
        assert 0.5 < float(y[:, 1].std()) < 1.5, name
        assert normalizer.noise["state"] == [], name
    assert fit(np.stack([moving, 2e-5 * np.sin(t / 40)], 1), mode, floor=0.0)[0].noise["state"] == []


def test_an_action_that_hardly_moves_is_repeated_exactly() -> None:
    t, rng = np.arange(2000), np.random.default_rng(0)
    normalizer, scale = fit(np.stack([np.sin(t / 50), 0.7 + 2e-5 * rng.normal(size=2000)], 1), key="action")
    assert scale[1] == pytest.approx(1e4, rel=1e-3)
    off = normalizer.unnormalize(
        "action", torch.tensor([[0.0, 1.0]])
    )  # the network errs by as much as the range
    assert float(off[0, 1]) == pytest.approx(0.7, abs=3e-4)


def test_quantiles_ignore_spikes_and_survive_switches() -> None:
    t = np.arange(5000)
    spiky = np.sin(t / 50)
    spiky[[100, 3000]] = 1e4
    switch = np.zeros(5000)
    switch[::200] = 1.0  # 99.5 % at one end
    _, scale = fit(np.stack([spiky, switch], 1), "quantile")
    assert scale == pytest.approx([1.0, 2.0], rel=0.01)
    assert fit(spiky[:, None], "minmax")[1][0] < 1e-3


def test_what_is_not_finite_or_far_away_is_not_acted_on() -> None:
    policy = make_policy()
    policy.normalizer.fit(columns())
    obs = {key: x.clone() for key, x in observations(2).items()}
    for value, word in ((np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")):
        bad = {key: x.clone() for key, x in obs.items()}
        bad["block"][1, 0, 0, 1] = value
        with pytest.raises(FlowleapError, match=rf"'block' is {word} at index \[1, 0, 0, 1\] of"):
            policy.act(bad)
    scale, offset = policy.normalizer.range_of("block") or (np.ones(1), np.ones(1))
    far = {key: x.clone() for key, x in obs.items()}
    far["block"][0, 1, 0, 0] = float((4 - offset[0, 0]) / scale[0, 0])
    with pytest.warns(UserWarning, match="'block' dimension 0, 0 is .* far outside of the .* of training"):
        first = policy.act(far)
    with warnings.catch_warnings(action="error"):
        assert policy.act(far).shape == first.shape  # said once
        policy.inputs.unusual = "ignore"
        policy.act(far)
    policy.inputs.unusual = "stop"
    policy.act(obs)
    with pytest.raises(FlowleapError, match="far outside"):
        policy.act(far)


def test_normalizer_mistakes() -> None:
    data = columns()
    normalizer = Normalizer(SPEC)
    with pytest.raises(FlowleapError, match="no key 'block'"):
        normalizer.fit({k: x for k, x in data.items() if k != "block"})
    with pytest.raises(FlowleapError, match="no key 'gripper'"):
        normalizer.normalize("gripper", torch.zeros(1))
    data["action"][3, 0] = np.nan
    with pytest.raises(FlowleapError, match="'action' holds NaN"):
        normalizer.fit(data)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    policy, ema = make_policy(), make_policy()
    with torch.no_grad():
        for p in ema.parameters():
            p.add_(0.01)
    policy.save(tmp_path / "ckpt", ema, {"step": 3})
    return tmp_path / "ckpt"


def test_checkpoint_rebuilds_itself(checkpoint: Path) -> None:
    noise = torch.randn(5, 8, 2)
    raw, ema = Policy.load(checkpoint, "raw"), Policy.load(checkpoint)
    assert torch.equal(raw.act(observations(), noise), make_policy().act(observations(), noise))
    assert not torch.equal(raw.act(observations(), noise), ema.act(observations(), noise))
    assert ema.spec == SPEC
    assert (ema.info, ema.checkpoint, ema.weights) == ({"step": 3}, checkpoint.resolve(), "ema")
    assert (raw.weights, make_policy().checkpoint) == ("raw", None)
    assert not ema.training
    assert sorted(p.name for p in checkpoint.iterdir()) == ["model.safetensors", "policy.json"]
    assert [p.name for p in checkpoint.parent.iterdir()] == ["ckpt"]  # no temporary folder left


def test_failed_write_leaves_the_old_checkpoint(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (checkpoint / "model.safetensors").read_bytes()

    def full_disk(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowleap.policy.checkpoint.save_file", full_disk)
    with pytest.raises(FlowleapError, match=r"ckpt.*No space left"):
        make_policy().save(checkpoint)
    assert (checkpoint / "model.safetensors").read_bytes() == before
    assert [p.name for p in checkpoint.parent.iterdir()] == ["ckpt"]


def edit(checkpoint: Path, change: Any) -> None:
    file = checkpoint / "policy.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("spec"), "field 'spec' is missing"),
        (lambda m: m.update(format="other"), "not a flowleap checkpoint"),
        (lambda m: m.update(format_version=99), "format version 99"),
        (lambda m: m["policy"]["backbone"].update(width=16384), "do not fit together"),
        (lambda m: m["policy"]["backbone"].update(width=10**12), r"backbone\.width"),
        (lambda m: m["policy"]["backbone"].update(depth=2), "lacks tensor"),
        (lambda m: m["policy"]["backbone"].update(name="os.system"), "unknown backbone 'os.system'"),
        (lambda m: m["policy"].update(backbone=3), "part 'backbone'"),
        (lambda m: m["policy"].update(normalizer={"obs": "minmax", "hook": "x"}), "normalizer"),
        (lambda m: m["spec"].update(action_dim="2"), r"Spec\.action_dim"),
        (lambda m: m["spec"].update(horizon=10**9), "do not fit together|too large|horizon"),
        (lambda m: m["spec"]["observations"]["block"].update(shape=[2, 3]), "do not fit together"),
        (lambda m: m["spec"]["observations"]["block"].pop("shape"), "'shape' is missing"),
    ],
)
def test_tampered_json_is_refused(checkpoint: Path, change: Any, message: str) -> None:
    edit(checkpoint, change)
    with pytest.raises(FlowleapError, match=message) as error:
        Policy.load(checkpoint)
    assert "\n" not in str(error.value)


def test_damaged_files_are_named(checkpoint: Path, tmp_path: Path) -> None:
    weights = checkpoint / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FlowleapError, match=r"model\.safetensors.*damaged"):
        Policy.load(checkpoint)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    tensors["ema.net.output.bias"][0] = float("nan")
    save_file(tensors, weights)
    with pytest.raises(FlowleapError, match=r"net\.output\.bias.*NaN"):
        Policy.load(checkpoint)
    (checkpoint / "policy.json").write_text("{")
    with pytest.raises(FlowleapError, match="not readable as JSON"):
        Policy.load(checkpoint)
    with pytest.raises(FlowleapError, match="does not exist"):
        Policy.load(tmp_path / "nowhere")
    with pytest.raises(FlowleapError, match="is not a checkpoint"):
        Policy.load(tmp_path)


def test_a_type_checker_sees_the_names_of_the_package(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs the dev extra")
    shown = [f"reveal_type(flowleap.policy.{name})" for name in flowleap.policy.__all__]
    file = tmp_path / "uses.py"
    file.write_text("\n".join(["import flowleap.policy", *shown, "flowleap.policy.Polcy"]))
    command = [sys.executable, "-m", "mypy", str(file)]
    root = Path(__file__).parents[2]
    out = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout
    assert out.count("Revealed type is") == len(shown), out
    assert '"Any"' not in out
    assert "-> flowleap.policy.training.trainer.Trainer" in out
    assert 'has no attribute "Polcy"' in out
    assert all(getattr(flowleap.policy, name) is not None for name in flowleap.policy.__all__)


def test_spec_mismatch_names_the_key() -> None:
    other = Spec(observations={"robot.pos": ObsKey((4,)), "block": ObsKey((2, 2))}, action_dim=2)
    with pytest.raises(SpecMismatch, match=r"'robot\.pos'.*\(3,\).*\(4,\)"):
        SPEC.require_match(other, "checkpoint", "task")
    assert Spec.from_dict(json.loads(SPEC.to_json())) == SPEC
