"""A cluster that is known: whether it stands, and what is done when it does not."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing

from skylib import __version__
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
from skylib.runtime.agent_client import AgentClient, bridge_command
from skylib.runtime.agent_restart import restart_agent
from skylib.runtime.teardown import layout_of
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
    """None when Ray has all nodes. Given up when no agent keeps Ray, or that of a node without Ray says that it fails."""
    deadline = time.monotonic() + HEAL_S
    while True:
        problem = _why_not_ready(session, record, events)
        if problem is None or time.monotonic() > deadline:
            return problem
        head = _ray_of(session.agent(record))
        failing = [(record.head, head)]
        if head.get("state") == "up":  # without the head's, that of another node cannot start and says nothing
            failing = _rays_of(session, record, getattr(problem, "missing_ranks", None) or ())
        failing = [(node, ray) for node, ray in failing if ray.get("state") == "failing"]
        if failing:
            return _cannot_start(record, failing)
        if head.get("state") not in ("up", "down", "starting"):
            return problem


def _ray_of(agent: AgentClient) -> Mapping[str, object]:
    """What the agent says of its node's Ray; nothing when it does not answer, or keeps none. Raises TransportError."""
    try:
        return agent.call("info", answer_within_s=CHECK_S + 10).get("ray") or {}
    except AgentError:
        return {}


def _rays_of(
    session: Session, record: ClusterRecord, ranks: Collection[int]
) -> list[tuple[NodeRecord, Mapping[str, object]]]:
    """What the nodes' own agents say of Ray there, over channels that are closed again; all are asked at once.

    One that cannot be reached says nothing: it may be booting.
    """

    def ask(node: NodeRecord) -> Mapping[str, object]:
        try:
            with closing(_node_agent(session, record, node)) as agent:
                return _ray_of(agent)
        except TransportError:
            return {}

    return [(outcome.item, outcome.get()) for outcome in fanout(ask, [each for each in record.nodes if each.rank in ranks])]


def _node_agent(session: Session, record: ClusterRecord, node: NodeRecord) -> AgentClient:
    """A channel of its own to the agent of one node, which the caller closes; opened when it is first asked."""
    return AgentClient(
        session.transport(node.address),
        bridge_command(node.python, layout_of(node)),
        cluster=record.name,
        cluster_id=record.cluster_id,
        version=__version__,
    )


def _cannot_start(record: ClusterRecord, failing: Sequence[tuple[NodeRecord, Mapping[str, object]]]) -> AgentError:
    return AgentError(
        f"Ray does not start on {', '.join(node.host for node, _ in failing)}",
        host=failing[0][0].host,
        cluster=record.name,
        step="runtime.ray",
        evidence="\n".join(f"{node.host}: {ray.get('last_error')}" for node, ray in failing),
    )


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
