"""Export: a policy becomes one ONNX graph, normaliser + encoder + head at a fixed NFE + unnormaliser.

A format is the graph, in float32 or int8, and what runs it. The backbone is rewritten for calls of one chunk (`gemm`,
`joined`).

    OUT/policy.onnx   inputs `noise` [B,K,H,A] and one per observation key, output `action` [B,K,H,A], real units
    OUT/export.json   format version, Spec, NFE, input names, backend, precision, versions, digests, parity and latency

The folder appears only when the graph, run by `runtime.ExportedPolicy`, repeats the eager policy.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowleap.policy.checkpoint import WEIGHTS
from flowleap.policy.core.errors import FlowleapError, optional_import, suggest
from flowleap.policy.core.files import write_directory
from flowleap.policy.core.versions import flowleap_version, package_versions
from flowleap.policy.deploy import parity, runtime
from flowleap.policy.deploy.gemm import GemmUNet
from flowleap.policy.deploy.joined import JoinedMLP, JoinedTransformer
from flowleap.policy.deploy.quantize import quantize
from flowleap.policy.deploy.runtime import ExportedPolicy
from flowleap.policy.deploy.unroll import unroll
from flowleap.policy.networks.mlp import MLPBackbone
from flowleap.policy.networks.time_embedding import TimeEmbedding
from flowleap.policy.networks.transformer import TransformerBackbone
from flowleap.policy.networks.unet1d import UNet1dBackbone
from flowleap.policy.policy import Policy

OPSET = 20
MAX_BYTES = 2**31 - 2**20  # of weights: protobuf ends at 2 GB, the graph itself needs some room
# Format -> what runs it, and in which numbers.
FORMATS = {
    "onnx": ("onnxruntime", "float32"),
    "onnx-int8": ("onnxruntime", "int8"),
    "openvino": ("openvino", "float32"),
    "openvino-bf16": ("openvino", "bfloat16"),
}
# Largest difference from the eager policy over the action range; of reduced precision, the root mean square.
TOLERANCES = {"float32": 1e-4, "int8": 0.05, "bfloat16": 0.05}
SYNTHETIC_WINDOWS = 256


def export(
    policy: Policy | str | Path,
    out: str | Path,
    steps: int | None = None,
    weights: str = "ema",
    observations: parity.Observations | None = None,
    tolerance: float | None = None,
    format: str = "onnx",
    convolutions: bool = False,
    ddpm: bool = True,
    batches: Sequence[int] | None = None,
    simulate: Callable[[Policy, ExportedPolicy], Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Write the exported folder `out`, atomically, after comparing it with the eager policy.

    Args:
        policy: a policy, or a checkpoint or run directory to load its `weights` (`ema` or `raw`) from.
        out: the folder; an earlier export in its place is replaced.
        steps: NFE; `None` is the objective's default.
        observations: real ones, {key: [N, To, *shape]}; `None` draws them from the normaliser's range.
        tolerance: largest difference from the eager policy, relative to the action range, of reduced precision the root
            mean square of all differences of an action dimension; `None` is that of the precision in `TOLERANCES`.
        format: one of `FORMATS`.
        convolutions: leave the U-Net's convolutions as they are, instead of the Gemm form.
        ddpm: also time DDPM-100 with the same network, eagerly.
        batches: the batch sizes that are compared; `None` is those of `parity`.
        simulate: compares both in simulation; what it returns becomes `simulation` in the manifest.

    Returns:
        The content of `export.json`.

    Raises:
        FlowleapError: the checkpoint, `steps` or `format` is unusable, `out` holds something else, or the graph differs
            from the policy by more than `tolerance`. Nothing is left behind then, and an earlier export stays.
    """
    if format not in FORMATS:
        raise FlowleapError(f"format={format} is none of {', '.join(FORMATS)}{suggest(format, FORMATS)}")
    backend, precision = FORMATS[format]
    if backend == "openvino":
        optional_import("openvino", extra="openvino")  # before the work
    out = Path(out)
    if out.exists() and not (out / runtime.MANIFEST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise FlowleapError(
            f"{out} exists and is not an exported policy; choose another place with out=FOLDER"
        )
    if not isinstance(policy, Policy):
        policy = Policy.load(policy, weights)
    policy = copy.deepcopy(policy).cpu().eval()  # the caller's may be on a GPU, or be trained further
    steps = policy.objective.check_steps(steps)
    manifest: dict[str, Any] = {
        "format": runtime.FORMAT,
        "format_version": runtime.FORMAT_VERSION,
        "spec": policy.spec.to_dict(),
        "steps": steps,
        "draws": policy.objective.draws(steps),
        "actions": policy.spec.horizon,
        "candidates": policy.objective.draws(steps) == 1,
        "prefix": policy.prefix,
        "objective": policy.objective.name,
        "backend": backend,
        "precision": precision,
        "convolutions": convolutions,
        "inputs": {key: f"obs_{i}" for i, key in enumerate(policy.spec.observations)},
        "ranges": _ranges(policy),
        "task": policy.info.get("task"),
        "checkpoint": {
            "name": policy.checkpoint.name if policy.checkpoint else None,
            "step": policy.info.get("step"),
            "weights": policy.weights,
            "policy": policy.config,
            "sha256": _digest(policy.checkpoint),
            "data": policy.info.get("data"),
        },
        "opset": OPSET,
        "versions": {
            "flowleap": flowleap_version(),
            **package_versions(
                "torch", "onnx", "onnxscript", "onnxruntime", *(["openvino"] if backend == "openvino" else [])
            ),
        },
    }
    kind = "synthetic" if observations is None else "dataset"
    if observations is None:
        observations = parity.synthetic_observations(policy, SYNTHETIC_WINDOWS)
    model = trace(policy, manifest)
    if precision == "int8":
        model = quantize(model)
    if backend == "openvino" and manifest["draws"] > 1:
        model = unroll(model, steps)
    manifest["sha256"] = hashlib.sha256(model).hexdigest()

    def fill(folder: Path) -> None:
        (folder / runtime.MODEL).write_bytes(model)
        _write_manifest(folder, manifest)
        exported = ExportedPolicy.load(folder)
        report = parity.parity(policy, exported, observations, batches=batches)
        limit = TOLERANCES[precision] if tolerance is None else tolerance
        measure = "max_relative" if precision == "float32" else "rms_relative"
        parity.check_tolerance(report, limit, measure)
        manifest["parity"] = {"observations": kind, "tolerance": limit, "measure": measure, **report}
        manifest["latency"] = parity.latency(policy, exported, observations, ddpm)
        if simulate:
            manifest["simulation"] = dict(simulate(policy, exported))
        _write_manifest(folder, manifest)

    write_directory(out, fill)
    return manifest


def _digest(checkpoint: Path | None) -> str | None:
    """Of the weights that were exported; None of a policy that was not loaded."""
    file = checkpoint / WEIGHTS if checkpoint else None
    return hashlib.sha256(file.read_bytes()).hexdigest() if file and file.is_file() else None


def _ranges(policy: Policy) -> dict[str, Any]:
    """The normalisation of each low-dim key as `[scale, offset]`, by which the runtime judges its inputs."""
    normalizer = policy.normalizer
    keys = (key for key in normalizer.index if key in policy.spec.observations)
    known = {key: normalizer.range_of(key) for key in keys}
    return {key: [part.tolist() for part in pair] for key, pair in known.items() if pair is not None}


def trace(policy: Policy, manifest: Mapping[str, Any]) -> bytes:
    """Return the serialised ONNX model of `policy` at the manifest's NFE, its fingerprint in the metadata."""
    size = sum(x.numel() * x.element_size() for x in policy.state_dict().values())
    if size > MAX_BYTES:
        raise FlowleapError(
            f"the policy holds {size / 1e9:.1f} GB of weights; one ONNX file holds at most 2 GB"
        )
    graph = _Graph(copy.deepcopy(policy), manifest["steps"]).eval().requires_grad_(False)
    if not manifest.get("convolutions"):
        rewrite(graph, policy.spec.horizon)
    example = _example(policy, manifest["draws"], batch=2)  # 2: torch takes sizes 0 and 1 for constants
    if manifest["draws"] == 1:  # else the graph has a loop, with other times at each pass
        fold_times(graph.policy, manifest["steps"], example)
    batch, axes = (
        torch.export.Dim("batch"),
        {1: torch.export.Dim("candidates")} if manifest["candidates"] else {},
    )
    rest = len(example) - 1
    dynamic = {runtime.NOISE: {0: batch, **axes}, "rest": tuple({0: batch} for _ in range(rest))}
    names = [
        runtime.NOISE,
        *manifest["inputs"].values(),
        *(runtime.PREFIX_INPUTS if manifest["prefix"] else ()),
    ]
    try:
        with _silence():
            # strict: it follows `len(x)` symbolically, where the default would freeze the batch size.
            program = torch.export.export(graph, example, dynamic_shapes=dynamic, strict=True)
            onnx_program = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=names,
                output_names=[runtime.ACTION],
                verbose=False,
            )
    except Exception as error:  # the exporter raises many kinds for what it cannot express
        config = policy.config
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise FlowleapError(
            f"cannot express backbone '{config['backbone']['name']}' with objective "
            f"'{config['objective']['name']}' in ONNX: {reason}"
        ) from error
    assert onnx_program is not None
    model = onnx_program.model_proto
    _strip(model, manifest["candidates"])
    entry = model.metadata_props.add()
    entry.key, entry.value = runtime.FINGERPRINT, runtime.fingerprint(manifest)
    return model.SerializeToString()


