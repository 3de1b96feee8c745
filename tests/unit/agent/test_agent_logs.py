"""The way of a line: from a rank's file in pieces into the merged log, and out again by offset."""

from __future__ import annotations

import base64
import os
import resource
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.agent.merged import MergedLog, MergedReader
from skylib.agent.tail import MAX_PIECE, Tail, cut_utf8


def contents(items: list[dict[str, object]]) -> dict[int, bytes]:
    """What each rank wrote, by rank; a newline after every line that is not open."""
    found: dict[int, bytes] = {}
    for item in items:
        raw = base64.b64decode(str(item["b64"])) if "b64" in item else str(item["text"]).encode()
        rank = int(str(item["rank"]))
        found[rank] = found.get(rank, b"") + raw + (b"" if item["partial"] else b"\n")
    return found


def collect(log: MergedLog, tails: dict[int, Tail], *, now: float, last: bool) -> bool:
    moved = False
    for rank, tail in tails.items():
        piece = tail.read(now, last=last)
        if piece is not None:
            log.append("run", f"worker{rank}", rank, piece.offset, piece.data, goes_on=piece.open)
            tail.taken(piece)
            moved = True
    return moved


def _unended(texts: dict[int, bytes]) -> dict[int, bytes]:
    """Without the newline at the end, which the merged log's last line has in any case."""
    return {rank: data[:-1] if data.endswith(b"\n") else data for rank, data in texts.items()}


CHUNKS = st.lists(
    st.tuples(st.integers(0, 2), st.binary(max_size=12) | st.text("aä€\n\r", max_size=8).map(str.encode)), max_size=30
)


@given(CHUNKS, st.sets(st.integers(0, 29)))
def test_every_byte_comes_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[int, bytes]], restarts: set[int]
) -> None:
    """Ranks write what they like, the collector dies in between: each rank's bytes are in the merged log, once, in order."""
    base = tmp_path_factory.mktemp("log")
    paths = [base / f"{rank}.log" for rank in range(3)]
    log = MergedLog(str(base))
    tails = {rank: Tail(str(path)) for rank, path in enumerate(paths)}
    for number, (rank, data) in enumerate(chunks):
        with paths[rank].open("ab") as file:
            file.write(data)
        collect(log, tails, now=number / 20, last=False)
        if number in restarts:
            log.close()
            log = MergedLog(str(base))
            tails = {rank: Tail(str(path), log.source.get(("run", rank), 0)) for rank, path in enumerate(paths)}
    while collect(log, tails, now=1e9, last=True):
        pass
    items = MergedReader(str(base), 0).read(1 << 30)
    written = {rank: path.read_bytes() for rank, path in enumerate(paths) if path.exists() and path.stat().st_size}
    assert _unended(contents(items)) == _unended(written)
    assert [item["offset"] for item in items[1:]] == [item["next_offset"] for item in items[:-1]]
    for place, item in enumerate(items):
        assert MergedReader(str(base), int(item["offset"])).read(1 << 30) == items[place:]
    assert os.stat(base / "run.log").st_size == (items[-1]["next_offset"] if items else 0)


@pytest.mark.parametrize("cut", [1, 5, 39, 41])
def test_a_crash_between_text_and_index_is_healed(tmp_path: Path, cut: int) -> None:
    """Half a record, or text without a record, is as if it had never been; collecting goes on from there."""
    log = MergedLog(str(tmp_path))
    log.append("run", "head", 0, 0, b"one\n", goes_on=False)
    log.append("run", "head", 0, 4, b"two\n", goes_on=False)
    log.close()
    os.truncate(tmp_path / "run.idx", (tmp_path / "run.idx").stat().st_size - cut)
    again = MergedLog(str(tmp_path))
    done = again.source.get(("run", 0), 0)
    assert done == (4 if cut <= 40 else 0)
    again.append("run", "head", 0, done, b"one\ntwo\n"[done:], goes_on=False)
    assert [item["text"] for item in MergedReader(str(tmp_path), 0).read()] == ["one", "two"]


def test_a_piece_that_comes_again_is_passed_over(tmp_path: Path) -> None:
    """Whole or in part; a gap is an error."""
    log = MergedLog(str(tmp_path))
    log.append("run", "head", 0, 0, b"one\ntwo\n", goes_on=False)
    log.append("run", "head", 0, 0, b"one\n", goes_on=False)
    log.append("run", "head", 0, 4, b"two\nthree\n", goes_on=False)
    assert [item["text"] for item in MergedReader(str(tmp_path), 0).read()] == ["one", "two", "three"]
    with pytest.raises(ValueError, match="piece at 99"):
        log.append("run", "head", 0, 99, b"x", goes_on=False)


