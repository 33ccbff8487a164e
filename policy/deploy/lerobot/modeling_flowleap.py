"""The policy type `flowleap`: an exported folder, or a torch policy to be trained, behind LeRobot's methods."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from flowleap.lerobot.configuration_flowleap import FlowleapConfig
from flowleap.lerobot.features import ACTION, check_names, default_names, input_features, spec_of, split
from flowleap.lerobot.statistics import columns_of
from flowleap.policy import checkpoint
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.noise import episode_noise
from flowleap.policy.core.spec import Spec
from flowleap.policy.deploy import runtime
from flowleap.policy.deploy.runtime import ExportedPolicy
from flowleap.policy.policy import Policy
from flowleap.policy.training.averaging import averaged, update_average


class FlowleapPolicy(PreTrainedPolicy):
    """A flowleap policy as lerobot's programs call it. Observations and actions are in real units.

    Made by `from_pretrained`, of an exported folder or of a checkpoint; or new, from the features and statistics of a
    dataset, to be trained.

    Attributes:
        exported: the export that acts, or None.
        policy, average: what is trained, and the average of its weights, which acts; None for an export.
        spec: the policy's.
    """

    config_class = FlowleapConfig
    name = "flowleap"

    def __init__(
        self,
        config: FlowleapConfig,
        dataset_stats: Mapping[str, Mapping[str, Any]] | None = None,
        dataset_meta: Any = None,
        *,
        backend: ExportedPolicy | tuple[Policy, Policy] | None = None,
        folder: Path | None = None,
        **_: Any,
    ) -> None:
        """`backend`, which `from_pretrained` gives, is an export, or the raw and the averaged policy of a checkpoint.

        Raises:
            FlowleapError: observations and names do not fit, or a new policy has no dataset to be made from.
        """
        super().__init__(config)
        self.exported: ExportedPolicy | None = None
        self.policy: Policy | None = None
        self.average: AveragedModel | None = None
        self._folder = folder
        if isinstance(backend, ExportedPolicy):
            self.exported = backend
            self.spec = backend.spec
        else:
            raw, mean = backend or (_new_policy(config, dataset_stats, dataset_meta), None)
            self.policy, self.spec = raw, raw.spec
            self.average = averaged(mean or raw, config.ema_decay).requires_grad_(False)
            # An average that has counted nothing is replaced by the first weights it is given.
            self.average.n_averaged.fill_(int(raw.info.get("step", 0)))
        _describe(config, self.spec)
        self._clip = None if config.clip is None else torch.tensor(config.clip)
        if self._clip is not None and self._clip.shape != (2, self.spec.action_dim):
            raise FlowleapError(
                f"clip must be two lists of {self.spec.action_dim} numbers, got {config.clip}"
            )
        config.validate_features()
        self._episodes = 0
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **kwargs: Any,
    ) -> FlowleapPolicy:
        """Open an exported folder or a checkpoint, with LeRobot's files beside it, here or on the Hub.

        Nothing in it is trusted; no code from it runs.

        Raises:
            FlowleapError: it is neither, or damaged.
        """
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            fetched: Any = snapshot_download(
                str(pretrained_name_or_path),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
            )
            folder = Path(fetched)
        if config is None:
            config = PreTrainedConfig.from_pretrained(folder)
        if not isinstance(config, FlowleapConfig):
            raise FlowleapError(
                f"{folder}: config.json is of the policy type '{config.type}', not 'flowleap'"
            )
        backend: ExportedPolicy | tuple[Policy, Policy]
        if (folder / runtime.MANIFEST).is_file():
            unusual: Any = config.unusual
            backend = ExportedPolicy.load(folder, threads=config.threads, unusual=unusual)
        elif (folder / checkpoint.MANIFEST).is_file():
            backend = (Policy.load(folder, "raw"), Policy.load(folder, "ema"))
        else:
            raise FlowleapError(
                f"{folder} holds neither {runtime.MANIFEST} nor {checkpoint.MANIFEST}: make it with `flowleap export "
                "checkpoint=RUN lerobot=true` or lerobot-train"
            )
        return cls(config, backend=backend, folder=folder, **kwargs).to(config.device).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write `config.json` and an exported folder's files, or a checkpoint's, which `flowleap export` reads too."""
        self.config._save_pretrained(save_directory)
        if self.exported is not None:
            assert self._folder is not None
            for name in (runtime.MODEL, runtime.MANIFEST):
                if not (save_directory / name).exists():
                    shutil.copyfile(self._folder / name, save_directory / name)
            return
        assert self.policy is not None
        state = self.state_dict() if state_dict is None else state_dict
        parts = {"raw": "policy.", "ema": "average.module."}
        states = {
            kind: {name.removeprefix(part): x for name, x in state.items() if name.startswith(part)}
            for kind, part in parts.items()
        }
        made = save_directory / ".flowleap"
        info = {**self.policy.info, "step": self._step()}
        checkpoint.write_policy(made, states, self.spec, self.policy.config, info)
        for file in (checkpoint.WEIGHTS, checkpoint.MANIFEST):
            os.replace(made / file, save_directory / file)
        made.rmdir()

    def _step(self) -> int:
        return int(self.average.n_averaged) if self.average is not None else 0

    # Acting.

    def reset(self) -> None:
        """Begin an episode: the next frame given to `select_action` is its first."""
        generators = getattr(self, "_generators", [])
        self._episodes += len(generators)
        self._generators: list[np.random.Generator] = []
        self._frames: deque[dict[str, Tensor]] = deque(maxlen=self.spec.n_obs_steps)
        self._queue: deque[Tensor] = deque()
        self._plan: np.ndarray | None = None

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """The action [B, A] for the frame in `batch`, one control step after the one before.

        Frames are kept, the first of an episode repeated To times; every `n_action_steps` calls, a chunk is computed.
        """
        frame = split(self.spec, self.config.names, batch)
        while len(self._frames) < self.spec.n_obs_steps - 1:
            self._frames.append(frame)
        self._frames.append(frame)
        if not self._queue:
            seen = {key: torch.stack([x[key] for x in self._frames], dim=1) for key in frame}
            chunk = self._chunk(seen, noise)
            self._queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Tensor],
        noise: Tensor | None = None,
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """All actions [B, H, A] of a chunk, the first one for the current frame.

        Args:
            batch: observations [B, To, ...], the current frame last; or the current frame alone [B, ...], which is
                repeated To times. Frames of earlier calls are not used: calls are a chunk apart, and a policy that
                takes such frames for neighbours acts badly.
            noise: z ~ N(0, I) [B, H, A]; drawn here if None.
            inference_delay: actions that will be executed until the chunk is there. A policy trained with `prefix`
                goes on from them; others ignore it.
            prev_chunk_left_over: what is left [T, A] of the chunk that runs, as lerobot's RTC mode gives it.
        """
        seen = split(self.spec, self.config.names, batch)
        for key, known in self.spec.observations.items():
            if seen[key].ndim == 1 + len(known.shape):
                steps = (1, self.spec.n_obs_steps, *(1 for _ in known.shape))
                seen[key] = seen[key].unsqueeze(1).repeat(steps)
        prefix = self._prefix(inference_delay, prev_chunk_left_over)
        return self._chunk(seen, noise, prefix)

    def supports_rtc(self) -> bool:
        """Whether lerobot's RTC mode may drive it: chunks are computed while the last one runs."""
        return True

    def _prefix(self, delay: int | None, left_over: Tensor | None) -> np.ndarray | None:
        """The actions [1, P, A] of the running chunk that are executed until the next one is there.

        The first one is that for the frame that was observed. None where there are none, or the policy takes none.

        lerobot asks for a chunk after it has sent the action for that frame, so what is left begins one later; and it
        pads what is left with zeros. Both are made good by the chunk that was handed out.
        """
        longest = min(delay or 0, getattr(self.exported, "prefix", 0))
        if not longest or left_over is None or not len(left_over) or self._plan is None:
            return None
        rows = np.flatnonzero((self._plan == left_over[0].cpu().numpy()).all(axis=1))
        if not len(rows):
            return None
        first = max(int(rows[0]) - 1, 0)
        return self._plan[None, first : first + longest]

    def _chunk(self, seen: dict[str, Tensor], noise: Tensor | None, prefix: Any = None) -> Tensor:
        """Actions [B, N, A] for observations [B, To, *shape]."""
        batch = len(next(iter(seen.values())))
        device = next(iter(seen.values())).device
        drawn = noise.cpu().numpy() if noise is not None else self._noise(batch)
        if self.exported is not None:
            arrays = {key: x.cpu().numpy() for key, x in seen.items()}
            # One sample at a time, as on a robot: what a sample gets does not depend on what else is in the batch.
            more = {} if prefix is None else {"prefix": prefix}
            rows = [
                self.exported.chunk(
                    {key: x[i : i + 1] for key, x in arrays.items()},
                    None if drawn is None else drawn[i : i + 1],
                    **more,
                )
                for i in range(batch)
            ]
            chunk = torch.from_numpy(np.concatenate(rows)).to(device)
        else:
            assert self.average is not None
            policy: Any = self.average.module
            for key, known in self.spec.observations.items():
                if known.kind == "lowdim":
                    policy.inputs(key, seen[key].float().cpu().numpy())
                elif known.views or known.kind == "depth":
                    seen[key] = torch.from_numpy(known.see(seen[key].cpu().numpy())).to(device)
            given = None if drawn is None else torch.from_numpy(drawn).to(device)
            chunk = policy.eval().chunk(seen, given, self.config.nfe)
        if self._clip is not None:
            chunk = torch.clamp(chunk, *self._clip.to(chunk))
        self._plan = chunk[0].cpu().numpy()
        return chunk

    def _noise(self, batch: int) -> np.ndarray | None:
        """Noise [B, H, A] of the next chunk of these episodes; None if no seed was given."""
        if self.config.noise_seed is None:
            return None
        if len(self._generators) != batch:
            first = self.config.noise_seed + self._episodes
            self._generators = [episode_noise(first + i) for i in range(batch)]
        shape = (self.spec.horizon, self.spec.action_dim)
        return np.stack([g.standard_normal(shape, dtype=np.float32) for g in self._generators])

    # Training.

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, dict[str, float]]:
        """Loss of {observations [B, To, ...], action [B, H, A]}, and its terms."""
        policy = self._trainable()
        if reduction != "mean":
            raise FlowleapError(
                "weights of single samples (sample_weighting) are not supported by this policy"
            )
        seen = split(self.spec, self.config.names, batch)
        for key, known in self.spec.observations.items():
            # LeRobotDataset leaves the axis of time out where it has one frame.
            if seen[key].ndim == 1 + len(known.shape):
                seen[key] = seen[key].unsqueeze(1)
        actions = batch[ACTION]
        if actions.ndim == 2 and self.spec.action_dim == 1:
            actions = actions[..., None]
        loss, terms = policy.loss({"obs": seen, "action": actions})
        return loss, {name: float(value) for name, value in terms.items()}

    def get_optim_params(self) -> Any:
        """The parameters that are trained; the average's are not among them."""
        return self._trainable().parameters()

    def update(self) -> None:
        """Take the weights into the average; lerobot-train calls this after each step."""
        update_average(self.average, self._trainable())  # type: ignore[arg-type]

    def _trainable(self) -> Policy:
        if self.policy is None:
            raise FlowleapError(
                "an export cannot be trained: start with --policy.type=flowleap, or from a checkpoint of lerobot-train"
            )
        return self.policy


