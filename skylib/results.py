"""What verbs give back that is more than records: it adds itself up, and shows itself in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from math import fsum

import attrs

from skylib.models.cost import ClusterCost
from skylib.reprs import one_line, table_html

__all__ = ["CostReport"]

_COLUMNS = ("name", "infra", "nodes", "launched", "state", "hours", "node-hours", "$/hour", "cost")


@attrs.frozen(kw_only=True, repr=False)
class CostReport:
    """What clusters were in use for between `since` and `until` (unix seconds), one row a life, the newest first.

    Iterates over its rows; pandas takes `to_dicts()`.
    """

    clusters: tuple[ClusterCost, ...]
    since: float
    until: float

    @property
    def node_hours(self) -> float:
        """Of all clusters."""
        return fsum(row.node_hours for row in self.clusters)

    @property
    def cost(self) -> float | None:
        """Dollars of all nodes that have a price; None when none has. unpriced_node_hours says how much it leaves out."""
        priced = [row for row in self.clusters if any(price is not None for price in row.prices)]
        return fsum(row.priced_cost for row in priced) if priced or not self.clusters else None

    @property
    def unpriced_node_hours(self) -> float:
        """Node-hours of nodes without a price: `cost` is without them."""
        return fsum(row.unpriced_node_hours for row in self.clusters)

    def to_dicts(self) -> list[dict[str, object]]:
        """A dict of plain values for each row, all with the same keys."""
        return [
            {
                "name": row.name,
                "cluster_id": row.cluster_id,
                "infra": row.infra,
                "num_nodes": row.num_nodes,
                "launched_at": row.launched_at,
                "ended_at": row.ended_at,
                "running": row.running,
                "seconds": row.seconds,
                "hours": row.hours,
                "node_hours": row.node_hours,
                "price_per_hour": row.price_per_hour,
                "cost": row.cost,
            }
            for row in self.clusters
        ]

    def __iter__(self) -> Iterator[ClusterCost]:
        return iter(self.clusters)

    def __len__(self) -> int:
        return len(self.clusters)

    def __repr__(self) -> str:
        unpriced = self.unpriced_node_hours
        return one_line(
            "CostReport",
            clusters=len(self.clusters),
            days=round((self.until - self.since) / 86_400, 2),
            node_hours=round(self.node_hours, 2),
            cost=_dollars(self.cost) or None,
            unpriced_node_hours=round(unpriced, 2) if unpriced else None,
        )

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [_row(row) for row in self.clusters]
        total = _dollars(self.cost)
        if self.unpriced_node_hours:
            total = f"{total} + {self.unpriced_node_hours:.2f} node-hours without a price".removeprefix(" + ")
        rows.append(("in all", None, None, None, None, None, f"{self.node_hours:.2f}", None, total))
        return table_html(_COLUMNS, rows)


def _row(row: ClusterCost) -> tuple[object, ...]:
    launched = datetime.fromtimestamp(row.launched_at).astimezone().strftime("%Y-%m-%d %H:%M")
    state = "running" if row.running else "gone" if row.ended_at is not None else "not in use"
    price = None if row.price_per_hour is None else f"{row.price_per_hour:g}"
    hours, node_hours = f"{row.hours:.2f}", f"{row.node_hours:.2f}"
    return row.name, row.infra, row.num_nodes, launched, state, hours, node_hours, price, _dollars(row.cost)


def _dollars(cost: float | None) -> str:
    return "" if cost is None else f"${cost:,.2f}"
