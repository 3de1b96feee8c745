"""A store that cannot be read: how that is told from one that is busy, full or away, and how it is put aside.

What SQLite does not notice by itself is a file that lost its end while its log is whole: pages that are in neither read
as zeros. `lost_pages` finds them. The -wal file may be opened beside SQLite: it holds no locks on it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from skylib.errors import StateError, StoreDamaged
from skylib.paths import SkyHome

__all__ = [
    "BESIDE",
    "FileId",
    "cannot_move",
    "identity",
    "is_damage",
    "is_torn",
    "lost_pages",
    "move_aside",
    "moved_before",
    "read_clusters",
    "second_look",
    "store_damaged",
]

# What SQLite keeps beside a store, by the end of its name.
BESIDE = ("-wal", "-shm", "-journal")

_CORRUPT, _NOT_A_DATABASE = 11, 26
# The smallest database has one page of the smallest size.
_SMALLEST = 512
_WAL_HEADER = struct.Struct(">IIIIII")
_WAL_HEADER_BYTES = 32
_FRAME_HEADER = struct.Struct(">IIII")
_FRAME_HEADER_BYTES = 24
_WAL_MAGIC = (0x377F0682, 0x377F0683)
# SQLite locks bytes at 1 GiB; the page that has them is never written.
_LOCK_BYTE = 0x40000000


@attrs.frozen
class FileId:
    """Which file a path leads to."""

    device: int
    inode: int


def identity(path: Path) -> FileId | None:
    """None when there is nothing at `path`."""
    try:
        seen = os.stat(path)
    except FileNotFoundError:
        return None
    return FileId(seen.st_dev, seen.st_ino)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file is not what it should be. A disk that fails, or is full, is another thing."""
    code = getattr(error, "sqlite_errorcode", None)  # since Python 3.11
    if isinstance(code, int):
        return code & 0xFF in (_CORRUPT, _NOT_A_DATABASE)
    words = str(error)
    return "malformed" in words or "not a database" in words or "Could not decode to UTF-8" in words


def is_torn(path: Path) -> str | None:
    """What is wrong with the size of the file, before SQLite has seen it; it takes an empty one for new.

    Stores are never made empty, and SQLite would delete the log of an empty one.
    """
    size = path.stat().st_size
    return f"the file is cut off: {size} bytes" if size < _SMALLEST else None


