"""Configuration of the policy type `flowleap`; lerobot finds the policy's other modules by this one's name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import NormalizationMode
from lerobot.configs.policies import PreTrainedConfig
from lerobot.optim import AdamWConfig, DiffuserSchedulerConfig

from flowleap.policy.core.errors import FlowleapError


@PreTrainedConfig.register_subclass("flowleap")
@dataclass
class FlowleapConfig(PreTrainedConfig):
    """A flowleap policy in LeRobot: an exported folder, or one that `lerobot-train` trains.

    Args:
        n_obs_steps, horizon: To and H; those of the policy, once there is one.
        n_action_steps: Ta, actions executed before `select_action` computes the next chunk.
        names: our observation keys -> LeRobot's names; keys that share a vector lie side by side in it.
        clip: least and greatest action, [[A numbers], [A numbers]], between which actions are kept; those of the task's
            environment, as `flowleap eval` keeps them, where the policy has a task. None keeps nothing.
        noise_seed: draw noise as `flowleap eval seed=...` does: episode i from the generator of `noise_seed + i`. None
            draws fresh noise.
        threads: of onnxruntime, for exports.
        unusual: what to do about numbers far outside of the range of training: `warn`, `stop` or `ignore`.
        nfe: network evaluations a chunk, of a policy that is no export; None is the objective's default.
        objective, backbone, encoder: registry names, of a new policy; the encoder is `lowdim`, or `cnn` where there are
            images.
        options: more options of a new policy, such as `{"backbone": {"width": 512}, "head_sigma": 0.02}`.
        action_feature_names: of the dataset; lerobot orders a robot's actions by them.
        discover_packages_path: not read; lerobot hands its own option on to the policy where `--policy.path` is given.
        lr, weight_decay, warmup_steps, grad_clip, ema_decay: of the training; as in `flowleap train`.
    """

    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    names: dict[str, str] = field(default_factory=dict)

    clip: list[list[float]] | None = None
    noise_seed: int | None = None
    threads: int = 1
    unusual: str = "warn"
    nfe: int | None = None

    objective: str = "isd"
    backbone: str = "mlp"
    encoder: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    action_feature_names: list[str] | None = None
    discover_packages_path: str | None = None

    lr: float = 1e-3
    weight_decay: float = 1e-6
    warmup_steps: int = 500
    grad_clip: float = 1.0
    ema_decay: float = 0.999

    # The policy normalises by itself: what LeRobot passes on is in real units, in both directions.
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: dict.fromkeys(
            ("STATE", "ENV", "VISUAL", "ACTION"), NormalizationMode.IDENTITY
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.n_action_steps <= self.horizon:
            raise FlowleapError(
                f"n_action_steps={self.n_action_steps} is not from 1 to horizon={self.horizon}"
            )

    def validate_features(self) -> None:
        """Raise `FlowleapError` unless there are observations and an action."""
        if not self.input_features or self.action_feature is None:
            raise FlowleapError("a flowleap policy needs observations and the feature 'action'")

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW as in `flowleap train`."""
        return AdamWConfig(lr=self.lr, weight_decay=self.weight_decay, grad_clip_norm=self.grad_clip)

    def get_scheduler_preset(self) -> DiffuserSchedulerConfig:
        """Warm-up, then a cosine."""
        return DiffuserSchedulerConfig(name="cosine", num_warmup_steps=self.warmup_steps)

    @property
    def observation_delta_indices(self) -> list[int]:
        """The last To frames, the current one last."""
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        """H actions, the first one for the current frame."""
        return list(range(self.horizon))

    @property
    def reward_delta_indices(self) -> Any:
        """None: no rewards are read."""
        return None
