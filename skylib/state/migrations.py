"""The schema, step by step. A migration that was released is never edited: a change is a new one at the end."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from skylib.errors import MigrationError

if TYPE_CHECKING:
    from sqlite_utils import Database

__all__ = ["SCHEMA_VERSION", "check_version", "migrate", "schema_version"]


def _first_tables(db: Database) -> None:
    clusters = {"name": str, "cluster_id": str, "status": str, "launched_at": float, "schema": int, "record": str}
    db.table("clusters").create(clusters, pk="name", not_null=set(clusters))
    db.table("clusters").create_index(["cluster_id"], unique=True)
    history = {
        "cluster_id": str,
        "name": str,
        "launched_at": float,
        "ended_at": float,
        "schema": int,
        "record": str,
    }
    db.table("cluster_history").create(history, pk="cluster_id", not_null=set(history) - {"ended_at"})
    db.table("cluster_history").create_index(["name", "launched_at"])
    db.table("cluster_history").create_index(["ended_at"])
    db.table("usage_intervals").create(
        {"id": int, "cluster_id": str, "start": float, "end": float},
        pk="id",
        not_null={"cluster_id", "start"},
        foreign_keys=[("cluster_id", "cluster_history", "cluster_id")],
    )
    db.table("usage_intervals").create_index(["cluster_id"])
    db.table("host_claims").create(
        {"infra": str, "host": str, "cluster": str, "cluster_id": str, "claimed_at": float},
        pk=("infra", "host"),
        not_null={"infra", "host", "cluster", "cluster_id", "claimed_at"},
        foreign_keys=[("cluster_id", "clusters", "cluster_id")],
    )
    db.table("host_claims").create_index(["cluster_id"])
    jobs = {"cluster_id": str, "job_id": int, "cluster_name": str, "status": str, "schema": int, "record": str}
    db.table("jobs").create(
        jobs,
        pk=("cluster_id", "job_id"),
        not_null=set(jobs),
        foreign_keys=[("cluster_id", "cluster_history", "cluster_id")],
    )
    db.table("jobs").create_index(["cluster_name"])


def _events_intents_config(db: Database) -> None:
    events = {"id": int, "cluster": str, "cluster_id": str, "kind": str, "at": float, "details": str}
    db.table("events").create(events, pk="id", not_null=set(events) - {"id"})
    db.table("events").create_index(["cluster", "id"])
    intents = {
        "id": int,
        "operation": str,
        "cluster": str,
        "details": str,
        "begun_at": float,
        "pid": int,
        "host": str,
        "settled_at": float,
        "outcome": str,
    }
    db.table("intents").create(intents, pk="id", not_null=set(intents) - {"id", "settled_at"})
    db.table("intents").create_index(["settled_at", "cluster"])
    db.table("config").create({"key": str, "value": str}, pk="key", not_null={"value"})


def _order_and_age(db: Database) -> None:
    """seq numbers the lives of clusters as they began, which rowid did; what is old is found by its time."""
    db.table("cluster_history").add_column("seq", int, not_null_default=0)
    db.execute("UPDATE cluster_history SET seq = rowid")
    db.table("cluster_history").create_index(["seq"])
    db.table("clusters").add_column("seq", int, not_null_default=0)
    lives = "SELECT seq FROM cluster_history WHERE cluster_history.cluster_id = clusters.cluster_id"
    db.execute(f"UPDATE clusters SET seq = COALESCE(({lives}), 0)")
    db.table("events").create_index(["at"])


_STEPS: tuple[Callable[[Database], None], ...] = (_first_tables, _events_intents_config, _order_and_age)

SCHEMA_VERSION = len(_STEPS)
_RECORD = "migrations"


def schema_version(connection: sqlite3.Connection) -> int:
    """The version that the store has; 0 for an empty one. Kept as SQLite's user_version, so that it reads quickly."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def check_version(version: int, where: object) -> None:
    """Raises MigrationError for a store that is newer than this skylib."""
    if version > SCHEMA_VERSION:
        raise MigrationError(
            f"{where} has schema version {version}, this skylib knows up to {SCHEMA_VERSION}; nothing was changed",
            ours=SCHEMA_VERSION,
            theirs=version,
            hint="use the newer skylib that wrote it, or another home",
        )


def migrate(connection: sqlite3.Connection, *, where: object) -> int:
    """Bring the store to SCHEMA_VERSION; how many steps that took.

    Each step, its row in the table `migrations` and the new version are one transaction, begun IMMEDIATE, in which the
    version is read again: of many processes one does the step. Raises MigrationError, sqlite3.Error.
    """
    from sqlite_utils import Database

    db = Database(connection, recursive_triggers=False, execute_plugins=False)
    done = 0
    while True:
        connection.execute("BEGIN IMMEDIATE")
        try:
            version = schema_version(connection)
            check_version(version, where)
            if version == SCHEMA_VERSION:
                return done
            step = _STEPS[version]
            step(db)
            db.table(_RECORD).insert(
                {"version": version + 1, "name": step.__name__.strip("_"), "applied_at": time.time()}, pk="version"
            )
            connection.execute(f"PRAGMA user_version = {version + 1:d}")
            connection.execute("COMMIT")
            done += 1
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
