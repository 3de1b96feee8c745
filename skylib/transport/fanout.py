"""The same work on many hosts at once, bounded; one host's failure leaves the others alone."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
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
) -> tuple[Outcome[_Item, _Value], ...]:
    """Outcomes in the order of `items`; at most `limit` at once, each begun after a random wait of up to jitter_s.

    Jitter is for work that meets on one machine, such as one jump host for many: sshd drops logins that come all at
    once (MaxStartups). stop_on_error: what has not begun when one fails is not begun; its error is CancelledError.
    Exceptions of `fn` become outcomes; KeyboardInterrupt and the like pass through, and what runs ends by itself.
    """
    wanted = tuple(items)
    if len(wanted) == 1:
        return (_attempt(fn, wanted[0], 0.0),)
    if not wanted:
        return ()
    pool = ThreadPoolExecutor(max_workers=min(limit, len(wanted)), thread_name_prefix="skylib-fanout")
    try:
        futures = [pool.submit(_attempt, fn, item, jitter_s) for item in wanted]
        if stop_on_error:
            _cancel_after_failure(futures)
        return tuple(_outcome(item, future) for item, future in zip(wanted, futures, strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _attempt(fn: Callable[[_Item], _Value], item: _Item, jitter_s: float) -> Outcome[_Item, _Value]:
    if jitter_s > 0:
        time.sleep(random.uniform(0.0, jitter_s))
    try:
        return Outcome(item=item, value=fn(item))
    except Exception as exc:  # the boundary of one host: Outcome.get raises it again
        return Outcome(item=item, error=exc)


def _cancel_after_failure(futures: list[Future[Outcome[_Item, _Value]]]) -> None:
    def look(future: Future[Outcome[_Item, _Value]]) -> None:
        if not future.cancelled() and not future.result().ok:
            for other in futures:
                other.cancel()

    for future in futures:
        future.add_done_callback(look)


def _outcome(item: _Item, future: Future[Outcome[_Item, _Value]]) -> Outcome[_Item, _Value]:
    try:
        return future.result()
    except CancelledError as exc:
        return Outcome(item=item, error=exc)
