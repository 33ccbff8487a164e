"""What a training run takes from the machine: device, processes and precision (Accelerate), and CPU threads."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

from flowleap.policy.core.errors import FlowleapError
from flowleap.policy.policy import Policy
from flowleap.policy.training.config import TrainerConfig

LONGEST_EVALUATION = timedelta(hours=6)  # the other processes wait for the one that evaluates
SMALL_NETWORK = 5_000_000  # parameters


def start_accelerator(config: TrainerConfig) -> Accelerator:
    """Accelerate's view of device, processes and precision.

    Raises:
        FlowleapError: FSDP with a low precision.
    """
    # The state is one for the whole process: without this, a second trainer would inherit the first one's precision.
    # Accelerate has no public way; `Accelerator.free_memory` and `end_training` keep the state.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=config.mixed_precision,
        kwargs_handlers=[
            # Backbones and objectives may leave parameters without a gradient, for which DDP would wait forever. The
            # search takes no measurable time; where all parameters have one, torch says once that it was needless.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=LONGEST_EVALUATION),
        ],
    )
    if accelerator.distributed_type is DistributedType.FSDP and config.mixed_precision != "no":
        raise FlowleapError(
            "FSDP keeps low-precision weights, and derivatives need float32 ones: set trainer.mixed_precision=no, "
            "or train without FSDP"
        )
    return accelerator


def set_threads(threads: int, policy: Policy) -> None:
    """Set torch's CPU threads; 0 is one for a small network on the CPU, else what torch has by default.

    On two free cores a second thread makes the step of the default MLP 1.5 times faster, but 20 times slower when
    another program keeps one of the cores busy: the threads wait for each other in each of the many small operations.
    """
    small = policy.device.type == "cpu" and sum(p.numel() for p in policy.parameters()) < SMALL_NETWORK
    if threads or small:
        torch.set_num_threads(threads or 1)
