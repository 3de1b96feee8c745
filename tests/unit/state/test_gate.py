"""The gate between many users and one that wants to be alone."""

from __future__ import annotations

import threading

import pytest

from skylib.state.gate import Gate


def _thread(work: threading.Thread) -> threading.Thread:
    work.start()
    return work


def test_shutting_waits_for_those_inside() -> None:
    """And keeps others out until it is opened."""
    gate = Gate()
    entered, leave, order = threading.Event(), threading.Event(), list[str]()

    def first() -> None:
        with gate.inside():
            entered.set()
            leave.wait(30)
            order.append("first left")

    def second() -> None:
        with gate.inside():
            order.append("second in")

    one = _thread(threading.Thread(target=first))
    entered.wait(30)
    threading.Timer(0.05, leave.set).start()
    assert gate.shut(timeout_s=30) == set()
    two = _thread(threading.Thread(target=second))
    order.append("alone")
    gate.open()
    one.join(30)
    two.join(30)
    assert order == ["first left", "alone", "second in"]


def test_shutting_gives_up_at_its_timeout() -> None:
    """And says who stayed inside."""
    gate = Gate()
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with gate.inside():
            entered.set()
            leave.wait(30)

    thread = _thread(threading.Thread(target=stay))
    entered.wait(30)
    assert gate.shut(timeout_s=0.01) == {thread.ident}
    gate.open()
    leave.set()
    thread.join(30)


def test_shutting_that_is_interrupted_leaves_the_gate_open() -> None:
    """Whatever ends the waiting, such as Ctrl-C: nobody is kept out by a thread that is not alone inside."""
    gate = Gate()
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with gate.inside():
            entered.set()
            leave.wait(30)

    first = _thread(threading.Thread(target=stay))
    entered.wait(30)
    with pytest.raises(OverflowError):
        gate.shut(timeout_s=1e300)
    entered.clear()
    second = _thread(threading.Thread(target=stay))
    assert entered.wait(30)
    leave.set()
    first.join(30)
    second.join(30)


def test_who_is_inside_may_come_in_again_and_shut() -> None:
    """A thread never waits for itself."""
    gate = Gate()
    with gate.inside(), gate.inside():
        assert gate.shut(timeout_s=30) == {threading.get_ident()}
        with gate.inside():
            pass
        gate.open()
