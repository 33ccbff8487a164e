"""Policies as the evaluator sees them: numpy in, numpy out, from a checkpoint or an exported folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowleap.envs.rollout import Actor, Chunker
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.hub import Address, policy_folder
from flowleap.policy.core.inputs import Range
from flowleap.policy.core.spec import Spec

if TYPE_CHECKING:
    from flowleap.policy.policy import Policy

EXPORT_MANIFEST = "export.json"


@dataclass(frozen=True)
class LoadedActor:
    """A policy ready to act.

    Attributes:
        act: the actor.
        chunk: the same at full length, with several noises and given actions.
        actions: N, the length of its chunks.
        prefix: how many actions may be given to it.
        warm: w -> `chunk` that starts from the one before, see `Continuity.warm_start`; None where it cannot.
        spec: what it needs.
        nfe: function evaluations a chunk.
        range_of: the normalisation (scale, offset) of a low-dim key, each [*shape]; None where there is none.
        path, describe, task: where it lies, what to write beside its scores, what it was trained for.
    """

    act: Actor
    chunk: Chunker
    actions: int
    prefix: int
    warm: Callable[[float], Chunker] | None
    spec: Spec
    nfe: int
    range_of: Callable[[str], Range | None]
    path: Path
    describe: dict[str, Any]
    task: dict[str, Any] | None


def policy_chunker(policy: Policy, steps: int | None, warm_start: float = 0.0) -> Chunker:
    """Wrap a torch policy: `(obs {key: [B,To,...]}, noise [B,K,H,A], prefix, previous) -> [B,K,H,A]`, all numpy."""
    import torch

    def tensor(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(policy.device)

    def chunk(
        obs: Mapping[str, np.ndarray],
        noise: np.ndarray,
        prefix: np.ndarray | None = None,
        previous: np.ndarray | None = None,
    ) -> np.ndarray:
        seen = {key: tensor(x) for key, x in obs.items()}
        given, before = (None if x is None else tensor(x) for x in (prefix, previous))
        chunks = policy.act(
            seen, tensor(noise), steps, given, whole=True, previous=before, warm_start=warm_start
        )
        return chunks.cpu().numpy()

    return chunk


def policy_actor(policy: Policy, steps: int | None) -> Actor:
    """Wrap a torch policy: `(obs {key: [B,To,...]}, noise [B,H,A]) -> [B,Ta,A]`, all numpy."""
    chunk = policy_chunker(policy, steps)

    def act(obs: dict[str, np.ndarray], noise: np.ndarray) -> np.ndarray:
        return chunk(obs, noise)[:, : policy.spec.n_action_steps]

    return act


def load_actor(
    path: str | Path,
    steps: int | None = None,
    weights: str = "ema",
    device: str = "cpu",
    threads: int = 1,
    n_action_steps: int | None = None,
) -> LoadedActor:
    """Load a checkpoint (or run) directory, or an exported folder (recognised by its export.json).

    Raises:
        FlowleapError: no such policy, or `steps` or `n_action_steps` that it cannot do.
    """
    path = policy_folder(path)
    if (path / EXPORT_MANIFEST).is_file():
        return _exported(path, steps, threads, n_action_steps)
    import torch

    from flowleap.policy.policy import Policy

    torch.set_num_threads(threads)
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    policy = Policy.load(path, weights, where)
    if n_action_steps is not None:
        policy.spec = policy.spec.with_window(policy.spec.n_obs_steps, policy.spec.horizon, n_action_steps)
    nfe = policy.objective.check_steps(steps)
    describe = {
        "kind": "checkpoint",
        **_origin(path),
        "weights": weights,
        "policy": policy.config,
        "parameters": sum(p.numel() for p in policy.net.parameters()),
        "training": policy.info,
        "device": where,
        "threads": threads,
    }
    task = policy.info.get("task")
    return LoadedActor(
        policy_actor(policy, nfe),
        policy_chunker(policy, nfe),
        policy.spec.horizon,
        policy.prefix,
        partial(policy_chunker, policy, nfe) if policy.objective.any_start else None,
        policy.spec,
        nfe,
        policy.normalizer.range_of,
        policy.checkpoint or path,
        describe,
        task,
    )


def _origin(path: Path) -> dict[str, str]:
    """`hub`, the repository and commit of a policy of the Hugging Face Hub: what `hf://` meant may change."""
    address = Address.cached_at(path)
    return {"hub": str(address)} if address else {}


def _exported(path: Path, steps: int | None, threads: int, n_action_steps: int | None) -> LoadedActor:
    from flowleap.policy.deploy.runtime import ExportedPolicy

    policy = ExportedPolicy.load(path, threads=threads)
    if steps not in (None, policy.steps):
        raise FlowleapError(f"{path} was exported at NFE {policy.steps}; export again with steps={steps}")
    if n_action_steps is not None:
        if n_action_steps > policy.actions:
            raise FlowleapError(
                f"{path} returns {policy.actions} actions a chunk, not n_action_steps={n_action_steps}"
            )
        policy.spec = policy.spec.with_window(policy.spec.n_obs_steps, policy.spec.horizon, n_action_steps)
    describe = {"kind": "export", **_origin(path), "objective": policy.objective, "threads": threads}
    return LoadedActor(
        policy.act,
        policy.chunk,
        policy.actions,
        policy.prefix,
        None,  # the graph begins at t = 1
        policy.spec,
        policy.steps,
        policy.inputs.range_of,
        path,
        describe,
        policy.task,
    )
