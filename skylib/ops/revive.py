"""A cluster that is known: whether it stands, and what is done when it does not."""

from __future__ import annotations

from skylib.errors import AgentError, AgentReplyError, BringUpError, ClusterNotUp, TransportError
from skylib.events import EventSink, span
from skylib.jobs import polling
from skylib.models.cluster import ClusterRecord, ClusterStatus, NodeRecord
from skylib.models.receipts import DownReceipt
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


def revive(session: Session, record: ClusterRecord, events: EventSink, *, may_end_jobs: bool) -> ClusterRecord:
    """The cluster, UP on its own hosts; one that answers as it should is left alone.

    An agent that died, or is of another version, is started anew beside the jobs, which go on. When that does not do,
    everything of the cluster is ended and brought up again: with `may_end_jobs`, or when no job would be ended.
    Raises ClusterNotUp when it may not; TransportError when the head cannot be reached (nothing is touched then);
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
    until = None
    if record.status is not ClusterStatus.STOPPED:
        problem = _why_not_ready(session, record, events)
        if problem is None:
            return _settle_up(session, record, events)
        if isinstance(problem, AgentReplyError) and problem.kind != "asleep":
            until = session.clock()
        else:
            if stopped_by_itself(session, record) is not None:
                return _again(session, record, events, used_until=stopped_at(session, record))
            with session.intent("start", record.name, cluster_id=record.cluster_id, was=record.status.value, anew=False):
                problem = _with_new_agents(session, record, events)
        if problem is None:
            return _settle_up(session, record, events)
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


def _with_new_agents(session: Session, record: ClusterRecord, events: EventSink) -> AgentError | None:
    """Start the agents of all nodes; those that run, and are ours, stay. Raises TransportError."""

    def restart(node: NodeRecord) -> None:
        with span(events, "runtime.agent", node=node.host):
            restart_agent(session.transport(node.address), node, record.cluster_id)

    session.forget_agent(record.cluster_id)
    for outcome in fanout(restart, record.nodes):
        if isinstance(outcome.error, AgentError):
            return outcome.error
        outcome.get()
    return _why_not_ready(session, record, events)


def _may_have_jobs(session: Session, record: ClusterRecord) -> bool:
    try:
        return bool(polling.queue(session.agent(record), record.name, include_ended=False))
    except (AgentError, TransportError):
        return True


def _again(session: Session, record: ClusterRecord, events: EventSink, *, used_until: float | None) -> ClusterRecord:
    """used_until: as of the store's methods."""
    with session.intent("start", record.name, cluster_id=record.cluster_id, was=record.status.value, anew=True):
        receipts = end_everywhere(session, record, events)
        raise_unclean(DownReceipt(cluster_name=record.name, nodes=receipts, released=False), "start")
        settle, at = session.store.settle, session.clock()
        settle(record.name, ClusterStatus.INIT, at=at, cluster_id=record.cluster_id, used_until=used_until)
        try:
            return bring_up_again(session, record, events)
        except BringUpError:
            end_everywhere(session, record, events)  # what came up of it serves nobody
            raise
