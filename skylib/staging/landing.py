"""Files that come from a node are put in place here: written beside, renamed, never through a link, never out of place."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress

import attrs

from skylib.errors import StagingError
from skylib.staging.diff import Seen
from skylib.staging.manifest import Entry, Kind

__all__ = ["Landing", "seen_here"]

_BESIDE = ".skylib-fetch-"
_LEFT_S = 86400.0
_LETTERS = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}


def seen_here(place: str, entries: Iterable[Entry]) -> Mapping[str, Seen]:
    """What is at the entries' places, by entry.path. Raises StagingError for a place that cannot be looked at."""
    found: dict[str, Seen] = {}
    for entry in entries:
        path = f"{place}/{entry.path}" if entry.path else place
        try:
            there = os.stat(path) if not entry.path and entry.kind is Kind.DIR else os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise _refused(path, error, "") from error
        letter = _LETTERS.get(stat.S_IFMT(there.st_mode), "?")
        target = os.readlink(path) if letter == "l" else ""
        found[entry.path] = Seen(letter, there.st_mode & 0o777, there.st_size, there.st_mtime_ns, target)
    return found


@attrs.define(slots=True)
class Landing:
    """One place here and what is put there. place: a directory, or with `single` the file itself. host: of the files.

    A context manager: what was begun and not finished is removed at its end. Its methods raise StagingError with the
    path here.
    """

    place: str
    host: str
    single: bool = False
    _beside: str = attrs.field(default="", init=False)
    _stood: set[str] = attrs.field(factory=set, init=False)
    _made: dict[str, Entry] = attrs.field(factory=dict, init=False)
    _remade: dict[str, Entry] = attrs.field(factory=dict, init=False)

    def path_of(self, entry: Entry) -> str:
        return f"{self.place}/{entry.path}" if entry.path else self.place

    @property
    def _root(self) -> str:
        return os.path.dirname(self.place) if self.single else self.place

    def directory(self, entry: Entry) -> None:
        """Make it; its own mode and time come at the end, so that what is in it can be written."""
        path = self.path_of(entry)
        with self._refusals(path):
            stood = not entry.path and os.path.isdir(path)
            self._stand_on(path)
            if not stood:
                self._made[path] = entry

    def link(self, entry: Entry) -> None:
        """Put a link in the place of a file or link. What it leads to is not looked at."""
        path = self._ready(entry)
        with self._refusals(path):
            beside = self._temporary()
            os.symlink(entry.target, beside)
            with suppress(OSError):  # a file system that keeps no times of links
                os.utime(beside, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
            os.replace(beside, path)

    def file(self, entry: Entry, pieces: Iterable[bytes], *, mtime_ns: int, sparse: bool = False) -> int:
        """Write a file beside and rename it into place; its size. sparse: pieces of zeros become holes."""
        path = self._ready(entry)
        with self._refusals(path):
            beside = self._temporary()
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            size = 0
            for piece in pieces:
                with self._refusals(path):
                    if not sparse or any(piece):
                        _write(descriptor, piece, size)
                size += len(piece)
            with self._refusals(path):
                os.ftruncate(descriptor, size)
                os.fchmod(descriptor, entry.mode)
                os.utime(descriptor, ns=(mtime_ns, mtime_ns))
                os.replace(beside, path)
        finally:
            os.close(descriptor)
        return size

    def copy(self, entry: Entry, source: str, *, mtime_ns: int) -> int:
        """A second name of a file that came before: a file of its own here."""
        with self._refusals(source), open(source, "rb") as file:
            return self.file(entry, iter(lambda: file.read(1 << 18), b""), mtime_ns=mtime_ns)

    def mode(self, entry: Entry) -> None:
        """A directory that stands gets its mode."""
        self._remade[self.path_of(entry)] = entry

    def finish(self) -> None:
        """Modes of directories, and times of those that were made; the deepest first."""
        self._tidy()
        for path, entry in sorted({**self._remade, **self._made}.items(), reverse=True):
            with self._refusals(path):
                os.chmod(path, entry.mode)
                if path in self._made:
                    os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns))

    def _ready(self, entry: Entry) -> str:
        """The path of a file or link to be, its directory made."""
        path = self.path_of(entry)
        with self._refusals(path):
            self._stand_on(os.path.dirname(path))
            if os.path.isdir(path) and not os.path.islink(path):
                raise IsADirectoryError(errno.EISDIR, "it is a directory here, and none on the node", path)
        return path

    def _stand_on(self, folder: str) -> None:
        """Make a directory and those above it. Below the place none may be a link: that would lead out of it."""
        if folder in self._stood:
            return
        if len(folder) <= len(self._root):
            os.makedirs(folder, exist_ok=True)
        else:
            self._stand_on(os.path.dirname(folder))
            with suppress(FileExistsError):
                os.mkdir(folder)
            if not stat.S_ISDIR(os.lstat(folder).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "it is no directory here, and one on the node", folder)
        self._stood.add(folder)

    def _temporary(self) -> str:
        if not self._beside:
            _remove_left(self._root)
            beside = f"{self._root}/{_BESIDE}{secrets.token_hex(8)}"
            os.mkdir(beside, 0o700)
            self._beside = beside
        return f"{self._beside}/{secrets.token_hex(8)}"

    def _tidy(self) -> None:
        if self._beside:
            shutil.rmtree(self._beside, ignore_errors=True)
            self._beside = ""

    @contextmanager
    def _refusals(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, StagingError):
                raise
            raise _refused(path, error, self.host) from error

    def __enter__(self) -> Landing:
        return self

    def __exit__(self, *_how: object) -> None:
        self._tidy()


def _write(descriptor: int, piece: bytes, offset: int) -> None:
    rest = memoryview(piece)
    while rest:
        done = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[done:], offset + done


def _remove_left(folder: str) -> None:
    """What a fetch that was killed left behind, a day later."""
    for name in os.listdir(folder):
        if name.startswith(_BESIDE):
            path = f"{folder}/{name}"
            with suppress(OSError):
                if os.lstat(path).st_mtime < time.time() - _LEFT_S:
                    shutil.rmtree(path, ignore_errors=True)


def _refused(path: str, error: OSError, host: str) -> StagingError:
    why = error.strerror or str(error)
    culprit = error.filename if isinstance(error.filename, str) and error.filename.startswith("/") else path
    about = "" if culprit == path or _BESIDE in culprit else f" ({culprit})"
    return StagingError(
        f"could not put {path} in place here: {why}{about}", path=path, host=host or None, step="staging.fetch", cause=why
    )
