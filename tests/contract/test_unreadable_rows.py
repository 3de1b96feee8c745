"""One row that cannot be decoded is told, keeps nobody else from working, and can be taken away; in each database."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from skylib.errors import ClusterNotFound, StateError
from skylib.models.cluster import ClusterStatus
from skylib.ops import cost, lifecycle, reconcile, status
from skylib.session import Session
from skylib.state.base import StateStore
from skylib.state.store import SqlStore
from tests.records import cluster_record, job_record
from tests.stores import KINDS, opened_stores

BAD = (
    (1, "{"),
    (1, "[]"),
    (1, "{}"),
    (99, "{}"),
    (0, "{}"),
    (1, '{"name": 5, "nodes": 5}'),
    (1, "[" * 100_000),
)


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
    """Two clusters that are UP with a host each, "bad" and "good"."""
    with opened_stores(request.param, tmp_path) as opener:
        made = opener()
        for name in ("bad", "good"):
            record = cluster_record(name)
            made.begin_launch(record)
            made.claim_hosts("ssh/lab", [f"{name}-1"], name, record.cluster_id, 5.0)
            made.settle(name, ClusterStatus.UP, at=10.0)
        yield made


@pytest.fixture
def session(store: StateStore, tmp_path: Path) -> Iterator[Session]:
    made = Session(tmp_path / "sky", store=store, clock=lambda: 100.0)
    yield made
    made.close()


def spoil(store: StateStore, table: str, where: str, schema: int = 1, document: str = "{") -> None:
    """Write nonsense into rows, as a bad disk or a hand does."""
    sql = f"UPDATE {table} SET schema = ?, record = ? WHERE {where} = 'bad'"
    cast(SqlStore, store)._backend.write(lambda connection: connection.execute(sql, schema, document))


@pytest.mark.parametrize(("schema", "document"), BAD)
def test_a_row_that_cannot_be_read_says_which_and_what_to_do(store: StateStore, schema: int, document: str) -> None:
    """Table, key and store are facts and words; the hint tells how to go on."""
    spoil(store, "clusters", "name", schema, document)
    for ask in (store.clusters, lambda: store.cluster("bad"), lambda: store.settle("bad", ClusterStatus.UP, at=1.0)):
        with pytest.raises(StateError, match="row 'bad' of table clusters in ") as caught:
            ask()
        error = caught.value
        assert (error.table, error.key) == ("clusters", "bad")  # type: ignore[attr-defined]
        assert error.store in error.message  # type: ignore[attr-defined]
        assert error.store in repr(store)  # type: ignore[attr-defined]
        assert any(words in str(error.hint) for words in ("purge=True", "newer skylib"))


def test_other_clusters_go_on(session: Session) -> None:
    """Asked for by name they are as they were; names that do not exist are answered with those that do."""
    spoil(session.store, "clusters", "name")
    assert [each.name for each in status.status(session, "good")] == ["good"]
    assert session.store.names().keys() == {"bad", "good"}
    with pytest.raises(ClusterNotFound) as caught:
        status.status(session, "nobody")
    assert caught.value.known == ("bad", "good")


def test_a_purge_takes_it_away_with_its_hosts(session: Session) -> None:
    """The receipt names the hosts and is not clean; open intents end with it; history says when and why."""
    store = session.store
    spoil(store, "clusters", "name")
    intent = store.begin_intent("stop", "bad", {"cluster_id": "x"})
    with pytest.raises(StateError, match="row 'bad'"):
        lifecycle.down(session, "bad")
    receipt = lifecycle.down(session, "bad", purge=True)
    assert (receipt.released, receipt.clean) == (True, False)
    assert [(node.host, "row 'bad' of table clusters" in node.error) for node in receipt.nodes] == [("bad-1", True)]
    assert [each.name for each in status.status(session)] == ["good"]
    assert store.claims() == {("ssh/lab", "good-1"): "good"}
    assert intent not in [each.intent_id for each in store.open_intents()]
    (life,) = store.history(name="bad")
    assert (life.ended_at, life.used_seconds(now=500.0)) == (100.0, 90.0)
    assert store.events("bad")[-1].details == {"from": "UP", "to": None, "reason": "its record could not be read"}


def test_history_that_cannot_be_read_is_left_out(session: Session, caplog: pytest.LogCaptureFixture) -> None:
    """Of a life that is over; the log says so. One that goes on is told as an error."""
    spoil(session.store, "clusters", "name")
    spoil(session.store, "cluster_history", "name")
    with pytest.raises(StateError, match="of table cluster_history") as caught:
        cost.costs_since(session, 30)
    assert "client.down('bad', purge=True)" in str(caught.value.hint)
    lifecycle.down(session, "bad", purge=True)
    with caplog.at_level(logging.WARNING):
        assert [each.name for each in cost.costs_since(session, 30)[0]] == ["good"]
    assert "of table cluster_history" in caplog.text


def test_a_purge_leaves_what_can_be_read(store: StateStore) -> None:
    """Nothing is taken away that is whole, or not there."""
    assert store.drop_unreadable("good", at=50.0) is None
    assert store.drop_unreadable("nobody", at=50.0) is None
    assert store.names().keys() == {"bad", "good"}


def test_an_intent_that_cannot_be_read_is_told_and_goes_with_a_purge(session: Session) -> None:
    """It says which; those of other names, and whole ones of its own, stay open."""
    store = session.store
    broken = store.begin_intent("stop", "bad")
    whole = store.begin_intent("stop", "bad")
    sql = "UPDATE intents SET details = 'x' WHERE id = ?"
    cast(SqlStore, store)._backend.write(lambda connection: connection.execute(sql, broken))
    with pytest.raises(StateError, match=f"row {broken} of table intents") as caught:
        reconcile.reconcile(session)
    assert "client.down('bad', purge=True)" in str(caught.value.hint)
    assert store.drop_unreadable("bad", at=50.0) is None
    assert [each.intent_id for each in store.open_intents()] == [whole]
    assert store.cluster("bad") is not None


def test_a_job_and_a_value_that_cannot_be_read_say_which(store: StateStore) -> None:
    """The cluster's id and the job's number; the key."""
    cluster_id = store.names()["bad"]
    store.save_jobs(cluster_id, [job_record(3, cluster_name="bad")])
    spoil(store, "jobs", "cluster_name", document=json.dumps([]))
    with pytest.raises(StateError, match=r"of table jobs") as caught:
        store.jobs("bad")
    assert caught.value.key == (cluster_id, 3)  # type: ignore[attr-defined]
    store.config_set("pools/a", 1)
    sql = "UPDATE config SET value = '{' WHERE key = 'pools/a'"
    cast(SqlStore, store)._backend.write(lambda connection: connection.execute(sql))
    with pytest.raises(StateError, match="row 'pools/a' of table config"):
        store.config_get("pools/a")
    with pytest.raises(StateError, match="row 'pools/a' of table config"):
        store.config_items("pools/")


def test_a_table_that_is_lost_has_a_hint(store: StateStore) -> None:
    """It says how to come by the clusters again."""
    cast(SqlStore, store)._backend.write(lambda connection: connection.execute("DROP TABLE jobs"))
    with pytest.raises(StateError, match="jobs") as caught:
        store.jobs("good")
    assert "backup" in str(caught.value.hint)
    assert "client.adopt(name)" in str(caught.value.hint)
