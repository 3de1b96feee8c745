"""What is read of lives of clusters, of those that are over, too. Runs inside a transaction of its caller."""

from __future__ import annotations

import logging

from skylib.state.backend import Connection
from skylib.state.base import HistoryRecord, UsageInterval
from skylib.state.rows import Unreadable, cluster_from_document, cluster_hint

__all__ = ["read_history"]

_log = logging.getLogger(__name__)


def read_history(connection: Connection, since: float | None, name: str | None) -> list[HistoryRecord]:
    """Lives that had not ended before `since`, or all; of one name, or all; newest first.

    One that is over and cannot be decoded is logged and left out.
    """
    wanted, parameters = _lives_wanted(since, name)
    lives = connection.rows(
        "SELECT cluster_id, name, launched_at, ended_at, schema, record FROM cluster_history AS life "
        f"{wanted} ORDER BY launched_at DESC, seq DESC",
        *parameters,
    )
    spans = connection.rows(
        'SELECT life.cluster_id, span.start, span."end" FROM usage_intervals AS span '
        f"JOIN cluster_history AS life ON life.cluster_id = span.cluster_id {wanted} ORDER BY span.start, span.id",
        *parameters,
    )
    used: dict[str, list[UsageInterval]] = {}
    for cluster_id, start, end in spans:
        used.setdefault(cluster_id, []).append(UsageInterval(start=start, end=end))
    found = []
    for cluster_id, of, launched_at, ended_at, schema, document in lives:
        try:
            record = cluster_from_document(schema, document, table="cluster_history", key=cluster_id)
        except Unreadable as error:
            if ended_at is None:
                raise error.with_hint(cluster_hint(of)) from error.__cause__
            _log.warning("%s; what it tells is left out", error.message)
            continue
        intervals = tuple(used.get(cluster_id, ()))
        found.append(
            HistoryRecord(
                cluster_id=cluster_id,
                name=of,
                launched_at=launched_at,
                ended_at=ended_at,
                record=record,
                intervals=intervals,
            )
        )
    return found


def _lives_wanted(since: float | None, name: str | None) -> tuple[str, tuple[object, ...]]:
    where: list[str] = []
    parameters: list[object] = []
    if since is not None:
        where.append("(life.ended_at IS NULL OR life.ended_at >= ?)")
        parameters.append(since)
    if name is not None:
        where.append("life.name = ?")
        parameters.append(name)
    return (f"WHERE {' AND '.join(where)}" if where else ""), tuple(parameters)
