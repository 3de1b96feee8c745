"""The store against a model in memory: any sequence of operations leaves both in the same state."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from skylib.errors import ClusterBusy, ClusterNotFound, NoCapacityError
from skylib.models.cluster import ClusterStatus
from tests.records import cluster_record
from tests.stores import opened_stores

_names = st.sampled_from(["a", "b", "c"])
_lives = st.integers(1, 3)
_hosts = st.lists(st.sampled_from(["h1", "h2", "h3"]), min_size=1, max_size=3)


class StoreMachine(RuleBasedStateMachine):
    """Clusters, claims, usage, events and intents; time goes on by one with each step."""

    kind = "sqlite"

    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.stack = ExitStack()
        folder = self.stack.enter_context(TemporaryDirectory())
        self.store = self.stack.enter_context(opened_stores(self.kind, Path(folder)))(clock=lambda: self.now)
        self.alive: dict[str, tuple[str, ClusterStatus]] = {}
        self.over: set[str] = set()
        self.held: dict[str, str] = {}
        self.in_use: set[str] = set()
        self.changes: dict[str, list[tuple[str, float]]] = {"a": [], "b": [], "c": []}
        self.open_intents: list[int] = []
        self.settled_intents: list[int] = []

    def _tick(self) -> float:
        self.now += 1.0
        return self.now

    @rule(name=_names, life=_lives)
    def begin(self, name: str, life: int) -> None:
        cluster_id = f"{name}-{life}"
        record = cluster_record(name, cluster_id, launched_at=self._tick(), status_since=self.now)
        holder = self.alive.get(name)
        refused = cluster_id in self.over or (holder is not None and holder[0] != cluster_id)
        try:
            self.store.begin_launch(record)
        except ClusterBusy:
            assert refused
        else:
            assert not refused
            self._changed(name, holder, cluster_id, ClusterStatus.INIT)
            self.in_use.discard(cluster_id)

    @rule(name=_names, status=st.sampled_from(ClusterStatus))
    def settle(self, name: str, status: ClusterStatus) -> None:
        try:
            self.store.settle(name, status, at=self._tick())
        except ClusterNotFound:
            assert name not in self.alive
            return
        cluster_id = self.alive[name][0]
        self._changed(name, self.alive[name], cluster_id, status)
        if status is ClusterStatus.UP:
            self.in_use.add(cluster_id)
        if status in (ClusterStatus.STOPPED, ClusterStatus.INIT):
            self.in_use.discard(cluster_id)

    @rule(name=_names, hosts=_hosts)
    def claim(self, name: str, hosts: list[str]) -> None:
        cluster_id = self.alive.get(name, (f"{name}-0", None))[0]
        taken = {host: self.held[host] for host in hosts if self.held.get(host, name) != name}
        expected = (ClusterNotFound, None) if name not in self.alive else (NoCapacityError, taken)
        try:
            self.store.claim_hosts("ssh/lab", hosts, name, cluster_id, self._tick())
        except (ClusterNotFound, NoCapacityError) as error:
            outcome = (type(error), getattr(error, "holders", None))
        else:
            outcome = (NoCapacityError, {})
            self.held.update(dict.fromkeys(hosts, name))
        assert outcome == expected

    @rule(name=_names)
    def remove(self, name: str) -> None:
        removed = self.store.remove_cluster(name, at=self._tick())
        assert (removed is not None) is (name in self.alive)
        if name in self.alive:
            cluster_id, _ = self.alive.pop(name)
            self.changes[name].append((cluster_id, self.now))
            self.over.add(cluster_id)
            self.in_use.discard(cluster_id)
            self.held = {host: holder for host, holder in self.held.items() if holder != name}

    def _changed(
        self, name: str, before: tuple[str, ClusterStatus] | None, cluster_id: str, status: ClusterStatus
    ) -> None:
        self.alive[name] = (cluster_id, status)
        if before is None or before[1] is not status:
            self.changes[name].append((cluster_id, self.now))

    @rule(name=_names)
    def begin_intent(self, name: str) -> None:
        number = self.store.begin_intent("launch", name)
        assert all(number > other for other in [*self.open_intents, *self.settled_intents])
        self.open_intents.append(number)

    @rule(data=st.data())
    def settle_intent(self, data: st.DataObject) -> None:
        self._tick()
        if self.open_intents:
            number = data.draw(st.sampled_from(self.open_intents))
            self.store.settle_intent(number, "done")
            self.open_intents.remove(number)
            self.settled_intents.append(number)

    @rule(age=st.integers(0, 10))
    def prune(self, age: int) -> None:
        before = self.now - age
        self.store.prune(before)
        for name, changes in self.changes.items():
            last = changes[-1:] if name in self.alive else []
            self.changes[name] = [change for change in changes if change[1] >= before or change in last]

    @rule()
    def reopen(self) -> None:
        self.store.close()

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        assert {record.name: (record.cluster_id, record.status) for record in self.store.clusters()} == self.alive
        assert {host: name for (_, host), name in self.store.claims().items()} == self.held
        history = self.store.history()
        assert {life.cluster_id for life in history if life.ended_at is not None} == self.over
        assert {life.cluster_id for life in history if any(span.end is None for span in life.intervals)} == self.in_use
        for life in history:
            spans = [span for span in life.intervals if span.end is not None]
            assert all(span.start <= (span.end or 0.0) for span in spans)
            assert sum(span.end is None for span in life.intervals) <= 1
        for name, changes in self.changes.items():
            assert [(event.cluster_id, event.at) for event in self.store.events(name)] == changes
        assert [intent.intent_id for intent in self.store.open_intents()] == self.open_intents

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.stack.close()


class PostgresMachine(StoreMachine):
    """The same in the shared database."""

    kind = "postgres"


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
TestPostgresStore = PostgresMachine.TestCase
TestPostgresStore.settings = settings(max_examples=5, stateful_step_count=20, deadline=None)
