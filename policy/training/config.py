"""Options of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.registry import Option, check_options, parameters_of


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """AdamW, warm-up and cosine, EMA; docs/training.md tells of more than one process.

    The last step always checkpoints. The average's decay warms up, too: min(decay, (1 + n) / (10 + n)).
    """

    steps: Annotated[int, Option("gradient steps", 1)] = 20_000
    batch_size: Annotated[
        int, Option("windows a gradient step, over all processes and micro-batches", 1, 10**6)
    ] = 128
    accumulate: Annotated[int, Option("micro-batches a step: less memory, the same step", 1, 10**6)] = 1
    lr: Annotated[float, Option("peak learning rate", 0, 10)] = 1e-3
    weight_decay: Annotated[float, Option("AdamW's", 0, 10)] = 1e-6
    betas: Annotated[tuple[float, float], Option("AdamW's", 0, 1)] = (0.9, 0.999)
    warmup_steps: Annotated[int, Option("linear warm-up, then the schedule", 0)] = 500
    schedule: Annotated[str, Option("a name of diffusers' get_scheduler, to the last step")] = "cosine"
    grad_clip: Annotated[float, Option("largest gradient norm", 1e-6)] = 1.0
    ema_decay: Annotated[float, Option("of the averaged weights", 0, 1)] = 0.999
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"], Option("by autocast; derivatives stay float32")
    ] = "no"
    compile: Annotated[
        bool,
        Option("torch.compile of the network: slow first steps, then faster ones where kernels are small"),
    ] = False
    workers: Annotated[
        int,
        Option(
            "threads that gather the next batches; -1: 2 for images, else 0, which gathers in turn", -1, 256
        ),
    ] = -1
    device: Annotated[Literal["auto", "cpu"], Option("auto takes a GPU where there is one")] = "auto"
    threads: Annotated[int, Option("CPU threads of torch; 0: one for small networks", 0, 4096)] = 0
    seed: Annotated[int, Option("of weights, noise, times and batch order", 0, 2**63 - 1)] = 0
    log_every: Annotated[int, Option("steps", 1)] = 100
    checkpoint_every: Annotated[int, Option("steps; 0: at the end only", 0)] = 5_000
    eval_every: Annotated[int, Option("steps; 0: never", 0)] = 0
    patience: Annotated[
        int, Option("evaluations without a better score after which to stop; 0: never", 0, 10**6)
    ] = 0
    keep_checkpoints: Annotated[int, Option("newest ones kept", 1, 10**6)] = 2
    stop_at: Annotated[
        int, Option("stop and checkpoint after this step although the schedule spans all; 0: off", 0)
    ] = 0
    dry_run: Annotated[bool, Option("print the plan and one timed step instead of training")] = False
    progress: Annotated[bool, Option("show a progress bar")] = True

    def __post_init__(self) -> None:
        for name, value in check_options("trainer", OPTIONS, vars(self), "trainer").items():
            object.__setattr__(self, name, tuple(value) if name == "betas" else value)
        if len(self.betas) != 2:
            raise FlowleapError(f"trainer.betas must be two numbers, got {self.betas}")
        if self.patience and not self.eval_every:
            raise FlowleapError(
                f"trainer.patience={self.patience} counts evaluations: set trainer.eval_every, too"
            )

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> TrainerConfig:
        """Build from a config group; unknown keys are an error."""
        return cls(**check_options("trainer", OPTIONS, options, "trainer"))

    def micro_batch(self, processes: int) -> int:
        """Windows of a forward pass on one of `processes`; raise `FlowleapError` where they do not divide."""
        size, rest = divmod(self.batch_size, processes * self.accumulate)
        if rest:
            raise FlowleapError(
                f"trainer.batch_size={self.batch_size} does not divide among {processes} process(es) x "
                f"trainer.accumulate={self.accumulate}; choose a multiple of {processes * self.accumulate}"
            )
        return size


OPTIONS = parameters_of(TrainerConfig)
