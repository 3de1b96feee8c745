"""What clusters were in use for, and what that cost."""

from __future__ import annotations

import attrs

__all__ = ["ClusterCost"]


@attrs.frozen(kw_only=True)
class ClusterCost:
    """One life of a cluster, as far as it lies in the window of a report. Times are unix seconds, money is dollars.

    seconds: for which it was in use; stopped, failed and provisioning times are not. running: it still is. prices: of
    its nodes by rank, dollars an hour, as they were when it was launched; None where the owner gave none. ended_at: None
    while the cluster exists.
    """

    name: str
    cluster_id: str
    infra: str
    launched_at: float
    ended_at: float | None
    seconds: float
    running: bool
    prices: tuple[float | None, ...]

    @property
    def num_nodes(self) -> int:
        return len(self.prices)

    @property
    def hours(self) -> float:
        """For which the cluster was in use."""
        return self.seconds / 3600

    @property
    def node_hours(self) -> float:
        """The same, for each of its nodes."""
        return self.hours * self.num_nodes

    @property
    def price_per_hour(self) -> float | None:
        """Dollars an hour of all nodes; None when one has no price."""
        known = [price for price in self.prices if price is not None]
        return sum(known) if len(known) == len(self.prices) else None

    @property
    def cost(self) -> float | None:
        """Dollars; None when a node has no price."""
        price = self.price_per_hour
        return None if price is None else price * self.hours

    @property
    def priced_cost(self) -> float:
        """Dollars of the nodes that have a price."""
        return sum(price for price in self.prices if price is not None) * self.hours

    @property
    def unpriced_node_hours(self) -> float:
        """Node-hours that are not in priced_cost."""
        return self.hours * sum(price is None for price in self.prices)
