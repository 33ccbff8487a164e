"""The one training loop: Accelerate, AdamW, warm-up + cosine, EMA, checkpoints, exact resume.

All randomness of a step is a function of (seed, step): noise and times come from a generator seeded with both,
and batches from a counter-based sampler. So a resumed run repeats an uninterrupted one bit for bit on the CPU,
and several processes train on the very numbers that one process would use.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from flowleap.policy.checkpoint import (
    TRAINER_STATE,
    point_last,
    read_trainer_state,
    resolve,
    write_policy,
)
from flowleap.policy.metrics import MetricsLog, progress_bar
from flowleap.policy.policy import Policy
from flowleap.policy.registry import require_int, require_number
from flowleap.policy.spec import FlowleapError

Evaluate = Callable[[Policy, int], Mapping[str, float]]


class Windows(Protocol):
    """Training windows: `gather(index [B])` -> {"obs": {key: [B,To,...]}, "action": [B,H,A]} as numpy arrays."""

    def __len__(self) -> int: ...

    def gather(self, index: np.ndarray) -> dict[str, Any]: ...


class Sampler(Protocol):
    """An endless, resumable source of window indices, the global batch at a time."""

    def next(self) -> np.ndarray: ...

    def state_dict(self) -> dict[str, int]: ...

    def load_state_dict(self, state: Mapping[str, int]) -> None: ...


@dataclass(frozen=True)
class TrainerConfig:
    """Options of the training loop.

    Attributes:
        steps: gradient steps.
        batch_size: windows a step, over all processes.
        lr: peak learning rate. weight_decay: AdamW's. betas: AdamW's.
        warmup_steps: linear warm-up, then `schedule` (a name of diffusers' get_scheduler) to the last step.
        grad_clip: largest gradient norm.
        ema_decay: of the averaged weights, with warm-up min(decay, (1 + n) / (10 + n)).
        mixed_precision: `no`, `bf16` or `fp16`.
        device: `auto` or `cpu`. threads: CPU threads of torch, 0 leaves the default.
        seed: of weights, noise, times and batch order.
        log_every, checkpoint_every, eval_every: in steps; 0 switches it off (the last step always checkpoints).
        keep_checkpoints: newest ones kept.
        stop_at: stop and checkpoint after this step although the schedule spans `steps`; 0 is off.
        dry_run: print the plan and one timed step instead of training.
        progress: show a progress bar.
    """

    steps: int = 20_000
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 500
    schedule: str = "cosine"
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "no"
    device: str = "auto"
    threads: int = 0
    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 5_000
    eval_every: int = 0
    keep_checkpoints: int = 2
    stop_at: int = 0
    dry_run: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        require_int("trainer.steps", self.steps, 1, 10**9)
        require_int("trainer.batch_size", self.batch_size, 1, 10**6)
        require_int("trainer.warmup_steps", self.warmup_steps, 0, 10**9)
        require_int("trainer.log_every", self.log_every, 1, 10**9)
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

    @classmethod
    def from_mapping(cls, options: Mapping[str, Any]) -> TrainerConfig:
        """Build from a config group; unknown keys are an error."""
        known = {field.name for field in fields(cls)}
        for key in options:
            if key not in known:
                raise FlowleapError(f"trainer has no option {key!r}; it has: {', '.join(sorted(known))}")
        values: dict[str, Any] = {k: tuple(v) if k == "betas" else v for k, v in options.items()}
        return cls(**values)


def ema_with_warmup(decay: float) -> Callable[[Any, Any, Any], None]:
    """In-place update of all averaged parameters at once, for `AveragedModel(multi_avg_fn=...)`."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], n_averaged: Tensor | int) -> None:
        n = int(n_averaged)
        torch._foreach_lerp_(averaged, current, 1.0 - min(decay, (1 + n) / (10 + n)))

    return update


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that a step is never cut in half; the second one raises."""
    caught: list[int] = []

    def handler(signum: int, frame: Any) -> None:
        caught.append(signum)
        if len(caught) > 1:
            raise KeyboardInterrupt

    previous: dict[signal.Signals, Any] = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: nobody sends us signals there
        pass
    try:
        yield lambda: bool(caught)
    finally:
        for restored, old in previous.items():
            signal.signal(restored, old)


class Trainer:
    """Trains a policy on windows of demonstrations.

    Args:
        policy: with a fitted normaliser.
        windows: the training windows.
        sampler: yields the indices of each global batch.
        config: options.
        run_dir: metrics, TensorBoard events and checkpoints go there.
        evaluate: called with (EMA policy, step) every `eval_every` steps; returns numbers to log.
        info: JSON notes stored in each checkpoint (task, dataset, ...).
    """

    def __init__(
        self,
        policy: Policy,
        windows: Windows,
        sampler: Sampler,
        config: TrainerConfig,
        run_dir: str | Path,
        evaluate: Evaluate | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        if config.threads:
            torch.set_num_threads(config.threads)
        self.config, self.windows, self.sampler = config, windows, sampler
        self.run_dir, self.evaluate, self.info = Path(run_dir), evaluate, dict(info or {})
        self.accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision=config.mixed_precision)
        if config.batch_size % self.accelerator.num_processes:
            raise FlowleapError(
                f"trainer.batch_size={config.batch_size} does not divide among "
                f"{self.accelerator.num_processes} processes"
            )
        self.policy = policy.train().to(self.accelerator.device)
        self.ema = AveragedModel(self.policy, multi_avg_fn=ema_with_warmup(config.ema_decay)).eval()
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), config.lr, config.betas, weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = get_scheduler(
            config.schedule,
            self.optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=config.steps,
        )
        self.model, self.prepared_optimizer = self.accelerator.prepare(self.policy, self.optimizer)
        self.step = 0

    @property
    def ema_policy(self) -> Policy:
        """The policy with averaged weights, in eval mode."""
        return self.ema.module  # type: ignore[return-value]

    def batch(self) -> tuple[dict[str, Any], Any]:
        """Next batch and its draw: this process's rows of the global batch, on the device."""
        rank, size = self.accelerator.process_index, self.config.batch_size // self.accelerator.num_processes
        rows = slice(rank * size, (rank + 1) * size)
        arrays = self.windows.gather(self.sampler.next()[rows])
        device = self.accelerator.device

        def move(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        batch = {"obs": {key: move(x) for key, x in arrays["obs"].items()}, "action": move(arrays["action"])}
        seed = int(np.random.SeedSequence([self.config.seed, self.step]).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(seed & (2**63 - 1))
        return batch, self.policy.draw(self.config.batch_size, generator)[rows]

    def train_step(self, batch: dict[str, Any], draw: Any) -> dict[str, Tensor]:
        """One gradient step; returns detached scalars."""
        loss, terms = self.model(batch, draw)
        self.prepared_optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), self.config.grad_clip)
        if self.accelerator.device.type == "cpu" and not math.isfinite(float(norm)):
            raise FlowleapError(self._not_finite(self.step))
        self.prepared_optimizer.step()
        self.scheduler.step()
        self.ema.update_parameters(self.policy)
        return {"loss": loss.detach(), "grad_norm": norm.detach(), **terms}

    def fit(self) -> Path:
        """Train to `steps` (or `stop_at`); return the last checkpoint's directory.

        Raises:
            KeyboardInterrupt: after a checkpoint of the last whole step has been written.
            FlowleapError: the loss became NaN (the previous checkpoint stays), or the disk is full.
        """
        config, last = self.config, self.config.stop_at or self.config.steps
        main = self.accelerator.is_main_process
        if self.step >= last:
            raise FlowleapError(f"nothing to do: the run has {self.step} steps already, trainer.steps={last}")
        log = MetricsLog(self.run_dir, self.step) if main else None
        sums: dict[str, Tensor] = {}
        count, data_seconds, mark = 0, 0.0, time.perf_counter()
        bar = progress_bar(self.step, config.steps, "train", config.progress and main)
        with interruptible() as interrupted, bar as advance:
            while self.step < last and not interrupted():
                start = time.perf_counter()
                batch, draw = self.batch()
                data_seconds += time.perf_counter() - start
                for key, value in self.train_step(batch, draw).items():
                    sums[key] = sums[key] + value if key in sums else value
                self.step += 1
                count += 1
                if self.step % config.log_every == 0 or self.step == last:
                    row: dict[str, float] = {key: float(value) / count for key, value in sums.items()}
                    if not all(math.isfinite(value) for value in row.values()):
                        raise FlowleapError(self._not_finite(self.step))
                    elapsed = time.perf_counter() - mark
                    row |= {
                        "lr": float(self.scheduler.get_last_lr()[0]),
                        "samples_per_s": count * config.batch_size / elapsed,
                        "data_share": data_seconds / elapsed,
                    }
                    if log:
                        log.write(self.step, row)
                    advance(self.step, f"loss {row['loss']:.3f}")
                    sums, count, data_seconds, mark = {}, 0, 0.0, time.perf_counter()
                if config.checkpoint_every and self.step % config.checkpoint_every == 0 and self.step < last:
                    self.save()
                if config.eval_every and self.evaluate and main and self.step % config.eval_every == 0:
                    result = dict(self.evaluate(self.ema_policy, self.step))
                    if log:
                        log.write(self.step, {f"eval/{key}": value for key, value in result.items()})
                    mark = time.perf_counter()
            path = self.save()
            if log:
                log.close()
            if interrupted():
                raise KeyboardInterrupt
        return path

    def _not_finite(self, step: int) -> str:
        return (
            f"the loss is NaN or infinite at step {step}; the last checkpoint in {self.run_dir / 'checkpoints'} is "
            "intact. Lower trainer.lr, or look at the data with `flowleap inspect`"
        )

    def save(self) -> Path:
        """Write `checkpoints/step_N` and let `last` name it; returns the directory."""
        checkpoints = self.run_dir / "checkpoints"
        path = checkpoints / f"step_{self.step:08d}"
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "sampler": self.sampler.state_dict(),
                "n_averaged": self.ema.n_averaged.cpu(),
                "torch_rng": torch.get_rng_state(),
            }
            write_policy(
                path,
                {"raw": self.policy.state_dict(), "ema": self.ema_policy.state_dict()},
                self.policy.spec,
                self.policy.config,
                {**self.info, "step": self.step, "trainer": asdict(self.config)},
                extra=lambda folder: torch.save(state, folder / TRAINER_STATE),
            )
            point_last(checkpoints, path, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        return path

    def resume(self, run_dir: str | Path) -> None:
        """Continue from the last checkpoint of `run_dir`: weights, EMA, optimiser, schedule, RNG, sampler.

        Raises:
            FlowleapError: no checkpoint, a damaged one, or one of another architecture.
        """
        path = resolve(Path(run_dir))
        state = read_trainer_state(path)
        device = self.accelerator.device
        raw, ema = (Policy.load(path, weights, device) for weights in ("raw", "ema"))
        if raw.config != self.policy.config or raw.spec != self.policy.spec:
            raise FlowleapError(
                f"{path} holds another policy than this configuration describes; drop the overrides"
            )
        try:
            self.policy.load_state_dict(raw.state_dict())
            self.ema_policy.load_state_dict(ema.state_dict())
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.sampler.load_state_dict(state["sampler"])
            self.ema.n_averaged.copy_(state["n_averaged"])
            torch.set_rng_state(state["torch_rng"])
            self.step = int(state["step"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise FlowleapError(f"{path / TRAINER_STATE}: {error}; the file is damaged") from error
