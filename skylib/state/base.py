"""What skylib remembers, as a protocol: every store passes tests/contract/test_state_store.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import attrs

from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.job import JobRecord

__all__ = ["EventRecord", "HistoryRecord", "IntentRecord", "StateStore", "UsageInterval"]


@attrs.frozen(kw_only=True)
class UsageInterval:
    """A time during which a cluster was in use, in unix seconds. end: None while it still is."""

    start: float
    end: float | None = None

    def seconds(self, *, now: float) -> float:
        """Its length; up to `now` when it is open."""
        return max(0.0, (now if self.end is None else self.end) - self.start)


@attrs.frozen(kw_only=True)
class HistoryRecord:
    """One life of a cluster name. record: the cluster as it was last. ended_at: None while it lives.

    intervals: when it was in use, oldest first; none when it never came up.
    """

    cluster_id: str
    name: str
    launched_at: float
    ended_at: float | None
    record: ClusterRecord
    intervals: tuple[UsageInterval, ...] = ()

    def used_seconds(self, *, now: float, since: float = 0.0) -> float:
        """Seconds in use between `since` and `now`."""
        return sum(
            max(0.0, min(now, now if span.end is None else span.end) - max(span.start, since)) for span in self.intervals
        )


@attrs.frozen(kw_only=True)
class EventRecord:
    """Something that happened to a cluster. kind: "status" for a change of status, else the caller's word."""

    cluster: str
    cluster_id: str
    kind: str
    at: float
    details: Mapping[str, object] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class IntentRecord:
    """What an operation was about to do. outcome: "" until it is settled. pid, host: the process that began it."""

    intent_id: int
    operation: str
    cluster: str
    details: Mapping[str, object]
    begun_at: float
    pid: int
    host: str
    settled_at: float | None = None
    outcome: str = ""


class StateStore(Protocol):
    """One home's state. Safe from many threads and processes, and after fork; every method is one transaction.

    Every method raises StateError when the state cannot be read or written (retryable when it was busy for too long; with
    table, key and store when it is one row that cannot be read),
    MigrationError when the store is newer than this skylib. `at` is unix seconds.
    """

    def close(self) -> None:
        """Let go of connections; the store opens itself again when it is used."""

    # Clusters that exist.

    def clusters(self, names: Iterable[str] | None = None) -> list[ClusterRecord]:
        """All, or those of `names` that exist; the newest launch first."""

    def cluster(self, name: str) -> ClusterRecord | None: ...

    def names(self) -> dict[str, str]:
        """name -> cluster_id of all clusters, by name, those whose record cannot be read included."""

    def begin_launch(self, record: ClusterRecord, *, again: bool = False) -> ClusterRecord:
        """Write down that the cluster may exist from now on; its status becomes INIT.

        A new name gets a row. An existing one, with the same cluster_id, begins again: the row becomes `record`.
        Raises ClusterBusy when the name belongs to another cluster_id, or that cluster_id is over. again: it may be.
        """

    def save_cluster(self, record: ClusterRecord) -> None:
        """Write the record as it is (usage follows its status). Raises ClusterBusy and ClusterNotFound as `settle`."""

    def settle(
        self,
        name: str,
        status: ClusterStatus,
        *,
        at: float,
        cluster_id: str | None = None,
        used_until: float | None = None,
        **changes: object,
    ) -> ClusterRecord:
        """Change the status and, by name, other fields of the record; status_since moves only if the status changes.

        cluster_id: settle only that life of the name. Opens a usage interval on UP, closes it on STOPPED and INIT: at
        `used_until` where that is known, else at `at`, or when it became UNREACHABLE.
        Raises ClusterNotFound when there is no such cluster (or its life is over), TypeError on an unknown field.
        """

    def remove_cluster(
        self, name: str, *, at: float, cluster_id: str | None = None, used_until: float | None = None, reason: str = ""
    ) -> ClusterRecord | None:
        """Move it into history and release its hosts. The record it had; None when there was none.

        used_until: as of `settle`. reason: for the event, where the cluster did not go because somebody took it down.
        """

    def forget_cluster(self, name: str, cluster_id: str) -> None:
        """As if that life of the name had not been begun here: it may be begun again. Its hosts are released.

        For one that this state never had whole; what is over stays in history.
        """

    def drop_unreadable(self, name: str, *, at: float) -> tuple[str, ...] | None:
        """Take away a cluster whose record cannot be read: its life ends as it stands, its hosts are released.

        The hosts that it held; None when there is nothing of the kind.
        """

    # Hosts held.

    def claim_hosts(self, infra: str, hosts: Sequence[str], cluster: str, cluster_id: str, at: float) -> None:
        """All or none. Hosts that this cluster_id holds already are fine.

        Raises NoCapacityError with `holders` (host -> cluster name) and `reasons` when another cluster holds one;
        ClusterNotFound when the cluster was not begun.
        """

    def release_hosts(self, cluster_id: str, hosts: Sequence[str] | None = None) -> None:
        """Release `hosts` of that cluster, by default all."""

    def claims(self, infra: str | None = None) -> dict[tuple[str, str], str]:
        """(infra, host) -> name of the cluster that holds it."""

    # Jobs seen, kept after the cluster is gone.

    def save_jobs(self, cluster_id: str, records: Iterable[JobRecord]) -> None:
        """Remember them. A terminal status stays. Raises ClusterNotFound for a cluster_id never begun."""

    def jobs(self, cluster_name: str, *, cluster_id: str | None = None) -> list[JobRecord]:
        """Of all lives of the name (or one): newest life first, then highest id first."""

    def job(self, cluster_name: str, job_id: int, *, cluster_id: str | None = None) -> JobRecord | None:
        """Of the newest life that has it (or of one)."""

    # History and events.

    def history(self, since: float | None = None, *, name: str | None = None) -> list[HistoryRecord]:
        """Every life, newest first; with `since`, those that had not ended before it; with `name`, those of one name."""

    def add_event(
        self, cluster: str, kind: str, *, at: float, cluster_id: str = "", details: Mapping[str, object] | None = None
    ) -> None: ...

    def events(self, cluster: str, *, limit: int = 100) -> list[EventRecord]:
        """The last `limit`, oldest first, of all lives of the name."""

    # Intents: on disk before the operation acts.

    def begin_intent(self, operation: str, cluster: str, details: Mapping[str, object] | None = None) -> int:
        """Its id. The intent is on disk when this returns."""

    def settle_intent(self, intent_id: int, outcome: str) -> None:
        """Say how it ended; the first outcome stays. Raises StateError on an unknown id."""

    def open_intents(self, cluster: str | None = None) -> list[IntentRecord]:
        """Those not settled, oldest first."""

    # Small values that skylib keeps for itself, and, in a shared database, configuration, pools and host keys.

    def config_get(self, key: str) -> object | None: ...

    def config_set(self, key: str, value: object) -> None:
        """Keep a JSON value; None forgets the key."""

    def config_add(self, key: str, value: object) -> object:
        """Keep a JSON value unless the key has one; the value that stands after."""

    def config_items(self, prefix: str) -> dict[str, object]:
        """All keys that begin with `prefix` ("pools/"), in order, with their values."""

    # What is beyond use. Dropped by itself, a bounded part at once, when it is 30 days old.

    def prune(self, before: float) -> int:
        """Drop events and settled intents from before that time (unix seconds); how many. In several transactions.

        Open intents stay, and the newest intent, the last event of each cluster that exists, and all of history.
        """
