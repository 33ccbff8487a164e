"""Trainer: exact resume, accumulation, interruption, NaN guard, early stopping, bfloat16, torch.compile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from flowleap.datasets.windows import Windows
from flowleap.envs.actors import load_actor
from flowleap.policy.checkpoint import resolve
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.core.spec import ObsKey, Spec
from flowleap.policy.normalizer import Normalizer
from flowleap.policy.policy import Policy
from flowleap.policy.training.config import TrainerConfig
from flowleap.policy.training.processes import set_threads
from flowleap.policy.training.trainer import Callback, Trainer

SPEC = Spec({"state": ObsKey((3,))}, action_dim=2, n_obs_steps=2, horizon=4, n_action_steps=2)


def make_trainer(
    run_dir: Path,
    objective: dict[str, Any] | None = None,
    change: Callable[[Policy], None] | None = None,
    evaluate: Callable[[Policy, int], dict[str, float]] | None = None,
    callback: Callback | None = None,
    teacher: Policy | None = None,
    info: dict[str, Any] | None = None,
    **options: Any,
) -> Trainer:
    """A small trainer on random data; `change` is applied to its policy first."""
    rng = np.random.default_rng(0)
    columns = {key: rng.normal(size=(60, n)).astype(np.float32) for key, n in (("state", 3), ("action", 2))}
    windows = Windows(columns, np.array([20, 60]), SPEC)
    torch.manual_seed(0)
    config = {
        "objective": objective or {"name": "isd"},
        "head_sigma": 0.0,
        "backbone": {"name": "mlp", "width": 16, "depth": 1},
        "encoder": {"name": "lowdim", "noise": 0.01},  # uses the global RNG, which resume must restore
    }
    policy = Policy(SPEC, config)
    policy.normalizer.fit(columns)
    if change:
        change(policy)
    defaults = {
        "steps": 12,
        "batch_size": 8,
        "warmup_steps": 2,
        "log_every": 2,
        "device": "cpu",
        "progress": False,
    }
    trainer_config = TrainerConfig(**{**defaults, **options})
    given: dict[str, Any] = {"evaluate": evaluate, "callback": callback, "teacher": teacher, "info": info}
    return Trainer(policy, windows, trainer_config, run_dir, **given)


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
    assert whole.indices.state_dict() == resumed.indices.state_dict()
    assert torch.equal(rng_whole, torch.get_rng_state())
    rows = [
        json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows == [2, 4, 6, 8, 10, 12]


def test_from_python_a_run_needs_little(tmp_path: Path) -> None:
    """Policy, windows, options, a folder: the normaliser is fitted, and the callback sees every row of metrics."""
    rows: list[tuple[int, dict[str, float]]] = []

    def unfit(policy: Policy) -> None:
        policy.normalizer = Normalizer(SPEC)
        policy.info = {"note": "mine"}

    trainer = make_trainer(
        tmp_path,
        change=unfit,
        evaluate=lambda *_: {"score": 0.5},
        callback=lambda trainer, step, metrics: rows.append((step, dict(metrics))),
        steps=4,
        eval_every=4,
    )
    trainer.fit()
    reference = make_trainer(tmp_path / "unused").policy.normalizer.state_dict()
    for name, x in Policy.load(tmp_path).normalizer.state_dict().items():
        assert torch.allclose(x, reference[name]), name
    assert [(step, min(row)) for step, row in rows] == [
        (2, "data_share"),
        (4, "data_share"),
        (4, "eval/score"),
    ]
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [
        {"step": step, "time": row["time"], **metrics}
        for row, (step, metrics) in zip(logged, rows, strict=True)
    ] == logged
    assert {"note": "mine", "step": 4}.items() <= Policy.load(tmp_path).info.items()


def test_small_networks_take_one_thread() -> None:
    policy, before = make_trainer(Path("unused")).policy, torch.get_num_threads()
    try:
        set_threads(2, policy)
        assert torch.get_num_threads() == 2
        set_threads(0, policy)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


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
    before = trainer.optimizer.step
    stepped: list[int] = []
    trainer.optimizer.step = lambda *args: (stepped.append(trainer.step), before(*args))  # type: ignore
    with pytest.raises(FlowleapError, match="NaN or infinite at step 6") as error:
        trainer.fit()
    assert stepped == [0, 1, 2, 3, 4, 5]
    assert resolve(tmp_path).name == "step_00000004"
    Policy.load(tmp_path)
    file = tmp_path / "nan" / "step_00000006" / "batch.safetensors"
    assert str(file) in str(error.value)
    saved = load_file(file)
    assert f"'action' of window {saved['window'][0]} is not finite" in str(error.value)
    # The very batch and draw: what an undisturbed trainer meets at this step.
    healthy = make_trainer(tmp_path / "healthy", stop_at=6)
    healthy.fit()
    batch, draw = healthy.batch()
    assert torch.equal(saved["action"][1:], batch["action"][1:])
    assert torch.equal(saved["obs.state"], batch["obs"]["state"])
    for name in ("noise", "t", "s"):
        assert torch.equal(saved[f"draw.{name}"], getattr(draw, name)), name


def test_a_diverging_run_is_told_apart_from_bad_data(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        next(trainer.policy.net.parameters()).fill_(float("inf"))
    with pytest.raises(FlowleapError, match=r"inputs are finite; lower trainer\.lr or trainer\.grad_clip$"):
        trainer.fit()


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_equal_those_of_the_whole_batch(tmp_path: Path, parts: int) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        grads = []
        for accumulate in (1, parts):
            trainer = make_trainer(tmp_path, change=silent, accumulate=accumulate, grad_clip=1e9)
            scalars = trainer.train_step(*trainer.batch())
            grads.append({key: p.grad for key, p in trainer.policy.named_parameters()} | scalars)
    finally:
        torch.set_default_dtype(torch.float32)
    for key, x in grads[0].items():
        assert torch.allclose(x, grads[1][key], rtol=1e-8, atol=1e-9), key  # the difference has eps 1e-6
    with pytest.raises(FlowleapError, match=r"batch_size=8 .* trainer\.accumulate=3; choose a multiple of 3"):
        make_trainer(tmp_path, accumulate=3)


def silent(policy: Policy) -> None:
    """No observation noise, which each micro-batch and process draws for itself; torch's default dtype."""
    policy.encoder.noise = 0.0  # type: ignore[assignment]
    policy.to(torch.get_default_dtype())