def rewrite(module: nn.Module, horizon: int) -> None:
    """Give the backbones inside of `module` the form that is fastest for one chunk at a time, in place.

    A subclass of a backbone may compute something else, and stays as it is.
    """
    for name, net in list(module.named_modules()):
        if type(net) is UNet1dBackbone:
            module.set_submodule(name, GemmUNet(net, horizon))
        elif type(net) is MLPBackbone:
            module.set_submodule(name, JoinedMLP(net))
        elif type(net) is TransformerBackbone:
            module.set_submodule(name, JoinedTransformer(net))
    # The exporter takes a loop whose weights want gradients for training.
    module.eval().requires_grad_(False)


class _Graph(nn.Module):
    """What is traced: (noise [B,K,H,A], *observations [B,To,*shape]) -> actions [B,K,H,A].

    A policy that goes on from given actions has them [B,P,A], and their number [B], behind the observations.
    """

    def __init__(self, policy: Policy, steps: int) -> None:
        super().__init__()
        self.policy = policy
        self.steps = steps
        self.keys = tuple(policy.spec.observations)

    def forward(self, noise: Tensor, *rest: Tensor) -> Tensor:
        observations = dict(zip(self.keys, rest, strict=False))
        prefix, given = rest[len(self.keys) :] or (None, None)
        return self.policy.chunk(observations, noise, self.steps, prefix, given)


