"""Does the exported graph do what the policy does, and how fast: parity and latency against eager torch."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.deploy.runtime import ExportedPolicy
from flowleap.policy.flow.objective import Objective
from flowleap.policy.flow.samplers import NOISE_LEVELS
from flowleap.policy.normalizer import ACTION
from flowleap.policy.policy import Policy

Observations = Mapping[str, np.ndarray]
BATCH_SIZES = (1, 2, 7, 64)
DRAWS = 4  # of observations and noise, for each batch size
_CAMERA_BATCH = 2  # what has views is compared on frames of the camera's size here
_ROUNDING_STEPS = 4
_LATENCY_CALLS = 500
_LATENCY_SECONDS = 1.0
_ROUNDS = 25


def synthetic_observations(policy: Policy, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Observations {key: [count, To, *shape]} drawn uniformly from the range the normaliser was fitted on."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, np.ndarray] = {}
    for key, obs in policy.spec.observations.items():
        shape = (count, policy.spec.n_obs_steps, *obs.shape)
        if obs.kind == "rgb":
            drawn[key] = rng.integers(0, 256, shape, dtype=np.uint8)
        elif obs.range is not None:
            drawn[key] = rng.uniform(*obs.range, shape).astype(np.float32)
        else:
            uniform = torch.from_numpy(rng.uniform(-1.0, 1.0, shape).astype(np.float32))
            drawn[key] = policy.normalizer.unnormalize(key, uniform).numpy()
    return drawn


def action_range(policy: Policy) -> np.ndarray:
    """Width in real units of the normalised interval [-1, 1] of each action dimension; [A]."""
    edges = torch.tensor([[-1.0], [1.0]]).expand(2, policy.spec.action_dim)
    low, high = policy.normalizer.unnormalize(ACTION, edges)
    return (high - low).abs().numpy()


@torch.inference_mode()
def eager_chunk(policy: Policy, obs: Observations, noise: np.ndarray, steps: int) -> np.ndarray:
    """`Policy.chunk` on numpy arrays, images as their cameras take them; without what is random in training."""
    seen = {key: np.ascontiguousarray(known.see(obs[key])) for key, known in policy.spec.observations.items()}
    tensors = {key: torch.from_numpy(x) for key, x in seen.items()}
    training = policy.training
    policy.eval()
    try:
        return policy.chunk(tensors, torch.from_numpy(noise), steps).numpy()
    finally:
        policy.train(training)


def parity(
    policy: Policy,
    exported: ExportedPolicy,
    observations: Observations,
    seed: int = 0,
    batches: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Compare eager and exported actions over several batch sizes, observations and noises.

    Batches, of the sizes `batches` (`BATCH_SIZES`), are drawn from `observations`, {key: [N, To, *shape]}; the eager
    policy is on the CPU.

    Returns:
        `max_abs` (real units) and `max_relative` (to `action_range`, beyond the rounding of float32), overall and for
        each batch size in `cases`. For each action dimension over all batches and places of the chunk, in real units
        [A]: `max_abs_per_dimension`, `rms_per_dimension`; `rms_relative` is the largest of these over its range. An
        action that is not finite makes all of them infinite.
    """
    rng = np.random.default_rng(seed)
    spec, width = policy.spec, action_range(policy)
    count = min(len(observations[key]) for key in spec.observations)
    cases: list[dict[str, float]] = []
    errors: list[np.ndarray] = []
    for batch in BATCH_SIZES if batches is None else batches:
        absolute = relative = 0.0
        for _ in range(DRAWS):
            rows = rng.integers(0, count, batch)
            obs = {key: observations[key][rows] for key in spec.observations}
            if batch == _CAMERA_BATCH:
                obs |= _camera_frames(policy, batch, rng)
            noise = rng.standard_normal((batch, spec.horizon, spec.action_dim), dtype=np.float32)
            eager = eager_chunk(policy, obs, noise, exported.steps)
            error = np.abs(eager - exported.chunk(obs, noise))
            error = np.where(np.isfinite(error), error, np.inf)
            errors.append(error.reshape(-1, spec.action_dim))
            absolute = max(absolute, float(error.max()))
            # Beside a large offset, a few of float32's own steps may be more than the tolerance of a small range.
            beyond = np.maximum(error - _ROUNDING_STEPS * np.spacing(np.abs(eager)), 0)
            relative = max(relative, float((beyond / width).max()))
        cases.append({"batch": batch, "draws": DRAWS, "max_abs": absolute, "max_relative": relative})
    worst = {name: max(case[name] for case in cases) for name in ("max_abs", "max_relative")}
    flat = np.concatenate(errors)
    rms = np.sqrt(np.mean(np.square(flat, dtype=np.float64), axis=0))
    return {
        **worst,
        "rms_relative": float((rms / width).max()),
        "max_abs_per_dimension": flat.max(axis=0).tolist(),
        "rms_per_dimension": rms.tolist(),
        "action_range": width.tolist(),
        "windows": count,
        "cases": cases,
    }


