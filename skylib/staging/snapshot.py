"""Snapshots: the files of a task as they were when it was launched, whatever is done to the originals afterwards.

Each tree is copied once (copying.py) into a folder of its own (shelf.py), named by its source and by all that tells its
state: what the quick digest has, and each file's inode and change time, so that neither another tree nor an edit that
keeps size and time passes for it. What an earlier snapshot of the same source has unchanged is linked from there: both
are ours, and nothing writes to them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import attrs

from skylib.errors import LockTimeout, SkyError, StagingError, StateError
from skylib.events import Event, EventSink, Phase, Span, discard, span
from skylib.paths import write_private
from skylib.staging.copying import Copier, is_of_target
from skylib.staging.manifest import Entry, Kind, Manifest, file_digest
from skylib.staging.plan import SyncPlan, SyncTree
from skylib.staging.shelf import NAME_LENGTH, Shelf, Use, boot_id

__all__ = ["Snapshots"]

_BLOCK_BYTES = 4096
_SAME_SECOND_NS = 2_000_000_000
_NOTE_S = 0.2
Hold = Callable[[str], AbstractContextManager[object]]


@attrs.define
class _Made:
    """What staging a plan came to. trees: that were staged anew. copied, linked: files. bytes: copied ones."""

    trees: int = 0
    copied: int = 0
    linked: int = 0
    bytes: int = 0


class Snapshots:
    """The snapshots of one client. Safe from threads and processes; nothing is made before the first `staged`."""

    def __init__(self, folder: Path, *, hold: Hold, max_bytes: float) -> None:
        """hold: a lock by name, between all who use the folder. max_bytes: of all that nobody uses together."""
        self._shelf = Shelf(folder, alone=lambda: hold("staging"))
        self._hold = hold
        self._max_bytes = max_bytes

    @contextlib.contextmanager
    def staged(self, plan: SyncPlan, *, scanned_ns: int, events: EventSink = discard) -> Iterator[SyncPlan]:
        """The plan with a snapshot in the place of each original, in use for the length of the `with` block.

        scanned_ns: unix time at which the scan began. A file that was edited since is taken as it is now, one that is
        gone is left out. Raises StagingError (path): for an original that cannot be read or does not come to rest, and
        for a folder that is full or cannot be written; LockTimeout when another process stages the same for too long.
        """
        with ExitStack() as used:
            used.callback(self._tidy)
            made = _Made()
            if plan:
                with span(events, "files.stage", files=plan.files, bytes=plan.bytes) as step:
                    pace = _Pace(events, plan)
                    trees = tuple(self._tree(tree, scanned_ns, used, made, pace) for tree in plan.trees)
                    step.note(trees=made.trees, copied=made.copied, linked=made.linked, copied_bytes=made.bytes)
                plan = attrs.evolve(plan, trees=trees)
            yield plan

    def content_digest(self, tree: SyncTree, events: EventSink = discard) -> str:
        """`Manifest.digest` of a tree; of a snapshot it is found once and kept with it. Raises StagingError."""
        if not tree.snapshot:
            return tree.manifest.digest()
        known = Path(tree.snapshot) / "digest"
        with contextlib.suppress(FileNotFoundError):
            return known.read_text(encoding="ascii")
        with self._lock(known.parent.name):
            with contextlib.suppress(FileNotFoundError):
                return known.read_text(encoding="ascii")
            with span(events, "files.hash", files=tree.manifest.files, bytes=tree.manifest.bytes) as step:
                digest = self._hash(tree, step)
            with contextlib.suppress(StateError):  # a full disk: it is found again next time
                write_private(known, digest.encode())
            return digest

    def _hash(self, tree: SyncTree, step: Span) -> str:
        """The digest; what earlier snapshots of the source have unchanged is not read again."""
        name, manifest = Path(tree.snapshot).name, tree.manifest
        kept = self._shelf.kept()
        mine = [(each.source, each.boot) for each in kept if each.name == name]
        known: dict[bytes, bytes] = {}
        for each in kept:
            if (each.source, each.boot) in mine:
                known.update(_sums(self._shelf.folder / each.name))
        files = [entry for entry in manifest.entries if entry.kind is Kind.FILE]
        sums = {entry.path: known.get(_stamp(entry)) or file_digest(manifest.source_of(entry)) for entry in files}
        step.note(read=sum(_stamp(entry) not in known for entry in files))
        with contextlib.suppress(StateError):
            write_private(Path(tree.snapshot) / "sums", b"".join(sums.values()))
        return manifest.digest(sums)

    def _tidy(self) -> None:
        """Once nothing is in use any more by who calls it."""
        with contextlib.suppress(OSError, LockTimeout, StateError):  # the next does it
            self._shelf.sweep(self._max_bytes)

    def _lock(self, name: str) -> AbstractContextManager[object]:
        """A few hundred locks for all snapshots that there will ever be, since lock files are not removed."""
        return self._hold(f"staging:{name[:2]}")

    def _tree(self, tree: SyncTree, scanned_ns: int, used: ExitStack, made: _Made, pace: _Pace) -> SyncTree:
        source, boot = tree.manifest.source, boot_id()
        name = _name(source, boot, [_stamp(entry) for entry in tree.manifest.entries])
        with self._in_folder(tree.manifest):
            use = self._shelf.use(name)
            entries = tree.manifest.entries
            if use is None:
                with self._lock(name):
                    use = self._shelf.use(name)
                    if use is None:
                        use, entries = self._make(tree.manifest, boot, made, pace)
        used.callback(use.release)
        since_ns = scanned_ns - _SAME_SECOND_NS
        exact = tuple(attrs.evolve(each, exact=True) if each.mtime_ns > since_ns else each for each in entries)
        manifest = attrs.evolve(tree.manifest, source=str(use.tree), entries=exact)
        return attrs.evolve(tree, manifest=manifest, snapshot=str(use.folder))

    def _make(self, manifest: Manifest, boot: str, made: _Made, pace: _Pace) -> tuple[Use, tuple[Entry, ...]]:
        base = self._newest(manifest.source, boot)
        try:
            known = frozenset((base.folder / "stamps").read_bytes().split(b"\0")) if base is not None else frozenset()
            coming = _room(entry for entry in manifest.entries if _stamp(entry) not in known)
            self._shelf.make_room(self._max_bytes, coming)
            filling = _Filling(manifest=manifest, base=base, known=known, made=made, pace=pace)
            try:
                return self._copy(filling, boot)
            except OSError as error:
                if isinstance(error, SkyError) or not is_of_target(error) or not self._shelf.make_room(0):
                    raise
            return self._copy(filling, boot)  # there is room now that was kept for others
        finally:
            if base is not None:
                base.release()

    def _copy(self, filling: _Filling, boot: str) -> tuple[Use, tuple[Entry, ...]]:
        use = self._shelf.begin()
        try:
            source = filling.manifest.source
            entries = filling.fill(use.tree)
            stamps = [_stamp(entry) for entry in entries]
            (use.folder / "stamps").write_bytes(b"\0".join(stamps))
            filling.made.trees += 1
            name = _name(source, boot, stamps)
            return self._shelf.finish(use, name, source=source, boot=boot, bytes=_room(entries)), entries
        except BaseException:
            self._shelf.drop(use)
            raise

    def _newest(self, source: str, boot: str) -> Use | None:
        for kept in reversed(self._shelf.kept()):
            if (kept.source, kept.boot) == (source, boot):
                use = self._shelf.use(kept.name)
                if use is not None:
                    return use
        return None

    @contextlib.contextmanager
    def _in_folder(self, manifest: Manifest) -> Iterator[None]:
        """What goes wrong in the folder, and not with the originals."""
        folder = self._shelf.folder
        try:
            yield
        except OSError as error:
            if isinstance(error, SkyError):
                raise
            there = shlex.quote(str(_standing(folder)))
            what, hint = "cannot stage", f"see that it can be written: ls -ld {there}"
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                what, hint = (
                    "no room to stage",
                    f"make room (df -h {there}; df -i {there}), or leave files out by .skyignore",
                )
            raise StagingError(
                f"{what} {manifest.source} in {folder}: {error.strerror or error}",
                path=error.filename if isinstance(error.filename, str) else str(folder),
                step="files.stage",
                hint=f"{hint}; or use another home: SKY_HOME=<directory>",
            ) from error


class _Pace:
    """Notes of how far it is, at most five a second."""

    def __init__(self, events: EventSink, plan: SyncPlan) -> None:
        self._events = events
        self._facts = {"total_files": plan.files, "total_bytes": plan.bytes}
        self._files = 0
        self._bytes = 0
        self._next = time.monotonic() + _NOTE_S

    def file(self) -> None:
        self._files += 1
        self._tell()

    def bytes(self, count: int) -> None:
        self._bytes += count
        self._tell()

    def _tell(self) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _NOTE_S
            facts = {"files": self._files, "bytes": self._bytes, **self._facts}
            self._events(Event(step="files.stage", phase=Phase.NOTE, at=time.time(), facts=facts))


@attrs.frozen(kw_only=True)
class _Filling:
    """A snapshot being filled. base: an earlier one of the same source. known: the stamps of what is in that."""

    manifest: Manifest
    base: Use | None
    known: frozenset[bytes]
    made: _Made
    pace: _Pace

    def fill(self, tree: Path) -> tuple[Entry, ...]:
        """Put the manifest's entries in place; what they were when that was done. Raises StagingError, OSError."""
        old, new = str(self.base.tree) if self.base is not None else "", str(tree)
        source, made = self.manifest.source, self.made
        copier = Copier(progress=self.pace.bytes)
        entries: list[Entry] = []
        for entry in self.manifest.entries:
            below = f"/{entry.path}" if entry.path else ""
            if entry.kind is Kind.DIR:
                os.mkdir(f"{new}{below}", 0o700)
            elif entry.kind is Kind.LINK:
                os.symlink(entry.target, f"{new}{below}")
            elif _stamp(entry) in self.known and _linked(f"{old}{below}", f"{new}{below}"):
                made.linked += 1
                self.pace.file()
            else:
                found = copier.copy(f"{source}{below}", f"{new}{below}", entry.path)
                if found is None:
                    continue
                entry = found
                made.copied += 1
                made.bytes += entry.size
                self.pace.file()
            entries.append(entry)
        if not entries:
            raise StagingError(f"{source} was removed while it was staged", path=source)
        return tuple(entries)


