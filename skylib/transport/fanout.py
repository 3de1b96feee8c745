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
) -> tuple[Outcome[_Item, _Value], ...]:
    """Outcomes in the order of `items`; at most `limit` at once, each begun after a random wait of up to jitter_s.

    Jitter is for work that meets on one machine, such as one jump host for many: sshd drops logins that come all at
    once (MaxStartups). stop_on_error: what has not begun when one fails is not begun; its error is CancelledError.
    Exceptions of `fn` become outcomes. KeyboardInterrupt and the like pass through: nothing more is begun then, and
    what runs is waited for, up to ending_s. Work runs in copies of the caller's context.
    """
    wanted = tuple(items)
    if len(wanted) == 1:
        return (_attempt(fn, wanted[0], 0.0),)
    if not wanted:
        return ()
    left = deque(range(len(wanted)))
    ends: queue.SimpleQueue[tuple[int, Outcome[_Item, _Value] | BaseException]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            try:
                number = left.popleft()
            except IndexError:
                return
            try:
                outcome = _attempt(fn, wanted[number], jitter_s)
            except BaseException as error:  # handed to the thread that waits, which raises it
                ends.put((number, error))
                return
            if stop_on_error and not outcome.ok:
                _cancel(left, wanted, ends)
            ends.put((number, outcome))

    threads: list[threading.Thread] = []
    try:
        for number in range(min(limit, len(wanted))):
            context = contextvars.copy_context()
            name = f"skylib-fanout-{number}"
            thread = threading.Thread(target=context.run, args=(work,), name=name, daemon=True)
            thread.start()
            threads.append(thread)
        return _gather(ends, len(wanted))
    except BaseException:
        left.clear()
        deadline = time.monotonic() + ending_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        raise


def _gather(
    ends: queue.SimpleQueue[tuple[int, Outcome[_Item, _Value] | BaseException]], count: int
) -> tuple[Outcome[_Item, _Value], ...]:
    found: dict[int, Outcome[_Item, _Value]] = {}
    while len(found) < count:
        number, end = ends.get()
        if isinstance(end, BaseException):
            raise end
        found[number] = end
    return tuple(found[number] for number in range(count))


def _cancel(
    left: deque[int],
    wanted: tuple[_Item, ...],
    ends: queue.SimpleQueue[tuple[int, Outcome[_Item, _Value] | BaseException]],
) -> None:
    while True:
        try:
            number = left.popleft()
        except IndexError:
            return
        ends.put((number, Outcome(item=wanted[number], error=CancelledError())))


def _attempt(fn: Callable[[_Item], _Value], item: _Item, jitter_s: float) -> Outcome[_Item, _Value]:
    if jitter_s > 0:
        time.sleep(random.uniform(0.0, jitter_s))
    try:
        return Outcome(item=item, value=fn(item))
    except Exception as exc:  # the boundary of one host: Outcome.get raises it again
        return Outcome(item=item, error=exc)
