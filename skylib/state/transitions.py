"""What a change of state means for the rest of it: pure decisions, shared by all stores."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs

from skylib.errors import ClusterBusy, ClusterNotFound, NoCapacityError
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.job import JobRecord, JobStatus
from skylib.state.base import UsageInterval

__all__ = [
    "UsageChange",
    "changed",
    "check_same_life",
    "keeps_stored_job",
    "no_capacity",
    "not_found",
    "usage_change",
]

_FIXED = frozenset({"name", "cluster_id", "status", "status_since"})


@attrs.frozen(kw_only=True)
class UsageChange:
    """What becomes of a cluster's usage: an interval opens, the open one closes, or neither. Unix seconds."""

    opens_at: float | None = None
    closes_at: float | None = None


def usage_change(
    before: ClusterRecord | None,
    status: ClusterStatus | None,
    *,
    at: float,
    last: UsageInterval | None,
    used_until: float | None = None,
) -> UsageChange:
    """UP is use; INIT, STOPPED and removed are none; AUTOSTOPPING and UNREACHABLE leave it as it was: doubt ends nothing.

    before: the record until now. status: the new one, None when the cluster is removed. last: the latest interval of
    this life. used_until: until when it was in use, where a node tells; else that is `at`, and for a cluster that was
    UNREACHABLE the time it became so. Intervals begin where the last one ended or later, and never end before they
    began, whatever the clock.
    """
    is_open = last is not None and last.end is None
    if status is ClusterStatus.UP:
        if is_open:
            return UsageChange()
        return UsageChange(opens_at=at if last is None or last.end is None else max(at, last.end))
    if not is_open or last is None or status in (ClusterStatus.AUTOSTOPPING, ClusterStatus.UNREACHABLE):
        return UsageChange()
    until = used_until
    if until is None:
        until = before.status_since if before is not None and before.status is ClusterStatus.UNREACHABLE else at
    return UsageChange(closes_at=max(last.start, min(until, at)))


def changed(record: ClusterRecord, status: ClusterStatus, at: float, changes: Mapping[str, object]) -> ClusterRecord:
    """The record after a settle. Raises TypeError for a field that does not exist or is not the caller's to change."""
    wrong = sorted(_FIXED.intersection(changes))
    if wrong:
        raise TypeError(f"settle() does not change {', '.join(wrong)}")
    since = record.status_since if status is record.status else at
    return attrs.evolve(record, status=status, status_since=since, **changes)  # type: ignore[arg-type]


def check_same_life(existing: ClusterRecord | None, record: ClusterRecord, *, over: bool) -> None:
    """Raise ClusterBusy unless `record` may take its name: free, or its own. over: that cluster_id has ended."""
    if existing is not None and existing.cluster_id != record.cluster_id:
        raise ClusterBusy(
            f"cluster {record.name!r} exists already: it was made by another launch",
            cluster=record.name,
            status=existing.status,
            since=existing.launched_at,
            holder=existing.cluster_id,
            hint="read the cluster again and use that one, or take another name",
        )
    if over:
        raise ClusterBusy(
            f"cluster {record.name!r} was taken down while this operation went on",
            cluster=record.name,
            holder=None,
            since=None,
            hint="launch it again",
        )


def keeps_stored_job(stored: JobStatus, seen: JobRecord) -> bool:
    """Whether the stored job stays as it is: it has ended, and what was seen says otherwise; or it waits, and still does.

    What it waits for is of its moment alone, and a long queue is not written again whenever it is looked at.
    """
    if stored is JobStatus.PENDING:
        return seen.status is stored
    return stored.is_terminal and seen.status is not stored


def not_found(name: str, known: Collection[str]) -> ClusterNotFound:
    """The error for a cluster that the store does not have."""
    return ClusterNotFound(
        f"no cluster {name!r}", cluster=name, known=tuple(known), hint=f"clusters: {', '.join(known) or 'none'}"
    )


def no_capacity(infra: str, holders: Mapping[str, str], wanted: int) -> NoCapacityError:
    """holders: host -> the cluster that holds it, for each host that was asked for and is taken."""
    reasons = {host: f"held by cluster {name!r}" for host, name in sorted(holders.items())}
    words = ", ".join(f"{host} is {reason}" for host, reason in reasons.items())
    return NoCapacityError(
        f"{len(holders)} of {wanted} hosts of {infra} are taken: {words}",
        infra=infra,
        reasons=reasons,
        holders=dict(holders),
        hint="take that cluster down, or ask for other hosts",
    )
