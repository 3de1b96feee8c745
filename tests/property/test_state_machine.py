"""The store against a model in memory: any sequence of operations leaves both in the same state."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from skylib.errors import ClusterBusy, ClusterNotFound, NoCapacityError
from skylib.models.cluster import ClusterStatus
from skylib.paths import SkyHome
from skylib.state.sqlite import SqliteStore
from tests.records import cluster_record

_names = st.sampled_from(["a", "b", "c"])
_lives = st.integers(1, 3)
_hosts = st.lists(st.sampled_from(["h1", "h2", "h3"]), min_size=1, max_size=3)


class StoreMachine(RuleBasedStateMachine):
    """Clusters, claims and usage; time goes on by one with each step."""

    @initialize()
    def start(self) -> None:
        self.folder = TemporaryDirectory()
        self.store = SqliteStore(SkyHome(Path(self.folder.name)))
        self.now = 0.0
        self.alive: dict[str, tuple[str, ClusterStatus]] = {}
        self.over: set[str] = set()
        self.held: dict[str, str] = {}
        self.in_use: set[str] = set()

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
            self.alive[name] = (cluster_id, ClusterStatus.INIT)

    @rule(name=_names, status=st.sampled_from(ClusterStatus))
    def settle(self, name: str, status: ClusterStatus) -> None:
        try:
            self.store.settle(name, status, at=self._tick())
        except ClusterNotFound:
            assert name not in self.alive
            return
        cluster_id = self.alive[name][0]
        self.alive[name] = (cluster_id, status)
        if status is ClusterStatus.UP:
            self.in_use.add(cluster_id)
        if status is ClusterStatus.STOPPED:
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
            self.over.add(cluster_id)
            self.in_use.discard(cluster_id)
            self.held = {host: holder for host, holder in self.held.items() if holder != name}

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

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
