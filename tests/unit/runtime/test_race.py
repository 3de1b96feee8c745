"""Steps that run at once."""

from __future__ import annotations

import contextvars
import queue
import threading

import pytest

from skylib.errors import BringUpError
from skylib.runtime.race import Race, RaceOver

WAIT_S = 20.0


def test_the_first_failure_ends_the_wait():
    """A failing step raises in the thread that waits, while another still runs."""
    race, goes_on = Race(), threading.Event()

    def fail() -> None:
        raise BringUpError("no")

    race.go("slow", lambda: goes_on.wait(WAIT_S))
    race.go("bad", fail)
    with pytest.raises(BringUpError):
        race.until({"slow"}, WAIT_S)
    goes_on.set()
    assert race.join(WAIT_S) == ()


def test_nothing_begins_after_the_stop():
    """A step that checks after the stop does not act."""
    race, stopped, acted = Race(), threading.Event(), []

    def step() -> None:
        stopped.wait(WAIT_S)
        race.check()
        acted.append(True)

    race.go("late", step)
    race.stop()
    stopped.set()
    assert race.join(WAIT_S) == ()
    assert acted == []
    with pytest.raises(RaceOver):
        race.check()


def test_join_names_what_still_runs():
    """A step that does not end in time is named, and not waited for any longer."""
    race, goes_on = Race(), threading.Event()
    race.go("quick", lambda: None)
    race.go("stuck", lambda: goes_on.wait(WAIT_S))
    race.until({"quick"}, WAIT_S)
    assert race.join(0.01) == ("stuck",)
    goes_on.set()
    assert race.join(WAIT_S) == ()


def test_the_timeout_is_told():
    """queue.Empty when the awaited step gives nothing in time."""
    with pytest.raises(queue.Empty):
        Race().until({"never"}, 0.01)


def test_steps_see_the_callers_context():
    """A context variable that the caller set is seen by a step."""
    seen: contextvars.ContextVar[str] = contextvars.ContextVar("seen")
    seen.set("launch")
    race = Race()
    race.go("look", seen.get)
    assert race.until({"look"}, WAIT_S) == {"look": "launch"}