def _sums(folder: Path) -> dict[bytes, bytes]:
    """Stamp -> SHA-256 in hex of each file of a snapshot whose content was hashed; else empty."""
    try:
        stamps = [each for each in (folder / "stamps").read_bytes().split(b"\0") if each.startswith(b"f ")]
        sums = (folder / "sums").read_bytes()
    except OSError:
        return {}
    if len(sums) != 64 * len(stamps):
        return {}
    return {stamp: sums[64 * place : 64 * place + 64] for place, stamp in enumerate(stamps)}


def _linked(old: str, new: str) -> bool:
    """False when it can have no more links, or somebody took it away."""
    try:
        os.link(old, new)
    except OSError as error:
        if is_of_target(error):
            raise
        return False
    return True


def _stamp(entry: Entry) -> bytes:
    """What tells one state of an entry from another, on this machine and until it starts anew. Without NUL."""
    kind, path = entry.kind, os.fsencode(entry.path)
    if kind is Kind.FILE:
        return b"f %o %d %d %d %d /%s" % (entry.mode, entry.size, entry.mtime_ns, entry.ino, entry.ctime_ns, path)
    if kind is Kind.LINK:
        return b"l %d %d /%s > %s" % (entry.size, entry.mtime_ns, path, os.fsencode(entry.target))
    return b"d %o /%s" % (entry.mode, path)


def _name(source: str, boot: str, stamps: Sequence[bytes]) -> str:
    return hashlib.sha256(b"\0".join((boot.encode(), os.fsencode(source), *stamps))).hexdigest()[:NAME_LENGTH]


def _room(entries: Iterable[Entry]) -> int:
    """Bytes on a disk of 4 KiB blocks."""
    return sum(_BLOCK_BYTES + (entry.size + _BLOCK_BYTES - 1) // _BLOCK_BYTES * _BLOCK_BYTES for entry in entries)


def _standing(folder: Path) -> Path:
    """The folder, or the closest above it that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder
