"""Clients killed at every step of every verb, on real hosts: the next call converges, and nothing is left at the end.

The suite runs one round, a point of each verb; SKYLIB_SWEEP_SEED repeats one. `-m slow` runs all points and prints a table.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import attrs
import pytest

import skylib
from skylib.errors import ClusterNotFound
from skylib.events import Event, Phase
from skylib.session import Session
from skylib.state.base import StateStore
from tests.homes import KINDS, make_home
from tests.killing import CLUSTER, IDLE_MINUTES, VERBS, KillPoint, Setting, live, record
from tests.lab import Lab, eventually, make_lab
from tests.testbed import Host

_T = TypeVar("_T")
SEED = "SKYLIB_SWEEP_SEED"
LABS = 2  # side by side in the whole sweep
LEAST_POINTS = 25
NEXT = ("the same", "reconcile", "down", "status, launch")
UP, STOPPED = skylib.ClusterStatus.UP, skylib.ClusterStatus.STOPPED


@attrs.frozen(kw_only=True)
class Row:
    """What came of one point. settled: what was done about what the dead client left, in the events' words."""

    point: KillPoint
    died: bool
    next: str
    settled: str
    status: str
    seconds: float
    problem: str = ""

    def __str__(self) -> str:
        point = str(self.point) if self.died else f"{self.point} [not reached]"
        return f"{point:<58} {self.next:<15} {self.seconds:5.1f} s  {self.status:<8} {self.settled}{self.problem}"


class Sweep:
    """One lab on which clients die, one after the other, and a client that lives on."""

    def __init__(self, lab: Lab, workdir: Path) -> None:
        self.lab = lab
        self._setting = Setting(home=lab.home, config=lab.config, workdir=workdir)
        self._events: list[Event] = []
        self._key = ""
        self.client = skylib.Client(lab.home, config=lab.config, events=self._events.append)
        self.task = lab.task("cat file", num_nodes=2, workdir=str(workdir))

    def points(self, notes: Path) -> dict[str, list[KillPoint]]:
        """What each verb comes by, in one life of a cluster."""
        found = {}
        for verb in VERBS:
            self._ready_for(verb)
            found[verb] = record(self._setting, verb, notes)
        return found

    def round(self, points: list[KillPoint], draw: random.Random) -> list[Row]:
        """A client dies at each of the points, in their order; in the end nothing is left."""
        rows = []
        for point in points:
            rows.append(self._visit(point, draw.choice(NEXT)))
        began = time.perf_counter()
        try:
            if self.client.status():
                self.client.down(CLUSTER)
            self._nothing_left()
        except (skylib.errors.SkyError, AssertionError) as error:
            self._clean()
            seconds = time.perf_counter() - began
            facts = {"next": "down", "settled": "", "status": "", "seconds": seconds, "died": True}
            rows.append(Row(point=points[-1], **facts, problem=f"\n    AT THE END OF A ROUND: {error!r}"))
        return rows

    def _visit(self, point: KillPoint, following: str) -> Row:
        died, problem = False, ""
        self._ready_for(point.verb)
        self._events.clear()
        self._key = f"{point} {time.time()}"
        began = time.perf_counter()
        try:
            died = live(self._setting, point, key=self._key)
            began = time.perf_counter()
            self._follow(point.verb if following == "the same" else following)
            self._consistent()
        except (skylib.errors.SkyError, AssertionError) as error:
            problem = f"\n    DID NOT CONVERGE: {error!r}"
        seconds = time.perf_counter() - began
        settled = "; ".join(
            f"{event.facts.get('operation')} {event.facts.get('done')}: {event.facts.get('why')}"
            for event in self._events
            if event.step == "reconcile.intent" and event.phase is Phase.FINISHED
        )
        status = ", ".join(each.status.value for each in self.client.status()) or "none"
        if problem:
            self._clean()
        return Row(
            point=point, died=died, next=following, settled=settled, status=status, seconds=seconds, problem=problem
        )

    def _ready_for(self, verb: str) -> None:
        """The state that the verb begins from."""
        known = self.client.status()
        if verb == "launch":
            if known:
                self.client.down(CLUSTER)
            return
        if not known:
            self.client.launch(self.task, CLUSTER).wait()
        elif known[0].status is not UP and verb != "start":
            self.client.start(CLUSTER)
        if verb == "start" and self.client.status(CLUSTER)[0].status is UP:
            self.client.stop(CLUSTER)

    def _follow(self, following: str) -> None:
        """The next call; it works as if nobody had died, or finds that it has nothing to do."""
        if following == "reconcile":
            self._reconcile()
        elif following == "status, launch":
            self.client.status(refresh=True)
            self._launch()
        elif following == "launch":
            self._launch()
        elif following == "down":
            try:
                self.client.down(CLUSTER)
            except ClusterNotFound:
                pass  # the dead one had come so far
            assert self.client.status() == []
        else:
            getattr(self, f"_{following}")()

    def _reconcile(self) -> None:
        """A database lets go of a dead client's locks when it hears of its death: soon, not at once as the kernel does."""
        found = self.client.reconcile()
        deadline = time.monotonic() + 5.0
        while self.lab.config and any(each.done.value == "busy" for each in found) and time.monotonic() < deadline:
            time.sleep(0.05)
            found = self.client.reconcile()
        for each in found:
            assert each.done.value in ("finished", "undone", "noted"), each

    def _launch(self) -> None:
        self._once(self.client.launch(self.task, CLUSTER, key=self._key))
        assert self.client.status(CLUSTER)[0].status is UP

    def _exec(self) -> None:
        self._once(self.client.exec(self.task, CLUSTER, key=self._key))

    def _once(self, job: skylib.Job) -> None:
        """The job ran, whoever submitted it, and ran once."""
        assert job.wait(timeout_s=60).status is skylib.JobStatus.SUCCEEDED
        assert [each.key for each in self.client.queue(CLUSTER)].count(self._key) == 1

    def _stop(self) -> None:
        self.client.stop(CLUSTER)
        assert self.client.status(CLUSTER)[0].status is STOPPED

    def _start(self) -> None:
        assert self.client.start(CLUSTER).status is UP

    def _autostop(self) -> None:
        self.client.autostop(CLUSTER, IDLE_MINUTES)
        timer = self.client.status(CLUSTER)[0].autostop
        assert timer is not None
        assert timer.idle_minutes == IDLE_MINUTES

    def _consistent(self) -> None:
        """What is known is so: UP answers, STOPPED runs nowhere, none has left nothing; nothing is open."""
        known = self.client.status(refresh=True)
        assert self._store(lambda store: store.open_intents()) == []
        if not known:
            self._nothing_left()
        elif known[0].status is STOPPED:
            eventually(lambda: self._busy() == 0, what="a stopped cluster without processes")
        else:
            assert known[0].status is UP
            assert self._busy() == known[0].num_nodes

    def _nothing_left(self) -> None:
        self.lab.assert_nothing_left()
        for life in self._store(lambda store: store.history()):
            assert all(span.end is not None for span in life.intervals)

    def _busy(self) -> int:
        """On how many hosts something of ours runs."""
        return sum(bool(self.lab.ours(host)) for host in self.lab.hosts)

    def _store(self, ask: Callable[[StateStore], _T]) -> _T:
        session = Session(self.lab.home, config=self.lab.config)
        try:
            return ask(session.store)
        finally:
            session.close()

    def _clean(self) -> None:
        """After a failure: the next point begins from nothing."""
        for record_ in self.client.status():
            self.client.down(record_.name, purge=True)

    def close(self) -> None:
        self.client.close()


