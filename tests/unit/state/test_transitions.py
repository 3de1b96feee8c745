"""Pure decisions of the store."""

from __future__ import annotations

import pytest

from skylib.models.cluster import ClusterStatus
from skylib.models.job import JobStatus
from skylib.state.transitions import Usage, changed, keeps_stored_job, usage_after
from tests.records import cluster_record, job_record


@pytest.mark.parametrize("status", list(ClusterStatus))
@pytest.mark.parametrize("is_open", [True, False])
def test_only_up_opens_and_only_stopped_closes(status: ClusterStatus, is_open: bool) -> None:
    """Over all statuses."""
    expected = Usage.KEEP
    if status is ClusterStatus.UP and not is_open:
        expected = Usage.OPEN
    if status is ClusterStatus.STOPPED and is_open:
        expected = Usage.CLOSE
    assert usage_after(status, is_open=is_open) is expected


@pytest.mark.parametrize("before", list(ClusterStatus))
@pytest.mark.parametrize("after", list(ClusterStatus))
def test_since_moves_with_the_status_only(before: ClusterStatus, after: ClusterStatus) -> None:
    """Over all pairs."""
    record = changed(cluster_record(status=before, status_since=1.0), after, 2.0, {})
    assert (record.status, record.status_since) == (after, 1.0 if before is after else 2.0)


@pytest.mark.parametrize("stored", list(JobStatus))
@pytest.mark.parametrize("seen", list(JobStatus))
def test_a_stored_job_is_kept_when_it_ended_otherwise(stored: JobStatus, seen: JobStatus) -> None:
    """Over all pairs: an ended job stays ended, and as it ended."""
    assert keeps_stored_job(stored, job_record(1, seen)) is (stored.is_terminal and stored is not seen)
