"""The power goes: files of a store at work, cut off anywhere, open as a state that once was, or not at all.

The writer is stopped in the middle of its work and its files are copied. Of the log, what SQLite has copied into the
main file was synced before (that is SQLite's rule), so a power cut keeps it; all that came later may be cut off, or have
holes. The main file is cut anywhere: that is a disk that lies, or a copy that broke off.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import attrs
import pytest

from skylib.errors import StoreDamaged
from skylib.locks import Locks
from skylib.paths import SkyHome
from skylib.state.backend import Connection
from skylib.state.connections import Connections
from tests.processes import Child

_KEPT = 40
_SEED = int(os.environ.get("POWER_CUT_SEED") or random.SystemRandom().randrange(1 << 32))


@attrs.frozen(kw_only=True)
class Snapshot:
    """Files of a store at one moment. steady: bytes of the log that a power cut leaves alone."""

    folder: Path
    steady: int

    @property
    def log_bytes(self) -> int:
        log = self.folder / "state.db-wal"
        return log.stat().st_size if log.exists() else 0


def _payload(number: int) -> str:
    """Of one transaction: from a few bytes to several pages."""
    return sha256(str(number).encode()).hexdigest() * (1 + number * 37 % 200)


def _begin(connection: Connection) -> None:
    connection.execute("CREATE TABLE counter (number INTEGER)")
    connection.execute("CREATE TABLE entries (number INTEGER PRIMARY KEY, payload TEXT)")
    connection.execute("INSERT INTO counter VALUES (0)")


def _step(connection: Connection) -> int:
    """One transaction: both tables go one on, and the second drops what is old."""
    ((number,),) = connection.rows("SELECT number + 1 FROM counter")
    connection.execute("UPDATE counter SET number = ?", number)
    connection.execute("INSERT INTO entries VALUES (?, ?)", number, _payload(number))
    connection.execute("DELETE FROM entries WHERE number <= ?", number - _KEPT)
    return int(number)


def _state(connection: Connection) -> tuple[int, list[tuple[int, str]]]:
    """(-1, none) before the tables were made."""
    if not connection.rows("SELECT 1 FROM sqlite_master WHERE name = 'counter'"):
        return -1, []
    ((number,),) = connection.rows("SELECT number FROM counter")
    return number, [(each, text) for each, text in connection.rows("SELECT number, payload FROM entries ORDER BY number")]


def _connections(root: Path) -> Connections:
    home = SkyHome(root)
    return Connections(home, Locks(home))


def _steady_bytes(folder: Path) -> int:
    """From the log's index in shared memory: https://sqlite.org/walformat.html, section 2."""
    log, index = folder / "state.db-wal", folder / "state.db-shm"
    if not log.exists() or not index.exists() or log.stat().st_size < 32:
        return 0
    header = log.read_bytes()[:32]
    shared = index.read_bytes()
    if header[16:24] != shared[32:40]:  # the log is about to begin anew: all of the old one is in the main file
        return log.stat().st_size
    (page_bytes,) = struct.unpack(">I", header[8:12])
    attempted = max(struct.unpack_from("=I", shared, 96)[0], struct.unpack_from("=I", shared, 128)[0])
    return 32 + int(attempted) * (24 + page_bytes) if attempted else 0


def _snapshots(tmp_path: Path, chance: random.Random, count: int) -> Iterator[Snapshot]:
    """A store at work, stopped `count` times."""
    root = tmp_path / "writer"

    def work(child: Child) -> None:
        connections = _connections(root)
        connections.write(_begin)
        child.say(b"begun")
        while True:
            connections.write(_step, durable=chance.random() < 0.3)

    child = Child(work)
    try:
        assert child.heard() == b"begun"
        for number in range(count):
            _wait_for_work(root, chance)
            os.kill(child.pid, signal.SIGSTOP)
            os.waitpid(child.pid, os.WUNTRACED)
            folder = tmp_path / f"snapshot-{number}"
            folder.mkdir()
            for file in root.glob("state.db*"):
                shutil.copy(file, folder)
            os.kill(child.pid, signal.SIGCONT)
            yield Snapshot(folder=folder, steady=_steady_bytes(folder))
            shutil.rmtree(folder)
    finally:
        child.kill()
        child.ended()


