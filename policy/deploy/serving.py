"""What is served: a policy, the names of its observations, and a session of requests for each connection.

No network here: a session takes one message and gives its reply, `flowleap.policy.deploy.server` carries both.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError, require_int, suggest
from flowleap.policy.core.inputs import input_advice
from flowleap.policy.core.noise import episode_noise
from flowleap.policy.core.spec import Spec
from flowleap.policy.core.versions import flowleap_version
from flowleap.policy.deploy import wire

History = Literal["client", "server", "repeat"]
"""Who holds the last To frames: the client, who sends them all; the server, who is called at every control step; or
nobody, and the current frame stands for all of them."""

PROTOCOL = 1
_RESET, _SEED, _INFER = "reset", "seed", "infer"
_ABOUT = {
    "client": "every request holds the last n_obs_steps frames of each observation, the current one last",
    "server": "a request at every control step, with the current frame; the server keeps the frames before it",
    "repeat": "a request holds the current frame, at any rate; it is repeated n_obs_steps times",
}


class Served(Protocol):
    """A policy as the server needs it: numpy in, numpy out, real units."""

    spec: Spec

    def chunk(self, obs: Mapping[str, NDArray[Any]], noise: NDArray[Any]) -> NDArray[Any]:
        """`obs` {key: [1, To, *shape]}, `noise` float32 [1, H, A] -> actions [1, N, A]."""
        ...


@dataclass(frozen=True)
class Service:
    """A policy, and how it is asked.

    Args:
        policy: what acts.
        actions: N, how many actions of a chunk it returns.
        history: who holds the observation history.
        keys: the client's name of an observation -> the policy's. Observations that are not named go by their own name.
        seed: of the first episode of every connection, the next ones have the numbers after it, as in `flowleap eval`;
            None draws other noise each time. A request that begins an episode may name its own.
        stale_after: with `history="server"`, control steps after which the frame before is too old to be stacked with
            the current one, which is repeated instead; None never, for simulators that are slower than real time.
        extra: more entries of the metadata, such as `reset_pose`.

    Attributes:
        names: the policy's name of an observation -> the client's.

    Raises:
        FlowleapError: a name is none of the policy's or stands for two, or an option is none of its values.
    """

    policy: Served
    actions: int
    history: History = "repeat"
    keys: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    stale_after: float | None = 2.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    names: dict[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.history not in get_args(History):
            raise FlowleapError(f"history={self.history!r} is none of {', '.join(get_args(History))}")
        known = self.spec.observations
        for theirs, ours in self.keys.items():
            if ours not in known:
                raise FlowleapError(
                    f"keys: '{theirs}' stands for '{ours}', but the policy observes {sorted(known)}"
                    f"{suggest(ours, known)}"
                )
        names = {ours: theirs for theirs, ours in self.keys.items()}
        if len(names) < len(self.keys):
            raise FlowleapError(f"keys: two names stand for one observation in {dict(self.keys)}")
        if self.seed is not None:
            require_int("seed", self.seed, 0, 2**63 - 1)
        if self.stale_after is not None and not self.stale_after > 0:
            raise FlowleapError(f"stale_after={self.stale_after} must be a number above 0, or null")
        object.__setattr__(self, "names", {key: names.get(key, key) for key in known})
        if len(set(self.names.values())) < len(known):
            raise FlowleapError(f"keys: {dict(self.keys)} gives two observations one name")

    @property
    def spec(self) -> Spec:
        """Of the policy."""
        return self.policy.spec

    def metadata(self) -> dict[str, Any]:
        """What a client is told when it connects."""
        spec = self.spec
        frames = [spec.n_obs_steps] if self.history == "client" else []
        observations = {
            self.names[key]: {
                "shape": [*frames, *known.camera_shape],
                "dtype": "uint8" if known.kind == "rgb" else "float32",
                "kind": known.kind,
            }
            | ({"unit": known.unit} if known.unit else {})
            for key, known in spec.observations.items()
        }
        return {
            **self.extra,
            "server": f"flowleap {flowleap_version()}",
            "protocol": PROTOCOL,
            "history": self.history,
            "history_means": _ABOUT[self.history],
            "observations": observations,
            "n_obs_steps": spec.n_obs_steps,
            "action_horizon": self.actions,
            "n_action_steps": spec.n_action_steps,
            "action_dim": spec.action_dim,
            "action_convention": spec.action_convention,
            "control_hz": spec.control_hz,
            "seed": self.seed,
        }


class Session:
    """The requests of one connection, one after the other: its episodes, their history and their noise.

    Attributes:
        episodes: so far, this one included once it has an observation.
        restarts: how often a history was too old to go on with.
        seconds: that the last request took.
        infer_seconds: of its inference; None where there was none.
        infer_cpu: seconds of CPU of all inferences, in the thread that asked for them.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.episodes, self.restarts = 0, 0
        self.seconds = 0.0
        self.infer_seconds: float | None = None
        self.infer_cpu = 0.0
        spec = service.spec
        self._controls = {name for name in (_RESET, _SEED, _INFER) if name not in service.names.values()}
        axes = (spec.n_obs_steps,) if service.history == "client" else ()
        # What may be asked of each request is made ready once.
        self._wanted = [
            (key, theirs, {(*axes, *shape) for shape in (known.shape, known.camera_shape)})
            for key, theirs in service.names.items()
            for known in [spec.observations[key]]
        ]
        self._frames: deque[dict[str, NDArray[Any]]] = deque(maxlen=spec.n_obs_steps)
        self._last = 0.0
        self._begin(service.seed)

    def answer(self, frame: bytes, now: float) -> dict[str, Any]:
        """Answer a request.

        Args:
            frame: the message.
            now: when it arrived, s.

        Returns:
            {"actions": float32 [N, A], in real units, the first one for the current frame}; without actions where
            none were asked for.

        Raises:
            FlowleapError: it is not understood, or no action is chosen from it. The session goes on; a history that
                the server keeps begins again, as one of its frames is missing.
        """
        self.infer_seconds = None
        try:
            return self._answer(wire.decode(frame), now)
        except FlowleapError:
            self._frames.clear()
            raise

    def _answer(self, request: Mapping[str, Any], now: float) -> dict[str, Any]:
        reset = self._flag(request, _RESET, False)
        infer = self._flag(request, _INFER, True)
        seed = self._seed(request) if reset or self._fresh else None
        if reset and not any(theirs in request for theirs in self.service.names.values()):
            self._restart(seed)
            return {}
        obs = self._observed(request)
        if reset or seed is not None:
            self._restart(seed)
        if self.service.history == "server":
            if not infer:
                self._require_finite(obs)
            self._keep(obs, now)
            if not infer:
                return {}
        try:
            return {"actions": self._act(self._stacked(obs))}
        except FlowleapError:
            # The policy has its own name of what it refuses.
            self._require_finite(obs)
            raise

    def _begin(self, seed: int | None) -> None:
        self._noise: NDArray[Any] | None = None
        self._rng = np.random.default_rng() if seed is None else episode_noise(seed)
        self._fresh = True
        self._frames.clear()

    def _restart(self, seed: int | None) -> None:
        """Begin an episode; where none was asked for actions yet, it is the first."""
        first = self.service.seed
        self._begin(seed if seed is not None else None if first is None else first + self.episodes)

    def _count(self) -> None:
        self.episodes += self._fresh
        self._fresh = False

    def _flag(self, request: Mapping[str, Any], name: str, default: bool) -> bool:
        if name not in request or name not in self._controls:
            return default
        value = wire.array(name, request[name])
        if value.size != 1:
            raise wire.WireError(f"'{name}' must be true or false, got {list(value.shape)}")
        return bool(value.item())

    def _seed(self, request: Mapping[str, Any]) -> int | None:
        if _SEED not in request or _SEED not in self._controls:
            return None
        value = wire.array(_SEED, request[_SEED])
        if value.size != 1 or value.dtype.kind not in "iu" or value.item() < 0:
            raise wire.WireError(f"'{_SEED}' must be a whole number of 0 or more")
        return int(value.item())

    def _observed(self, request: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """The policy's observations in a request, each of the shape that the history asks for."""
        obs: dict[str, NDArray[Any]] = {}
        for key, theirs, wanted in self._wanted:
            if theirs not in request:
                few = sorted(request)[:20]
                raise FlowleapError(f"observation '{theirs}' is missing; got {few}{suggest(theirs, few)}")
            obs[key] = value = wire.array(theirs, request[theirs])
            if value.shape not in wanted:
                history = self.service.history
                known, shapes = self.service.spec.observations[key], map(list, sorted(wanted))
                raise FlowleapError(
                    f"observation '{theirs}': got {list(value.shape)}, but history={history} ({_ABOUT[history]}) takes "
                    f"{' or '.join(map(str, shapes))}{input_advice(known, value.shape, str(value.dtype))}"
                )
        return obs

    def _require_finite(self, obs: Mapping[str, NDArray[Any]]) -> None:
        for key, value in obs.items():
            if not self.service.spec.observations[key].image and not np.isfinite(value).all():
                raise FlowleapError(
                    f"observation '{self.service.names[key]}' holds NaN or infinity: no action is chosen from it; "
                    "check the sensor"
                )

    def _keep(self, obs: dict[str, NDArray[Any]], now: float) -> None:
        """Add a frame to the history; frames of another rate than training's are never stacked."""
        service = self.service
        hz, stale = service.spec.control_hz, service.stale_after
        if self._frames and hz and stale is not None and now - self._last > stale / hz:
            self._frames.clear()
            self.restarts += 1
        self._last = now
        self._count()
        # Of one size, and no larger than the policy sees: clients may send either.
        known = service.spec.observations
        self._frames.append(
            {key: known[key].see(value) if known[key].image else value for key, value in obs.items()}
        )

    def _stacked(self, obs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Observations [1, To, *shape]; a history that is too short begins with its first frame, as in training."""
        if self.service.history == "client":
            return {key: value[None] for key, value in obs.items()}
        steps = self.service.spec.n_obs_steps
        frames = list(self._frames) if self.service.history == "server" else [obs]
        frames = [frames[0]] * (steps - len(frames)) + frames
        return {key: np.stack([frame[key] for frame in frames])[None] for key in obs}

    def _act(self, obs: dict[str, NDArray[Any]]) -> NDArray[Any]:
        spec = self.service.spec
        # Kept until it led to actions, so that a request that is refused does not change those of the next.
        if self._noise is None:
            self._noise = self._rng.standard_normal((1, spec.horizon, spec.action_dim), dtype=np.float32)
        self._count()
        start, cpu = time.perf_counter(), time.thread_time()
        chunk = np.asarray(self.service.policy.chunk(obs, self._noise))
        self.infer_cpu += time.thread_time() - cpu
        self.infer_seconds = time.perf_counter() - start
        if chunk.shape != (1, self.service.actions, spec.action_dim) or not np.isfinite(chunk).all():
            raise FlowleapError(
                "the policy returned NaN, infinite or misshapen actions: check its weights and its normaliser"
            )
        self._noise = None
        return np.ascontiguousarray(chunk[0], np.float32)
