"""Asking many machines at once without waiting for the slowest when the others do."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["gather"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def gather(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    late: Callable[[Item], Result],
    enough: Callable[[Sequence[Result]], bool],
    patience_s: float,
    limit: int = 32,
    jitter_s: float = 0.0,
) -> list[Result]:
    """Results in the order of items; at most `limit` are under way at once, each begun after up to jitter_s.

    Once `enough` is true of what has come, the rest get patience_s; `late` stands in for those that have not ended by
    then. Their threads end by themselves, and keep no process from ending. What `work` raises is raised.
    """
    round_ = _Round[Item, Result](work, items, jitter_s)
    for _ in range(min(limit, len(items))):
        threading.Thread(target=round_.serve, name="skylib-survey", daemon=True).start()
    return round_.collect(late, enough, patience_s)


class _Round(Generic[Item, Result]):
    """One gathering: what is still to do, and what has come. The condition guards all of it."""

    __slots__ = ("_changed", "_closed", "_error", "_found", "_items", "_jitter_s", "_next", "_work")

    def __init__(self, work: Callable[[Item], Result], items: Sequence[Item], jitter_s: float) -> None:
        self._work = work
        self._items = tuple(items)
        self._jitter_s = jitter_s
        self._changed = threading.Condition()
        self._next = 0
        self._found: dict[int, Result] = {}
        self._error: BaseException | None = None
        self._closed = False

    def serve(self) -> None:
        """One worker: takes items until none is left or nobody waits any more."""
        while True:
            with self._changed:
                if self._closed or self._next >= len(self._items):
                    return
                index, self._next = self._next, self._next + 1
            if self._jitter_s > 0 and len(self._items) > 1:
                time.sleep(random.uniform(0.0, self._jitter_s))
            try:
                result = self._work(self._items[index])
            except BaseException as error:  # the boundary of the thread: collect raises it again
                with self._changed:
                    self._error = self._error or error
                    self._changed.notify_all()
                return
            with self._changed:
                self._found[index] = result
                self._changed.notify_all()

    def collect(
        self, late: Callable[[Item], Result], enough: Callable[[Sequence[Result]], bool], patience_s: float
    ) -> list[Result]:
        deadline: float | None = None
        with self._changed:
            try:
                while len(self._found) < len(self._items) and self._error is None:
                    if deadline is None and enough(tuple(self._found.values())):
                        deadline = time.monotonic() + patience_s
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        break
                    self._changed.wait(left)
            finally:
                self._closed = True
            if self._error is not None:
                raise self._error
            return [
                self._found[index] if index in self._found else late(item) for index, item in enumerate(self._items)
            ]
