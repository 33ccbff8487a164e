"""Observation encoders: a dict of observations {key: [B, To, *shape]} -> cond [B, C].

Low-dim keys and points [B, To, N, channels] arrive normalised, images as they were recorded: rgb uint8
[B, To, H, W, 3], depth float32 [B, To, H, W, 1]. Images become floats in [-1, 1] here, on the device, after the crop;
depth looks like an image of three equal channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from flowleap.policy.core.errors import FlowleapError, require_int
from flowleap.policy.core.registry import Option, Registry
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.networks import image_towers as vision
from flowleap.policy.networks.augment import centre_crop, colour_jitter, crop_size, random_crop
from flowleap.policy.networks.point_towers import PointNet
from flowleap.policy.networks.robomimic_encoder import observation_encoder

ENCODERS: Registry[type[nn.Module]] = Registry("encoder")
Size = tuple[int, int]

Features = Annotated[int, Option("of each image", 1, 65536)]
Noise = Annotated[
    float, Option("deviation of training-time Gaussian noise on the normalised low-dim observations", 0, 10)
]


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What every encoder of images can be told beside its own options; each has its own defaults."""

    crop: Annotated[
        float, Option("share of the sides kept: at random in training, the middle in evaluation", 0.1, 1.0)
    ] = 1.0
    jitter: Annotated[
        float, Option("largest change of brightness, contrast and saturation in training", 0, 1)
    ] = 0.0
    shared: Annotated[bool, Option("one network for all cameras, whose images must be of one size")] = False
    frames: Annotated[
        int,
        Option(
            "how many of the latest To images are looked at; 0 is all. Low-dim keys are read over all To steps",
            0,
            1e6,
        ),
    ] = 0
    noise: Noise = 0.0


