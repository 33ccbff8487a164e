"""What a policy would do at recorded frames, beside what was done, without a simulator.

`offline_summary` says how far they are apart. A low error does not mean success: when a policy acts, what it sees next
follows from what it did, and small errors add up. A high error does not mean failure: where there are several ways,
the demonstrator took one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION, free_memory
from flowleap.datasets.windows import Windows
from flowleap.policy.core.errors import FlowleapError

Predict = Callable[[dict[str, NDArray], NDArray], NDArray]
"""`obs` {key: [B, To, *shape]} and noise [B, K, H, A] (or [B, H, A]) -> chunks [B, K, N, A] ([B, N, A]), real units."""

_AT_ONCE = 16  # frames
_COPIES = 12  # of all chunks, while they are described


@dataclass(frozen=True)
class Predictions:
    """What a policy would do at some recorded frames, and what was done.

    Attributes:
        frames: int64 [F], among those of all episodes.
        chunks: float32 [F, K, N, A], for K noises each.
        recorded: float32 [F, N, A].
        valid: bool [F, N], whether the episode went on so long.
        last: float32 [F, A], the action of the frame before.
    """

    frames: NDArray[np.int64]
    chunks: NDArray[np.float32]
    recorded: NDArray[np.float32]
    valid: NDArray[np.bool_]
    last: NDArray[np.float32]


def spread_frames(episode_ends: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """At most `count` frames, evenly spread over all that have one before them in their episode.

    Raises:
        FlowleapError: there is none.
    """
    starts = np.concatenate([[0], episode_ends[:-1]])
    later = np.setdiff1d(np.arange(episode_ends[-1]), starts)
    if not len(later):
        raise FlowleapError("every episode has a single frame: there is nothing to compare with")
    return later[np.linspace(0, len(later) - 1, min(count, len(later))).round().astype(np.int64)]


def predict_at(
    predict: Predict,
    windows: Windows,
    frames: NDArray[np.int64],
    noises: int,
    seed: int = 0,
    on_progress: Callable[[int], None] | None = None,
) -> Predictions:
    """Ask a policy at recorded frames; a frame's noise follows from `seed` and its index alone."""
    spec, ends = windows.spec, windows.episode_ends
    shape = (noises, spec.horizon, spec.action_dim)
    needed = _COPIES * 4 * len(frames) * math.prod(shape)
    if needed > free_memory():
        raise FlowleapError(
            f"{len(frames)} frames with {noises} noises take {needed / 1e9:.1f} GB to be compared: choose fewer"
        )
    actions = windows.gather(np.maximum(frames - 1, 0))["action"][:, 0]
    chunks, recorded = [], []
    for rows in np.array_split(frames, -(-len(frames) // _AT_ONCE)):
        batch = windows.gather(rows)
        noise = np.stack(
            [np.random.default_rng([seed, row]).standard_normal(shape, np.float32) for row in rows]
        )
        chunks.append(_ask(predict, batch["obs"], noise))
        recorded.append(batch["action"][:, : chunks[-1].shape[2]])
        if on_progress:
            on_progress(len(rows))
    left = ends[np.searchsorted(ends, frames, side="right")] - frames
    valid = np.arange(recorded[0].shape[1]) < left[:, None]
    return Predictions(frames, np.concatenate(chunks), np.concatenate(recorded), valid, actions)


def _ask(predict: Predict, obs: dict[str, NDArray], noise: NDArray) -> NDArray:
    """Chunks [B, K, N, A], also of policies that take one noise at a time."""
    many, chunks = noise.shape[1], None
    if many > 1:
        with suppress(FlowleapError):  # DDPM at 100 steps takes one: it draws on its way
            chunks = predict(obs, noise)
        if chunks is not None and chunks.ndim == 4:
            return _finite(chunks)
    return _finite(np.stack([predict(obs, noise[:, k]) for k in range(many)], axis=1))


def _finite(chunks: NDArray) -> NDArray:
    if not np.isfinite(chunks).all():
        raise FlowleapError(
            "the policy predicts NaN or infinite actions: check its weights and its normaliser"
        )
    return chunks


def follow(predict: Predict, windows: Windows, episode: int, seed: int = 0) -> dict[str, Any]:
    """One episode: actions [T, A] as recorded, and those of chunks that start from every Ta-th recorded observation."""
    ends = windows.episode_ends
    start, end = (int(ends[episode - 1]) if episode else 0), int(ends[episode])
    found = predict_at(predict, windows, np.arange(start, end, windows.spec.n_action_steps), 1, seed)
    executed = found.chunks[:, 0, : windows.spec.n_action_steps]
    recorded = np.asarray(windows.columns[ACTION][start:end], np.float32)
    return {
        "recorded": _short(recorded),
        "predicted": _short(executed.reshape(-1, executed.shape[-1])[: end - start]),
    }


def _short(values: NDArray) -> list[list[float]]:
    """Numbers to five digits, which a plot does not miss."""
    return [[float(f"{x:.5g}") for x in row] for row in values.tolist()]
