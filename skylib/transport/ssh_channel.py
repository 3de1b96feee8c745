"""One command or one stream on an open connection: started, fed, drained, ended."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from skylib.errors import ConnectError
from skylib.transport.base import Chunk, Completed
from skylib.transport.collect import Collector, DeadlinePassed, Ending, Following, Tail
from skylib.transport.command import Command
from skylib.transport.feed import Feeder
from skylib.transport.ssh_errors import mapped
from skylib.transport.ssh_wire import WireChannel

__all__ = ["OpenChannel", "SshByteChannel", "SshProcess"]

_READ_BYTES = 256 * 1024
_INLINE_BYTES = 16 * 1024
"""Stdin up to this size fits the window that every server opens with: no thread is needed for it."""
_KILL_GRACE_S = 3.0
_ABORT_GRACE_S = 1.0
_PID_GRACE_S = 2.0
_ANNOUNCE = 'echo "skylib-pid $$" >&2; exec "${SHELL:-/bin/sh}" -c "$1"'
"""For an sshd that passes no signals on: before all else, a line of stderr names the command's process."""


class OpenChannel:
    """A channel of a connection that is alive, with the slot that it holds. `close` gives the slot back, once."""

    def __init__(self, wire: WireChannel, transport: Any, *, host: str, give_back: Callable[[], None]) -> None:
        self.host = host
        self.wire = wire
        self._transport = transport
        self._give_back = give_back
        self._lock = threading.Lock()
        self._closed = False
        self._arrived = threading.Event()
        self._end: Callable[[int], bool] | None = None
        self._pid: int | None = None
        self._before_pid = b""

    def start(self, text: str, *, end: Callable[[int], bool] | None = None) -> None:
        """Ask the host to run `text`. Its answer is not waited for: a refusal closes the channel.

        end: ends the process group of a pid, where signals cannot be sent over the channel.
        """
        if end is not None:
            self._end = end
            text = Command.sh(_ANNOUNCE, text).text()
        with mapped(self.host, "run"):
            self.wire.request("exec", text.encode("utf-8", "surrogateescape"), want_reply=True)

    def follow(self, stdin: bytes | Iterable[bytes] | None, deadline: float | None) -> Following:
        """A started command to its end. Raises DeadlinePassed, ConnectError, and what `stdin` raises."""
        feeder: Feeder | None = None
        finished = False
        try:
            if stdin is None or (isinstance(stdin, bytes) and len(stdin) <= _INLINE_BYTES):
                with contextlib.suppress(OSError):
                    self.wire.send(stdin or b"")
                self.wire.send_eof()
            else:
                send, finish = self.wire.send, self.wire.send_eof
                feeder = Feeder(stdin, send=send, finish=finish, on_error=self._arrived.set)
            yield from self._drain(deadline, feeder)
            ending = self.ending(deadline)
            finished = True
            return ending
        except DeadlinePassed:
            finished = True
            ended = self.kill()
            yield from self._buffered()
            raise DeadlinePassed(ended=ended) from None
        finally:
            if not finished:
                self.abort()
            self.close()
            if feeder is not None:
                feeder.stop()

    def ending(self, deadline: float | None) -> Ending:
        """How the command ended, once its streams have. Raises DeadlinePassed, ConnectError when it cannot be known."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not self.wire.wait_for_status(left):
            raise DeadlinePassed(ended=False)
        if self.wire.exit_signal is not None:
            return Ending(None, self.wire.exit_signal)
        if self.wire.exit_status is not None:
            return Ending(self.wire.exit_status)
        if self._transport.is_active():
            message, hint = "the host refused to run the command, or did not say how it ended", None
        else:
            message, hint = "the connection was lost while a command ran", "it may have run; it was not repeated"
        cause = self._transport.saved_exception
        raise ConnectError(message, host=self.host, step="run", evidence=repr(cause) if cause else None, hint=hint)

    def kill(self, grace_s: float = _KILL_GRACE_S) -> bool:
        """End the command's process group. True when the host has confirmed that it ended.

        Said again until it is: right after the start the group does not exist yet, and a signal to it is lost.
        """
        until, pause_s = time.monotonic() + grace_s, 0.05
        while not self.wire.end_known and not self.wire.closed and time.monotonic() < until:
            self._signal()
            if self.wire.wait_for_status(min(pause_s, max(0.0, until - time.monotonic()))):
                break
            pause_s *= 2
        return self.wire.end_known

    def abort(self) -> None:
        """End the command and close the channel; whoever drains it sees its end."""
        self.kill(_ABORT_GRACE_S)
        self.wire.close()

    def close(self) -> None:
        if not self.wire.ours:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.wire.close()
        self._give_back()

    def unannounced(self, data: bytes) -> bytes:
        """`data` of stderr without the line that was put into it. What a login shell said before passes, line by line."""
        if self._end is None or self._pid is not None:
            return data
        *lines, self._before_pid = (self._before_pid + data).split(b"\n")
        for number, line in enumerate(lines):
            if line.startswith(b"skylib-pid "):
                self._pid = int(line.split()[1])
                return b"\n".join((*lines[:number], *lines[number + 1 :], self._before_pid))
        return b"".join(line + b"\n" for line in lines)

    def _signal(self) -> None:
        if self._end is None:
            with contextlib.suppress(OSError):
                self.wire.request("signal", b"KILL", want_reply=False)
            return
        until = time.monotonic() + _PID_GRACE_S
        while self._pid is None and not self.wire.over and time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                self.unannounced(self.wire.read("stderr", _READ_BYTES, 0.05))
        if self._pid is not None:
            self._end(self._pid)

    def _drain(self, deadline: float | None, feeder: Feeder | None) -> Iterator[Chunk]:
        """Until both streams have ended. Raises DeadlinePassed, and what the source of stdin raised."""
        self.wire.notify(self._arrived)
        if feeder is not None:
            feeder.start()
        while True:
            over = self.wire.over  # before the buffers are looked at: data come before their end
            got = False
            for chunk in self._buffered():
                got = True
                yield chunk
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlinePassed(ended=False)
            if feeder is not None and feeder.error is not None:
                raise feeder.error
            if not got:
                if over:
                    return
                self._arrived.wait(left)

    def _buffered(self) -> Iterator[Chunk]:
        """What has come of both streams, one chunk each at most; nothing is waited for."""
        if self.wire.ready("stdout"):
            yield Chunk("stdout", self.wire.read("stdout", _READ_BYTES))
        if self.wire.ready("stderr"):
            data = self.wire.read("stderr", _READ_BYTES)
            if data := self.unannounced(data):
                yield Chunk("stderr", data)


class SshByteChannel:
    """A stream over the connection. An end of the connection is an end of the stream."""

    def __init__(self, opened: OpenChannel) -> None:
        self._opened = opened

    def send(self, data: bytes) -> None:
        with mapped(self._opened.host, "send"):
            self._opened.wire.send(data)

    def send_eof(self) -> None:
        self._opened.wire.send_eof()

    def receive(self, max_bytes: int = 65536) -> bytes:
        return self._opened.wire.read("stdout", max_bytes)

    def close(self) -> None:
        self._opened.close()


class SshProcess(SshByteChannel):
    """A command to talk to. Its stderr is drained beside; `close` ends it."""

    def __init__(self, opened: OpenChannel, command: Command, collector: Collector) -> None:
        super().__init__(opened)
        self._command = command
        self._collector = collector
        self._started = time.perf_counter()
        self._stderr = Tail()
        self._done: Completed | None = None
        self._drainer = threading.Thread(target=self._drain_stderr, name="skylib-stderr", daemon=True)
        self._drainer.start()

    def wait(self, timeout_s: float | None = None) -> Completed:
        if self._done is not None:
            return self._done
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        parts: list[bytes] = []
        try:
            while part := self._receive_by(deadline):
                parts.append(part)
            ending = self._opened.ending(deadline)
        except DeadlinePassed as exc:
            ended = self._opened.kill()
            self.close()
            streams = b"".join(parts), self._stderr.value()
            raise self._collector.timeout(self._command, timeout_s, ended, *streams) from exc
        except ConnectError:
            self.close()
            raise
        self._drainer.join(_KILL_GRACE_S)
        self._done = self._collector.completed(self._command, ending, self._started, b"".join(parts), self._stderr.value())
        self.close()
        return self._done

    def close(self) -> None:
        self._opened.abort()
        super().close()

    def _receive_by(self, deadline: float | None) -> bytes:
        left = None if deadline is None else max(0.001, deadline - time.monotonic())
        try:
            return self._opened.wire.read("stdout", _READ_BYTES, left)
        except TimeoutError:
            raise DeadlinePassed(ended=False) from None

    def _drain_stderr(self) -> None:
        while data := self._opened.wire.read("stderr", _READ_BYTES):
            self._stderr.add(self._opened.unannounced(data))
