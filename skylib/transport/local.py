"""This machine as a node: commands are subprocesses, each in a session of its own; files are files."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from skylib.config.schema import DATABASE
from skylib.errors import ConnectError, StagingError
from skylib.events import EventSink, discard
from skylib.transport.base import Chunk, Completed
from skylib.transport.collect import Collector
from skylib.transport.command import Command
from skylib.transport.feed import file_pieces
from skylib.transport.files import Upload, absolute, save
from skylib.transport.local_process import LocalProcess, follow
from skylib.transport.sockets import SocketChannel

__all__ = ["LocalTransport"]

_FORWARD_TIMEOUT_S = 10.0


class LocalTransport:
    """Runs commands on this machine. env: what they inherit; None means this process's environment, without $SKYLIB_DB:
    its password is no business of jobs.
    """

    def __init__(
        self, host: str = "localhost", *, env: Mapping[str, str] | None = None, events: EventSink = discard
    ) -> None:
        self._host = host
        self._env = env
        self._collector = Collector(host=host, events=events)

    @property
    def host(self) -> str:
        return self._host

    def run(
        self, command: Command, *, stdin: bytes | Iterable[bytes] | None = None, timeout_s: float | None = None
    ) -> Completed:
        return self._collector.all(follow(command, self._environment(), stdin, timeout_s), command, timeout_s)

    def stream(self, command: Command, *, stdin: bytes | None = None) -> Iterator[Chunk]:
        return self._collector.each(follow(command, self._environment(), stdin, None), command)

    def open(self, command: Command) -> LocalProcess:
        return LocalProcess(command, self._environment(), self._collector)

    def put(self, source: Path | bytes | Iterable[bytes], target: str, *, mode: int = 0o600) -> int:
        upload = Upload.of(source, target, mode)
        if os.path.isdir(target):
            raise StagingError(f"could not write {target}: it is a directory", path=target, host=self._host)
        return save(Path(target), upload.source, mode=mode, size=upload.size, host=self._host)

    def get(self, source: str, target: Path) -> int:
        try:
            with open(absolute(source), "rb"):
                pass
        except OSError as exc:
            message = f"could not read {source}: {exc.strerror}"
            raise StagingError(message, path=source, host=self._host) from exc
        return save(target, file_pieces(Path(source)), host=self._host)

    def forward(self, host: str, port: int) -> SocketChannel:
        try:
            connected = socket.create_connection((host, port), timeout=_FORWARD_TIMEOUT_S)
        except OSError as exc:
            raise ConnectError(f"nothing answered on {host}:{port}: {exc}", host=self._host) from exc
        connected.settimeout(None)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return SocketChannel(connected, host=self._host)

    def close(self) -> None:
        """Nothing is kept open between calls."""

    def __repr__(self) -> str:
        return f"LocalTransport({self._host!r})"

    def _environment(self) -> Mapping[str, str]:
        if self._env is not None:
            return self._env
        return {name: value for name, value in os.environ.items() if name != DATABASE.variable}
