"""From machines to a cluster: check, environment, small files, Ray and agent on all nodes, and Ray's own word for it.

Every step is skipped where it is already so, and each is an event with seconds. What fails is told with host, step and
the tail of stderr; the caller then takes everything away again (runtime/teardown.py).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from skylib.catalog.accelerators import accelerator_name
from skylib.errors import BringUpError, PreflightError, SkyError
from skylib.events import EventSink, span
from skylib.models.cluster import AutostopRecord, NodeRecord
from skylib.models.node import Gpu, HostAddress, NodeFacts
from skylib.runtime.agent_bundle import Bundle, build_bundle
from skylib.runtime.agent_client import AgentClient, daemon_command
from skylib.runtime.blame import failed_start, named
from skylib.runtime.environment import Environment
from skylib.runtime.layout import NodeLayout
from skylib.runtime.node_files import REFUSALS, NodePlan, agent_config, cluster_mark, refusal, write_files
from skylib.runtime.ports import HeadPorts, NodePorts, free_base
from skylib.runtime.preflight import (
    Problem,
    check_disk,
    choose_head_ports,
    choose_temp_dir,
    foreign_cluster,
    no_ports,
    raise_problems,
)
from skylib.runtime.race import Race
from skylib.runtime.ray_commands import RayNode, head_start, worker_start
from skylib.transport.base import Transport
from skylib.transport.command import Command
from skylib.transport.fanout import fanout

__all__ = ["Member", "Site", "StandingCluster", "Tools", "bring_up"]

DAEMON_TIMEOUT_S = 60.0
ENDING_S = 15.0  # how long a failed start waits for its other steps

# $1 a log file, then a command: runs it so that it outlives this channel, and tells its end and last words.
_DETACHED = """
log="$1"; shift
nohup "$@" >"$log" 2>&1 </dev/null &
wait $!; rc=$?
[ $rc = 0 ] || tail -c 4000 "$log" >&2
exit $rc
"""


@attrs.frozen(kw_only=True)
class Member:
    """One machine that is to be a node. ip: where the other nodes reach it. root: what `$HOME` is there for us."""

    rank: int
    host: str
    address: HostAddress
    facts: NodeFacts
    ip: str
    root: str
    env: str
    cpus: int
    memory_gib: float
    gpus: tuple[Gpu, ...] = ()
    price_per_hour: float | None = None


@attrs.frozen(kw_only=True)
class Site:
    """The cluster that is to stand: its names and its members, the head first."""

    cluster: str
    cluster_id: str
    infra: str
    owner: str
    user: str
    home: str
    members: tuple[Member, ...]
    autostop: AutostopRecord | None = None
    lease_s: float | None = None
    launched_at: float = 0.0
    resources: Mapping[str, object] = attrs.field(factory=dict)

    @property
    def temp_dir(self) -> str:
        """Ray's, the same on every node."""
        return choose_temp_dir([member.facts for member in self.members])

    @property
    def local(self) -> bool:
        """Several nodes share one machine."""
        return self.members[0].address.kind == "local"


@attrs.frozen(kw_only=True)
class Tools:
    """What bring-up works with. environment: makes (or finds) the private environment of one machine.

    while_starting: done beside Ray's start (files to the nodes); bring-up returns when that is done, too.
    """

    transport: Callable[[HostAddress], Transport]
    environment: Callable[[Transport, NodeFacts, NodeLayout], Environment]
    agent: Callable[[Transport, NodePlan], AgentClient]
    events: EventSink
    while_starting: Callable[[Sequence[NodePlan]], None] = lambda nodes: None
    timeout_s: float = 300.0
    min_disk_gib: float = 1.0


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
    _deliver_files(site, nodes, ports, bundle, environments[0].ray_version, tools)
    with span(tools.events, "runtime.start", cluster=site.cluster, nodes=len(nodes)):
        agent, ready = _start(site, nodes, ports, tools)
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
        )
        for member, environment in zip(site.members, environments, strict=True)
    ]


def _told(member: Member) -> HostAddress:
    """How to reach it, for cluster.json: another machine may have another user of the same name of a host in mind."""
    address = member.address
    return attrs.evolve(address, user=address.user or member.facts.user) if address.kind == "ssh" else address


