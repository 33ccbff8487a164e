"""Trainer: exact resume, interruption, NaN guard, equal gradients for one and two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowleap.datasets.windows import ShuffledIndices, Windows
from flowleap.policy.checkpoint import resolve
from flowleap.policy.policy import Policy
from flowleap.policy.spec import FlowleapError, ObsKey, Spec
from flowleap.policy.trainer import Trainer, TrainerConfig

SPEC = Spec({"state": ObsKey((3,))}, action_dim=2, n_obs_steps=2, horizon=4, n_action_steps=2)


def make_trainer(run_dir: Path, objective: dict[str, Any] | None = None, **options: Any) -> Trainer:
    rng = np.random.default_rng(0)
    columns = {key: rng.normal(size=(60, n)).astype(np.float32) for key, n in (("state", 3), ("action", 2))}
    windows = Windows(columns, np.array([20, 60]), SPEC)
    torch.manual_seed(0)
    config = {
        "objective": objective or {"name": "isd"},
        "backbone": {"name": "mlp", "width": 16, "depth": 1},
        "encoder": {"name": "lowdim", "noise": 0.01},  # uses the global RNG, which resume must restore
    }
    policy = Policy(SPEC, config)
    policy.normalizer.fit(columns)
    defaults = {
        "steps": 12,
        "batch_size": 8,
        "warmup_steps": 2,
        "log_every": 2,
        "device": "cpu",
        "progress": False,
    }
    trainer_config = TrainerConfig(**{**defaults, **options})
    sampler = ShuffledIndices(len(windows), trainer_config.batch_size, trainer_config.seed)
    return Trainer(policy, windows, sampler, trainer_config, run_dir)


def test_resume_is_bit_exact(tmp_path: Path) -> None:
    """N + resumed N steps equal 2N steps: weights, EMA, optimiser, schedule, RNG and sampler position."""
    whole = make_trainer(tmp_path / "whole")
    whole.fit()
    rng_whole = torch.get_rng_state()
    make_trainer(tmp_path / "parts", stop_at=6).fit()
    torch.manual_seed(99)
    resumed = make_trainer(tmp_path / "parts")
    torch.rand(17)  # whatever happened to the RNG in between
    resumed.resume(tmp_path / "parts")
    assert resumed.step == 6
    resumed.fit()
    for a, b in ((whole.policy, resumed.policy), (whole.ema_policy, resumed.ema_policy)):
        for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
            assert torch.equal(x, y), name
    for a, b in zip(
        whole.optimizer.state_dict()["state"].values(),
        resumed.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert whole.scheduler.get_last_lr() == resumed.scheduler.get_last_lr()
    assert whole.sampler.state_dict() == resumed.sampler.state_dict()
    assert torch.equal(rng_whole, torch.get_rng_state())
    rows = [
        json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows == [2, 4, 6, 8, 10, 12]


def test_training_learns_and_keeps_the_newest_checkpoints(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=300, checkpoint_every=50, log_every=50, keep_checkpoints=2)
    last = trainer.fit()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["fm"] < 0.9 * rows[0]["fm"]
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["last", "step_00000250", "step_00000300"]
    assert resolve(tmp_path) == last.resolve()
    noise = torch.randn(1, 4, 2)
    obs = {"state": torch.zeros(1, 2, 3)}
    assert torch.equal(Policy.load(tmp_path).act(obs, noise), trainer.ema_policy.act(obs, noise))


def test_nan_stops_training_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, checkpoint_every=4)
    gather = trainer.windows.gather

    def poisoned(index: np.ndarray) -> dict[str, Any]:
        batch = gather(index)
        if trainer.step == 6:
            batch["action"][0] = np.nan
        return batch

    trainer.windows.gather = poisoned  # type: ignore[method-assign]
    with pytest.raises(FlowleapError, match="NaN or infinite at step 6"):
        trainer.fit()
    assert resolve(tmp_path).name == "step_00000004"
    Policy.load(tmp_path)


def test_evaluation_during_training_gets_the_ema_policy(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=4, eval_every=2)
    seen: list[tuple[int, bool]] = []

    def evaluate(policy: Policy, step: int) -> dict[str, float]:
        assert policy is trainer.ema_policy
        seen.append((step, policy.training))
        policy.act({"state": torch.zeros(1, 2, 3)})
        return {"success": 0.5}

    trainer.evaluate = evaluate
    trainer.fit()
    assert seen == [(2, False), (4, False)]
    assert trainer.policy.training
    assert '"eval/success": 0.5' in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"trainer\.batch_size"),
        ({"lr": -1.0}, r"trainer\.lr"),
        ({"device": "tpu"}, r"trainer\.device"),
        ({"mixed_precision": "int8"}, r"trainer\.mixed_precision"),
    ],
)
def test_option_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowleapError, match=message):
        TrainerConfig(**options)
    with pytest.raises(FlowleapError, match="no option 'lrr'"):
        TrainerConfig.from_mapping({"lrr": 1})


def test_damaged_resume_state_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=2)
    file = trainer.fit() / "trainer.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(FlowleapError, match=r"trainer\.pt"):
        make_trainer(tmp_path).resume(tmp_path)
    with pytest.raises(FlowleapError, match="nothing to do"):
        trainer.fit()


def run_script(body: str, **environment: str) -> subprocess.Popen[str]:
    """Start a Python process that runs `body` with `make_trainer` and `Path` at hand."""
    header = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})"
    code = "\n".join([header, "from pathlib import Path", "from test_trainer import make_trainer", body])
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_leaves_a_loadable_checkpoint(tmp_path: Path) -> None:
    process = run_script(
        f"make_trainer(Path({str(tmp_path)!r}), steps=10**7, checkpoint_every=0, log_every=1).fit()"
    )
    metrics = tmp_path / "metrics.jsonl"
    deadline = time.time() + 120
    while not (metrics.exists() and metrics.read_text().count("\n") > 5):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.time() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in stderr
    Policy.load(tmp_path)
    resumed = make_trainer(tmp_path, steps=10**7)
    resumed.resume(tmp_path)
    assert resumed.step > 5


@pytest.mark.parametrize("derivative", ["difference", "jvp"])
def test_two_processes_equal_one(tmp_path: Path, derivative: str) -> None:
    """DDP over gloo: the averaged gradient of two processes is that of one on the whole batch (jvp included)."""
    one = make_trainer(tmp_path / "one", {"name": "isd", "derivative": derivative}, steps=3)
    for encoder in (one.policy.encoder, one.ema_policy.encoder):
        encoder.noise = 0.0  # drawn per process, hence not comparable
    one.fit()
    body = "\n".join(
        [
            f"t = make_trainer(Path({str(tmp_path / 'two')!r}), dict(name='isd', derivative={derivative!r}), steps=3)",
            "t.policy.encoder.noise = t.ema_policy.encoder.noise = 0.0",
            "assert t.accelerator.num_processes == 2",
            "t.fit()",
        ]
    )
    processes = [
        run_script(
            body,
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE="2",
            LOCAL_WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT="29541" if derivative == "jvp" else "29542",
            ACCELERATE_USE_CPU="true",
            OMP_NUM_THREADS="1",
        )
        for rank in range(2)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
    two = Policy.load(tmp_path / "two", "raw").state_dict()
    for name, x in one.policy.state_dict().items():
        assert torch.allclose(x, two[name], rtol=1e-4, atol=1e-5), name
