"""The agent's Unix socket: handshake, then requests by JSON lines, answered in any order.

One bad request ends nothing else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Set, Union

from .flow import Window
from .protocol import MAX_LINE_BYTES, PROTOCOL
from .refused import Refused

__all__ = ["Send", "Server", "Verb"]

_log = logging.getLogger(__name__)

# A verb gets its arguments and a way to send a batch of items; it returns what "ok" holds.
Send = Callable[[List[Dict[str, Any]]], Awaitable[None]]
Verb = Callable[[Mapping[str, Any], Send], Awaitable[Dict[str, Any]]]


class Server:
    """Listens, greets, and gives each request to its verb. hello: what the greeting says of this agent.

    on_contact: called with whatever a client sends.
    """

    def __init__(self, path: str, hello: Mapping[str, Any], verbs: Mapping[str, Verb]) -> None:
        self._path = path
        self._hello = dict(hello)
        self._verbs = dict(verbs)
        self._server: Optional[asyncio.AbstractServer] = None
        self._connections: Set[asyncio.Task[None]] = set()
        self._open: Set[_Connection] = set()
        self.on_contact: Callable[[], None] = lambda: None

    async def listen(self) -> None:
        """Takes the place of a socket that an agent left behind; only the account itself may connect."""
        os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
        if os.path.exists(self._path):
            os.unlink(self._path)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._accept, path=self._path, limit=MAX_LINE_BYTES)
        finally:
            os.umask(mask)

    @property
    def connected(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    def ask(self) -> None:
        """Has every client that waits for something say that it lives."""
        for connection in self._open:
            connection.ask()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        if os.path.exists(self._path):
            os.unlink(self._path)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: Optional[asyncio.Task[None]] = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
        connection = _Connection(reader, writer, self._verbs, lambda: self.on_contact())
        self._open.add(connection)
        try:
            if _is_own(writer.get_extra_info("socket")) and await connection.greet(self._hello):
                await connection.serve()
        except (ConnectionError, asyncio.CancelledError, ValueError) as exc:
            _log.debug("a connection ended: %r", exc)
        finally:
            connection.end()
            self._open.discard(connection)
            if task is not None:
                self._connections.discard(task)


def _encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _is_own(peer: socket.socket) -> bool:
    data = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return struct.unpack("3i", data)[1] in (os.geteuid(), 0)


class _Connection:
    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        verbs: Mapping[str, Verb],
        on_contact: Callable[[], None],
    ) -> None:
        self._on_contact = on_contact
        self._reader = reader
        self._writer = writer
        self._verbs = verbs
        self._requests: Dict[Union[int, str], asyncio.Task[None]] = {}
        self._windows: Dict[Union[int, str], Window] = {}
        self._drain_lock = asyncio.Lock()

    async def greet(self, hello: Mapping[str, Any]) -> bool:
        line = await self._reader.readline()
        try:
            theirs = json.loads(line.decode())["hello"]["protocol"]
        except (ValueError, KeyError, TypeError):
            theirs = None
        if theirs == PROTOCOL:
            await self._send([{"hello": dict(hello)}])
            return True
        message = f"this agent speaks protocol {PROTOCOL}, not {theirs}"
        await self._send([{"error": {"kind": "version", "message": message, "ours": PROTOCOL, "theirs": theirs}}])
        return False

    async def serve(self) -> None:
        while True:
            line = await self._reader.readline()
            if not line:
                return
            self._on_contact()
            try:
                request = json.loads(line.decode())
                number = request["id"]
            except (ValueError, KeyError, TypeError) as exc:
                await self._send([{"id": None, "error": {"kind": "invalid", "message": f"no request: {exc!r}"}}])
                continue
            if request.get("cancel"):
                task = self._requests.get(number)
                if task is not None:
                    task.cancel()
                continue
            if "taken" in request:
                if number in self._windows:
                    self._windows[number].taken(int(request["taken"]))
                continue
            self._requests[number] = asyncio.ensure_future(self._answer(number, request))

    async def _answer(self, number: Union[int, str], request: Mapping[str, Any]) -> None:
        window = self._windows[number] = Window(request.get("window"))

        async def send(items: List[Dict[str, Any]]) -> None:
            await window.wait()
            lines = [_encode({"id": number, "item": item}) for item in items]
            for line in lines:
                window.sent(len(line))
            await self._write(lines)

        try:
            verb = self._verbs.get(str(request.get("verb")))
            if verb is None:
                raise Refused("unknown_verb", f"there is no verb {request.get('verb')!r}")
            reply: Dict[str, Any] = {"ok": await verb(request.get("args") or {}, send)}
        except Refused as exc:
            reply = {"error": {**exc.facts, "kind": exc.kind, "message": str(exc)}}
        except asyncio.CancelledError:
            reply = {"ok": {}}
        except (ConnectionError, RuntimeError) as exc:
            _log.debug("request %s: %r", number, exc)
            reply = {"error": {"kind": "internal", "message": repr(exc)}}
        except (KeyError, TypeError, ValueError) as exc:
            _log.exception("request %s: %s", number, request.get("verb"))
            reply = {"error": {"kind": "invalid", "message": repr(exc)}}
        except Exception as exc:  # boundary: one request's trouble is that request's
            _log.exception("request %s: %s", number, request.get("verb"))
            reply = {"error": {"kind": "internal", "message": repr(exc)}}
        self._requests.pop(number, None)
        self._windows.pop(number, None)
        try:
            await self._send([{"id": number, **reply}])
        except ConnectionError:
            return

    async def _send(self, messages: List[Dict[str, Any]]) -> None:
        await self._write([_encode(message) for message in messages])

    async def _write(self, lines: List[bytes]) -> None:
        """Waits while the other side does not read."""
        if self._writer.is_closing():
            raise ConnectionResetError("the connection is closed")
        self._writer.write(b"".join(lines))
        async with self._drain_lock:  # before Python 3.12 only one may wait
            await self._writer.drain()

    def ask(self) -> None:
        """One that does not read is not asked again and again."""
        if self._requests and not self._writer.is_closing() and not self._writer.transport.get_write_buffer_size():
            self._writer.write(_encode({"id": None, "ask": "ping"}))

    def end(self) -> None:
        for task in list(self._requests.values()):
            task.cancel()
        self._writer.close()
