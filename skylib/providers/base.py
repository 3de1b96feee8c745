"""What a provider of machines can do. Every one passes tests/contract/test_provider.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Protocol, runtime_checkable

import attrs

from skylib.events import EventSink, discard, span
from skylib.facts.hardware import probe
from skylib.models.node import HostAddress, NodeFacts
from skylib.models.offer import Offer, Survey
from skylib.models.receipts import InfraStatus
from skylib.models.resources import Resources
from skylib.paths import SkyHome
from skylib.providers.pool_file import Pool, read_pools
from skylib.transport.base import Transport

__all__ = ["NodeHandle", "NodeMaker", "NodeSpec", "NodeState", "Probes", "Provider", "ProviderContext"]


class Probes:
    """What nodes answered, each asked once: the cache of one operation. Safe to use from several threads."""

    __slots__ = ("_events", "_found", "_lock", "_transports")

    def __init__(self, transports: Callable[[HostAddress], Transport], events: EventSink = discard) -> None:
        self._transports = transports
        self._events = events
        self._lock = threading.Lock()
        self._found: dict[HostAddress, NodeFacts] = {}

    def facts(self, address: HostAddress) -> NodeFacts:
        """Facts of a node, probed when nobody has yet. Raises TransportError and FactError as they come; not kept."""
        with self._lock:
            known = self._found.get(address)
        if known is not None:
            return known
        with span(self._events, "facts.probe", host=address.host) as step:
            found = probe(self._transports(address))
            step.note(cpus=found.cpus, gpus=len(found.gpus), notes=list(found.notes))
        with self._lock:
            return self._found.setdefault(address, found)

    def known(self) -> Mapping[HostAddress, NodeFacts]:
        """All answers so far."""
        with self._lock:
            return dict(self._found)


@attrs.frozen(kw_only=True)
class ProviderContext:
    """What a provider works with during one operation.

    claims: (infra, host) -> name of the cluster that holds it, of this home. cluster_name, cluster_id: the cluster that
    the machines are for; what it holds itself counts as free. max_at_once: connections that are begun together.
    patience_s: how long a survey waits for machines that have not answered when those that have are enough.
    pools: the SSH pools there are; by default those of the home's file. machine: what this machine is called in the
    state, which other machines may share.
    """

    home: SkyHome
    transports: Callable[[HostAddress], Transport]
    claims: Mapping[tuple[str, str], str] = attrs.field(factory=dict)
    cluster_name: str | None = None
    cluster_id: str | None = None
    events: EventSink = discard
    max_at_once: int = 32
    patience_s: float = 2.0
    machine: str = "localhost"
    pools: Callable[[], Mapping[str, Pool]] = attrs.field(
        default=attrs.Factory(lambda self: partial(read_pools, self.home.ssh_node_pools), takes_self=True)
    )
    probes: Probes = attrs.field(
        default=attrs.Factory(lambda self: Probes(self.transports, self.events), takes_self=True)
    )

    def facts(self, address: HostAddress) -> NodeFacts:
        """Facts of a node; asked once in this operation, so those of a survey are at hand. Raises as Probes.facts."""
        return self.probes.facts(address)


class Provider(Protocol):
    """A source of machines; found by the entry point group `skylib.providers`, called without arguments to be made.

    name: the cloud part of its infras ("ssh" for "ssh/lab"). preference: where infra is not asked for, a provider with
    a lower one is taken first among equal prices (own hosts 10, this machine 90, others in between).
    Methods may be called from several threads.
    """

    @property
    def name(self) -> str: ...

    @property
    def preference(self) -> int: ...

    def survey(self, want: Resources, num_nodes: int, context: ProviderContext) -> Survey:
        """Offers that could serve one of the candidates that may be here, and for each other machine why not.

        want.infra of a candidate: None, or one of this provider's. Raises PoolNotFound and ConfigError; what is wrong
        with one machine is its Refusal.
        """

    def check(self, context: ProviderContext) -> Sequence[InfraStatus]:
        """Each infra there is, and whether it can be used; machines in use count as usable."""


@attrs.frozen(kw_only=True)
class NodeSpec:
    """The nodes that one cluster is to have, one offer each, the head first; all of one infra."""

    cluster_name: str
    cluster_id: str
    infra: str
    offers: tuple[Offer, ...]


@attrs.frozen(kw_only=True)
class NodeHandle:
    """A machine that is a node of a cluster. host: the provider's name for it."""

    rank: int
    infra: str
    host: str
    address: HostAddress


class NodeState(str, Enum):
    """UNKNOWN: it does not answer, which does not mean that it is gone."""

    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    GONE = "GONE"
    UNKNOWN = "UNKNOWN"


@runtime_checkable
class NodeMaker(Protocol):
    """The capability to make machines nodes, and to end them. Own machines are only taken and given back."""

    def create(self, spec: NodeSpec, context: ProviderContext) -> tuple[NodeHandle, ...]:
        """The nodes, in rank order; the same spec twice gives the same nodes. Raises NoCapacityError, PoolNotFound."""

    def observe(self, nodes: Sequence[NodeHandle], context: ProviderContext) -> Mapping[NodeHandle, NodeState]:
        """How each node is now."""

    def terminate(self, nodes: Sequence[NodeHandle], context: ProviderContext) -> None:
        """End them; a node that is not there is success. Own machines stay on; what stood there was taken down before."""
