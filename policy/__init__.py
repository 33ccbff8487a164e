"""What a policy is: flow map, objectives, backbones, encoder, normaliser, trainer, deployment.

Names load when they are first asked for, so that `flowleap.policy.core.*` and `flowleap.policy.deploy.runtime` import
without torch; type checkers read the imports below.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowleap.policy.core.errors import FlowleapError
    from flowleap.policy.core.spec import ObsKey, Spec
    from flowleap.policy.deploy.export import export
    from flowleap.policy.deploy.runtime import ExportedPolicy
    from flowleap.policy.flow.flow_map import FlowMap
    from flowleap.policy.networks.build import BACKBONES
    from flowleap.policy.policy import Policy
    from flowleap.policy.training.config import TrainerConfig
    from flowleap.policy.training.trainer import Trainer

_MODULES = {
    "BACKBONES": "networks.build",
    "ExportedPolicy": "deploy.runtime",
    "FlowMap": "flow.flow_map",
    "FlowleapError": "core.errors",
    "ObsKey": "core.spec",
    "Policy": "policy",
    "Spec": "core.spec",
    "Trainer": "training.trainer",
    "TrainerConfig": "training.config",
    "export": "deploy.export",
}

__all__ = ["BACKBONES", "ExportedPolicy", "FlowMap", "FlowleapError", "ObsKey"]
__all__ += ["Policy", "Spec", "Trainer", "TrainerConfig", "export"]


if not TYPE_CHECKING:  # a checker would take every misspelt name for `Any`

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(importlib.import_module(f"flowleap.policy.{_MODULES[name]}"), name)
        raise AttributeError(f"module 'flowleap.policy' has no attribute {name!r}")
