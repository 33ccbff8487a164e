"""Policy: normaliser + encoder + backbone under one objective; three verbs: loss, act, save/load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from flowleap.policy.checkpoint import read_policy, write_policy
from flowleap.policy.core.errors import FlowleapError, suggest
from flowleap.policy.core.inputs import InputCheck, input_advice
from flowleap.policy.core.registry import Option, Parameter, check_options, parameters_of
from flowleap.policy.core.spec import Spec
from flowleap.policy.flow.draws import Draw
from flowleap.policy.flow.flow_map import FlowMap, Prefix
from flowleap.policy.flow.objective import Objective
from flowleap.policy.flow.samplers import time_grid
from flowleap.policy.networks.build import build_backbone
from flowleap.policy.networks.encoders import build_encoder
from flowleap.policy.normalizer import ACTION, Normalizer

Batch = Mapping[str, Any]
PARTS = ("objective", "backbone", "encoder", "normalizer", "head_sigma", "prefix")
HEAD_SIGMA = Parameter(
    float,
    0.02,
    Option(
        "the network predicts the mean of N(m, sigma^2), see docs/math.md; 0: it predicts u itself", 0, 100
    ),
)

PREFIX = Parameter(
    int, 0, Option("train on up to so many actions of a chunk being given, for `continuity=prefix`", 0, 1000)
)
SINGLE = {"head_sigma": HEAD_SIGMA, "prefix": PREFIX}


def normalizer_modes(config: Any) -> dict[str, Any]:
    """Check the `normalizer` part of a config, all of it optional."""
    if not isinstance(config, Mapping):
        raise FlowleapError(f"normalizer takes the options 'obs', 'action' and 'floor', got {config!r}")
    return check_options("normalizer", parameters_of(Normalizer), config, "normalizer")


def _drops(net: nn.Module) -> str | None:
    """The first module of a network that drops at random in training; attention keeps its share in `dropout`."""
    for name, module in net.named_modules():
        attention = isinstance(module, nn.MultiheadAttention) and module.dropout > 0
        if attention or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0):
            return name
    return None


class Policy(nn.Module):
    """A one- or few-step robot policy.

    Args:
        spec: observation keys, action, To, H, Ta.
        config: plain data with `objective`, `backbone`, `encoder` (each a registry `name` and its options, or
            the name alone), `normalizer` (`obs` and `action` mode), `head_sigma` (see `FlowMap`) and `prefix`, the last
            three optional.

    Attributes:
        prefix: how many actions, at most, may be given to `chunk`; 0 for a policy that was not trained to go on.
        image_frames: how many of the To images or clouds, the latest ones, the encoder looks at.
        info: notes for people, stored in checkpoints (task, dataset, step, ...).
        inputs: what `act` does about observations that are not finite, or far outside of the range of training
            (`InputCheck.unusual`: warn, stop or ignore).
        checkpoint, weights: the directory it was loaded from and which weights of it, `ema` or `raw`; else None.

    Raises:
        FlowleapError: an unknown name, option or value; the message names it.
    """

    def __init__(self, spec: Spec, config: Mapping[str, Any]) -> None:
        super().__init__()
        for part in config:
            if part not in PARTS:
                raise FlowleapError(
                    f"policy config has no part {part!r}; it has {PARTS}{suggest(part, PARTS)}"
                )
        config = {key: {"name": part} if isinstance(part, str) else part for key, part in config.items()}
        for part in PARTS[:3]:
            if not isinstance(config.get(part), Mapping):
                raise FlowleapError(f"policy config: part '{part}' is missing or not an object")
        self.spec = spec
        self.info: dict[str, Any] = {}
        self.checkpoint: Path | None = None
        self.weights: str | None = None
        self.objective = Objective(config["objective"])
        self.normalizer = Normalizer(spec, **normalizer_modes(config.get("normalizer", {})))
        self.inputs = InputCheck(self.normalizer.range_of)
        self.encoder, encoder = build_encoder(config["encoder"], spec)
        self.image_frames: int = getattr(self.encoder, "frames", spec.n_obs_steps)
        cond_dim: int = self.encoder.dim  # type: ignore[assignment]
        given = {key: config[key] for key in SINGLE if key in config}
        single = check_options("policy", SINGLE, given, "policy")
        self.head_sigma: float = single["head_sigma"]
        self.prefix: int = single["prefix"]
        if self.prefix >= spec.horizon:
            raise FlowleapError(
                f"prefix={self.prefix} leaves nothing of a chunk of horizon={spec.horizon} to predict"
            )
        channels = spec.action_dim + bool(self.prefix)  # one more says which actions are given
        self.net, backbone = build_backbone(config["backbone"], channels, spec.horizon, cond_dim)
        if self.objective.options.get("derivative") == "difference" and (name := _drops(self.net)):
            raise FlowleapError(
                f"backbone.dropout > 0 ('{name}') needs objective.derivative=jvp: a finite difference would subtract "
                "two different dropout masks"
            )
        self.config: dict[str, Any] = {
            "objective": self.objective.config,
            "backbone": backbone,
            "encoder": encoder,
            "normalizer": self.normalizer.config,
            **single,
        }

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    def encode(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Raw observations {key: [B, To, *shape]} -> cond [B, C]; a missing or misshapen key is an error.

        Of images and points, the latest `image_frames` suffice, which are all that the encoder looks at.
        """
        normalized: dict[str, Tensor] = {}
        for key, known in self.spec.observations.items():
            if key not in obs:
                raise FlowleapError(f"observation '{key}' is missing; got {sorted(obs)}{suggest(key, obs)}")
            expected = (self.spec.n_obs_steps, *known.shape)
            enough = (self.image_frames, *known.shape) if known.dense else expected
            if tuple(obs[key].shape[1:]) not in (expected, enough):
                raise FlowleapError(
                    f"observation '{key}': expected [batch, {', '.join(map(str, expected))}], "
                    f"got {list(obs[key].shape)}{input_advice(known, obs[key].shape, str(obs[key].dtype))}"
                )
            if known.kind == "rgb" and obs[key].dtype != torch.uint8:
                raise FlowleapError(
                    f"observation '{key}': images must be uint8 in [0, 255], got {obs[key].dtype}"
                    f"{input_advice(known, obs[key].shape, str(obs[key].dtype))}"
                )
            if known.image:
                normalized[key] = obs[key]  # the encoder converts what is left of it after the crop
            else:
                normalized[key] = self.normalizer.normalize(key, obs[key].float())
        return self.encoder(normalized)

    def flow_map(
        self, obs: Mapping[str, Tensor], actions: Tensor | None = None, given: Tensor | None = None
    ) -> FlowMap:
        """The flow map conditioned on raw observations.

        Args:
            actions: clean, normalised chunks [B, H or fewer, A], of which the policy is given some.
            given: how many of each are, int64 [B]; at most `prefix`.
        """
        cond = self.encode(obs)
        if not self.prefix:
            return FlowMap(self.net, cond, self.head_sigma)
        horizon, chunk = self.spec.horizon, (len(cond), self.spec.horizon, self.spec.action_dim)
        if actions is None or given is None:
            actions, given = (
                cond.new_zeros(chunk),
                torch.zeros(len(cond), dtype=torch.int64, device=cond.device),
            )
        actions = nn.functional.pad(actions, (0, 0, 0, horizon - actions.shape[1]))
        known = torch.arange(horizon, device=cond.device)[None, :, None] < given[:, None, None]
        return FlowMap(self.net, cond, self.head_sigma, Prefix(actions, known))

    def draw(self, batch: int, generator: torch.Generator | None = None, progress: float = 0.0) -> Draw:
        """The randomness of one training batch (on the CPU); `progress` is the share of training done."""
        draw = self.objective.draw(batch, self.spec.horizon, self.spec.action_dim, generator, progress)
        if not self.prefix:
            return draw
        return replace(draw, prefix=torch.randint(0, self.prefix + 1, (batch,), generator=generator))

    def loss(
        self, batch: Batch, draw: Draw | None = None, teacher: Policy | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss, and the detached mean of each term, of {"obs": {key: [B,To,...]}, "action": [B,H,A]}.

        The batch is in real units. `teacher`, in eval mode and with this policy's normaliser, gives the targets of
        objectives that take them from elsewhere; it sees the observations as they are, and gets no gradient.
        """
        actions = self.normalizer.normalize(ACTION, batch["action"])
        draw = self.draw(len(actions)) if draw is None else draw
        draw = draw.to(actions.device)
        taught = None
        if teacher is not None:
            with torch.no_grad():
                taught = teacher.flow_map(batch["obs"], actions, draw.prefix)
        flow_map = self.flow_map(batch["obs"], actions, draw.prefix)
        return self.objective.loss(flow_map, actions, draw, taught)

    forward = loss  # so that DistributedDataParallel's hooks see the loss

    @torch.no_grad()
    def act(
        self,
        obs: Mapping[str, Tensor],
        noise: Tensor | None = None,
        steps: int | None = None,
        prefix: Tensor | None = None,
        whole: bool = False,
        previous: Tensor | None = None,
        warm_start: float = 0.0,
    ) -> Tensor:
        """Choose the actions to execute, [B, Ta, A] in real units: the beginning of the chunk.

        Training-time noise and dropout are always off.

        Args:
            obs: {key: [B, To, *shape]}, real units (images uint8), the current frame last. Images
                may also be as large as their camera takes them: they are cropped and resized as in training.
            noise, steps, prefix, previous, warm_start: see `chunk`.
            whole: return the whole chunk, [B, H, A].

        Raises:
            FlowleapError: an observation is missing, misshapen, NaN or infinite; unsupported `steps`.
        """
        obs = dict(obs)
        for key, known in self.spec.observations.items():
            if key not in obs:
                continue
            if not known.image:
                self.inputs(key, obs[key].detach().float().cpu().numpy())
            elif known.kind == "depth" or known.views:
                seen = np.ascontiguousarray(known.see(obs[key].detach().cpu().numpy()))
                obs[key] = torch.from_numpy(seen).to(obs[key].device)
        training = self.training
        if training:
            self.eval()
        try:
            chunk = self.chunk(obs, noise, steps, prefix, None, previous, warm_start)
            return chunk if whole else chunk[..., : self.spec.n_action_steps, :]
        finally:
            if training:
                self.train()

    def chunk(
        self,
        obs: Mapping[str, Tensor],
        noise: Tensor | None,
        steps: int | None,
        prefix: Tensor | None = None,
        given: Tensor | None = None,
        previous: Tensor | None = None,
        warm_start: float = 0.0,
    ) -> Tensor:
        """The whole predicted chunk [B, H, A] in real units.

        Args:
            obs: as `act` takes them; images as large as in training.
            noise: z ~ N(0, I) [B, H, A]; drawn here if `None`. [B, K, H, A]: K chunks [B, K, H, A] for each
                observation, which is encoded once.
            steps: NFE; `None` is the objective's default (1 for iSD).
            prefix: actions [B, P, A] in real units that are decided already, the first one for the current frame.
                The chunk repeats them and goes on from there.
            given: how many of them count, int64 [B]; all by default, `Policy.prefix` at most.
            previous: what the chunk before holds for the same steps, [B, H, A] in real units; None at the first.
            warm_start: w in [0, 1): the chunk starts from `w previous + (1 - w) z` at t = 1 - w (arXiv 2603.12480).
        """
        steps = self.objective.check_steps(steps)
        if prefix is not None:
            if not self.prefix:
                raise FlowleapError(
                    "this policy was not trained to go on from given actions: train it with prefix=N"
                )
            if prefix.shape[1] > self.prefix:
                raise FlowleapError(
                    f"this policy goes on from {self.prefix} actions at most, got {prefix.shape[1]}"
                )
            if given is None:
                given = torch.full((len(prefix),), prefix.shape[1], device=prefix.device)
            prefix = self.normalizer.normalize(ACTION, prefix)
        flow_map = self.flow_map(obs, prefix, given)
        start = 1.0
        if previous is not None and warm_start:
            if not self.objective.any_start:
                raise FlowleapError(
                    f"warm_start: objective '{self.objective.name}' starts from pure noise only"
                )
            before, start = self.normalizer.normalize(ACTION, previous), 1.0 - warm_start
            noise = torch.randn_like(before) if noise is None else noise
            noise = start * noise + warm_start * (before[:, None] if noise.ndim == 4 else before)
        if noise is not None and noise.ndim == 4 and self.objective.draws(steps) == 1:
            many = noise.shape[1]
            rows = torch.arange(len(noise), device=noise.device)[:, None].expand(-1, many).flatten()
            flat = self._sample(flow_map[rows], noise.flatten(0, 1), steps, start)
            return flat.unflatten(0, (len(noise), many))
        return self._sample(flow_map, noise, steps, start)

    def _sample(self, flow_map: FlowMap, noise: Tensor | None, steps: int, start: float) -> Tensor:
        shape = (len(flow_map.cond), self.spec.horizon, self.spec.action_dim)
        if noise is None:
            noise = torch.randn(shape, device=flow_map.cond.device)
        elif tuple(noise.shape) not in (shape, (shape[0], self.objective.draws(steps), *shape[1:])):
            raise FlowleapError(f"noise: expected {list(shape)} = [batch, H, A], got {list(noise.shape)}")
        grid = start * time_grid(steps, device=noise.device)
        chunk = self.objective.sample(flow_map, noise, grid)
        if flow_map.prefix is not None:
            chunk = torch.where(flow_map.prefix.known, flow_map.prefix.actions, chunk)
        return self.normalizer.unnormalize(ACTION, chunk)

    def save(
        self, path: str | Path, ema: Policy | None = None, info: Mapping[str, Any] | None = None
    ) -> None:
        """Write a checkpoint directory (`model.safetensors`, `policy.json`), atomically.

        Args:
            path: the directory; replaced if it exists.
            ema: the averaged policy, whose weights are stored beside the raw ones.
            info: JSON data for people (steps, dataset, ...); `None` is the policy's own.
        """
        states = {"raw": self.state_dict(), "ema": (ema or self).state_dict()}
        write_policy(Path(path), states, self.spec, self.config, self.info if info is None else info)

    @classmethod
    def load(cls, path: str | Path, weights: str = "ema", device: str | torch.device = "cpu") -> Policy:
        """Rebuild a policy from a checkpoint (or run) directory alone, in eval mode.

        Untrusted checkpoints are safe to load: no pickle, no import paths, sizes checked before memory is taken.

        Raises:
            FlowleapError: missing, truncated, tampered or incompatible files; the message names the culprit.
        """
        stored = read_policy(Path(path), weights)
        encoder = stored.config.get("encoder")
        if isinstance(encoder, Mapping) and encoder.get("weights") is not None:
            raise FlowleapError(
                f"{stored.path}: policy.json names a file of weights: a checkpoint reads only its own"
            )
        config = {"head_sigma": 0.0, **stored.config}  # what it was before checkpoints named it
        try:
            with torch.device("meta"):  # shapes first: a tampered size must not allocate
                policy = cls(stored.spec, config)
        except (TypeError, ValueError, AttributeError, RuntimeError, OverflowError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise FlowleapError(f"{stored.path}: policy.json describes no valid policy ({reason})") from error
        expected = policy.state_dict()
        for name in sorted(expected.keys() | stored.state.keys()):
            if name not in stored.state or name not in expected:
                where = "the weights file lacks" if name in expected else "policy.json does not describe"
                raise FlowleapError(
                    f"{stored.path}: {where} tensor '{name}'; the two files do not fit together"
                )
            have, want = stored.state[name], expected[name]
            if have.shape != want.shape or have.dtype != want.dtype:
                raise FlowleapError(
                    f"{stored.path}: tensor '{name}' is {have.dtype} {list(have.shape)}, but policy.json "
                    f"describes {want.dtype} {list(want.shape)}; the two files do not fit together"
                )
            if not torch.isfinite(have).all():
                raise FlowleapError(f"{stored.path}: tensor '{name}' holds NaN or infinite values")
        # Copies, because tensors mapped from a file are not aligned: kernels would round differently, and the file
        # may change under a running policy.
        policy.load_state_dict({name: x.clone() for name, x in stored.state.items()}, assign=True)
        policy.info, policy.checkpoint, policy.weights = stored.info, stored.path, weights
        return policy.to(device).eval()
