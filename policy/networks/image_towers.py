"""Image towers: images [N, 3, h, w] in [-1, 1] -> features [N, D]. No BatchNorm anywhere: EMA weights stay valid.

`cnn` needs nothing but torch and is meant for CPUs; `resnet18` and `vit` come with the extra `vision`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import torch
from torch import Tensor, nn

from flowleap.policy.core.errors import FlowleapError, optional_import, suggest

GROUP_CHANNELS = 8
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SpatialSoftmax(nn.Module):
    """Expected position of every channel's activation (arXiv 1509.06113): [N, C, h, w] -> [N, 2C] in [-1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """Map to the x positions of all channels, then y positions."""
        height, width = x.shape[-2:]
        attention = x.flatten(2).softmax(-1).unflatten(2, (height, width))
        across = torch.linspace(-1.0, 1.0, width, dtype=x.dtype, device=x.device)
        down = torch.linspace(-1.0, 1.0, height, dtype=x.dtype, device=x.device)
        return torch.cat([(attention.sum(2) * across).sum(-1), (attention.sum(3) * down).sum(-1)], dim=1)


class ImageNetColours(nn.Module):
    """[-1, 1] -> the colour scale that ImageNet weights expect."""

    scale: Tensor
    offset: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("scale", 0.5 / std)
        self.register_buffer("offset", (0.5 - mean) / std)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, h, w] -> the same shape."""
        return x * self.scale + self.offset


def head(channels: int, size: tuple[int, int], features: int, keypoints: bool) -> nn.Sequential:
    """[N, channels, *size] -> [N, features], through a spatial soft-max or all places side by side."""
    pool: nn.Module = SpatialSoftmax() if keypoints else nn.Flatten()
    width = 2 * channels if keypoints else channels * size[0] * size[1]
    return nn.Sequential(pool, nn.Linear(width, features), nn.LayerNorm(features))


def cnn(
    size: tuple[int, int], channels: Sequence[int], halvings: int, features: int, keypoints: bool
) -> nn.Sequential:
    """A few 3 x 3 convolutions (the first 5 x 5), the first `halvings` with stride 2; size (height, width).

    Their `channels` are multiples of 8; `keypoints` is a spatial soft-max instead of all places side by side.
    """
    if not 1 <= len(channels) <= 8:
        raise FlowleapError(f"encoder.channels needs 1 to 8 layers, got {len(channels)}")
    layers: list[nn.Module] = []
    before, (height, width) = 3, size
    for i, after in enumerate(channels):
        if after % GROUP_CHANNELS:
            raise FlowleapError(f"encoder.channels: {after} is not a multiple of {GROUP_CHANNELS}")
        kernel, stride = 3 if i else 5, 2 if i < halvings else 1
        layers.append(nn.Conv2d(before, after, kernel, stride, padding=kernel // 2))
        layers += [nn.GroupNorm(after // GROUP_CHANNELS, after), nn.SiLU()]
        before, height, width = after, -(-height // stride), -(-width // stride)
    return nn.Sequential(*layers, head(before, (height, width), features, keypoints))


def resnet18(features: int, weights: str | None) -> nn.Sequential:
    """The ResNet-18 of torchvision with GroupNorm and a spatial soft-max, as in Diffusion Policy.

    Of `weights`, a local file of torchvision's, the normalisation layers and the classifier are left out.
    """
    models = optional_import("torchvision.models", extra="vision")
    net = models.resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(channels // 16, channels))
    trunk = nn.Sequential(*list(net.children())[:-2])
    if weights is not None:
        convolutions = {f"{name}.weight" for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
        state = {name: x for name, x in read_weights(weights).items() if name in convolutions}
        require_all(convolutions, state, "ResNet-18", weights)
        load_into(net, state, weights)
    return nn.Sequential(ImageNetColours(), trunk, nn.Conv2d(512, 32, 1), head(32, (0, 0), features, True))


def vit(size: tuple[int, int], model: str, features: int, weights: str | None) -> nn.Sequential:
    """A vision transformer of timm (DINO, DINOv2, ...), its pooled output mapped to D features.

    `size` is (height, width), multiples of the patch size. Nothing is downloaded; of `weights`, a file of
    timm's, the position embeddings of another image size are resampled.
    """
    timm = optional_import("timm", extra="vision")
    known = timm.list_models("*vit*")
    if model not in known:  # also keeps out names that timm would fetch from a server
        raise FlowleapError(
            f"encoder.model={model!r} is no vision transformer of timm{suggest(str(model), known)}"
        )
    try:
        net = timm.create_model(model, pretrained=False, num_classes=0, img_size=size)
    except (AssertionError, TypeError, ValueError) as error:
        raise FlowleapError(
            f"encoder.model={model} does not take images of {size[0]} x {size[1]} px: {error}"
        ) from error
    norms = [name for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        raise FlowleapError(
            f"encoder.model={model} has BatchNorm, whose statistics EMA weights do not follow: choose a plain "
            "transformer, such as vit_tiny_patch16_224"
        )
    patches = getattr(net, "patch_embed", None)
    patch = getattr(patches, "patch_size", (1, 1))
    if size[0] % patch[0] or size[1] % patch[1]:  # timm would drop the rim
        raise FlowleapError(
            f"encoder.model={model} cuts images into patches of {patch[0]} x {patch[1]} px, but encoder.crop leaves "
            f"{size[0]} x {size[1]} px: choose a crop that leaves whole patches"
        )
    if weights is not None:
        state = read_weights(weights)
        position, own = state.get("pos_embed"), getattr(net, "pos_embed", None)
        grid = getattr(patches, "grid_size", None)
        if position is not None and own is not None and grid is not None and position.shape != own.shape:
            state["pos_embed"] = _resampled(position, grid, net.num_prefix_tokens, own, weights)
        load_into(net, state, weights)
        require_all(net.state_dict().keys(), state, model, weights)
    return nn.Sequential(
        ImageNetColours(), net, nn.Linear(net.num_features, features), nn.LayerNorm(features)
    )


def _resampled(position: Tensor, grid: tuple[int, int], prefix: int, own: Tensor, path: str) -> Tensor:
    """Position embeddings [1, prefix + N, D] of a square grid of patches for the grid of another image size."""
    # Some models give their class token no position.
    without = 0 if own.shape[1] == grid[0] * grid[1] else prefix
    flat = position.dim() == 3 and position.shape[1] > without
    side = math.isqrt(position.shape[1] - without) if flat else 0
    if not flat or position.shape[::2] != own.shape[::2] or side**2 + without != position.shape[1]:
        raise FlowleapError(
            f"encoder.weights={path} does not fit: pos_embed is {list(position.shape)}, not {list(own.shape)}"
        )
    layers = optional_import("timm.layers", extra="vision")
    return layers.resample_abs_pos_embed(position, list(grid), [side, side], num_prefix_tokens=without)


def read_weights(path: str) -> dict[str, Tensor]:
    """Read a state dict of finite tensors from a local file, without running code from it."""
    file = Path(path).expanduser()
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(file)
        else:
            with warnings.catch_warnings(action="ignore"):  # the error says what matters
                state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged or hostile files
        reason = "it does not exist"
        if file.exists():
            reason = f"not readable as plain tensors ({type(error).__name__}), and nothing else is loaded"
            reason += ": save model.state_dict() as .safetensors or .pth"
        raise FlowleapError(f"encoder.weights={path}: {reason}") from error
    if not isinstance(state, dict):
        raise FlowleapError(f"encoder.weights={path} holds no state dict")
    for name, x in state.items():
        if not isinstance(x, Tensor):
            raise FlowleapError(
                f"encoder.weights={path} holds no state dict: {name!r} is a {type(x).__name__}, not a tensor"
            )
        if not torch.isfinite(x).all():
            raise FlowleapError(f"encoder.weights={path}: '{name}' holds NaN or infinite values")
    return state


def require_all(names: Set[str], state: Mapping[str, Tensor], model: str, path: str) -> None:
    """Raise `FlowleapError` unless `state` has all the tensors of a model."""
    if missing := names - state.keys():
        raise FlowleapError(f"encoder.weights={path} holds no {model}: '{min(missing)}' is missing")


def load_into(net: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Load the tensors of `state` that the network has; raise where none fits or a shape differs."""
    try:
        unknown = net.load_state_dict(state, strict=False).unexpected_keys
    except RuntimeError as error:
        raise FlowleapError(
            f"encoder.weights={path} does not fit: {str(error).splitlines()[-1].strip()}"
        ) from error
    if len(unknown) == len(state):
        raise FlowleapError(f"encoder.weights={path} has none of the network's tensors")
