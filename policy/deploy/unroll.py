"""The loop of an exported DDPM written out, for runtimes whose loops may not refer to weights outside (OpenVINO)."""

from __future__ import annotations

from typing import Any

from flowleap.policy.core.errors import optional_import


def unroll(model: bytes, times: int) -> bytes:
    """Replace each `Scan` of an ONNX model, of so many passes, by its body that many times; weights are shared."""
    onnx = optional_import("onnx", extra="deploy")
    whole = onnx.load_from_string(model)
    nodes = []
    for node in whole.graph.node:
        nodes += _passes(onnx, whole.graph, node, times) if node.op_type == "Scan" else [node]
    del whole.graph.node[:]
    whole.graph.node.extend(nodes)
    return bytes(whole.SerializeToString())


def _passes(onnx: Any, graph: Any, scan: Any, times: int) -> list[Any]:
    attributes = {attribute.name: attribute for attribute in scan.attribute}
    body, scanned = attributes["body"].g, attributes["num_scan_inputs"].i
    graph.initializer.extend(body.initializer)
    states = len(scan.input) - scanned
    own = {x.name for x in body.input} | {name for node in body.node for name in node.output}
    current, nodes = list(scan.input[:states]), []
    for i in range(times):
        index = f"{scan.name}_{i}"
        graph.initializer.append(onnx.helper.make_tensor(index, onnx.TensorProto.INT64, [], [i]))
        names = {name: f"{name}_{index}" for name in own}
        names |= dict(zip((x.name for x in body.input), current, strict=False))
        for x, source in zip(body.input[states:], scan.input[states:], strict=True):
            nodes.append(onnx.helper.make_node("Gather", [source, index], [names[x.name]], axis=0))
        for inner in body.node:
            copied = onnx.NodeProto()
            copied.CopyFrom(inner)
            copied.name = f"{inner.name}_{index}"
            copied.input[:] = [names.get(name, name) for name in inner.input]
            copied.output[:] = [names.get(name, name) for name in inner.output]
            nodes.append(copied)
        current = [names[x.name] for x in body.output[:states]]
    for last, name in zip(current, scan.output[:states], strict=True):
        nodes.append(onnx.helper.make_node("Identity", [last], [name]))
    return nodes
