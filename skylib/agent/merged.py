"""A job's merged log: text for humans, and an index beside it that says for each piece whose it is.

run.log holds lines as "(head, rank=0) text"; run.idx holds one fixed-size record for each piece of it: whole lines of one
rank that were read together. A piece whose last line goes on later, or that ends without a newline, gets a newline in
run.log all the same; flags say so. The text is written first, then its record: what has no record does not exist. A
record holds how far the rank's own file was read, so collecting goes on exactly there after a crash.
"""

from __future__ import annotations

import base64
import os
import struct
import threading
import time
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

__all__ = ["MergedLog", "MergedReader", "NoLine", "Record"]

_RECORD = struct.Struct("<QQQdHHBBxx")  # start, end, source_end, time, rank, prefix, stream, flags
_STREAMS = ("setup", "run")
_OPEN = 1  # the last line goes on in the rank's next piece


class Record(NamedTuple):
    """start, end: in run.log. source_end: in the rank's own file. prefix: length of each line's prefix in bytes."""

    start: int
    end: int
    source_end: int
    time: float
    rank: int
    prefix: int
    stream: int
    flags: int


def prefix_of(stream: str, node: str, rank: int) -> bytes:
    return f"({node}, rank={rank}) ".encode() if stream == "run" else f"(setup {node}, rank={rank}) ".encode()


