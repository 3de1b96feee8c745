"""Messages between the agent and its child that holds the connection to Ray, over private pipes.

A message is plain data: JSON, and bytes anywhere in it. On the wire: the lengths of both parts, the JSON with each run
of bytes replaced by its place, the bytes one after the other.
"""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from typing import Any, BinaryIO, List

__all__ = ["grow", "pack", "read", "read_blocking", "shrink"]

_LENGTHS = struct.Struct("<II")
_SHRUNK = "shrunk"
_MUCH = 1 << 16
_SAMPLE = 1 << 14
_MARK = "bytes at"


def pack(message: object) -> bytes:
    """Tuples become lists; keys of mappings are strings. Raises TypeError for what is no plain data."""
    blobs: List[bytes] = []
    place = 0

    def put(value: object) -> Any:
        nonlocal place
        if isinstance(value, bytes):
            blobs.append(value)
            place += len(value)
            return {_MARK: [place - len(value), place]}
        if isinstance(value, (list, tuple)):
            return [put(each) for each in value]
        if isinstance(value, dict):
            return {name: put(each) for name, each in value.items()}
        return value

    text = json.dumps(put(message)).encode()
    return b"".join([_LENGTHS.pack(len(text), place), text, *blobs])


def _unpack(text: bytes, blob: bytes) -> Any:
    def get(found: Any) -> Any:
        place = found.get(_MARK)
        return found if place is None else blob[place[0] : place[1]]

    return json.loads(text.decode(), object_hook=get)


def read_blocking(stream: BinaryIO) -> Any:
    """The next message. Raises EOFError at the end of the stream."""
    head = stream.read(_LENGTHS.size)
    if len(head) < _LENGTHS.size:
        raise EOFError
    sizes = _LENGTHS.unpack(head)
    return _unpack(stream.read(sizes[0]), stream.read(sizes[1]))


async def read(stream: asyncio.StreamReader) -> Any:
    """The next message. Raises EOFError at the end of the stream."""
    try:
        sizes = _LENGTHS.unpack(await stream.readexactly(_LENGTHS.size))
        text = await stream.readexactly(sizes[0])
        return _unpack(text, await stream.readexactly(sizes[1]))
    except asyncio.IncompleteReadError as exc:
        raise EOFError from exc


def shrink(value: object) -> Any:
    """The value itself; when it is large and can be made much smaller, what `grow` makes it of again.

    Logs mostly shrink to a quarter or less, which costs a tenth of what carrying them through Ray does.
    """
    data = pack(value)
    if len(data) < _MUCH:
        return value
    middle = len(data) // 2
    if len(zlib.compress(data[middle : middle + _SAMPLE], 1)) > _SAMPLE * 2 // 3:
        return value
    return {_SHRUNK: zlib.compress(data, 1)}


def grow(value: Any) -> Any:
    """What `shrink` was given, as `read` tells it."""
    if not isinstance(value, dict) or set(value) != {_SHRUNK}:
        return value
    data = zlib.decompress(value[_SHRUNK])
    size = _LENGTHS.unpack_from(data)[0]
    return _unpack(data[_LENGTHS.size : _LENGTHS.size + size], data[_LENGTHS.size + size :])
