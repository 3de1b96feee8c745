"""The store of one home: `<home>/state.db`, SQLite in WAL mode. Written through sqlite-utils; hot reads use sqlite3."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import attrs

from skylib.errors import StateError
from skylib.locks import Locks
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.job import JobRecord, JobStatus
from skylib.paths import SkyHome
from skylib.state.base import EventRecord, HistoryRecord, IntentRecord, UsageInterval
from skylib.state.connections import Connections
from skylib.state.rows import (
    cluster_from_document,
    cluster_row,
    dump_json,
    history_row,
    job_from_document,
    job_row,
    load_object,
    load_value,
)
from skylib.state.transitions import (
    Usage,
    changed,
    check_same_life,
    keeps_stored_job,
    no_capacity,
    not_found,
    usage_after,
)

if TYPE_CHECKING:
    from sqlite_utils import Database

__all__ = ["SqliteStore"]

_T = TypeVar("_T")
_NEWEST_FIRST = "ORDER BY launched_at DESC, rowid DESC"
_JOBS = (
    "SELECT jobs.schema, jobs.record FROM jobs JOIN cluster_history USING (cluster_id) "
    "WHERE jobs.cluster_name = ?1 AND (?2 IS NULL OR jobs.cluster_id = ?2)"
)
_JOB_ORDER = "ORDER BY cluster_history.launched_at DESC, cluster_history.rowid DESC, jobs.job_id DESC"


class SqliteStore:
    """A StateStore in a file. Nothing is opened or made before the first call."""

    def __init__(self, home: SkyHome, *, locks: Locks | None = None, clock: Callable[[], float] = time.time) -> None:
        self._home = home
        self._clock = clock
        self._connections = Connections(home, locks or Locks(home))

    def __repr__(self) -> str:
        return f"SqliteStore({str(self._home.state_db)!r})"

    def close(self) -> None:
        self._connections.close()

    # Clusters that exist.

    def clusters(self, names: Iterable[str] | None = None) -> list[ClusterRecord]:
        wanted = None if names is None else set(names)
        rows = self._rows(f"SELECT name, schema, record FROM clusters {_NEWEST_FIRST}")
        return [
            cluster_from_document(schema, document) for name, schema, document in rows if wanted is None or name in wanted
        ]

    def cluster(self, name: str) -> ClusterRecord | None:
        return self._connections.read(lambda connection: _cluster(connection, name))

    def begin_launch(self, record: ClusterRecord) -> ClusterRecord:
        def begin(db: Database) -> ClusterRecord:
            existing = _cluster(db.conn, record.name)
            check_same_life(existing, record, over=_is_over(db.conn, record.cluster_id))
            if existing is not None and existing.status is ClusterStatus.INIT:
                begun = attrs.evolve(record, status=ClusterStatus.INIT, status_since=existing.status_since)
            else:
                begun = attrs.evolve(record, status=ClusterStatus.INIT)
            _put_cluster(db, existing, begun, at=begun.status_since)
            return begun

        return self._write(begin)

    def save_cluster(self, record: ClusterRecord) -> None:
        def save(db: Database) -> None:
            existing = _cluster(db.conn, record.name)
            check_same_life(existing, record, over=_is_over(db.conn, record.cluster_id))
            _put_cluster(db, existing, record, at=record.status_since)

        self._write(save)

    def settle(
        self, name: str, status: ClusterStatus, *, at: float, cluster_id: str | None = None, **changes: object
    ) -> ClusterRecord:
        def settle(db: Database) -> ClusterRecord:
            existing = _cluster(db.conn, name)
            if existing is None or cluster_id not in (None, existing.cluster_id):
                raise not_found(name, _names(db.conn))
            record = changed(existing, status, at, changes)
            _put_cluster(db, existing, record, at=at)
            return record

        return self._write(settle)

    def remove_cluster(self, name: str, *, at: float, cluster_id: str | None = None) -> ClusterRecord | None:
        def remove(db: Database) -> ClusterRecord | None:
            existing = _cluster(db.conn, name)
            if existing is None or cluster_id not in (None, existing.cluster_id):
                return None
            _close_usage(db, existing.cluster_id, at=at)
            db.table("cluster_history").upsert(history_row(existing, ended_at=at), pk="cluster_id")
            db.table("host_claims").delete_where("cluster_id = ?", [existing.cluster_id])
            db.table("clusters").delete(name)
            _put_event(db, name, existing.cluster_id, "status", at, {"from": existing.status.value, "to": None})
            return existing

        return self._write(remove)

    # Hosts held.

    def claim_hosts(self, infra: str, hosts: Sequence[str], cluster: str, cluster_id: str, at: float) -> None:
        wanted = list(dict.fromkeys(hosts))

        def claim(db: Database) -> None:
            existing = _cluster(db.conn, cluster)
            if existing is None or existing.cluster_id != cluster_id:
                raise not_found(cluster, _names(db.conn))
            held = db.conn.execute("SELECT host, cluster, cluster_id FROM host_claims WHERE infra = ?", [infra])
            holders = {host: (name, holder) for host, name, holder in held.fetchall() if host in wanted}
            taken = {host: name for host, (name, holder) in holders.items() if holder != cluster_id}
            if taken:
                raise no_capacity(infra, taken, len(wanted))
            db.table("host_claims").insert_all(
                [
                    {"infra": infra, "host": host, "cluster": cluster, "cluster_id": cluster_id, "claimed_at": at}
                    for host in wanted
                    if host not in holders
                ]
            )

        self._write(claim)

    def release_hosts(self, cluster_id: str, hosts: Sequence[str] | None = None) -> None:
        def release(db: Database) -> None:
            claims = db.table("host_claims")
            if hosts is None:
                claims.delete_where("cluster_id = ?", [cluster_id])
            else:
                for host in hosts:
                    claims.delete_where("cluster_id = ? AND host = ?", [cluster_id, host])

        self._write(release)

    def claims(self, infra: str | None = None) -> dict[tuple[str, str], str]:
        rows = self._rows(
            "SELECT infra, host, cluster FROM host_claims WHERE ?1 IS NULL OR infra = ?1 ORDER BY infra, host", infra
        )
        return {(of, host): cluster for of, host, cluster in rows}

    # Jobs seen.

    def save_jobs(self, cluster_id: str, records: Iterable[JobRecord]) -> None:
        seen = {record.job_id: record for record in records}

        def save(db: Database) -> None:
            known = "SELECT name FROM cluster_history WHERE cluster_id = ?"
            if db.conn.execute(known, [cluster_id]).fetchone() is None:
                raise not_found(cluster_id, _names(db.conn))
            stored = dict(db.conn.execute("SELECT job_id, status FROM jobs WHERE cluster_id = ?", [cluster_id]).fetchall())
            fresh = [
                job_row(cluster_id, record)
                for job_id, record in seen.items()
                if job_id not in stored or not keeps_stored_job(JobStatus(stored[job_id]), record)
            ]
            if fresh:
                db.table("jobs").upsert_all(fresh, pk=("cluster_id", "job_id"))

        if seen:
            self._write(save)

    def jobs(self, cluster_name: str, *, cluster_id: str | None = None) -> list[JobRecord]:
        rows = self._rows(f"{_JOBS} {_JOB_ORDER}", cluster_name, cluster_id)
        return [job_from_document(schema, document) for schema, document in rows]

    def job(self, cluster_name: str, job_id: int, *, cluster_id: str | None = None) -> JobRecord | None:
        rows = self._rows(f"{_JOBS} AND jobs.job_id = ?3 {_JOB_ORDER} LIMIT 1", cluster_name, cluster_id, job_id)
        return job_from_document(*rows[0]) if rows else None

    # History and events.

    def history(self, since: float | None = None) -> list[HistoryRecord]:
        def read(connection: sqlite3.Connection) -> tuple[list[tuple], list[tuple]]:  # type: ignore[type-arg]
            lives = connection.execute(
                "SELECT cluster_id, name, launched_at, ended_at, schema, record FROM cluster_history "
                f"WHERE ?1 IS NULL OR ended_at IS NULL OR ended_at >= ?1 {_NEWEST_FIRST}",
                [since],
            ).fetchall()
            spans = connection.execute('SELECT cluster_id, start, "end" FROM usage_intervals ORDER BY start, id').fetchall()
            return lives, spans

        lives, spans = self._connections.read(read)
        used: dict[str, list[UsageInterval]] = {}
        for cluster_id, start, end in spans:
            used.setdefault(cluster_id, []).append(UsageInterval(start=start, end=end))
        return [
            HistoryRecord(
                cluster_id=cluster_id,
                name=name,
                launched_at=launched_at,
                ended_at=ended_at,
                record=cluster_from_document(schema, document),
                intervals=tuple(used.get(cluster_id, ())),
            )
            for cluster_id, name, launched_at, ended_at, schema, document in lives
        ]

    def add_event(
        self, cluster: str, kind: str, *, at: float, cluster_id: str = "", details: Mapping[str, object] | None = None
    ) -> None:
        self._write(lambda db: _put_event(db, cluster, cluster_id, kind, at, details or {}))

    def events(self, cluster: str, *, limit: int = 100) -> list[EventRecord]:
        rows = self._rows(
            "SELECT cluster, cluster_id, kind, at, details FROM events WHERE cluster = ? ORDER BY id DESC LIMIT ?",
            cluster,
            limit,
        )
        return [
            EventRecord(cluster=name, cluster_id=cluster_id, kind=kind, at=at, details=load_object(details))
            for name, cluster_id, kind, at, details in reversed(rows)
        ]

    # Intents.

    def begin_intent(self, operation: str, cluster: str, details: Mapping[str, object] | None = None) -> int:
        row = {
            "operation": operation,
            "cluster": cluster,
            "details": dump_json(dict(details or {})),
            "begun_at": self._clock(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "settled_at": None,
            "outcome": "",
        }

        def begin(db: Database) -> int:
            return int(str(db.table("intents").insert(row, pk="id").last_pk))

        return self._write(begin)

    def settle_intent(self, intent_id: int, outcome: str) -> None:
        def settle(db: Database) -> None:
            found = db.conn.execute("SELECT settled_at FROM intents WHERE id = ?", [intent_id]).fetchone()
            if found is None:
                raise StateError(f"no intent {intent_id} in {self._home.state_db}")
            if found[0] is None:
                db.table("intents").update(intent_id, {"settled_at": self._clock(), "outcome": outcome})

        self._write(settle)

    def open_intents(self, cluster: str | None = None) -> list[IntentRecord]:
        rows = self._rows(
            "SELECT id, operation, cluster, details, begun_at, pid, host FROM intents "
            "WHERE settled_at IS NULL AND (?1 IS NULL OR cluster = ?1) ORDER BY id",
            cluster,
        )
        return [
            IntentRecord(
                intent_id=intent_id,
                operation=operation,
                cluster=name,
                details=load_object(details),
                begun_at=begun_at,
                pid=pid,
                host=host,
            )
            for intent_id, operation, name, details, begun_at, pid, host in rows
        ]

    # Small values.

    def config_get(self, key: str) -> object | None:
        rows = self._rows("SELECT value FROM config WHERE key = ?", key)
        return load_value(rows[0][0]) if rows else None

    def config_set(self, key: str, value: object) -> None:
        def put(db: Database) -> None:
            if value is None:
                db.table("config").delete_where("key = ?", [key])
            else:
                db.table("config").upsert({"key": key, "value": dump_json(value)}, pk="key")

        self._write(put)

    def _rows(self, sql: str, *parameters: object) -> list[tuple]:  # type: ignore[type-arg]
        return self._connections.read(lambda connection: connection.execute(sql, parameters).fetchall())

    def _write(self, action: Callable[[Database], _T]) -> _T:
        from sqlite_utils import Database

        return self._connections.write(
            lambda connection: action(Database(connection, recursive_triggers=False, execute_plugins=False))
        )


def _cluster(connection: sqlite3.Connection, name: str) -> ClusterRecord | None:
    row = connection.execute("SELECT schema, record FROM clusters WHERE name = ?", [name]).fetchone()
    return cluster_from_document(*row) if row else None


def _names(connection: sqlite3.Connection) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM clusters ORDER BY name")]


def _is_over(connection: sqlite3.Connection, cluster_id: str) -> bool:
    sql = "SELECT 1 FROM cluster_history WHERE cluster_id = ? AND ended_at IS NOT NULL"
    return connection.execute(sql, [cluster_id]).fetchone() is not None


def _put_cluster(db: Database, existing: ClusterRecord | None, record: ClusterRecord, *, at: float) -> None:
    """The row, its life in history, its usage and, when the status changed, an event."""
    db.table("clusters").upsert(cluster_row(record), pk="name")
    db.table("cluster_history").upsert(history_row(record), pk="cluster_id")
    running = 'SELECT 1 FROM usage_intervals WHERE cluster_id = ? AND "end" IS NULL'
    is_open = db.conn.execute(running, [record.cluster_id]).fetchone() is not None
    usage = usage_after(record.status, is_open=is_open)
    if usage is Usage.OPEN:
        db.table("usage_intervals").insert({"cluster_id": record.cluster_id, "start": at, "end": None}, pk="id")
    elif usage is Usage.CLOSE:
        _close_usage(db, record.cluster_id, at=at)
    before = existing.status if existing else None
    if before is not record.status:
        details = {"from": before.value if before else None, "to": record.status.value}
        _put_event(db, record.name, record.cluster_id, "status", at, details)


def _close_usage(db: Database, cluster_id: str, *, at: float) -> None:
    running = 'SELECT id, start FROM usage_intervals WHERE cluster_id = ? AND "end" IS NULL'
    for number, start in db.conn.execute(running, [cluster_id]).fetchall():
        db.table("usage_intervals").update(number, {"end": max(start, at)})


def _put_event(db: Database, cluster: str, cluster_id: str, kind: str, at: float, details: Mapping[str, object]) -> None:
    db.table("events").insert(
        {"cluster": cluster, "cluster_id": cluster_id, "kind": kind, "at": at, "details": dump_json(dict(details))},
        pk="id",
    )
