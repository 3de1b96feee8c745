"""Taking away a cluster whose row cannot be decoded: all of it by its columns. Runs inside a transaction of its caller."""

from __future__ import annotations

from skylib.state.backend import Connection
from skylib.state.rows import Unreadable, load_object, stored_cluster
from skylib.state.statements import put_event

__all__ = ["REASON", "drop_unreadable"]

REASON = "its record could not be read"


def drop_unreadable(connection: Connection, name: str, *, at: float) -> tuple[str, ...] | None:
    """Hosts that it held, in order; None when there is no such cluster, or its record can be read.

    Its life ends with the documents as they are. Open intents of the name are settled: with a cluster that can be read
    those that cannot, else all.
    """
    rows = connection.rows("SELECT schema, record, cluster_id, status FROM clusters WHERE name = ?", name)
    bad = _unreadable_record(name, rows[0][0], rows[0][1]) if rows else False
    for number, details in connection.rows("SELECT id, details FROM intents WHERE cluster = ? AND settled_at IS NULL", name):
        if bad or _unreadable_details(details):
            settle = "UPDATE intents SET settled_at = ?, outcome = ? WHERE id = ?"
            connection.execute(settle, at, "failed: " + (REASON if bad else "its details could not be read"), number)
    if not bad:
        return None
    _, _, cluster_id, status = rows[0]
    hosts = connection.rows("SELECT host FROM host_claims WHERE cluster_id = ?", cluster_id)
    connection.execute(
        'UPDATE usage_intervals SET "end" = CASE WHEN start > ? THEN start ELSE ? END '
        'WHERE cluster_id = ? AND "end" IS NULL',
        at,
        at,
        cluster_id,
    )
    connection.execute("UPDATE cluster_history SET ended_at = ? WHERE cluster_id = ?", at, cluster_id)
    connection.execute("DELETE FROM host_claims WHERE cluster_id = ?", cluster_id)
    connection.execute("DELETE FROM clusters WHERE name = ?", name)
    put_event(connection, name, cluster_id, "status", at, {"from": status, "to": None, "reason": REASON})
    return tuple(sorted(host for (host,) in hosts))


def _unreadable_record(name: str, schema: int, document: str) -> bool:
    try:
        stored_cluster(name, schema, document)
    except Unreadable:
        return True
    return False


def _unreadable_details(details: str) -> bool:
    try:
        load_object(details)
    except Unreadable:
        return True
    return False
