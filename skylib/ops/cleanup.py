"""Ending what runs of a cluster and removing what it put on its nodes; a node is given back only when nothing runs there."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from skylib.errors import TransportError
from skylib.events import EventSink, span
from skylib.models.cluster import ClusterRecord, NodeRecord
from skylib.models.receipts import DownReceipt, NodeReceipt
from skylib.providers.base import NodeHandle, NodeMaker
from skylib.runtime.teardown import end_node, release_node
from skylib.session import Session
from skylib.transport.fanout import fanout

__all__ = ["end_and_release", "end_everywhere", "give_back", "raise_unclean", "take_away"]


def end_everywhere(session: Session, record: ClusterRecord, events: EventSink) -> tuple[NodeReceipt, ...]:
    """End every process of the cluster on all nodes at once, through each node's own bundle; files stay.

    A node that cannot be reached, or a process that would not go, is told in its receipt.
    """
    session.forget_agent(record.cluster_id)
    first_here = {node.address: node.rank for node in reversed(record.nodes)}

    def end(node: NodeRecord) -> NodeReceipt:
        if first_here[node.address] != node.rank:  # several nodes on one machine: the first one's call ends all
            return NodeReceipt(rank=node.rank, host=node.host)
        with span(events, "teardown.end", node=node.host, rank=node.rank) as step:
            receipt = end_node(session.transport(node.address), node, record.cluster_id)
            step.note(ended=len(receipt.ended), problem=receipt.error)
            return receipt

    return _on_each(record, end)


def end_and_release(
    session: Session, record: ClusterRecord, events: EventSink, *, force: bool = False
) -> tuple[NodeReceipt, ...]:
    """End everything, then remove what the cluster put on each node where that was clean; `force`: on all."""
    ended = end_everywhere(session, record, events)
    machine = {node.address: ended[node.rank] for node in reversed(record.nodes)}

    def release(node: NodeRecord) -> NodeReceipt:
        mine = ended[node.rank]
        if not force and not machine[node.address].clean:
            return mine
        with span(events, "teardown.release", node=node.host, rank=node.rank):
            gone = release_node(session.transport(node.address), node, cluster_id=record.cluster_id)
            return attrs.evolve(
                mine,
                paths_removed=gone.paths_removed,
                leftovers=(*mine.leftovers, *gone.leftovers),
                error=mine.error or gone.error,
            )

    return _on_each(record, release)


def take_away(
    session: Session,
    record: ClusterRecord,
    events: EventSink,
    *,
    touched: bool = True,
    used_until: float | None = None,
) -> tuple[str, ...]:
    """Take away a cluster that nobody wants: a launch that failed or died, one that gave itself up.

    What could not be taken away is returned, in words. The record and the claims go when every node is clean; else they
    stay, for client.down(). touched: something may have been put on the nodes. used_until: as of the store's methods.
    """
    problems: list[str] = []
    if touched:
        with span(events, "provision.undo", cluster=record.name):
            for receipt in end_and_release(session, record, events):
                if not receipt.clean:
                    problems.append(f"{receipt.host}: {'; '.join([*receipt.leftovers, receipt.error]).strip('; ')}")
    if not problems:
        give_back(session, record, events)
        at = session.clock()
        session.store.remove_cluster(record.name, at=at, cluster_id=record.cluster_id, used_until=used_until)
    return tuple(problems)


def give_back(session: Session, record: ClusterRecord, events: EventSink) -> None:
    """Hand machines to a provider that made them. Own hosts are only let go, which the store does."""
    provider = session.providers.of(record.infra)[0]
    if not isinstance(provider, NodeMaker):
        return
    nodes = [NodeHandle(rank=node.rank, infra=record.infra, host=node.host, address=node.address) for node in record.nodes]
    provider.terminate(nodes, session.provider_context(events, record))


def raise_unclean(receipt: DownReceipt, verb: str) -> None:
    """Raises TransportError, with the receipt, when a node could not be cleaned."""
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


def _on_each(record: ClusterRecord, act: Callable[[NodeRecord], NodeReceipt]) -> tuple[NodeReceipt, ...]:
    receipts = []
    for outcome in fanout(act, record.nodes):
        node = outcome.item
        if outcome.error is not None and not isinstance(outcome.error, TransportError):
            raise outcome.error
        receipts.append(outcome.value or NodeReceipt(rank=node.rank, host=node.host, error=str(outcome.error)))
    return tuple(receipts)
