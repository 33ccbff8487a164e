"""Image augmentation on the device, a batch at a time: random crops (the middle in evaluation) and colour jitter.

Every sample has one crop and one colour change for all of its frames, so that what moves between frames has moved. All
random numbers come from torch's generator of the device, which the trainer seeds with (seed, step).
"""

from __future__ import annotations

import torch
from torch import Tensor


def crop_size(side: int, share: float) -> int:
    """Side in px of the crop that keeps `share` of an image's side; at least 1."""
    return max(1, round(side * share))


def centre_crop(images: Tensor, height: int, width: int) -> Tensor:
    """Cut the middle out of images [..., H, W, C]."""
    top, left = (images.shape[-3] - height) // 2, (images.shape[-2] - width) // 2
    return images[..., top : top + height, left : left + width, :]


def random_crop(images: Tensor, height: int, width: int) -> Tensor:
    """Cut a place drawn for every sample out of images [B, F, H, W, C]; [B, F, height, width, C]."""
    batch, _, full_height, full_width, _ = images.shape
    device = images.device
    top = torch.randint(full_height - height + 1, (batch, 1), device=device)
    left = torch.randint(full_width - width + 1, (batch, 1), device=device)
    rows, columns = top + torch.arange(height, device=device), left + torch.arange(width, device=device)
    sample = torch.arange(batch, device=device)[:, None, None]
    # Two neighbouring indices stay in place: [B, F, ...] becomes [B, height, width, F, C] and goes back.
    cut = images.transpose(1, 2).transpose(2, 3)[sample, rows[:, :, None], columns[:, None, :]]
    return cut.permute(0, 3, 1, 2, 4)


def colour_jitter(images: Tensor, strength: float) -> Tensor:
    """Change brightness, contrast and saturation of images [B, F, C, h, w] in [-1, 1] by up to `strength` each."""

    def draw() -> Tensor:
        uniform = torch.rand((len(images), 1, 1, 1, 1), device=images.device, dtype=images.dtype)
        return strength * (2 * uniform - 1)

    grey = images.mean(2, keepdim=True)
    images = grey + (1 + draw()) * (images - grey)
    mean = grey.mean((1, 3, 4), keepdim=True)
    return mean + (1 + draw()) * (images - mean) + draw()
