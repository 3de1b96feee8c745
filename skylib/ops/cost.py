"""What clusters cost: from the times they were in use, and the prices their hosts had."""

from __future__ import annotations

from collections.abc import Iterable

from skylib.errors import InvalidSpecError
from skylib.models.cost import ClusterCost
from skylib.session import Session
from skylib.state.base import HistoryRecord

__all__ = ["DAY_S", "costs", "costs_since"]

DAY_S = 86_400.0
_MOST_DAYS = 1_000_000


def costs(history: Iterable[HistoryRecord], *, since: float, now: float) -> tuple[ClusterCost, ...]:
    """Of every life that was in use between `since` and `now`, the newest launch first, as it is in `history`."""
    found = []
    for life in history:
        seconds = life.used_seconds(now=now, since=since)
        running = any(span.end is None for span in life.intervals)
        if seconds <= 0 and not running:
            continue
        nodes = life.record.nodes
        found.append(
            ClusterCost(
                name=life.name,
                cluster_id=life.cluster_id,
                infra=life.record.infra,
                launched_at=life.launched_at,
                ended_at=life.ended_at,
                seconds=seconds,
                running=running,
                prices=tuple(node.price_per_hour for node in nodes) or (None,) * life.record.num_nodes,
            )
        )
    return tuple(found)


def costs_since(session: Session, days: float) -> tuple[tuple[ClusterCost, ...], float, float]:
    """Of the last days, with the window's begin and end. Raises InvalidSpecError when `days` is no time."""
    if isinstance(days, bool) or not isinstance(days, (int, float)) or not 0 < days <= _MOST_DAYS:
        shown = type(days).__name__ if isinstance(days, int) else f"{days!r:.80}"
        raise InvalidSpecError(f"days must be a number above 0, and {_MOST_DAYS} at most, not {shown}", field="days")
    now = session.clock()
    since = now - days * DAY_S
    return costs(session.store.history(since), since=since, now=now), since, now
