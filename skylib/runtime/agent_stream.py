"""A streaming request under way: its items one by one, for threads and event loops, with a bounded number of them ahead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from skylib.errors import AgentError
from skylib.runtime.agent_channel import Channel, ChannelBroken, Message, Replies

__all__ = ["WINDOW_BYTES", "AgentStream", "StreamClosed"]

WINDOW_BYTES = 4 << 20
_TELL_ITEMS = 64
_TELL_BYTES = WINDOW_BYTES // 16
_ITEM_COST = 256


class StreamClosed(Exception):
    """It was closed here, maybe by another thread, while somebody waited for it."""


class AgentStream:
    """One taker at a time; `close` and `abandon` may be called from anywhere.

    refusal: raises for an answer that is an error. lost: makes the error of a channel that broke.
    """

    __slots__ = ("_bytes", "_channel", "_closed", "_done", "_items", "_lost", "_refusal", "_replies")

    def __init__(
        self,
        channel: Channel,
        replies: Replies,
        *,
        refusal: Callable[[Message], None],
        lost: Callable[[ChannelBroken], AgentError],
    ) -> None:
        self._channel = channel
        self._replies = replies
        self._refusal = refusal
        self._lost = lost
        self._done = self._closed = False
        self._items = self._bytes = 0

    def next(self, timeout_s: float | None = None) -> Message:
        """The next item, or {"ok": ...} as the last.

        Raises AgentError; StreamClosed; queue.Empty at the timeout (0: at once).
        """
        message = self.pop(timeout_s)
        if self.owes:
            self.tell()
        return message

    def pop(self, timeout_s: float | None = None) -> Message:
        """As `next`, without any I/O: `tell` is the caller's when `owes` says so."""
        try:
            if self._channel.is_parents:
                raise ChannelBroken("the channel belongs to the parent process", sent=True)
            message = self._replies.next(timeout_s)
        except ChannelBroken as broken:
            if self._closed:
                raise StreamClosed from None
            self._done = True
            raise self._lost(broken) from broken
        if "item" in message:
            item: Message = message["item"]
            self._items += 1
            self._bytes += _size(item)
            return item
        self._done = True
        self._refusal(message)
        return {"ok": message.get("ok", {})}

    @property
    def owes(self) -> bool:
        """Whether the agent is to be told how much was taken, so that it sends more."""
        return self._items >= _TELL_ITEMS or self._bytes >= _TELL_BYTES

    def tell(self) -> None:
        """Tell it: a few bytes on the channel."""
        count, self._items, self._bytes = self._items, 0, 0
        if count and not self._done:
            self._channel.taken(self._replies.number, count)

    def call_when_ready(self, wake: Callable[[], None] | None) -> None:
        """`wake` is called, in another thread or at once, whenever there is something to take. None: no more."""
        self._replies.call_when_ready(wake)

    def abandon(self) -> None:
        """Nobody takes anything any more. No I/O: the agent hears of it when its next item comes."""
        self._replies.abandoned = True
        self._replies.call_when_ready(None)

    def close(self) -> None:
        """End the stream at the agent; a taker that waits is woken by StreamClosed."""
        self._closed = True
        if self._done:
            return
        self._done = True
        self._replies.abandoned = True
        self._replies.put(ChannelBroken("the stream was closed", sent=True))
        with contextlib.suppress(ChannelBroken):
            self._channel.cancel(self._replies.number)


def _size(item: dict[str, Any]) -> int:
    return len(item.get("text") or item.get("b64") or "") + _ITEM_COST
