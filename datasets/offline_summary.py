"""How far predicted action chunks are from recorded ones: errors, spread over noises, the worst places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowleap.datasets.columns import ACTION
from flowleap.datasets.offline import Predictions
from flowleap.datasets.windows import Windows
from flowleap.policy.core.limits import ActionLimits

LEVELS = 4  # values that a gripper's command takes, at most
_LISTED = 10  # episodes and frames that are named
_GROUPS_OF = 8  # noises from which groups are looked for
_APART = 0.9  # share of the variance between two groups; 0.64 in a Gaussian
_SEEN = 0.01  # of the range: a spread below it is none


def summarise(
    found: Predictions, windows: Windows, limits: ActionLimits | None, labels: Sequence[str]
) -> dict[str, Any]:
    """Describe the errors in JSON-ready numbers; absolute ones are in the actions' own units.

    Args:
        found: see `predict_at`.
        windows: all frames that could be asked for: the range of the actions, and the episodes, are theirs.
        limits: those of the demonstrations that the policy was trained on; by default those of `windows`.
        labels: what the episodes are called.

    Returns:
        `frames`, `noises`, `episodes`; `range` [A];
        `dimensions`: for each {`policy`, `repeat_last`, `mean_action`: {mean, median, p95}, `spread` over noises,
        `outside` (share of predictions beyond the limits), `levels` (see `_levels`)};
        `error`: mean over dimensions as a share of the range, {policy, executed (the steps before the policy is asked
        again), repeat_last, mean_action}, and `horizon`, the same for each step of the chunk;
        `best_of`: {K: error of the best of K noises}; `spread` as a share of the range; `two_ways`, the share of
        frames where the noises lead to two groups of chunks, None with fewer than 8 noises;
        `worst_episodes` and `worst_frames`, the worst first.
    """
    actions = np.asarray(windows.columns[ACTION], np.float32)
    width = np.ptp(actions, axis=0).astype(np.float64)
    scale = np.where(width > 0, width, 1.0)
    limits = limits or ActionLimits.of(actions, windows.episode_ends)
    valid = found.valid[:, None, :, None]  # [F, 1, N, 1]
    others = {"repeat_last": found.last[:, None], "mean_action": actions.mean(0)[None, None]}
    errors = {"policy": np.abs(found.chunks - found.recorded[:, None])}
    errors |= {name: np.abs(value - found.recorded)[:, None] for name, value in others.items()}
    spread = _spread(found)
    low, high = np.asarray(limits.low) - 1e-6 * scale, np.asarray(limits.high) + 1e-6 * scale
    outside = (found.chunks < low) | (found.chunks > high)
    dimensions = []
    for a in range(len(width)):
        part: dict[str, Any] = {name: _quantiles(e[..., a], found.valid) for name, e in errors.items()}
        part["spread"] = float(spread[a])
        part["outside"] = float(outside[..., a][_wide(found.valid, found.chunks.shape[1])].mean())
        part["levels"] = _levels(actions[:, a], found, a)
        dimensions.append(part)
    each = _per_draw(errors["policy"] / scale, valid)  # [F, K]
    relative = {name: _masked_mean(e / scale, valid, (0, 1, 3)) for name, e in errors.items()}  # [N]
    executed = windows.spec.n_action_steps
    overall = {name: float(_masked_mean(e / scale, valid, None)) for name, e in errors.items()}
    overall["executed"] = float(
        _masked_mean((errors["policy"] / scale)[:, :, :executed], valid[:, :, :executed], None)
    )
    return {
        "frames": len(found.frames),
        "noises": found.chunks.shape[1],
        "episodes": len(windows.episode_ends),
        "range": width.tolist(),
        "dimensions": dimensions,
        "error": {**overall, "horizon": {name: value.tolist() for name, value in relative.items()}},
        "best_of": best_of(each),
        "spread": float((spread / scale).mean()),
        "two_ways": _two_ways(found, scale),
        **_worst(found.frames, each.mean(1), windows.episode_ends, labels),
    }


def _wide(valid: NDArray[np.bool_], draws: int) -> NDArray[np.bool_]:
    return np.broadcast_to(valid[:, None], (len(valid), draws, valid.shape[1]))


def _quantiles(errors: NDArray, valid: NDArray[np.bool_]) -> dict[str, float]:
    """Of errors [F, K, N] where the episode went on."""
    values = errors[_wide(valid, errors.shape[1])]
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "p95": float(np.quantile(values, 0.95)),
    }


def _masked_mean(values: NDArray, valid: NDArray[np.bool_], axis: tuple[int, ...] | None) -> NDArray:
    where = np.broadcast_to(valid, values.shape)
    total = np.where(where, values, 0.0).sum(axis=axis, dtype=np.float64)
    return np.asarray(total / np.maximum(where.sum(axis=axis), 1))


def _per_draw(errors: NDArray, valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean error of each chunk, [F, K]."""
    return _masked_mean(errors, valid, (2, 3))


