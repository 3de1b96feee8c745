"""How clusters end, whoever asks: a verb, the cluster itself, or another process that finishes what one began.

Call these under the cluster's lock, with the intent written down.
"""

from __future__ import annotations

from skylib.errors import AgentError, TransportError
from skylib.events import EventSink
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.receipts import DownReceipt
from skylib.ops.cleanup import end_and_release, end_everywhere, give_back, raise_unclean, take_away
from skylib.ops.keeping import Brought, bring_home, bring_logs_home
from skylib.ops.look import stopped_by_itself
from skylib.session import Session

__all__ = ["clean_again", "down_cluster", "give_up", "stop_cluster", "stopped_at"]


def stop_cluster(
    session: Session, record: ClusterRecord, events: EventSink, *, cancel: bool, used_until: float | None = None
) -> DownReceipt:
    """Logs come home, every process ends; files and claims stay. cancel: end jobs as cancelled ones. used_until: where
    it is known that the cluster had stopped by itself.

    Raises TransportError, with the receipt, when a node could not be cleaned: the cluster is as it was then.
    """
    brought = bring_home(session, record, cancel=cancel)
    until = _used_until(session, record, brought) if used_until is None else used_until
    receipts = end_everywhere(session, record, events)
    receipt = DownReceipt(cluster_name=record.name, nodes=receipts, released=False, logs_kept=brought.missing or "all")
    raise_unclean(receipt, "stop")
    settle, at = session.store.settle, session.clock()
    settle(record.name, ClusterStatus.STOPPED, at=at, cluster_id=record.cluster_id, used_until=until)
    return receipt


def down_cluster(
    session: Session, record: ClusterRecord, events: EventSink, *, cancel: bool, purge: bool = False
) -> DownReceipt:
    """Logs come home, every process ends, what was put on the nodes goes, hosts and name are free.

    Raises AgentError when logs do not come, TransportError (with the receipt) when a node could not be cleaned; the
    cluster stays known then. purge: raises neither and forgets the cluster; the receipt says what is left.
    """
    brought = bring_home(session, record, cancel=cancel)
    if brought.missing and not purge:
        raise AgentError(
            f"the logs and outputs of cluster {record.name!r} did not all come home: {brought.missing}",
            cluster=record.name,
            host=record.head.host,
            step="down.logs",
            hint=f"try again when the head answers; client.down({record.name!r}, purge=True) gives them up",
        )
    until = _used_until(session, record, brought)
    receipts = end_and_release(session, record, events, force=purge)
    receipt = DownReceipt(cluster_name=record.name, nodes=receipts, released=True, logs_kept=brought.missing or "all")
    if not purge:
        raise_unclean(receipt, "down")
    give_back(session, record, events)
    session.store.remove_cluster(record.name, at=session.clock(), cluster_id=record.cluster_id, used_until=until)
    return receipt


def give_up(
    session: Session, record: ClusterRecord, events: EventSink, *, release: bool, used_until: float | None = None
) -> ClusterRecord | None:
    """A cluster that stopped by itself: logs come home, what still runs is ended; with `release` it goes.

    One that cannot go, since its logs do not come or a node is not clean, stays and is returned. used_until: when it
    stopped, where that is known; else its head is asked.
    """
    missing = bring_logs_home(session, record)
    until = stopped_at(session, record) if used_until is None else used_until
    if release and not missing:
        return record if take_away(session, record, events, used_until=until) else None
    end_everywhere(session, record, events)
    settle, at = session.store.settle, session.clock()
    return settle(record.name, ClusterStatus.STOPPED, at=at, cluster_id=record.cluster_id, used_until=until)


def stopped_at(session: Session, record: ClusterRecord) -> float | None:
    """When the cluster stopped by itself, as its head says, and not later than now; None: it did not, or is not reached."""
    try:
        said = stopped_by_itself(session, record)
    except TransportError:
        return None
    at = said.get("at") if said is not None else None
    return min(float(at), session.clock()) if isinstance(at, (int, float)) else None


def _used_until(session: Session, record: ClusterRecord, brought: Brought) -> float | None:
    """Until when a cluster that ends now was in use, whatever its record says: now, when its agent was at work."""
    if brought.cancelled:
        return session.clock()
    if brought.missing or not record.nodes or record.status is ClusterStatus.STOPPED:
        return None
    return stopped_at(session, record)


def clean_again(session: Session, past: ClusterRecord, events: EventSink) -> DownReceipt:
    """What a purge had to leave on nodes that did not answer. Another cluster's nodes are not touched."""
    receipts = end_and_release(session, past, events, force=True)
    return DownReceipt(cluster_name=past.name, nodes=receipts, released=True, logs_kept="")
