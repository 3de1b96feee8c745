"""The user's own machines over SSH, in pools: `ssh/<pool>`. A machine's account serves one cluster at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from skylib.errors import NoCapacityError, SkyError
from skylib.models.infra import Infra
from skylib.models.node import NodeFacts
from skylib.models.offer import Offer, Refusal, Survey
from skylib.models.receipts import InfraStatus
from skylib.models.resources import Resources
from skylib.optimizer.fit import why_not, why_not_any
from skylib.providers.base import NodeHandle, NodeSpec, NodeState, ProviderContext
from skylib.providers.gather import gather
from skylib.providers.pool_file import Pool, PoolHost, pick_pools
from skylib.providers.refusals import held_here, mark_of_another, refusal_of
from skylib.transport.fanout import fanout

__all__ = ["SshPoolProvider"]

_JITTER_S = 0.02  # connections through one jump host do not come as a volley


class SshPoolProvider:
    """Hosts of `ssh_node_pools.yaml`. A survey connects to every host that this home does not hold, all at once.

    When enough of them fit, the others have ProviderContext.patience_s more to answer: a host that is down does not
    hold up a launch that can do without it.
    """

    name = "ssh"
    preference = 10

    def survey(self, want: Resources, num_nodes: int, context: ProviderContext) -> Survey:
        file = context.home.ssh_node_pools
        pools: dict[str, Pool] = {}
        known = context.pools()
        for infra in _infras_of(want):
            pools.update((pool.name, pool) for pool in pick_pools(known, infra, file=file))
        asked = [(pool, host) for pool in pools.values() for host in pool.hosts]
        found = gather(
            lambda pair: _offer(pair[0], pair[1], want, context),
            asked,
            late=lambda pair: _late(pair[0], pair[1], context),
            enough=lambda so_far: _enough(so_far, want, num_nodes),
            patience_s=context.patience_s,
            limit=context.max_at_once,
            jitter_s=_JITTER_S,
        )
        return Survey(
            offers=tuple(each for each in found if isinstance(each, Offer)),
            refusals=tuple(each for each in found if isinstance(each, Refusal)),
        )

    def check(self, context: ProviderContext) -> Sequence[InfraStatus]:
        pools = tuple(context.pools().values())
        asked = [(pool, host) for pool in pools for host in pool.hosts]
        found = fanout(
            lambda pair: _ask(pair[0], pair[1], context), asked, limit=context.max_at_once, jitter_s=_JITTER_S
        )
        answers = {(pool.name, host.name): each.get() for (pool, host), each in zip(asked, found, strict=True)}
        return tuple(
            _status(pool, {host.name: answers[pool.name, host.name] for host in pool.hosts}) for pool in pools
        )

    def create(self, spec: NodeSpec, context: ProviderContext) -> tuple[NodeHandle, ...]:
        """The hosts as they are in the pool file now. NoCapacityError when one is gone from it or held by another."""
        file = context.home.ssh_node_pools
        (pool,) = pick_pools(context.pools(), Infra.parse(spec.infra), file=file)
        hosts = {host.name: host for host in pool.hosts}
        reasons: dict[str, str] = {}
        for offer in spec.offers:
            held = held_here(context.claims, infra=spec.infra, host=offer.host, cluster_name=spec.cluster_name)
            if held is not None:
                reasons[offer.host] = held.reason
            elif offer.host not in hosts:
                reasons[offer.host] = f"is no longer in pool {pool.name!r} of {file}"
        if reasons:
            raise NoCapacityError(
                f"hosts of {spec.infra} are no longer free: {', '.join(reasons)}",
                cluster=spec.cluster_name,
                reasons=reasons,
                evidence="\n".join(f"{host}: {reason}" for host, reason in reasons.items()),
            )
        return tuple(
            NodeHandle(rank=rank, infra=spec.infra, host=offer.host, address=hosts[offer.host].address)
            for rank, offer in enumerate(spec.offers)
        )

    def observe(self, nodes: Sequence[NodeHandle], context: ProviderContext) -> Mapping[NodeHandle, NodeState]:
        """RUNNING when it answers; own hosts are never known to be gone."""

        def state(node: NodeHandle) -> NodeState:
            try:
                context.probes.facts(node.address)
            except SkyError:
                return NodeState.UNKNOWN
            return NodeState.RUNNING

        return {each.item: each.get() for each in fanout(state, nodes, limit=context.max_at_once)}

    def terminate(self, nodes: Sequence[NodeHandle], context: ProviderContext) -> None:
        """Nothing: the hosts are the user's."""


def _infras_of(want: Resources) -> list[Infra | None]:
    """The places among the candidates that may be here, each once."""
    infras = [candidate.infra for candidate in want.candidates()]
    return [
        infra
        for infra in dict.fromkeys(infras)
        if infra is None or infra.cloud in (None, SshPoolProvider.name)
    ]


def _ask(pool: Pool, host: PoolHost, context: ProviderContext) -> NodeFacts | Refusal:
    try:
        return context.probes.facts(host.address)
    except SkyError as error:
        return refusal_of(error, infra=pool.infra, host=host.name)


def _offer(pool: Pool, host: PoolHost, want: Resources, context: ProviderContext) -> Offer | Refusal:
    held = held_here(context.claims, infra=pool.infra, host=host.name, cluster_name=context.cluster_name)
    if held is not None:
        return held
    facts = _ask(pool, host, context)
    if isinstance(facts, Refusal):
        return facts
    marked = mark_of_another(facts, infra=pool.infra, host=host.name, cluster_id=context.cluster_id)
    offer = Offer(
        infra=pool.infra,
        host=host.name,
        address=host.address,
        cpus=facts.cpus,
        memory_gib=facts.memory_gib,
        disk_free_gib=facts.disk_free_gib,
        gpus=facts.gpus,
        price_per_hour=host.price_per_hour,
        custom=host.custom,
    )
    reasons = why_not_any(offer, want)
    if reasons:
        words = [*([marked.reason] if marked else []), *reasons, *facts.notes]
        return Refusal(infra=pool.infra, host=host.name, reason=", ".join(words))
    return marked or offer


def _late(pool: Pool, host: PoolHost, context: ProviderContext) -> Refusal:
    reason = f"did not answer within {context.patience_s:g} s of the others, which are enough"
    return Refusal(infra=pool.infra, host=host.name, reason=reason, temporary=True)


def _enough(found: Sequence[Offer | Refusal], want: Resources, num_nodes: int) -> bool:
    """Whether one pool can serve already: any candidate, or the first where there is an order of preference."""
    candidates = want.candidates()
    offers = [each for each in found if isinstance(each, Offer)]
    for candidate in candidates[:1] if want.is_ordered else candidates:
        infras = [offer.infra for offer in offers if not why_not(offer, candidate)]
        if any(infras.count(infra) >= num_nodes for infra in set(infras)):
            return True
    return False


def _status(pool: Pool, answers: Mapping[str, NodeFacts | Refusal]) -> InfraStatus:
    problems = [f"{name}: {answer.reason}" for name, answer in answers.items() if isinstance(answer, Refusal)]
    usable = tuple(name for name, answer in answers.items() if not isinstance(answer, Refusal))
    for name, answer in answers.items():
        if isinstance(answer, NodeFacts):
            problems += [f"{name}: {note}" for note in answer.notes]
            if not answer.pythons and not answer.uv and not answer.conda:
                problems.append(f"{name}: no Python, conda or uv was found")
    reason = "" if usable else "no host of the pool can be used"
    return InfraStatus(infra=pool.infra, usable=bool(usable), reason=reason, hosts=usable, problems=tuple(problems))
