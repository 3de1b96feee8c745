"""Offers: machines that could serve a request, and the reasons of those that cannot."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from skylib.models.frozen_map import FrozenMap
from skylib.models.node import Gpu, HostAddress

__all__ = ["Offer", "Refusal", "Survey"]


@attrs.frozen(kw_only=True)
class Offer:
    """One machine (SSH host, this machine, later an instance type) that is free to be a node.

    infra: "local" or "ssh/<pool>". host: the provider's name for it, unique within the infra. price_per_hour: dollars,
    None when its owner gave none. memory_gib, disk_free_gib: as probed.
    custom: what its owner says there is besides, name to count.
    capacity: how many nodes of one cluster it can be at once (1 for an SSH host).
    """

    infra: str
    host: str
    address: HostAddress
    cpus: int
    memory_gib: float
    disk_free_gib: float = 0.0
    gpus: tuple[Gpu, ...] = ()
    price_per_hour: float | None = None
    custom: FrozenMap[str, float] = attrs.field(factory=FrozenMap)
    labels: Mapping[str, str] = attrs.field(factory=dict)
    capacity: int = 1


@attrs.frozen(kw_only=True)
class Refusal:
    """A machine that will not serve, and why, in words for the user.

    cause: the error that was met (unreachable, key refused, ...), None when it simply does not fit or is held.
    temporary: it could serve later (held by another cluster, unreachable). capacity: as in Offer.
    """

    infra: str
    host: str
    reason: str
    temporary: bool = False
    cause: Exception | None = attrs.field(default=None, eq=False)
    capacity: int = 1


@attrs.frozen(kw_only=True)
class Survey:
    """What a provider found for a request: who could serve, who not."""

    offers: tuple[Offer, ...] = ()
    refusals: tuple[Refusal, ...] = ()
