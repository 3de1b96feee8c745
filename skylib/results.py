"""What verbs give back that is more than records: it adds itself up, and shows itself in a notebook."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from math import fsum

import attrs

from skylib.models.cost import ClusterCost
from skylib.models.sync_report import LeftOut, TreeReport
from skylib.reprs import one_line, short_bytes, table_html
from skylib.staging.report import why_ignored

__all__ = ["CostReport", "SyncReport"]

_SHOWN = 20
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


@attrs.frozen(kw_only=True, repr=False)
class SyncReport:
    """What a launch of a task would send to each node, as its files were when this was made; one tree for each source.

    warnings: above 10,000 files or 1 GiB, and files of kinds that cannot travel. base: the directory that the task's
    relative sources start from. Iterates over its trees.
    """

    trees: tuple[TreeReport, ...]
    base: str
    warnings: tuple[str, ...] = ()

    @property
    def files(self) -> int:
        """Files and links, of all trees."""
        return sum(tree.files for tree in self.trees)

    @property
    def bytes(self) -> int:
        """Of all files; what is on a node already is not sent again."""
        return sum(tree.bytes for tree in self.trees)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What stays here of all trees, and why; a directory stands for all below it."""
        return tuple(each for tree in self.trees for each in tree.left_out)

    def why_ignored(self, path: str | os.PathLike[str]) -> LeftOut | None:
        """The file, line and pattern by which a path of this machine stays here, or what else keeps it; None: it goes.

        A relative path is one of the workdir, or else starts where the task's relative sources start. What the report
        does not name is looked at now. Raises StagingError when git or a file with patterns cannot be read.
        """
        return why_ignored(self.trees, path, base=self.base)

    def __iter__(self) -> Iterator[TreeReport]:
        return iter(self.trees)

    def __repr__(self) -> str:
        return one_line(
            "SyncReport",
            files=self.files,
            bytes=self.bytes,
            trees=len(self.trees),
            left_out=len(self.left_out),
            warnings=len(self.warnings) or None,
        )

    def _repr_html_(self) -> str:
        rows: list[tuple[object, ...]] = [
            (tree.dst, tree.given, tree.decided_by, f"{tree.files:,}", short_bytes(tree.bytes)) for tree in self.trees
        ]
        rows.append(("in all", "", "", f"{self.files:,}", short_bytes(self.bytes)))
        parts = [table_html(("target", "source", "decided by", "files", "size"), rows)]
        folders = [
            (tree.dst, folder.path, f"{folder.files:,}", short_bytes(folder.bytes))
            for tree in self.trees
            for folder in tree.largest
        ]
        left_out = [_left_out_row(each) for each in self.left_out[:_SHOWN]]
        if len(self.left_out) > _SHOWN:
            left_out.append(("", f"{len(self.left_out) - _SHOWN:,} more, see left_out"))
        if folders:
            parts.append(table_html(("target", "largest directories", "files", "size"), folders))
        if left_out:
            parts.append(table_html(("target", "left out", "reason", "decided in", "by"), left_out))
        if self.warnings:
            parts.append(table_html(("warnings",), [(warning,) for warning in self.warnings]))
        return "".join(parts)


def _left_out_row(each: LeftOut) -> tuple[object, ...]:
    place = f"{each.file}:{each.line}" if each.file else ""
    return each.tree, each.path, each.reason, place, each.pattern or each.detail