class FixedTimes(nn.Module):
    """Stands in for a `TimeEmbedding` on a fixed time grid: gives its constant vectors, call after call."""

    rows: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.calls = 0

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        """Return the vector of this call for every sample; [B, dim]."""
        i = self.calls % len(self.rows)
        self.calls += 1
        return self.rows[i : i + 1].expand(t.shape[0], -1)


def fold_times(policy: Policy, steps: int, example: tuple[Tensor, ...]) -> None:
    """Replace every time embedding by the vectors it takes on the grid of `steps` leaps, in place.

    The times are constants, but the exporter cannot see it: they are first expanded to the batch size.
    """
    noise, *rest = (x[:1] for x in example)
    embeddings = {name: m for name, m in policy.named_modules() if isinstance(m, TimeEmbedding)}
    for name, embedding in embeddings.items():
        seen: list[Tensor] = []
        hook = embedding.register_forward_hook(lambda _module, _args, out, seen=seen: seen.append(out))
        with torch.no_grad():
            _Graph(policy, steps)(noise[:, :1], *rest)
        hook.remove()
        policy.set_submodule(name, FixedTimes(torch.cat(seen)))


def _example(policy: Policy, draws: int, batch: int) -> tuple[Tensor, ...]:
    # Three candidates: torch takes sizes 0 and 1 for constants.
    noise = torch.zeros(batch, *([3] if draws == 1 else []), *runtime.noise_shape(policy.spec, draws))
    inputs = [*runtime.graph_inputs(policy.spec).values(), *runtime.prefix_inputs(policy.spec, policy.prefix)]
    return noise, *(torch.zeros(batch, *shape, dtype=getattr(torch, dtype.name)) for shape, dtype in inputs)


def _strip(model: Any, candidates: bool) -> None:
    """Drop what a runtime does not need (stack traces, inferred shapes) and name the axes of any size."""
    graph = model.graph
    del model.metadata_props[:], graph.value_info[:], graph.metadata_props[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    for value in (*graph.input, *graph.output):
        shape = value.type.tensor_type.shape
        shape.dim[0].dim_param = "batch"
        if candidates and value.name in (runtime.NOISE, runtime.ACTION):
            shape.dim[1].dim_param = "candidates"


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    (folder / runtime.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _silence() -> Iterator[None]:
    """Mute the exporter's warnings and log lines: what matters about its result is checked."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(previous)
