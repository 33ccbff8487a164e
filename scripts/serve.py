"""Serve a policy to robots, over websockets, in the protocol of openpi: its clients talk to it unchanged.

    flowleap serve checkpoint=EXPORTED_DIR
    flowleap serve checkpoint=EXPORTED_DIR history=client 'keys={observation/state:state}'
    flowleap serve checkpoint=EXPORTED_DIR host=0.0.0.0 api_key_file=KEY_FILE
    flowleap serve checkpoint=RUN_DIR steps=4            through torch, not exported

Ctrl-C or SIGTERM end it.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from flowleap.policy.core.errors import FlowleapError, UsageError, optional_import
from flowleap.policy.deploy.runtime import MANIFEST, ExportedPolicy
from flowleap.scripts.cli.main import run_verb
from flowleap.scripts.common import plain

API_KEY = "FLOWLEAP_API_KEY"


def main(cfg: DictConfig) -> None:
    """Load `cfg.checkpoint` and serve it until a signal comes."""
    # Said before any work is done.
    optional_import("websockets", extra="serve")
    from flowleap.policy.deploy.logs import write_logs
    from flowleap.policy.deploy.server import LOG, Limits, Server
    from flowleap.policy.deploy.serving import Service

    policy, actions = load(cfg)
    keys, metadata = _mapping(cfg, "keys"), _mapping(cfg, "metadata")
    service = Service(policy, actions, cfg.history, keys, cfg.seed, cfg.stale_after, metadata)
    limits = Limits(cfg.connections, cfg.megabytes, cfg.rate)
    server = Server(service, cfg.host, cfg.port, api_key(cfg.api_key_file), limits)
    write_logs(LOG, cfg.log)
    server.run()


def load(cfg: DictConfig) -> tuple[Any, int]:
    """The policy at `cfg.checkpoint`, and how many actions of a chunk it returns."""
    path = Path(cfg.checkpoint)
    if (path / MANIFEST).is_file():
        exported = ExportedPolicy.load(path, threads=cfg.threads, unusual=cfg.unusual)
        if cfg.steps not in (None, exported.steps):
            raise FlowleapError(
                f"{path} was exported at NFE {exported.steps}; export again with steps={cfg.steps}"
            )
        return exported, exported.actions
    policy = TorchPolicy(cfg)
    return policy, policy.spec.horizon


class TorchPolicy:
    """A checkpoint, asked like an exported policy."""

    def __init__(self, cfg: DictConfig) -> None:
        import torch

        from flowleap.policy.core.inputs import InputCheck
        from flowleap.policy.policy import Policy

        torch.set_num_threads(cfg.threads)
        device = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
        self._policy = Policy.load(Path(cfg.checkpoint), cfg.weights, device)
        self._policy.inputs = InputCheck(self._policy.inputs.range_of, cfg.unusual)
        self._steps = self._policy.objective.check_steps(cfg.steps)
        self.spec = spec = self._policy.spec
        # `act` checks its input and returns the actions to execute: here, all.
        self._policy.spec = spec.with_window(spec.n_obs_steps, spec.horizon, spec.horizon)

    def chunk(self, obs: Mapping[str, NDArray[Any]], noise: NDArray[Any]) -> NDArray[Any]:
        """`obs` {key: [B, To, *shape]}, `noise` [B, H, A] -> [B, H, A], real units."""
        import torch

        device = self._policy.device
        # Copies, as torch wants memory that may be written.
        tensors = {key: torch.from_numpy(np.array(value)).to(device) for key, value in obs.items()}
        chunk: NDArray[Any] = (
            self._policy.act(tensors, torch.from_numpy(noise).to(device), self._steps).cpu().numpy()
        )
        return chunk


def api_key(file: str | None) -> str | None:
    """The API key: the content of a file, else of the environment variable; None if there is none.

    Raises:
        FlowleapError: the file cannot be read, or every user of this machine can read it.
    """
    if file is None:
        return os.environ.get(API_KEY, "").strip() or None
    try:
        key, mode = Path(file).read_text(encoding="utf-8").strip(), Path(file).stat().st_mode
    except (OSError, ValueError) as error:
        raise FlowleapError(f"api_key_file={file} cannot be read ({error})") from error
    if os.name == "posix" and mode & (stat.S_IRGRP | stat.S_IROTH):
        raise FlowleapError(f"api_key_file={file} can be read by others: chmod 600 {file}")
    if not key:
        raise FlowleapError(f"api_key_file={file} is empty: write a key into it")
    return key


def _mapping(cfg: DictConfig, name: str) -> dict[str, Any]:
    # `cfg.keys` would be the method.
    value: Any = plain(cfg[name])
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{name}={value} must be a mapping, such as {name}={{observation/state:state}}")
    return {str(key): part for key, part in value.items()}


if __name__ == "__main__":
    sys.exit(run_verb("serve"))
