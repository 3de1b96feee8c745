"""Events: every step that skylib takes, as a value, given to a sink that the caller owns.

A sink is any callable that takes one Event. It is called from worker threads, must be quick, and must not raise.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum

import attrs

__all__ = ["Event", "EventSink", "Phase", "Relay", "SkyWarning", "Span", "discard", "fan", "span"]

_log = logging.getLogger("skylib")


class SkyWarning(UserWarning):
    """What works, but not as well as it could: given through `warnings`, where no event sink need listen."""


class Phase(str, Enum):
    """Where in its life a step is."""

    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    NOTE = "note"


@attrs.frozen(kw_only=True)
class Event:
    """One step of one operation.

    step: dotted name ("runtime.ray_head"). at: unix seconds. seconds: the step's length, on its end only.
    facts: JSON values, secrets already masked (cluster, node, command, returncode, bytes, error, ...).
    """

    step: str
    phase: Phase
    at: float
    seconds: float | None = None
    facts: Mapping[str, object] = attrs.field(factory=dict)


EventSink = Callable[[Event], None]


class Span:
    """A running step: facts that are found on the way go onto its closing event."""

    __slots__ = ("facts",)

    def __init__(self, facts: dict[str, object]) -> None:
        self.facts = facts

    def note(self, **facts: object) -> None:
        self.facts.update(facts)


def discard(event: Event) -> None:
    """The sink that drops everything."""


def fan(*sinks: EventSink) -> EventSink:
    """One sink that gives each event to all of `sinks`, in order."""
    wanted = tuple(sink for sink in sinks if sink is not discard)

    def to_all(event: Event) -> None:
        for sink in wanted:
            sink(event)

    return to_all


class Relay:
    """A sink for what several operations share: gives each event to the operation that runs in the caller's context.

    Threads that work for an operation run in a copy of its context (`contextvars.copy_context`). What comes outside of
    any operation, or after its end, is dropped.
    """

    def __call__(self, event: Event) -> None:
        running = _RUNNING.get()
        if running is not None and running.relay is self and not running.ended:
            running.sink(event)

    @contextmanager
    def to(self, sink: EventSink) -> Iterator[None]:
        """For the length of a `with` block, events of this context go to `sink`; of operations within, to theirs."""
        before = _RUNNING.get()
        mine = _Running(self, sink)
        _RUNNING.set(mine)
        try:
            yield
        finally:
            mine.ended = True
            if _RUNNING.get() is mine:  # not so when a generator is closed in another context
                _RUNNING.set(before)


class _Running:
    """An operation under way."""

    __slots__ = ("ended", "relay", "sink")

    def __init__(self, relay: Relay, sink: EventSink) -> None:
        self.relay = relay
        self.sink = sink
        self.ended = False


_RUNNING: ContextVar[_Running | None] = ContextVar("skylib_operation", default=None)


@contextmanager
def span(sink: EventSink, step: str, **facts: object) -> Iterator[Span]:
    """Emit started, then finished or failed with seconds; also to the logger `skylib` at DEBUG."""
    started = time.time()
    clock = time.perf_counter()
    running = Span(dict(facts))
    sink(Event(step=step, phase=Phase.STARTED, at=started, facts=dict(facts)))
    try:
        yield running
    except BaseException as error:
        seconds = time.perf_counter() - clock
        running.note(error=f"{type(error).__name__}: {error}")
        _log.debug("%s failed after %.3f s: %s", step, seconds, error)
        sink(Event(step=step, phase=Phase.FAILED, at=time.time(), seconds=seconds, facts=running.facts))
        raise
    seconds = time.perf_counter() - clock
    _log.debug("%s finished in %.3f s", step, seconds)
    sink(Event(step=step, phase=Phase.FINISHED, at=time.time(), seconds=seconds, facts=running.facts))
