"""Two processes over gloo against one: equal gradients for every objective, agreement on when to stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from test_trainer import SPEC, make_trainer, silent
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from flowleap.policy.checkpoint import resolve
from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.flow.objective import OBJECTIVES, Objective
from flowleap.policy.policy import Policy
from flowleap.policy.training.trainer import Trainer

# A finite difference divides by 1e-4, and would make 1e-3 of what rounding differs by between one process and two.
EXACT = {"name": "isd", "derivative": "jvp"}
PLAIN = {"grad_clip": 1e9, "batch_size": 8}


def cases() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Name -> (objective, trainer options): every objective with every derivative that it offers, and variants."""
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for name in OBJECTIVES:
        objective = Objective({"name": name})
        if "derivative" not in objective.options:
            found[name] = ({"name": name}, PLAIN)
            continue
        for derivative in ("difference", "jvp"):
            config = {"name": name, "derivative": derivative}
            try:
                Objective(config)
            except FlowleapError:  # esd and lsd have no finite difference
                continue
            found[f"{name}-{derivative}"] = (config, PLAIN)
    found["isd-accumulated"] = ({"name": "isd"}, {**PLAIN, "accumulate": 2})
    found["isd-ema"] = ({"name": "isd", "derivative": "jvp", "targets": "ema"}, PLAIN)
    found["isd-unused"] = ({"name": "isd"}, PLAIN)
    found["isd-uneven"] = ({"name": "isd", "diagonal": 0.6}, PLAIN)
    return found


def prepare(name: str, run_dir: Path) -> Trainer:
    """A trainer of one case, in the default dtype."""
    objective, options = cases()[name]

    def change(policy: Policy) -> None:
        silent(policy)
        if name == "isd-unused":
            policy.never_used = nn.Parameter(torch.ones(3))

    teacher = None
    if objective["name"] == "distillation":
        torch.manual_seed(1)
        teacher = Policy(SPEC, {"objective": "flow_matching", "backbone": "mlp", "encoder": "lowdim"}).eval()
    return make_trainer(run_dir, objective, change=change, teacher=teacher, **options)


def one_step(trainer: Trainer) -> dict[str, Tensor]:
    """Gradients and parameters of the first training step."""
    trainer.train_step(*trainer.batch())
    named = dict(trainer.policy.named_parameters())
    grads = {f"grad.{key}": p.grad.clone() for key, p in named.items() if p.grad is not None}
    return grads | {key: p.detach().clone() for key, p in named.items()}


def interrupt_one_process(out: Path) -> None:
    """Only process 1 gets a signal, at step 2; both end at the next multiple of log_every, with a checkpoint."""
    trainer = make_trainer(out / "interrupted", log_every=4, steps=100)
    gather = trainer.windows.gather

    def signalled(index: np.ndarray) -> dict[str, Any]:
        if trainer.accelerator.process_index == 1 and trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return gather(index)

    trainer.windows.gather = signalled  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.step == 4


def poison_one_process(out: Path) -> None:
    """A NaN among process 1's windows of step 5 ends both, after the look at step 8, and the batch is there."""
    trainer = make_trainer(out / "poisoned", log_every=4, checkpoint_every=4, steps=100)
    gather = trainer.windows.gather
    batches: list[np.ndarray] = []
    sample = trainer.indices.next

    def next_batch() -> np.ndarray:
        batches.append(sample())
        return batches[-1]

    def poisoned(index: np.ndarray) -> dict[str, Any]:
        arrays = gather(index)
        if len(batches) > 5:
            arrays["action"][index == batches[5][-1]] = np.nan
        return arrays

    trainer.indices.next, trainer.windows.gather = next_batch, poisoned  # type: ignore[method-assign]
    with pytest.raises(FlowleapError, match="step 5") as error:
        trainer.fit()
    assert trainer.step == 8
    assert f"'action' of window {batches[5][-1]} is not finite" in str(error.value)


def stop_early(out: Path) -> None:
    """Process 0 evaluates; both stop."""
    trainer = make_trainer(
        out / "early", steps=100, eval_every=3, patience=1, evaluate=lambda *_: {"score": 0.5}
    )
    trainer.fit()
    assert trainer.step == 6


def train_sharded(out: Path) -> None:
    """FSDP2 as docs/training.md configures it: train, stop, resume."""
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    settings = OmegaConf.create(page.partition("```yaml\n")[2].partition("```")[0]).fsdp_config
    os.environ |= {key.upper(): str(value).replace("False", "false") for key, value in settings.items()}
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for stop_at in (3, 6):
        # Accelerate offers FSDP to GPUs only.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        trainer = make_trainer(out / "sharded", EXACT, change=silent, accumulate=2, steps=6, stop_at=stop_at)
        assert all(isinstance(p, DTensor) for p in trainer.policy.parameters())
        if stop_at == 6:
            trainer.resume(out / "sharded")
        trainer.fit()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    with pytest.raises(FlowleapError, match=r"FSDP .*mixed_precision=no"):
        make_trainer(out / "sharded", EXACT, mixed_precision="bf16")


def work(out: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    for name in cases():
        trainer = prepare(name, out / name)
        assert trainer.accelerator.num_processes == 2
        save_file(one_step(trainer), out / f"{name}.{trainer.accelerator.process_index}.safetensors")
    torch.set_default_dtype(torch.float32)
    for scenario in (interrupt_one_process, poison_one_process, stop_early, train_sharded):
        scenario(out)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes filled."""
    out = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(out)],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in "01"
    ]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=800)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    return out


@pytest.fixture
def _float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("name", cases())
def test_two_processes_equal_one(two_processes: Path, tmp_path: Path, name: str) -> None:
    """The averaged gradient is that of one process on the whole batch; both processes take the same step."""
    one = one_step(prepare(name, tmp_path))
    first, second = (load_file(two_processes / f"{name}.{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == second.keys() == one.keys()
    # A difference divides rounding by eps = 1e-6.
    tolerance = 1e-8 if "difference" in name or "isd-" in name else 1e-11
    for key, x in one.items():
        assert torch.equal(first[key], second[key]), key
        assert torch.allclose(first[key], x, rtol=tolerance, atol=tolerance), key
    assert any(x.abs().max() > 1e-3 for key, x in one.items() if key.startswith("grad."))


def test_processes_agree_on_when_to_stop(two_processes: Path) -> None:
    """The scenarios passed in both processes; here are the files that they left."""
    assert resolve(two_processes / "interrupted").name == "step_00000004"
    assert resolve(two_processes / "poisoned").name == "step_00000004"
    assert resolve(two_processes / "early").name == "step_00000006"
    batch = load_file(two_processes / "poisoned" / "nan" / "step_00000005" / "batch.safetensors")
    assert batch["action"].shape == (8, 4, 2)
    assert batch["action"].isnan().flatten(1).any(1).tolist() == [False] * 7 + [True]


def test_sharded_training_equals_one_process(two_processes: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, EXACT, change=silent, steps=6)
    trainer.fit()
    for weights, policy in (("raw", trainer.policy), ("ema", trainer.ema_policy)):
        sharded = Policy.load(two_processes / "sharded", weights).state_dict()
        for name, x in policy.state_dict().items():
            assert torch.allclose(x, sharded[name], rtol=1e-3, atol=1e-5), name
    resumed = make_trainer(
        tmp_path, EXACT, change=silent, steps=6
    )  # one process goes on from what two have saved
    resumed.resume(two_processes / "sharded")
    assert resumed.step == 6


if __name__ == "__main__":
    work(Path(sys.argv[1]))
