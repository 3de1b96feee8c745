"""Records come back from the store as they went in."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from skylib.locks import lock_file_name
from skylib.models.cluster import ClusterRecord, NodeRecord
from skylib.models.job import JobRecord
from skylib.paths import SkyHome
from skylib.state.rows import (
    CLUSTER_SCHEMA,
    JOB_SCHEMA,
    cluster_document,
    cluster_from_document,
    job_document,
    job_from_document,
)
from skylib.state.sqlite import SqliteStore
from tests.records import cluster_record, cluster_records, job_records, node_records


@given(cluster_records)
def test_cluster_records_survive_their_rows(record: ClusterRecord) -> None:
    """Every field, through JSON text."""
    assert cluster_from_document(CLUSTER_SCHEMA, cluster_document(record)) == record


@given(job_records)
def test_job_records_survive_their_rows(record: JobRecord) -> None:
    """Every field, through JSON text."""
    assert job_from_document(JOB_SCHEMA, job_document(record)) == record


@given(node_records)
def test_node_records_survive_json(record: NodeRecord) -> None:
    """Every field, through JSON text."""
    assert NodeRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


@given(st.lists(cluster_records, max_size=4, unique_by=lambda record: record.name), st.lists(job_records, max_size=4))
@settings(max_examples=15)
def test_records_survive_the_file(clusters: list[ClusterRecord], jobs: list[JobRecord]) -> None:
    """Through SQLite, with all that text and numbers can be."""
    with TemporaryDirectory() as folder:
        store = SqliteStore(SkyHome(Path(folder)))
        for record in clusters:
            store.save_cluster(record)
        store.begin_launch(cluster_record("holder", "life"))
        store.save_jobs("life", jobs)
        assert {record.name: record for record in store.clusters([each.name for each in clusters])} == {
            record.name: record for record in clusters
        }
        last = {job.job_id: job for job in jobs}
        kept = {job.job_id: job for name in {job.cluster_name for job in jobs} for job in store.jobs(name)}
        assert kept == last
        store.close()


@given(st.text(min_size=1), st.text(min_size=1))
def test_lock_files_of_two_scopes_differ(one: str, other: str) -> None:
    """Also where file names ignore case; and each is a plain file name."""
    names = [lock_file_name(scope) for scope in (one, other)]
    assert (names[0].lower() == names[1].lower()) is (one == other)
    assert all("/" not in name and "\0" not in name and len(name) < 255 for name in names)
