"""Messages between the agent and its child that holds the connection to Ray: a length, then a pickle, over private pipes."""

from __future__ import annotations

import asyncio
import pickle
import struct
from typing import Any, BinaryIO

__all__ = ["pack", "read", "read_blocking"]

_LENGTH = struct.Struct("<I")


def pack(message: object) -> bytes:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(data)) + data


def read_blocking(stream: BinaryIO) -> Any:
    """Raises EOFError at the end of the stream."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    data = stream.read(_LENGTH.unpack(head)[0])
    return pickle.loads(data)


async def read(stream: asyncio.StreamReader) -> Any:
    """Raises EOFError at the end of the stream."""
    try:
        head = await stream.readexactly(_LENGTH.size)
        return pickle.loads(await stream.readexactly(_LENGTH.unpack(head)[0]))
    except asyncio.IncompleteReadError as exc:
        raise EOFError from exc
