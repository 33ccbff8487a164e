"""The one training loop: Accelerate, AdamW, warm-up + cosine, EMA, checkpoints, exact resume.

All randomness of a step is a function of (seed, step): noise and times come from a generator seeded with both,
batches from a counter-based stream of indices, and what the modules draw themselves (observation noise, dropout) from
torch's generator, seeded with both and the process. So a resumed run repeats an uninterrupted one bit for bit on
the CPU, and several processes or micro-batches train on the very numbers that one pass would use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from diffusers.optimization import get_scheduler
from safetensors.torch import save_file
from torch import Tensor

from flowleap.policy.checkpoint import TRAINER_STATE, point_last, read_trainer_state, resolve, write_policy
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.files import write_directory
from flowleap.policy.core.spec import Spec
from flowleap.policy.flow.draws import Draw
from flowleap.policy.policy import Policy
from flowleap.policy.training import batches
from flowleap.policy.training.averaging import averaged, update_average
from flowleap.policy.training.batches import Batch, IndexStream, ShuffledIndices, Windows
from flowleap.policy.training.compiling import compile_failure, compile_modules
from flowleap.policy.training.config import TrainerConfig
from flowleap.policy.training.guards import NEVER, EarlyStopping, FiniteGuard, interruptible
from flowleap.policy.training.metrics import Meter, MetricsLog, progress_bar
from flowleap.policy.training.prefetch import Prefetcher
from flowleap.policy.training.processes import set_threads, start_accelerator
from flowleap.policy.training.sharding import load_optimizer, load_weights, whole, whole_weights

Evaluate = Callable[[Policy, int], Mapping[str, float]]
Callback = Callable[["Trainer", int, Mapping[str, float]], None]
BAD_BATCH = "batch.safetensors"
LOOK_EVERY = 100  # steps after which a GPU, or several processes, are asked how they fare


class Trainer:
    """Trains a policy on windows of demonstrations.

    Args:
        policy: its normaliser is fitted on the windows' columns unless it has been fitted.
        windows: the training windows.
        config: options.
        run_dir: metrics, TensorBoard events and checkpoints go there.
        evaluate: called with (EMA policy, step) every `eval_every` steps; returns numbers to log. `patience`
            watches its `score`, higher is better.
        callback: called with (trainer, step, metrics) for every row of metrics, on the main process.
        indices: which windows make up each global batch; all of them, shuffled, by default.
        info: JSON notes stored in each checkpoint (task, dataset, ...); the policy's own by default.
        teacher: what `policy.loss` takes as such; with `objective.targets=ema` it is the averaged policy.

    Attributes:
        stop_reason: why `fit` ended before the last step, else None.

    Raises:
        FlowleapError: options that do not fit together or the machine, or data that is not finite.
    """

    def __init__(
        self,
        policy: Policy,
        windows: Windows,
        config: TrainerConfig,
        run_dir: str | Path,
        *,
        evaluate: Evaluate | None = None,
        callback: Callback | None = None,
        indices: IndexStream | None = None,
        info: Mapping[str, Any] | None = None,
        teacher: Policy | None = None,
    ) -> None:
        if config.patience and evaluate is None:
            raise FlowleapError(f"trainer.patience={config.patience} needs a task to evaluate the policy on")
        self.config, self.windows, self.run_dir = config, windows, Path(run_dir)
        self.evaluate, self.callback = evaluate, callback
        self.indices = indices or ShuffledIndices(len(windows), config.batch_size, config.seed)
        self.accelerator = start_accelerator(config)
        self.processes, self.main = self.accelerator.num_processes, self.accelerator.is_main_process
        self.micro_batch = config.micro_batch(self.processes)
        share = self.micro_batch * config.accumulate
        first = self.accelerator.process_index * share
        self.rows = slice(first, first + share)
        dense = any(obs.dense for obs in policy.spec.observations.values())
        workers = config.workers if config.workers >= 0 else 2 if dense else 0
        self.batches = Prefetcher(windows, self.indices, self.rows, workers)
        if not policy.normalizer.fitted:
            policy.normalizer.fit(windows.columns)
        if info is not None:
            policy.info = dict(info)
        policy.checkpoint = policy.weights = None  # what is trained further is no longer what was loaded
        self.policy = policy.train().to(self.accelerator.device)
        set_threads(config.threads, self.policy)
        self.ema = averaged(self.policy, config.ema_decay)
        self.teacher = teacher and teacher.to(self.accelerator.device)
        if policy.objective.options.get("targets") == "ema":
            self.teacher = self.ema_policy
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), config.lr, config.betas, weight_decay=config.weight_decay, fused=True
        )
        lengths: dict[str, Any] = {
            "num_warmup_steps": config.warmup_steps,
            "num_training_steps": config.steps,
        }
        self.scheduler = get_scheduler(config.schedule, self.optimizer, **lengths)
        self.guard, self.stopping = FiniteGuard(), EarlyStopping(config.patience)
        self.stop_reason: str | None = None
        self.step = 0
        self._log: MetricsLog | None = None  # while `fit` runs, on the main process
        alone_on_cpu = self.processes == 1 and self.accelerator.device.type == "cpu"
        self.look_every = 1 if alone_on_cpu else min(LOOK_EVERY, config.log_every)
        if config.compile:
            compile_modules(self.policy)
        self.model, self.prepared_optimizer = self.accelerator.prepare(self.policy, self.optimizer)

    @property
    def ema_policy(self) -> Policy:
        """The policy with averaged weights, in eval mode."""
        return self.ema.module  # type: ignore[return-value]

    def batch(self) -> tuple[Batch, Draw]:
        """Next batch and its draw: this process's rows of the global batch, on the device."""
        indices, arrays = self.batches.next()
        self.guard.start(self.step, indices)
        return batches.to_device(arrays, self.accelerator.device), self._draw(self.step)[self.rows]

    def _draw(self, step: int) -> Draw:
        """The draw of a step's global batch."""
        generator = torch.Generator().manual_seed(batches.seed_of(self.config.seed, step))
        return self.policy.draw(self.config.batch_size, generator, progress=step / self.config.steps)

    def train_step(self, batch: Batch, draw: Draw) -> dict[str, Tensor]:
        """One gradient step; returns detached scalars, means over this process's rows."""
        seed = batches.seed_of(self.config.seed, self.step, self.accelerator.process_index)
        batches.seed_generators(self.accelerator.device, seed)
        self.prepared_optimizer.zero_grad(set_to_none=True)
        scalars: dict[str, Tensor] = {}
        parts = self.config.accumulate
        for part in range(parts):
            rows = slice(part * self.micro_batch, (part + 1) * self.micro_batch)
            waiting = part < parts - 1  # gradients cross processes once a step, with the last micro-batch
            with self.accelerator.no_sync(self.model) if waiting else nullcontext():
                try:
                    loss, terms = self.model(batches.rows_of(batch, rows), draw[rows], self.teacher)
                except RuntimeError as error:
                    raise (self.config.compile and compile_failure(error)) or error from error
                self.accelerator.backward(loss / parts)
            for key, value in {"loss": loss.detach(), **terms}.items():
                scalars[key] = scalars.get(key, 0) + value / parts
        norm = self.accelerator.clip_grad_norm_(self.policy.parameters(), self.config.grad_clip)
        scalars["grad_norm"] = whole(norm.detach())
        # With fp16, gradients overflow now and then: the loss scaler skips such steps.
        watched = ("loss",) if self.accelerator.scaler else ("loss", "grad_norm")
        self.guard.end(self.step, *(scalars[key] for key in watched))
        if self.look_every == 1:
            self._look()
        self.prepared_optimizer.step()
        self.scheduler.step()
        update_average(self.ema, self.policy)
        return scalars

    def fit(self) -> Path:
        """Train to `steps` (or `stop_at`, or until `patience` ends); return the last checkpoint's directory.

        Raises:
            KeyboardInterrupt: after a checkpoint of the last whole step has been written. Several processes
                agree on that step, at the next multiple of min(log_every, 100).
            FlowleapError: the loss or its gradient became NaN (its batch is saved, the previous checkpoint
                stays), or the disk is full.
        """
        config, last = self.config, self.config.stop_at or self.config.steps
        if self.step >= last:
            raise FlowleapError(f"nothing to do: the run has {self.step} steps already, trainer.steps={last}")
        self._log = MetricsLog(self.run_dir, self.step) if self.main else None
        meter, interrupted = Meter(), False
        bar = progress_bar(self.step, config.steps, "train", config.progress and self.main)
        with interruptible() as asked_to_stop, bar as advance:
            while self.step < last and not interrupted and not self.stop_reason:
                start = time.perf_counter()
                batch, draw = self.batch()
                waited = time.perf_counter() - start
                meter.add(self.train_step(batch, draw), waited)
                self.step += 1
                if self.processes == 1:
                    interrupted = asked_to_stop()
                if self.step % self.look_every == 0:
                    interrupted = self._look(asked_to_stop())
                if self.step % config.log_every == 0 or self.step == last:
                    self._look()
                    row = meter.read(config.batch_size, partial(self.accelerator.reduce, reduction="mean"))
                    row["lr"] = float(self.scheduler.get_last_lr()[0])
                    self._record(row)
                    advance(self.step, f"loss {row['loss']:.3f}")
                if config.eval_every and self.evaluate and self.step % config.eval_every == 0:
                    with meter.pause():
                        self.stop_reason = self._evaluate()
                if config.checkpoint_every and self.step % config.checkpoint_every == 0 and self.step < last:
                    self.save()
            path = self.save()
            if self._log:
                self._log.close()
            if interrupted:
                raise KeyboardInterrupt
        return path

    def _record(self, metrics: Mapping[str, float]) -> None:
        """Log a row of metrics and show it to the callback, on the main process."""
        if self._log:
            self._log.write(self.step, metrics)
            if self.callback:
                self.callback(self, self.step, metrics)

    def _evaluate(self) -> str | None:
        """Score the EMA policy on the main process; all learn the reason to stop, if there is one."""
        self._look()
        reason = None
        # A mishap of the simulator must not cost the steps since the last checkpoint.
        state = self._state()
        if self.main and self.evaluate:
            try:
                result = dict(self.evaluate(self.ema_policy, self.step))
            except Exception:
                self._write(*state)
                raise
            self._record({f"eval/{key}": value for key, value in result.items()})
            if self.config.patience and self.stopping.update(result["score"]):
                reason = (
                    f"stopped early at step {self.step}: the evaluation's score has not risen above "
                    f"{self.stopping.best:.3f} for {self.stopping.stale} evaluations (trainer.patience)"
                )
        return broadcast_object_list([reason])[0]

    def _look(self, interrupted: bool = False) -> bool:
        """Let all processes agree on how they fare; return whether any of them was asked to stop.

        Raises:
            FlowleapError: on all processes, if a step since the last look was not finite on any.
        """
        bad = self.guard.first_bad()
        if self.processes > 1:
            mine = torch.tensor([[bad, -int(interrupted)]], device=self.accelerator.device)
            bad, minus_interrupted = self.accelerator.gather(mine).amin(0).tolist()
            interrupted = minus_interrupted < 0
        if bad < NEVER:
            raise FlowleapError(self._report_bad(bad))
        return interrupted

    def _report_bad(self, step: int) -> str:
        """Save the global batch of a step that was not finite and say where."""
        folder = self.run_dir / "nan" / f"step_{step:08d}"
        windows = self.guard.windows(step)
        arrays = self.windows.gather(windows)
        if self.main:
            tensors = batches.as_tensors(windows, arrays, self._draw(step))
            write_directory(folder, lambda path: save_file(tensors, path / BAD_BATCH))
        self.accelerator.wait_for_everyone()  # or a launcher ends the writer because its neighbour has failed
        checkpoints = self.run_dir / "checkpoints"
        kept = f"; the last checkpoint in {checkpoints} is intact" if (checkpoints / "last").exists() else ""
        return (
            f"the loss is NaN or infinite at step {step}; its batch is in {folder / BAD_BATCH}: "
            f"{batches.describe_bad(windows, arrays)}{kept}"
        )

    def save(self) -> Path:
        """Write `checkpoints/step_N` and let `last` name it; returns the directory."""
        self._look()
        path = self._write(*self._state())
        self.accelerator.wait_for_everyone()
        return path

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Weights and optimiser state as whole tensors; all processes must ask."""
        return whole_weights(self.policy), whole(self.optimizer.state_dict())

    def _write(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Any]) -> Path:
        """The part of `save` in which only the main process acts."""
        checkpoints = self.run_dir / "checkpoints"
        path = checkpoints / f"step_{self.step:08d}"
        if self.main:
            scaler = self.accelerator.scaler
            state = {
                "step": self.step,
                "optimizer": optimizer,
                "scheduler": self.scheduler.state_dict(),
                "sampler": self.batches.state_dict(),
                "n_averaged": self.ema.n_averaged.cpu(),
                "stopping": self.stopping.state_dict(),
                "scaler": scaler.state_dict() if scaler else {},
            }
            states = {"raw": weights, "ema": self.ema_policy.state_dict()}
            info = {**self.policy.info, "step": self.step, "trainer": asdict(self.config)}
            spec, config = self.policy.spec, self.policy.config
            write_policy(
                path, states, spec, config, info, lambda folder: torch.save(state, folder / TRAINER_STATE)
            )
            point_last(checkpoints, path, self.config.keep_checkpoints)
        return path

    def resume(self, run_dir: str | Path, other_data: bool = False) -> None:
        """Continue from the last checkpoint of `run_dir`, or from a checkpoint directory.

        Weights, EMA, normaliser, optimiser, schedule, batch order and patience are the checkpoint's. `other_data` says
        that the windows are not those it was trained on: the order of the batches then starts with a new epoch.

        Raises:
            FlowleapError: no checkpoint, a damaged one, or one of another architecture.
        """
        path = resolve(Path(run_dir))
        state = read_trainer_state(path)
        device = self.accelerator.device
        raw, ema = (Policy.load(path, weights, device) for weights in ("raw", "ema"))
        raw.spec.require_match(self.policy.spec, f"checkpoint {path}", "the dataset")
        if raw.config != self.policy.config or _layout(raw.spec) != _layout(self.policy.spec):
            raise FlowleapError(
                f"{path} holds another policy than this configuration describes; drop the overrides"
            )
        try:
            load_weights(self.policy, raw.state_dict())
            self.ema_policy.load_state_dict(ema.state_dict())
            load_optimizer(self.optimizer, state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            sampler = state["sampler"]
            self.batches.load_state_dict(
                {"epoch": sampler["epoch"] + 1, "position": 0} if other_data else sampler
            )
            self.ema.n_averaged.copy_(state["n_averaged"])
            self.stopping.load_state_dict(state.get("stopping", self.stopping.state_dict()))
            if self.accelerator.scaler and state.get("scaler"):
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.step = int(state["step"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise FlowleapError(f"{path / TRAINER_STATE}: {error}; the file is damaged") from error


def _layout(spec: Spec) -> tuple[Any, ...]:
    """What of a Spec the weights depend on, beside the shapes that `require_match` compares."""
    window = (spec.n_obs_steps, spec.horizon, spec.n_action_steps)
    return (*spec.observations, window, spec.control_hz)