def _describe(config: FlowleapConfig, spec: Spec) -> None:
    """Let the configuration say what the policy is."""
    if not config.names:
        config.names = default_names(spec)
    config.names = check_names(spec, config.names)
    if config.n_action_steps > spec.horizon:
        raise FlowleapError(
            f"n_action_steps={config.n_action_steps} exceeds the policy's horizon={spec.horizon}"
        )
    config.n_obs_steps, config.horizon = spec.n_obs_steps, spec.horizon
    config.input_features = {
        name: PolicyFeature(FeatureType[feature["type"]], tuple(feature["shape"]))
        for name, feature in input_features(spec, config.names).items()
    }
    config.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, (spec.action_dim,))}


def _new_policy(config: FlowleapConfig, stats: Mapping[str, Mapping[str, Any]] | None, meta: Any) -> Policy:
    """An untrained policy for the features of a dataset, its normaliser fitted on the dataset's statistics."""
    if stats is None or config.action_feature is None:
        raise FlowleapError(
            "a new flowleap policy needs a dataset: its features, and statistics to normalise by"
        )
    features = {name: (ft.type.value, tuple(ft.shape)) for name, ft in (config.input_features or {}).items()}
    spec, names = spec_of(features, config.action_feature.shape[0])
    spec = spec.with_window(config.n_obs_steps, config.horizon, config.n_action_steps)
    spec = replace(spec, control_hz=float(getattr(meta, "fps", 0) or 0))
    config.names = names
    images = any(known.image for known in spec.observations.values())
    parts: dict[str, Any] = {
        "objective": {"name": config.objective},
        "backbone": {"name": config.backbone},
        "encoder": {"name": config.encoder or ("cnn" if images else "lowdim")},
    }
    for name, value in config.options.items():
        parts[name] = {**parts[name], **value} if name in parts and isinstance(value, dict) else value
    policy = Policy(spec, parts)
    policy.normalizer.fit(columns_of(policy.normalizer.modes, names, stats))
    policy.info = {"dataset": getattr(meta, "repo_id", None), "lerobot": names}
    return policy
