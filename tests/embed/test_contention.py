"""One home and many users at the same moment: nothing is lost, held twice, or said to be locked; reads wait for nobody."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

import skylib
from skylib.errors import NoCapacityError
from skylib.models.cluster import ClusterStatus
from skylib.session import Session
from tests.doom import Doom, Wires
from tests.homes import KINDS, Home, make_home
from tests.processes import Child, run_at_once
from tests.records import cluster_record, job_record
from tests.scripted_node import ScriptedHost, ScriptedLab

_T = TypeVar("_T")
PROCESSES, OPERATIONS = 20, 50
INFRA = "ssh/lab"
HOSTS = [f"h{number}" for number in range(4)]
UP = ClusterStatus.UP
PATIENCE_S = 120.0


@pytest.fixture(params=KINDS)
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Home:
    """A fresh home, its state in SQLite or in PostgreSQL."""
    return make_home(request.param, tmp_path / "home")


class Worker:
    """Mixed operations on a home, and a count of what they must have come to. held: a folder to show who holds what."""

    def __init__(self, session: Session, name: str, held: Path) -> None:
        self.session = session
        self.store = session.store
        self.name = name
        self.counts: Counter[str] = Counter()
        self._held = held
        self._draw = random.Random(name)
        self._numbers = iter(range(1, 10**6))
        self.store.begin_launch(cluster_record(name, f"{name}-0", infra=INFRA))

    def work(self, operations: int) -> Counter[str]:
        acts = [self.live, self.claim, self.intend, self.count, self.run_jobs, self.settle, self.exclude, self.read]
        acts.append(self.agree)
        for _ in range(operations):
            self._draw.choice(acts)()
        self.store.remove_cluster(self.name, at=5.0)
        self.counts["lives"] += 1
        return self.counts

    def live(self) -> None:
        """A record is made, settled and removed."""
        name = f"{self.name}-{next(self._numbers)}"
        self.store.begin_launch(cluster_record(name, f"{name}-1", infra=INFRA))
        self.store.settle(name, UP, at=101.0)
        self.store.remove_cluster(name, at=103.0)
        self.counts["lives"] += 1
        self.counts["used_s"] += 2

    def claim(self) -> None:
        """Two hosts, if both are free; nobody else has them then."""
        name = f"{self.name}-{next(self._numbers)}"
        hosts = self._draw.sample(HOSTS, 2)
        self.store.begin_launch(cluster_record(name, f"{name}-1", infra=INFRA))
        try:
            self.store.claim_hosts(INFRA, hosts, name, f"{name}-1", 1.0)
        except NoCapacityError:
            self.counts["refused"] += 1
        else:
            with self._alone(*hosts):
                assert {self.store.claims()[INFRA, host] for host in hosts} == {name}
            self.counts["claimed"] += 1
        self.store.remove_cluster(name, at=2.0)
        self.counts["lives"] += 1

    def intend(self) -> None:
        """An intent is open while it is at work, and settled after."""
        with self.session.intent("launch", self.name) as number:
            assert number in [intent.intent_id for intent in self.store.open_intents(self.name)]
        assert self.store.open_intents(self.name) == []

    def count(self) -> None:
        """A value is read, added to and written back, under a lock."""
        with self.session.locks.hold("config", operation="count", timeout_s=PATIENCE_S):
            known = self.store.config_get("count")
            self.store.config_set("count", (known if isinstance(known, int) else 0) + 1)
        self.counts["counted"] += 1

    def run_jobs(self) -> None:
        """A job is seen, twice."""
        number = next(self._numbers)
        seen = job_record(number, skylib.JobStatus.SUCCEEDED, cluster_name=self.name)
        self.store.save_jobs(f"{self.name}-0", [seen])
        self.store.save_jobs(f"{self.name}-0", [seen])
        self.counts["jobs"] += 1

    def settle(self) -> None:
        """Something happens to the cluster."""
        self.store.add_event(self.name, "noted", at=1.0)
        self.counts["events"] += 1

    def exclude(self) -> None:
        """A cluster's lock is one holder's."""
        scope = self._draw.choice(["cluster:a", "cluster:b"])
        with self.session.locks.hold(scope, operation="exclude", timeout_s=PATIENCE_S), self._alone(scope):
            pass

    def read(self) -> None:
        """What was written is there."""
        assert self.name in {record.name for record in self.store.clusters()}
        assert self.name in {life.name for life in self.store.history()}

    def agree(self) -> None:
        """The first to say something is who everybody hears."""
        stands = self.store.config_add("first", self.name)
        assert stands == self.store.config_get("first")

    @contextlib.contextmanager
    def _alone(self, *names: str) -> Iterator[None]:
        """Fails when another worker is in such a block for one of the names."""
        paths = [self._held / name for name in names]
        for path in paths:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        yield
        for path in paths:
            path.unlink()


def _agrees(home: Home, counts: Counter[str]) -> None:
    """The store has exactly what was counted."""
    session = home.session()
    store = session.store
    assert store.clusters() == []
    assert store.claims() == {}
    assert store.open_intents() == []
    lives = store.history()
    assert len(lives) == counts["lives"]
    assert all(life.ended_at is not None for life in lives)
    assert sum(life.used_seconds(now=1000.0) for life in lives) == counts["used_s"]
    names = {life.name for life in lives}
    assert sum(len(store.jobs(name)) for name in names if "-" not in name) == counts["jobs"]
    noted = [event for name in names for event in store.events(name, limit=1000) if event.kind == "noted"]
    assert len(noted) == counts["events"]
    assert (store.config_get("count") or 0) == counts["counted"]
    session.close()


def test_twenty_processes_lose_nothing(home: Home, tmp_path: Path):
    """20 processes with 50 mixed operations each, at once on one home: every counter is exact, no host is held twice."""
    held = tmp_path / "held"
    held.mkdir()

    def work(number: int) -> Callable[[], bytes]:
        def run() -> bytes:
            session = home.session()
            counts = Worker(session, f"p{number}", held).work(OPERATIONS)
            session.close()
            return json.dumps(counts).encode()

        return run

    said = run_at_once([work(number) for number in range(PROCESSES)], timeout_s=PATIENCE_S)
    counts = sum((Counter(json.loads(each)) for each in said), Counter())
    assert counts["claimed"] > 0
    _agrees(home, counts)


def test_every_writer_has_its_turn(home: Home):
    """20 processes that write without a pause: no write waits for more than 60 % of the time that all take together."""
    made = home.session()
    assert made.store.clusters() == []
    made.close()

    def work(number: int) -> Callable[[], bytes]:
        def run() -> bytes:
            session, waits = home.session(), []
            for life in range(OPERATIONS // 2):
                began = time.monotonic()
                session.store.begin_launch(cluster_record(f"p{number}", f"p{number}-{life}"))
                begun = time.monotonic()
                session.store.remove_cluster(f"p{number}", at=200.0)
                waits += [begun - began, time.monotonic() - begun]
            session.close()
            return json.dumps(max(waits)).encode()

        return run

    began = time.monotonic()
    longest = max(map(json.loads, run_at_once([work(number) for number in range(PROCESSES)], timeout_s=PATIENCE_S)))
    assert longest < 0.6 * (time.monotonic() - began)


def test_sixteen_threads_and_their_forks_lose_nothing(home: Home, tmp_path: Path):
    """16 threads with one session, and three children forked in the middle that go on with it: every counter is exact."""
    held = tmp_path / "held"
    held.mkdir()
    session = home.session()
    begun = threading.Semaphore(0)

    def work(number: int) -> Counter[str]:
        worker = Worker(session, f"t{number}", held)
        begun.release()
        return worker.work(10)

    def in_child(number: int) -> Callable[[Child], None]:
        def run(child: Child) -> None:
            counts = Worker(session, f"f{number}", held).work(10)
            session.close()
            child.say(json.dumps(counts).encode())

        return run

    with ThreadPoolExecutor(16) as pool:
        working = [pool.submit(work, number) for number in range(16)]
        for _ in working[:4]:
            assert begun.acquire(timeout=PATIENCE_S)
        children = [Child(in_child(number)) for number in range(3)]
        counts = sum((each.result(PATIENCE_S) for each in working), Counter())
    for child in children:
        counts += Counter(json.loads(child.heard(timeout_s=PATIENCE_S)))
        assert child.ended() == 0
    session.close()
    _agrees(home, counts)


class Gate(Doom):
    """A session whose `ray start` waits until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.reached, self.open = threading.Event(), threading.Event()

    def act(self, what: str, effect: Callable[[], _T], *, host: ScriptedHost | None = None) -> _T:
        if what == "ray" and self.closed:
            self.reached.set()
            assert self.open.wait(PATIENCE_S)
        return super().act(what, effect, host=host)


