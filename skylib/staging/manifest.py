"""What a tree holds, entry by entry, and digests of it.

Paths are relative to the tree's root, with "/" between parts; bytes that are no UTF-8 are kept as surrogates
(`os.fsdecode`), so every name survives. The root itself is the entry with the empty path: a directory, or the single
file that the "tree" is.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType

import attrs

from skylib.errors import StagingError

__all__ = ["Entry", "Kind", "Manifest", "entry_of", "file_digest", "scan"]

_READ_BYTES = 1024 * 1024
_Sums = Mapping[str, bytes]


class Kind(str, Enum):
    """What an entry is; the values are the letters of `find -printf %y`."""

    FILE = "f"
    DIR = "d"
    LINK = "l"


@attrs.frozen(kw_only=True, slots=True)
class Entry:
    """One file, directory or symbolic link.

    mode: the nine permission bits alone; set-id and sticky bits do not travel. A directory's always include those of
    its owner (0o700): one that its owner cannot write would stop the next sync and the take-down.
    size: bytes; 0 for a directory, the length of the target for a link. target: of a link, as it is stored.
    ino, ctime_ns: of the file on this machine, which an edit that keeps size and time changes; no part of what it is.
    exact: its time goes to nodes to the nanosecond, since a later edit could fall into the same second.
    """

    path: str
    kind: Kind
    mode: int
    size: int
    mtime_ns: int
    target: str = ""
    ino: int = attrs.field(default=0, eq=False, repr=False)
    ctime_ns: int = attrs.field(default=0, eq=False, repr=False)
    exact: bool = attrs.field(default=False, eq=False, repr=False)


@attrs.frozen(kw_only=True)
class Manifest:
    """The entries of one tree, parents before their children.

    source: the root on this machine, resolved. left_out: path -> why, of what cannot travel (sockets, FIFOs, devices).
    """

    source: str
    entries: tuple[Entry, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def is_file(self) -> bool:
        """The source is one file and no directory."""
        return self.entries[0].kind is Kind.FILE

    @property
    def files(self) -> int:
        """How many files and links there are."""
        return sum(entry.kind is not Kind.DIR for entry in self.entries)

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.entries if entry.kind is Kind.FILE)

    def source_of(self, entry: Entry) -> str:
        """Where the entry is on this machine."""
        return f"{self.source}/{entry.path}" if entry.path else self.source

    def without(self, paths: Iterable[str]) -> Manifest:
        """The same tree less some entries."""
        gone = frozenset(paths)
        return attrs.evolve(self, entries=tuple(entry for entry in self.entries if entry.path not in gone))

    def quick_digest(self) -> str:
        """SHA-256 over names, kinds, modes, sizes and times: cheap, changed by a mere `touch`."""
        sums = hashlib.sha256()
        for entry in self.entries:
            mtime = 0 if entry.kind is Kind.DIR else entry.mtime_ns
            sums.update(_line(entry, f"{entry.size} {mtime}".encode()))
        return sums.hexdigest()

    def digest(self, known: _Sums = MappingProxyType({})) -> str:
        """SHA-256 over names, kinds, modes, link targets and contents: the same for two checkouts of one commit.

        Reads every file that is not in `known`: path -> file_digest. Raises StagingError with the path of one that
        cannot be read.
        """
        sums = hashlib.sha256()
        for entry in self.entries:
            content = b""
            if entry.kind is Kind.FILE:
                content = known.get(entry.path) or file_digest(self.source_of(entry))
            sums.update(_line(entry, content))
        return sums.hexdigest()


def entry_of(path: str, found: os.stat_result, source: str) -> Entry | None:
    """The entry for what `lstat` found at `source`; None for a socket, FIFO or device. Raises OSError (a link gone)."""
    if stat.S_ISREG(found.st_mode):
        return Entry(
            path=path,
            kind=Kind.FILE,
            mode=found.st_mode & 0o777,
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            ino=found.st_ino,
            ctime_ns=found.st_ctime_ns,
        )
    if stat.S_ISDIR(found.st_mode):
        return Entry(path=path, kind=Kind.DIR, mode=found.st_mode & 0o777 | 0o700, size=0, mtime_ns=found.st_mtime_ns)
    if stat.S_ISLNK(found.st_mode):
        target = os.readlink(source)
        size = len(os.fsencode(target))
        return Entry(path=path, kind=Kind.LINK, mode=0o777, size=size, mtime_ns=found.st_mtime_ns, target=target)
    return None


def scan(source: Path, paths: Iterable[str]) -> Manifest:
    """The manifest of `paths` under `source` (see select.py for which ones), with the directories above them.

    `source` may be a link: what it points to is taken. A path that is gone, or that lies behind a link or a file, is
    left out: it is no part of this tree. Raises StagingError when the source is missing or cannot be read.
    """
    root = os.path.realpath(source)
    try:
        top = entry_of("", os.lstat(root), root)
    except OSError as exc:
        raise StagingError(f"cannot read {source}: {exc.strerror}", path=str(source)) from exc
    if top is None:
        raise StagingError(f"{source} is neither a file nor a directory", path=str(source))
    if top.kind is not Kind.DIR:
        return Manifest(source=root, entries=(top,))
    found: dict[str, Entry] = {"": top}
    left_out: list[tuple[str, str]] = []
    barred: set[str] = set()
    for path in paths:
        if _parents_stand(root, path, found, barred):
            _add(root, path, found, left_out)
    return Manifest(
        source=root, entries=tuple(sorted(found.values(), key=lambda entry: entry.path)), left_out=tuple(left_out)
    )


def _add(root: str, path: str, found: dict[str, Entry], left_out: list[tuple[str, str]]) -> None:
    if path in found:
        return
    source = f"{root}/{path}"
    try:
        entry = entry_of(path, os.lstat(source), source)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise StagingError(f"cannot read {source}: {exc.strerror}", path=source) from exc
    if entry is None:
        left_out.append((path, "neither a file, a directory nor a link"))
    else:
        found[path] = entry


def _parents_stand(root: str, path: str, found: dict[str, Entry], barred: set[str]) -> bool:
    """Every directory above `path` is one, and is in `found` afterwards."""
    parent = path.rpartition("/")[0]
    known = found.get(parent)
    if known is not None:
        return known.kind is Kind.DIR
    if parent in barred or not _parents_stand(root, parent, found, barred):
        barred.add(parent)
        return False
    _add(root, parent, found, [])
    if parent not in found or found[parent].kind is not Kind.DIR:
        found.pop(parent, None)
        barred.add(parent)
        return False
    return True


def _line(entry: Entry, content: bytes) -> bytes:
    head = f"{entry.kind.value} {entry.mode:o} ".encode()
    return b"\0".join((head + os.fsencode(entry.path), os.fsencode(entry.target), content, b""))


def file_digest(source: str) -> bytes:
    """SHA-256 of a file's content, in hex. Raises StagingError with its path when it cannot be read."""
    sums = hashlib.sha256()
    try:
        for piece in _pieces(source):
            sums.update(piece)
    except OSError as exc:
        raise StagingError(f"cannot read {source}: {exc.strerror}", path=source) from exc
    return sums.hexdigest().encode()


def _pieces(source: str) -> Iterator[bytes]:
    with open(source, "rb", buffering=0) as file:
        while piece := file.read(_READ_BYTES):
            yield piece
