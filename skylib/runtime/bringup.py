"""From machines to a cluster: check, environment, small files; then Ray and agents start (runtime/starting.py).

Every step is skipped where it is already so, and each is an event with seconds. What fails is told with host, step and
the tail of stderr; the caller then takes everything away again (runtime/teardown.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs

from skylib.catalog.accelerators import accelerator_name
from skylib.errors import BringUpError, PreflightError
from skylib.events import span
from skylib.models.cluster import NodeRecord
from skylib.models.node import HostAddress
from skylib.runtime.agent_bundle import Bundle, build_bundle
from skylib.runtime.agent_client import AgentClient
from skylib.runtime.blame import named
from skylib.runtime.environment import Environment
from skylib.runtime.layout import NodeLayout
from skylib.runtime.node_files import REFUSALS, NodePlan, agent_config, cluster_mark, refusal, write_files
from skylib.runtime.ports import HeadPorts, NodePorts, free_base
from skylib.runtime.preflight import (
    Problem,
    check_disk,
    choose_head_ports,
    foreign_cluster,
    no_ports,
    raise_problems,
)
from skylib.runtime.ray_commands import RayNode, head_start, worker_start
from skylib.runtime.site import Member, Site, Tools
from skylib.runtime.starting import start
from skylib.runtime.tls import Seal, new_seal
from skylib.transport.command import Command
from skylib.transport.fanout import fanout

__all__ = ["Member", "Site", "StandingCluster", "Tools", "bring_up"]

DELIVERY_TIMEOUT_S = 60.0


@attrs.frozen(kw_only=True)
class StandingCluster:
    """A cluster that Ray itself says is up."""

    nodes: tuple[NodeRecord, ...]
    ray_port: int
    dashboard_port: int
    ray_version: str
    agent: AgentClient


def bring_up(site: Site, tools: Tools) -> StandingCluster:
    """Make the cluster stand; returns when Ray has all its nodes and each node's standing actor answers.

    Raises PreflightError before anything is changed; BringUpError, StagingError and TransportError after which
    processes and files may be there.
    """
    ports = _check(site, tools)
    environments = _environments(site, tools)
    nodes = _plan_nodes(site, environments)
    bundle = build_bundle()
    seal = new_seal(environments[0].ray_version)
    commands = [_ray_command(site, nodes, member, ports, seal) for member in site.members]
    _deliver_files(site, nodes, commands, ports, bundle, environments[0].ray_version, tools)
    with span(tools.events, "runtime.start", cluster=site.cluster, nodes=len(nodes)):
        agent, ready = start(site, nodes, commands, seal, tools)
    return StandingCluster(
        nodes=tuple(_record(member, node, ready) for member, node in zip(site.members, nodes, strict=True)),
        ray_port=ports.ray,
        dashboard_port=ports.dashboard,
        ray_version=str(ready.get("ray_version", environments[0].ray_version)),
        agent=agent,
    )


def _check(site: Site, tools: Tools) -> HeadPorts:
    problems: list[Problem | None] = []
    for member in {member.host: member for member in site.members}.values():
        problems.append(check_disk(member.host, member.facts, min_free_gib=tools.min_disk_gib))
        problems.append(foreign_cluster(member.host, member.facts, site.cluster_id))
        try:
            _port_base(site, member)
        except PreflightError as error:
            problems.append(no_ports(member.host, error))
    raise_problems(site.cluster, [problem for problem in problems if problem is not None])
    head = site.members[0]
    ports = choose_head_ports(head.host, head.facts, base=_port_base(site, head))
    if isinstance(ports, Problem):
        raise_problems(site.cluster, [ports])
        raise AssertionError("unreachable")
    return ports


def _port_base(site: Site, member: Member) -> int:
    return free_base(member.facts.listening, nodes_on_machine=len(site.members) if site.local else 1)


def _layout(site: Site, member: Member) -> NodeLayout:
    return NodeLayout(root=member.root, temp_dir=site.temp_dir, env=member.env)


def _environments(site: Site, tools: Tools) -> list[Environment]:
    """One per member; machines that are several nodes make theirs once."""
    machines = {(member.address, member.env): member for member in site.members}

    def make(member: Member) -> Environment:
        with span(tools.events, "runtime.environment", node=member.host) as step:
            made = tools.environment(tools.transport(member.address), member.facts, _layout(site, member))
            step.note(created=made.created, ray_version=made.ray_version)
            return made

    outcomes = fanout(make, list(machines.values()))
    made: dict[tuple[HostAddress, str], Environment] = {}
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
        if outcome.value is not None:
            made[outcome.item.address, outcome.item.env] = outcome.value
    environments = [made[member.address, member.env] for member in site.members]
    versions = {environment.ray_version for environment in environments}
    if len(versions) > 1:
        raise BringUpError(
            f"nodes of {site.cluster!r} would run different Rays: {', '.join(sorted(versions))}",
            cluster=site.cluster,
            step="runtime.environment",
        )
    return environments


def _plan_nodes(site: Site, environments: Sequence[Environment]) -> list[NodePlan]:
    return [
        NodePlan(
            rank=member.rank,
            host=member.host,
            ip=member.ip,
            layout=_layout(site, member),
            python=environment.python,
            ray=f"{environment.env}/bin/ray",
            cpus=member.cpus,
            memory_gib=member.memory_gib,
            gpus=member.gpus,
            runtime_digest=environment.digest,
            address=_told(member),
            price_per_hour=member.price_per_hour,
            custom=member.custom,
        )
        for member, environment in zip(site.members, environments, strict=True)
    ]


def _told(member: Member) -> HostAddress:
    """How to reach it, for cluster.json: another machine may have another user of the same name of a host in mind."""
    address = member.address
    return attrs.evolve(address, user=address.user or member.facts.user) if address.kind == "ssh" else address


def _deliver_files(
    site: Site,
    nodes: Sequence[NodePlan],
    commands: Sequence[Command],
    ports: HeadPorts,
    bundle: Bundle,
    ray_version: str,
    tools: Tools,
) -> None:
    names: dict[str, Any] = {"cluster": site.cluster, "cluster_id": site.cluster_id, "infra": site.infra}
    names["lease_s"] = site.lease_s

    def deliver(pair: tuple[Member, NodePlan]) -> None:
        member, node = pair
        transport = tools.transport(member.address)
        target = f"{node.layout.agent_dir}/{bundle.sha256}.pyz"
        config = agent_config(
            node,
            nodes,
            **names,
            ray_port=ports.ray,
            dashboard_port=ports.dashboard,
            user=site.user,
            bundle_sha256=bundle.sha256,
            autostop=site.autostop,
            ray_start=commands[node.rank],
            node_lost_s=site.node_lost_s,
        )
        mark = cluster_mark(
            node,
            nodes,
            **names,
            owner=site.owner,
            home=site.home,
            ray_port=ports.ray,
            dashboard_port=ports.dashboard,
            ray_version=ray_version,
            launched_at=site.launched_at,
            resources=site.resources,
            autostop=site.autostop,
        )
        with span(tools.events, "runtime.files", node=member.host) as step:
            command, stdin = write_files(node, config, mark, target)
            answer = transport.run(command, stdin=stdin, timeout_s=DELIVERY_TIMEOUT_S)
            refused = refusal(answer, cluster=site.cluster)
            if refused is not None:
                raise refused
            missing = answer.check().stdout.strip() != b"have"
            step.note(bundle_sent=missing)
            if missing:
                transport.put(bundle.data, target)

    outcomes = fanout(deliver, list(zip(site.members, nodes, strict=True)))
    errors = [outcome.error for outcome in outcomes]
    if all(isinstance(error, BringUpError) and error.step in REFUSALS for error in errors):
        raise_problems(site.cluster, [Problem.of(error) for error in errors if isinstance(error, BringUpError)])
    for outcome in outcomes:
        if outcome.error is not None:
            raise named(outcome.error, site.cluster, outcome.item[0].host, "runtime.files") from outcome.error


def _ray_command(site: Site, nodes: Sequence[NodePlan], member: Member, ports: HeadPorts, seal: Seal) -> Command:
    node = nodes[member.rank]
    slot, slots = (member.rank, len(nodes)) if site.local else (0, 1)
    ray = RayNode(
        rank=node.rank,
        ip=node.ip,
        cpus=node.cpus,
        gpus=len(node.gpus),
        resources={**Counter(accelerator_name(gpu.name, gpu.memory_gib) for gpu in node.gpus), **node.custom},
        layout=node.layout,
        ports=NodePorts.for_rank(slot, _port_base(site, member), nodes_on_machine=slots),
        seal=seal,
    )
    if node.rank == 0:
        return head_start(ray, ports, cluster_id=site.cluster_id)
    return worker_start(ray, f"{nodes[0].ip}:{ports.ray}", cluster_id=site.cluster_id)


def _record(member: Member, node: NodePlan, ready: dict[str, Any]) -> NodeRecord:
    seen = {entry.get("rank"): entry for entry in ready.get("nodes", ())}
    return NodeRecord(
        rank=member.rank,
        host=member.host,
        address=member.address,
        internal_ip=member.ip,
        root=node.layout.root,
        temp_dir=node.layout.temp_dir,
        env=node.layout.runtime_env,
        python=node.python,
        cpus=node.cpus,
        memory_gib=node.memory_gib,
        gpus=member.gpus,
        price_per_hour=member.price_per_hour,
        custom=member.custom,
        runtime_digest=node.runtime_digest,
        ray_node_id=str(seen.get(member.rank, {}).get("node_id", "")),
    )
