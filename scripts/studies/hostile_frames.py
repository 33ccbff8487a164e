"""Messages of clients that are broken, or mean harm, for the tests of `flowleap serve` and its study."""

from __future__ import annotations

from typing import Any

from flowleap.policy.core.errors import optional_import

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
"""What opens a websocket, to go on by hand."""


def hostile_frames(key: str) -> dict[str, bytes]:
    """Requests that no server may act on, by what is wrong with them; the observation `key` is in most of them."""
    msgpack = optional_import("msgpack", extra="serve")

    def lying(dtype: Any = "<f4", shape: Any = (3,), data: Any = bytes(12)) -> bytes:
        packed = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
        return pack({key: packed})

    pack, name = msgpack.packb, msgpack.packb(key)
    return {
        "object": lying("|O", (1,), bytes(8)),
        "objects": lying("|O8", (3,), bytes(24)),
        "void": lying("|V4"),
        "structured": lying([["a", "<f4"], ["b", "|O"]]),
        "structured text": lying("f4,O"),
        "dates": lying("<M8[s]", (1,), bytes(8)),
        "text array": lying("<U3", (1,)),
        "complex": lying("<c8", (1,), bytes(8)),
        "dtype of python": lying("os.system"),
        "long dtype": lying("<f4" * 100_000),
        "dtype that is a map": lying({"names": ["a"], "formats": ["O"]}),
        "short data": lying(shape=(4,)),
        "long data": lying(shape=(2,)),
        "huge shape": lying(shape=(2**62, 2**62, 2**62)),
        "shape that wraps": lying(shape=(2**32, 2**32), data=b""),
        "negative": lying(shape=(-3,)),
        "minus one": lying(shape=(-1,)),
        "float shape": lying(shape=(3.0,)),
        "true shape": lying(shape=(True, 3)),
        "nested shape": lying(shape=[[3]]),
        "shape that is text": lying(shape="3"),
        "many axes": lying(shape=(1,) * 4000 + (3,)),
        "empty": lying(shape=(0, 10**18), data=b""),
        "data that is text": lying(data="x" * 12),
        "data that is a number": lying(data=12),
        "no shape": pack({key: {b"__ndarray__": True, b"data": bytes(12)}}),
        "scalar that is a list": pack({key: {b"__npgeneric__": 1, b"dtype": "<f4", b"data": [1]}}),
        "scalar that is large": pack({key: {b"__npgeneric__": 1, b"dtype": "|i1", b"data": 10**6}}),
        "ragged": pack({key: [[1.0, 2.0], [3.0]]}),
        "text": pack({key: ["a", "b", "c"]}),
        "large numbers": pack({key: [2**64 - 1, -1, 0.5, None]}),
        "nothing": pack({}),
        "no bytes": b"",
        "a list": pack([1, 2, 3]),
        "a number": pack(7),
        "keys that are numbers": pack({1: 2}),
        "a million lists": b"\x91" * 1_000_000 + b"\xc0",
        "a million maps": b"\x81\xa1a" * 1_000_000 + b"\xc0",
        "a million maps, unfinished": b"\x81\xa1a" * 1_000_000,
        "a thousand lists": b"\x81" + name + b"\x91" * 900 + b"\xc0",
        "deep maps": b"\x81\xa1a" * 500 + b"\xc0",
        "4 GB of list": b"\xdd\xff\xff\xff\xff",
        "4 GB of map": b"\xdf\xff\xff\xff\xff",
        "4 GB of bytes": b"\x81" + name + b"\xc6\xff\xff\xff\xff",
        "4 GB of text": b"\x81" + name + b"\xdb\xff\xff\xff\xff",
        "4 GB of extension": b"\x81" + name + b"\xc9\xff\xff\xff\xff\x01",
        "lists that declare more and more": b"\xdd\x00\x00\x04\x00" * 1020,
        "a million empty lists": b"\x81\xa1a\xdc\x03\xe8" + (b"\xdc\x03\xe8" + b"\x90" * 1000) * 1000,
        "an extension": pack({key: msgpack.ExtType(5, b"abc")}),
        "a date": b"\x81" + name + b"\xd6\xff\x00\x00\x00\x01",
        "text that is none": b"\x81" + name + b"\xa2\xff\xfe",
        "after the end": pack({key: 1}) + b"\x00",
        "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
        "reset that is a list": pack({"reset": [1, 2]}),
        "seed that is text": pack({"reset": True, "seed": "7"}),
        "negative seed": pack({"reset": True, "seed": -1}),
    }
