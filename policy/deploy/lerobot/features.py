"""Names of observations: ours beside LeRobot's, which has one vector of state and images by camera."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.spec import ObsKey, Spec

ACTION = "action"
OBSERVATION = "observation"
STATE = f"{OBSERVATION}.state"
ENVIRONMENT_STATE = f"{OBSERVATION}.environment_state"
IMAGES = f"{OBSERVATION}.images"


def _refuse_points(spec: Spec) -> None:
    for key, known in spec.observations.items():
        if known.kind == "points":
            raise FlowleapError(
                f"lerobot: '{key}' is a cloud of points, for which LeRobot's robots and datasets have no feature: run "
                "this policy with the Controller, or serve it"
            )


def default_names(spec: Spec) -> dict[str, str]:
    """LeRobot's name for each key of a policy that does not say.

    A camera KEY is `observation.images.KEY`. Of a LeRobotDataset, whose state is the key `state`, every other KEY is
    `observation.KEY`, as it was there. Of other data, all numbers are parts of `observation.state`, side by side in the
    order of the Spec, as LeRobot's robots give them.

    Raises:
        FlowleapError: a key is a cloud of points.
    """
    _refuse_points(spec)
    lowdim = [key for key, known in spec.observations.items() if not known.image]
    named = {key: f"{OBSERVATION}.{key}" if "state" in lowdim else STATE for key in lowdim}
    return {key: named.get(key, f"{IMAGES}.{key}") for key in spec.observations}


def key_of(name: str) -> str:
    """Our key for a feature of a LeRobotDataset, the one that `flowleap train` gives it."""
    return name.removeprefix(f"{IMAGES}.").removeprefix(f"{OBSERVATION}.")


def check_names(spec: Spec, names: Mapping[str, Any]) -> dict[str, str]:
    """`names`, our key -> LeRobot's name, in the order of the Spec.

    Raises:
        FlowleapError: a key is a cloud of points, has no name or is none, a name is no observation of LeRobot, or two
            keys claim one image.
    """
    _refuse_points(spec)
    for key in names:
        if key not in spec.observations:
            others = f"{sorted(spec.observations)}, not '{key}'{suggest(key, spec.observations)}"
            raise FlowleapError(f"lerobot: the policy observes {others}")
    taken: set[str] = set()
    for key, known in spec.observations.items():
        name = names.get(key)
        if not isinstance(name, str) or not name.startswith(f"{OBSERVATION}."):
            raise FlowleapError(
                f"lerobot: observation '{key}' needs LeRobot's name, such as {STATE} or {IMAGES}.{key}, got {name!r}"
            )
        # A vector may be shared by several keys, which lie side by side.
        if name in taken and known.image:
            raise FlowleapError(f"lerobot: '{name}' is named twice; each image needs its own")
        taken |= {name} if known.image else set()
    return {key: str(names[key]) for key in spec.observations}


def input_features(spec: Spec, names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """LeRobot's `input_features` of a policy, plain data: name -> type and shape (images channels first)."""
    features: dict[str, dict[str, Any]] = {}
    for key, known in spec.observations.items():
        name = names[key]
        if known.image:
            height, width, channels = known.camera_shape
            features[name] = {"type": "VISUAL", "shape": [channels, height, width]}
        else:
            size = features.get(name, {"shape": [0]})["shape"][0] + known.size
            features[name] = {"type": "ENV" if name == ENVIRONMENT_STATE else "STATE", "shape": [size]}
    return features


def spec_of(features: Mapping[str, tuple[str, tuple[int, ...]]], actions: int) -> tuple[Spec, dict[str, str]]:
    """Spec of the features of a LeRobotDataset, name -> type and shape, and LeRobot's name of each key.

    Raises:
        FlowleapError: there is no observation, or an image that is none of colours.
    """
    keys: dict[str, ObsKey] = {}
    names: dict[str, str] = {}
    for name, (kind, shape) in features.items():
        if not name.startswith(f"{OBSERVATION}."):
            continue
        key = key_of(name)
        if kind != "VISUAL":
            keys[key] = ObsKey(tuple(shape))
        elif len(shape) == 3 and shape[0] == 3:
            keys[key] = ObsKey((shape[1], shape[2], 3), "uint8", "rgb")
        else:
            raise FlowleapError(
                f"'{name}' {list(shape)} is no image of colours; `flowleap train` reads depth, and `flowleap export "
                "lerobot=true` brings such a policy to LeRobot"
            )
        names[key] = name
    return Spec(keys, actions), names


def split(spec: Spec, names: Mapping[str, str], batch: Mapping[str, Any]) -> dict[str, Any]:
    """LeRobot's batch of tensors -> {key: [B, To, *shape]}, or [B, *shape] where it holds single frames.

    Images come channels first and, if of colours, as floats from 0 to 1; they become uint8 [..., H, W, 3]. Depth keeps
    its numbers. Vectors are cut into the keys that share them.

    Raises:
        FlowleapError: an observation is missing or of another size; the message names it.
    """
    observations: dict[str, Any] = {}
    used: dict[str, int] = {}
    total: dict[str, int] = {}
    for key, known in spec.observations.items():
        if not known.image:
            total[names[key]] = total.get(names[key], 0) + known.size
    for key, known in spec.observations.items():
        name = names[key]
        if name not in batch:
            given = sorted(other for other in batch if other.startswith(f"{OBSERVATION}."))
            raise FlowleapError(
                f"LeRobot gives no '{name}' (the policy's '{key}'), but {given}{suggest(name, given)}; rename with "
                f'--rename_map=\'{{"observation.NAME": "{name}"}}\''
            )
        values = batch[name]
        if known.image:
            values = values.movedim(-3, -1)
            if known.kind == "rgb" and values.dtype.is_floating_point:
                values = (values * 255).round().clamp(0, 255).byte()
            observations[key] = values
            continue
        if len(known.shape) > 1 and tuple(values.shape[-len(known.shape) :]) == tuple(known.shape):
            observations[key] = values
            continue
        # LeRobotDataset gives features of one number without their axis.
        if total[name] == 1 and (
            values.ndim == 1 or (values.ndim == 2 and values.shape[1] == spec.n_obs_steps > 1)
        ):
            values = values[..., None]
        if values.shape[-1] != total[name]:
            parts = [other for other in spec.observations if names[other] == name]
            raise FlowleapError(
                f"'{name}' holds {values.shape[-1]} numbers, the policy expects {total[name]} ({', '.join(parts)})"
            )
        first = used.get(name, 0)
        used[name] = first + known.size
        part = values[..., first : first + known.size]
        observations[key] = part.reshape(*part.shape[:-1], *known.shape)
    return observations
