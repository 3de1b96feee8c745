"""Verbs about a cluster's life: stop, start, down, autostop."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from skylib.errors import AgentError, TransportError
from skylib.events import EventSink, span
from skylib.models.cluster import AutostopRecord, ClusterRecord, ClusterStatus, NodeRecord
from skylib.models.receipts import DownReceipt, NodeReceipt
from skylib.ops.execute import bring_logs_home, require_up
from skylib.ops.provision import revive
from skylib.runtime.teardown import end_node, release_node
from skylib.session import Session
from skylib.transport.fanout import fanout

__all__ = ["autostop", "down", "end_everywhere", "start", "stop"]


def stop(session: Session, name: str) -> DownReceipt:
    """End the cluster's jobs and its Ray on every node; files, logs and the claim on the hosts stay.

    Raises ClusterNotFound, ClusterBusy; TransportError when a node could not be reached (the cluster is then INIT or UP
    as before, and the receipt is on the error as `receipt`).
    """
    with session.operation("stop", name) as events, session.hold(name, "stop"):
        record = session.require(name)
        intent = session.store.begin_intent("stop", name, {"cluster_id": record.cluster_id})
        problem = "" if record.status is ClusterStatus.STOPPED else bring_logs_home(session, record)
        receipts = end_everywhere(session, record, events)
        receipt = DownReceipt(cluster_name=name, nodes=receipts, released=False, logs_kept=problem or "all")
        _raise_unclean(receipt, "stop")
        session.store.settle(name, ClusterStatus.STOPPED, at=session.clock(), cluster_id=record.cluster_id)
        session.store.settle_intent(intent, "done")
        return receipt


def start(session: Session, name: str) -> ClusterRecord:
    """Make the cluster UP again: what stands already is left alone, the rest is brought up on the same hosts.

    Raises ClusterNotFound, ClusterBusy, BringUpError, TransportError.
    """
    with session.operation("start", name) as events, session.hold(name, "start"):
        record = session.require(name)
        return revive(session, record, events)


def down(session: Session, name: str, *, purge: bool = False) -> DownReceipt:
    """End everything of the cluster, remove what it put on the nodes, and release the hosts.

    purge: forget the cluster even when a node cannot be cleaned; what is left is in the receipt. Without it, such a node
    raises TransportError (with the receipt as `receipt`) and the cluster stays known.
    """
    with session.operation("down", name) as events, session.hold(name, "down"):
        record = session.require(name)
        intent = session.store.begin_intent("down", name, {"cluster_id": record.cluster_id, "purge": purge})
        problem = "" if record.status is ClusterStatus.STOPPED else bring_logs_home(session, record)
        receipts = _merged(end_everywhere(session, record, events), _release(session, record, events))
        receipt = DownReceipt(cluster_name=name, nodes=receipts, released=True, logs_kept=problem or "all")
        if not purge:
            _raise_unclean(receipt, "down")
        session.store.remove_cluster(name, at=session.clock(), cluster_id=record.cluster_id)
        session.store.settle_intent(intent, "done")
        return receipt


def autostop(session: Session, name: str, idle_minutes: float, *, down: bool = False) -> None:
    """Have the nodes stop (with `down`, release) the cluster by themselves after so long without a job; negative: never."""
    with session.operation("autostop", name), session.hold(name, "autostop"):
        record = require_up(session, name)
        idle_minutes = idle_minutes or 1
        session.agent(record).call("autostop", idle_minutes=idle_minutes, down=down)
        setting = AutostopRecord(idle_minutes=idle_minutes, down=down) if idle_minutes >= 0 else None
        session.store.save_cluster(attrs.evolve(record, autostop=setting))


def end_everywhere(session: Session, record: ClusterRecord, events: EventSink) -> tuple[NodeReceipt, ...]:
    """End every process of the cluster: workers and head at once, through each node's own bundle."""
    session.forget_agent(record.cluster_id)

    first_here = {node.address: node.rank for node in reversed(record.nodes)}

    def end(node: NodeRecord) -> NodeReceipt:
        if first_here[node.address] != node.rank:  # several nodes on one machine: the first one's call ends all
            return NodeReceipt(rank=node.rank, host=node.host)
        with span(events, "teardown.end", node=node.host, rank=node.rank) as step:
            receipt = end_node(session.transport(node.address), node)
            step.note(ended=len(receipt.ended), problem=receipt.error)
            return receipt

    return _on_each(record, end)


def _release(session: Session, record: ClusterRecord, events: EventSink) -> tuple[NodeReceipt, ...]:
    local = record.infra == "local"

    def release(node: NodeRecord) -> NodeReceipt:
        with span(events, "teardown.release", node=node.host, rank=node.rank):
            return release_node(session.transport(node.address), node, cluster_id=record.cluster_id, local=local)

    return _on_each(record, release)


def _on_each(record: ClusterRecord, act: Callable[[NodeRecord], NodeReceipt]) -> tuple[NodeReceipt, ...]:
    receipts = []
    for outcome in fanout(act, record.nodes):
        node = outcome.item
        if outcome.error is not None and not isinstance(outcome.error, (TransportError, AgentError)):
            raise outcome.error
        receipts.append(outcome.value or NodeReceipt(rank=node.rank, host=node.host, error=str(outcome.error)))
    return tuple(receipts)


def _merged(first: tuple[NodeReceipt, ...], second: tuple[NodeReceipt, ...]) -> tuple[NodeReceipt, ...]:
    return tuple(
        attrs.evolve(
            ended,
            paths_removed=released.paths_removed,
            leftovers=(*ended.leftovers, *released.leftovers),
            error=ended.error or released.error,
        )
        for ended, released in zip(first, second, strict=True)
    )


def _raise_unclean(receipt: DownReceipt, verb: str) -> None:
    for node in receipt.nodes:
        if not node.clean:
            what = node.error.splitlines()[0] if node.error else "; ".join(node.leftovers)
            raise TransportError(
                f"{verb} of cluster {receipt.cluster_name!r} is not complete: {node.host}: {what}",
                cluster=receipt.cluster_name,
                host=node.host,
                step=f"teardown.{verb}",
                receipt=receipt,
                evidence=node.error or None,
                hint=f"try again when the host answers; client.down({receipt.cluster_name!r}, purge=True) forgets it",
                retryable=True,
            )
