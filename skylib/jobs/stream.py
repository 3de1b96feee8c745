"""The lines of a job's log as the caller gets them: in a thread by `for`, in an event loop by `async for`.

A break is healed by going on at the next line's offset; only the log's own end looks like an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Protocol

import attrs

from skylib.errors import AgentError, TransportError
from skylib.models.job import LogLine

__all__ = ["ONE_LOOK_PATIENCE_S", "PATIENCE_S", "Batch", "LogStream", "Place", "Source"]

PATIENCE_S = 120.0
ONE_LOOK_PATIENCE_S = 3.0  # who does not follow wants what is there now
_FIRST_PAUSE_S = 0.2
_LAST_PAUSE_S = 5.0
_STOOD_S = 5.0  # a connection that held so long was a good one: what ends it is a new break
_TURN_S = 0.01  # an event loop is given a turn after so long, however many lines there are


@attrs.frozen
class Place:
    """Where to begin: at an offset or, with `tail`, with the last so many lines that are there.

    resumed: a line that was told ended there, so that the log must go on there.
    """

    offset: int = 0
    tail: int | None = None
    resumed: bool = False


@attrs.frozen(kw_only=True)
class Batch:
    """Lines that came. offset: where the stream begins, when that was not known. ended: nothing comes after them."""

    lines: Iterator[LogLine] = attrs.field(factory=lambda: iter(()))
    offset: int | None = None
    ended: bool = False


class Source(Protocol):
    """Lines from one place on, until its connection breaks. One taker at a time."""

    def take(self, timeout_s: float | None) -> Batch | None:
        """What comes next; None when there is nothing in time (0: at once). Raises AgentError, TransportError."""

    @property
    def owes(self) -> bool:
        """Whether `pay` is due: a short message to the other side."""
        return False

    def pay(self) -> None:
        """Say what was taken, so that more comes."""

    def call_when_ready(self, wake: Callable[[], None] | None) -> None:
        """`wake` is called whenever there is something to take, maybe by another thread."""
        if wake is not None:
            wake()

    def abandon(self) -> None:
        """As `close`, without any I/O."""

    def close(self) -> None:
        """End it; a `take` that waits ends, too."""


class _Held:
    """What a stream holds: apart from it, so that it can be let go of when nobody has the stream any more."""

    __slots__ = ("source",)

    def __init__(self) -> None:
        self.source: Source | None = None

    def abandon(self) -> None:
        if self.source is not None:
            self.source.abandon()


class LogStream(Iterator[LogLine], AsyncIterator[LogLine]):
    """Lines of a job's log, in the order of the merged log.

    `for line in stream` blocks the thread, `async for` only the task; `offset` is where another stream would go on. A
    channel that breaks is opened again and the lines go on, each byte once; when that does not do for two minutes (without
    `follow`, 3 s), AgentError or TransportError is raised, and the stream may still be read on: it tries again.
    `close()`, from any thread, ends it, and a thread that waits for a line; so does leaving `with` or `async with`, and
    cancelling a task that waits. What it ends is the watching, never the job. One thread or task reads it at a time.
    """

    def __init__(
        self, opener: Callable[[Place], Source], place: Place | None = None, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._opener = opener
        self._place = place or Place()
        self._patience_s = patience_s
        self._held = _Held()
        self._lines: Iterator[LogLine] = iter(())
        self._over = False
        self._opened_at = 0.0
        self._closing = threading.Event()
        self._broken_since: float | None = None
        self._pause_s = _FIRST_PAUSE_S
        self._turn_at = 0.0
        weakref.finalize(self, self._held.abandon).atexit = False

    @property
    def offset(self) -> int:
        """Where to resume after the line that was given last."""
        return self._place.offset

    @property
    def closed(self) -> bool:
        """Whether nothing more comes: the log has ended and all of it was given, or `close` was called."""
        return self._closing.is_set()

    # --- for

    def __iter__(self) -> LogStream:
        return self

    def __next__(self) -> LogLine:
        while True:
            line = self._line()
            if line is not None:
                return line
            if self._is_over():
                raise StopIteration
            try:
                source = self._held.source or self._install(self._opener(self._place))
                self._accept(source.take(None))
                if source.owes:
                    source.pay()
            except (AgentError, TransportError) as error:
                self._closing.wait(self._after(error))

    def close(self) -> None:
        """Nothing more comes. The job goes on."""
        self._closing.set()
        self._lines = iter(())
        source, self._held.source = self._held.source, None
        if source is not None:
            source.close()

    def __enter__(self) -> LogStream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # --- async for

    def __aiter__(self) -> LogStream:
        return self

    async def __anext__(self) -> LogLine:
        try:
            return await self._next()
        except asyncio.CancelledError:
            self._close_aside()
            raise

    async def _next(self) -> LogLine:
        while True:
            await self._give_turn()
            line = self._line()
            if line is not None:
                return line
            if self._is_over():
                raise StopAsyncIteration
            try:
                source = self._held.source or self._install(await self._open_aside())
                batch = source.take(0)
                if batch is None:
                    await _ready(source)
                    self._turn_at = time.monotonic() + _TURN_S
                    continue
                self._accept(batch)
                if source.owes:
                    _aside(source.pay)
            except (AgentError, TransportError) as error:
                await asyncio.sleep(self._after(error))

    async def aclose(self) -> None:
        """As `close`, which never blocks for long; here it does not block the loop at all."""
        self._close_aside()

    async def __aenter__(self) -> LogStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _give_turn(self) -> None:
        """Lines that are there already keep nobody else in the loop waiting."""
        now = time.monotonic()
        if now >= self._turn_at:
            await asyncio.sleep(0)
            self._turn_at = time.monotonic() + _TURN_S

    async def _open_aside(self) -> Source:
        """Opened in a thread of its own, which ends with that."""
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[Source] = loop.create_future()
        place = self._place

        def work() -> None:
            source: Source | None = None
            failure: BaseException | None = None
            try:
                source = self._opener(place)
            except BaseException as error:  # boundary: it is raised where the lines are wanted
                failure = error

            def deliver() -> None:
                if opened.done():  # cancelled meanwhile
                    if source is not None:
                        _aside(source.close)
                elif failure is not None:
                    opened.set_exception(failure)
                elif source is not None:
                    opened.set_result(source)

            try:
                loop.call_soon_threadsafe(deliver)
            except RuntimeError:  # the loop is closed
                if source is not None:
                    source.close()

        _aside(work)
        return await opened

    def _close_aside(self) -> None:
        self._closing.set()
        self._lines = iter(())
        source, self._held.source = self._held.source, None
        if source is not None:
            source.abandon()
            _aside(source.close)

    # --- both

    def _is_over(self) -> bool:
        if self._over:
            self._closing.set()
        return self._closing.is_set()

    def _line(self) -> LogLine | None:
        line = next(self._lines, None)
        if line is not None:
            self._place = Place(line.next_offset, resumed=True)
        return line

    def _install(self, source: Source) -> Source:
        self._held.source = source
        self._opened_at = time.monotonic()
        if self._closing.is_set():  # by another thread, while it was opened
            self.close()
        return source

    def _accept(self, batch: Batch | None) -> None:
        self._broken_since, self._pause_s = None, _FIRST_PAUSE_S
        if batch is None or self._closing.is_set():
            return
        if batch.offset is not None:
            self._place = Place(batch.offset, resumed=True)
        self._lines = batch.lines
        self._over = batch.ended
        if batch.ended:
            self._held.source = None

    def _after(self, error: AgentError | TransportError) -> float:
        """How long to wait before it is tried again. Raises the error when it has been tried for long enough."""
        source, self._held.source = self._held.source, None
        if source is not None:
            source.abandon()
        now = time.monotonic()
        if self._broken_since is None or (source is not None and now - self._opened_at > _STOOD_S):
            self._broken_since, self._pause_s = now, _FIRST_PAUSE_S
        if self._closing.is_set():
            return 0.0
        if not error.retryable or now - self._broken_since > self._patience_s:
            self._broken_since, self._pause_s = None, _FIRST_PAUSE_S
            raise error
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, _LAST_PAUSE_S)
        return pause_s

    def __repr__(self) -> str:
        return f"<LogStream at {self.offset}{', closed' if self.closed else ''}>"


async def _ready(source: Source) -> None:
    """Until there is something to take. No thread waits: whoever brings it wakes the loop."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def told() -> None:
        if not ready.done():
            ready.set_result(None)

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(told)

    source.call_when_ready(wake)
    try:
        await ready
    finally:
        source.call_when_ready(None)


def _aside(work: Callable[[], None]) -> None:
    """What might block for a moment is done by a thread of its own."""
    threading.Thread(target=work, name="skylib-log", daemon=True).start()
