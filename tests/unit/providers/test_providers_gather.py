"""Gathering: many answers at once, in order, without waiting for those that nobody needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.providers.gather import gather


def never(found: Sequence[object]) -> bool:
    return False


def failing(item: object) -> str:
    raise AssertionError(f"{item} was late")


@given(st.lists(st.integers(), max_size=20), st.integers(1, 8))
def test_results_come_in_the_order_of_the_items(items: list[int], limit: int) -> None:
    """However many work at once, each result stands where its item stood."""
    found = gather(lambda item: item * 2, items, late=lambda item: -1, enough=never, patience_s=0.0, limit=limit)
    assert found == [item * 2 for item in items]


def test_a_late_one_is_not_waited_for_when_there_are_enough() -> None:
    """Once enough have come, a silent one is replaced after the patience, and its thread stops nobody."""
    release = threading.Event()
    began = time.monotonic()

    def work(item: str) -> str:
        if item == "silent":
            release.wait(30)
        return item

    found = gather(
        work, ["a", "silent", "b"], late=lambda item: f"no {item}", enough=lambda so_far: len(so_far) == 2, patience_s=0.05
    )
    release.set()
    assert found == ["a", "no silent", "b"]
    assert time.monotonic() - began < 20


def test_without_enough_every_one_is_waited_for() -> None:
    """When all are needed, the slowest is waited for, whatever the patience."""
    others = threading.Barrier(2, timeout=30)

    def work(item: int) -> int:
        others.wait()
        return item

    assert gather(work, [1, 2], late=failing, enough=never, patience_s=0.0) == [1, 2]  # type: ignore[arg-type]


def test_no_more_than_the_limit_are_under_way() -> None:
    """At most `limit` items are worked on at the same time."""
    lock, under_way, most = threading.Lock(), [0], [0]

    def work(item: int) -> int:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.002)
        with lock:
            under_way[0] -= 1
        return item

    gather(work, range(30), late=failing, enough=never, patience_s=0.0, limit=3)  # type: ignore[arg-type, return-value]
    assert most[0] <= 3


def test_what_the_work_raises_is_raised() -> None:
    """An error in one thread ends the gathering with that error."""

    def work(item: int) -> int:
        if item == 2:
            raise ZeroDivisionError("two")
        return item

    with pytest.raises(ZeroDivisionError, match="two"):
        gather(work, [1, 2, 3], late=failing, enough=never, patience_s=0.0)  # type: ignore[arg-type]
