"""A machine reached over SSH: one connection, opened when first needed, kept, shared, opened anew when lost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skylib.errors import ConnectError, StagingError, TransportError
from skylib.events import EventSink, discard, span
from skylib.forks import watch
from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.transport.base import Chunk, Completed
from skylib.transport.collect import Collector
from skylib.transport.command import Command
from skylib.transport.files import Upload, absolute, save
from skylib.transport.host_keys import HostKeys
from skylib.transport.ssh_channel import OpenChannel, SshByteChannel, SshProcess
from skylib.transport.ssh_connection import Connection, dial
from skylib.transport.ssh_errors import mapped
from skylib.transport.ssh_params import SshParams, SshSettings, config_files, resolve
from skylib.transport.ssh_wire import WireChannel

if TYPE_CHECKING:
    import paramiko

__all__ = ["SshTransport"]

_TIDY_S = 5.0

# The process group of $1: the third field after the name in Linux's stat file (ps may not be there), else by ps.
# A process that has ended has none, and that is fine.
_END_GROUP = """\
if [ -d /proc/self ]; then
  g=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d " " -f 3)
else
  g=$(ps -o pgid= -p "$1" | tr -d " ")
fi
[ -z "$g" ] || kill -s KILL -- "-$g"
"""


class _Process:
    """What one process has of a transport: a forked child begins anew and leaves its parent's connection alone."""

    __slots__ = ("connection", "dialling", "lock")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.dialling = threading.Lock()
        self.connection: Connection | None = None


