"""What is done at a fork, for whom, in which order, and that nothing is kept alive for it."""

from __future__ import annotations

import gc
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

from skylib import forks
from skylib.forks import watch
from skylib.locks import Locks
from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.runtime.layout import NodeLayout
from skylib.session import Session
from skylib.state.pg_connections import PgConnections
from skylib.state.sqlite import SqliteStore
from skylib.transport.ssh import SshTransport
from tests.processes import Child


class Thing:
    """Writes down what it is asked."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name = name
        self.told = told

    def before(self) -> None:
        self.told.append(f"{self.name} before")

    def in_parent(self) -> None:
        self.told.append(f"{self.name} in parent")

    def in_child(self) -> None:
        self.told.append(f"{self.name} in child")

    def fail(self) -> None:
        raise KeyboardInterrupt


def _watch(thing: Thing) -> Thing:
    watch(thing, before=Thing.before, in_parent=Thing.in_parent, in_child=Thing.in_child)
    return thing


def _told_after_fork(told: list[str]) -> str:
    """Fork; what the child was told. `told` is then what the parent was."""
    child = Child(lambda child: child.say(", ".join(told).encode() or b"-"))
    said = child.heard().decode()
    assert child.ended() == 0
    return said


def test_the_last_is_asked_first_before_and_last_after() -> None:
    """In both processes, once each."""
    told: list[str] = []
    things = [_watch(Thing(name, told)) for name in "ab"]
    assert _told_after_fork(told) == "b before, a before, a in child, b in child"
    assert told == ["b before", "a before", "a in parent", "b in parent"]
    del things


def test_what_is_gone_is_not_asked() -> None:
    """Nothing is kept for the sake of a fork."""
    told: list[str] = []
    gone = weakref.ref(_watch(Thing("a", told)))
    assert gone() is None
    assert _told_after_fork(told) == "-"
    assert told == []


def test_what_one_raises_keeps_nobody_from_his_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt in the middle, too; Python reports it, and the fork is made."""
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type))
    told: list[str] = []
    first = _watch(Thing("a", told))
    failing = Thing("-", told)
    watch(failing, before=Thing.fail, in_parent=Thing.fail, in_child=Thing.fail)
    last = _watch(Thing("b", told))
    assert _told_after_fork(told) == "b before, a before, a in child, b in child"
    assert told == ["b before", "a before", "a in parent", "b in parent"]
    assert reported == [KeyboardInterrupt] * 2
    del first, failing, last
    gc.collect()  # with the traceback that has it


def test_what_comes_during_a_fork_begins_anew_in_the_child_alone() -> None:
    """The parent has nothing to undo for it: it was not asked before."""
    told: list[str] = []
    came: list[Thing] = []
    first = Thing("a", told)
    watch(first, before=lambda _: came.append(_watch(Thing("late", told))) if not came else None)
    assert _told_after_fork(told) == "late in child"
    assert told == []


def test_threads_that_fork_at_one_time_do_not_take_each_others_part() -> None:
    """Each parent's thread undoes what it did itself."""
    told: list[tuple[str, int]] = []
    both = threading.Barrier(2)

    class Meeting:
        pass

    def before(_: Meeting) -> None:
        both.wait(30)
        told.append(("before", threading.get_ident()))

    meeting = Meeting()
    watch(meeting, before=before, in_parent=lambda _: told.append(("after", threading.get_ident())))

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)

    threads = [threading.Thread(target=fork) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    mine = [[word for word, thread in told if thread == each] for each in {thread for _, thread in told}]
    assert mine == [["before", "after"]] * 2


def test_what_opens_something_can_be_freed(tmp_path: Path) -> None:
    """Locks, stores, transports, channels and whole sessions, when they were used and closed: an orchestrator makes many."""
    home = SkyHome(tmp_path / "home")

    def used() -> list[weakref.ref[Any]]:
        locks = Locks(home)
        with locks.hold("x", operation="test"):
            pass
        store = SqliteStore(home)
        store.clusters()
        database = PgConnections("postgresql://host/name")
        database.close()
        ssh = SshTransport(HostAddress(kind="ssh", host="h"), home=home)
        session = Session(home.root)
        agent = session.new_agent("a", "a-1", ssh, "python", NodeLayout(root="/tmp"))
        session.store.clusters()
        for each in (store, session):
            each.close()
        things = (locks, store._connections, database.pool, ssh, agent, session._parts)
        return [weakref.ref(thing) for thing in things]

    used()
    gc.collect()
    before = len(forks._FORKS._watched)
    gone = used()
    gc.collect()
    assert [each() for each in gone] == [None] * 6
    assert len(forks._FORKS._watched) == before
