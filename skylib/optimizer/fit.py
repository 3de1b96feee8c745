"""Does this machine, or this cluster, have what is asked for? Pure; answers are words for the user.

An exact amount ("4") is met by a bigger machine as well as "4+": own machines are not sold in sizes, and the cluster
that takes one has all of it. Fields that say nothing about a machine (ports, labels, autostop, ...) are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from skylib.catalog.accelerators import accelerator_matches, accelerator_name, device_memory_gb
from skylib.models.accelerators import Accelerator
from skylib.models.cluster import ClusterRecord
from skylib.models.infra import Infra
from skylib.models.node import Gpu
from skylib.models.offer import Offer
from skylib.models.resources import Resources
from skylib.models.units import Amount, format_number

__all__ = ["custom_name", "describe_gpus", "fits_cluster", "in_place", "matching_gpus", "why_not", "why_not_any"]

_ROUNDING = 0.07  # of memory: firmware and kernel keep some of what a machine is sold with


def why_not(offer: Offer, resources: Resources) -> tuple[str, ...]:
    """Every reason why the machine cannot be a node of this one candidate; empty when it can.

    An offer with a capacity above 1 is looked at as if it were one node alone: see rank.share.
    """
    reasons: list[str] = []
    if resources.infra is not None and not in_place(offer.infra, resources.infra):
        reasons.append(f"is in {offer.infra}, {resources.infra} asked")
    if resources.instance_type is not None:
        reasons.append(f"has no instance types, {resources.instance_type} asked")
    if resources.use_spot:
        reasons.append("is not sold as spot")
    reasons += _cpus(offer.cpus, resources.cpus)
    reasons += _memory(offer.memory_gib, offer.cpus, resources.memory)
    if resources.disk_size is not None and offer.disk_free_gib < resources.disk_size:
        reasons.append(f"has {_gib(offer.disk_free_gib)} GB of disk free, {resources.disk_size} asked")
    if resources.accelerator is not None:
        reasons += _accelerators(offer.gpus, offer.custom, resources.accelerator)
    if resources.max_hourly_cost is not None and (offer.price_per_hour or 0.0) > resources.max_hourly_cost:
        reasons.append(f"costs ${offer.price_per_hour:g} an hour, at most ${resources.max_hourly_cost:g} asked")
    return tuple(reasons)


def why_not_any(offer: Offer, resources: Resources) -> tuple[str, ...]:
    """Empty when the machine can serve one of the candidates; else every reason once, in the candidates' order."""
    reasons: dict[str, None] = {}
    for candidate in resources.candidates():
        found = why_not(offer, candidate)
        if not found:
            return ()
        reasons.update(dict.fromkeys(found))
    return tuple(reasons)


def fits_cluster(record: ClusterRecord, resources: Resources, num_nodes: int) -> tuple[str, ...]:
    """Every reason why a task cannot run on a cluster that exists; empty when it can.

    One candidate that fits `num_nodes` of its nodes is enough. Price and disk_size are not looked at: it stands already.
    """
    if num_nodes > record.num_nodes:
        return (f"has {_count(record.num_nodes, 'node')}, {num_nodes} asked",)
    reasons: dict[str, None] = {}
    for candidate in resources.candidates():
        found = _cluster_reasons(record, candidate, num_nodes)
        if not found:
            return ()
        reasons.update(dict.fromkeys(found))
    return tuple(reasons)