def rounds_of(points: dict[str, list[KillPoint]], draw: random.Random) -> list[list[KillPoint]]:
    """Every point once, in random order; each round has one of each verb, as long as there are any."""
    decks = {verb: draw.sample(found, len(found)) for verb, found in points.items()}
    longest = max(map(len, decks.values()))
    return [[deck[number] for deck in decks.values() if number < len(deck)] for number in range(longest)]


def told(rows: list[Row], seed: str) -> str:
    """The table, to be printed."""
    return "\n".join([f"\n{SEED}={seed}", *map(str, rows)])


@pytest.fixture
def seed() -> str:
    """Of the points and of what follows them."""
    return os.environ.get(SEED) or str(random.randrange(10**6))


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """What the killed launches bring to the nodes."""
    folder = tmp_path / "work"
    folder.mkdir()
    folder.joinpath("file").write_text("here\n")
    return folder


def test_a_client_killed_anywhere_is_cleaned_up_after(lab: Lab, workdir: Path, tmp_path: Path, seed: str):
    """One point of each verb, drawn: the next call converges, and after `down` nothing is left."""
    draw = random.Random(seed)
    sweep = Sweep(lab, workdir)
    points = sweep.points(tmp_path / "notes")
    assert sum(map(len, points.values())) >= LEAST_POINTS
    rows = sweep.round([draw.choice(found) for found in points.values()], draw)
    sweep.close()
    table = told(rows, seed)
    print(table)
    assert [row for row in rows if row.problem] == [], table


@pytest.fixture(params=KINDS)
def labs(
    request: pytest.FixtureRequest, make_warm_host: Callable[..., Host], wheels: Path, tmp_path: Path
) -> Iterator[list[Lab]]:
    """Labs of two hosts each, their state in SQLite or in PostgreSQL."""
    made = []
    for number in range(LABS):
        hosts = [make_warm_host(), make_warm_host()]
        home = make_home(request.param, tmp_path / f"sky{number}")
        made.append(make_lab(home.folder, hosts, wheels=wheels, config=dict(home.config)))
    yield made
    for each in made:
        each.client.close()


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_client_killed_at_every_point(
    labs: list[Lab], workdir: Path, tmp_path: Path, seed: str, capfd: pytest.CaptureFixture[str]
):
    """Every point of every verb, each with a next call that is drawn."""
    draw = random.Random(seed)
    sweeps = [Sweep(each, workdir) for each in labs]
    points = sweeps[0].points(tmp_path / "notes")
    waiting: queue.SimpleQueue[list[KillPoint]] = queue.SimpleQueue()
    for each in rounds_of(points, draw):
        waiting.put(each)
    rows: list[Row] = []

    def work(sweep: Sweep, mine: random.Random) -> None:
        while True:
            try:
                chosen = waiting.get_nowait()
            except queue.Empty:
                return
            for row in sweep.round(chosen, mine):
                rows.append(row)
                with capfd.disabled():
                    print(row, flush=True)

    with capfd.disabled():
        print(f"\n{SEED}={seed}: {sum(map(len, points.values()))} points", flush=True)
    threads = [
        threading.Thread(target=work, args=(sweep, random.Random(f"{seed} {number}"))) for number, sweep in enumerate(sweeps)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sweep in sweeps:
        sweep.close()
    failed = [row for row in rows if row.problem]
    with capfd.disabled():
        print(told(sorted(rows, key=lambda row: row.point), seed), flush=True)
        print(f"{len(rows)} visits, {sum(row.died for row in rows)} died, {len(failed)} failed")
    assert sum(map(len, points.values())) >= LEAST_POINTS
    assert failed == [], told(failed, seed)
