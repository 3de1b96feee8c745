"""Making clusters stand: hosts chosen and claimed, brought up, and everything undone when that fails."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

import attrs

from skylib.errors import AgentError, ProvisionError, SkyError, TransportError
from skylib.events import EventSink, span
from skylib.models.cluster import AutostopRecord, ClusterRecord, ClusterStatus, NodeRecord
from skylib.models.node import HostAddress, NodeFacts
from skylib.models.offer import Offer
from skylib.models.task import Task
from skylib.optimizer.rank import Placement, rank
from skylib.providers.base import ProviderContext
from skylib.runtime.bringup import Member, Site, StandingCluster, Tools, bring_up
from skylib.runtime.layout import ENV_NAME
from skylib.runtime.preflight import choose_temp_dir
from skylib.runtime.teardown import end_node, release_node
from skylib.session import Session
from skylib.transport.fanout import fanout

__all__ = ["choose", "make", "revive", "take_away"]

Beside = Callable[[Sequence[tuple[HostAddress, str]]], None]
REVIVE_CHECK_S = 5.0


def choose(session: Session, task: Task, context: ProviderContext, *, only: Sequence[Offer] | None = None) -> Placement:
    """The hosts for a new cluster of this task. only: take exactly these, or fail and say what changed.

    Raises NoOfferError, NoCapacityError, PoolNotFound, ConfigError.
    """
    with span(context.events, "provision.survey") as step:
        survey = session.providers.survey(task.resources, task.num_nodes, context)
        step.note(offers=len(survey.offers), refusals=len(survey.refusals))
    if only is None:
        return rank(survey, task.resources, task.num_nodes)
    wanted = {(offer.infra, offer.host) for offer in only}
    kept = tuple(offer for offer in survey.offers if (offer.infra, offer.host) in wanted)
    return rank(attrs.evolve(survey, offers=kept), task.resources, task.num_nodes, held=wanted)


def make(
    session: Session,
    task: Task,
    name: str,
    placement: Placement,
    context: ProviderContext,
    *,
    autostop: AutostopRecord | None,
    beside: Beside,
    timeout_s: float,
) -> ClusterRecord:
    """Claim the hosts and bring the cluster up; `beside` brings the files while Ray starts.

    What may exist is written down before it is made. A failure is undone: processes, files, claims and record go.
    Raises NoCapacityError when a host was taken meanwhile, PreflightError, BringUpError, StagingError, TransportError.
    """
    now = session.clock()
    cluster_id = str(uuid.uuid4())
    members = tuple(
        _member(session, name, number, offer, context.probes.facts(offer.address), cluster_id)
        for number, offer in enumerate(placement.chosen)
    )
    record = ClusterRecord(
        name=name,
        cluster_id=cluster_id,
        status=ClusterStatus.INIT,
        status_since=now,
        infra=placement.infra,
        num_nodes=len(members),
        launched_at=now,
        nodes=_planned(members),
        resources=task.resources.to_plain(),
        autostop=autostop,
        owner=session.user_hash,
        last_use="launch",
    )
    intent = session.store.begin_intent("launch", name, {"cluster_id": cluster_id})
    begun = False
    try:
        session.store.begin_launch(record)
        begun = True
        hosts = sorted({member.host for member in members})
        session.store.claim_hosts(placement.infra, hosts, name, cluster_id, now)
        return _bring_up(session, record, members, context.events, beside=beside, timeout_s=timeout_s)
    except BaseException as error:
        if begun:
            leftovers = take_away(session, record, context.events, touched=_touched(error))
            if leftovers and isinstance(error, SkyError):
                error.__dict__["leftovers"] = leftovers
        raise
    finally:
        session.store.settle_intent(intent, "settled")


def revive(session: Session, record: ClusterRecord, events: EventSink) -> ClusterRecord:
    """Bring a known cluster up on its own hosts; one that answers as it should is left alone.

    A cluster of which some part is missing is ended and brought up anew: its jobs end. Raises BringUpError,
    PreflightError, TransportError; the cluster is then INIT, its hosts still held.
    """
    if record.status is not ClusterStatus.STOPPED and _answers(session, record, events):
        return _settle_up(session, record)
    intent = session.store.begin_intent("start", record.name, {"cluster_id": record.cluster_id})
    try:
        _end_all(session, record, events)
        session.store.settle(record.name, ClusterStatus.INIT, at=session.clock(), cluster_id=record.cluster_id)
        context = session.provider_context(events)
        members = tuple(_known_member(node, context.probes.facts(node.address)) for node in record.nodes)
        timeout_s = session.config.provision.timeout_s
        return _bring_up(session, record, members, events, beside=lambda nodes: None, timeout_s=timeout_s)
    finally:
        session.store.settle_intent(intent, "settled")


def take_away(session: Session, record: ClusterRecord, events: EventSink, *, touched: bool = True) -> tuple[str, ...]:
    """Take away a cluster that nobody wants (a launch that failed or died, one that gave itself up); what could not be
    taken away, in words.


    The record and the claims go when every node is clean; else they stay, as INIT, for client.down().
    """
    problems: list[str] = []
    if touched:
        with span(events, "provision.undo", cluster=record.name):
            session.forget_agent(record.cluster_id)
            local = record.infra == "local"

            def clean(node: NodeRecord) -> str:
                transport = session.transport(node.address)
                ended = end_node(transport, node)
                gone = release_node(transport, node, cluster_id=record.cluster_id, local=local)
                return "; ".join([*ended.leftovers, *gone.leftovers, *filter(None, {ended.error, gone.error})])

            for outcome in fanout(clean, record.nodes):
                found = outcome.value if outcome.error is None else str(outcome.error)
                if found:
                    problems.append(f"{outcome.item.host}: {found}")
    if not problems:
        session.store.remove_cluster(record.name, at=session.clock(), cluster_id=record.cluster_id)
    return tuple(problems)


def _touched(error: BaseException) -> bool:
    """Whether bring-up may have put anything on a node before it failed."""
    return not (isinstance(error, ProvisionError) and (error.step or "").startswith("preflight."))


def _bring_up(
    session: Session,
    record: ClusterRecord,
    members: tuple[Member, ...],
    events: EventSink,
    *,
    beside: Beside,
    timeout_s: float,
) -> ClusterRecord:
    site = Site(
        cluster=record.name,
        cluster_id=record.cluster_id,
        infra=record.infra,
        owner=record.owner,
        user=session.user,
        home=str(session.home.root),
        members=members,
        autostop=record.autostop,
    )
    places = [(member.address, member.root) for member in members]
    tools = Tools(
        transport=session.transport,
        environment=session.environment(events),
        agent=lambda transport, node: session.new_agent(record.name, record.cluster_id, transport, node.python, node.layout),
        events=events,
        while_starting=lambda nodes: beside(places),
        timeout_s=timeout_s,
        min_disk_gib=session.config.provision.min_disk_gib,
    )
    standing = bring_up(site, tools)
    return _settle_up(session, record, standing)


def _settle_up(session: Session, record: ClusterRecord, standing: StandingCluster | None = None) -> ClusterRecord:
    changes: dict[str, object] = {}
    if standing is not None:
        changes = {
            "nodes": standing.nodes,
            "ray_port": standing.ray_port,
            "dashboard_port": standing.dashboard_port,
            "ray_version": standing.ray_version,
        }
    return session.store.settle(record.name, ClusterStatus.UP, at=session.clock(), cluster_id=record.cluster_id, **changes)


def _answers(session: Session, record: ClusterRecord, events: EventSink) -> bool:
    with span(events, "provision.look", cluster=record.name) as step:
        try:
            session.agent(record).call("ready", answer_within_s=REVIVE_CHECK_S + 10, timeout_s=REVIVE_CHECK_S)
        except (AgentError, TransportError) as error:
            step.note(missing=error.message)
            return False
        return True


def _end_all(session: Session, record: ClusterRecord, events: EventSink) -> None:
    session.forget_agent(record.cluster_id)
    with span(events, "provision.end_rest", cluster=record.name):
        for outcome in fanout(lambda node: end_node(session.transport(node.address), node), record.nodes):
            if outcome.error is not None:
                raise outcome.error


def _member(session: Session, cluster: str, number: int, offer: Offer, facts: NodeFacts, cluster_id: str) -> Member:
    local = offer.address.kind == "local"
    root = str(session.home.local_node(cluster) / f"rank{number}") if local else facts.home
    env = str(session.home.runtime / ENV_NAME) if local else f"{facts.home}/{ENV_NAME}"
    return Member(
        rank=number,
        host=offer.host,
        address=offer.address,
        facts=facts,
        ip=_reachable_ip(facts, offer.address),
        root=root,
        env=env,
        cpus=offer.cpus,
        memory_gib=offer.memory_gib,
        gpus=offer.gpus,
        price_per_hour=offer.price_per_hour,
    )


def _reachable_ip(facts: NodeFacts, address: HostAddress) -> str:
    """Where the other nodes reach it. Ray turns 127.0.0.1 into the machine's own address, so that is given at once."""
    if facts.internal_ips:
        return facts.internal_ips[0]
    return "127.0.0.1" if address.kind == "local" else address.host


def _known_member(node: NodeRecord, facts: NodeFacts) -> Member:
    return Member(
        rank=node.rank,
        host=node.host,
        address=node.address,
        facts=facts,
        ip=node.internal_ip,
        root=node.root,
        env=node.env,
        cpus=node.cpus,
        memory_gib=node.memory_gib,
        gpus=node.gpus,
        price_per_hour=node.price_per_hour,
    )


def _planned(members: Sequence[Member]) -> tuple[NodeRecord, ...]:
    """The nodes as they will be, so that a launch that dies can be undone by another process."""
    temp_dir = choose_temp_dir([member.facts for member in members])
    return tuple(
        NodeRecord(
            rank=member.rank,
            host=member.host,
            address=member.address,
            internal_ip=member.ip,
            root=member.root,
            temp_dir=temp_dir,
            env=member.env,
            python=f"{member.env}/bin/python",
            cpus=member.cpus,
            memory_gib=member.memory_gib,
            gpus=member.gpus,
            price_per_hour=member.price_per_hour,
        )
        for member in members
    )