def _cluster_reasons(record: ClusterRecord, wanted: Resources, num_nodes: int) -> tuple[str, ...]:
    reasons: list[str] = []
    if wanted.infra is not None and not in_place(record.infra, wanted.infra):
        reasons.append(f"is in {record.infra}, {wanted.infra} asked")
    if wanted.use_spot:
        reasons.append("is not spot")
    if wanted.instance_type is not None:
        reasons.append(f"has no instance types, {wanted.instance_type} asked")
    fitting, per_node = 0, dict[str, None]()
    for node in record.nodes:
        found = [*_cpus(node.cpus, wanted.cpus), *_memory(node.memory_gib, node.cpus, wanted.memory)]
        if wanted.accelerator is not None:
            found += _accelerators(node.gpus, node.custom, wanted.accelerator)
        fitting += not found
        per_node.update(dict.fromkeys(f"node {node.rank} ({node.host}) {reason}" for reason in found))
    if fitting < num_nodes:
        reasons += per_node or [f"its nodes are not known yet ({record.status.value})"]
    return tuple(reasons)


def in_place(infra: str, wanted: Infra) -> bool:
    """Whether "ssh/lab" is what `wanted` names; its parts that are None may be anything."""
    found = Infra.parse(infra)
    pairs = ((wanted.cloud, found.cloud), (wanted.region, found.region), (wanted.zone, found.zone))
    return all(want is None or want == have for want, have in pairs)


def matching_gpus(gpus: Sequence[Gpu], wanted: Accelerator) -> tuple[Gpu, ...]:
    """The devices that are what is asked for, in index order; they may be of several models when memory is asked."""
    return tuple(gpu for gpu in gpus if accelerator_matches(wanted, gpu))


def describe_gpus(gpus: Sequence[Gpu]) -> str:
    """ "2 x A100-80GB, 1 x L4", models in the order in which they come; "no GPU" when there is none."""
    counts: dict[str, int] = {}
    for gpu in gpus:
        name = accelerator_name(gpu.name, gpu.memory_gib)
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} x {name}" for name, count in counts.items()) or "no GPU"


def _cpus(found: int, wanted: Amount | None) -> list[str]:
    if wanted is None or found >= wanted.value:
        return []
    return [f"has {_count(found, 'CPU')}, {wanted} asked"]


def _memory(found_gib: float, cpus: int, wanted: Amount | None) -> list[str]:
    if wanted is None:
        return []
    asked = wanted.resolved(cpus)
    if found_gib * (1 + _ROUNDING) >= asked.value:
        return []
    plus = "+" if asked.at_least else ""
    return [f"has {_gib(found_gib)} GB of memory, {format_number(asked.value)}{plus} asked"]


def custom_name(custom: Mapping[str, float], wanted: Accelerator) -> str | None:
    """What the owner calls the resource that is asked for in the place of an accelerator; None when it is none of these."""
    return next((name for name in custom if wanted.name and name.lower() == wanted.name.lower()), None)


def _accelerators(gpus: Sequence[Gpu], custom: Mapping[str, float], wanted: Accelerator) -> list[str]:
    name = custom_name(custom, wanted)
    if name is None:
        return _gpus(gpus, wanted)
    if custom[name] >= wanted.count:
        return []
    return [f"has {format_number(custom[name])} x {name}, {format_number(wanted.count)} asked"]


def _gpus(gpus: Sequence[Gpu], wanted: Accelerator) -> list[str]:
    found, asked = len(matching_gpus(gpus, wanted)), math.ceil(wanted.count)
    if found >= asked:
        return []
    if found:
        return [f"has {found} x {_what(wanted)}, {format_number(wanted.count)} asked"]
    if not gpus:
        return [f"has no {_what(wanted)} (no GPU)"]
    if wanted.memory is not None:
        sizes = ", ".join(f"{size} GB" for size in sorted({device_memory_gb(gpu.memory_gib) for gpu in gpus}))
        return [f"has no {_what(wanted)} (has {describe_gpus(gpus)}, with {sizes} each)"]
    return [f"has no {_what(wanted)} (has {describe_gpus(gpus)})"]


def _what(wanted: Accelerator) -> str:
    if wanted.memory is None:
        return str(wanted.name)
    return f"GPU with {format_number(wanted.memory.value)} GB{' or more' if wanted.memory.at_least else ''}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _gib(value: float) -> str:
    return format_number(round(value, 1))
