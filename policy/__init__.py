"""What a policy is: flow map, objectives, backbones, encoder, normaliser, trainer, deployment.

Attributes load lazily, so that `flowleap.policy.core.spec` and `flowleap.policy.deploy.runtime` import without torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "Spec": "core.spec",
    "ObsKey": "core.spec",
    "FlowleapError": "core.errors",
    "FlowMap": "flow.flow_map",
    "Policy": "policy",
    "Trainer": "training.trainer",
}

__all__ = ["FlowMap", "FlowleapError", "ObsKey", "Policy", "Spec", "Trainer"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"flowleap.policy.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'flowleap.policy' has no attribute {name!r}")