def test_setup_and_run_of_one_rank_are_apart(tmp_path: Path) -> None:
    """Each stream of each rank has its own count of bytes, and its own prefix for humans."""
    log = MergedLog(str(tmp_path))
    log.append("setup", "head", 0, 0, b"a\n", goes_on=False)
    log.append("run", "head", 0, 0, b"b\n", goes_on=False)
    assert (tmp_path / "run.log").read_text() == "(setup head, rank=0) a\n(head, rank=0) b\n"
    items = MergedReader(str(tmp_path), 0).read()
    assert [(item["stream"], item["node"], item["text"]) for item in items] == [("setup", "head", "a"), ("run", "head", "b")]


def test_a_half_line_is_held_for_a_moment_only(tmp_path: Path) -> None:
    """Its end comes soon, as a rule; else it is given as it is, without half a character."""
    path = tmp_path / "log"
    path.write_bytes("zwölf".encode()[:4])
    tail = Tail(str(path))
    assert tail.read(1.0, last=False) is None
    assert tail.read(1.05, last=False) is None
    piece = tail.read(1.2, last=False)
    assert piece is not None
    assert (piece.data, piece.open) == ("zwö".encode(), True)


def test_an_endless_line_is_not_held(tmp_path: Path) -> None:
    """It comes in pieces of bounded size."""
    path = tmp_path / "log"
    path.write_bytes(b"x" * (MAX_PIECE + 10))
    tail = Tail(str(path))
    piece = tail.read(1.0, last=False)
    assert piece is not None
    assert (len(piece.data), piece.open) == (MAX_PIECE, True)


@given(st.text(max_size=6), st.integers(0, 30))
def test_a_cut_never_parts_a_character(text: str, length: int) -> None:
    """A prefix of a text is cut to whole characters, and by three bytes at most."""
    data = text.encode()[:length]
    cut = cut_utf8(data)
    assert len(data) - cut <= 3
    data[:cut].decode()


def test_a_reader_waits_for_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    """No file, no lines, no error."""
    assert MergedReader(str(tmp_path / "none"), 0).read() == []


