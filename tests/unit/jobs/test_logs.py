"""Logs that are kept at home: whole rows, each life of a name apart, mended after a writer died."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from skylib.jobs.logs import keep, kept_lines, kept_path

ROWS = [(0, "one"), (4, "two"), (8, "three")]


class Teller:
    """An agent that tells one job's log, as the real one does on its channel."""

    def stream(self, verb: str, *, job_id: int, offset: int, follow: bool) -> Iterator[dict[str, object]]:
        assert (verb, follow) == ("logs", False)
        for start, text in ROWS:
            if start >= offset:
                end = start + len(text) + 1
                item = {"rank": 0, "node": "head", "stream": "run", "time": 1.0, "partial": False, "text": text}
                yield {**item, "offset": start, "next_offset": end}
        yield {"ok": {}}


def kept(path: Path) -> list[str]:
    return [line.text for line in kept_lines(path)]


def test_a_log_is_kept_once_however_often_it_is_asked_for(tmp_path: Path):
    """The second call adds nothing; run.log has the same lines as text."""
    path = tmp_path / "1" / "log.jsonl"
    assert [keep(Teller(), "c", 1, path), keep(Teller(), "c", 1, path)] == [3, 0]
    assert kept(path) == ["one", "two", "three"]
    assert len(path.with_name("run.log").read_text().splitlines()) == 3


@pytest.mark.parametrize("cut", [1, 5, 60, 130])
def test_a_writer_that_died_in_a_row_is_made_good(tmp_path: Path, cut: int):
    """Half a row at the end, wherever it was cut, is removed and written again; run.log follows."""
    path = tmp_path / "log.jsonl"
    keep(Teller(), "c", 1, path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - cut])
    keep(Teller(), "c", 1, path)
    assert path.read_bytes() == content
    assert [json.loads(row)["text"] for row in path.read_text().splitlines()] == ["one", "two", "three"]
    assert len(path.with_name("run.log").read_text().splitlines()) == 3


def test_keeping_again_leaves_no_file_open(tmp_path: Path):
    """What is read to be counted is closed."""
    path = tmp_path / "log.jsonl"
    keep(Teller(), "c", 1, path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        keep(Teller(), "c", 1, path)
    assert [str(each.message) for each in told] == []


def test_each_life_of_a_name_has_its_own_logs(tmp_path: Path):
    """Job 1 of a cluster and job 1 of its successor of the same name are two files."""
    assert kept_path(tmp_path, "c", "aaaaaaaa-1", 1) != kept_path(tmp_path, "c", "bbbbbbbb-1", 1)


def test_reading_resumes_at_an_offset(tmp_path: Path):
    """Only lines from the offset on are given."""
    path = tmp_path / "log.jsonl"
    keep(Teller(), "c", 1, path)
    assert [line.text for line in kept_lines(path, offset=4)] == ["two", "three"]
