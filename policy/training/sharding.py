"""Weights that Accelerate has sharded over processes (FSDP2): checkpoints and the EMA see whole tensors.

Without FSDP these functions just pass tensors through. With it they communicate: all processes must call them.

torch's helpers for checkpoints serve for the weights. Those for optimisers would cost more than they save: their file
names parameters where every `trainer.pt` so far numbers them, and they give parameters without a gradient a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only


def whole(tree: Any) -> Any:
    """Gather every sharded tensor in nested containers."""
    return tree_map_only(DTensor, DTensor.full_tensor, tree)


def whole_weights(module: nn.Module) -> dict[str, Any]:
    """The state dict of a module that may be sharded, on the CPU; empty on all processes but the first."""
    options = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    return state_dict.get_model_state_dict(module, options=options)


def load_weights(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole tensors, which every process has, into a module that may be sharded."""
    options = state_dict.StateDictOptions(full_state_dict=True)
    state_dict.set_model_state_dict(module, dict(state), options=options)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser state of whole tensors, sharded as the parameters are."""

    def shard(x: Any, parameter: Tensor) -> Any:
        if not isinstance(parameter, DTensor) or not isinstance(x, Tensor) or x.shape != parameter.shape:
            return x
        return distribute_tensor(x.to(parameter.device), parameter.device_mesh, parameter.placements)

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        i: {key: shard(x, parameters[i]) for key, x in entry.items()} for i, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