def lost_pages(connection: sqlite3.Connection, path: Path) -> int:
    """How many pages of the present state are neither in the file nor in its log. Outside of a transaction.

    Costs two questions to SQLite, unless the file is shorter than its content, as it may be until the log is copied.
    """
    connection.execute("BEGIN")
    try:
        pages = int(connection.execute("PRAGMA page_count").fetchone()[0])
        page_bytes = int(connection.execute("PRAGMA page_size").fetchone()[0])
        there = path.stat().st_size // page_bytes
        if there >= pages:
            return 0
        # The log cannot begin anew while this transaction reads from it.
        logged = _logged_pages(path.with_name(path.name + "-wal"))
        wanted = pages - there - (1 if there <= _LOCK_BYTE // page_bytes < pages else 0)
        return max(0, wanted - sum(1 for page in logged if there < page <= pages))
    finally:
        connection.execute("ROLLBACK")


def _logged_pages(wal: Path) -> set[int]:
    """Numbers of the pages in a write-ahead log: frames at its beginning that carry its salt."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError), wal.open("rb") as file:
        header = file.read(_WAL_HEADER_BYTES)
        if len(header) < _WAL_HEADER_BYTES:
            return found
        magic, _, page_bytes, _, *salt = _WAL_HEADER.unpack_from(header)
        if magic not in _WAL_MAGIC:
            return found
        at = _WAL_HEADER_BYTES
        while True:
            frame = os.pread(file.fileno(), _FRAME_HEADER_BYTES, at)
            if len(frame) < _FRAME_HEADER_BYTES:
                return found
            page, _, *carried = _FRAME_HEADER.unpack_from(frame)
            if carried != salt:
                return found
            found.add(page)
            at += _FRAME_HEADER_BYTES + page_bytes
    return found


@contextlib.contextmanager
def second_look(path: Path) -> Iterator[str | None]:
    """What is wrong with a store that seemed damaged; None when it is whole. Raises sqlite3.Error for other troubles.

    Its connection stays open for the `with` block, in which the file may be moved: the last connection to close would
    copy the log into the file and delete it, unless the file has been moved.
    """
    torn = is_torn(path)
    if torn:
        yield torn
        return
    connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=5.0, isolation_level=None)
    try:
        yield _whats_wrong(connection, path)
    finally:
        connection.close()


def _whats_wrong(connection: sqlite3.Connection, path: Path) -> str | None:
    try:
        lost = lost_pages(connection, path)
        if lost:
            return f"{lost} pages are missing"
        found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)")]
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        return str(error)
    return None if found == ["ok"] else "; ".join(found)


def read_clusters(connection: sqlite3.Connection | None) -> dict[str, tuple[str, ...]]:
    """Names of clusters and their hosts ("ssh/lab: h1"), as far as they can be read. Raises nothing."""
    found: dict[str, list[str]] = {}
    if connection is None:
        return {}
    with contextlib.suppress(sqlite3.Error):
        for (name,) in connection.execute("SELECT name FROM clusters NOT INDEXED"):
            found.setdefault(str(name), [])
    with contextlib.suppress(sqlite3.Error):
        for cluster, infra, host in connection.execute("SELECT cluster, infra, host FROM host_claims NOT INDEXED"):
            found.setdefault(str(cluster), []).append(f"{infra}: {host}")
    return {name: tuple(sorted(hosts)) for name, hosts in sorted(found.items())}


def move_aside(path: Path, *, at: float) -> tuple[Path, ...]:
    """Rename the store and what lies beside it; the new paths. Under the lock "store". Raises OSError.

    The store goes first: without its log it could be an older one, and whole. A log that is left behind, should this
    process be killed here, is put aside before there is another store of that name.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
    number = 1
    while True:
        target = path.with_name(f"{path.name}.damaged-{stamp}" + (f".{number}" if number > 1 else ""))
        if not any(target.with_name(target.name + end).exists() for end in ("", *BESIDE)):
            break
        number += 1
    moved = []
    for end in ("", *BESIDE):
        with contextlib.suppress(FileNotFoundError):
            saved = target.with_name(target.name + end)
            os.rename(path.with_name(path.name + end), saved)
            moved.append(saved)
    return tuple(moved)


def moved_before(path: Path, file: FileId) -> tuple[Path, ...]:
    """Where somebody else has put that file."""
    for saved in path.parent.glob(f"{path.name}.damaged-*"):
        if identity(saved) == file:
            return (saved, *(each for end in BESIDE if (each := saved.with_name(saved.name + end)).exists()))
    return ()


def store_damaged(
    home: SkyHome, evidence: str, saved: tuple[Path, ...], clusters: Mapping[str, tuple[str, ...]]
) -> StoreDamaged:
    """The error for a store that was moved to `saved`."""
    known = ", ".join(f"{name} ({', '.join(hosts) or 'hosts unknown'})" for name, hosts in clusters.items())
    first = saved[0].name if saved else "another name"
    return StoreDamaged(
        f"{home.state_db} was damaged and has been moved aside, to {first}: {evidence}",
        saved=tuple(str(path) for path in saved),
        clusters=dict(clusters),
        evidence=f"clusters that could still be read: {known or 'none'}",
        hint=(
            "nothing was deleted, and the clusters themselves are not touched. The next call works on a new, empty store: "
            'client.discover("ssh/<pool>") finds what stands, client.adopt(name) brings each cluster back; '
            f"`sqlite3 {saved[0] if saved else '<saved>'} .recover` reads what else is left"
        ),
    )


def cannot_move(path: Path, evidence: str, error: OSError) -> StateError:
    """The error for one that had to stay where it is."""
    return StateError(
        f"{path} is damaged ({evidence}) and could not be moved aside: {error.strerror or error}",
        hint=f"make {path.parent} writable for this account; nothing was deleted",
    )
