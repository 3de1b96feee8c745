"""What a launch would do, as data."""

from __future__ import annotations

import attrs

from skylib.models.offer import Offer, Refusal
from skylib.models.task import Task

__all__ = ["Plan", "PlanStep"]


@attrs.frozen(kw_only=True)
class PlanStep:
    """One step on one host ("" means the whole cluster). skipped: it is already so; detail says why, or what it does."""

    step: str
    host: str = ""
    skipped: bool = False
    detail: str = ""


@attrs.frozen(kw_only=True)
class Plan:
    """What launch(task, cluster_name) would do now. launch(plan) takes exactly these hosts, or fails and says what changed.

    chosen: one offer per node, the head first; empty when the cluster stands already. alternatives: what could serve as
    well; refusals: what could not, and why. price_per_hour: dollars of all nodes, None when no owner gave a price.
    """

    cluster_name: str
    task: Task
    infra: str
    exists: bool
    chosen: tuple[Offer, ...] = ()
    alternatives: tuple[Offer, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    steps: tuple[PlanStep, ...] = ()

    @property
    def price_per_hour(self) -> float | None:
        prices = [offer.price_per_hour for offer in self.chosen if offer.price_per_hour is not None]
        return sum(prices) if prices else None
