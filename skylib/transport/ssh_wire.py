"""The messages of one channel, put in order by ourselves.

paramiko answers the host's CLOSE from its reading thread while another thread may be about to send data, EOF or a window
adjustment on the same channel. Such a message after our CLOSE makes sshd end the whole connection ("packet referred to
nonexistent channel"), and with many short commands that happens. Here nothing is sent on a channel after its CLOSE.
paramiko also drops the name of the signal that ended a command; it is kept here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import Any

__all__ = ["WireChannel", "install"]

_SEND_BYTES = 32 * 1024
"""What sshd takes in one packet."""


def install(transport: Any) -> None:
    """Make channels of a new paramiko transport do as this module says."""
    import paramiko

    numbers = paramiko.common
    table = dict(transport._channel_handler_table)
    usual_request, usual_close = table[numbers.MSG_CHANNEL_REQUEST], table[numbers.MSG_CHANNEL_CLOSE]
    usual_failure = table[numbers.MSG_CHANNEL_FAILURE]

    def on_request(channel: Any, message: Any) -> None:
        start = message.packet.tell()
        wire = _wire(channel)
        if wire is not None and message.get_text() == "exit-signal":
            message.get_boolean()
            wire.exit_signal = message.get_text().partition("@")[0]
            channel.status_event.set()
            return
        message.packet.seek(start)
        usual_request(channel, message)

    def on_close(channel: Any, message: Any) -> None:
        wire = _wire(channel)
        if wire is None:
            usual_close(channel, message)
        else:
            wire.closed_by_host()

    def on_failure(channel: Any, message: Any) -> None:
        if _wire(channel) is None:
            usual_failure(channel, message)
        else:
            with channel.lock:
                channel._set_closed()

    table[numbers.MSG_CHANNEL_REQUEST] = on_request
    table[numbers.MSG_CHANNEL_CLOSE] = on_close
    table[numbers.MSG_CHANNEL_FAILURE] = on_failure
    transport._channel_handler_table = table


def _wire(channel: Any) -> WireChannel | None:
    found = getattr(channel, "skylib_wire", None)
    return found if isinstance(found, WireChannel) else None


class WireChannel:
    """One channel. Safe from threads; one reader for each stream and one writer at a time.

    In a forked child it is closed and at its end, without a word to the host: nobody reads the connection there.
    """

    def __init__(self, channel: Any, transport: Any) -> None:
        self.exit_signal: str | None = None
        self._channel = channel
        self._transport = transport
        self._pid = os.getpid()
        self._order = threading.Lock()
        self._close_sent = False
        self._closed_by_host = False
        channel.skylib_wire = self
        if channel.closed and not self._closed_by_host:
            self._close_sent = True  # the host closed it before we looked, and paramiko has answered

    @property
    def exit_status(self) -> int | None:
        return self._channel.exit_status if self._channel.exit_status >= 0 else None

    @property
    def end_known(self) -> bool:
        """Whether the host has said how the command ended."""
        return self.exit_signal is not None or self._channel.exit_status >= 0

    @property
    def closed(self) -> bool:
        return bool(self._channel.closed) or not self.ours

    @property
    def over(self) -> bool:
        """No more bytes will come than have come."""
        return bool(self._channel.eof_received or self.closed)

    def wait_for_status(self, timeout_s: float | None) -> bool:
        """Until the host has said how the command ended, or the channel is closed."""
        return not self.ours or bool(self._channel.status_event.wait(timeout_s))

    def notify(self, arrived: threading.Event) -> None:
        """Have `arrived` set whenever bytes of either stream or their end are there."""
        self._channel.in_buffer.set_event(arrived)
        self._channel.in_stderr_buffer.set_event(arrived)

    def ready(self, stream: str) -> bool:
        return self.ours and bool(self._buffer(stream).read_ready())

    def read(self, stream: str, max_bytes: int, timeout_s: float | None = None) -> bytes:
        """At least one byte, or b"" at the end. Raises TimeoutError."""
        import paramiko

        if not self.ours:
            return b""
        try:
            data: bytes = self._buffer(stream).read(max_bytes, timeout_s)
        except paramiko.buffered_pipe.PipeTimeout:
            raise TimeoutError from None
        room = self._channel._check_add_window(len(data))
        if room > 0:
            self._try_emit(self._message(paramiko.common.MSG_CHANNEL_WINDOW_ADJUST, room))
        return data

    def send(self, data: bytes) -> None:
        """All of it. Raises BrokenPipeError when the channel takes no more."""
        import paramiko

        if not self.ours:
            raise BrokenPipeError(errno.EPIPE, "the channel belongs to the parent process")
        channel, offset = self._channel, 0
        while offset < len(data):
            with channel.lock:
                size = channel._wait_for_send_window(min(_SEND_BYTES, len(data) - offset))
            if size == 0 or not self._transport.is_active():
                raise BrokenPipeError(errno.EPIPE, "the channel is closed")
            self._emit(self._message(paramiko.common.MSG_CHANNEL_DATA, data[offset : offset + size]))
            offset += size

    def send_eof(self) -> None:
        if not self.ours:
            return
        with self._channel.lock:
            message = self._channel._send_eof()
        if message is not None:
            self._try_emit(message)

    def request(self, name: str, argument: bytes, *, want_reply: bool) -> None:
        """Raises BrokenPipeError when the channel is closed."""
        import paramiko

        self._emit(self._message(paramiko.common.MSG_CHANNEL_REQUEST, name.encode(), want_reply, argument))

    def close(self) -> None:
        if not self.ours:
            return
        with self._order:
            self._send_close()
        with self._channel.lock:
            self._channel._set_closed()

    def closed_by_host(self) -> None:
        """In paramiko's reading thread, which must not wait for anybody."""
        self._closed_by_host = True
        with self._channel.lock:
            self._channel._set_closed()
            self._transport._unlink_channel(self._channel.chanid)
            self._transport.channels_seen.pop(self._channel.chanid, None)  # else it grows with every command
        if self._transport.clear_to_send.is_set():
            self._answer_close()

    @property
    def ours(self) -> bool:
        """Whether this process opened the channel, and not its parent."""
        return os.getpid() == self._pid

    def _emit(self, message: Any) -> None:
        """Raises BrokenPipeError when the channel or the connection is closed."""
        import paramiko

        try:
            with self._order:
                if self._close_sent or self._closed_by_host or not self.ours:
                    raise BrokenPipeError(errno.EPIPE, "the channel is closed")
                self._transport._send_user_message(message)
        except (EOFError, paramiko.SSHException) as exc:
            raise BrokenPipeError(errno.EPIPE, f"the connection is closed: {exc}") from exc
        finally:
            self._answer_close()

    def _try_emit(self, message: Any) -> None:
        with contextlib.suppress(OSError):
            self._emit(message)

    def _answer_close(self) -> None:
        """Whoever holds the order right now answers after its own message, see _emit; or close does."""
        if self._closed_by_host and self._order.acquire(blocking=False):
            try:
                self._send_close()
            finally:
                self._order.release()

    def _send_close(self) -> None:
        import paramiko

        if not self._close_sent:
            self._close_sent = True
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                self._transport._send_user_message(self._message(paramiko.common.MSG_CHANNEL_CLOSE))

    def _message(self, number: int, *parts: int | bool | bytes) -> Any:
        import paramiko

        message = paramiko.Message()
        message.add_byte(bytes([number]))
        message.add_int(self._channel.remote_chanid)
        for part in parts:
            if isinstance(part, bool):
                message.add_boolean(part)
            elif isinstance(part, int):
                message.add_int(part)
            else:
                message.add_string(part)
        return message

    def _buffer(self, stream: str) -> Any:
        return self._channel.in_buffer if stream == "stdout" else self._channel.in_stderr_buffer
