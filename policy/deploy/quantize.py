"""int8: the large matrix products of an exported graph with weights of 8 bits, by onnxruntime's dynamic quantisation.

Weights are rounded once, to [-64, 64] per output channel; what they are multiplied with is rounded to 8 bits at each
call, by its own range. Nothing is calibrated, hence nothing depends on data. The limit of 64 keeps the sum of two
products within 16 bits: processors without VNNI would saturate, and act otherwise than the one of the export's check.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flowleap.policy.core.errors import optional_import

# Smaller products gain less than the rounding costs.
_SMALLEST = 2**12


def quantize(model: bytes) -> bytes:
    """Round the weights of the large products of an ONNX model to int8; inputs, outputs and metadata stay."""
    onnx = optional_import("onnx", extra="deploy")
    quantization = optional_import("onnxruntime.quantization", extra="deploy")
    whole = onnx.load_from_string(model)
    metadata = {entry.key: entry.value for entry in whole.metadata_props}
    graphs = list(_graphs(whole.graph))
    sizes = {x.name: math.prod(x.dims) for graph in graphs for x in graph.initializer}
    kept = []
    for i, node in enumerate(node for graph in graphs for node in graph.node):
        if node.op_type in ("MatMul", "Gemm"):
            node.name = f"product_{i}"
            if sizes.get(node.input[1], 0) < _SMALLEST:
                # The tool turns a Gemm into a MatMul of this name first.
                kept += [node.name, f"{node.name}_MatMul"]
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "int8.onnx"
            quantization.quantize_dynamic(
                whole,
                out,
                op_types_to_quantize=["MatMul"],
                nodes_to_exclude=kept,
                per_channel=True,
                reduce_range=True,
                extra_options={"EnableSubgraph": True},
            )
            small = onnx.load(out)
    finally:
        logging.disable(disabled)
    del small.metadata_props[:]
    for key, value in metadata.items():
        entry = small.metadata_props.add()
        entry.key, entry.value = key, value
    return bytes(small.SerializeToString())


def _graphs(graph: Any) -> Iterable[Any]:
    """A graph and those inside of its nodes, such as the body of a loop."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