def _wait_for_work(root: Path, chance: random.Random) -> None:
    """Until another process has seen the counter move on by a random number of transactions."""
    with closing(_connections(root)) as connections:
        goal = connections.read(_state)[0] + chance.randrange(1, 120)
        while connections.read(_state)[0] < goal:
            pass


def _check(root: Path, *, most: int | None, seen: Counter[str]) -> int:
    """Open what is there: the number of the state that it shows. 'damaged' counts as none."""
    with closing(_connections(root)) as connections:
        saved: tuple[str, ...] | None = None
        try:
            number, entries = connections.read(_state)
        except StoreDamaged as damaged:
            saved = damaged.saved
        if saved is not None:
            seen["moved aside"] += 1
            assert saved
            assert all(Path(path).exists() for path in saved)
            assert connections.read(_state) == (-1, []), "the next call works on a new store"
            return -1
    if number >= 0:
        assert entries == [(each, _payload(each)) for each in range(max(1, number - _KEPT + 1), number + 1)]
    assert most is None or number <= most
    seen["opened"] += 1
    return number


def _copy(snapshot: Snapshot, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(mode=0o700)
    for file in snapshot.folder.iterdir():
        shutil.copy(file, root)


def _cut_log(snapshot: Snapshot, root: Path, chance: random.Random) -> None:
    _copy(snapshot, root)
    at = chance.randint(min(snapshot.steady, snapshot.log_bytes), snapshot.log_bytes)
    log = root / "state.db-wal"
    if not log.exists():
        return
    kind = chance.choice(["cut", "zeros", "noise"])
    if kind == "cut" or at == snapshot.log_bytes:
        os.truncate(log, at)
        return
    length = chance.randint(1, snapshot.log_bytes - at)
    with log.open("r+b") as file:
        file.seek(at)
        file.write(bytes(length) if kind == "zeros" else chance.randbytes(length))


def _cut_main(snapshot: Snapshot, root: Path, chance: random.Random) -> None:
    _copy(snapshot, root)
    main = root / "state.db"
    size = main.stat().st_size
    os.truncate(main, chance.choice([chance.randint(0, size), chance.randint(0, size // 4096) * 4096]))
    # Half of a log may be in the main file: then neither is anything without the other.
    gone = [(), ("state.db-shm",), *([] if snapshot.steady else [("state.db-wal", "state.db-shm")])]
    for name in chance.choice(gone):
        (root / name).unlink(missing_ok=True)


def _sweep(tmp_path: Path, *, snapshots: int, cuts: int) -> None:
    print(f"POWER_CUT_SEED={_SEED}")
    chance = random.Random(_SEED)
    log_cuts, main_cuts, moments = Counter[str](), Counter[str](), Counter[str]()
    for snapshot in _snapshots(tmp_path, chance, snapshots):
        moments["partly copied" if 0 < snapshot.steady < snapshot.log_bytes else "all or nothing"] += 1
        root = tmp_path / "cut"
        _copy(snapshot, root)
        whole = _check(root, most=None, seen=Counter())
        assert whole >= 0
        for _ in range(cuts):
            _cut_log(snapshot, root, chance)
            _check(root, most=whole, seen=log_cuts)
            _cut_main(snapshot, root, chance)
            _check(root, most=whole, seen=main_cuts)
    print(f"log cut: {dict(log_cuts)}; main file cut: {dict(main_cuts)}; logs: {dict(moments)}")
    assert log_cuts["opened"] > 0
    assert main_cuts["moved aside"] > 0


def test_a_store_that_was_cut_off_is_a_state_that_was_or_is_moved_aside(tmp_path: Path) -> None:
    """A sample; POWER_CUT_SEED=<number> takes the same cuts, though not of the same moments."""
    _sweep(tmp_path, snapshots=6, cuts=12)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_sweep_of_cuts(tmp_path: Path) -> None:
    """Thousands of cuts."""
    _sweep(tmp_path, snapshots=60, cuts=50)