def _camera_frames(policy: Policy, count: int, rng: np.random.Generator) -> Observations:
    """Random frames of the camera's size for each key that has views."""
    frames: dict[str, np.ndarray] = {}
    for key, obs in policy.spec.observations.items():
        shape = (count, policy.spec.n_obs_steps, *obs.camera_shape)
        if obs.views and obs.range is not None:
            frames[key] = rng.uniform(*obs.range, shape).astype(np.float32)
        elif obs.views:
            frames[key] = rng.integers(0, 256, shape, dtype=np.uint8)
    return frames


def latency(
    policy: Policy, exported: ExportedPolicy, observations: Observations, ddpm: bool = False
) -> dict[str, Any]:
    """p50 and p95 of one call at batch 1 on one thread, all that are compared in turn.

    Returns:
        A report of the backend under its name, `eager` torch and, if `ddpm`, `ddpm100_eager`, DDPM at 100 steps with
        the same network; `speedup` and `speedup_over_ddpm100` of the exported one.
    """
    obs = {key: observations[key][:1] for key in policy.spec.observations}
    noise = np.zeros((1, policy.spec.horizon, policy.spec.action_dim), np.float32)
    backend = exported.manifest.get("backend", "onnxruntime")
    calls = {
        backend: lambda: exported.chunk(obs, noise),
        "eager": lambda: eager_chunk(policy, obs, noise, exported.steps),
    }
    if ddpm:
        many = as_ddpm(policy)
        calls["ddpm100_eager"] = lambda: eager_chunk(many, obs, noise, NOISE_LEVELS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report: dict[str, Any] = time_in_turn(calls)
    finally:
        torch.set_num_threads(threads)
    report["speedup"] = report["eager"]["p50_ms"] / report[backend]["p50_ms"]
    if ddpm:
        report["speedup_over_ddpm100"] = report["ddpm100_eager"]["p50_ms"] / report[backend]["p50_ms"]
    return {"batch": 1, "threads": 1, **report}


def as_ddpm(policy: Policy) -> Policy:
    """The network of `policy` under DDPM, for its time: it was not trained so."""
    many = copy.copy(policy)
    many.objective, many.head_sigma = Objective({"name": "ddpm"}), 0.0
    return many


def time_in_turn(
    calls: Mapping[str, Callable[[], Any]], seconds: float | None = None
) -> dict[str, dict[str, float]]:
    """Time calls in turn, a few of each a round, so that a slow moment of the machine hits all alike.

    Each is called up to 500 times in about `seconds` (1), at least twice. The first call of a round finds the caches
    full of what the others used, as on a robot that did something else meanwhile; it counts as `cold`.

    Returns:
        For each call `p50_ms` and `p95_ms`, `cold_ms` (the median of the first calls) and the count `calls`.
    """
    budget = _LATENCY_SECONDS if seconds is None else seconds
    first = {name: _seconds(call) for name, call in calls.items()}
    warm = {name: first[name] if first[name] > budget else _seconds(call) for name, call in calls.items()}
    wanted = {name: int(np.clip(budget / warm[name], 2, _LATENCY_CALLS)) for name in calls}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    cold: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(_ROUNDS):
        for name, call in calls.items():
            count = (i + 1) * wanted[name] // _ROUNDS - i * wanted[name] // _ROUNDS
            times = [_seconds(call) for _ in range(count)]
            cold[name] += times[:1]
            # Of what is called once a round, that call is all there is.
            taken[name] += times[1:] or times
    report = {}
    for name, times in taken.items():
        p50, p95 = np.percentile(np.array(times) * 1e3, [50, 95])
        report[name] = {
            "p50_ms": float(p50),
            "p95_ms": float(p95),
            "cold_ms": float(np.median(cold[name])) * 1e3,
            "calls": len(times),
        }
    return report


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def check_tolerance(report: Mapping[str, Any], tolerance: float, measure: str = "max_relative") -> None:
    """Raise `FlowleapError` unless a measure of the parity report stays within `tolerance` of the action range."""
    if not report[measure] <= tolerance:
        raise FlowleapError(
            f"the exported graph differs from the policy by {report['max_relative']:.2e} of the action range "
            f"({report['max_abs']:.2e} in real units; root mean square {report['rms_relative']:.2e}), tolerance "
            f"{tolerance:g}; nothing was written"
        )
