"""The Spec: what a dataset, a task and a policy must agree on. Plain data, no torch, no simulator.

`datasets` read a Spec off recorded arrays, `envs` read one off a simulator, `policy` carries one inside its
checkpoint. Two Specs are compared by `Spec.require_match`, which names the first key that differs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from flowleap.policy.core.errors import FlowleapError, require_whole, suggest
from flowleap.policy.core.registry import Option

ObsKind = Literal["lowdim", "rgb"]
ActionConvention = Literal["absolute", "delta"]


@dataclass(frozen=True, kw_only=True)
class Window:
    """How much a policy sees and does at a time; its defaults are those of every task."""

    n_obs_steps: Annotated[int, Option("To, observation frames that the policy sees", 1)] = 2
    horizon: Annotated[int, Option("H, actions that it predicts", 1)] = 16
    n_action_steps: Annotated[int, Option("Ta, actions executed before it is asked again", 1)] = 8


WINDOW = Window()


class SpecMismatch(FlowleapError):
    """Dataset, task and policy do not fit together; the message names the key."""


@dataclass(frozen=True)
class ObsKey:
    """One observation key: the shape of a single frame (no time axis), its dtype and how it is encoded."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    kind: ObsKind = "lowdim"

    @property
    def size(self) -> int:
        """Number of scalars in one frame."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Spec:
    """Observation keys, action, windowing and origin of a dataset, a task or a policy.

    Attributes:
        observations: key -> `ObsKey`, in the order in which low-dim keys are concatenated.
        action_dim: A, length of one action vector.
        n_obs_steps: To, observation frames the policy sees (the current one last).
        horizon: H, actions predicted per chunk; the first belongs to the current frame.
        n_action_steps: Ta <= H, actions executed before the policy is asked again.
        control_hz: actions per second; 0 when unknown.
        action_convention: `absolute` targets, or `delta` with respect to the current state.
        source: where the data came from (env id, kwargs, package versions, seeds). JSON values only.
    """

    observations: dict[str, ObsKey]
    action_dim: int
    n_obs_steps: int = 1
    horizon: int = 1
    n_action_steps: int = 1
    control_hz: float = 0.0
    action_convention: ActionConvention = "absolute"
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.observations:
            raise FlowleapError("a Spec needs at least one observation key")
        for key, obs in self.observations.items():
            if obs.kind not in get_args(ObsKind):
                raise FlowleapError(
                    f"observation '{key}': kind {obs.kind!r} is not one of {get_args(ObsKind)}"
                )
            if any(not isinstance(n, int) or n < 1 for n in obs.shape):
                raise FlowleapError(
                    f"observation '{key}': shape {obs.shape} must hold positive whole numbers"
                )
        for name in ("action_dim", "n_obs_steps", "horizon", "n_action_steps"):
            require_whole(f"Spec.{name}", getattr(self, name))
        if self.n_action_steps > self.horizon:
            raise FlowleapError(
                f"n_action_steps={self.n_action_steps} exceeds horizon={self.horizon}: "
                "a policy cannot execute more actions than it predicts"
            )
        if self.action_convention not in get_args(ActionConvention):
            raise FlowleapError(
                f"action_convention {self.action_convention!r} is not one of {get_args(ActionConvention)}"
            )

    def with_window(self, n_obs_steps: int, horizon: int, n_action_steps: int) -> Spec:
        """Return a copy with another To, H and Ta."""
        return replace(self, n_obs_steps=n_obs_steps, horizon=horizon, n_action_steps=n_action_steps)

    def require_match(self, other: Spec, mine: str, theirs: str) -> None:
        """Raise `SpecMismatch` unless `other` offers every key of `self` with equal shape, and equal actions.

        Extra keys in `other` are fine (they are not read); windowing and origin are not compared.
        `mine` and `theirs` say in the message what the two are ("checkpoint", "task pusht/keypoints", ...).
        """
        for key, obs in self.observations.items():
            if key not in other.observations:
                raise SpecMismatch(
                    f"{mine} needs observation '{key}' {obs.shape}, but {theirs} offers only "
                    f"{sorted(other.observations)}{suggest(key, other.observations)}"
                )
            has = other.observations[key]
            if tuple(has.shape) != tuple(obs.shape) or has.kind != obs.kind:
                raise SpecMismatch(
                    f"observation '{key}': {mine} has shape {tuple(obs.shape)} ({obs.kind}), "
                    f"{theirs} has {tuple(has.shape)} ({has.kind})"
                )
        if self.action_dim != other.action_dim:
            raise SpecMismatch(
                f"action: {mine} has {self.action_dim} dimensions, {theirs} has {other.action_dim}"
            )
        if self.action_convention != other.action_convention:
            raise SpecMismatch(
                f"action convention: {mine} uses {self.action_convention!r}, {theirs} "
                f"{other.action_convention!r}; `flowleap convert` changes data, by actions_as=... relative_to=KEY (the "
                "observed position that actions command), or corrects what they say, by action_convention=..."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready plain data."""
        data = asdict(self)
        for obs in data["observations"].values():
            obs["shape"] = list(obs["shape"])
        return data

    @classmethod
    def from_dict(cls, data: Any, where: str = "Spec") -> Spec:
        """Build a Spec from untrusted plain data; raise `FlowleapError` naming `where` and the bad field."""
        try:
            if not isinstance(data, Mapping):
                raise TypeError(f"expected an object, got {type(data).__name__}")
            unknown = set(data) - set(cls.__dataclass_fields__)
            if unknown:
                raise ValueError(f"unknown field(s) {sorted(unknown)}")
            observations = {
                str(key): ObsKey(
                    tuple(obs["shape"]), str(obs.get("dtype", "float32")), obs.get("kind", "lowdim")
                )
                for key, obs in data["observations"].items()
            }
            fields = {k: v for k, v in data.items() if k != "observations"}
            return cls(observations=observations, **fields)
        except KeyError as error:
            raise FlowleapError(f"{where}: field {error} is missing") from error
        except (TypeError, ValueError, AttributeError, FlowleapError) as error:
            raise FlowleapError(f"{where}: {error}") from error

    def to_json(self) -> str:
        """Return the Spec as a JSON string."""
        return json.dumps(self.to_dict(), indent=2)

    def summary(self) -> str:
        """One line for people: keys with shapes, action, To/H/Ta, rate."""
        obs = ", ".join(f"{key}{list(o.shape)}" for key, o in self.observations.items())
        rate = f"{self.control_hz:g} Hz" if self.control_hz else "rate unknown"
        return (
            f"obs {obs} | action [{self.action_dim}] {self.action_convention} | "
            f"To={self.n_obs_steps} H={self.horizon} Ta={self.n_action_steps} | {rate}"
        )


