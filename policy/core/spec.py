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

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError, require_whole, suggest
from flowleap.policy.core.limits import ActionLimits
from flowleap.policy.core.registry import Option
from flowleap.policy.core.views import View, views_from

ObsKind = Literal["lowdim", "rgb", "depth", "points"]
_CHANNELS = (3, 6)  # of a point: xyz, or xyz and rgb
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
    """One observation key: the shape of a single frame (no time axis), its dtype and how it is encoded.

    Attributes:
        kind: `lowdim` numbers; `rgb`, images uint8 [H, W, 3]; `depth`, images float32 [H, W, 1], 0 where nothing was
            measured; `points`, a cloud of points in no order, float32 [N, 3] (xyz) or [N, 6] (xyz and rgb).
        unit: of depth, `m` or `mm`.
        range: of depth, in its unit: what lies beyond looks to a policy like its end.
        views: what was made of a camera's frames, one after the other, until they had this shape.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    kind: ObsKind = "lowdim"
    unit: str = ""
    range: tuple[float, float] | None = None
    views: tuple[View, ...] = ()

    @property
    def size(self) -> int:
        """Number of scalars in one frame."""
        return math.prod(self.shape)

    @property
    def image(self) -> bool:
        """Whether it is one."""
        return self.kind in ("rgb", "depth")

    @property
    def dense(self) -> bool:
        """Whether it is an image or a point cloud: many numbers a frame, which are gathered frame by frame."""
        return self.kind != "lowdim"

    @property
    def statistics_shape(self) -> tuple[int, ...]:
        """Shape of its normalisation: every number has its own, but all points of a cloud share that of a channel."""
        return tuple(self.shape[-1:] if self.kind == "points" else self.shape)

    @property
    def camera_shape(self) -> tuple[int, ...]:
        """Shape of a frame before its views."""
        return (*self.views[0].size, self.shape[-1]) if self.views else tuple(self.shape)

    def see(self, images: NDArray[Any]) -> NDArray[Any]:
        """A camera's frames [..., *camera_shape] as they are trained on: through the views, depth without NaN.

        Frames that are so already, and those of other shapes, stay as they are.
        """
        if self.kind == "depth" and images.dtype.kind == "f":
            images = np.nan_to_num(images, nan=0.0, posinf=0.0, neginf=0.0)
        if tuple(images.shape[-3:]) == self.camera_shape:
            for view in self.views:
                images = view(images)
        return images

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready plain data; what only images have is left out elsewhere."""
        data: dict[str, Any] = {"shape": list(self.shape), "dtype": self.dtype, "kind": self.kind}
        if self.kind == "depth":
            data |= {"unit": self.unit, "range": list(self.range or ())}
        if self.views:
            data["views"] = [{name: list(sides) for name, sides in vars(view).items()} for view in self.views]
        return data

    @classmethod
    def from_dict(cls, data: Any) -> ObsKey:
        """Build from untrusted plain data; raise `FlowleapError`, `TypeError`, `ValueError` or `KeyError`."""
        key = cls(
            tuple(data["shape"]),
            str(data.get("dtype", "float32")),
            data.get("kind", "lowdim"),
            str(data.get("unit", "")),
            tuple(map(float, data["range"])) if "range" in data else None,  # type: ignore[arg-type]
            views_from(data.get("views", ())),
        )
        key.check()
        return key

    def summary(self) -> str:
        """Shape, range of depth, and the camera's own size, for people."""
        depth = f" {self.range[0]:.4g} to {self.range[1]:.4g} {self.unit}" if self.range else ""
        camera = f" of {list(self.camera_shape[:2])}" if self.views else ""
        return f"{list(self.shape)}{depth}{camera}"

    def check(self) -> None:
        """Raise `FlowleapError` where kind, shape, range and views do not fit together."""
        if self.kind not in get_args(ObsKind):
            raise FlowleapError(f"kind {self.kind!r} is not one of {get_args(ObsKind)}")
        if any(not isinstance(n, int) or n < 1 for n in self.shape):
            raise FlowleapError(f"shape {self.shape} must hold positive whole numbers")
        if self.kind == "depth":
            low, high = self.range or (0.0, 0.0)
            if len(self.shape) != 3 or self.shape[2] != 1 or not 0 <= low < high < math.inf:
                wrong = f"shape {self.shape} and range {self.range}"
                raise FlowleapError(f"{wrong} are not those of depth: (height, width, 1) and (near, far)")
        if self.kind == "points":
            if len(self.shape) != 2 or self.shape[1] not in _CHANNELS:
                raise FlowleapError(f"shape {self.shape} is not that of points: (number, 3) or (number, 6)")
            if np.dtype(self.dtype).kind != "f":
                raise FlowleapError(f"points must be floats, not {self.dtype}")
        if self.views and not self.image:
            raise FlowleapError("only images have views")
        sizes = [view.size for view in self.views[1:]] + [tuple(self.shape[:2])]
        if any(view.resize != size for view, size in zip(self.views, sizes, strict=False)):
            raise FlowleapError(f"its views do not lead to images of shape {self.shape}")


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
        limits: how far and how fast the demonstrated actions went; None where nobody looked.
        source: where the data came from (env id, kwargs, package versions, seeds). JSON values only.
    """

    observations: dict[str, ObsKey]
    action_dim: int
    n_obs_steps: int = 1
    horizon: int = 1
    n_action_steps: int = 1
    control_hz: float = 0.0
    action_convention: ActionConvention = "absolute"
    limits: ActionLimits | None = None
    source: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.observations:
            raise FlowleapError("a Spec needs at least one observation key")
        for key, obs in self.observations.items():
            try:
                obs.check()
            except FlowleapError as error:
                raise FlowleapError(f"observation '{key}': {error}") from error
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
        """Raise `SpecMismatch` unless `other` offers every key of `self` with equal shape and unit, and equal actions.

        An image may also be offered as the camera takes it, before its views, and the other way round. Extra keys in
        `other` are fine (they are not read); windowing and origin are not compared.
        `mine` and `theirs` say in the message what the two are ("checkpoint", "task pusht/keypoints", ...).
        """
        for key, obs in self.observations.items():
            if key not in other.observations:
                raise SpecMismatch(
                    f"{mine} needs observation '{key}' {obs.shape}, but {theirs} offers only "
                    f"{sorted(other.observations)}{suggest(key, other.observations)}"
                )
            has = other.observations[key]
            known = {tuple(obs.shape), obs.camera_shape} & {tuple(has.shape), has.camera_shape}
            if not known or has.kind != obs.kind:
                raise SpecMismatch(
                    f"observation '{key}': {mine} has shape {tuple(obs.shape)} ({obs.kind}), "
                    f"{theirs} has {tuple(has.shape)} ({has.kind})"
                )
            if has.unit != obs.unit:
                raise SpecMismatch(
                    f"observation '{key}': {mine} takes depth in {obs.unit}, {theirs} gives it in {has.unit}"
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
        rest = replace(self, observations={"": ObsKey(())})
        data = asdict(rest) | {"observations": {key: obs.to_dict() for key, obs in self.observations.items()}}
        if self.limits is None:  # unknown to flowleap 0.1
            del data["limits"]
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
            observations = {str(key): ObsKey.from_dict(obs) for key, obs in data["observations"].items()}
            rest = {k: v for k, v in data.items() if k not in ("observations", "limits")}
            if data.get("limits") is not None:
                rest["limits"] = ActionLimits.from_dict(data["limits"], rest["action_dim"])
            return cls(observations=observations, **rest)
        except KeyError as error:
            raise FlowleapError(f"{where}: field {error} is missing") from error
        except (TypeError, ValueError, AttributeError, FlowleapError) as error:
            raise FlowleapError(f"{where}: {error}") from error

    def to_json(self) -> str:
        """Return the Spec as a JSON string."""
        return json.dumps(self.to_dict(), indent=2)

    def summary(self) -> str:
        """One line for people: keys with shapes, action, To/H/Ta, rate."""
        obs = ", ".join(f"{key}{o.summary()}" for key, o in self.observations.items())
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
