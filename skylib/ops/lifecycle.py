"""Verbs about a cluster's life: stop, start, down, autostop."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context

from skylib.errors import AgentError, TransportError
from skylib.events import EventSink
from skylib.models.cluster import AutostopRecord, ClusterRecord, ClusterStatus
from skylib.models.receipts import DownReceipt
from skylib.ops.cleanup import end_and_release, end_everywhere, give_back, raise_unclean
from skylib.ops.joblogs import bring_logs_home
from skylib.ops.lives import require_up
from skylib.ops.revive import revive
from skylib.session import Session

__all__ = ["autostop", "down", "kept_busy", "set_timer", "start", "stop"]


def stop(session: Session, name: str) -> DownReceipt:
    """Cancel the cluster's jobs and end its Ray on every node; files, logs and the claim on the hosts stay.

    Raises ClusterNotFound, ClusterBusy; TransportError (with the receipt as `receipt`) when a node could not be reached:
    the cluster is then as it was.
    """
    with session.operation("stop", name) as events, session.hold(name, "stop"):
        record = session.require(name)
        intent = session.store.begin_intent("stop", name, {"cluster_id": record.cluster_id})
        missing = bring_logs_home(session, record, cancel=record.status is ClusterStatus.UP)
        receipts = end_everywhere(session, record, events)
        receipt = DownReceipt(cluster_name=name, nodes=receipts, released=False, logs_kept=missing or "all")
        raise_unclean(receipt, "stop")
        session.store.settle(name, ClusterStatus.STOPPED, at=session.clock(), cluster_id=record.cluster_id)
        session.store.settle_intent(intent, "done")
        return receipt


def start(session: Session, name: str) -> ClusterRecord:
    """Make the cluster UP again on its hosts: what stands is left alone, an agent that died is started beside its jobs.

    When that does not do, everything of it is ended and brought up anew. Raises ClusterNotFound, ClusterBusy,
    BringUpError, PreflightError, TransportError.
    """
    with session.operation("start", name) as events, session.hold(name, "start"):
        return revive(session, session.require(name), events, may_end_jobs=True)


def down(session: Session, name: str, *, purge: bool = False) -> DownReceipt:
    """Cancel jobs, bring their logs home, end everything of the cluster, remove what it put on the nodes, release them.

    A node that cannot be reached or cleaned, or logs that did not come, raise (with the receipt as `receipt`) and the
    cluster stays known. purge: forget it all the same; what is left is in the receipt, and the same call cleans it when
    the node answers again.
    Raises ClusterNotFound, ClusterBusy, AgentError, TransportError.
    """
    with session.operation("down", name) as events, session.hold(name, "down"):
        if purge and session.store.cluster(name) is None:
            return _clean_again(session, name, events)
        record = session.require(name)
        intent = session.store.begin_intent("down", name, {"cluster_id": record.cluster_id, "purge": purge})
        missing = bring_logs_home(session, record, cancel=record.status is ClusterStatus.UP)
        if missing and not purge:
            raise AgentError(
                f"the logs of cluster {name!r} did not come home: {missing}",
                cluster=name,
                host=record.head.host,
                step="down.logs",
                hint=f"try again when the head answers; client.down({name!r}, purge=True) gives them up",
            )
        receipts = end_and_release(session, record, events, force=purge)
        receipt = DownReceipt(cluster_name=name, nodes=receipts, released=True, logs_kept=missing or "all")
        if not purge:
            raise_unclean(receipt, "down")
        give_back(session, record, events)
        session.store.remove_cluster(name, at=session.clock(), cluster_id=record.cluster_id)
        session.store.settle_intent(intent, "done")
        return receipt


def _clean_again(session: Session, name: str, events: EventSink) -> DownReceipt:
    """What a purge had to leave on nodes that did not answer. Another cluster's nodes are not touched."""
    past = next((each for each in session.store.history() if each.name == name), None)
    if past is None:
        session.require(name)
        raise AssertionError("unreachable")  # pragma: no cover
    receipts = end_and_release(session, past.record, events, force=True)
    return DownReceipt(cluster_name=name, nodes=receipts, released=True, logs_kept="")


def autostop(session: Session, name: str, idle_minutes: float, *, down: bool = False) -> None:
    """Have the nodes stop (with `down`, release) the cluster by themselves after so long without a job.

    0 counts as one minute, as SkyPilot has it; negative: never.
    """
    with session.operation("autostop", name), session.hold(name, "autostop"):
        record = require_up(session, name)
        setting = AutostopRecord(idle_minutes=idle_minutes or 1, down=down) if idle_minutes >= 0 else None
        set_timer(session, record, setting)


@contextmanager
def kept_busy(session: Session, record: ClusterRecord) -> Iterator[None]:
    """While files are on their way the cluster is not idle: its timer is set again and again to what it is."""
    timer = record.autostop
    if timer is None:
        yield
        return
    done = threading.Event()
    agent = session.agent(record)
    pause_s = min(15.0, 20.0 * timer.idle_minutes)

    def renew() -> None:
        while True:
            with suppress(AgentError, TransportError):  # the delivery itself will tell what is wrong
                agent.call("autostop", idle_minutes=timer.idle_minutes, down=timer.down)
            if done.wait(pause_s):
                return

    renewing = threading.Thread(target=copy_context().run, args=(renew,), name="skylib-busy", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()


def set_timer(session: Session, record: ClusterRecord, setting: AutostopRecord | None) -> ClusterRecord:
    """Tell the agent, then the store; None: no timer. Call it under the cluster's lock."""
    idle = setting.idle_minutes if setting is not None else -1
    session.agent(record).call("autostop", idle_minutes=idle, down=bool(setting and setting.down))
    at = session.clock()
    return session.store.settle(record.name, record.status, at=at, cluster_id=record.cluster_id, autostop=setting)
