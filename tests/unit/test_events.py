"""Events: what a step emits, to whom, and when it fails."""

from __future__ import annotations

import contextvars
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import attrs
import pytest

from skylib.events import Event, Phase, Relay, discard, fan, span
from skylib.transport.fanout import fanout


def test_a_step_starts_and_finishes() -> None:
    """A span emits STARTED, then FINISHED with its seconds, under one step name with its facts."""
    seen: list[Event] = []
    with span(seen.append, "runtime.ray_head", node="10.0.0.4"):
        assert [event.phase for event in seen] == [Phase.STARTED]
    started, finished = seen
    assert (started.step, finished.step) == ("runtime.ray_head", "runtime.ray_head")
    assert (started.phase, finished.phase) == (Phase.STARTED, Phase.FINISHED)
    assert started.seconds is None
    assert finished.seconds is not None
    assert 0 <= finished.seconds < 60
    assert started.facts == finished.facts == {"node": "10.0.0.4"}
    assert 0 < started.at <= finished.at


def test_facts_found_on_the_way_are_on_the_end_only() -> None:
    """note() adds to the closing event and leaves the opening one alone."""
    seen: list[Event] = []
    with span(seen.append, "sync", node="a") as step:
        step.note(files=3)
    assert [dict(event.facts) for event in seen] == [{"node": "a"}, {"node": "a", "files": 3}]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_step_that_raises_failed(kind: type[BaseException]) -> None:
    """Whatever is raised inside comes out unchanged, after a FAILED event that names it."""
    seen: list[Event] = []
    error = kind("no")

    def sync() -> None:
        with span(seen.append, "sync") as step:
            step.note(files=3)
            raise error

    with pytest.raises(kind) as caught:
        sync()
    assert caught.value is error
    assert [event.phase for event in seen] == [Phase.STARTED, Phase.FAILED]
    assert seen[1].facts == {"files": 3, "error": f"{kind.__name__}: no"}
    assert seen[1].seconds is not None


def test_steps_nest() -> None:
    """An inner step lies between the events of the outer one."""
    seen: list[Event] = []
    with span(seen.append, "outer"), span(seen.append, "inner"):
        pass
    shown = [(event.step, event.phase.value) for event in seen]
    assert shown == [("outer", "started"), ("inner", "started"), ("inner", "finished"), ("outer", "finished")]


def test_fan_gives_each_event_to_all_in_order() -> None:
    """Every sink of a fan gets every event; dropping sinks costs nothing."""
    calls: list[str] = []
    both = fan(lambda event: calls.append(f"a {event.step}"), discard, lambda event: calls.append(f"b {event.step}"))
    both(Event(step="x", phase=Phase.NOTE, at=1.0))
    both(Event(step="y", phase=Phase.NOTE, at=2.0))
    assert calls == ["a x", "b x", "a y", "b y"]
    fan()(Event(step="x", phase=Phase.NOTE, at=1.0))


def test_an_event_is_a_value() -> None:
    """Events are frozen and compare by what they say."""
    event = Event(step="x", phase=Phase.NOTE, at=1.0)
    assert event == Event(step="x", phase=Phase.NOTE, at=1.0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.step = "y"  # type: ignore[misc]


def test_threads_do_not_mix_their_steps() -> None:
    """Spans of many threads into one sink each give two events with that thread's own facts."""
    seen: list[Event] = []
    together = threading.Barrier(8)

    def work(number: int) -> None:
        together.wait(30)
        with span(seen.append, "step", number=number) as step:
            step.note(double=number * 2)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    ended = sorted((event.facts["number"], event.facts["double"]) for event in seen if event.phase is Phase.FINISHED)
    assert ended == [(number, number * 2) for number in range(8)]


def test_steps_are_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """The logger `skylib` says what happened at DEBUG; the library sets no handler and no level."""
    with caplog.at_level(logging.DEBUG, "skylib"):
        with span(discard, "good"):
            pass
        with pytest.raises(ValueError, match="no"), span(discard, "bad"):
            raise ValueError("no")
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG"]
    assert caplog.messages[0].startswith("good finished in ")
    assert caplog.messages[1].startswith("bad failed after ")
    assert logging.getLogger("skylib").handlers == []


def _event(step: str) -> Event:
    return Event(step=step, phase=Phase.NOTE, at=0.0)


def test_a_relay_gives_events_to_the_operation_of_its_context() -> None:
    """Two operations at once on what they share: each gets its own events, from its worker threads, too."""
    relay = Relay()
    seen: dict[str, list[str]] = {"a": [], "b": []}
    both = threading.Barrier(2)

    def operation(name: str) -> None:
        with relay.to(lambda event: seen[name].append(event.step)):
            both.wait(20)
            relay(_event(name))
            fanout(lambda number: relay(_event(f"{name}{number}")), range(2))

    threads = [threading.Thread(target=operation, args=(name,)) for name in seen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert {name: sorted(steps) for name, steps in seen.items()} == {"a": ["a", "a0", "a1"], "b": ["b", "b0", "b1"]}


def test_a_relay_drops_what_comes_outside_of_its_operations() -> None:
    """Before, after, after the end in a copied context, and in another relay's operation."""
    relay, other = Relay(), Relay()
    seen: list[str] = []

    def sink(event: Event) -> None:
        seen.append(event.step)

    relay(_event("before"))
    with relay.to(sink):
        copied = contextvars.copy_context()
        with other.to(discard):
            relay(_event("in another's"))
        relay(_event("in"))
    relay(_event("after"))
    copied.run(relay, _event("late"))
    assert seen == ["in"]
