"""A new backbone in one file: register it, train it, export it, act without torch.

    python examples/new_backbone.py

`derivative=difference` differentiates the network by calling it twice: any torch operation will do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from flowleap.datasets.windows import Windows
from flowleap.policy import BACKBONES, ExportedPolicy, ObsKey, Policy, Spec, Trainer, TrainerConfig, export
from flowleap.policy.networks.time_embedding import TimeEmbedding


@BACKBONES.register("tokens")
class Tokens(nn.Module):
    """u(x_t [B,H,A], t [B], s [B], cond [B,C]) -> [B,H,A]: each action of the chunk is a token."""

    def __init__(self, action_dim: int, horizon: int, cond_dim: int, *, width: int = 64) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.randn(action_dim, width) * action_dim**-0.5)
        self.place = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.condition = nn.Linear(cond_dim, width)
        self.time = TimeEmbedding(width, 8.0)
        self.norm = nn.RMSNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.RMSNorm(width), nn.Linear(width, 2 * width), nn.SiLU())
        self.output = nn.Linear(2 * width, action_dim)

    def forward(self, x: Tensor, t: Tensor, s: Tensor, cond: Tensor) -> Tensor:
        """Average velocity [B,H,A]."""
        given = (self.condition(cond) + self.time(t, s))[:, None]
        h = torch.einsum("bha,aw->bhw", x, self.embed) + self.place + given
        normed = self.norm(h)
        h = h + self.attention(normed, normed, normed, need_weights=False)[0]
        return self.output(self.mlp(h))


def main() -> None:
    """Train 100 steps on random walks, export, and compare the export with the policy."""
    spec = Spec({"state": ObsKey((3,))}, action_dim=2, n_obs_steps=2, horizon=8, n_action_steps=4)
    rng = np.random.default_rng(0)
    state = rng.normal(size=(1000, 3)).cumsum(0).astype(np.float32)
    windows = Windows({"state": state, "action": np.tanh(state[:, :2])}, [500, 1000], spec)
    config = {
        "objective": {"name": "isd", "derivative": "difference"},
        "backbone": {"name": "tokens", "width": 32},
        "encoder": {"name": "lowdim"},
    }
    options = TrainerConfig(steps=100, warmup_steps=10, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Policy(spec, config), windows, options, folder)
        trainer.fit()
        manifest = export(trainer.ema_policy, Path(folder) / "export")
        print("largest difference from the policy:", manifest["parity"]["max_abs"])
        exported = ExportedPolicy.load(Path(folder) / "export")
        print("actions:", exported.act({"state": state[None, :2]}).shape)


if __name__ == "__main__":
    main()