def _deliver_files(
    site: Site, nodes: Sequence[NodePlan], ports: HeadPorts, bundle: Bundle, ray_version: str, tools: Tools
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
            ray_start=_ray_command(site, nodes, member, ports),
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
            answer = transport.run(command, stdin=stdin, timeout_s=DAEMON_TIMEOUT_S)
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


def _start(
    site: Site, nodes: Sequence[NodePlan], ports: HeadPorts, tools: Tools
) -> tuple[AgentClient, dict[str, Any]]:
    """Ray and agents on all nodes at once. The agents import what they need while Ray comes up.

    After a failure no step begins anything, and those under way were waited for (ENDING_S): the caller may undo.
    """
    agent = tools.agent(tools.transport(site.members[0].address), nodes[0])
    race = Race()
    daemons = threading.Event()

    def act(member: Member, command: Command, timeout_s: float) -> None:
        transport = tools.transport(member.address)
        race.check()
        transport.run(command, timeout_s=timeout_s).check()

    def ray(member: Member, node: NodePlan) -> None:
        with span(tools.events, "runtime.ray_head" if node.rank == 0 else "runtime.ray_worker", node=member.host):
            command = _ray_command(site, nodes, member, ports)
            act(member, _detached(command, f"{node.layout.sky}/ray_start.log"), tools.timeout_s)

    def daemon(member: Member, node: NodePlan) -> None:
        with span(tools.events, "runtime.agent", node=member.host):
            act(member, daemon_command(node.python, node.layout, site.cluster_id), DAEMON_TIMEOUT_S)
        if node.rank == 0:
            daemons.set()

    def ready() -> dict[str, Any]:
        if not daemons.wait(DAEMON_TIMEOUT_S):
            raise BringUpError("the agent did not start", cluster=site.cluster, host=nodes[0].host, step="runtime.agent")
        race.check()
        with span(tools.events, "runtime.ready", node=nodes[0].host):
            return agent.call("ready", answer_within_s=tools.timeout_s + 10, timeout_s=tools.timeout_s)

    def files() -> None:
        race.check()
        tools.while_starting(nodes)

    try:
        for member, node in zip(site.members, nodes, strict=True):
            race.go(f"ray-{node.rank}", partial(_blame, ray, site, member, node, "runtime.ray"))
            race.go(f"agent-{node.rank}", partial(_blame, daemon, site, member, node, "runtime.agent"))
        race.go("ready", ready)
        race.go("files", files)
        agents = {f"agent-{node.rank}" for node in nodes}  # Ray has all nodes before a worker's agent may stand
        return agent, race.until({"ready", "files", *agents}, tools.timeout_s)["ready"]
    except BaseException as error:
        race.stop()
        with span(tools.events, "runtime.stop", cluster=site.cluster) as step:
            daemons.set()
            step.note(still_running=_end(race, agent))
        known = failed_start(error, site.cluster, [node.host for node in nodes], tools.timeout_s)
        if known is error:
            raise
        raise known from error


def _end(race: Race, agent: AgentClient) -> tuple[str, ...]:
    """Wait for what is under way, at most ENDING_S; who asks the agent just then, or asks it again, is cut short."""
    deadline = time.monotonic() + ENDING_S
    while True:
        agent.close()
        running = race.join(0.2)
        if not running or time.monotonic() > deadline:
            return running


def _blame(act: Callable[[Member, NodePlan], None], site: Site, member: Member, node: NodePlan, step: str) -> None:
    try:
        act(member, node)
    except SkyError as error:
        raise named(error, site.cluster, member.host, step) from error


def _ray_command(site: Site, nodes: Sequence[NodePlan], member: Member, ports: HeadPorts) -> Command:
    node = nodes[member.rank]
    slot, slots = (member.rank, len(nodes)) if site.local else (0, 1)
    ray = RayNode(
        rank=node.rank,
        ip=node.ip,
        cpus=node.cpus,
        gpus=len(node.gpus),
        resources=dict(Counter(accelerator_name(gpu.name, gpu.memory_gib) for gpu in node.gpus)),
        layout=node.layout,
        ports=NodePorts.for_rank(slot, _port_base(site, member), nodes_on_machine=slots),
    )
    if node.rank == 0:
        return head_start(ray, ports, cluster_id=site.cluster_id)
    return worker_start(ray, f"{nodes[0].ip}:{ports.ray}", cluster_id=site.cluster_id)


def _detached(command: Command, log: str) -> Command:
    return Command.sh(_DETACHED, log, *command.words(), env=command.env, cwd=command.cwd)


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
        runtime_digest=node.runtime_digest,
        ray_node_id=str(seen.get(member.rank, {}).get("node_id", "")),
    )
