"""The same work on many hosts at once."""

from __future__ import annotations

import contextvars
import math
import threading
from concurrent.futures import CancelledError

import pytest

from skylib.errors import ConnectError
from skylib.transport.fanout import fanout


def test_outcomes_come_in_the_order_of_the_items() -> None:
    """Each outcome has its item and value."""
    outcomes = fanout(lambda n: n * n, range(50))
    assert [(outcome.item, outcome.get()) for outcome in outcomes] == [(n, n * n) for n in range(50)]


def test_one_failure_leaves_the_others_alone() -> None:
    """The error is the outcome of its item; get raises it."""

    def work(n: int) -> int:
        if n == 1:
            raise ConnectError("down", host="h1")
        return n

    outcomes = fanout(work, range(3))
    assert [outcome.ok for outcome in outcomes] == [True, False, True]
    with pytest.raises(ConnectError, match="down"):
        outcomes[1].get()


@pytest.mark.parametrize("count", [0, 1])
def test_few_items_need_no_thread(count: int) -> None:
    """None or one item is done by the calling thread."""
    outcomes = fanout(lambda n: threading.current_thread(), range(count))
    assert [outcome.value for outcome in outcomes] == [threading.current_thread()] * count


def test_no_more_than_the_limit_at_once() -> None:
    """Eight barriers of four let through exactly when four work at the same time, and never five do."""
    barrier = threading.Barrier(4)
    lock = threading.Lock()
    now = most = 0

    def work(n: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        barrier.wait(10)
        with lock:
            now -= 1

    assert all(outcome.ok for outcome in fanout(work, range(32), limit=4))
    assert most == 4


def test_stop_on_error_begins_nothing_more() -> None:
    """What has not begun when one fails is cancelled, and says so."""

    def work(n: int) -> int:
        if n == 0:
            raise ConnectError("down")
        return n

    outcomes = fanout(work, range(20), limit=1, stop_on_error=True)
    assert isinstance(outcomes[0].error, ConnectError)
    assert isinstance(outcomes[-1].error, CancelledError)


def test_jitter_delays_but_loses_nothing() -> None:
    """With jitter every item is still done."""
    assert [outcome.get() for outcome in fanout(lambda n: n, range(5), jitter_s=0.01)] == list(range(5))


def test_interrupt_passes_through() -> None:
    """KeyboardInterrupt is not an outcome."""

    def work(n: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fanout(work, range(3))


def test_an_interrupt_begins_nothing_more_and_waits_for_what_runs() -> None:
    """After KeyboardInterrupt nothing new begins, and what was under way has ended."""
    begun: list[int] = []
    running, ended = threading.Event(), threading.Event()

    def work(n: int) -> None:
        begun.append(n)
        if n == 0:
            running.wait(10)
            raise KeyboardInterrupt
        running.set()
        threading.Event().wait(0.1)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        fanout(work, range(50), limit=2)
    assert ended.is_set()
    count = len(begun)
    assert count < 50
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("skylib-fanout")]


def test_work_that_hangs_after_an_interrupt_does_not_hold_the_interpreter() -> None:
    """The wait after an interrupt is bounded, and the threads are daemons."""
    goes_on, running = threading.Event(), threading.Event()
    daemons: list[bool] = []

    def work(n: int) -> None:
        if n == 0:
            running.wait(10)
            raise KeyboardInterrupt
        daemons.append(threading.current_thread().daemon)
        running.set()
        goes_on.wait(30)

    try:
        with pytest.raises(KeyboardInterrupt):
            fanout(work, range(2), ending_s=0.01)
        assert daemons == [True]
    finally:
        goes_on.set()


def test_work_sees_the_callers_context() -> None:
    """A context variable that the caller set is seen in every thread."""
    seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")
    seen.set("launch")
    assert [outcome.get() for outcome in fanout(lambda n: seen.get(), range(4))] == ["launch"] * 4


def test_what_is_late_goes_on_alone_and_the_others_count() -> None:
    """After patience_s the caller has the outcomes that came; a single item is bounded, too."""
    goes_on, ended = threading.Event(), threading.Event()

    def work(n: int) -> int:
        if n == 1:
            goes_on.wait(30)
            ended.set()
        return n

    try:
        outcomes = fanout(work, range(3), patience_s=0.1)
        assert [outcome.value for outcome in outcomes] == [0, None, 2]
        assert isinstance(outcomes[1].error, TimeoutError)
        assert isinstance(fanout(work, [1], patience_s=0.05)[0].error, TimeoutError)
    finally:
        goes_on.set()
    assert ended.wait(10)


def test_with_time_enough_all_outcomes_come_and_at_once() -> None:
    """Patience is no wait: errors and values come as without it."""

    def work(n: int) -> int:
        if n == 3:
            raise ConnectError("down")
        return n

    outcomes = fanout(work, range(100), limit=4, patience_s=60)
    assert [outcome.value for outcome in outcomes] == [n if n != 3 else None for n in range(100)]
    assert isinstance(outcomes[3].error, ConnectError)


def test_slow_work_holds_up_nobody() -> None:
    """Six that hang do not take the two places: all others are done beside them."""
    goes_on = threading.Event()
    lock = threading.Lock()
    done = 0

    def work(n: int) -> int:
        nonlocal done
        if n < 6:
            assert goes_on.wait(30)
            return n
        with lock:
            done += 1
            if done == 20:
                goes_on.set()
        return n

    outcomes = fanout(work, range(26), limit=2, patience_s=60, slow_s=0.01)
    assert [outcome.value for outcome in outcomes] == list(range(26))


def test_there_is_an_end_to_threads_and_what_did_not_begin_is_cancelled() -> None:
    """However many hang: at most eight times the limit at once; the rest is told from what was late."""
    goes_on = threading.Event()
    lock = threading.Lock()
    now = most = 0

    def work(n: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        goes_on.wait(30)
        with lock:
            now -= 1

    try:
        outcomes = fanout(work, range(40), limit=2, patience_s=1.0, slow_s=0.001)
        assert [type(outcome.error) for outcome in outcomes] == [TimeoutError] * 16 + [CancelledError] * 24
    finally:
        goes_on.set()
    assert most == 16


@pytest.mark.parametrize("patience_s", [math.inf, 1e12, 1e300])
def test_patience_may_be_without_end(patience_s: float) -> None:
    """A wait that the system would refuse is done in parts."""
    outcomes = fanout(lambda n: n, range(3), patience_s=patience_s)
    assert [outcome.get() for outcome in outcomes] == [0, 1, 2]
