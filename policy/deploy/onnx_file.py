"""A look at the bytes of an ONNX model without the onnx package: its metadata; does it point at data outside itself?

A protobuf message is a row of fields, each a tag (field number and wire type) and a value; a message inside another
is a value with a length. Knowing which fields hold the messages on the way to a tensor is enough to visit them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flowleap.policy.core.errors import FlowleapError

# Message -> field number -> the message in that field, of onnx.proto: everything that may lead to a tensor.
_INSIDE: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of Tensor
_METADATA = 14  # of Model
_MAX_DEPTH = 100  # protobuf's own limit
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # wire types; ONNX has no others
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}


def refuse_external_data(model: bytes, file: Path) -> None:
    """Make sure that every tensor of a model is in the model.

    Args:
        model: the bytes of a `ModelProto`, not trusted.
        file: where they come from, for messages.

    Raises:
        FlowleapError: a tensor refers to another file, or the bytes are no protobuf messages.
    """
    try:
        outside = _has_external_data(model, "Model", range(len(model)), 0)
    except ValueError as error:
        raise FlowleapError(f"{file} is no ONNX model ({error}); export it again") from error
    if outside:
        raise FlowleapError(
            f"{file} refers to data in other files; an exported policy has all its data inside: do not use it"
        )


def read_metadata(model: bytes) -> dict[str, str]:
    """The metadata entries of a model that `refuse_external_data` has passed."""
    entries: dict[str, str] = {}
    for number, place in _fields(model, 0, len(model)):
        if number == _METADATA and isinstance(place, range):
            parts = {
                part: model[value.start : value.stop].decode("utf-8", "replace")
                for part, value in _fields(model, place.start, place.stop)
                if isinstance(value, range)
            }
            entries[parts.get(1, "")] = parts.get(2, "")
    return entries


def _has_external_data(data: bytes, message: str, place: range, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError(f"messages are nested more than {_MAX_DEPTH} deep")
    for number, value in _fields(data, place.start, place.stop):
        if message == "Tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
            return True
        child = _INSIDE[message].get(number)
        if child and isinstance(value, range) and _has_external_data(data, child, value, depth + 1):
            return True
    return False


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int | range | None]]:
    """The (number, value) of each field: an int, the range of bytes of what has a length, or None for the rest."""
    while at < end:
        tag, after = _varint(data, at, end)
        number, wire = tag >> 3, tag & 7
        # Readers disagree about longer tags: they may cut them to 32 bits and see another field than we do.
        if not number or tag >= 2**32 or after - at > 5:
            raise ValueError(f"invalid field at byte {at}")
        if wire == _VARINT:
            value, at = _varint(data, after, end)
            yield number, value
            continue
        if wire == _LENGTH:
            length, after = _varint(data, after, end)
        elif wire in _FIXED_BYTES:
            length = _FIXED_BYTES[wire]
        else:
            raise ValueError(f"invalid field at byte {at}")
        at = after + length
        if at > end:
            raise ValueError("it is cut off")
        yield number, range(after, at) if wire == _LENGTH else None


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The number at byte `at`, seven bits a byte, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it is cut off")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ValueError(f"invalid number at byte {at}")
