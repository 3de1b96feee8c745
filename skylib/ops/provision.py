"""Making clusters stand: hosts chosen and claimed, brought up, and everything undone when that fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from skylib.errors import ProvisionError, SkyError
from skylib.events import EventSink, span
from skylib.models.cluster import AutostopRecord, ClusterRecord, ClusterStatus, NodeRecord
from skylib.models.node import HostAddress, NodeFacts
from skylib.models.offer import Offer
from skylib.models.task import Task
from skylib.ops.cleanup import take_away
from skylib.ops.timer import kept_leased
from skylib.optimizer.rank import Placement, rank
from skylib.providers.base import NodeMaker, NodeSpec, ProviderContext
from skylib.runtime.bringup import Member, Site, StandingCluster, Tools, bring_up
from skylib.runtime.layout import ENV_NAME
from skylib.runtime.preflight import choose_temp_dir
from skylib.session import Session

__all__ = ["bring_up_again", "choose", "make"]

Beside = Callable[[Sequence[tuple[HostAddress, str]]], None]


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
    cluster_id: str,
    intent: int,
    autostop: AutostopRecord | None,
    lease_s: float | None = None,
    beside: Beside,
    timeout_s: float,
) -> ClusterRecord:
    """Claim the hosts and bring the cluster up; `beside` brings the files while Ray starts.

    intent: the launch's, written down; it is settled when a failure, or Ctrl-C, is undone: processes, files, claims and
    record are gone then.
    Raises NoCapacityError when a host was taken meanwhile, PreflightError, BringUpError, StagingError, TransportError.
    """
    now = session.clock()
    record = ClusterRecord(
        name=name,
        cluster_id=cluster_id,
        status=ClusterStatus.INIT,
        status_since=now,
        infra=placement.infra,
        num_nodes=len(placement.chosen),
        launched_at=now,
        resources=task.resources.to_plain(),
        autostop=autostop,
        owner=session.user_hash,
        last_use="launch",
        lease_s=lease_s,
    )
    begun = False
    try:
        record = session.store.begin_launch(record)
        begun = True
        hosts = sorted({offer.host for offer in placement.chosen})
        session.store.claim_hosts(placement.infra, hosts, name, record.cluster_id, now)
        addresses = _create(session, record, placement, context)
        members = tuple(
            _member(session, name, number, offer, address, context.probes.facts(address))
            for number, (offer, address) in enumerate(zip(placement.chosen, addresses, strict=True))
        )
        record = attrs.evolve(record, nodes=_planned(members))
        session.store.save_cluster(record)
        return _bring_up(session, record, members, context.events, beside=beside, timeout_s=timeout_s)
    except BaseException as error:
        if begun:
            leftovers = take_away(session, record, context.events, touched=_touched(error))
            if not leftovers:
                session.settle_intent(intent, f"undone after {type(error).__name__}")
            elif isinstance(error, SkyError):
                error.__dict__["leftovers"] = leftovers
        raise


def _create(session: Session, record: ClusterRecord, placement: Placement, context: ProviderContext) -> list[HostAddress]:
    """How to reach the machines, made if their provider makes any. Raises NoCapacityError."""
    provider = session.providers.of(placement.infra)[0]
    if not isinstance(provider, NodeMaker):
        return [offer.address for offer in placement.chosen]
    spec = NodeSpec(cluster_name=record.name, cluster_id=record.cluster_id, infra=placement.infra, offers=placement.chosen)
    return [handle.address for handle in provider.create(spec, context)]


def bring_up_again(session: Session, record: ClusterRecord, events: EventSink) -> ClusterRecord:
    """Bring a known cluster, of which nothing runs, up on its own hosts. Raises as `make`; nothing is undone."""
    context = session.provider_context(events, record)
    members = tuple(_known_member(node, context.probes.facts(node.address)) for node in record.nodes)
    _note_temp_dir(session, record, choose_temp_dir([member.facts for member in members]))
    timeout_s = session.config.provision.timeout_s
    return _bring_up(session, record, members, events, beside=lambda nodes: None, timeout_s=timeout_s)


def _note_temp_dir(session: Session, record: ClusterRecord, temp_dir: str) -> None:
    """Another one than before, since that is somebody else's by now, is written down before it is made."""
    known = session.require(record.name)
    if known.cluster_id == record.cluster_id and any(node.temp_dir != temp_dir for node in known.nodes):
        nodes = tuple(attrs.evolve(node, temp_dir=temp_dir) for node in known.nodes)
        session.store.save_cluster(attrs.evolve(known, nodes=nodes))


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
        lease_s=record.lease_s,
        node_lost_s=session.config.agent.node_lost_s,
        launched_at=record.launched_at,
        resources=record.resources,
    )
    places = [(member.address, member.root) for member in members]

    def bring_files() -> None:
        with kept_leased(session, record):
            beside(places)

    tools = Tools(
        transport=session.transport,
        environment=session.environment(events),
        agent=lambda transport, node: session.new_agent(record.name, record.cluster_id, transport, node.python, node.layout),
        events=events,
        while_starting=lambda nodes: bring_files(),
        timeout_s=timeout_s,
        min_disk_gib=session.config.provision.min_disk_gib,
    )
    standing = bring_up(site, tools)
    return _settle_up(session, record, standing)


def _settle_up(session: Session, record: ClusterRecord, standing: StandingCluster) -> ClusterRecord:
    return session.store.settle(
        record.name,
        ClusterStatus.UP,
        at=session.clock(),
        cluster_id=record.cluster_id,
        nodes=standing.nodes,
        ray_port=standing.ray_port,
        dashboard_port=standing.dashboard_port,
        ray_version=standing.ray_version,
    )


def _member(session: Session, cluster: str, number: int, offer: Offer, address: HostAddress, facts: NodeFacts) -> Member:
    local = address.kind == "local"
    root = str(session.home.local_node(cluster) / f"rank{number}") if local else facts.home
    env = str(session.home.runtime / ENV_NAME) if local else f"{facts.home}/{ENV_NAME}"
    return Member(
        rank=number,
        host=offer.host,
        address=address,
        facts=facts,
        ip=_reachable_ip(facts, address),
        root=root,
        env=env,
        cpus=offer.cpus,
        memory_gib=offer.memory_gib,
        gpus=offer.gpus,
        price_per_hour=offer.price_per_hour,
        custom=offer.custom,
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
        custom=node.custom,
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
            custom=member.custom,
        )
        for member in members
    )
