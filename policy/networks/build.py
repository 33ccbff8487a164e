"""Networks of one interface: (x_t [B,H,A], t [B], s [B], cond [B,C]) -> average velocity [B,H,A].

A new backbone is one file here, one line in `BACKBONES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from flowleap.policy.core.registry import Registry
from flowleap.policy.networks.mlp import MLPBackbone
from flowleap.policy.networks.transformer import TransformerBackbone
from flowleap.policy.networks.unet1d import UNet1dBackbone

BACKBONES: Registry[type[nn.Module]] = Registry("backbone")
BACKBONES.register("mlp")(MLPBackbone)
BACKBONES.register("transformer")(TransformerBackbone)
BACKBONES.register("unet1d")(UNet1dBackbone)


def build_backbone(
    config: Mapping[str, Any], action_dim: int, horizon: int, cond_dim: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Return (network, full config with defaults filled in); raise `FlowleapError` on a bad name or option."""
    options = BACKBONES.options(config)
    net = BACKBONES[config["name"]](action_dim, horizon, cond_dim, **options)
    return net, {"name": config["name"], **options}
