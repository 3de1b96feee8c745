"""The journal of an operation."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import stat
import threading
from enum import Enum
from pathlib import Path

import pytest

from skylib.events import Event, Phase, span
from skylib.journal import Journal
from skylib.paths import SkyHome


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    return SkyHome(tmp_path / "home")


def _event(step: str = "connect", **facts: object) -> Event:
    return Event(step=step, phase=Phase.NOTE, at=1_700_000_000.25, facts=facts)


def _lines(journal: Journal) -> list[dict[str, object]]:
    assert journal.path is not None
    return [json.loads(line) for line in journal.path.read_text().splitlines()]


def test_no_event_makes_no_file(home: SkyHome) -> None:
    """Nor a folder."""
    with Journal(home, "launch", "train") as journal:
        assert journal.path is None
    assert not home.root.exists()


def test_the_file_is_named_by_time_operation_and_cluster(home: SkyHome) -> None:
    """UTC, and private."""
    with Journal(home, "launch", "train") as journal:
        journal(_event())
    (file,) = home.logs.iterdir()
    assert re.fullmatch(r"20231114T221320\.250Z-launch-train-[0-9a-f]{6}\.jsonl", file.name)
    assert file == journal.path
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.logs.stat().st_mode) == 0o700


@pytest.mark.parametrize(("operation", "cluster"), [("check", ""), ("../../x", "a/b"), ("x" * 300, "y" * 300)])
def test_any_title_is_a_file_in_the_folder(home: SkyHome, operation: str, cluster: str) -> None:
    """Whatever the operation and cluster are called."""
    with Journal(home, operation, cluster) as journal:
        journal(_event())
    assert journal.path is not None
    assert journal.path.parent == home.logs


def test_each_event_is_a_line_at_once(home: SkyHome) -> None:
    """A reader sees it before the journal is closed."""
    with Journal(home, "launch", "train") as journal:
        with span(journal, "runtime.ray_head", node="10.0.0.4") as running:
            assert [line["phase"] for line in _lines(journal)] == ["started"]
            running.note(returncode=0)
        started, finished = _lines(journal)
    assert started["facts"] == {"node": "10.0.0.4"}
    assert finished["facts"] == {"node": "10.0.0.4", "returncode": 0}
    assert (finished["step"], finished["phase"]) == ("runtime.ray_head", "finished")
    assert isinstance(finished["seconds"], float)
    assert set(finished) == {"at", "step", "phase", "seconds", "facts"}


class _Colour(Enum):
    RED = "red"


class _Masked:
    def __str__(self) -> str:
        return "***"

    def __repr__(self) -> str:
        return "Masked(secret)"


class _Broken:
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, None),
        (True, True),
        (3, 3),
        (2.5, 2.5),
        (math.inf, "inf"),
        (math.nan, "nan"),
        ("a\nü\udcff", "a\nü\udcff"),
        (b"\xffok", "\ufffdok"),
        (_Colour.RED, "red"),
        (Path("/x/y"), "/x/y"),
        (_Masked(), "***"),
        (_Broken(), "<_Broken: RuntimeError>"),
        ((1, {2: _Colour.RED}), [1, {"2": "red"}]),
        (ValueError("bad"), "bad"),
        ("x" * 20_000, "x" * 16_384 + "..."),
    ],
)
def test_facts_become_json(home: SkyHome, value: object, written: object) -> None:
    """What JSON does not have is text; what masks itself stays masked."""
    with Journal(home, "launch") as journal:
        journal(_event(value=value))
    assert _lines(journal)[0]["facts"] == {"value": written}


def test_a_fact_that_contains_itself_ends(home: SkyHome) -> None:
    """It is cut off by depth."""
    endless: list[object] = []
    endless.append(endless)
    with Journal(home, "launch") as journal:
        journal(_event(value=endless))
    assert len(_lines(journal)) == 1


def test_many_threads_write_whole_lines(home: SkyHome) -> None:
    """Eight threads, 50 events each, in one file."""
    with Journal(home, "launch") as journal:

        def work() -> None:
            for _ in range(50):
                journal(_event(text="x" * 500))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert len(_lines(journal)) == 400
    assert len(list(home.logs.iterdir())) == 1


def test_events_after_the_end_are_dropped(home: SkyHome) -> None:
    """A late thread does not break, nor begin a new file."""
    journal = Journal(home, "launch")
    journal(_event("one"))
    journal.close()
    journal.close()
    journal(_event("two"))
    assert [line["step"] for line in _lines(journal)] == ["one"]


def test_a_home_that_cannot_be_written_does_not_break_the_operation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and then there is silence."""
    (tmp_path / "home").write_text("a file")
    journal = Journal(SkyHome(tmp_path / "home"), "launch")
    with caplog.at_level(logging.WARNING, logger="skylib.journal"):
        for _ in range(3):
            journal(_event())
    assert len(caplog.records) == 1


def test_a_full_disk_does_not_break_the_operation(home: SkyHome, caplog: pytest.LogCaptureFixture) -> None:
    """A write that fails half way through ends the journal, not the operation."""
    journal = Journal(home, "launch")
    journal(_event("one"))
    assert journal._descriptor is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._descriptor)
    os.close(full)
    with caplog.at_level(logging.WARNING, logger="skylib.journal"):
        journal(_event("two"))
        journal(_event("three"))
    assert len(caplog.records) == 1
    assert [line["step"] for line in _lines(journal)] == ["one"]


def test_the_oldest_journals_go_first(home: SkyHome) -> None:
    """As many stay as are wanted; files that are not journals are left alone."""
    home.logs.mkdir(parents=True)
    (home.logs / "00000000-notes.txt").write_text("mine")
    for number in range(6):
        with Journal(home, "launch", f"c{number}", keep=3) as journal:
            journal(Event(step="x", phase=Phase.NOTE, at=1_700_000_000.0 + number))
    names = sorted(file.name for file in home.logs.iterdir())
    assert names[0] == "00000000-notes.txt"
    assert [name.split("-")[2] for name in names[1:]] == ["c3", "c4", "c5"]