def read_json(
    file: Path, wanted: tuple[str, int], fields: Mapping[str, type], what: tuple[str, str], remedy: str
) -> dict[str, Any]:
    """Parse and check the untrusted JSON beside a model; raise `FlowleapError` naming the file and the field.

    Args:
        file: where it is.
        wanted: the values of `format` and `format_version`; `remedy` says what to do about another version.
        fields: name -> type of what must be there, too.
        what: it is, for messages, such as ("checkpoint", "a flowleap checkpoint").
    """
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FlowleapError(f"{file}: not readable as JSON ({error}); the {what[0]} is damaged") from error
    if not isinstance(manifest, dict) or manifest.get("format") != wanted[0]:
        raise FlowleapError(f"{file}: 'format' is not {wanted[0]!r}; this is not {what[1]}")
    found = manifest.get("format_version")
    if found != wanted[1]:
        raise FlowleapError(f"{file}: format version {found!r}, this flowleap reads {wanted[1]}; {remedy}")
    for name, kind in fields.items():
        if name not in manifest:
            raise FlowleapError(f"{file}: field '{name}' is missing")
        if type(manifest[name]) is not kind:
            raise FlowleapError(f"{file}: field '{name}' must be {kind.__name__}, got {manifest[name]!r:.80}")
    return manifest