def losses(run_dir: Path, **options: Any) -> np.ndarray:
    """Mean flow-matching and self-distillation loss of each tenth of a run of 100 steps."""
    make_trainer(run_dir, change=silent, steps=100, log_every=10, **options).fit()
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return np.array([[row["fm"], row["sd"]] for row in rows])


def test_the_largest_gradient_norm_of_each_row_is_that_of_its_steps(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    step, norms = trainer.train_step, []

    def noted(*batch: Any) -> Any:
        scalars = step(*batch)
        norms.append(float(scalars["grad_norm"]))
        return scalars

    trainer.train_step = noted  # type: ignore[method-assign]
    trainer.fit()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    pairs = list(zip(norms[::2], norms[1::2], strict=True))
    assert [row["grad_norm_largest"] for row in rows] == pytest.approx([max(pair) for pair in pairs])
    assert [row["grad_norm"] for row in rows] == pytest.approx([sum(pair) / 2 for pair in pairs])


def test_bfloat16_follows_float32(tmp_path: Path) -> None:
    """Over 100 steps every logged loss stays within 3 % of float32's, and it falls."""
    full, half = losses(tmp_path / "full"), losses(tmp_path / "half", mixed_precision="bf16")
    assert not np.array_equal(full, half)
    assert half[-1, 0] < 0.9 * half[0, 0]
    np.testing.assert_allclose(half, full, rtol=0.03, atol=1e-3)


def test_compiled_training_equals_eager_and_keeps_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated as always, but executed by torch: the C++ compiler alone would take 20 s."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    for derivative in ("difference", "jvp"):
        objective = {"name": "isd", "derivative": derivative}
        norms, names = [], []
        for compiled in (False, True):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                trainer = make_trainer(tmp_path / "run", objective, silent, compile=compiled)
            uncompiled = [str(w.message) for w in caught if "runs uncompiled" in str(w.message)]
            assert bool(uncompiled) == (compiled and derivative != "difference")
            norms.append(trainer.train_step(*trainer.batch())["grad_norm"])
            names.append([*load_file(trainer.save() / "model.safetensors")])
            counters = torch._dynamo.utils.counters
            assert counters["stats"]["unique_graphs"] > 0 or not compiled
        assert torch.allclose(*norms, rtol=1e-3), derivative
        assert names[0] == names[1]


def test_a_failing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config as inductor

    torch._dynamo.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with pytest.raises(FlowleapError, match=r"no-such-compiler.*set trainer\.compile=false"):
        make_trainer(tmp_path, {"name": "flow_matching"}, compile=True).fit()


def test_the_draw_knows_the_progress(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, steps=8)
    progress = []
    for trainer.step in range(8):
        progress.append(trainer.batch()[1].progress)
    assert progress == [step / 8 for step in range(8)]


def test_patience(tmp_path: Path) -> None:
    """Scores rise, then stall: two stale evaluations end the run; a resumed run remembers those before it."""
    scores = {2: 0.1, 4: 0.5, 6: 0.4, 8: 0.5, 10: 0.6, 12: 0.6}

    def trainer(**options: Any) -> Trainer:
        evaluate = lambda policy, step: {"score": scores[step]}  # noqa: E731
        return make_trainer(
            tmp_path, evaluate=evaluate, eval_every=2, patience=2, checkpoint_every=2, **options
        )

    first = trainer(stop_at=6)
    first.fit()
    assert first.stop_reason is None
    resumed = trainer()
    resumed.resume(tmp_path)
    assert resolve(resumed.fit()).name == "step_00000008"
    assert resumed.stop_reason
    assert "step 8" in resumed.stop_reason
    assert "above 0.500 for 2 evaluations" in resumed.stop_reason
    assert resolve(tmp_path).name == "step_00000008"
    patient = trainer()
    patient.stopping.patience = 0
    assert resolve(patient.fit()).name == "step_00000012"


def test_a_failing_evaluation_costs_no_steps(tmp_path: Path) -> None:
    def evaluate(policy: Policy, step: int) -> dict[str, float]:
        raise RuntimeError("simulator")

    with pytest.raises(RuntimeError, match="simulator"):
        make_trainer(tmp_path, evaluate=evaluate, eval_every=3, checkpoint_every=0).fit()
    assert resolve(tmp_path).name == "step_00000003"


def test_evaluation_during_training_gets_the_ema_policy(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def evaluate(policy: Policy, step: int) -> dict[str, float]:
        assert policy is trainer.ema_policy
        seen.append((step, policy.training))
        policy.act({"state": torch.zeros(1, 2, 3)})
        return {"success": 0.5}

    trainer = make_trainer(tmp_path, steps=4, eval_every=2, evaluate=evaluate)
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
        ({"accumulate": 0}, r"trainer\.accumulate"),
        ({"patience": 3}, r"set trainer\.eval_every"),
    ],
)
def test_option_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FlowleapError, match=message):
        TrainerConfig(**options)
    with pytest.raises(FlowleapError, match="no option 'lrr'"):
        TrainerConfig.from_mapping({"lrr": 1})
    with pytest.raises(FlowleapError, match="needs a task to evaluate"):
        make_trainer(Path("unused"), eval_every=1, patience=1)