@pytest.mark.parametrize(("pieces", "room"), [(1, 25), (4, 180)])
def test_a_full_disk_passes(tmp_path: Path, pieces: int, room: int) -> None:
    """A write that was cut short, of the text or of the index, is as if it had never been, and comes again later."""
    log = MergedLog(str(tmp_path))
    for number in range(pieces):
        log.append("run", "head", 0, 2 * number, b"x\n", goes_on=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # stands for the disk's end: a short write, then an error
    try:
        with pytest.raises(OSError, match="too large"):
            log.append("run", "head", 0, 2 * pieces, b"last\n", goes_on=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    lines = ["x"] * pieces
    assert [item["text"] for item in MergedReader(str(tmp_path), 0).read()] == lines
    log.append("run", "head", 0, 2 * pieces, b"last\n", goes_on=False)
    log.append("run", "head", 0, 2 * pieces + 5, b"more\n", goes_on=False)
    lines += ["last", "more"]
    assert [item["text"] for item in MergedReader(str(tmp_path), 0).read()] == lines
    assert (tmp_path / "run.log").read_text() == "".join(f"(head, rank=0) {line}\n" for line in lines)


# --- a job that truncates its log


def _texts(base: Path) -> list[object]:
    return [item["text"] for item in MergedReader(str(base), 0).read(1 << 30)]


@pytest.mark.parametrize("then", [b"ten\n", b"four\nfive\n", b"other\nand\nmuch\nlonger\n", b"next\ntwos\n"])
def test_a_log_that_its_job_truncates_begins_anew(tmp_path: Path, then: bytes) -> None:
    """Shorter, as long or longer: what was read stays, what is there then is read from its beginning, once."""
    path = tmp_path / "0.log"
    log, tails = MergedLog(str(tmp_path)), {0: Tail(str(path))}
    path.write_bytes(b"one\ntwo\n3\n")
    collect(log, tails, now=1.0, last=False)
    path.write_bytes(then)
    os.utime(path, ns=(0, time.time_ns() + 1_000_000_000))  # the clock of files may stand still meanwhile
    collect(log, tails, now=2.0, last=False)
    with path.open("ab") as file:
        file.write(b"last\n")
    while collect(log, tails, now=3.0, last=True):
        pass
    assert _texts(tmp_path) == ["one", "two", "3", *then.decode().split(), "last"]


def test_a_log_that_was_emptied_has_nothing_to_tell(tmp_path: Path) -> None:
    """Nobody waits for it, and it begins anew with the same bytes all the same."""
    path = tmp_path / "0.log"
    log, tails = MergedLog(str(tmp_path)), {0: Tail(str(path))}
    for _ in range(3):
        path.write_bytes(b"again\n")
        assert collect(log, tails, now=1.0, last=False)
        os.truncate(path, 0)
        assert not collect(log, tails, now=1.0, last=True)
    assert _texts(tmp_path) == ["again"] * 3


def test_another_reader_goes_on_in_a_log_that_was_truncated(tmp_path: Path) -> None:
    """Where the head has got to says it, with what was written down of the file."""
    path = tmp_path / "0.log"
    log, tails = MergedLog(str(tmp_path)), {0: Tail(str(path))}
    path.write_bytes(b"one\ntwo\n")
    collect(log, tails, now=1.0, last=False)
    path.write_bytes(b"ten\n")
    collect(log, tails, now=1.0, last=False)
    with path.open("ab") as file:
        file.write(b"eleven\n")
    tails = {0: Tail(str(path), log.source["run", 0])}
    while collect(log, tails, now=1.0, last=True):
        pass
    assert _texts(tmp_path) == ["one", "two", "ten", "eleven"]


def test_what_was_read_of_a_truncated_log_and_not_taken_comes_again(tmp_path: Path) -> None:
    """From where the head has got to, if the file still holds it; a piece that did not arrive leaves no gap."""
    path = tmp_path / "0.log"
    log, tail = MergedLog(str(tmp_path)), Tail(str(path))
    path.write_bytes(b"one\n")
    collect(log, {0: tail}, now=1.0, last=False)
    for text in (b"two\nthree\n", b"ten\n"):
        path.write_bytes(text)
        piece = tail.read(1.0, last=False)
        assert piece is not None
        tail.taken(piece)
    tail.offset = log.source["run", 0]
    while collect(log, {0: tail}, now=1.0, last=True):
        pass
    assert _texts(tmp_path) == ["one", "ten"]


def test_a_log_that_a_crash_of_the_machine_cut_off_is_not_told_twice(tmp_path: Path) -> None:
    """It is shorter than what was read, but nobody wrote to it since: what comes then is told."""
    path = tmp_path / "0.log"
    log = MergedLog(str(tmp_path))
    log.append("run", "head", 0, 0, b"one\ntwo\n", goes_on=False)
    path.write_bytes(b"one\n")
    os.utime(path, (1, 1))
    tails = {0: Tail(str(path), 8)}
    assert not collect(log, tails, now=1.0, last=True)
    with path.open("ab") as file:
        file.write(b"another attempt\n")
    collect(log, tails, now=1.0, last=True)
    assert _texts(tmp_path) == ["one", "two", "another attempt"]


def test_that_a_log_was_truncated_need_not_be_written_down(tmp_path: Path) -> None:
    """As on a full disk: here a directory stands in the way."""
    path = tmp_path / "0.log"
    (tmp_path / "0.log.begins").mkdir()
    log, tails = MergedLog(str(tmp_path)), {0: Tail(str(path))}
    for text in (b"one\ntwo\n", b"ten\n"):
        path.write_bytes(text)
        while collect(log, tails, now=1.0, last=True):
            pass
    assert _texts(tmp_path) == ["one", "two", "ten"]


@given(st.lists(st.sampled_from(["write", "look", "truncate", "restart"]), max_size=40))
def test_no_line_is_lost_or_told_twice_however_a_log_is_truncated(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    """What was looked at stays, what was truncated unseen is lost with the file, and all comes in order."""
    base = tmp_path_factory.mktemp("log")
    path = base / "0.log"
    log, tail = MergedLog(str(base)), Tail(str(path))
    told: list[str] = []
    unseen: list[str] = []
    for number, step in enumerate([*steps, "look"]):
        if step == "write":
            unseen.append(f"line {number}")
            with path.open("ab") as file:
                file.write(f"line {number}\n".encode())
            os.utime(path, ns=(0, time.time_ns() + number * 1_000_000_000))
        elif step == "truncate" and path.exists():
            os.truncate(path, 0)
            unseen.clear()
        elif step in ("look", "restart"):
            while collect(log, {0: tail}, now=number, last=True):
                pass
            told += unseen
            unseen.clear()
        if step == "restart":
            log.close()
            log = MergedLog(str(base))
            tail = Tail(str(path), log.source.get(("run", 0), 0))
            collect(log, {0: tail}, now=number, last=True)
    assert _texts(base) == told
