"""jobs.db: a terminal status stays, keys are unique, and old files are brought up to date."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.agent.db import JobsDb
from skylib.agent.protocol import TERMINAL

STATUSES = ("INIT", "PENDING", "SETTING_UP", "RUNNING", *TERMINAL)


def nothing(place: int, job_id: int) -> dict[str, Any]:
    return {}


def row(key: str | None = None) -> dict[str, Any]:
    return {
        "job_name": "j",
        "username": "u",
        "submitted_at": 1.0,
        "status": "PENDING",
        "run_timestamp": "t",
        "resources": "",
        "num_nodes": 1,
        "job_key": key,
        "spec": '{"run": "true"}',
    }


@pytest.fixture
def db(tmp_path: Path) -> JobsDb:
    return JobsDb(str(tmp_path / "jobs.db"))


@given(st.lists(st.sampled_from(STATUSES), max_size=12))
def test_a_terminal_status_is_never_overwritten(tmp_path_factory: pytest.TempPathFactory, writes: list[str]) -> None:
    """Whatever is written afterwards: the first end stays, with the cause that was written with it."""
    db = JobsDb(str(tmp_path_factory.mktemp("db") / "jobs.db"))
    job_id = db.insert([row()], nothing)[0][0]
    for number, status in enumerate(writes):
        db.update([(job_id, {"status": status, "cause": str(number)})])
    ends = [(status, str(number)) for number, status in enumerate(writes) if status in TERMINAL]
    last = (writes[-1], str(len(writes) - 1)) if writes else ("PENDING", "")
    found = db.rows()[0]
    assert (found["status"], found["cause"]) == (ends[0] if ends else last)
    db.close()


def test_another_program_cannot_overwrite_it_either(db: JobsDb, tmp_path: Path) -> None:
    """The file itself refuses."""
    job_id = db.insert([row()], nothing)[0][0]
    db.update([(job_id, {"status": "CANCELLED"})])
    with sqlite3.connect(tmp_path / "jobs.db") as other:
        other.execute("UPDATE jobs SET status = 'SUCCEEDED'")
    assert db.rows()[0]["status"] == "CANCELLED"


def test_a_key_names_one_job(db: JobsDb) -> None:
    """In one call and in a later one; jobs without a key are never the same."""
    assert db.insert([row("a"), row("a"), row(), row()], nothing) == [(1, False), (1, True), (2, False), (3, False)]
    assert db.insert([row("a")], nothing) == [(1, True)]


def test_a_bulk_insert_is_all_or_nothing(db: JobsDb) -> None:
    """A row that cannot be written takes the others with it."""
    with pytest.raises(sqlite3.IntegrityError):
        db.insert([row(), {**row(), "status": None}], nothing)
    assert db.rows() == []


def test_a_file_from_before_is_used(tmp_path: Path) -> None:
    """Opened again it has what it had, and numbers go on."""
    first = JobsDb(str(tmp_path / "jobs.db"))
    first.insert([row(), row()], nothing)
    first.put("autostop", {"idle_minutes": 5})
    first.close()
    again = JobsDb(str(tmp_path / "jobs.db"))
    assert again.insert([row()], nothing) == [(3, False)]
    assert again.get("autostop") == {"idle_minutes": 5}
    assert again.spec(2) == {"run": "true"}
    assert (tmp_path / "jobs.db").stat().st_mode & 0o777 == 0o600


def test_an_unknown_column_is_refused(db: JobsDb) -> None:
    """Names of columns never come from outside."""
    with pytest.raises(ValueError, match="no such columns"):
        db.update([(1, {"status = 'x' --": 1})])


def test_what_follows_from_an_id_is_there_with_the_job(db: JobsDb) -> None:
    """In the same transaction: when it cannot be made, there is no job."""
    db.insert([row()], lambda place, job_id: {"task_id": f"task-{place}-{job_id}"})
    assert [job["task_id"] for job in db.rows()] == ["task-0-1"]

    def fail(place: int, job_id: int) -> dict[str, Any]:
        raise OSError(job_id)

    with pytest.raises(OSError, match="2"):
        db.insert([row()], fail)
    assert len(db.rows()) == 1
