"""The SQL of the store, for SQLite and PostgreSQL alike. Each function runs inside a transaction of its caller.

Both databases take each statement as it stands, so: no rowid (lives are numbered by `seq`), no RETURNING (SQLite has it
since 3.35 only), no bare `? IS NULL` (PostgreSQL cannot tell its type), and text is put in order by Python (databases
collate it in their own ways). An id that was just given is the highest one: no other writer is inside a transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.job import JobRecord, JobStatus
from skylib.state.backend import Connection
from skylib.state.base import EventRecord, IntentRecord, UsageInterval
from skylib.state.rows import (
    CLUSTER_SCHEMA,
    JOB_SCHEMA,
    cluster_document,
    cluster_hint,
    dump_json,
    job_document,
    job_from_document,
    load_object,
    load_value,
    stored_cluster,
)
from skylib.state.transitions import keeps_stored_job, usage_change

__all__ = [
    "add_claims",
    "all_names",
    "drop_life",
    "drop_old",
    "end_life",
    "held_hosts",
    "is_over",
    "put_cluster",
    "put_event",
    "put_intent",
    "put_jobs",
    "put_value",
    "read_cluster",
    "read_clusters",
    "read_events",
    "read_jobs",
    "read_open_intents",
    "read_value",
    "unseen_jobs",
]

# SQLite takes 999 parameters in one statement, of old.
_MOST_PARAMETERS = 500
_JOB_STATUSES = {status.value: status for status in JobStatus}


# Clusters.


def read_cluster(connection: Connection, name: str) -> ClusterRecord | None:
    """Raises StateError when it cannot be decoded, as all that read records."""
    rows = connection.rows("SELECT schema, record FROM clusters WHERE name = ?", name)
    return stored_cluster(name, *rows[0]) if rows else None


def read_clusters(connection: Connection, names: Collection[str] | None) -> list[tuple[str, int, str]]:
    """(name, schema, document) of all, or of those of `names`; the newest launch first."""
    if names is not None and not names:
        return []
    few = names if names is not None and len(names) <= _MOST_PARAMETERS else ()
    where = f"WHERE name IN ({', '.join('?' * len(few))})" if few else ""
    rows = connection.rows(f"SELECT name, schema, record FROM clusters {where} ORDER BY launched_at DESC, seq DESC", *few)
    return [(name, schema, document) for name, schema, document in rows if names is None or name in names]


def all_names(connection: Connection) -> dict[str, str]:
    """name -> cluster_id of clusters that exist, in order."""
    return dict(sorted(connection.rows("SELECT name, cluster_id FROM clusters")))


def is_over(connection: Connection, cluster_id: str) -> bool:
    """Whether that life has ended."""
    sql = "SELECT 1 FROM cluster_history WHERE cluster_id = ? AND ended_at IS NOT NULL"
    return bool(connection.rows(sql, cluster_id))


def put_cluster(
    connection: Connection,
    existing: ClusterRecord | None,
    record: ClusterRecord,
    *,
    at: float,
    used_until: float | None = None,
) -> None:
    """The row, its life in history, its usage and, when the status changed, an event."""
    document = cluster_document(record)
    if existing is None:
        _begin_life(connection, record, document)
    else:
        connection.execute(
            "UPDATE clusters SET status = ?, launched_at = ?, schema = ?, record = ? WHERE name = ?",
            record.status.value,
            record.launched_at,
            CLUSTER_SCHEMA,
            document,
            record.name,
        )
        _write_life(connection, record, document, ended_at=None)
    _count_usage(connection, existing, record.cluster_id, record.status, at=at, used_until=used_until)
    before = existing.status if existing else None
    if before is not record.status:
        details = {"from": before.value if before else None, "to": record.status.value}
        put_event(connection, record.name, record.cluster_id, "status", at, details)


def _begin_life(connection: Connection, record: ClusterRecord, document: str) -> None:
    """Lives are numbered as they begin: of two that were launched at one time, the higher number is the newer."""
    connection.execute(
        "INSERT INTO cluster_history (cluster_id, name, launched_at, ended_at, schema, record, seq) "
        "VALUES (?, ?, ?, NULL, ?, ?, (SELECT COALESCE(MAX(seq), 0) + 1 FROM cluster_history)) "
        "ON CONFLICT (cluster_id) DO UPDATE SET name = excluded.name, launched_at = excluded.launched_at, "
        "schema = excluded.schema, record = excluded.record",
        record.cluster_id,
        record.name,
        record.launched_at,
        CLUSTER_SCHEMA,
        document,
    )
    connection.execute(
        "INSERT INTO clusters (name, cluster_id, status, launched_at, schema, record, seq) "
        "VALUES (?, ?, ?, ?, ?, ?, (SELECT seq FROM cluster_history WHERE cluster_id = ?))",
        record.name,
        record.cluster_id,
        record.status.value,
        record.launched_at,
        CLUSTER_SCHEMA,
        document,
        record.cluster_id,
    )


def _write_life(connection: Connection, record: ClusterRecord, document: str, *, ended_at: float | None) -> None:
    connection.execute(
        "UPDATE cluster_history SET launched_at = ?, ended_at = ?, schema = ?, record = ? WHERE cluster_id = ?",
        record.launched_at,
        ended_at,
        CLUSTER_SCHEMA,
        document,
        record.cluster_id,
    )


def end_life(
    connection: Connection, record: ClusterRecord, *, at: float, used_until: float | None = None, reason: str = ""
) -> None:
    """Into history with it: no row, no hosts, no open usage."""
    _count_usage(connection, record, record.cluster_id, None, at=at, used_until=used_until)
    _write_life(connection, record, cluster_document(record), ended_at=at)
    connection.execute("DELETE FROM host_claims WHERE cluster_id = ?", record.cluster_id)
    connection.execute("DELETE FROM clusters WHERE name = ?", record.name)
    details = {"from": record.status.value, "to": None, **({"reason": reason} if reason else {})}
    put_event(connection, record.name, record.cluster_id, "status", at, details)


def drop_life(connection: Connection, record: ClusterRecord) -> None:
    """No row, no hosts, and no history of it; what happened to it is still told."""
    for table in ("host_claims", "jobs", "usage_intervals", "clusters", "cluster_history"):
        connection.execute(f"DELETE FROM {table} WHERE cluster_id = ?", record.cluster_id)


def _count_usage(
    connection: Connection,
    before: ClusterRecord | None,
    cluster_id: str,
    status: ClusterStatus | None,
    *,
    at: float,
    used_until: float | None,
) -> None:
    """status: the new one; None when the cluster is removed."""
    latest = 'SELECT id, start, "end" FROM usage_intervals WHERE cluster_id = ? ORDER BY start DESC, id DESC LIMIT 1'
    rows = connection.rows(latest, cluster_id)
    last = UsageInterval(start=rows[0][1], end=rows[0][2]) if rows else None
    change = usage_change(before, status, at=at, last=last, used_until=used_until)
    if change.closes_at is not None:
        connection.execute('UPDATE usage_intervals SET "end" = ? WHERE id = ?', change.closes_at, rows[0][0])
    if change.opens_at is not None:
        connection.execute("INSERT INTO usage_intervals (cluster_id, start) VALUES (?, ?)", cluster_id, change.opens_at)


# Hosts held.


def held_hosts(connection: Connection, infra: str, hosts: Sequence[str]) -> dict[str, tuple[str, str]]:
    """host -> (cluster, cluster_id), of those of `hosts` that are held."""
    rows = connection.rows("SELECT host, cluster, cluster_id FROM host_claims WHERE infra = ?", infra)
    return {host: (name, cluster_id) for host, name, cluster_id in rows if host in hosts}


def add_claims(connection: Connection, infra: str, hosts: Sequence[str], cluster: str, cluster_id: str, at: float) -> None:
    """Of hosts that nobody holds."""
    connection.many(
        "INSERT INTO host_claims (infra, host, cluster, cluster_id, claimed_at) VALUES (?, ?, ?, ?, ?)",
        [(infra, host, cluster, cluster_id, at) for host in hosts],
    )


# Jobs.


def unseen_jobs(connection: Connection, cluster_id: str, seen: Mapping[int, JobRecord]) -> list[JobRecord]:
    """Those of `seen`, by id, that say more than what is stored."""
    few = tuple(seen) if len(seen) <= _MOST_PARAMETERS else ()
    among = f" AND job_id IN ({', '.join('?' * len(few))})" if few else ""
    rows = connection.rows(f"SELECT job_id, status FROM jobs WHERE cluster_id = ?{among}", cluster_id, *few)
    known = {job_id: _JOB_STATUSES.get(status) for job_id, status in rows}
    found = []
    for job_id, record in seen.items():
        stored = known.get(job_id)
        if stored is None or not keeps_stored_job(stored, record):
            found.append(record)
    return found


def put_jobs(connection: Connection, cluster_id: str, records: Sequence[JobRecord]) -> None:
    """New ones, and those that are there as they are now."""
    connection.many(
        "INSERT INTO jobs (cluster_id, job_id, cluster_name, status, schema, record) VALUES (?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (cluster_id, job_id) DO UPDATE SET cluster_name = excluded.cluster_name, "
        "status = excluded.status, schema = excluded.schema, record = excluded.record",
        [
            (cluster_id, record.job_id, record.cluster_name, record.status.value, JOB_SCHEMA, job_document(record))
            for record in records
        ],
    )


def read_jobs(
    connection: Connection, cluster_name: str, cluster_id: str | None, job_id: int | None = None
) -> list[JobRecord]:
    """The newest life first, then the highest id."""
    where, parameters = ["jobs.cluster_name = ?"], [cluster_name]
    if cluster_id is not None:
        where.append("jobs.cluster_id = ?")
        parameters.append(cluster_id)
    numbers = () if job_id is None else (job_id,)
    if numbers:
        where.append("jobs.job_id = ?")
    rows = connection.rows(
        "SELECT jobs.cluster_id, jobs.job_id, jobs.schema, jobs.record FROM jobs "
        f"JOIN cluster_history ON cluster_history.cluster_id = jobs.cluster_id WHERE {' AND '.join(where)} "
        "ORDER BY cluster_history.launched_at DESC, cluster_history.seq DESC, jobs.job_id DESC",
        *parameters,
        *numbers,
    )
    return [job_from_document(schema, document, key=(life, number)) for life, number, schema, document in rows]


# Events.


def put_event(
    connection: Connection, cluster: str, cluster_id: str, kind: str, at: float, details: Mapping[str, object]
) -> None:
    """Raises StateError when the details are no JSON."""
    connection.execute(
        "INSERT INTO events (cluster, cluster_id, kind, at, details) VALUES (?, ?, ?, ?, ?)",
        cluster,
        cluster_id,
        kind,
        at,
        dump_json(dict(details)),
    )


def read_events(connection: Connection, cluster: str, limit: int) -> list[EventRecord]:
    """The last ones, oldest first."""
    rows = connection.rows(
        "SELECT id, cluster, cluster_id, kind, at, details FROM events WHERE cluster = ? ORDER BY id DESC LIMIT ?",
        cluster,
        limit,
    )
    return [
        EventRecord(
            cluster=name, cluster_id=cluster_id, kind=kind, at=at, details=load_object(details, table="events", key=number)
        )
        for number, name, cluster_id, kind, at, details in reversed(rows)
    ]


# Intents.


def put_intent(connection: Connection, operation: str, cluster: str, details: str, at: float, pid: int, host: str) -> int:
    """Its id. details: a JSON object."""
    connection.execute(
        "INSERT INTO intents (operation, cluster, details, begun_at, pid, host, outcome) VALUES (?, ?, ?, ?, ?, ?, '')",
        operation,
        cluster,
        details,
        at,
        pid,
        host,
    )
    ((intent_id,),) = connection.rows("SELECT MAX(id) FROM intents")
    return int(intent_id)


def read_open_intents(connection: Connection, cluster: str | None) -> list[IntentRecord]:
    """Oldest first."""
    rows = connection.rows(
        "SELECT id, operation, cluster, details, begun_at, pid, host FROM intents "
        f"WHERE settled_at IS NULL {'' if cluster is None else 'AND cluster = ?'} ORDER BY id",
        *(() if cluster is None else (cluster,)),
    )
    return [
        IntentRecord(
            intent_id=intent_id,
            operation=operation,
            cluster=name,
            details=load_object(details, table="intents", key=intent_id, hint=cluster_hint(name)),
            begun_at=begun_at,
            pid=pid,
            host=host,
        )
        for intent_id, operation, name, details, begun_at, pid, host in rows
    ]


# Small values.


def read_value(connection: Connection, key: str) -> object | None:
    """The JSON value of a key."""
    rows = connection.rows("SELECT value FROM config WHERE key = ?", key)
    return load_value(rows[0][0], table="config", key=key) if rows else None


def put_value(connection: Connection, key: str, value: object) -> None:
    """Raises StateError on a value that JSON does not have."""
    connection.execute(
        "INSERT INTO config (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        key,
        dump_json(value),
    )


# What is beyond use.


def drop_old(connection: Connection, before: float, *, most: int) -> int:
    """Drop up to `most` events and as many settled intents from before that time; how many went.

    What stays whatever its age: the last event of a life that goes on, the newest intent (its number is not given
    again), every open intent, and all history.
    """
    events = connection.execute(
        "DELETE FROM events WHERE id IN (SELECT old.id FROM events AS old WHERE old.at < ? AND NOT ("
        "EXISTS (SELECT 1 FROM clusters WHERE clusters.name = old.cluster AND clusters.cluster_id = old.cluster_id) "
        "AND NOT EXISTS (SELECT 1 FROM events AS later WHERE later.cluster = old.cluster AND later.id > old.id "
        "AND later.cluster_id = old.cluster_id)) ORDER BY old.at, old.id LIMIT ?)",
        before,
        most,
    )
    intents = connection.execute(
        "DELETE FROM intents WHERE id IN (SELECT old.id FROM intents AS old WHERE old.settled_at < ? "
        "AND old.id < (SELECT MAX(id) FROM intents) ORDER BY old.settled_at, old.id LIMIT ?)",
        before,
        most,
    )
    return events + intents