def _spread(found: Predictions) -> NDArray[np.float64]:
    """Deviation over noises of each dimension [A], root mean square over frames and steps; 0 for a single noise."""
    if found.chunks.shape[1] < 2:
        return np.zeros(found.chunks.shape[-1])
    variance = found.chunks.var(axis=1, ddof=1, dtype=np.float64)  # [F, N, A]
    return np.sqrt(_masked_mean(variance, found.valid[..., None], (0, 1)))


def best_of(errors: NDArray[np.float64]) -> dict[str, float]:
    """Expected error of the best of 1, 2, 4, ... of the K noises [F, K], over all ways to choose them."""
    ordered, total = np.sort(errors, axis=1), errors.shape[1]
    counts = [k for k in (2**i for i in range(total.bit_length())) if k < total] + [total]
    chosen = {}
    for k in counts:
        weights = np.array([math.comb(total - 1 - j, k - 1) / math.comb(total, k) for j in range(total)])
        chosen[str(k)] = float((ordered @ weights).mean())
    return chosen


def _two_ways(found: Predictions, scale: NDArray[np.float64]) -> float | None:
    """Share of frames where the chunks of the noises fall into two groups along their main axis."""
    frames, draws = found.chunks.shape[:2]
    if draws < _GROUPS_OF:
        return None
    points = np.where(found.valid[:, None, :, None], found.chunks / scale, 0.0).reshape(frames, draws, -1)
    points = points - points.mean(axis=1, keepdims=True)
    gram = points @ points.transpose(0, 2, 1)  # [F, K, K], whose eigenvectors are the coordinates on the axes
    values, vectors = np.linalg.eigh(gram)
    along = np.sort(vectors[..., -1] * np.sqrt(np.maximum(values[:, -1:], 0)), axis=1)
    moving = np.sqrt(np.trace(gram, axis1=1, axis2=2) / points[0].size) > _SEEN
    total = (along**2).sum(1)
    n = np.arange(1, draws)
    between = np.cumsum(along, axis=1)[:, :-1] ** 2 * draws / (n * (draws - n))  # of a split after n
    share = between[:, 1:-1].max(axis=1) / np.maximum(total, 1e-12)  # no group of one
    return float(((share > _APART) & moving).mean())


def _levels(actions: NDArray, found: Predictions, a: int) -> dict[str, Any] | None:
    """How often the nearest level is the recorded one, of a dimension with 2 to `LEVELS` values, like a gripper's.

    `always`: what the most frequent level would reach; `changed`: of the `changes`, where the recorded level is no
    longer the last action's.
    """
    levels = np.unique(actions)
    if not 2 <= len(levels) <= LEVELS:
        return None
    nearest = levels[np.abs(found.chunks[..., a, None] - levels).argmin(-1)]
    recorded = found.recorded[:, None, :, a]
    agrees = (nearest == recorded)[_wide(found.valid, nearest.shape[1])]
    differs = found.valid & (found.recorded[..., a] != found.last[:, None, a])
    changed = (nearest == recorded)[_wide(differs, nearest.shape[1])]
    shares = [(found.recorded[..., a][found.valid] == level).mean() for level in levels]
    return {
        "values": levels.astype(float).tolist(),
        "agreement": float(agrees.mean()),
        "always": float(max(shares)),
        "changes": int(differs.sum()),
        "changed": float(changed.mean()) if changed.size else None,
    }


def _worst(
    frames: NDArray[np.int64], errors: NDArray[np.float64], ends: NDArray[np.int64], labels: Sequence[str]
) -> dict[str, Any]:
    """Episodes and frames with the largest errors [F]."""
    episode = np.searchsorted(ends, frames, side="right")
    starts = np.concatenate([[0], ends[:-1]])
    means = {int(e): float(errors[episode == e].mean()) for e in np.unique(episode)}
    ordered = sorted(means, key=lambda e: -means[e])
    episodes = [{"index": e, "episode": labels[e], "error": means[e]} for e in ordered]
    worst = [
        {
            "episode": labels[int(episode[i])],
            "frame": int(frames[i] - starts[episode[i]]),
            "error": float(errors[i]),
        }
        for i in np.argsort(-errors)[:_LISTED]
    ]
    return {
        "worst_episodes": episodes[:_LISTED],
        "median_episode": episodes[len(episodes) // 2],
        "worst_frames": worst,
    }