@ENCODERS.register("lowdim")
class LowdimEncoder(nn.Module):
    """Concatenates all low-dim keys, in the Spec's order, and all To steps: C = To * sum of key sizes.

    Its noise is a guard against covariate shift.
    """

    def __init__(self, spec: Spec, *, noise: Noise = 0.0) -> None:
        super().__init__()
        for key, obs in spec.observations.items():
            if obs.dense:
                raise _unreadable("lowdim", key, obs)
        self.noise = noise
        self.keys = tuple(spec.observations)
        self.dim = spec.n_obs_steps * sum(obs.size for obs in spec.observations.values())

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{key: [B, To, *shape]} -> [B, C]."""
        return join_lowdim(obs, self.keys, self.noise if self.training else 0.0)


def _unreadable(encoder: str, key: str, obs: ObsKey) -> FlowleapError:
    """What to do about an observation that an encoder is not made for."""
    fitting = "pointnet" if obs.kind == "points" else "cnn"
    return FlowleapError(
        f"encoder '{encoder}' cannot read observation '{key}' of kind {obs.kind!r}: choose encoder={fitting}, or "
        f"leave it out with keys=[-{key}]"
    )


def join_lowdim(obs: Mapping[str, Tensor], keys: Sequence[str], noise: float) -> Tensor:
    """All steps of the keys [B, To, *shape] side by side, with Gaussian noise of that deviation; [B, C]."""
    parts = [obs[key].unsqueeze(-1).flatten(2) for key in keys]  # a scalar a frame is [B, To]
    state = torch.cat(parts, dim=-1).flatten(1)
    return state + noise * torch.randn_like(state) if noise else state


def image_shape(key: str, known: ObsKey) -> tuple[int, int, int]:
    """Height, width and channels of an image; raise `FlowleapError` where it has others than 3, or 1 of depth."""
    if known.kind == "rgb" and (len(known.shape) != 3 or known.shape[2] != 3):
        raise FlowleapError(
            f"observation '{key}': images must be [height, width, 3], not {list(known.shape)}"
        )
    height, width, channels = known.shape
    return height, width, channels


def scaled(images: Tensor, reach: tuple[float, float] | None) -> Tensor:
    """Floats of images in [-1, 1]: colours of [0, 255], or depth of the range `reach`, clipped."""
    if reach is None:
        return images / 127.5 - 1.0
    return ((images - reach[0]) * (2 / (reach[1] - reach[0])) - 1.0).clamp(-1.0, 1.0)


class ImageEncoder(nn.Module):
    """A tower for every camera, or one for all; its features and the low-dim keys side by side.

    Args:
        spec: observation keys and To; one key or more of kind `rgb` or `depth`.
        tower: makes a network [N, 3, *size] in [-1, 1] -> [N, features] for images of a size.
        features: D, of each image.
        options: those of `ImageOptions`.

    Attributes:
        dim: C = cameras * frames * features + To * sum of the low-dim keys' sizes.
    """

    def __init__(
        self, spec: Spec, tower: Callable[[Size], nn.Module], features: int, options: Mapping[str, Any]
    ) -> None:
        super().__init__()
        chosen = ImageOptions(**options)
        self.jitter, self.noise = chosen.jitter, chosen.noise
        self.frames = require_int("encoder.frames", chosen.frames, 0, spec.n_obs_steps) or spec.n_obs_steps
        lowdim = {key: obs for key, obs in spec.observations.items() if obs.kind == "lowdim"}
        self.lowdim = tuple(lowdim)
        self.cameras = tuple(key for key in spec.observations if key not in lowdim)
        if not self.cameras:
            raise FlowleapError("the encoder is for images, but no observation is one: choose encoder=lowdim")
        for key in self.cameras:
            if not spec.observations[key].image:
                raise _unreadable("for images", key, spec.observations[key])
        self.sizes: list[Size] = []
        self.ranges = [spec.observations[key].range for key in self.cameras]
        for key in self.cameras:
            height, width, _ = image_shape(key, spec.observations[key])
            self.sizes.append((crop_size(height, chosen.crop), crop_size(width, chosen.crop)))
        if chosen.shared and len(set(self.sizes)) > 1:
            sizes = {key: spec.observations[key].shape for key in self.cameras}
            raise FlowleapError(f"encoder.shared=true needs cameras with images of one size, got {sizes}")
        self.towers = nn.ModuleList(tower(size) for size in (self.sizes[:1] if chosen.shared else self.sizes))
        state = sum(obs.size for obs in lowdim.values())
        self.dim = len(self.cameras) * self.frames * features + spec.n_obs_steps * state

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{camera: [B, To, H, W, 3 or 1], low-dim key: float [B, To, *shape]} -> [B, C]."""
        parts = [self._look(i, obs[key]) for i, key in enumerate(self.cameras)]
        if self.lowdim:
            parts.append(join_lowdim(obs, self.lowdim, self.noise if self.training else 0.0))
        return torch.cat(parts, dim=1)

    def _look(self, camera: int, images: Tensor) -> Tensor:
        """Features of one camera's images [B, To, H, W, channels] -> [B, frames * D]."""
        images = images[:, -self.frames :]
        size = self.sizes[camera]
        crop = random_crop if self.training and size != images.shape[2:4] else centre_crop
        images = crop(images, *size)
        weight = next(self.towers.parameters())
        # [B, F, 3, h, w], laid out so too: convolutions and their gradients on a CPU take an eighth less time than with
        # channels last in memory.
        reach = self.ranges[camera]  # of depth
        x = scaled(images.movedim(-1, -3).contiguous().to(weight.dtype), reach)
        if reach is not None:
            x = x.expand(*x.shape[:2], 3, *x.shape[3:])
        elif self.training and self.jitter:
            x = colour_jitter(x, self.jitter)
        tower = self.towers[camera if len(self.towers) > 1 else 0]
        return tower(x.flatten(0, 1)).unflatten(0, (-1, self.frames)).flatten(1)


@ENCODERS.register("cnn", ImageOptions, crop=0.875, frames=1)
class CnnEncoder(ImageEncoder):
    """Small convolutional network for images, with the low-dim keys beside its features: the default on a CPU."""

    def __init__(
        self,
        spec: Spec,
        *,
        channels: Annotated[Sequence[int], Option("of each layer", 1, 4096)] = (16, 32, 32, 64),
        halvings: Annotated[int, Option("the first so many layers halve the image", 0, 8)] = 2,
        features: Features = 128,
        pool: Annotated[
            Literal["keypoints", "flatten"],
            Option(
                "spatial soft-max, which locates things to a fraction of a pixel, or all places side by side"
            ),
        ] = "keypoints",
        **options: Any,
    ) -> None:
        def tower(size: Size) -> nn.Module:
            return vision.cnn(size, channels, halvings, features, pool == "keypoints")

        super().__init__(spec, tower, features, options)


