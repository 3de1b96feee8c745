"""How clusters end, whoever asks: a verb, the cluster itself, or another process that finishes what one began.

Call these under the cluster's lock, with the intent written down.
"""

from __future__ import annotations

from skylib.errors import AgentError
from skylib.events import EventSink
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.receipts import DownReceipt
from skylib.ops.cleanup import end_and_release, end_everywhere, give_back, raise_unclean, take_away
from skylib.ops.keeping import bring_logs_home
from skylib.session import Session

__all__ = ["clean_again", "down_cluster", "give_up", "stop_cluster"]


def stop_cluster(session: Session, record: ClusterRecord, events: EventSink, *, cancel: bool) -> DownReceipt:
    """Logs come home, every process ends; files and claims stay. cancel: end jobs as cancelled ones.

    Raises TransportError, with the receipt, when a node could not be cleaned: the cluster is as it was then.
    """
    missing = bring_logs_home(session, record, cancel=cancel)
    receipts = end_everywhere(session, record, events)
    receipt = DownReceipt(cluster_name=record.name, nodes=receipts, released=False, logs_kept=missing or "all")
    raise_unclean(receipt, "stop")
    session.store.settle(record.name, ClusterStatus.STOPPED, at=session.clock(), cluster_id=record.cluster_id)
    return receipt


def down_cluster(
    session: Session, record: ClusterRecord, events: EventSink, *, cancel: bool, purge: bool = False
) -> DownReceipt:
    """Logs come home, every process ends, what was put on the nodes goes, hosts and name are free.

    Raises AgentError when logs do not come, TransportError (with the receipt) when a node could not be cleaned; the
    cluster stays known then. purge: raises neither and forgets the cluster; the receipt says what is left.
    """
    missing = bring_logs_home(session, record, cancel=cancel)
    if missing and not purge:
        raise AgentError(
            f"the logs of cluster {record.name!r} did not come home: {missing}",
            cluster=record.name,
            host=record.head.host,
            step="down.logs",
            hint=f"try again when the head answers; client.down({record.name!r}, purge=True) gives them up",
        )
    receipts = end_and_release(session, record, events, force=purge)
    receipt = DownReceipt(cluster_name=record.name, nodes=receipts, released=True, logs_kept=missing or "all")
    if not purge:
        raise_unclean(receipt, "down")
    give_back(session, record, events)
    session.store.remove_cluster(record.name, at=session.clock(), cluster_id=record.cluster_id)
    return receipt


def give_up(session: Session, record: ClusterRecord, events: EventSink, *, release: bool) -> ClusterRecord | None:
    """A cluster that stopped by itself: logs come home, what still runs is ended; with `release` it goes.

    One that cannot go, since its logs do not come or a node is not clean, stays and is returned.
    """
    missing = bring_logs_home(session, record)
    if release and not missing:
        return record if take_away(session, record, events) else None
    end_everywhere(session, record, events)
    return session.store.settle(record.name, ClusterStatus.STOPPED, at=session.clock(), cluster_id=record.cluster_id)


def clean_again(session: Session, past: ClusterRecord, events: EventSink) -> DownReceipt:
    """What a purge had to leave on nodes that did not answer. Another cluster's nodes are not touched."""
    receipts = end_and_release(session, past, events, force=True)
    return DownReceipt(cluster_name=past.name, nodes=receipts, released=True, logs_kept="")
