"""Options of the training loop; `configs/trainer/default.yaml` lists the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from flowleap.policy.core.errors import FlowleapError, require_int, require_number, suggest


@dataclass(frozen=True)
class TrainerConfig:
    """Options of the training loop.

    Attributes:
        steps: gradient steps.
        batch_size: windows a gradient step, over all processes and micro-batches.
        accumulate: micro-batches whose gradients are summed into one step; the step stays the same, the memory
            that activations take shrinks.
        lr: peak learning rate. weight_decay: AdamW's. betas: AdamW's.
        warmup_steps: linear warm-up, then `schedule` (a name of diffusers' get_scheduler) to the last step.
        grad_clip: largest gradient norm.
        ema_decay: of the averaged weights, with warm-up min(decay, (1 + n) / (10 + n)).
        mixed_precision: `no`, `bf16` or `fp16`, by autocast; derivatives stay float32.
        compile: run the network through torch.compile: slow first steps, then faster ones where kernels are small.
        workers: threads that gather the next batches meanwhile; 0 gathers in turn, -1 is 2 for images, else 0.
        device: `auto` or `cpu`. threads: CPU threads of torch; 0: one for small networks.
        seed: of weights, noise, times and batch order.
        log_every, checkpoint_every, eval_every: in steps; 0 switches the latter two off (the last step always
            checkpoints).
        patience: stop when the evaluation's score has not risen for so many evaluations; 0 is off.
        keep_checkpoints: newest ones kept.
        stop_at: stop and checkpoint after this step although the schedule spans `steps`; 0 is off.
        dry_run: print the plan and one timed step instead of training.
        progress: show a progress bar.
    """

    steps: int = 20_000
    batch_size: int = 128
    accumulate: int = 1
    lr: float = 1e-3
    weight_decay: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 500
    schedule: str = "cosine"
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "no"
    compile: bool = False
    workers: int = -1
    device: str = "auto"
    threads: int = 0
    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 5_000
    eval_every: int = 0
    patience: int = 0
    keep_checkpoints: int = 2
    stop_at: int = 0
    dry_run: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        require_int("trainer.steps", self.steps, 1, 10**9)
        require_int("trainer.batch_size", self.batch_size, 1, 10**6)
        require_int("trainer.accumulate", self.accumulate, 1, 10**6)
        require_int("trainer.seed", self.seed, 0, 2**63 - 1)
        require_int("trainer.warmup_steps", self.warmup_steps, 0, 10**9)
        require_int("trainer.log_every", self.log_every, 1, 10**9)
        require_int("trainer.checkpoint_every", self.checkpoint_every, 0, 10**9)
        require_int("trainer.eval_every", self.eval_every, 0, 10**9)
        require_int("trainer.patience", self.patience, 0, 10**6)
        require_int("trainer.workers", self.workers, -1, 256)
        require_int("trainer.keep_checkpoints", self.keep_checkpoints, 1, 10**6)
        require_number("trainer.lr", self.lr, 0.0, 10.0)
        require_number("trainer.weight_decay", self.weight_decay, 0.0, 10.0)
        require_number("trainer.grad_clip", self.grad_clip, 1e-6, 1e9)
        require_number("trainer.ema_decay", self.ema_decay, 0.0, 1.0)
        if self.device not in ("auto", "cpu"):
            raise FlowleapError(f"trainer.device must be 'auto' or 'cpu', got {self.device!r}")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise FlowleapError(
                f"trainer.mixed_precision must be 'no', 'bf16' or 'fp16', got {self.mixed_precision!r}"
            )
        if self.patience and not self.eval_every:
            raise FlowleapError(
                f"trainer.patience={self.patience} counts evaluations: set trainer.eval_every, too"
            )

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> TrainerConfig:
        """Build from a config group; unknown keys are an error."""
        known = {field.name for field in fields(cls)}
        for key in options:
            if key not in known:
                raise FlowleapError(
                    f"trainer has no option {key!r}{suggest(key, known)}; it has: {', '.join(sorted(known))}"
                )
        values: dict[str, Any] = {k: tuple(v) if k == "betas" else v for k, v in options.items()}
        return cls(**values)

    def micro_batch(self, processes: int) -> int:
        """Windows of one forward pass on one of `processes` processes.

        Raises:
            FlowleapError: `batch_size` does not divide.
        """
        size, rest = divmod(self.batch_size, processes * self.accumulate)
        if rest:
            raise FlowleapError(
                f"trainer.batch_size={self.batch_size} does not divide among {processes} process(es) x "
                f"trainer.accumulate={self.accumulate}; choose a multiple of {processes * self.accumulate}"
            )
        return size
