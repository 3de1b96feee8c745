"""What every way to a node can do. Implementations: local.py (subprocess), ssh.py (paramiko), scripted.py (memory)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import attrs

from skylib.errors import CommandError
from skylib.transport.command import Command

__all__ = ["ByteChannel", "Chunk", "Completed", "Process", "Transport"]


@attrs.frozen(kw_only=True)
class Completed:
    """A command that ended. returncode: None when a signal ended it; signal: its name without SIG ("KILL")."""

    returncode: int | None
    stdout: bytes
    stderr: bytes
    signal: str | None = None
    seconds: float = 0.0
    host: str = ""
    command: str = ""

    @property
    def ok(self) -> bool:
        return self.returncode == 0

    def check(self) -> Completed:
        """Itself, when the command succeeded. Raises CommandError with the tails of both streams."""
        if self.ok:
            return self
        how = f"was ended by SIG{self.signal}" if self.signal else f"exited {self.returncode}"
        raise CommandError(
            f"a command {how}",
            host=self.host,
            command=self.command,
            evidence=self.stderr[-2000:].decode(errors="replace") or self.stdout[-2000:].decode(errors="replace"),
            returncode=self.returncode,
            signal=self.signal,
            stdout=self.stdout[-8000:],
            stderr=self.stderr[-8000:],
        )


@attrs.frozen
class Chunk:
    """Bytes as they came. stream: "stdout" or "stderr"."""

    stream: str
    data: bytes


@runtime_checkable
class ByteChannel(Protocol):
    """A two-way stream of bytes. Methods may be called from several threads, one reader and one writer at a time."""

    def send(self, data: bytes) -> None:
        """Send all of `data`. Raises ConnectError when the other side is gone."""

    def send_eof(self) -> None: ...

    def receive(self, max_bytes: int = 65536) -> bytes:
        """At least one byte, or b"" at the end."""

    def close(self) -> None:
        """Close both ways; a blocked receive ends. May be called again."""


@runtime_checkable
class Process(ByteChannel, Protocol):
    """A command under way: send goes to its stdin, receive comes from its stdout; stderr is drained beside it.

    `close` ends a command that still runs.
    """

    def wait(self, timeout_s: float | None = None) -> Completed:
        """How it ended; stdout is what receive did not take, stderr its tail.

        Raises ConnectError when the connection was lost; TransportTimeout after timeout_s (the command is ended).
        """


class Transport(Protocol):
    """One node, reachable. Methods may be called from many threads; connections are opened on first use and kept."""

    @property
    def host(self) -> str:
        """Name for people: errors and events carry it."""

    def run(
        self, command: Command, *, stdin: bytes | Iterable[bytes] | None = None, timeout_s: float | None = None
    ) -> Completed:
        """Run to its end, draining both streams together. A non-zero exit is a value, no error (see Completed.check).

        Raises ConnectError, AuthError, HostKeyError; TransportTimeout after timeout_s (the command is ended).
        """

    def stream(self, command: Command, *, stdin: bytes | None = None) -> Iterator[Chunk]:
        """Chunks as they come. Raises CommandError at the end when the exit status is not 0."""

    def open(self, command: Command) -> Process:
        """Start a command and talk to it."""

    def put(self, source: Path | bytes | Iterable[bytes], target: str, *, mode: int = 0o600) -> int:
        """Write a file on the node, beside and renamed; parents are made. Returns bytes sent. target: absolute.

        Raises StagingError (full disk, no permission) with host and path.
        """

    def get(self, source: str, target: Path) -> int:
        """Fetch a file, beside and renamed. Returns bytes. Raises StagingError when it is missing or unreadable."""

    def forward(self, host: str, port: int) -> ByteChannel:
        """A channel connected from the node to host:port; nothing listens on our side. Raises ConnectError."""

    def close(self) -> None:
        """Close what is open; the transport may be used again (it opens anew)."""
