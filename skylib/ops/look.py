"""What the nodes of a cluster say when they are asked, and what follows from it for its status."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import attrs

from skylib.errors import AgentError, AgentVersionError, BringUpError, ClusterBusy, SkyError, TransportError
from skylib.events import EventSink, discard
from skylib.identity import known_hash
from skylib.models.cluster import ClusterRecord, ClusterStatus, NodeRecord
from skylib.ops.pen import FREE, Pen
from skylib.ops.standing import settle_standing
from skylib.paths import SkyHome
from skylib.runtime.traces import Trace, trace_of
from skylib.session import Session
from skylib.transport.command import Command
from skylib.transport.fanout import fanout

__all__ = ["Seen", "Trace", "is_complete", "look", "mark_of", "next_status", "note", "stopped_by_itself", "traces_of"]

INFO_S = 10.0
COMMAND_S = 10.0
NODES_AT_ONCE = 16


@attrs.frozen(kw_only=True)
class Seen:
    """What asking a cluster gave. reached: the head's host answered. agent: the agent did. alive: ranks that Ray has.

    stopping: the agent is about to stop the cluster by itself. stopped: the head says that it did; released: and that
    the hosts are to be given back; stopped_at: when, by the node's clock; reason: "autostop" or "lease". traces: what is
    on each node, by rank, where that was asked: on none while the agent answers, on the head alone when something is
    there.
    """

    reached: bool
    agent: bool = False
    ray_ok: bool = False
    alive: int = 0
    stopped: bool = False
    released: bool = False
    stopping: bool = False
    stopped_at: float | None = None
    reason: str = ""
    traces: tuple[Trace, ...] = ()


def next_status(known: ClusterStatus, wanted: int, seen: Seen) -> ClusterStatus | None:
    """The status after a look at a cluster of `wanted` nodes; None when it is gone, or gave itself up.

    Gone: each node's host was reached, and nothing of the cluster is on any. Whatever is in doubt is UNREACHABLE, with
    its record and its hosts. What was stopped does not come up by itself. What answers in part is INIT.
    """
    if known is ClusterStatus.STOPPED:
        return ClusterStatus.STOPPED
    if not seen.reached:
        return ClusterStatus.UNREACHABLE
    if seen.agent:
        if seen.stopping:
            return ClusterStatus.AUTOSTOPPING
        whole = seen.ray_ok and seen.alive == wanted
        return ClusterStatus.UP if whole else ClusterStatus.INIT
    if seen.stopped:
        return None if seen.released else ClusterStatus.STOPPED
    if not seen.traces or Trace.OURS in seen.traces:
        return ClusterStatus.INIT
    if len(seen.traces) < wanted or Trace.UNKNOWN in seen.traces:
        return ClusterStatus.UNREACHABLE
    return None


def look(session: Session, record: ClusterRecord, *, pen: Pen = FREE) -> Seen | None:
    """Ask the cluster; None when the answer says nothing: the agent is of another version.

    pen: when it is down nothing more is asked, and no connection is opened for it.
    """
    try:
        info = session.agent(record).call("info", answer_within_s=INFO_S)
    except AgentVersionError:
        return None
    except AgentError:
        return _look_without_agent(session, record, pen)
    except SkyError:
        return Seen(reached=False)
    if info.get("asleep"):  # woken to be read, and nothing else
        return _look_without_agent(session, record, pen)
    return Seen(
        reached=True,
        agent=True,
        ray_ok=bool(info.get("ray_ok")),
        alive=len(info.get("alive_ranks", ())),
        stopping=bool(info.get("stopping")),
    )


def _look_without_agent(session: Session, record: ClusterRecord, pen: Pen) -> Seen:
    pen.check()
    try:
        said = stopped_by_itself(session, record)
    except SkyError:
        return Seen(reached=False)
    if said is not None:
        at = said.get("at")
        return Seen(
            reached=True,
            stopped=True,
            released=bool(said.get("down")),
            stopped_at=float(at) if isinstance(at, (int, float)) else None,
            reason=str(said.get("reason") or ""),
        )
    pen.check()
    head = _trace(session, record, record.head)
    if head is not Trace.NONE:
        return Seen(reached=head is Trace.OURS, traces=(head,))
    pen.check()
    return Seen(reached=True, traces=(head, *_traces(session, record, record.nodes[1:])))


def note(
    session: Session, record: ClusterRecord, found: ClusterStatus, *, events: EventSink = discard, pen: Pen = FREE
) -> ClusterRecord | None:
    """Settle what was found, under the cluster's lock; the record after it, None when there is none any more.

    A cluster that changed meanwhile, or that an operation is on, is left as it is. One that is UP, though nobody wrote
    down what its launch would have, is completed first; INIT while that cannot be done. pen: for what is written down.
    """
    try:
        with session.hold(record.name, "status", 0.0):
            now = session.store.cluster(record.name)
            if now is None or mark_of(now) != mark_of(record):
                return now
            if found is ClusterStatus.UP and not is_complete(now):
                try:
                    return settle_standing(session, now, events, pen=pen)
                except (AgentError, BringUpError, TransportError):
                    found = ClusterStatus.INIT
            if found is now.status:
                return now
            with pen:
                return session.store.settle(record.name, found, at=session.clock(), cluster_id=record.cluster_id)
    except ClusterBusy:
        return session.store.cluster(record.name)


def is_complete(record: ClusterRecord) -> bool:
    """Whether all is known that a launch writes down when Ray has answered."""
    return bool(record.ray_port) and all(node.ray_node_id for node in record.nodes)


def mark_of(record: ClusterRecord) -> tuple[str, ClusterStatus, float]:
    """What changes whenever an operation has settled the cluster."""
    return record.cluster_id, record.status, record.status_since


def traces_of(session: Session, record: ClusterRecord) -> tuple[Trace, ...]:
    """What of the cluster is on each of its nodes, by rank; all are asked at once."""
    return _traces(session, record, record.nodes)


def _traces(session: Session, record: ClusterRecord, nodes: tuple[NodeRecord, ...]) -> tuple[Trace, ...]:
    outcomes = fanout(lambda node: _trace(session, record, node), nodes, limit=NODES_AT_ONCE)
    return tuple(outcome.get() for outcome in outcomes)


def _trace(session: Session, record: ClusterRecord, node: NodeRecord) -> Trace:
    try:
        transport = session.transport(node.address)
        found = trace_of(transport, node, cluster=record.name, cluster_id=record.cluster_id, timeout_s=COMMAND_S)
        return Trace.UNKNOWN if found is Trace.NONE and not _would_be_seen(session, record, node) else found
    except SkyError:
        return Trace.UNKNOWN


def _would_be_seen(session: Session, record: ClusterRecord, node: NodeRecord) -> bool:
    """Whether files of the node would be seen from here if they were there; of an SSH host its account says so itself.

    Those of a `local` node lie in a home, <home>/local/<cluster>/<node>: this one, or one that we can list and that is
    the owner's. Else this may be another machine of the same name and id, where the same paths say nothing.
    """
    if node.address.kind != "local":
        return True
    root = Path(node.root)
    if record.owner in ("", session.user_hash):
        return root.is_relative_to(session.home.root) or any(os.access(each, os.R_OK) for each in root.parents[:2])
    try:
        return known_hash(SkyHome(root.parents[2])) == record.owner
    except (IndexError, OSError, ValueError):
        return False


def stopped_by_itself(session: Session, record: ClusterRecord) -> Mapping[str, object] | None:
    """What the cluster wrote when it ended by itself ("at", "reason", "down", "stopping"); None when it did not.

    The head's word; where there is a lease and the head says nothing, as after a crash, a worker's. Raises TransportError
    when the head cannot be asked.
    """
    said = _stopped_here(session, record, record.head)
    if said is not None or record.lease_s is None:
        return said
    for node in record.nodes[1:]:
        try:
            said = _stopped_here(session, record, node)
        except SkyError:
            continue
        if said is not None and said.get("reason") == "lease":
            return said
    return None


def _stopped_here(session: Session, record: ClusterRecord, node: NodeRecord) -> Mapping[str, object] | None:
    """Raises TransportError."""
    marker = f"{node.root}/.sky/stopped.json"
    done = session.transport(node.address).run(Command.of("cat", marker), timeout_s=COMMAND_S)
    try:
        said = json.loads(done.stdout) if done.ok else {}
    except ValueError:
        return None
    return said if isinstance(said, dict) and said.get("cluster_id") == record.cluster_id else None
