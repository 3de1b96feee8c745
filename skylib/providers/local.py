"""This machine: `local`. All nodes of a cluster stand on it side by side, each with its share.

One local cluster at a time for each account, whatever the home: Ray's port and temp dir belong to the account. Another
home's cluster is known by the cluster.json in the account's temp dir, which the probe reads; it counts while one of the
roots that it lists has its own. Where another account owns /tmp/ray_skypilot, ours is /tmp/ray_skypilot_<uid>.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from skylib.errors import NoCapacityError, SkyError
from skylib.models.node import HostAddress, NodeFacts
from skylib.models.offer import Offer, Refusal, Survey
from skylib.models.receipts import InfraStatus
from skylib.models.resources import Resources
from skylib.optimizer.fit import why_not_any
from skylib.providers.base import NodeHandle, NodeSpec, NodeState, ProviderContext
from skylib.providers.refusals import held_here, mark_of_another, refusal_of

__all__ = ["LocalProvider"]



class LocalProvider:
    """One offer, this machine, with a capacity of as many nodes as are asked for."""

    name = "local"
    preference = 90

    def survey(self, want: Resources, num_nodes: int, context: ProviderContext) -> Survey:
        found = self._look(want, num_nodes, context)
        return Survey(offers=(found,)) if isinstance(found, Offer) else Survey(refusals=(found,))

    def check(self, context: ProviderContext) -> Sequence[InfraStatus]:
        facts = _ask(context, 1)
        if isinstance(facts, Refusal):
            return (InfraStatus(infra=self.name, usable=False, reason=facts.reason),)
        return (InfraStatus(infra=self.name, usable=True, hosts=(context.machine,), problems=facts.notes),)

    def create(self, spec: NodeSpec, context: ProviderContext) -> tuple[NodeHandle, ...]:
        held = held_here(context.claims, infra=self.name, host=context.machine, cluster_name=spec.cluster_name)
        if held is not None:
            raise NoCapacityError(
                f"this machine is {held.reason}", cluster=spec.cluster_name, reasons={context.machine: held.reason}
            )
        address = _address(context)
        return tuple(
            NodeHandle(rank=rank, infra=self.name, host=address.host, address=address) for rank in range(len(spec.offers))
        )

    def observe(self, nodes: Sequence[NodeHandle], context: ProviderContext) -> Mapping[NodeHandle, NodeState]:
        """This machine runs, or nobody would ask."""
        return dict.fromkeys(nodes, NodeState.RUNNING)

    def terminate(self, nodes: Sequence[NodeHandle], context: ProviderContext) -> None:
        """Nothing: the machine is the user's."""

    def _look(self, want: Resources, num_nodes: int, context: ProviderContext) -> Offer | Refusal:
        held = held_here(
            context.claims, infra=self.name, host=context.machine, cluster_name=context.cluster_name, capacity=num_nodes
        )
        if held is not None:
            return held
        facts = _ask(context, num_nodes)
        if isinstance(facts, Refusal):
            return facts
        offer = Offer(
            infra=self.name,
            host=context.machine,
            address=_address(context),
            cpus=facts.cpus,
            memory_gib=facts.memory_gib,
            disk_free_gib=facts.disk_free_gib,
            gpus=facts.gpus,
            capacity=num_nodes,
        )
        reasons = why_not_any(offer, want)
        if reasons:
            words = ", ".join([*reasons, *facts.notes])
            return Refusal(infra=self.name, host=context.machine, reason=words, capacity=num_nodes)
        marked = mark_of_another(
            facts, infra=self.name, host=context.machine, cluster_id=context.cluster_id, capacity=num_nodes
        )
        return marked or offer


def _address(context: ProviderContext) -> HostAddress:
    return HostAddress(kind="local", host=context.machine)


def _ask(context: ProviderContext, capacity: int) -> NodeFacts | Refusal:
    try:
        return context.probes.facts(_address(context))
    except SkyError as error:
        return attrs.evolve(refusal_of(error, infra=LocalProvider.name, host=context.machine), capacity=capacity)
