"""The same work on many hosts at once, bounded; one host's failure leaves the others alone."""

from __future__ import annotations

import contextvars
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from typing import Generic, TypeVar

import attrs

__all__ = ["Outcome", "fanout"]

_MOST_SLOW = 8  # threads at most, times the limit
_LONGEST_WAIT_S = 3600.0  # the system takes no wait of any length: one is followed by the next

_Item = TypeVar("_Item")
_Value = TypeVar("_Value")


@attrs.frozen(kw_only=True)
class Outcome(Generic[_Item, _Value]):
    """What came of one item. error is None when `value` counts."""

    item: _Item
    value: _Value | None = None
    error: BaseException | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    def get(self) -> _Value:
        """The value; raises the error that came instead."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]


def fanout(
    fn: Callable[[_Item], _Value],
    items: Iterable[_Item],
    *,
    limit: int = 32,
    jitter_s: float = 0.0,
    stop_on_error: bool = False,
    ending_s: float = 15.0,
    patience_s: float | None = None,
    slow_s: float = 1.0,
) -> tuple[Outcome[_Item, _Value], ...]:
    """Outcomes in the order of `items`; at most `limit` at once, each begun after a random wait of up to jitter_s.

    Jitter is for work that meets on one machine, such as one jump host for many: sshd drops logins that come all at
    once (MaxStartups). stop_on_error: what has not begun when one fails is not begun; its error is CancelledError.
    Exceptions of `fn` become outcomes. KeyboardInterrupt and the like pass through: nothing more is begun then, and
    what runs is waited for, up to ending_s. Work runs in copies of the caller's context.

    patience_s: how long to wait for all of it; math.inf is as long as it takes. What has begun and not ended by then
    has the error TimeoutError and goes on alone, its outcome lost, so that `fn` should only look; what has not begun
    has CancelledError. Work that takes longer than slow_s does not count for the limit then (up to eight times the
    limit): a host that does not answer holds up no other.
    """
    wanted = tuple(items)
    if not wanted:
        return ()
    if len(wanted) == 1 and patience_s is None:
        return (_attempt(fn, wanted[0], 0.0),)
    crew = _Crew(
        lambda item: _attempt(fn, item, jitter_s),
        wanted,
        limit=limit,
        stop_on_error=stop_on_error,
        slow_s=None if patience_s is None else slow_s,
    )
    return crew.work(patience_s, ending_s)


class _Crew(Generic[_Item, _Value]):
    """Threads that do one fanout. slow_s: None when slow work counts like any other."""

    def __init__(
        self,
        attempt: Callable[[_Item], Outcome[_Item, _Value]],
        wanted: tuple[_Item, ...],
        *,
        limit: int,
        stop_on_error: bool,
        slow_s: float | None,
    ) -> None:
        self._attempt = attempt
        self._wanted = wanted
        self._limit = limit
        self._stop_on_error = stop_on_error
        self._slow_s = slow_s
        self._lock = threading.Lock()
        self._left = deque(range(len(wanted)))
        self._begun: dict[int, float] = {}
        self._working = 0
        self._failed = False
        self._threads: list[threading.Thread] = []
        self._ends: queue.SimpleQueue[tuple[int, Outcome[_Item, _Value] | BaseException]] = queue.SimpleQueue()

    def work(self, patience_s: float | None, ending_s: float) -> tuple[Outcome[_Item, _Value], ...]:
        """All outcomes, those that did not come in time included."""
        try:
            return self._gather(None if patience_s is None else time.monotonic() + patience_s, patience_s)
        except BaseException:
            with self._lock:
                self._left.clear()
            until = time.monotonic() + ending_s
            for thread in self._threads:
                thread.join(max(0.0, until - time.monotonic()))
            raise

    def _gather(self, deadline: float | None, patience_s: float | None) -> tuple[Outcome[_Item, _Value], ...]:
        found: dict[int, Outcome[_Item, _Value]] = {}
        while len(found) < len(self._wanted):
            self._hire()
            try:
                number, end = self._ends.get(timeout=self._wait_s(deadline))
            except queue.Empty:
                if deadline is not None and time.monotonic() >= deadline:
                    return self._without_the_late(found, patience_s)
                continue
            if isinstance(end, BaseException):
                raise end
            found[number] = end
            if self._stop_on_error and not end.ok:
                for number in self._forget():
                    found[number] = Outcome(item=self._wanted[number], error=CancelledError())
        return tuple(found[number] for number in range(len(self._wanted)))

    def _without_the_late(
        self, found: dict[int, Outcome[_Item, _Value]], patience_s: float | None
    ) -> tuple[Outcome[_Item, _Value], ...]:
        unbegun = set(self._forget())
        while True:  # what ended while nobody looked counts
            try:
                number, end = self._ends.get_nowait()
            except queue.Empty:
                break
            if not isinstance(end, BaseException):
                found[number] = end
        for number, item in enumerate(self._wanted):
            late: Exception = CancelledError() if number in unbegun else TimeoutError(f"no answer within {patience_s:g} s")
            found.setdefault(number, Outcome(item=item, error=late))
        return tuple(found[number] for number in range(len(self._wanted)))

    def _wait_s(self, deadline: float | None) -> float | None:
        if deadline is None:
            return None
        left_s = min(max(0.0, deadline - time.monotonic()), _LONGEST_WAIT_S)
        with self._lock:
            waits = bool(self._left) and self._slow_s is not None
        return min(left_s, max(0.02, (self._slow_s or 0.0) / 8)) if waits else left_s

    def _hire(self) -> None:
        """Begin threads, as many as there may be and is work for."""
        with self._lock:
            count = min(len(self._left), self._may_work() - self._working)
            self._working += max(0, count)
        for _ in range(count):
            context = contextvars.copy_context()
            name = f"skylib-fanout-{len(self._threads)}"
            thread = threading.Thread(target=context.run, args=(self._run,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _may_work(self) -> int:
        if self._slow_s is None:
            return self._limit
        slow_since = time.monotonic() - self._slow_s
        slow = sum(begun <= slow_since for begun in self._begun.values())
        return min(self._limit + slow, _MOST_SLOW * self._limit)

    def _run(self) -> None:
        while (number := self._next()) is not None:
            end: Outcome[_Item, _Value] | BaseException
            try:
                end = self._attempt(self._wanted[number])
            except BaseException as error:  # handed to the thread that waits, which raises it
                end = error
            with self._lock:
                self._begun.pop(number, None)
                if isinstance(end, BaseException) or (self._stop_on_error and not end.ok):
                    self._failed = True
            self._ends.put((number, end))

    def _next(self) -> int | None:
        """The next item for a thread; None when it is to leave."""
        with self._lock:
            if not self._left or self._failed or self._working > self._may_work():
                self._working -= 1
                return None
            number = self._left.popleft()
            self._begun[number] = time.monotonic()
            return number

    def _forget(self) -> tuple[int, ...]:
        """What has not begun, and will not."""
        with self._lock:
            left = tuple(self._left)
            self._left.clear()
        return left


def _attempt(fn: Callable[[_Item], _Value], item: _Item, jitter_s: float) -> Outcome[_Item, _Value]:
    if jitter_s > 0:
        time.sleep(random.uniform(0.0, jitter_s))
    try:
        return Outcome(item=item, value=fn(item))
    except Exception as exc:  # the boundary of one host: Outcome.get raises it again
        return Outcome(item=item, error=exc)
