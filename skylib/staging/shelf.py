"""The folder that snapshots are kept in: who uses which, what is left of the dead, what has to go to make room.

    <name>/lock      locked shared by whoever uses the snapshot, exclusively by who removes it; its time is the last use
    <name>/about     JSON: source, boot, bytes
    <name>/stamps    what the tree was made of (snapshot.py)
    <name>/tree      the tree, or the one file
    .<token>.part/   a snapshot being made, in use by its maker; renamed to <name> when it is whole
    .<token>.gone/   one being removed

The locks are the kernel's (flock): those of a process that dies end with it. A file that was made before the machine
last started is not trusted, since its content may not have reached the disk: so snapshots are told apart by boot.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from skylib.forks import watch
from skylib.paths import ensure_private_dir

__all__ = ["KEPT_OF_ONE_SOURCE", "NAME_LENGTH", "Hold", "Kept", "Shelf", "Use", "boot_id", "bytes_below", "superseded"]

Hold = Callable[[str], AbstractContextManager[object]]
"""Takes a lock by its scope."""
KEPT_OF_ONE_SOURCE = 3
"""How many snapshots of one source stay when nobody uses them."""
NAME_LENGTH = 32
"""Of a snapshot's name, in hex digits."""
_PART, _GONE = ".part", ".gone"
_MOMENT_S = 0.002
_MOMENTS = 500


def boot_id() -> str:
    """Another one each time that the machine starts; "" where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def bytes_below(tree: Path) -> int:
    """Of all files below a directory."""
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _dirs, names in os.walk(tree) for name in names)


@attrs.frozen(kw_only=True)
class Kept:
    """A whole snapshot. bytes: what its files take, also those that it shares with others. used_at: unix seconds."""

    name: str
    source: str
    boot: str
    bytes: int
    used_at: float


class Use:
    """A snapshot's folder, which nobody removes until `release`. A forked child does not use it."""

    __slots__ = ("__weakref__", "_descriptor", "folder")

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._descriptor = descriptor
        watch(self, in_child=Use._let_go)

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    def release(self) -> None:
        """Once or more often."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # for the copies of forked children, too
        self._let_go()

    def _let_go(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)


class Shelf:
    """The snapshots under one folder. Safe from threads and processes. Everything raises OSError, and what `alone` does."""

    def __init__(self, folder: Path, *, alone: Callable[[], AbstractContextManager[object]]) -> None:
        """alone: a lock between all who use the folder; held for an instant, and nothing else is taken inside."""
        self.folder = folder
        self._alone = alone

    def use(self, name: str) -> Use | None:
        """The snapshot, in use from now on and the youngest of all; None when there is none."""
        folder = self.folder / name
        for _moment in range(_MOMENTS):
            descriptor = _open_lock(folder)
            if descriptor is None:
                return None
            if _lock(descriptor, folder, fcntl.LOCK_SH):
                os.utime(descriptor)
                return Use(folder, descriptor)
            os.close(descriptor)
            time.sleep(_MOMENT_S)  # somebody is about to remove it, or to look whether he may
        return None

    def begin(self) -> Use:
        """A new folder for a snapshot, in use by the caller."""
        ensure_private_dir(self.folder)
        with self._alone():
            folder = self.folder / f".{secrets.token_hex(8)}{_PART}"
            folder.mkdir(mode=0o700)
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            return Use(folder, descriptor)

    def finish(self, use: Use, name: str, *, source: str, boot: str, bytes: int) -> Use:
        """Give a whole snapshot its name; what is used then: the one that has the name already, when there is one."""
        about = {"source": source, "boot": boot, "bytes": bytes}
        (use.folder / "about").write_text(json.dumps(about), encoding="utf-8", errors="surrogatepass")
        while True:
            try:
                os.rename(use.folder, self.folder / name)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                other = self.use(name)
                if other is not None:
                    self.drop(use)
                    return other
                self._clear(self.folder / name)  # somebody has taken a part of it away
                continue
            use.folder = self.folder / name
            return use

    def drop(self, use: Use) -> None:
        """Remove what was begun."""
        shutil.rmtree(use.folder, ignore_errors=True)
        use.release()

    def kept(self) -> list[Kept]:
        """All whole snapshots, the longest unused first."""
        found = []
        for name in self._names():
            if not _is_name(name):
                continue
            folder = self.folder / name
            try:
                about = json.loads((folder / "about").read_bytes())
                used_at = (folder / "lock").stat().st_mtime
                kept = Kept(
                    name=name, source=about["source"], boot=about["boot"], bytes=int(about["bytes"]), used_at=used_at
                )
            except (OSError, ValueError, KeyError, TypeError):
                continue
            found.append(kept)
        return sorted(found, key=lambda each: each.used_at)

    def sweep(self, max_bytes: float) -> None:
        """Remove what dead processes left, what is superseded, and the longest unused until the rest is not too much."""
        names, kept = self._names(), self.kept()
        for name in sorted({*names} - {each.name for each in kept}):
            if _is_name(name) or name.endswith((_PART, _GONE)):
                self._clear(self.folder / name)
        for name in superseded(kept):
            self._remove(name)
        self.make_room(max_bytes)

    def make_room(self, max_bytes: float, coming: int = 0) -> int:
        """Remove the longest unused until the rest and `coming` bytes are not too much; the bytes that went."""
        kept = self.kept()
        excess = sum(each.bytes for each in kept) + coming - max_bytes
        gone = 0
        for each in kept:
            if gone < excess and self._remove(each.name):
                gone += each.bytes
        return gone

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except FileNotFoundError:
            return []

    def _remove(self, name: str) -> bool:
        """Whether it went, by this or by another process: False while it is in use."""
        folder = self.folder / name
        descriptor = _open_lock(folder)
        if descriptor is None:
            return True
        try:
            if not _lock(descriptor, folder, fcntl.LOCK_EX):
                return False
            gone = self.folder / f".{secrets.token_hex(8)}{_GONE}"
            os.rename(folder, gone)
            shutil.rmtree(gone, ignore_errors=True)
            return True
        finally:
            os.close(descriptor)

    def _clear(self, folder: Path) -> None:
        """Remove what a dead process was making or removing."""
        with self._alone():  # nobody is between making a folder and locking it
            descriptor = _open_lock(folder)
            try:
                if descriptor is not None and not _lock(descriptor, folder, fcntl.LOCK_EX):
                    return
                gone = self.folder / f".{secrets.token_hex(8)}{_GONE}"
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder, gone)
            finally:
                if descriptor is not None:
                    os.close(descriptor)
        shutil.rmtree(gone, ignore_errors=True)


def superseded(kept: Sequence[Kept]) -> frozenset[str]:
    """Names of those that nobody will ask for: of one source the newest few stay. A file's old times do not come back.

    kept: the longest unused first.
    """
    newer: Counter[tuple[str, str]] = Counter()
    found = set()
    for each in reversed(kept):
        newer[each.source, each.boot] += 1
        if newer[each.source, each.boot] > KEPT_OF_ONE_SOURCE:
            found.add(each.name)
    return frozenset(found)


def _is_name(name: str) -> bool:
    """Whether it is a whole snapshot's; whatever else a person keeps in the folder is let be."""
    return len(name) == NAME_LENGTH and set(name) <= set("0123456789abcdef")


def _open_lock(folder: Path) -> int | None:
    """The lock file of a folder, None when there is none."""
    try:
        return os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _lock(descriptor: int, folder: Path, kind: int) -> bool:
    """Lock it without waiting; whether that worked, and it is the folder's lock still."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(folder / "lock"))
    except (BlockingIOError, FileNotFoundError):
        return False
