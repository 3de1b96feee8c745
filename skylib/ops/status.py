"""What is known of clusters, and what their nodes say when they are asked."""

from __future__ import annotations

from collections.abc import Iterable

from skylib.errors import ClusterBusy
from skylib.events import EventSink
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.receipts import InfraStatus
from skylib.ops.endings import give_up
from skylib.ops.holding import hold
from skylib.ops.look import Seen, look, next_status
from skylib.session import Session
from skylib.transport.fanout import fanout

__all__ = ["Seen", "check", "next_status", "refresh", "status"]


def status(session: Session, names: Iterable[str] | None = None, *, refresh_first: bool = False) -> list[ClusterRecord]:
    """All clusters, the newest launch first, or those of `names` in that order. Raises ClusterNotFound."""
    if names is None:
        records = session.store.clusters()
    else:
        wanted = [names] if isinstance(names, str) else list(names)
        found = {record.name: record for record in session.store.clusters(wanted)}
        for name in wanted:
            if name not in found:
                found[name] = session.require(name)
        records = [found[name] for name in wanted]
    if not refresh_first or not records:
        return records
    with session.operation("status") as events:
        outcomes = fanout(lambda record: refresh(session, record, events), records)
    fresh = []
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
        if outcome.value is not None:
            fresh.append(outcome.value)
    return fresh


def refresh(session: Session, record: ClusterRecord, events: EventSink) -> ClusterRecord | None:
    """Ask the cluster and settle what it says; None when it released itself (autostop with down).

    A cluster that an operation is on is left to that; what is settled is settled under the cluster's lock.
    """
    if record.status is ClusterStatus.STOPPED or not record.nodes:
        return record
    seen = look(session, record)
    if seen is None:
        return record
    found = next_status(record.status, record.num_nodes, seen)
    if found is record.status:
        return record
    try:
        with hold(session, record.name, "status", events, 0.0):
            now = session.store.cluster(record.name)
            if now is None or (now.cluster_id, now.status, now.status_since) != _mark(record):
                return now  # it changed while we looked
            if found is None or found is ClusterStatus.STOPPED:
                return _settle_stopped(session, record, found, events)
            return session.store.settle(record.name, found, at=session.clock(), cluster_id=record.cluster_id)
    except ClusterBusy:
        return session.store.cluster(record.name)


def _mark(record: ClusterRecord) -> tuple[str, ClusterStatus, float]:
    return record.cluster_id, record.status, record.status_since


def _settle_stopped(
    session: Session, record: ClusterRecord, found: ClusterStatus | None, events: EventSink
) -> ClusterRecord | None:
    """The cluster stopped by itself: its logs come home, what still runs is ended, and, if it said so, it is released."""
    release = found is None
    operation = "release" if release else "stop"
    with session.intent(operation, record.name, cluster_id=record.cluster_id, was=record.status.value):
        return give_up(session, record, events, release=release)


def check(session: Session) -> list[InfraStatus]:
    """Every infra that is configured, and whether nodes can be had there; problems name host and reason."""
    with session.operation("check") as events:
        return list(session.providers.check(session.provider_context(events)))