@ENCODERS.register("resnet18", ImageOptions, crop=0.9)
class ResNetEncoder(ImageEncoder):
    """ResNet-18 with GroupNorm and a spatial soft-max (needs flowleap[vision])."""

    def __init__(
        self,
        spec: Spec,
        *,
        features: Features = 64,
        weights: Annotated[
            str | None, Option("local file of torchvision's weights (.pth or .safetensors)")
        ] = None,
        **options: Any,
    ) -> None:
        super().__init__(spec, lambda size: vision.resnet18(features, weights), features, options)


@ENCODERS.register("vit", ImageOptions)
class VitEncoder(ImageEncoder):
    """Vision transformer of timm, DINO's for instance (needs flowleap[vision])."""

    def __init__(
        self,
        spec: Spec,
        *,
        model: Annotated[
            str, Option("timm's name; the image size is the crop's, a multiple of the patch size")
        ] = "vit_tiny_patch16_224",
        features: Features = 128,
        weights: Annotated[str | None, Option("local file of timm's weights (.pth or .safetensors)")] = None,
        **options: Any,
    ) -> None:
        super().__init__(spec, lambda size: vision.vit(size, model, features, weights), features, options)


@ENCODERS.register("pointnet")
class PointNetEncoder(nn.Module):
    """An MLP for every point and the maximum over them, as in DP3; the low-dim keys beside it, through their own MLP.

    Attributes:
        dim: C = clouds * frames * features + To * state (of `state=0`, the sum of the low-dim keys' sizes).
    """

    def __init__(
        self,
        spec: Spec,
        *,
        widths: Annotated[Sequence[int], Option("of the layers that every point goes through", 1, 16384)] = (
            64,
            128,
            256,
        ),
        features: Annotated[int, Option("of each cloud", 1, 65536)] = 64,
        state: Annotated[
            int,
            Option(
                "features of the low-dim keys, by an MLP; 0 puts them beside the clouds as they are", 0, 65536
            ),
        ] = 64,
        colours: Annotated[bool, Option("look at the rgb of points, where they have it")] = True,
        points: Annotated[
            int,
            Option("train on so many of each cloud's points, drawn anew for each batch; 0 is all", 0, 1e6),
        ] = 0,
        jitter: Annotated[
            float, Option("deviation of training-time Gaussian noise on the normalised points", 0, 10)
        ] = 0.0,
        frames: Annotated[
            int, Option("how many of the latest To clouds are looked at; 0 is all", 0, 1e6)
        ] = 0,
        noise: Noise = 0.0,
    ) -> None:
        super().__init__()
        self.points, self.jitter, self.noise = points, jitter, noise
        self.frames = require_int("encoder.frames", frames, 0, spec.n_obs_steps) or spec.n_obs_steps
        self.steps = spec.n_obs_steps
        lowdim = {key: obs for key, obs in spec.observations.items() if not obs.dense}
        clouds = {key: obs for key, obs in spec.observations.items() if obs.dense}
        if not clouds:
            raise FlowleapError(
                "the encoder is for points, but no observation is a cloud: choose encoder=lowdim"
            )
        for key, obs in clouds.items():
            if obs.image:
                raise _unreadable("pointnet", key, obs)
        self.lowdim, self.channels = (
            tuple(lowdim),
            {k: o.shape[1] if colours else 3 for k, o in clouds.items()},
        )
        self.towers = nn.ModuleList(PointNet(n, widths, features) for n in self.channels.values())
        size = sum(obs.size for obs in lowdim.values())
        self.state: nn.Module = nn.Identity()
        if size and state:
            self.state = nn.Sequential(nn.Linear(size, state), nn.ReLU(), nn.Linear(state, state))
            size = state
        self.dim = len(clouds) * self.frames * features + spec.n_obs_steps * size

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{cloud: float [B, To, N, channels], low-dim key: float [B, To, *shape]} -> [B, C]."""
        parts = []
        for tower, (key, channels) in zip(self.towers, self.channels.items(), strict=True):
            clouds = obs[key][:, -self.frames :, :, :channels]
            if self.training and 0 < self.points < clouds.shape[2]:
                clouds = clouds[:, :, torch.randperm(clouds.shape[2], device=clouds.device)[: self.points]]
            if self.training and self.jitter:
                clouds = clouds + self.jitter * torch.randn_like(clouds)
            parts.append(tower(clouds.flatten(0, 1)).unflatten(0, (-1, self.frames)).flatten(1))
        if self.lowdim:
            state = join_lowdim(obs, self.lowdim, self.noise if self.training else 0.0)
            parts.append(self.state(state.unflatten(1, (self.steps, -1))).flatten(1))
        return torch.cat(parts, dim=1)


@ENCODERS.register("robomimic")
class RobomimicEncoder(nn.Module):
    """robomimic's own, as in Diffusion Policy: ResNet-18, GroupNorm, spatial soft-max (needs flowleap[robomimic]).

    It reads one frame at a time, images (each with its own crop) and low-dim keys: C = To * (cameras * features + sum
    of the low-dim keys' sizes).
    """

    def __init__(
        self,
        spec: Spec,
        *,
        features: Features = 64,
        keypoints: Annotated[int, Option("of each image's spatial soft-max", 1, 4096)] = 32,
        crop: Annotated[
            float,
            Option(
                "share of the sides kept, Diffusion Policy's 84 of 96 px; at random in training, else the middle",
                0.1,
                1.0,
            ),
        ] = 0.875,
        noise: Noise = 0.0,
    ) -> None:
        super().__init__()
        self.noise, self.steps, self.known = noise, spec.n_obs_steps, spec.observations
        self.names = {key: str(i) for i, key in enumerate(self.known)}  # torch allows no dots in names
        shapes: dict[str, tuple[int, ...]] = {}
        crops: dict[str, Size] = {}
        for key, name in self.names.items():
            shapes[name] = (self.known[key].size,)
            if self.known[key].dense and not self.known[key].image:
                raise _unreadable("robomimic", key, self.known[key])
            if self.known[key].image:
                height, width, channels = image_shape(key, self.known[key])
                shapes[name] = (channels, height, width)
                crops[name] = crop_size(height, crop), crop_size(width, crop)
        if not crops:
            raise FlowleapError("the encoder is for images, but no observation is one: choose encoder=lowdim")
        self.net = observation_encoder(shapes, crops, features, keypoints)
        self.dim = self.steps * sum(self.net.output_shape())  # type: ignore[operator]

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """{camera: [B, To, H, W, 3 or 1], low-dim key: float [B, To, *shape]} -> [B, C]."""
        dtype = next(self.net.parameters()).dtype
        frames: dict[str, Tensor] = {}
        for key, name in self.names.items():
            if self.known[key].image:
                images = obs[key].flatten(0, 1).movedim(-1, -3).contiguous().to(dtype)
                frames[name] = scaled(images, self.known[key].range)
            else:
                state = join_lowdim(obs, (key,), self.noise if self.training else 0.0)
                frames[name] = state.unflatten(1, (self.steps, -1)).flatten(0, 1)
        return self.net(frames).unflatten(0, (-1, self.steps)).flatten(1)

    def __repr__(self) -> str:
        """The layers; robomimic's own words for them need a table of keys that only its programs fill."""
        return f"{type(self).__name__}({nn.Module.__repr__(self.net)})"


def build_encoder(config: Mapping[str, Any], spec: Spec) -> tuple[nn.Module, dict[str, Any]]:
    """Return (encoder with attribute `dim` = C, full config); raise `FlowleapError` on a bad name or option."""
    options = ENCODERS.options(config)
    encoder = ENCODERS[config["name"]](spec, **options)
    if "weights" in options:  # a start for training: checkpoints hold what became of it, and name no files
        options["weights"] = None
    return encoder, {"name": config["name"], **options}
