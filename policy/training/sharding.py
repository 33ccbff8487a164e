"""Weights that Accelerate has sharded over processes (FSDP2): checkpoints and the EMA see whole tensors.

Without FSDP every function here passes its argument through. `whole` communicates: all processes must call it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only


def whole(tree: Any) -> Any:
    """Gather every sharded tensor in nested containers."""
    return tree_map_only(DTensor, _gathered, tree)


def _gathered(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def like(full: Tensor, example: Tensor) -> Tensor:
    """One process's shard of a whole tensor, sharded as `example` is."""
    if not isinstance(example, DTensor) or full.shape != example.shape:
        return full
    return distribute_tensor(full.to(example.device), example.device_mesh, example.placements)


class WholeWeights:
    """A module's parameters and buffers, gathered when asked for: what `AveragedModel` averages."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def parameters(self) -> Iterator[Tensor]:
        """Each parameter, whole."""
        return (_gathered(p.detach()) for p in self.module.parameters())

    def buffers(self) -> Iterator[Tensor]:
        """Each buffer."""
        return (_gathered(b) for b in self.module.buffers())


@torch.no_grad()
def load_weights(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a module that may be sharded."""
    for name, x in module.state_dict().items():
        x.copy_(like(state[name], x))


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser state of whole tensors, sharded as the parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {key: like(x, parameters[index]) if isinstance(x, Tensor) else x for key, x in entry.items()}
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
