"""One place for every default: what the command line composes is what the library takes by itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import pytest
from omegaconf import OmegaConf

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.registry import Option, Registry, parameters_of
from flowleap.policy.core.spec import WINDOW, ObsKey, Spec, Window
from flowleap.policy.flow.objective import OBJECTIVES, Objective
from flowleap.policy.networks.build import BACKBONES, build_backbone
from flowleap.policy.networks.encoders import ENCODERS, build_encoder
from flowleap.policy.normalizer import Normalizer
from flowleap.policy.policy import HEAD_SIGMA, PARTS, Policy
from flowleap.policy.training.config import OPTIONS, TrainerConfig
from flowleap.scripts.cli.compose import registry_choices
from flowleap.scripts.cli.options import describe, load_options
from flowleap.scripts.cli.run import compose

LOWDIM = Spec({"joints": ObsKey((5,))}, 2, n_obs_steps=2, horizon=16, n_action_steps=8)
POINTS = Spec({"cloud": ObsKey((64, 3), "float32", "points")}, 2, n_obs_steps=2, horizon=16)
IMAGES = Spec({"camera": ObsKey((224, 224, 3), "uint8", "rgb")}, 2, n_obs_steps=2, horizon=16)


def composed(*words: str) -> dict[str, Any]:
    """What `flowleap train words...` would hand to the library."""
    config = OmegaConf.to_container(compose("train", ["task=pusht/keypoints", *words]), resolve=True)
    assert isinstance(config, dict)
    return config


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(name: str) -> None:
    build = (LOWDIM.action_dim, LOWDIM.horizon, 10)
    config = composed(f"backbone={name}")["backbone"]
    assert build_backbone(config, *build)[1] == build_backbone({"name": name}, *build)[1] == config


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str) -> None:
    if name in ("resnet18", "vit"):
        pytest.importorskip("timm")
    if name == "robomimic":
        pytest.importorskip("robomimic.models.obs_nets", reason="needs robomimic 0.3")
    spec = {"lowdim": LOWDIM, "pointnet": POINTS}.get(name, IMAGES)
    config = composed(f"encoder={name}")["encoder"]
    assert build_encoder(config, spec)[1] == build_encoder({"name": name}, spec)[1] == config


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives(name: str) -> None:
    config = composed(f"objective={name}")["objective"]
    assert Objective(config).config == Objective({"name": name}).config == config


def test_a_registry_with_shared_options_becomes_choices() -> None:
    @dataclass(kw_only=True)
    class Shared:
        p: Annotated[float, Option("of the weight", 0, 10)] = 1.0

    registry: Registry[Any] = Registry("objective", shared=Shared)

    @registry.register("plain", p=0.0)
    def plain(*, balance: Annotated[bool, Option("divide")] = True) -> None:
        """Plain.

        More.
        """

    choice = registry_choices(registry)["plain"]
    assert choice.about == "Plain."
    assert {key: p.default for key, p in choice.parameters.items()} == {"balance": True, "p": 0.0}
    assert describe(choice.parameters["p"]) == "of the weight (0 to 10)"


def test_the_trainer() -> None:
    config = composed()["trainer"]
    assert TrainerConfig.from_mapping(config) == TrainerConfig()
    assert {**asdict(TrainerConfig()), "betas": [0.9, 0.999]} == config


def test_the_policy() -> None:
    config = composed()
    parts: dict[str, Any] = {"objective": {"name": "isd"}, "backbone": {"name": "mlp"}}
    policy = Policy(LOWDIM, {**parts, "encoder": {"name": "lowdim"}})
    for part in ("backbone", "encoder", "normalizer", "head_sigma"):
        assert policy.config[part] == config[part]
    assert {name: config[name] for name in asdict(WINDOW)} == asdict(WINDOW)


def test_every_option_says_what_it_is() -> None:
    known = [parameters_of(Window), parameters_of(Normalizer), OPTIONS, {"head_sigma": HEAD_SIGMA}]
    known += [
        registry.parameters(name) for registry in (OBJECTIVES, BACKBONES, ENCODERS) for name in registry
    ]
    for parameters in known:
        for key, parameter in parameters.items():
            assert parameter.option.help, key
    texts = load_options("train", ["task=metaworld/reach-v3", "encoder=cnn"]).help
    for key in (
        "backbone.width",
        "encoder.crop",
        "trainer.lr",
        "normalizer.obs",
        "task.kwargs.cameras",
        "horizon",
    ):
        assert texts[key]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbone.width=0"], r"backbone\.width must be a whole number in \[1, 16384\]"),
        (["trainer.betas=[0.9]"], r"trainer\.betas must be two numbers"),
        (["normalizer.obs=mean"], r"normalizer\.obs must be one of 'minmax'"),
        (["head_sigma=-1"], r"head_sigma must be a number in \[0, 100\]"),
    ],
)
def test_values_are_checked_against_the_signature(words: list[str], message: str) -> None:
    config = composed(*words)

    def build() -> None:
        Policy(LOWDIM, {part: config[part] for part in PARTS})
        TrainerConfig.from_mapping(config["trainer"])

    with pytest.raises(FlowleapError, match=message):
        build()
