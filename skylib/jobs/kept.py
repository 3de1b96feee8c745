"""Logs of jobs that were brought home: run.log as the head had it, and an index that says for each piece whose it is.

run.log holds the same bytes as the head's merged log, so that offsets are the same. index.jsonl holds a row for each piece
of it, lines of one rank that were read together: [start, end, rank, node, stream, time, prefix, partial], prefix being
the bytes before each line that say whose it is. Text is written first, then its row: what has no row does not exist. A
last row {"complete": end} says that there is no more to come.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs

from skylib.errors import AgentError, InvalidSpecError, StagingError
from skylib.jobs.lines import Piece
from skylib.models.job import LogLine
from skylib.paths import ensure_private_dir

__all__ = ["KeptLog", "is_complete", "kept_lines", "kept_path"]

_INDEX = "index.jsonl"
_TEXT = "run.log"


def kept_path(job_logs: Path, cluster: str, cluster_id: str, job_id: int) -> Path:
    """Where the log of a job is kept at home; each life of a cluster's name has its own folder."""
    return job_logs / cluster / cluster_id[:8] / str(job_id) / _TEXT


@attrs.frozen
class _Row:
    start: int
    end: int
    rank: int
    node: str
    stream: str
    time: float
    prefix: int
    partial: bool

    @classmethod
    def of(cls, piece: Piece) -> _Row:
        start, end = piece.offset, piece.next_offset
        return cls(start, end, piece.rank, piece.node, piece.stream, piece.time, piece.prefix, piece.partial)

    def piece(self, text: bytes) -> Piece:
        """text: of run.log, from start to end."""
        label = text[: self.prefix]
        return Piece(
            offset=self.start,
            next_offset=self.end,
            rank=self.rank,
            node=self.node,
            stream=self.stream,
            time=self.time,
            prefix=self.prefix,
            partial=self.partial,
            body=text[self.prefix : -1].replace(b"\n" + label, b"\n"),
        )


class KeptLog:
    """The writer of one kept log; one at a time. What a dead one left half done is cut off when it is opened.

    end: how far the log is here. Raises OSError.
    """

    def __init__(self, path: Path) -> None:
        ensure_private_dir(path.parent)
        self._text = path.open("a+b")
        self._index = path.with_name(_INDEX).open("a+b")
        self.end = 0
        whole = 0
        size = self._text.seek(0, os.SEEK_END)
        for row, place in _rows(self._index):
            if row.start != self.end or row.end > size:
                break
            self.end, whole = row.end, place
        self._index.truncate(whole)
        self._text.truncate(self.end)

    def add(self, piece: Piece) -> None:
        """The next piece. Raises ValueError when it does not begin where the log ends."""
        if piece.offset != self.end:
            raise ValueError(f"a piece at {piece.offset} does not follow on {self.end}")
        text = piece.merged()
        if self.end + len(text) != piece.next_offset:
            raise ValueError(f"a piece of {len(text)} bytes does not fill {piece.offset} to {piece.next_offset}")
        self._text.write(text)
        self._text.flush()
        self._index.write(json.dumps(attrs.astuple(_Row.of(piece)), separators=(",", ":")).encode() + b"\n")
        self.end = piece.next_offset

    def close(self, *, complete: bool = False) -> None:
        """On the disk when it returns. complete: no more is to come."""
        if self._text.closed:
            return
        try:
            self._text.flush()
            os.fsync(self._text.fileno())
            if complete:
                self._index.write(json.dumps({"complete": self.end}).encode() + b"\n")
            self._index.flush()
            os.fsync(self._index.fileno())
        finally:
            self._text.close()
            self._index.close()

    def __enter__(self) -> KeptLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def is_complete(path: Path) -> bool:
    """Whether all of the job's log is here."""
    try:
        with path.with_name(_INDEX).open("rb") as index:
            end = index.seek(0, os.SEEK_END)
            index.seek(max(0, end - 100))
            last = index.read().splitlines()[-1:]
    except FileNotFoundError:
        return False
    return bool(last) and last[0].startswith(b'{"complete"') and last[0].endswith(b"}")


def kept_lines(path: Path, *, offset: int = 0, tail: int | None = None) -> Iterator[LogLine]:
    """Lines of a log that was brought home, from `offset` on, or the last `tail` ones; none when there is none.

    Raises InvalidSpecError when no line begins at the offset; AgentError, after the lines, when there were more that did
    not come home.
    """
    try:
        with path.open("rb") as text, path.with_name(_INDEX).open("rb") as index:
            rows = [row for row, _ in _rows(index)]
            end = rows[-1].end if rows else 0
            if tail is not None:
                offset = _last(text, rows, tail)
            elif not 0 <= offset <= end:
                raise _no_line(offset, f"the log ends at {end}")
            for row in rows:
                if row.end > offset:
                    text.seek(row.start)
                    yield from _from(row.piece(text.read(row.end - row.start)), offset)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StagingError(f"a kept log cannot be read: {error.strerror or error}", path=str(path)) from error
    if not is_complete(path):
        raise AgentError(f"the rest of the log did not come home: {path} ends at {end}", retryable=False, offset=end)


def _from(piece: Piece, offset: int) -> Iterator[LogLine]:
    for line in piece.lines():
        if line.offset >= offset:
            yield line
        elif line.next_offset > offset:
            raise _no_line(offset, f"it lies within the line that begins at {line.offset}")


def _no_line(offset: int, why: str) -> InvalidSpecError:
    return InvalidSpecError(f"no line begins at offset {offset}: {why}", field="offset")


def _last(text: Any, rows: list[_Row], lines: int) -> int:
    """Where the last lines begin."""
    for row in reversed(rows):
        if lines <= 0:
            return row.end
        text.seek(row.start)
        there = [line.offset for line in row.piece(text.read(row.end - row.start)).lines()]
        if len(there) >= lines:
            return there[-lines]
        lines -= len(there)
    return 0


def _rows(index: Any) -> Iterator[tuple[_Row, int]]:
    """Whole rows in order, each with where it ends in the file; up to the first that cannot be read."""
    index.seek(0)
    place = 0
    for raw in index:
        try:
            values = json.loads(raw) if raw.endswith(b"\n") else None
            row = _Row(*values) if isinstance(values, list) else None
        except (ValueError, TypeError):
            return
        if row is None:
            return
        place += len(raw)
        yield row, place
