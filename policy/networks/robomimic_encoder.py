"""robomimic's observation encoder (arXiv 2108.03298), made as Diffusion Policy (arXiv 2303.04137) makes it for images.

Every camera has a ResNet-18 with a spatial soft-max behind a random crop; low-dim keys pass as they are. The networks
are robomimic's own, with GroupNorm in place of their BatchNorm, whose statistics do not go with averaged weights.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from types import ModuleType

from torch import nn

from flowleap.policy.core.errors import optional_import

_GROUP = 16  # channels
_THEN = (
    "pip install --no-deps robomimic==0.3.0"  # with its dependencies pip builds egl_probe, which wants cmake
)
Size = tuple[int, int]


def observation_encoder(
    shapes: Mapping[str, tuple[int, ...]], crops: Mapping[str, Size], features: int, keypoints: int
) -> nn.Module:
    """The `ObservationEncoder` of robomimic: {name: float32 [N, *shape]} -> [N, C], all names side by side.

    Args:
        shapes: of the inputs; images are [channels, height, width], in [-1, 1].
        crops: names of the images -> (height, width) of the crop, random in training and the middle in evaluation.
        features: of each image.
        keypoints: of each image's spatial soft-max.

    Raises:
        FlowleapError: robomimic, or what it imports, is not installed.
    """
    nets, cores = _import("obs_nets"), _import("obs_core")
    encoder = nets.ObservationEncoder()
    for name, shape in shapes.items():
        if name not in crops:
            encoder.register_obs_key(name, shape)
            continue
        pool = {"num_kp": keypoints, "temperature": 1.0, "learnable_temperature": False, "noise_std": 0.0}
        core = {
            "input_shape": shape,
            "backbone_class": "ResNet18Conv",
            "backbone_kwargs": {"pretrained": False, "input_coord_conv": False},
            "pool_class": "SpatialSoftmax",
            "pool_kwargs": pool,
            "feature_dimension": features,
        }
        crop = None
        if crops[name] != shape[1:]:  # it wants fewer pixels on both sides
            height, width = (min(kept, side - 1) for kept, side in zip(crops[name], shape[1:], strict=True))
            crop = cores.CropRandomizer(shape, height, width)
        encoder.register_obs_key(name, shape, "VisualCore", core, randomizer=crop)
    with warnings.catch_warnings():  # of torchvision, about the name of an argument
        warnings.simplefilter("ignore", UserWarning)
        encoder.make()
    _use_group_norm(encoder)
    return encoder


def _use_group_norm(net: nn.Module) -> None:
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(child.num_features // _GROUP, child.num_features))


def _import(module: str) -> ModuleType:
    """Import a module of robomimic's models without its advice to write a file of settings into its folder."""
    with redirect_stdout(io.StringIO()):
        return optional_import(f"robomimic.models.{module}", extra="robomimic", then=_THEN)
