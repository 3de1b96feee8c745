"""jobs.db: the job table, with SkyPilot's columns and ours. A terminal status is never overwritten: SQL refuses."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from .protocol import TERMINAL

__all__ = ["JobsDb"]

_TERMINAL_SQL = ", ".join(f"'{status}'" for status in TERMINAL)
_MIGRATIONS: Tuple[Tuple[str, ...], ...] = (
    (
        """CREATE TABLE jobs (
            job_id INTEGER PRIMARY KEY AUTOINCREMENT, job_name TEXT, username TEXT, submitted_at REAL NOT NULL,
            status TEXT NOT NULL, run_timestamp TEXT, start_at REAL, end_at REAL, resources TEXT, pid INTEGER DEFAULT 0,
            log_dir TEXT, metadata TEXT DEFAULT '{}', exit_codes TEXT,
            num_nodes INTEGER NOT NULL, task_id TEXT, job_key TEXT, cause TEXT NOT NULL DEFAULT '', spec TEXT NOT NULL,
            placement TEXT, phase TEXT, launched INTEGER NOT NULL DEFAULT 0)""",
        "CREATE UNIQUE INDEX jobs_by_key ON jobs (job_key) WHERE job_key IS NOT NULL",
        "CREATE INDEX jobs_by_status ON jobs (status)",
        f"""CREATE TRIGGER terminal_stays BEFORE UPDATE OF status ON jobs
            WHEN OLD.status IN ({_TERMINAL_SQL})
            BEGIN SELECT RAISE(IGNORE); END""",
        "CREATE TABLE config (key TEXT PRIMARY KEY, value TEXT)",
    ),
    ("ALTER TABLE jobs ADD COLUMN details TEXT",),  # JSON: see job.format_details
)
_INSERTED = (
    "job_name",
    "username",
    "submitted_at",
    "status",
    "run_timestamp",
    "resources",
    "num_nodes",
    "job_key",
    "spec",
)
_CHANGEABLE = frozenset(
    {
        *("status", "start_at", "end_at", "pid", "log_dir", "exit_codes", "task_id", "cause", "placement", "phase"),
        *("launched", "details"),
    }
)


class JobsDb:
    """One connection, one caller at a time. Raises sqlite3.Error when the file cannot be used."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._connection = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
        self._connection.row_factory = sqlite3.Row
        self._connection.execute("PRAGMA journal_mode = WAL")  # a file system that cannot keeps its own mode
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._migrate()

    def _migrate(self) -> None:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
            for number in range(version, len(_MIGRATIONS)):
                for statement in _MIGRATIONS[number]:
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {number + 1}")
            self._connection.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def insert(
        self, jobs: Sequence[Mapping[str, Any]], made: Callable[[int, int], Mapping[str, Any]]
    ) -> List[Tuple[int, bool]]:
        """(job id, adopted) of each, all in one transaction; a key that is there already gives that job's id.

        It is not adopted when the same submission brought it: that is a request which was repeated.

        made: called with a new job's place in `jobs` and its id, gives columns that follow from the id. What it raises is
        raised, and then there is none of the jobs.
        """
        marks = ", ".join("?" for _ in _INSERTED)
        statement = f"INSERT INTO jobs ({', '.join(_INSERTED)}) VALUES ({marks})"
        result: List[Tuple[int, bool]] = []
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for place, job in enumerate(jobs):
                    there = self._by_key(job["job_key"])
                    if there is not None:
                        result.append((there[0], not _is_repeated(job["spec"], there[1])))
                        continue
                    cursor = self._connection.execute(statement, [job[name] for name in _INSERTED])
                    job_id = int(cursor.lastrowid or 0)
                    self._change(job_id, made(place, job_id))
                    result.append((job_id, False))
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
        return result

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # a full disk has SQLite do so by itself
            self._connection.execute("ROLLBACK")

    def _by_key(self, key: Optional[str]) -> Optional[Tuple[int, str]]:
        """(job id, specification)."""
        if key is None:
            return None
        row = self._connection.execute("SELECT job_id, spec FROM jobs WHERE job_key = ?", (key,)).fetchone()
        return None if row is None else (int(row[0]), str(row[1]))

    def update(self, changes: Iterable[Tuple[int, Mapping[str, Any]]]) -> None:
        """All in one transaction. A row that is terminal keeps its status, and all that would be written with it."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for job_id, columns in changes:
                    self._change(job_id, columns)
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def _change(self, job_id: int, columns: Mapping[str, Any]) -> None:
        unknown = set(columns) - _CHANGEABLE
        if unknown:
            raise ValueError(f"no such columns: {sorted(unknown)}")
        if columns:
            assignments = ", ".join(f"{name} = ?" for name in columns)
            self._connection.execute(f"UPDATE jobs SET {assignments} WHERE job_id = ?", [*columns.values(), job_id])

    def rows(self) -> List[Dict[str, Any]]:
        """Every job but its specification, oldest first."""
        with self._lock:
            cursor = self._connection.execute(
                "SELECT job_id, job_name, username, submitted_at, status, run_timestamp, start_at, end_at, resources, "
                "log_dir, exit_codes, num_nodes, task_id, job_key, cause, placement, phase, launched, details "
                "FROM jobs ORDER BY job_id"
            )
            return [dict(row) for row in cursor.fetchall()]

    def spec(self, job_id: int) -> Dict[str, Any]:
        """As submitted, without secrets. Raises KeyError."""
        with self._lock:
            row = self._connection.execute("SELECT spec FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        if row is None:
            raise KeyError(job_id)
        spec: Dict[str, Any] = json.loads(row[0])
        return spec

    def get(self, key: str) -> Any:
        """A value that was put under this name, None when there is none."""
        with self._lock:
            row = self._connection.execute("SELECT value FROM config WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: object) -> None:
        with self._lock:
            self._connection.execute(
                "INSERT INTO config (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, json.dumps(value)),
            )


def _is_repeated(spec: str, there: str) -> bool:
    submission = json.loads(spec).get("submission")
    return bool(submission) and json.loads(there).get("submission") == submission
