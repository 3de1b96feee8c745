"""What is known of clusters, and what their nodes say when they are asked."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from skylib.errors import AgentError, AgentVersionError, ClusterBusy, TransportError
from skylib.events import EventSink
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.receipts import InfraStatus
from skylib.ops.cleanup import end_everywhere, take_away
from skylib.ops.joblogs import bring_logs_home
from skylib.ops.lives import stopped_by_itself
from skylib.session import Session
from skylib.transport.fanout import fanout

__all__ = ["Seen", "check", "next_status", "refresh", "status"]


@attrs.frozen(kw_only=True)
class Seen:
    """What asking a cluster gave. reached: the head's host answered. agent: the agent did. alive: ranks that Ray has.

    stopped: the node says that it stopped by itself; released: and that the hosts are to be given back. stopping: it is
    about to.
    """

    reached: bool
    agent: bool = False
    ray_ok: bool = False
    alive: int = 0
    stopped: bool = False
    released: bool = False
    stopping: bool = False


def next_status(known: ClusterStatus, wanted: int, seen: Seen) -> ClusterStatus | None:
    """The status after a look; None when the cluster gave itself up. Unreachable is not gone, and what was stopped does
    not come up by itself.
    """
    if known is ClusterStatus.STOPPED:
        return ClusterStatus.STOPPED
    if not seen.reached:
        return ClusterStatus.UNREACHABLE
    if seen.stopping:
        return ClusterStatus.AUTOSTOPPING
    if seen.agent and seen.ray_ok and seen.alive == wanted:
        return ClusterStatus.UP
    if seen.stopped and not seen.agent:
        return None if seen.released else ClusterStatus.STOPPED
    return ClusterStatus.INIT


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
    seen = _look(session, record)
    if seen is None:
        return record
    found = next_status(record.status, record.num_nodes, seen)
    if found is record.status:
        return record
    try:
        with session.hold(record.name, "status", 0.0):
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
    missing = bring_logs_home(session, record)
    if found is None and not missing:
        return record if take_away(session, record, events) else None
    end_everywhere(session, record, events)
    return session.store.settle(record.name, ClusterStatus.STOPPED, at=session.clock(), cluster_id=record.cluster_id)


def _look(session: Session, record: ClusterRecord) -> Seen | None:
    """None when the answer says nothing: the agent is of another version."""
    try:
        info = session.agent(record).call("info", answer_within_s=20.0)
    except AgentVersionError:
        return None
    except TransportError:
        return Seen(reached=False)
    except AgentError:
        return _look_without_agent(session, record)
    if info.get("asleep"):  # woken to be read, and nothing else
        return _look_without_agent(session, record)
    return Seen(
        reached=True,
        agent=True,
        ray_ok=bool(info.get("ray_ok")),
        alive=len(info.get("alive_ranks", ())),
        stopping=bool(info.get("stopping")),
    )


def _look_without_agent(session: Session, record: ClusterRecord) -> Seen:
    try:
        said = stopped_by_itself(session, record)
    except TransportError:
        return Seen(reached=False)
    if said is None:
        return Seen(reached=True)
    return Seen(reached=True, stopped=True, released=bool(said.get("down")))


def check(session: Session) -> list[InfraStatus]:
    """Every infra that is configured, and whether nodes can be had there; problems name host and reason."""
    with session.operation("check") as events:
        return list(session.providers.check(session.provider_context(events)))
