"""The record of a cluster that stands, though nobody wrote down that it does: completed from what its nodes say."""

from __future__ import annotations

import json
from typing import Any

import attrs

from skylib.errors import BringUpError
from skylib.events import EventSink, span
from skylib.models.cluster import ClusterRecord, ClusterStatus, NodeRecord
from skylib.ops.pen import FREE, Pen
from skylib.runtime.agent_restart import restart_agent
from skylib.runtime.environment import DIGEST_FILE
from skylib.runtime.teardown import layout_of
from skylib.session import Session
from skylib.transport.command import Command
from skylib.transport.fanout import fanout

__all__ = ["settle_standing"]

READY_S = 10.0
FILES_S = 20.0


@attrs.frozen(kw_only=True)
class _Said:
    """What bring-up wrote on a node."""

    python: str
    digest: str
    ray_port: int
    dashboard_port: int


def settle_standing(session: Session, record: ClusterRecord, events: EventSink, *, pen: Pen = FREE) -> ClusterRecord:
    """Settle the cluster as UP, with all that its launch would have written down and an agent on every node.

    Call it under the cluster's lock. pen: for what is written down.
    Raises AgentError when Ray does not have all nodes, TransportError, BringUpError when a node's files are not there.
    """
    with span(events, "reconcile.standing", cluster=record.name):
        ready = session.agent(record).call("ready", answer_within_s=READY_S + 10, timeout_s=READY_S)
        for started in fanout(lambda node: _start_agent(session, record, node), record.nodes):
            started.get()
        said = [outcome.get() for outcome in fanout(lambda node: _said(session, record.name, node), record.nodes)]
    ids = {entry.get("rank"): str(entry.get("node_id", "")) for entry in ready.get("nodes", ())}
    nodes = tuple(
        attrs.evolve(node, python=each.python, runtime_digest=each.digest, ray_node_id=ids.get(node.rank, ""))
        for node, each in zip(record.nodes, said, strict=True)
    )
    with pen:
        return session.store.settle(
            record.name,
            ClusterStatus.UP,
            at=session.clock(),
            cluster_id=record.cluster_id,
            nodes=nodes,
            ray_port=said[0].ray_port,
            dashboard_port=said[0].dashboard_port,
            ray_version=str(ready.get("ray_version") or record.ray_version),
        )


def _start_agent(session: Session, record: ClusterRecord, node: NodeRecord) -> None:
    """Ray answers through the head's agent alone, so a worker's may not have been started yet; one that runs stays."""
    restart_agent(session.transport(node.address), node, record.cluster_id)


def _said(session: Session, cluster: str, node: NodeRecord) -> _Said:
    layout = layout_of(node)
    transport = session.transport(node.address)

    def content(path: str) -> str:
        return transport.run(Command.of("cat", path), timeout_s=FILES_S).stdout.decode("utf-8", "replace").strip()

    ports_text = content(layout.ray_port_json)
    try:
        ports: dict[str, Any] = json.loads(ports_text)
        return _Said(
            python=content(layout.python_path) or node.python,
            digest=content(f"{layout.runtime_env}/{DIGEST_FILE}"),
            ray_port=int(ports["ray_port"]),
            dashboard_port=int(ports["ray_dashboard_port"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise BringUpError(
            f"{layout.ray_port_json} on {node.host} does not say the ports",
            cluster=cluster,
            host=node.host,
            step="reconcile.standing",
            evidence=ports_text[:500],
        ) from error