def no_links(*args: Any, **options: Any) -> None:
    """What a file system without symbolic links does."""
    raise PermissionError(1, "Operation not permitted")


def test_without_links_a_file_names_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that opens checkpoints understands it, and link and file replace each other."""
    monkeypatch.setattr(os, "symlink", no_links)
    make_trainer(tmp_path, checkpoint_every=4, stop_at=8).fit()
    last = tmp_path / "checkpoints" / "last"
    assert last.is_file()
    assert not last.is_symlink()
    assert last.read_text() == "step_00000008\n"
    for place in (tmp_path, tmp_path / "checkpoints", last, last.with_name("step_00000008")):
        assert resolve(place).name == "step_00000008"
        assert Policy.load(place).info["step"] == load_actor(place).describe["training"]["step"] == 8
        resumed = make_trainer(tmp_path, stop_at=9)
        resumed.resume(place)
        assert resumed.step == 8
    resumed.fit()
    assert last.read_text() == "step_00000009\n"
    monkeypatch.undo()
    resumed = make_trainer(tmp_path, stop_at=10)
    resumed.resume(tmp_path)
    resumed.fit()
    assert last.is_symlink()
    assert resolve(last).name == "step_00000010"
    monkeypatch.setattr(os, "symlink", no_links)
    resumed = make_trainer(tmp_path)
    resumed.resume(tmp_path)
    resumed.fit()
    assert last.read_text() == "step_00000012\n"
    assert sorted(path.name for path in last.parent.iterdir()) == ["last", "step_00000010", "step_00000012"]


@pytest.mark.parametrize("text", ["../../elsewhere", "step_00000012/../..", "", "step_00000099", "x" * 10**6])
def test_a_file_in_place_of_a_link_names_nothing_but_a_neighbour(tmp_path: Path, text: str) -> None:
    checkpoint = resolve(make_trainer(tmp_path / "run").fit())
    shutil.copytree(checkpoint, tmp_path / "elsewhere")
    last = tmp_path / "run" / "checkpoints" / "last"
    last.unlink()
    last.write_text(text)
    with pytest.raises(FlowleapError, match="is not a checkpoint"):
        resolve(tmp_path / "run")


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
    deadline = time.time() + 600
    while not (metrics.exists() and metrics.read_text().count("\n") > 5):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.time() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in stderr
    Policy.load(tmp_path)
    resumed = make_trainer(tmp_path, steps=10**7)
    resumed.resume(tmp_path)
    assert resumed.step > 5
