"""The count of channels on one connection."""

from __future__ import annotations

import threading

from skylib.transport.ssh_connection import Slots


def test_no_more_slots_than_the_limit() -> None:
    """The third of two is refused after its wait, and given when one comes back."""
    slots = Slots(2)
    assert slots.take(0)
    assert slots.take(0)
    assert not slots.take(0.01)
    slots.give_back()
    assert slots.take(0)


def test_waiter_gets_the_slot_that_comes_back() -> None:
    """Giving back wakes who waits."""
    slots = Slots(1)
    assert slots.take(0)
    got: list[bool] = []
    waiter = threading.Thread(target=lambda: got.append(slots.take(10)))
    waiter.start()
    slots.give_back()
    waiter.join(10)
    assert got == [True]


def test_refusal_lowers_the_limit() -> None:
    """A host that takes fewer channels than we thought is not asked for more again."""
    slots = Slots(8)
    assert slots.take(0)
    assert slots.take(0)
    assert slots.refused()
    slots.give_back()
    assert not slots.take(0.01)


def test_refusal_of_the_only_channel_is_final() -> None:
    """A host that takes no channel at all is not waited for."""
    slots = Slots(8)
    assert slots.take(0)
    assert not slots.refused()
