"""Which machines a cluster is to stand on: the cheapest that fit, and for every other one why not. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import attrs

from skylib.errors import NoCapacityError, NoOfferError
from skylib.models.node import Gpu
from skylib.models.offer import Offer, Refusal, Survey
from skylib.models.resources import Resources
from skylib.optimizer.fit import matching_gpus, why_not

__all__ = ["LostOffer", "Placement", "rank", "share"]


@attrs.frozen(kw_only=True)
class LostOffer:
    """A free machine that was not chosen, and why. fits: it could serve as well, it was only not the best."""

    offer: Offer
    reason: str
    fits: bool


@attrs.frozen(kw_only=True)
class Placement:
    """Where a cluster would stand. resources: the one candidate that it satisfies.

    chosen: one offer a node, the head first; nodes that share a machine have each their share of it (see `share`).
    """

    infra: str
    resources: Resources
    chosen: tuple[Offer, ...]
    lost: tuple[LostOffer, ...] = ()
    refusals: tuple[Refusal, ...] = ()

    @property
    def alternatives(self) -> tuple[Offer, ...]:
        """The machines that could serve as well."""
        return tuple(each.offer for each in self.lost if each.fits)

    @property
    def price_per_hour(self) -> float | None:
        """Dollars an hour of all nodes that have a price; None when none has."""
        prices = [offer.price_per_hour for offer in self.chosen if offer.price_per_hour is not None]
        return sum(prices) if prices else None


@attrs.frozen(kw_only=True)
class _Option:
    """Enough machines of one infra for one candidate."""

    candidate: Resources
    infra: str
    slots: tuple[tuple[int, Offer], ...]  # place in the survey, and what one node gets there

    @property
    def cost(self) -> float:
        return math.fsum(_price(offer) for _, offer in self.slots)


def rank(survey: Survey, resources: Resources, num_nodes: int, *, held: Collection[tuple[str, str]] = ()) -> Placement:
    """The cheapest `num_nodes` offers of one infra; an offer without a price belongs to the user and counts as free.

    Of equal prices, infras count in the order of the survey, then hosts with the fewest GPUs to spare, then the order
    of the survey, in which also the head is the first. With an order among the candidates the first that can be had is
    taken, whatever it costs. held: (infra, host) of machines that the cluster has already; they come before all others.

    Raises NoCapacityError when it could be had once hosts are free or answer, NoOfferError when it cannot; both carry
    `reasons` (host -> why not), `attempts` (the same as Refusals) and num_nodes.
    """
    options: list[_Option] = []
    for candidate in resources.candidates():
        found = _options(survey, candidate, num_nodes, frozenset(held))
        options += found
        if found and resources.is_ordered:
            break
    if not options:
        raise _nothing(survey, resources, num_nodes)
    infras = _infras(survey)
    held_infras = {infra for infra, _ in held}
    best = min(options, key=lambda option: (option.infra not in held_infras, option.cost, infras.index(option.infra)))
    return Placement(
        infra=best.infra,
        resources=best.candidate,
        chosen=tuple(offer for _, offer in sorted(best.slots, key=lambda slot: slot[0])),
        lost=tuple(_lost(survey, best, options, num_nodes)),
        refusals=survey.refusals,
    )


def share(offer: Offer, parts: int, resources: Resources) -> tuple[Offer, ...]:
    """What each of `parts` nodes on one machine gets: equal CPUs (at least 1), memory, disk and price, and GPUs.

    Each model of GPU is dealt out evenly; devices that are asked for by memory count as one model. What does not divide
    stays unused. parts 1 gives the offer itself.
    """
    if parts == 1:
        return (offer,)
    wanted = resources.accelerator
    groups: dict[str, list[Gpu]] = {}
    asked = set(matching_gpus(offer.gpus, wanted)) if wanted is not None else set()
    for gpu in offer.gpus:
        groups.setdefault("" if gpu in asked else gpu.name, []).append(gpu)
    made = []
    for part in range(parts):
        mine: list[Gpu] = []
        for group in groups.values():
            each = len(group) // parts
            mine += group[part * each : (part + 1) * each]
        price = None if offer.price_per_hour is None else offer.price_per_hour / parts
        made.append(
            attrs.evolve(
                offer,
                cpus=max(1, offer.cpus // parts),
                memory_gib=offer.memory_gib / parts,
                disk_free_gib=offer.disk_free_gib / parts,
                gpus=tuple(sorted(mine, key=lambda gpu: gpu.index)),
                price_per_hour=price,
                capacity=1,
            )
        )
    return tuple(made)


def _options(
    survey: Survey, candidate: Resources, num_nodes: int, held: frozenset[tuple[str, str]]
) -> list[_Option]:
    """One option for each infra that has enough for the candidate: its cheapest."""
    fitting: dict[str, list[tuple[int, Offer]]] = {}
    for place, slot in _slots(survey, candidate, num_nodes):
        if not why_not(slot, candidate):
            fitting.setdefault(slot.infra, []).append((place, slot))

    def order(slot: tuple[int, Offer]) -> tuple[bool, float, int, int]:
        place, offer = slot
        return ((offer.infra, offer.host) not in held, _price(offer), len(offer.gpus), place)

    return [
        _Option(candidate=candidate, infra=infra, slots=tuple(sorted(slots, key=order)[:num_nodes]))
        for infra, slots in fitting.items()
        if len(slots) >= num_nodes
    ]


def _slots(survey: Survey, candidate: Resources, num_nodes: int) -> list[tuple[int, Offer]]:
    return [
        (place, part)
        for place, offer in enumerate(survey.offers)
        for part in share(offer, max(1, min(offer.capacity, num_nodes)), candidate)
    ]


def _price(offer: Offer) -> float:
    return offer.price_per_hour or 0.0


def _infras(survey: Survey) -> list[str]:
    return list(dict.fromkeys(offer.infra for offer in survey.offers))


def _lost(survey: Survey, best: _Option, options: Sequence[_Option], num_nodes: int) -> list[LostOffer]:
    taken = {place for place, _ in best.slots}
    dearest = max(_price(offer) for _, offer in best.slots)
    lost = []
    for place, offer in enumerate(survey.offers):
        if place in taken:
            continue
        parts = share(offer, max(1, min(offer.capacity, num_nodes)), best.candidate)
        reasons = why_not(parts[0], best.candidate)
        others = [option for option in options if option.infra == offer.infra]
        fits = any(not why_not(parts[0], option.candidate) for option in others)
        if offer.infra == best.infra and not reasons:
            lost.append(LostOffer(offer=offer, reason=_behind(offer, dearest, num_nodes), fits=True))
        elif fits:
            cheapest = min(option.cost for option in others)
            lost.append(LostOffer(offer=offer, reason=_elsewhere(offer, best, cheapest), fits=True))
        else:
            reason = ", ".join(reasons) or f"{offer.infra} has too few hosts that fit, {num_nodes} asked"
            lost.append(LostOffer(offer=offer, reason=reason, fits=False))
    return lost


def _behind(offer: Offer, dearest: float, num_nodes: int) -> str:
    if _price(offer) > dearest:
        return f"costs ${_price(offer):g} an hour, those chosen at most ${dearest:g}"
    return f"not needed: {num_nodes} asked, others come first"


def _elsewhere(offer: Offer, best: _Option, cheapest: float) -> str:
    if cheapest > best.cost:
        return f"{offer.infra} costs ${cheapest:g} an hour, {best.infra} ${best.cost:g}"
    return f"{best.infra} comes before {offer.infra}"


def _nothing(survey: Survey, resources: Resources, num_nodes: int) -> NoCapacityError | NoOfferError:
    refusals = [*survey.refusals]
    could_serve: dict[str, int] = {}
    for refusal in survey.refusals:
        could_serve[refusal.infra] = could_serve.get(refusal.infra, 0) + (refusal.capacity if refusal.temporary else 0)
    best = 0
    for candidate in resources.candidates():
        free: dict[str, int] = {}
        for _, slot in _slots(survey, candidate, num_nodes):
            free[slot.infra] = free.get(slot.infra, 0) + (not why_not(slot, candidate))
        best = max([best, *(free.get(infra, 0) + could_serve.get(infra, 0) for infra in {*free, *could_serve})])
    refusals += _unfit(survey, resources, num_nodes)
    reasons = _by_host(refusals)
    nodes = "1 node" if num_nodes == 1 else f"{num_nodes} nodes"
    facts = {
        "reasons": reasons,
        "attempts": tuple(refusals),
        "num_nodes": num_nodes,
        "evidence": "\n".join(f"{host}: {reason}" for host, reason in reasons.items()) or None,
    }
    asked = ", ".join(f"{key}: {value}" for key, value in resources.to_plain().items()) or "anything"
    if best >= num_nodes:
        return NoCapacityError(f"not enough hosts are free now for {nodes} of {asked}", **facts)
    hint = None if reasons else "there are no hosts: name them in ssh_node_pools.yaml, or ask for infra: local"
    return NoOfferError(f"nothing can serve {nodes} of {asked}", hint=hint, **facts)


def _unfit(survey: Survey, resources: Resources, num_nodes: int) -> list[Refusal]:
    """Why each free machine does not do; those that would, had there been enough of them, say so."""
    found = []
    candidates = resources.candidates()
    for offer in survey.offers:
        reasons: dict[str, None] = {}
        for candidate in candidates:
            parts = max(1, min(offer.capacity, num_nodes))
            each = why_not(share(offer, parts, candidate)[0], candidate)
            of = f" for each of {parts} nodes on it" if parts > 1 else ""
            reasons.update(dict.fromkeys(f"{reason}{of}" for reason in each or ("fits, but there are too few",)))
        found.append(Refusal(infra=offer.infra, host=offer.host, reason="; ".join(reasons)))
    return found


def _by_host(refusals: Sequence[Refusal]) -> dict[str, str]:
    """Host -> reason; a host that is named in several infras goes by "host (infra)"."""
    infras: dict[str, set[str]] = {}
    for refusal in refusals:
        infras.setdefault(refusal.host, set()).add(refusal.infra)
    named: dict[str, list[str]] = {}
    for refusal in refusals:
        name = refusal.host if len(infras[refusal.host]) == 1 and refusal.host else f"{refusal.host} ({refusal.infra})"
        named.setdefault(name.strip(), []).append(refusal.reason)
    return {name: "; ".join(reasons) for name, reasons in named.items()}
