"""The messages between a robot and `flowleap serve`: msgpack, with arrays packed as `openpi-client` packs them.

An array is a map with the keys `__ndarray__` (true), `data` (its bytes in C order), `dtype` (such as "<f4") and
`shape`, a numpy scalar one with `__npgeneric__`, `data` (a number) and `dtype`; the keys are bytes. A message is a map
of names to values; maps in it are joined to its names by a slash.

Nothing of a message is trusted. Arrays are made when they are asked for, of dtypes on a list, by `np.frombuffer`, which
looks at lengths; a decoder that hands the dtype and shape of a stranger to `np.ndarray` can be made to read anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowleap.policy.core.errors import FlowleapError, optional_import

if TYPE_CHECKING:
    import msgpack
else:
    msgpack = optional_import("msgpack", extra="serve")

ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"
DTYPES = {
    dtype.str: dtype
    for order in "<>"
    for code in ("b1", "i1", "u1", "i2", "u2", "f2", "i4", "u4", "f4", "i8", "u8", "f8")
    for dtype in [np.dtype(order + code)]
}
"""What arrays may be made of: booleans, whole numbers and floats, by their name in a message."""

MAX_ITEMS = 2**13
"""Values in a message, those in lists and maps of it included; an array is one."""

# Memory is taken for as many as a list declares, at each level of nesting.
_MAX_LIST = 1024
_MAX_DEPTH = 8
_MAX_AXES = 8
_NUMBERS = (bool, int, float)


class WireError(FlowleapError):
    """A message, or a value in it, is none that is understood; the message says what was expected."""


def decode(frame: bytes) -> dict[str, Any]:
    """Take a message apart into names and values, which stay as they were packed until `array` is asked for one.

    Args:
        frame: of any bytes.

    Returns:
        {name: value}, where {"images": {"top": x}} is {"images/top": x}.

    Raises:
        WireError: it is not msgpack, not a map, too deeply nested, or holds more values than messages have.
    """
    items = 0

    def count(values: Any) -> Any:
        nonlocal items
        items += len(values)
        if items > MAX_ITEMS:
            raise WireError(f"a message of more than {MAX_ITEMS} values; send numbers as arrays")
        return values

    limits = {"max_array_len": _MAX_LIST, "max_map_len": _MAX_LIST, "max_ext_len": 0}
    try:
        message = msgpack.unpackb(frame, object_hook=count, list_hook=count, ext_hook=_refuse, **limits)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        # msgpack has no words for too deep a nesting.
        reason = str(error) or "nested too deeply"
        raise WireError(f"a message that cannot be unpacked ({reason:.200}); send msgpack") from error
    if not isinstance(message, dict):
        raise WireError(f"a message must be a map of names to values, not {type(message).__name__}")
    flat: dict[str, Any] = {}
    waiting = [("", message, 1)]
    while waiting:
        prefix, values, depth = waiting.pop()
        for key, value in values.items():
            name = prefix + (key if isinstance(key, str) else key.decode(errors="replace"))
            if isinstance(value, dict) and not _packed(value):
                if depth == _MAX_DEPTH:
                    raise WireError(f"'{name:.200}' is nested more than {_MAX_DEPTH} levels deep")
                waiting.append((f"{name}/", value, depth + 1))
            else:
                flat[name] = value
    return flat


def array(name: str, value: Any) -> NDArray[Any]:
    """Make an array of a value of a message: a packed array or scalar, a number, or lists of numbers.

    Args:
        name: of the value, for messages.
        value: as `decode` returned it.

    Returns:
        An array of a dtype in `DTYPES`, in this machine's byte order; read-only where it shares the frame's memory.

    Raises:
        WireError: it is no such value, its dtype is not on the list, or shape and length do not agree.
    """
    dtype = None
    if isinstance(value, dict):
        if ARRAY not in value:
            # Keys as text, or a scalar.
            value = {_bytes(key): part for key, part in value.items()}
        dtype = _dtype(name, value.get(b"dtype"))
        if ARRAY in value:
            return _array(name, value.get(b"data"), dtype, value.get(b"shape"))
        value = value.get(b"data")
        if type(value) not in _NUMBERS:
            raise WireError(f"'{name}': a packed scalar needs 'data' that is a number")
    elif not isinstance(value, (*_NUMBERS, list)):
        raise WireError(f"'{name}' is {type(value).__name__}, not an array of numbers")
    try:
        made = np.array(value, dtype)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise WireError(f"'{name}' is not an array of numbers: lists must be of one length") from error
    if made.dtype.kind not in "biuf" or made.ndim > _MAX_AXES:
        raise WireError(f"'{name}' is not an array of numbers")
    return made


def encode(message: Mapping[str, Any]) -> bytes:
    """Pack a message: numbers, text, lists, maps and arrays of dtypes in `DTYPES`."""
    packed: bytes = msgpack.packb(message, default=_pack)
    return packed


def _pack(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.str in DTYPES:
        if isinstance(value, np.generic):
            return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
        return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _packed(value: dict[Any, Any]) -> bool:
    """Whether a map stands for an array; libraries without bytes as keys write text."""
    return ARRAY in value or SCALAR in value or ARRAY.decode() in value or SCALAR.decode() in value


def _bytes(key: Any) -> Any:
    return key.encode() if isinstance(key, str) else key


def _dtype(name: str, code: Any) -> np.dtype:
    if isinstance(code, bytes):
        code = code.decode(errors="replace")
    known = DTYPES.get(code) if isinstance(code, str) else None
    if known is None:
        shown = repr(code[:40]) if isinstance(code, str) else type(code).__name__
        raise WireError(f"'{name}': dtype {shown} is none of {', '.join(sorted(DTYPES))}")
    return known


def _array(name: str, data: Any, dtype: np.dtype, shape: Any) -> NDArray[Any]:
    if not isinstance(data, bytes):
        raise WireError(f"'{name}': 'data' must be bytes, not {type(data).__name__}")
    if not isinstance(shape, list) or len(shape) > _MAX_AXES:
        raise WireError(f"'{name}': 'shape' must be a list of up to {_MAX_AXES} whole numbers")
    # Python's whole numbers have no end: this cannot overflow.
    expected = dtype.itemsize
    for side in shape:
        if type(side) is not int or side < 0:
            raise WireError(f"'{name}': 'shape' must be a list of up to {_MAX_AXES} whole numbers")
        expected *= side
    if len(data) != expected:
        raise WireError(f"'{name}': {len(data)} bytes do not fill an array of {dtype.str} {shape}"[:300])
    if not data:
        raise WireError(f"'{name}' is an empty array")
    made = np.frombuffer(data, dtype).reshape(shape)
    return made if dtype.isnative else made.astype(dtype.newbyteorder("="))


def _refuse(code: int, data: bytes) -> Any:
    raise WireError(f"extension type {code} of msgpack is not understood")
