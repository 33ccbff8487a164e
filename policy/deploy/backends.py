"""What runs an exported graph: onnxruntime, or OpenVINO with the same few methods.

Both are handed the bytes of an ONNX model whose digest was checked, and read no other file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np

from flowleap.policy.core.errors import FlowleapError, optional_import, suggest
from flowleap.policy.deploy.onnx_file import read_metadata

PRECISIONS = ("float32", "bfloat16", "int8")


class Session(Protocol):
    """What the runtime uses of an `onnxruntime.InferenceSession`."""

    def get_inputs(self) -> Sequence[Any]:
        """Of each input `name`, `shape` (batch first) and `type`, such as `tensor(float)`."""
        ...

    def get_outputs(self) -> Sequence[Any]:
        """The same of each output."""
        ...

    def get_modelmeta(self) -> Any:
        """What the model says of itself, in `custom_metadata_map`."""
        ...

    def run(self, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs of these names for inputs {name: array}."""
        ...


def open_session(manifest: Mapping[str, Any], model: bytes, file: Path, threads: int) -> Session:
    """Open a model with the backend and the precision that its manifest names; older ones name none: onnxruntime.

    Raises:
        FlowleapError: an unknown backend or precision, a package that is not installed, or a model that it cannot run.
    """
    backend = manifest.get("backend", "onnxruntime")
    for field, value, known in (
        ("backend", backend, list(BACKENDS)),
        ("precision", manifest.get("precision", "float32"), list(PRECISIONS)),
    ):
        if value not in known:
            raise FlowleapError(
                f"{file.parent}: field '{field}' of its manifest is {value!r}, none of {', '.join(known)}"
                f"{suggest(str(value), known)}; export it again, or install the flowleap that wrote it"
            )
    package = optional_import(backend, extra=_EXTRAS[backend])
    try:
        return BACKENDS[backend](package, model, manifest.get("precision", "float32"), threads)
    except Exception as error:  # they raise many kinds for models that they cannot run
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise FlowleapError(f"{file}: {backend} cannot load it ({reason}); export it again") from error


def _onnxruntime(onnxruntime: Any, model: bytes, precision: str, threads: int) -> Session:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # failures come as exceptions
    # A robot's other processes need the cores between two chunks.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")
    session: Session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session


class OpenVinoSession:
    """An ONNX model compiled by OpenVINO: for one chunk at once, and for all other sizes together when one comes.

    Args:
        openvino: the package.
        precision: `float32`, or `bfloat16` where the processor has it.
        threads: CPU threads.
    """

    def __init__(self, openvino: Any, model: bytes, precision: str, threads: int) -> None:
        self._core = openvino.Core()
        self._model = self._core.read_model(io.BytesIO(model))
        self._metadata = read_metadata(model)
        # In words, since OpenVINO's own choice on a processor with bfloat16 is bfloat16.
        self._config = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,
        }
        one = self._model.clone()
        # Every size that is open is 1: of the batch, and of the noises for an observation.
        self._one = {
            port.get_any_name(): [1 if dim.is_dynamic else dim.get_length() for dim in port.partial_shape]
            for port in one.inputs
        }
        one.reshape(self._one)
        self._requests: dict[bool, Any] = {True: self._compile(one)}

    def _compile(self, model: Any) -> Any:
        return self._core.compile_model(model, "CPU", self._config).create_infer_request()

    def _describe(self, ports: Sequence[Any]) -> list[Any]:
        types = {
            "f32": "tensor(float)",
            "u8": "tensor(uint8)",
            "boolean": "tensor(bool)",
            "i64": "tensor(int64)",
        }
        described = []
        for port in ports:
            axes = iter(("batch", "candidates"))
            shape = [dim.get_length() if dim.is_static else next(axes) for dim in port.partial_shape]
            kind = port.element_type.get_type_name()
            described.append(
                SimpleNamespace(name=port.get_any_name(), shape=shape, type=types.get(kind, kind))
            )
        return described

    def get_inputs(self) -> list[Any]:
        """See `Session`."""
        return self._describe(self._model.inputs)

    def get_outputs(self) -> list[Any]:
        """See `Session`."""
        return self._describe(self._model.outputs)

    def get_modelmeta(self) -> Any:
        """See `Session`."""
        return SimpleNamespace(custom_metadata_map=self._metadata)

    def run(self, names: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """See `Session`."""
        alone = all(list(array.shape) == self._one[name] for name, array in feed.items())
        if alone not in self._requests:
            self._requests[alone] = self._compile(self._model)
        request = self._requests[alone]
        request.infer(dict(feed), share_inputs=True)
        # A copy: the request writes its next results to the same memory.
        return [request.get_tensor(name).data.copy() for name in names]


BACKENDS: dict[str, Callable[[Any, bytes, str, int], Session]] = {
    "onnxruntime": _onnxruntime,
    "openvino": OpenVinoSession,
}
_EXTRAS = {"onnxruntime": "deploy", "openvino": "openvino"}
