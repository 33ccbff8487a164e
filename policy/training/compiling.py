"""torch.compile for a policy in training."""

from __future__ import annotations

import warnings

from flowleap.policy.core.errors import FlowleapError, FlowleapWarning
from flowleap.policy.policy import Policy


def compile_modules(policy: Policy) -> None:
    """Compile network and encoder in place: unlike `torch.compile(module)`, this leaves the names of weights alone.

    A `FlowleapWarning` says where the objective's derivative is one that runs uncompiled.
    """
    method = policy.objective.options.get("derivative", "difference")
    if method != "difference":
        warnings.warn(
            f"trainer.compile: the pass of objective.derivative={method} runs uncompiled; 'difference' compiles",
            FlowleapWarning,
            stacklevel=3,
        )
    policy.net.compile()
    if next(policy.encoder.parameters(), None) is not None:
        policy.encoder.compile()


def compile_failure(error: RuntimeError) -> FlowleapError | None:
    """What to tell people if `error` comes from torch.compile, else None."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    reason = str(error).strip().splitlines()[0]
    return FlowleapError(
        f"torch.compile fails on this machine or network ({reason}); set trainer.compile=false, or install what is "
        "missing (a C++ compiler for CPUs, Triton for GPUs)"
    )
