"""Leave to write, which ends at a moment: work that goes on after the verb that began it finds it gone."""

from __future__ import annotations

import threading
from types import TracebackType

from skylib.events import Event, EventSink

__all__ = ["FREE", "Pen", "TooLate"]


class TooLate(Exception):
    """The verb has returned: nothing is written any more. Ends a thread that was left alone; no caller sees it."""


class Pen:
    """`with pen:` around each thing that is written; it raises TooLate once the pen is put down. Safe from threads."""

    __slots__ = ("_down", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._down = False

    def check(self) -> None:
        """Raise TooLate when the pen is down: before what takes long."""
        if self._down:
            raise TooLate

    def put_down(self) -> None:
        """What is being written is waited for; nothing is written after that."""
        with self._lock:
            self._down = True

    def sink(self, events: EventSink) -> EventSink:
        """A sink that drops what comes too late."""

        def until_down(event: Event) -> None:
            if not self._down:
                events(event)

        return until_down

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._down:
            self._lock.release()
            raise TooLate

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()


class _Free(Pen):
    """Nobody puts it down, and nobody waits for it."""

    __slots__ = ()

    def put_down(self) -> None:
        raise NotImplementedError("this pen is everybody's")

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


FREE: Pen = _Free()
