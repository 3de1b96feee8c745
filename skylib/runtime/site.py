"""What a bring-up is about: the machines, the cluster that is to stand on them, and the tools to do it with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import attrs

from skylib.events import EventSink
from skylib.models.cluster import AutostopRecord
from skylib.models.frozen_map import FrozenMap
from skylib.models.node import Gpu, HostAddress, NodeFacts
from skylib.runtime.agent_client import AgentClient
from skylib.runtime.environment import Environment
from skylib.runtime.layout import NodeLayout
from skylib.runtime.node_files import NodePlan
from skylib.runtime.preflight import choose_temp_dir
from skylib.transport.base import Transport

__all__ = ["Member", "Site", "Tools"]


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
    custom: FrozenMap[str, float] = attrs.field(factory=FrozenMap)


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
    node_lost_s: float | None = None
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