class MergedLog:
    """The writer. One for each job that runs; safe from several threads."""

    def __init__(self, log_dir: str) -> None:
        os.makedirs(log_dir, mode=0o700, exist_ok=True)
        self._text = os.open(os.path.join(log_dir, "run.log"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._index = os.open(os.path.join(log_dir, "run.idx"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.source: Dict[Tuple[str, int], int] = {}
        self.end = 0
        self._count = 0
        self._lock = threading.Lock()
        self._closed = False
        self._recover()

    def _recover(self) -> None:
        """Cuts off what a crash left half done."""
        count = os.fstat(self._index).st_size // _RECORD.size
        data = os.pread(self._index, count * _RECORD.size, 0)
        size = os.fstat(self._text).st_size
        for fields in _RECORD.iter_unpack(data):
            record = Record(*fields)
            if record.start != self.end or record.end > size:
                break
            self.end = record.end
            self.source[_STREAMS[record.stream], record.rank] = record.source_end
            self._count += 1
        self._cut()

    def _cut(self) -> None:
        os.ftruncate(self._index, self._count * _RECORD.size)
        os.ftruncate(self._text, self.end)

    def append(
        self, stream: str, node: str, rank: int, offset: int, data: bytes, *, goes_on: bool, now: Optional[float] = None
    ) -> None:
        """A piece of a rank's file. One that was here before is passed over; a gap raises ValueError.

        Raises OSError when it cannot be written (a full disk): then it is as if it had never been, and may come again.
        What comes after `close` is passed over.
        """
        with self._lock:
            if not self._closed:
                self._append(stream, node, rank, offset, data, goes_on, now or time.time())

    def _append(self, stream: str, node: str, rank: int, offset: int, data: bytes, goes_on: bool, now: float) -> None:
        done = self.source.get((stream, rank), 0)
        if offset > done:
            raise ValueError(f"{stream} of rank {rank}: piece at {offset}, but only {done} bytes were collected")
        if offset + len(data) <= done:
            return
        data = data[done - offset :]
        prefix = prefix_of(stream, node, rank)
        body = data[:-1] if data.endswith(b"\n") else data
        text = prefix + body.replace(b"\n", b"\n" + prefix) + b"\n"
        source_end = done + len(data)
        flags = _OPEN if goes_on else 0
        record = Record(self.end, self.end + len(text), source_end, now, rank, len(prefix), _STREAMS.index(stream), flags)
        try:
            self._write(self._text, text, self.end)
            self._write(self._index, _RECORD.pack(*record), self._count * _RECORD.size)
        except OSError:
            self._cut()
            raise
        self._count += 1
        self.end = record.end
        self.source[stream, rank] = source_end

    @staticmethod
    def _write(handle: int, data: bytes, place: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(handle, view, place)
            view, place = view[written:], place + written

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._text)
                os.close(self._index)


class NoLine(ValueError):
    """No line begins at an offset. end: where the log ends now. begins: where the line that holds the offset does."""

    def __init__(self, offset: int, end: int, begins: Optional[int]) -> None:
        where = f"the log ends at {end}" if begins is None else f"it lies within the line that begins at {begins}"
        super().__init__(f"no line begins at offset {offset}: {where}")
        self.end = end
        self.begins = begins


class MergedReader:
    """Reads from an offset on, as far as the index goes. What it says of the node is taken from the lines' prefix.

    batch: lines of one rank that were written together come as one item, their text joined by newlines, "prefix" the bytes
    that stand before each in run.log; else each line is an item.
    """

    def __init__(self, log_dir: str, offset: int, *, batch: bool = False) -> None:
        self._text_path = os.path.join(log_dir, "run.log")
        self._index_path = os.path.join(log_dir, "run.idx")
        self.offset = offset
        self._batch = batch
        self._next: Optional[int] = None  # number of the first record that is not read to its end

    def read(self, budget: int = 1 << 18, *, limit: Optional[int] = None) -> List[Dict[str, Any]]:
        """The next lines as the protocol's items, about `budget` bytes of them; [] when there are none now.

        limit: lines that begin there or later are left for another time.
        """
        items: List[Dict[str, Any]] = []
        try:
            with open(self._index_path, "rb", buffering=0) as index, open(self._text_path, "rb", buffering=0) as text:
                while budget > 0 and (limit is None or self.offset < limit):
                    record = self._record(index.fileno())
                    if record is None:
                        break
                    start = max(self.offset, record.start)
                    data = os.pread(text.fileno(), record.end - record.start, record.start)
                    if len(data) < record.end - record.start:
                        break
                    if self._batch:
                        items.append(_item_of_lines(record, data, start))
                    else:
                        items.extend(_items(record, data, start))
                    budget -= record.end - start
                    self.offset = record.end
                    self._next = (self._next or 0) + 1
        except FileNotFoundError:
            return items
        return items

    def end(self) -> int:
        """Where the log ends now."""
        try:
            with open(self._index_path, "rb", buffering=0) as index:
                count = os.fstat(index.fileno()).st_size // _RECORD.size
                return self._at(index.fileno(), count - 1).end if count else 0
        except FileNotFoundError:
            return 0

    def check(self) -> None:
        """Raises NoLine unless a line begins at the offset, or will, since it is the end."""
        end = self.end()
        if self.offset in (0, end):
            return
        if not 0 < self.offset < end:
            raise NoLine(self.offset, end, None)
        with open(self._index_path, "rb", buffering=0) as index, open(self._text_path, "rb", buffering=0) as text:
            record = self._at(index.fileno(), self._find(index.fileno()))
            before = os.pread(text.fileno(), self.offset - record.start, record.start)
        if before and not before.endswith(b"\n"):
            raise NoLine(self.offset, end, record.start + before.rfind(b"\n") + 1)

    def go_to_last(self, lines: int) -> None:
        """From where the last lines begin that are there now: all of them, if there are no more."""
        self.offset, self._next = self.end(), None
        try:
            with open(self._index_path, "rb", buffering=0) as index, open(self._text_path, "rb", buffering=0) as text:
                number = os.fstat(index.fileno()).st_size // _RECORD.size - 1
                while lines > 0 and number >= 0:
                    record = self._at(index.fileno(), number)
                    data = os.pread(text.fileno(), record.end - record.start, record.start)
                    self.offset, lines = _back(record.start, data, lines)
                    number -= 1
        except FileNotFoundError:
            return

    def _record(self, index: int) -> Optional[Record]:
        if self._next is None:
            self._next = self._find(index)
        data = os.pread(index, _RECORD.size, self._next * _RECORD.size)
        return Record(*_RECORD.unpack(data)) if len(data) == _RECORD.size else None

    @staticmethod
    def _at(index: int, number: int) -> Record:
        return Record(*_RECORD.unpack(os.pread(index, _RECORD.size, number * _RECORD.size)))

    def _find(self, index: int) -> int:
        """Number of the first record that ends after our offset."""
        low, high = 0, os.fstat(index).st_size // _RECORD.size
        while low < high:
            middle = (low + high) // 2
            if self._at(index, middle).end > self.offset:
                high = middle
            else:
                low = middle + 1
        return low


def _back(start: int, data: bytes, lines: int) -> Tuple[int, int]:
    """Where the last lines of a piece begin, and how many are still wanted from before it."""
    there = data.count(b"\n")
    if there <= lines:
        return start, lines - there
    place = len(data) - 1
    for _ in range(lines):
        place = data.rfind(b"\n", 0, place)
    return start + place + 1, 0


def _head_of(record: Record, data: bytes) -> Dict[str, Any]:
    """What all lines of one piece have in common."""
    stream = _STREAMS[record.stream]
    label = data[: record.prefix].decode("utf-8", "replace")
    node = label[len("(setup ") if stream == "setup" else 1 :].partition(",")[0]
    return {"rank": record.rank, "node": node, "stream": stream, "time": record.time}


def _put_content(item: Dict[str, Any], content: bytes) -> Dict[str, Any]:
    try:
        item["text"] = content.decode("utf-8")
    except UnicodeDecodeError:
        item["b64"] = base64.b64encode(content).decode("ascii")
    return item


def _item_of_lines(record: Record, data: bytes, start: int) -> Dict[str, Any]:
    """All lines of one piece, from the line on that begins at `start`."""
    body = data[start - record.start + record.prefix : -1]
    item = _head_of(record, data)
    item.update(offset=start, next_offset=record.end, prefix=record.prefix, partial=bool(record.flags & _OPEN))
    return _put_content(item, body.replace(b"\n" + data[: record.prefix], b"\n"))


def _items(record: Record, data: bytes, start: int) -> Iterator[Dict[str, Any]]:
    """Lines of one piece, from `start` on, one by one."""
    head = _head_of(record, data)
    position = 0
    for line in data[:-1].split(b"\n"):
        offset = record.start + position
        position += len(line) + 1
        if offset < start:
            continue
        last = record.start + position == record.end
        item = {"offset": offset, "next_offset": record.start + position, **head}
        item["partial"] = last and bool(record.flags & _OPEN)
        yield _put_content(item, line[record.prefix :])
