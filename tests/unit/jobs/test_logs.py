"""Logs that are kept at home: the bytes that the head has, each life of a name apart, mended after a writer died."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skylib.errors import AgentError, InvalidSpecError
from skylib.jobs.kept import KeptLog, is_complete, kept_lines, kept_path
from skylib.jobs.lines import piece_of
from skylib.jobs.logs import keep

LABEL = b"(head, rank=0) "
BODIES = [b"one\ntwo", b"three", b"a\xffb\n\nfive"]
TEXTS = ["one", "two", "three", "a\ufffdb", "", "five"]


class Teller:
    """An agent that tells one job's log in pieces, as the real one does on its channel."""

    def __init__(self, status: str = "SUCCEEDED") -> None:
        self.status = status

    def items(self) -> Iterator[dict[str, Any]]:
        place = 0
        for body in BODIES:
            end = place + (body.count(b"\n") + 1) * (len(LABEL) + 1) + len(body) - body.count(b"\n")
            item: dict[str, Any] = {"rank": 0, "node": "head", "stream": "run", "time": 1.0, "partial": False}
            yield {**item, "offset": place, "next_offset": end, "prefix": len(LABEL), **content(body)}
            place = end

    def stream(self, verb: str, *, job_id: int, offset: int, follow: bool, batch: bool) -> Iterator[dict[str, Any]]:
        assert (verb, follow, batch) == ("logs", False, True)
        yield from (item for item in self.items() if item["offset"] >= offset)
        yield {"ok": {"job": {"status": self.status}}}


def content(body: bytes) -> dict[str, str]:
    try:
        return {"text": body.decode()}
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(body).decode()}


def kept(path: Path, **place: int) -> list[str]:
    return [line.text for line in kept_lines(path, **place)]


def brought(tmp_path: Path, status: str = "SUCCEEDED") -> Path:
    path = tmp_path / "1" / "run.log"
    keep(Teller(status), "c", 1, path)  # type: ignore[arg-type]
    return path


def test_a_log_is_kept_once_however_often_it_is_asked_for(tmp_path: Path):
    """The second call adds nothing; run.log has the head's bytes."""
    path = brought(tmp_path)
    whole = b"".join(LABEL + line + b"\n" for body in BODIES for line in body.split(b"\n"))
    assert path.read_bytes() == whole
    assert keep(Teller(), "c", 1, path) == 0  # type: ignore[arg-type]
    assert kept(path) == TEXTS
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["run.log", "index.jsonl"])
@pytest.mark.parametrize("cut", [1, 5, 40, 90])
def test_a_writer_that_died_is_made_good(tmp_path: Path, name: str, cut: int):
    """Half a piece at the end, wherever it was cut, is removed and written again, in text and index."""
    path = brought(tmp_path, "RUNNING")
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    path.with_name(name).write_bytes(before[name][: max(0, len(before[name]) - cut)])
    keep(Teller("RUNNING"), "c", 1, path)  # type: ignore[arg-type]
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before


def test_a_log_that_did_not_come_home_whole_does_not_look_whole(tmp_path: Path):
    """What is there is told, then an error; once the job has ended and its log was brought, there is none."""
    path = brought(tmp_path, "RUNNING")
    lines = kept_lines(path)
    assert [next(lines).text for _ in TEXTS] == TEXTS
    with pytest.raises(AgentError, match="the rest of the log did not come home"):
        next(lines)
    assert not is_complete(path)
    keep(Teller(), "c", 1, path)  # type: ignore[arg-type]
    assert is_complete(path)
    assert kept(path) == TEXTS


def test_keeping_again_leaves_no_file_open(tmp_path: Path):
    """Whatever is read is closed."""
    path = brought(tmp_path, "RUNNING")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        keep(Teller(), "c", 1, path)  # type: ignore[arg-type]
        kept(path)
    assert [str(each.message) for each in told] == []


def test_each_life_of_a_name_has_its_own_logs(tmp_path: Path):
    """Job 1 of a cluster and job 1 of its successor of the same name are two files."""
    assert kept_path(tmp_path, "c", "aaaaaaaa-1", 1) != kept_path(tmp_path, "c", "bbbbbbbb-1", 1)


def test_reading_resumes_at_any_line(tmp_path: Path):
    """From each line's offset on, and from the end; a tail is the last lines."""
    path = brought(tmp_path)
    lines = list(kept_lines(path))
    for number, line in enumerate(lines):
        assert kept(path, offset=line.offset) == TEXTS[number:]
        assert kept(path, tail=number) == (TEXTS[-number:] if number else [])
    assert kept(path, offset=lines[-1].next_offset) == []
    assert kept(path, tail=99) == TEXTS


@pytest.mark.parametrize("offset", [-1, 1, 20, 10_000])
def test_an_offset_where_no_line_begins_is_refused(tmp_path: Path, offset: int):
    """Below nothing, within a line, beyond the end."""
    path = brought(tmp_path)
    with pytest.raises(InvalidSpecError, match=f"no line begins at offset {offset}"):
        kept(path, offset=offset)


def test_a_piece_that_does_not_follow_is_refused(tmp_path: Path):
    """A gap, or a piece that was here before, is never written."""
    first, second, _ = [piece_of(item) for item in Teller().items()]
    with KeptLog(tmp_path / "run.log") as log:
        with pytest.raises(ValueError, match="does not follow"):
            log.add(second)
        log.add(first)
        with pytest.raises(ValueError, match="does not follow"):
            log.add(first)