class SshTransport:
    """Commands, streams and files over one SSH connection to `address`.

    A command that was not started when the connection turned out to be lost is started once more on a new one; a
    command that had started is not repeated: ConnectError. user_config_path: instead of ~/.ssh/config and the
    machine's own, like `ssh -F`.
    """

    def __init__(
        self,
        address: HostAddress,
        *,
        home: SkyHome,
        settings: SshSettings | None = None,
        user_config_path: Path | None = None,
        host_keys: HostKeys | None = None,
        events: EventSink = discard,
    ) -> None:
        self.address = address
        self.settings = settings or SshSettings()
        self._host_keys = host_keys or HostKeys(home=home)
        self._user_config_path = user_config_path
        self._events = events
        self._collector = Collector(host=address.host, events=events)
        # Keyed by pid. The parent's entry stays referenced in a child, so that nothing of it is finalised there.
        self._processes: dict[int, _Process] = {}
        watch(self, in_child=SshTransport._abandon)

    @property
    def host(self) -> str:
        return self.address.host

    def params(self) -> SshParams:
        """How the host is reached, by the caller's words and the configuration as it is now. Raises ConfigError."""
        return resolve(self.address, files=config_files(self._user_config_path))

    def connect(self) -> None:
        """Open the connection when there is none. Raises ConnectError, AuthError, HostKeyError, ConfigError."""
        self._connection()

    def run(
        self, command: Command, *, stdin: bytes | Iterable[bytes] | None = None, timeout_s: float | None = None
    ) -> Completed:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        opened = self._start(command, timeout_s)
        return self._collector.all(opened.follow(stdin, deadline), command, timeout_s)

    def stream(self, command: Command, *, stdin: bytes | None = None) -> Iterator[Chunk]:
        yield from self._collector.each(self._start(command, None).follow(stdin, None), command)

    def open(self, command: Command) -> SshProcess:
        return SshProcess(self._start(command, None), command, self._collector)

    def put(self, source: Path | bytes | Iterable[bytes], target: str, *, mode: int = 0o600) -> int:
        upload = Upload.of(source, target, mode)
        sent = 0

        def counted() -> Iterator[bytes]:
            nonlocal sent
            for piece in upload.source:
                sent += len(piece)
                yield piece

        try:
            done = self.run(upload.receive(), stdin=counted())
            last = upload.rename()
            if done.ok and last is not None:
                done = self.run(last)
        except BaseException as exc:
            if not isinstance(exc, TransportError):
                with suppress(TransportError):
                    self.run(upload.forget(), timeout_s=_TIDY_S)
            raise
        if not done.ok:
            raise self._refused("write", target, done)
        return sent

    def get(self, source: str, target: Path) -> int:
        command = Command.of("cat", "--", absolute(source))

        def content() -> Iterator[bytes]:
            following = self._start(command, None).follow(None, None)
            errors = b""
            try:
                while True:
                    chunk = next(following)
                    if chunk.stream == "stdout":
                        yield chunk.data
                    else:
                        errors += chunk.data
            except StopIteration as stop:
                ending = stop.value
            finally:
                following.close()
            if ending.returncode != 0:
                done = Completed(returncode=ending.returncode, signal=ending.signal, stdout=b"", stderr=errors)
                raise self._refused("read", source, done)

        return save(target, content(), host=self.host)

    def forward(self, host: str, port: int) -> SshByteChannel:
        _, opened = self._channel("direct-tcpip", (host, port), None)
        return SshByteChannel(opened)

    def close(self) -> None:
        mine = self._mine()
        with mine.lock:
            connection, mine.connection = mine.connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> SshTransport:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"SshTransport({self.address.host!r})"

    def _mine(self) -> _Process:
        return self._processes.setdefault(os.getpid(), _Process())

    def _abandon(self) -> None:
        """In a forked child: close its copies of the parent's sockets, so that the parent alone decides about them."""
        for pid, process in tuple(self._processes.items()):
            if pid != os.getpid() and process.connection is not None:
                process.connection.abandon()

    def _connection(self) -> Connection:
        mine = self._mine()
        with mine.lock:
            if mine.connection is not None and mine.connection.alive:
                return mine.connection
        with mine.dialling:
            with mine.lock:
                stale = mine.connection
                if stale is not None and stale.alive:
                    return stale
                mine.connection = None
            if stale is not None:
                stale.close()
            with span(self._events, "transport.connect", host=self.host) as running:
                params = self.params()
                fresh = dial(params, self.settings, self._host_keys)
                running.note(address=params.where, key=fresh.key, hops=len(params.jumps))
            with mine.lock:
                mine.connection = fresh
            return fresh

    def _start(self, command: Command, timeout_s: float | None) -> OpenChannel:
        connection, opened = self._channel("session", None, timeout_s)
        try:
            opened.start(command.text(), end=None if connection.signals else self._end_group)
        except BaseException:
            opened.close()
            raise
        return opened

    def _channel(
        self, kind: str, destination: tuple[str, int] | None, timeout_s: float | None
    ) -> tuple[Connection, OpenChannel]:
        """A new channel; on a new connection when the one at hand turns out to be lost."""
        first = self._connection()
        try:
            return first, self._open_on(first, kind, destination, timeout_s)
        except ConnectError:
            if first.alive:
                raise
        second = self._connection()
        return second, self._open_on(second, kind, destination, timeout_s)

    def _open_on(
        self, connection: Connection, kind: str, destination: tuple[str, int] | None, timeout_s: float | None
    ) -> OpenChannel:
        """Raises ConnectError; the connection is closed by then when it did not answer."""
        import paramiko

        slots, wait_s = connection.slots, self.settings.channel_wait_s
        if timeout_s is not None:
            wait_s = min(wait_s, timeout_s)
        deadline = time.monotonic() + wait_s
        while True:
            if not slots.take(max(0.0, deadline - time.monotonic())):
                raise ConnectError(
                    f"all channels of the connection were in use for {wait_s:g} s",
                    host=self.host,
                    step="channel",
                    evidence=f"{slots.taken} in use",
                    hint="close streams and processes that are no longer needed",
                )
            refused = False
            try:
                with mapped(self.host, "channel"):
                    try:
                        channel = self._raw(connection, kind, destination)
                    except paramiko.SSHException:
                        refused = connection.alive and kind == "session" and slots.refused()
                        if not refused:
                            raise
            except BaseException:
                slots.give_back()
                raise
            if refused:
                slots.give_back()
                continue
            wire = WireChannel(channel, connection.transport)
            return OpenChannel(wire, connection.transport, host=self.host, give_back=slots.give_back)

    def _raw(self, connection: Connection, kind: str, destination: tuple[str, int] | None) -> paramiko.Channel:
        import paramiko

        timeout_s = self.settings.channel_timeout_s
        started = time.monotonic()
        origin = ("127.0.0.1", 0) if destination else None
        try:
            return connection.transport.open_channel(kind, destination, origin, timeout=timeout_s)
        except paramiko.ChannelException as exc:
            if destination is None:
                raise
            raise ConnectError(
                f"nothing answered on {destination[0]}:{destination[1]} from there",
                host=self.host,
                step="forward",
                evidence=str(exc),
            ) from exc
        except (paramiko.SSHException, EOFError, OSError):
            if time.monotonic() - started >= timeout_s:
                connection.close()  # it does not answer: whoever comes next dials anew
            raise

    def _end_group(self, pid: int) -> bool:
        """End the process group of a process over there, for an sshd that passes no signals on."""
        try:
            return self.run(Command.sh(_END_GROUP, str(pid)), timeout_s=self.settings.channel_timeout_s).ok
        except TransportError:
            return False

    def _refused(self, verb: str, path: str, done: Completed) -> StagingError:
        said = done.stderr[-2000:].decode(errors="replace").strip() or done.signal or f"exit status {done.returncode}"
        return StagingError(f"could not {verb} {path} on {self.host}", host=self.host, path=path, evidence=said)
