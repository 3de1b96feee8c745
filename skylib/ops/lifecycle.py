"""Verbs about a cluster's life: stop, start, down, autostop."""

from __future__ import annotations

from skylib.errors import StateError
from skylib.events import EventSink, span
from skylib.models.cluster import AutostopRecord, ClusterStatus
from skylib.models.receipts import DownReceipt, NodeReceipt, StartReceipt
from skylib.ops.endings import clean_again, down_cluster, stop_cluster
from skylib.ops.holding import hold
from skylib.ops.lives import require_up
from skylib.ops.revive import revive
from skylib.ops.timer import set_timer
from skylib.session import Session

__all__ = ["autostop", "down", "start", "stop"]


def stop(session: Session, name: str) -> DownReceipt:
    """Cancel the cluster's jobs and end its Ray on every node; files, logs and the claim on the hosts stay.

    Raises ClusterNotFound, ClusterBusy, ClusterNotUp; TransportError (with the receipt as `receipt`) when a node could
    not be reached: the cluster is then as it was.
    """
    with session.operation("stop", name) as events, hold(session, name, "stop", events):
        record = session.require(name)
        was = record.status
        with session.intent("stop", name, cluster_id=record.cluster_id, was=was.value):
            return stop_cluster(session, record, events, cancel=was is not ClusterStatus.STOPPED)


def start(session: Session, name: str) -> StartReceipt:
    """Make the cluster UP again on its hosts: what stands is left alone, an agent that died is started beside its jobs.

    When that does not do, everything of it is ended and brought up anew. Raises ClusterNotFound, ClusterBusy,
    ClusterNotUp, BringUpError, PreflightError, TransportError.
    """
    with session.operation("start", name) as events, hold(session, name, "start", events):
        return revive(session, session.require(name), events, may_end_jobs=True)


def down(session: Session, name: str, *, purge: bool = False) -> DownReceipt:
    """Cancel jobs, bring their logs home, end everything of the cluster, remove what it put on the nodes, release them.

    A node that cannot be reached or cleaned, or logs that did not come, raise (with the receipt as `receipt`) and the
    cluster stays known. purge: forget it all the same; what is left is in the receipt, and the same call cleans it when
    the node answers again. One whose record cannot be read is forgotten with its hosts left as they are.
    Raises ClusterNotFound, ClusterBusy, AgentError, TransportError.
    """
    with session.operation("down", name) as events:
        unreadable = _drop_unreadable(session, name, events) if purge else None
        if unreadable is not None:
            return unreadable
        return _down(session, name, events, purge=purge)


def _down(session: Session, name: str, events: EventSink, *, purge: bool) -> DownReceipt:
    with hold(session, name, "down", events, replaces=True):
        if purge and session.store.cluster(name) is None:
            return _clean_again(session, name, events)
        record = session.require(name)
        was = record.status
        with session.intent("down", name, cluster_id=record.cluster_id, was=was.value, purge=purge):
            return down_cluster(session, record, events, cancel=was is not ClusterStatus.STOPPED, purge=purge)


def _drop_unreadable(session: Session, name: str, events: EventSink) -> DownReceipt | None:
    """Forget a cluster whose record cannot be read, and leave its hosts as they are; None when it can be read."""
    try:
        session.store.cluster(name)
        session.store.open_intents(name)
        return None
    except StateError as error:
        if getattr(error, "table", "") not in ("clusters", "intents"):
            raise
        why = error.message
    with session.hold(name, "down"), span(events, "down.unreadable", cluster=name) as step:
        hosts = session.store.drop_unreadable(name, at=session.clock())
        step.note(problem=why, hosts=hosts)
    if hosts is None:
        return None
    left = f"nothing was done here: {why}"
    nodes = tuple(NodeReceipt(rank=rank, host=host, error=left) for rank, host in enumerate(hosts))
    return DownReceipt(cluster_name=name, nodes=nodes, released=True, logs_kept="no logs were brought home")


def _clean_again(session: Session, name: str, events: EventSink) -> DownReceipt:
    past = next((each.record for each in session.store.history(name=name)), None)
    if past is None:
        raise session.not_found(name)
    with session.intent("clean", name, cluster_id=past.cluster_id):
        return clean_again(session, past, events)


def autostop(session: Session, name: str, setting: AutostopRecord | None) -> None:
    """Have the nodes stop (with `down`, release) the cluster by themselves after so long without work; None: never."""
    with session.operation("autostop", name) as events, hold(session, name, "autostop", events):
        record = require_up(session, name)
        set_timer(session, record, setting)
