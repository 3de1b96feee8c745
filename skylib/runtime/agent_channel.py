"""One channel to an agent: lines of JSON both ways, each answer given to the request that waits for it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from skylib.errors import TransportError
from skylib.transport.base import Process

__all__ = ["Channel", "ChannelBroken", "Message", "Replies"]

_SHOWN_BYTES = 400

Message = dict[str, Any]


class ChannelBroken(Exception):
    """The channel ended. sent: the request may have reached the agent."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Replies:
    """Messages for one request, in order.

    abandoned: nobody takes them any more; the request is ended when the next one comes. Setting it does no I/O.
    """

    __slots__ = ("_messages", "_wake", "abandoned", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.abandoned = False
        self._messages: queue.SimpleQueue[Message | ChannelBroken] = queue.SimpleQueue()
        self._wake: Callable[[], None] | None = None

    def put(self, message: Message | ChannelBroken) -> None:
        self._messages.put(message)
        wake = self._wake
        if wake is not None:
            wake()

    def next(self, timeout_s: float | None) -> Message:
        """Raises queue.Empty at the timeout (0: at once when there is none), ChannelBroken when no more can come."""
        message = self._messages.get(timeout=timeout_s) if timeout_s != 0 else self._messages.get_nowait()
        if isinstance(message, ChannelBroken):
            raise message
        return message

    def call_when_ready(self, wake: Callable[[], None] | None) -> None:
        """`wake` is called for each message that comes, in the reading thread, and at once if there is one already."""
        self._wake = wake
        if wake is not None and not self._messages.empty():
            wake()


class Channel:
    """One open channel: a thread reads lines and hands each to the request that waits for it.

    closed: the client's owner closed it, so nothing on it is to be asked again.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._pid = os.getpid()
        self._write_lock = threading.Lock()
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._pending: dict[int, Replies] = {}
        self._greetings: queue.SimpleQueue[Message | ChannelBroken] = queue.SimpleQueue()
        self._broken: str | None = None
        self._greeted = False
        self.closed = False
        self._reader = threading.Thread(target=self._read, name="skylib-agent-channel", daemon=True)
        self._reader.start()

    @property
    def broken(self) -> bool:
        return self._broken is not None

    @property
    def is_parents(self) -> bool:
        """Nobody reads it in this process: it was opened before a fork."""
        return os.getpid() != self._pid

    def write(self, message: Mapping[str, object]) -> None:
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if os.getpid() != self._pid:
            raise ChannelBroken("the channel belongs to the parent process", sent=False)
        try:
            with self._write_lock:
                self._process.send(line)
        except (TransportError, OSError) as error:
            raise ChannelBroken(str(error), sent=False) from error

    def greeting(self, timeout_s: float) -> Message:
        try:
            message = self._greetings.get(timeout=timeout_s)
        except queue.Empty as empty:
            raise ChannelBroken(f"no greeting within {timeout_s:g} s", sent=False) from empty
        if isinstance(message, ChannelBroken):
            raise message
        return message

    def request(self, verb: str, args: Mapping[str, object], *, window: int | None = None) -> Replies:
        """window: bytes of a stream that may come ahead of what `taken` has said."""
        with self._lock:
            if self._broken is not None:
                raise ChannelBroken(self._broken, sent=False)
            replies = Replies(next(self._numbers))
            self._pending[replies.number] = replies
        try:
            flow = {} if window is None else {"window": window}
            self.write({"id": replies.number, "verb": verb, "args": dict(args), **flow})
        except ChannelBroken:
            with self._lock:
                self._pending.pop(replies.number, None)
            raise
        return replies

    def cancel(self, number: int) -> None:
        """End a stream; what still comes of it is dropped."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            self._pending.pop(number, None)
        with contextlib.suppress(ChannelBroken):
            self.write({"id": number, "cancel": True})

    def taken(self, number: int, count: int) -> None:
        """So many more items of a stream have been taken. A channel that is broken is told of by the next item."""
        with contextlib.suppress(ChannelBroken):
            self.write({"id": number, "taken": count})

    def close(self) -> None:
        self._process.close()

    def _read(self) -> None:
        """Whatever ends it, those that wait are told."""
        pieces: list[bytes] = []
        why = "the agent closed the channel"
        try:
            while data := self._process.receive():
                *whole, rest = data.split(b"\n")
                for part in whole:
                    pieces.append(part)
                    self._dispatch(b"".join(pieces))
                    pieces = []
                if rest:
                    pieces.append(rest)
            if pieces:
                why = f"the channel ended within {_shown(b''.join(pieces))}"
        except (TransportError, OSError, ValueError) as error:
            why = str(error)
        except BaseException as error:
            why = f"reading the channel failed: {error!r}"
            raise
        finally:
            with self._lock:
                self._broken = why
                waiting, self._pending = list(self._pending.values()), {}
            self._greetings.put(ChannelBroken(why, sent=False))
            for replies in waiting:
                replies.put(ChannelBroken(why, sent=True))
            if self._greeted:  # else who waits for the greeting still asks how it ended, and closes it
                with contextlib.suppress(TransportError, OSError):
                    self._process.close()  # nobody may ask again, of a cluster that is gone

    def _dispatch(self, line: bytes) -> None:
        """Raises ValueError on what is no message."""
        try:
            message: Message = json.loads(line)
        except ValueError as error:
            raise ValueError(f"not a message of the agent: {_shown(line)}") from error
        if not isinstance(message, dict):
            raise ValueError(f"not a message of the agent: {_shown(line)}")
        number = message.get("id")
        if "ask" in message:  # whether this client lives
            with contextlib.suppress(ChannelBroken):
                self.write({"id": 0, "verb": "ping", "args": {}})
            return
        if number is None:
            self._greeted = True
            self._greetings.put(message)
            return
        with self._lock:
            replies = self._pending.get(number) if isinstance(number, int) else None
            if replies is not None and "item" not in message:
                del self._pending[number]
        if replies is None:
            return
        if replies.abandoned:
            if "item" in message:
                self.cancel(replies.number)
            return
        replies.put(message)


def _shown(line: bytes) -> str:
    """What was read, for people: a login shell's greeting, for one."""
    return repr(line[:_SHOWN_BYTES].decode(errors="replace").strip())
