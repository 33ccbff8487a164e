"""The files by which lerobot opens an exported folder: `config.json` and the two processors. Written without lerobot.

config.json                  policy type `flowleap`, features, names of the observations
policy_preprocessor.json     renaming, batch axis, device
policy_postprocessor.json    device
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowleap.lerobot.features import ACTION, check_names, default_names, input_features
from flowleap.policy.core.actions import OwnActions
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import atomic
from flowleap.policy.core.spec import Spec

CONFIG = "config.json"
PREPROCESSOR = "policy_preprocessor.json"
POSTPROCESSOR = "policy_postprocessor.json"
_NORMALISED = dict.fromkeys(("STATE", "ENV", "VISUAL", "ACTION"), "IDENTITY")


def names_of(spec: Spec, lerobot: bool | Mapping[str, Any], trained: Any = None) -> dict[str, str]:
    """LeRobot's name of each observation: those of the mapping {our key: name}; for True, the policy's own.

    These are `trained`, which lerobot-train notes in its checkpoints, or `default_names`.

    Raises:
        FlowleapError: a name is missing or wrong, or the policy's actions are converted ones.
    """
    if OwnActions(spec).changes:
        raise FlowleapError(
            "the policy's actions are converted ones, which lerobot cannot undo: train on actions as the robot takes "
            "them, or embed the export with flowleap.policy.core.actions.OwnActions"
        )
    if lerobot is True:
        return check_names(spec, trained) if isinstance(trained, Mapping) else default_names(spec)
    if not isinstance(lerobot, Mapping):
        raise FlowleapError(
            f"lerobot={lerobot} is neither true nor a mapping such as {{joints: observation.state}}"
        )
    return check_names(spec, lerobot)


def write_files(folder: str | Path, spec: Spec, names: Mapping[str, str], clip: Any = None) -> None:
    """Write LeRobot's three files beside an export of `spec`; existing ones are replaced.

    Args:
        names: LeRobot's name of each observation, see `names_of`.
        clip: least and greatest action [2, A], between which actions are kept; None keeps nothing.
    """
    features = input_features(spec, names)
    action = {ACTION: {"type": "ACTION", "shape": [spec.action_dim]}}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}

    def normalise(registry_name: str, of: Mapping[str, Any]) -> dict[str, Any]:
        config = {"eps": 1e-8, "features": dict(of), "norm_map": _NORMALISED}
        return {"registry_name": registry_name, "config": config}

    config = {
        "type": "flowleap",
        "n_obs_steps": spec.n_obs_steps,
        "horizon": spec.horizon,
        "n_action_steps": spec.n_action_steps,
        "input_features": features,
        "output_features": action,
        # onnxruntime's; tensors on another device would only have to come back.
        "device": "cpu",
        "push_to_hub": False,
        "names": dict(names),
        "clip": None if clip is None else np.asarray(clip, np.float64).tolist(),
        "normalization_mapping": _NORMALISED,
    }
    # The steps that lerobot's programs override by name; none of them changes a number.
    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        device,
        normalise("normalizer_processor", {**features, **action}),
    ]
    after = [normalise("unnormalizer_processor", action), device]
    files = {
        CONFIG: config,
        PREPROCESSOR: {"name": "policy_preprocessor", "steps": before},
        POSTPROCESSOR: {"name": "policy_postprocessor", "steps": after},
    }
    for name, content in files.items():
        with atomic(Path(folder) / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