def test_reads_never_wait_for_a_launch(home: Home):
    """16 threads with one Client: while one launches, 15 read and use what stands, and are done before the launch is."""
    lab, gate = ScriptedLab(3), Gate()
    home.folder.joinpath("ssh_node_pools.yaml").write_text(lab.pool_yaml())
    client = skylib.Client(home.folder, config=home.config)
    client._session = home.session(transports=Wires(lab, gate))  # hosts in memory: the one thing a Client is not given
    task = skylib.Task(run="true", resources=skylib.Resources(infra=INFRA))
    client.launch(task, "stands")
    gate.closed = True

    def use(number: int) -> int:
        """Jobs submitted."""
        draw, submitted = random.Random(number), 0
        for _ in range(10):
            what = draw.choice(["status", "refresh", "queue", "exec", "logs", "cost", "autostop"])
            if what == "status":
                assert {each.name: each.status.value for each in client.status()} == {"stands": "UP", "comes": "INIT"}
            elif what == "refresh":
                assert client.status("comes", refresh=True)[0].status is ClusterStatus.INIT
            elif what == "queue":
                assert client.queue("stands")[0].job_id == 1
            elif what == "exec":
                client.exec(task, "stands")
                submitted += 1
            elif what == "logs":
                assert [str(line.text) for line in client.tail_logs("stands", 1, follow=False)] == ["hello"]
            elif what == "cost":
                client.cost_report()
            else:
                client.autostop("stands", 5)
        return submitted

    with ThreadPoolExecutor(16) as pool:
        launching = pool.submit(client.launch, task, "comes")
        try:
            assert gate.reached.wait(PATIENCE_S)
            submitted = sum(pool.map(use, range(15), timeout=PATIENCE_S))
            assert not launching.done()
        finally:
            gate.open.set()
        assert launching.result(PATIENCE_S).cluster_name == "comes"
    assert [each.status for each in client.status()] == [UP, UP]
    assert len(client.queue("stands")) == submitted + 1
    for name in ("stands", "comes"):
        client.down(name)
    assert [host.left() for host in lab.hosts.values()] == [[], [], []]
    client.close()
