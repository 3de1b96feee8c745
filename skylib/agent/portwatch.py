"""Whether a port of another node answers, told at once when it ends: one open connection that nothing is sent on.

A process that dies closes its connections, so its end is known in an instant and nothing is asked again and again. A
host that is gone says nothing: the kernel asks it every second (TCP keepalive) and gives up after _SILENT_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from typing import Callable, Optional

__all__ = ["ANSWERS", "REFUSED", "SILENT", "UNKNOWN", "PortWatch"]

ANSWERS = "answers"
REFUSED = "refused"
SILENT = "silent"
UNKNOWN = "unknown"
_log = logging.getLogger(__name__)
_SILENT_S = 4
_CONNECT_S = 2.0
_REFUSED_PAUSE_S = 0.1
_SILENT_PAUSE_S = 0.5
_AGAIN_PAUSE_S = 0.2


class PortWatch:
    """One port. on_change: called in the event loop when `state` has changed.

    state: ANSWERS, REFUSED (the host is there and nobody listens), SILENT (no answer at all), UNKNOWN before the first
    look. since: when that began, by time.monotonic.
    """

    def __init__(self, ip: str, port: int, on_change: Callable[[], None]) -> None:
        self.ip, self.port = ip, port
        self.state = UNKNOWN
        self.since = time.monotonic()
        self._on_change = on_change
        self._task: Optional[asyncio.Task[None]] = None

    def begin(self) -> None:
        """Looks from now on, until `stop`. To be called in the event loop."""
        if self._task is None:
            self._task = asyncio.ensure_future(self._run())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _run(self) -> None:
        while True:
            state = await self._once()
            await asyncio.sleep({REFUSED: _REFUSED_PAUSE_S, SILENT: _SILENT_PAUSE_S}.get(state, _AGAIN_PAUSE_S))

    async def _once(self) -> str:
        """One connection, from its begin to its end; how that went."""
        try:
            opening = asyncio.open_connection(self.ip, self.port)
            reader, writer = await asyncio.wait_for(opening, _CONNECT_S)
        except ConnectionRefusedError:
            return self._note(REFUSED)
        except (OSError, asyncio.TimeoutError):
            return self._note(SILENT)
        _keep_alive(writer.get_extra_info("socket"))
        self._note(ANSWERS)
        try:
            while await reader.read(4096):
                pass
        except TimeoutError:
            return self._note(SILENT)
        except OSError:  # reset, or no way to the host any more: the next connection says which
            return ANSWERS
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return ANSWERS

    def _note(self, state: str) -> str:
        if state != self.state:
            self.state, self.since = state, time.monotonic()
            self._tell()
        return state

    def _tell(self) -> None:
        try:
            self._on_change()
        except Exception:  # boundary: what others make of the news is no fault of the watch's, which goes on
            _log.exception("that port %d of %s %s could not be followed", self.port, self.ip, self.state)


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", _SILENT_S - 1)):
        if hasattr(socket, name):  # Linux; elsewhere the usual two hours
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
