"""Noise that can be repeated: that of an episode, and what stochastic samplers draw on their way."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_NOISE_STREAM = 0xF10  # keeps chunk noise apart from any other generator seeded with the episode's seed


def episode_noise(seed: int, noise_seed: int = 0) -> np.random.Generator:
    """The generator that an episode draws the noise of its chunks from, one after the other.

    Evaluation and `flowleap serve` draw from the same one, so that the same seed means the same noise. Another
    `noise_seed` is another noise.
    """
    return np.random.default_rng([seed, _NOISE_STREAM, *([noise_seed] if noise_seed else [])])


def ancestral_noise(noise: NDArray[Any], draws: int) -> NDArray[np.float32]:
    """Noise [B, H, A] and what is drawn after it, together [B, draws, H, A].

    Each sample seeds its own: one noise, one action chunk, in torch and in the exported graph alike.
    """
    noise = np.ascontiguousarray(noise, np.float32)
    seeds = (zlib.crc32(sample.tobytes()) for sample in noise)
    shape = (draws - 1, *noise.shape[1:])
    drawn = [np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) for seed in seeds]
    return np.concatenate([noise[:, None], np.reshape(drawn, (len(noise), *shape))], axis=1)
