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
from tests.records import cluster_record, cluster_records, job_records, json_values, node_records

_text = st.text(max_size=20)
# Columns hold no NUL, which PostgreSQL has not; JSON may.
_plain = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)
_number = st.floats(allow_nan=False, allow_infinity=False)


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


_details = st.dictionaries(_text, json_values, max_size=3)


@given(
    st.lists(st.tuples(_plain, _plain, _plain, _number, _details), max_size=4),
    st.lists(st.tuples(_plain, _plain, _details), max_size=4),
    st.dictionaries(_plain, json_values, max_size=4),
)
@settings(max_examples=15)
def test_events_intents_and_values_survive_the_file(
    events: list[tuple[str, str, str, float, dict[str, object]]],
    intents: list[tuple[str, str, dict[str, object]]],
    values: dict[str, object],
) -> None:
    """Each as it was given, in the order that it was given in."""
    with TemporaryDirectory() as folder:
        store = SqliteStore(SkyHome(Path(folder)))
        for cluster, cluster_id, kind, at, details in events:
            store.add_event(cluster, kind, at=at, cluster_id=cluster_id, details=details)
        numbers = [store.begin_intent(*intent) for intent in intents]
        for key, value in values.items():
            store.config_set(key, value)
        for name in {event[0] for event in events}:
            assert [(name, each.cluster_id, each.kind, each.at, each.details) for each in store.events(name)] == [
                event for event in events if event[0] == name
            ]
        opened = store.open_intents()
        assert [(each.operation, each.cluster, each.details) for each in opened] == intents
        assert [each.intent_id for each in opened] == sorted(numbers) == numbers
        kept = {key: value for key, value in values.items() if value is not None}
        assert {key: store.config_get(key) for key in values} == {**dict.fromkeys(values), **kept}
        own = {key: value for key, value in store.config_items("").items() if key in values}
        assert own == kept
        store.close()


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
