"""Noise that can be had again: of an episode's chunks, and what stochastic samplers draw on their way."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Keeps chunk noise apart from any other generator seeded with the episode's seed.
_EPISODE = 0xF10


def episode_noise(seed: int) -> np.random.Generator:
    """The generator of the noise of an episode's chunks, one float32 [H, A] after the other."""
    return np.random.default_rng([seed, _EPISODE])


def ancestral_noise(noise: NDArray[Any], draws: int) -> NDArray[np.float32]:
    """Noise [B, H, A] and what is drawn after it, together [B, draws, H, A].

    Each sample seeds its own: one noise, one action chunk, in torch and in the exported graph alike.
    """
    noise = np.ascontiguousarray(noise, np.float32)
    seeds = (zlib.crc32(sample.tobytes()) for sample in noise)
    shape = (draws - 1, *noise.shape[1:])
    drawn = [np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) for seed in seeds]
    return np.concatenate([noise[:, None], np.reshape(drawn, (len(noise), *shape))], axis=1)
