"""Pure decisions of the store."""

from __future__ import annotations

import pytest

from skylib.models.cluster import ClusterStatus
from skylib.models.job import JobStatus
from skylib.state.base import UsageInterval
from skylib.state.transitions import UsageChange, changed, keeps_stored_job, usage_change
from tests.records import cluster_record, job_record

UP, INIT, STOPPED = ClusterStatus.UP, ClusterStatus.INIT, ClusterStatus.STOPPED
UNREACHABLE, AUTOSTOPPING = ClusterStatus.UNREACHABLE, ClusterStatus.AUTOSTOPPING
STATUSES = [*ClusterStatus, None]


@pytest.mark.parametrize("before", STATUSES)
@pytest.mark.parametrize("after", STATUSES)
@pytest.mark.parametrize("used_until", [None, 15.0])
def test_usage_over_all_pairs_of_statuses(
    before: ClusterStatus | None, after: ClusterStatus | None, used_until: float | None
):
    """UP opens; INIT, STOPPED and removed close: at the told time, else at the beginning of the doubt, else now."""
    record = cluster_record(status=before, status_since=12.0) if before is not None else None

    def change(last: UsageInterval | None) -> UsageChange:
        return usage_change(record, after, at=20.0, last=last, used_until=used_until)

    opens = UsageChange(opens_at=20.0) if after is UP else UsageChange()
    assert change(None) == opens
    assert change(UsageInterval(start=1.0, end=5.0)) == opens
    closes_at = used_until if used_until is not None else 12.0 if before is UNREACHABLE else 20.0
    closes = UsageChange(closes_at=closes_at) if after in (INIT, STOPPED, None) else UsageChange()
    assert change(UsageInterval(start=10.0)) == closes


@pytest.mark.parametrize(("used_until", "at", "closes_at"), [(5.0, 20.0, 10.0), (25.0, 20.0, 20.0), (None, 3.0, 10.0)])
def test_an_interval_ends_between_its_beginning_and_now(used_until: float | None, at: float, closes_at: float) -> None:
    """A node's clock that is wrong, and a clock of ours that was set back, make no time that was not."""
    record = cluster_record(status=UP, status_since=10.0)
    change = usage_change(record, STOPPED, at=at, last=UsageInterval(start=10.0), used_until=used_until)
    assert change == UsageChange(closes_at=closes_at)


def test_an_interval_does_not_begin_before_the_last_one_ended() -> None:
    """Though the clock was set back."""
    record = cluster_record(status=INIT, status_since=90.0)
    assert usage_change(record, UP, at=50.0, last=UsageInterval(start=1.0, end=80.0)) == UsageChange(opens_at=80.0)


@pytest.mark.parametrize("before", list(ClusterStatus))
@pytest.mark.parametrize("after", list(ClusterStatus))
def test_since_moves_with_the_status_only(before: ClusterStatus, after: ClusterStatus) -> None:
    """Over all pairs."""
    record = changed(cluster_record(status=before, status_since=1.0), after, 2.0, {})
    assert (record.status, record.status_since) == (after, 1.0 if before is after else 2.0)


@pytest.mark.parametrize("stored", list(JobStatus))
@pytest.mark.parametrize("seen", list(JobStatus))
def test_a_stored_job_is_kept_when_it_ended_otherwise(stored: JobStatus, seen: JobStatus) -> None:
    """Over all pairs: an ended job stays ended, and as it ended; one that still waits is not written again."""
    waits = stored is seen is JobStatus.PENDING
    assert keeps_stored_job(stored, job_record(1, seen)) is (waits or (stored.is_terminal and stored is not seen))
