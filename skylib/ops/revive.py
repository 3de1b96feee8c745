"""A cluster that is known: whether it stands, and what is done when it does not."""

from __future__ import annotations

import time

from skylib.errors import AgentError, AgentReplyError, BringUpError, ClusterNotUp, TransportError
from skylib.events import EventSink, span
from skylib.jobs import polling
from skylib.models.cluster import ClusterRecord, ClusterStatus, NodeRecord
from skylib.models.receipts import DownReceipt, StartReceipt
from skylib.ops.cleanup import end_everywhere, raise_unclean
from skylib.ops.endings import stopped_at
from skylib.ops.look import stopped_by_itself
from skylib.ops.provision import bring_up_again
from skylib.ops.recovery import never_up
from skylib.ops.standing import settle_standing
from skylib.runtime.agent_restart import restart_agent
from skylib.session import Session
from skylib.transport.fanout import fanout

__all__ = ["revive"]

CHECK_S = 5.0
HEAL_S = 90.0  # how long agents that try to bring Ray back are given, as long as they do not say that they fail


def revive(session: Session, record: ClusterRecord, events: EventSink, *, may_end_jobs: bool) -> StartReceipt:
    """The cluster, UP on its own hosts, and what was done for it; one that answers as it should is left alone.

    An agent that died, or is of another version, is started anew beside the jobs, which go on; agents bring Ray back
    where it has ended, on nodes that were booted as well. When that does not do, everything of the cluster is ended and
    brought up again: with `may_end_jobs`, or when no job would be ended.
    Raises ClusterNotUp when it may not; TransportError when a node cannot be reached (nothing is ended then);
    BringUpError and PreflightError, after which the cluster is INIT and its hosts are still held.
    """
    if not record.nodes:
        raise ClusterNotUp(
            f"cluster {record.name!r} was never made",
            cluster=record.name,
            status=record.status,
            since=record.status_since,
            hint=f"client.down({record.name!r}) forgets it",
        )
    if record.status is ClusterStatus.STOPPED:
        return _again(session, record, events, used_until=None)
    problem = _why_not_ready(session, record, events)
    if problem is None and not may_end_jobs:
        return StartReceipt(cluster=_settle_up(session, record, events))
    answers = isinstance(problem, AgentReplyError) and problem.kind != "asleep"
    if problem is not None and not answers and stopped_by_itself(session, record) is not None:
        return _again(session, record, events, used_until=stopped_at(session, record))
    until = session.clock() if answers else None
    with session.intent("start", record.name, cluster_id=record.cluster_id, was=record.status.value, anew=False):
        actions, problem = _heal(session, record, events, problem)
    if problem is None:
        return StartReceipt(cluster=_settle_up(session, record, events), actions=actions)
    if not may_end_jobs and record.status is ClusterStatus.UP and _may_have_jobs(session, record):
        raise ClusterNotUp(
            f"cluster {record.name!r} is not whole, and its jobs may still run: {problem.message}",
            cluster=record.name,
            status=ClusterStatus.INIT,
            since=record.status_since,
            evidence=problem.evidence,
            hint=f"client.start({record.name!r}) ends them and brings the cluster up again",
        ) from problem
    return _again(session, record, events, used_until=until)


def _settle_up(session: Session, record: ClusterRecord, events: EventSink) -> ClusterRecord:
    if never_up(record):  # what its launch would have written down is still to be read
        return settle_standing(session, record, events)
    return session.store.settle(record.name, ClusterStatus.UP, at=session.clock(), cluster_id=record.cluster_id)


def _why_not_ready(session: Session, record: ClusterRecord, events: EventSink) -> AgentError | None:
    """None when Ray has all nodes, by the agent's word. Raises TransportError."""
    with span(events, "provision.look", cluster=record.name) as step:
        try:
            session.agent(record).call("ready", answer_within_s=CHECK_S + 10, timeout_s=CHECK_S)
        except AgentError as error:
            step.note(missing=error.message)
            return error
        return None


def _heal(
    session: Session, record: ClusterRecord, events: EventSink, problem: AgentError | None
) -> tuple[tuple[str, ...], AgentError | None]:
    """(what was done, what is still the matter): agents run on all nodes, and Ray is back. Raises TransportError."""

    def restart(node: NodeRecord) -> bool:
        with span(events, "runtime.agent", node=node.host) as step:
            started = restart_agent(session.transport(node.address), node, record.cluster_id)
            step.note(started=started)
            return started

    if problem is not None and not isinstance(problem, AgentReplyError):
        session.forget_agent(record.cluster_id)
    actions: list[str] = []
    for outcome in fanout(restart, record.nodes):
        if isinstance(outcome.error, AgentError):
            return tuple(actions), outcome.error
        if outcome.get():
            actions.append(f"started the agent on {outcome.item.host}")
    if problem is None and not actions:
        return (), None
    missing = _missing(session, record, problem)
    problem = _wait_healed(session, record, events)
    if problem is None:
        actions += [f"brought Ray back on {node.host}" for node in record.nodes if node.rank in missing]
    return tuple(actions), problem


def _missing(session: Session, record: ClusterRecord, problem: AgentError | None) -> set[int]:
    """Ranks that Ray does not have just now, as far as the agent knows."""
    ranks = getattr(problem, "missing_ranks", None)
    if ranks is None:
        try:
            alive = session.agent(record).call("info").get("alive_ranks") or ()
        except AgentError:
            return set()
        ranks = {node.rank for node in record.nodes} - set(alive)
    return set(ranks)


def _wait_healed(session: Session, record: ClusterRecord, events: EventSink) -> AgentError | None:
    """None when Ray has all nodes. Given up when the head's agent says that it fails to start Ray."""
    deadline = time.monotonic() + HEAL_S
    while True:
        problem = _why_not_ready(session, record, events)
        if problem is None or time.monotonic() > deadline or not _is_healing(session, record):
            return problem


def _is_healing(session: Session, record: ClusterRecord) -> bool:
    """Whether agents keep this cluster's Ray, and the head's does not fail at that."""
    try:
        ray = session.agent(record).call("info").get("ray") or {}
    except AgentError:
        return False
    return ray.get("state") in ("up", "down", "starting")


def _may_have_jobs(session: Session, record: ClusterRecord) -> bool:
    try:
        return bool(polling.queue(session.agent(record), record.name, include_ended=False))
    except (AgentError, TransportError):
        return True


def _again(session: Session, record: ClusterRecord, events: EventSink, *, used_until: float | None) -> StartReceipt:
    """used_until: as of the store's methods."""
    hosts = ", ".join(node.host for node in record.nodes)
    with session.intent("start", record.name, cluster_id=record.cluster_id, was=record.status.value, anew=True):
        receipts = end_everywhere(session, record, events)
        raise_unclean(DownReceipt(cluster_name=record.name, nodes=receipts, released=False), "start")
        settle, at = session.store.settle, session.clock()
        settle(record.name, ClusterStatus.INIT, at=at, cluster_id=record.cluster_id, used_until=used_until)
        try:
            cluster = bring_up_again(session, record, events)
        except BringUpError:
            end_everywhere(session, record, events)  # what came up of it serves nobody
            raise
    actions = [f"ended what was left of it on {node.host}" for node in receipts if node.ended]
    return StartReceipt(cluster=cluster, actions=(*actions, f"brought it up on {hosts}"))
