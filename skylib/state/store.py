"""The store's methods, each one transaction of statements that every backend takes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from skylib.errors import StateError
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.job import JobRecord
from skylib.state import statements
from skylib.state.backend import Backend, Connection
from skylib.state.base import EventRecord, HistoryRecord, IntentRecord
from skylib.state.history import read_history
from skylib.state.rows import ClusterDecoder, Unreadable, dump_json, load_value, stored_cluster
from skylib.state.transitions import changed, check_same_life, no_capacity, not_found
from skylib.state.unreadable import drop_unreadable

__all__ = ["KEEP_S", "SqlStore"]

_T = TypeVar("_T")

# How long events and settled intents are kept, and how often, and how many at once, older ones are dropped.
KEEP_S = 30 * 86400.0
_PRUNE_EACH_S = 86400.0
_PRUNE_AT_ONCE = 500
_PRUNED_AT = "store.pruned_at"


class SqlStore:
    """A StateStore over a Backend. Nothing is opened or made before the first call."""

    def __init__(self, backend: Backend, *, clock: Callable[[], float] = time.time) -> None:
        self._backend = backend
        self._clock = clock
        self._decoder = ClusterDecoder()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._backend.where!r})"

    def close(self) -> None:
        self._backend.close()

    # Clusters that exist.

    def clusters(self, names: Iterable[str] | None = None) -> list[ClusterRecord]:
        wanted = None if names is None else set(names)
        rows = self._read(lambda connection: statements.read_clusters(connection, wanted))
        return self._decoded(lambda: self._decoder.all(rows) if wanted is None else [stored_cluster(*row) for row in rows])

    def cluster(self, name: str) -> ClusterRecord | None:
        return self._read(lambda connection: statements.read_cluster(connection, name))

    def names(self) -> dict[str, str]:
        return self._read(statements.all_names)

    def begin_launch(self, record: ClusterRecord, *, again: bool = False) -> ClusterRecord:
        def begin(connection: Connection) -> ClusterRecord:
            existing = statements.read_cluster(connection, record.name)
            check_same_life(existing, record, over=not again and statements.is_over(connection, record.cluster_id))
            if existing is not None and existing.status is ClusterStatus.INIT:
                begun = attrs.evolve(record, status=ClusterStatus.INIT, status_since=existing.status_since)
            else:
                begun = attrs.evolve(record, status=ClusterStatus.INIT)
            statements.put_cluster(connection, existing, begun, at=begun.status_since)
            return begun

        return self._write(begin)

    def save_cluster(self, record: ClusterRecord) -> None:
        def save(connection: Connection) -> None:
            existing = statements.read_cluster(connection, record.name)
            check_same_life(existing, record, over=statements.is_over(connection, record.cluster_id))
            statements.put_cluster(connection, existing, record, at=record.status_since)

        self._write(save)

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
        def settle(connection: Connection) -> ClusterRecord:
            existing = statements.read_cluster(connection, name)
            if existing is None or cluster_id not in (None, existing.cluster_id):
                raise not_found(name, statements.all_names(connection))
            record = changed(existing, status, at, changes)
            statements.put_cluster(connection, existing, record, at=at, used_until=used_until)
            return record

        return self._write(settle, durable=False)

    def remove_cluster(
        self, name: str, *, at: float, cluster_id: str | None = None, used_until: float | None = None, reason: str = ""
    ) -> ClusterRecord | None:
        def remove(connection: Connection) -> ClusterRecord | None:
            existing = statements.read_cluster(connection, name)
            if existing is None or cluster_id not in (None, existing.cluster_id):
                return None
            statements.end_life(connection, existing, at=at, used_until=used_until, reason=reason)
            return existing

        return self._write(remove)

    def forget_cluster(self, name: str, cluster_id: str) -> None:
        def forget(connection: Connection) -> None:
            existing = statements.read_cluster(connection, name)
            if existing is not None and existing.cluster_id == cluster_id:
                statements.drop_life(connection, existing)

        self._write(forget)

    def drop_unreadable(self, name: str, *, at: float) -> tuple[str, ...] | None:
        return self._write(lambda connection: drop_unreadable(connection, name, at=at))

    # Hosts held.

    def claim_hosts(self, infra: str, hosts: Sequence[str], cluster: str, cluster_id: str, at: float) -> None:
        wanted = list(dict.fromkeys(hosts))

        def claim(connection: Connection) -> None:
            existing = statements.read_cluster(connection, cluster)
            if existing is None or existing.cluster_id != cluster_id:
                raise not_found(cluster, statements.all_names(connection))
            held = statements.held_hosts(connection, infra, wanted)
            taken = {host: name for host, (name, holder) in held.items() if holder != cluster_id}
            if taken:
                raise no_capacity(infra, taken, len(wanted))
            free = [host for host in wanted if host not in held]
            statements.add_claims(connection, infra, free, cluster, cluster_id, at)

        self._write(claim)

    def release_hosts(self, cluster_id: str, hosts: Sequence[str] | None = None) -> None:
        def release(connection: Connection) -> None:
            if hosts is None:
                connection.execute("DELETE FROM host_claims WHERE cluster_id = ?", cluster_id)
            else:
                one = "DELETE FROM host_claims WHERE cluster_id = ? AND host = ?"
                connection.many(one, [(cluster_id, host) for host in hosts])

        self._write(release, durable=False)

    def claims(self, infra: str | None = None) -> dict[tuple[str, str], str]:
        sql = "SELECT infra, host, cluster FROM host_claims"
        rows = self._rows(sql) if infra is None else self._rows(f"{sql} WHERE infra = ?", infra)
        return {(of, host): cluster for of, host, cluster in sorted(rows)}

    # Jobs seen.

    def save_jobs(self, cluster_id: str, records: Iterable[JobRecord]) -> None:
        seen = {record.job_id: record for record in records}

        def save(connection: Connection) -> None:
            if not connection.rows("SELECT 1 FROM cluster_history WHERE cluster_id = ?", cluster_id):
                raise not_found(cluster_id, statements.all_names(connection))
            statements.put_jobs(connection, cluster_id, statements.unseen_jobs(connection, cluster_id, seen))

        if len(seen) > 1:  # of a long queue little is new: to look before costs nobody the lock
            fresh = self._read(lambda connection: statements.unseen_jobs(connection, cluster_id, seen))
            seen = {record.job_id: record for record in fresh}
        if seen:
            self._write(save, durable=False)

    def jobs(self, cluster_name: str, *, cluster_id: str | None = None) -> list[JobRecord]:
        return self._read(lambda connection: statements.read_jobs(connection, cluster_name, cluster_id))

    def job(self, cluster_name: str, job_id: int, *, cluster_id: str | None = None) -> JobRecord | None:
        found = self._read(lambda connection: statements.read_jobs(connection, cluster_name, cluster_id, job_id))
        return found[0] if found else None

    # History and events.

    def history(self, since: float | None = None, *, name: str | None = None) -> list[HistoryRecord]:
        return self._read(lambda connection: read_history(connection, since, name))

    def add_event(
        self, cluster: str, kind: str, *, at: float, cluster_id: str = "", details: Mapping[str, object] | None = None
    ) -> None:
        def add(connection: Connection) -> None:
            statements.put_event(connection, cluster, cluster_id, kind, at, details or {})

        self._write(add, durable=False)

    def events(self, cluster: str, *, limit: int = 100) -> list[EventRecord]:
        return self._read(lambda connection: statements.read_events(connection, cluster, limit))

    # Intents.

    def begin_intent(self, operation: str, cluster: str, details: Mapping[str, object] | None = None) -> int:
        document = dump_json(dict(details or {}))
        pid, host, now = os.getpid(), socket.gethostname(), self._clock()

        def begin(connection: Connection) -> int:
            self._prune_daily(connection, now)
            return statements.put_intent(connection, operation, cluster, document, now, pid, host)

        return self._write(begin)

    def settle_intent(self, intent_id: int, outcome: str) -> None:
        now = self._clock()

        def settle(connection: Connection) -> None:
            unsettled = "UPDATE intents SET settled_at = ?, outcome = ? WHERE id = ? AND settled_at IS NULL"
            if connection.execute(unsettled, now, outcome, intent_id):
                return
            if not connection.rows("SELECT 1 FROM intents WHERE id = ?", intent_id):
                raise StateError(f"no intent {intent_id} in {self._backend.where}")

        self._write(settle, durable=False)

    def open_intents(self, cluster: str | None = None) -> list[IntentRecord]:
        return self._read(lambda connection: statements.read_open_intents(connection, cluster))

    # Small values.

    def config_get(self, key: str) -> object | None:
        return self._read(lambda connection: statements.read_value(connection, key))

    def config_set(self, key: str, value: object) -> None:
        def put(connection: Connection) -> None:
            if value is None:
                connection.execute("DELETE FROM config WHERE key = ?", key)
            else:
                statements.put_value(connection, key, value)

        self._write(put)

    def config_add(self, key: str, value: object) -> object:
        def add(connection: Connection) -> object:
            stands = statements.read_value(connection, key)
            if stands is not None or value is None:
                return stands
            statements.put_value(connection, key, value)
            return statements.read_value(connection, key)

        return self._write(add)

    def config_items(self, prefix: str) -> dict[str, object]:
        rows = self._rows("SELECT key, value FROM config WHERE substr(key, 1, ?) = ?", len(prefix), prefix)
        return self._decoded(lambda: {key: load_value(value, table="config", key=key) for key, value in sorted(rows)})

    # What is beyond use.

    def prune(self, before: float) -> int:
        dropped = 0
        while True:
            some = self._write(lambda each: statements.drop_old(each, before, most=_PRUNE_AT_ONCE), durable=False)
            dropped += some
            if not some:
                return dropped

    def _prune_daily(self, connection: Connection, now: float) -> None:
        """A day after the last time, and again with each intent while there is more; a bounded part at once."""
        last = statements.read_value(connection, _PRUNED_AT)
        if isinstance(last, (int, float)) and abs(now - last) < _PRUNE_EACH_S:
            return
        if last is None or not statements.drop_old(connection, now - KEEP_S, most=_PRUNE_AT_ONCE):
            statements.put_value(connection, _PRUNED_AT, now)

    def _read(self, action: Callable[[Connection], _T]) -> _T:
        return self._decoded(lambda: self._backend.read(action))

    def _write(self, action: Callable[[Connection], _T], *, durable: bool = True) -> _T:
        return self._decoded(lambda: self._backend.write(action, durable=durable))

    def _decoded(self, action: Callable[[], _T]) -> _T:
        """Rows that cannot be read are told with the store."""
        try:
            return action()
        except Unreadable as error:
            raise error.within(self._backend.where) from error.__cause__

    def _rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._read(lambda connection: connection.rows(sql, *parameters))
