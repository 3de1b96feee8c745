"""Opening a home's store: the file made where there is none, its journal as its file system allows, its schema."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from skylib.events import Event, EventSink, Phase, SkyWarning
from skylib.locks import Locks
from skylib.paths import SkyHome, ensure_private_dir, secure_home
from skylib.state.damage import BESIDE, FileId, identity, is_damage, is_torn, lost_pages, move_aside
from skylib.state.filesystem import Mount, is_network, mount_of, parse_mounts
from skylib.state.migrations import SCHEMA_VERSION, check_version, migrate, schema_version

__all__ = ["Moved", "Opener", "Suspect"]

_MIGRATION_BOUND_S = 120.0
# In the file's header, so that the `file` command and people can tell whose it is.
_APPLICATION_ID = 0x736B796C
# SQLITE_IOERR_SHMOPEN, _SHMSIZE, _SHMLOCK, _SHMMAP.
_SHARED_MEMORY_ERRORS = frozenset({4618, 4874, 5130, 5386})
# Homes that this process was warned of: Python forgets what it has shown whenever a filter changes.
_WARNED: dict[str, object] = {}


class Suspect(Exception):
    """The file seems damaged. raw: the connection that saw it, still open; None when there was none. For this package.

    at_opening: nobody else has that connection, and whoever catches this closes it.
    """

    def __init__(self, evidence: str, file: FileId, raw: sqlite3.Connection | None, *, at_opening: bool = False) -> None:
        super().__init__(evidence)
        self.file = file
        self.raw = raw
        self.at_opening = at_opening


class Moved(Exception):
    """Another file came to the path meanwhile: try again. For this package."""


class Opener:
    """Opens connections to one home's store. Safe from many threads, and after fork: it keeps nothing open."""

    def __init__(self, home: SkyHome, locks: Locks, *, mounts: Callable[[], bytes], events: EventSink) -> None:
        self._home = home
        self._locks = locks
        self._mounts = mounts
        self._events = events
        self._shared: dict[int, bool] = {}  # by device: whether other machines may have the home too
        self._without_wal: set[int] = set()  # devices that refuse logs
        self._without_log: set[FileId] = set()  # stores that were seen to have none

    def open(self, *, wait_s: float) -> tuple[sqlite3.Connection, FileId, bool]:
        """A connection with foreign keys on, the schema in order; which file it has; whether that has a write-ahead log.

        Raises Suspect, Moved, MigrationError, StateError, sqlite3.Error, OSError.
        """
        secure_home(self._home)
        file = identity(self._home.state_db) or self._make()
        try:
            try:
                return self._open(file, wait_s)
            except sqlite3.OperationalError as error:
                if file.device in self._without_wal or not _lacks_shared_memory(error):
                    raise
                self._without_wal.add(file.device)
                return self._open(file, wait_s)
        except (FileNotFoundError, sqlite3.Error) as error:
            if identity(self._home.state_db) != file:
                raise Moved(str(self._home.state_db)) from error
            raise

    def _open(self, file: FileId, wait_s: float) -> tuple[sqlite3.Connection, FileId, bool]:
        path = self._home.state_db
        torn = is_torn(path)
        if torn:
            raise Suspect(torn, file, None)
        if self._is_shared(file.device) or file.device in self._without_wal:
            self._leave_wal(file, wait_s)
        raw = _connect(path, wait_s)
        try:
            return raw, file, self._prepare(raw, file, wait_s)
        except Suspect:
            raise
        except BaseException as error:
            if isinstance(error, sqlite3.Error) and is_damage(error):
                raise Suspect(str(error), file, raw, at_opening=True) from error
            raw.close()
            raise

    def _prepare(self, raw: sqlite3.Connection, file: FileId, wait_s: float) -> bool:
        """Whether there is a write-ahead log after all."""
        path = self._home.state_db
        version = schema_version(raw)
        # With the first question SQLite has opened, by their names, what lies beside the file: was that still its own?
        self._check_still(file)
        check_version(version, path)
        lost = lost_pages(raw, path)
        if lost:
            raise Suspect(f"{lost} pages are missing", file, raw, at_opening=True)
        raw.execute("PRAGMA foreign_keys = ON")
        mode = str(raw.execute("PRAGMA journal_mode").fetchone()[0])
        wants_log = mode != "wal" and not self._is_shared(file.device) and file.device not in self._without_wal
        if wants_log or version < SCHEMA_VERSION:
            with self._locks.hold("store", operation="migrate the store", timeout_s=_MIGRATION_BOUND_S):
                self._check_still(file)
                if wants_log:
                    mode = self._begin_log(raw, file, wait_s)
                if version < SCHEMA_VERSION:
                    migrate(raw, where=path)
        return mode == "wal"

    def _check_still(self, file: FileId) -> None:
        if identity(self._home.state_db) != file:
            raise Moved(str(self._home.state_db))

    def _make(self) -> FileId:
        """A database without tables, mode 0600; SQLite gives what it puts beside it the same mode.

        It is complete when it comes to its name, so an empty file is never a new one; and no descriptor of it is closed
        that SQLite does not know of. A log that lies there without its file is not the new one's: it is put aside.
        """
        path = self._home.state_db
        ensure_private_dir(self._home.root)
        with self._locks.hold("store", operation="make the store", timeout_s=_MIGRATION_BOUND_S):
            made = identity(path)
            if made is not None:
                return made
            if any(path.with_name(path.name + end).exists() for end in BESIDE):
                move_aside(path, at=time.time())
            beside = path.with_name(f".{path.name}.new")
            for end in ("", *BESIDE):  # of a process that was killed here
                beside.with_name(beside.name + end).unlink(missing_ok=True)
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with contextlib.closing(sqlite3.connect(beside, isolation_level=None)) as new:
                    new.execute("PRAGMA synchronous = OFF")
                    new.execute(f"PRAGMA application_id = {_APPLICATION_ID:d}")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            _put_in_place(beside, path)
            found = identity(path)
        if found is None:
            raise Moved(str(path))
        return found

    def _begin_log(self, raw: sqlite3.Connection, file: FileId, wait_s: float) -> str:
        """The journal mode after an attempt to have a write-ahead log; not while somebody uses the store."""
        mode = "delete"
        raw.execute("PRAGMA busy_timeout = 0")
        try:
            mode = str(raw.execute("PRAGMA journal_mode = WAL").fetchone()[0])
            if mode != "wal":
                self._without_wal.add(file.device)
            schema_version(raw)  # only now SQLite finds out whether it has the memory for it
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        finally:
            raw.execute(f"PRAGMA busy_timeout = {int(wait_s * 1000):d}")
        return mode

    def _leave_wal(self, file: FileId, wait_s: float) -> None:
        """See to it that a store on a network file system has no write-ahead log: what is in one goes into the file.

        Alone, and without the memory that users of a log share: such a file system may not have it. Raises
        sqlite3.OperationalError (locked) while others use the store, MigrationError before anything is changed.
        """
        path = self._home.state_db
        if file in self._without_log:
            return
        with contextlib.closing(_connect(path, wait_s)) as raw:
            try:
                (mode,) = raw.execute("PRAGMA journal_mode").fetchone()
            except sqlite3.OperationalError:
                mode = "wal"
        if mode == "wal":
            with (
                self._locks.hold("store", operation="leave the store's log", timeout_s=_MIGRATION_BOUND_S),
                contextlib.closing(_connect(path, wait_s)) as alone,
            ):
                self._check_still(file)
                alone.execute("PRAGMA locking_mode = EXCLUSIVE")
                check_version(schema_version(alone), path)
                alone.execute("PRAGMA journal_mode = DELETE")
        self._without_log.add(file)

    def _is_shared(self, device: int) -> bool:
        """Whether the home is on a network file system; warns of it when it is first asked."""
        if device not in self._shared:
            real = os.path.realpath(self._home.root)
            mount = mount_of(real, parse_mounts(self._mounts()))
            self._shared[device] = mount is not None and is_network(mount.kind)
            if mount is not None and self._shared[device]:
                self._warn(mount)
        return self._shared[device]

    def _warn(self, mount: Mount) -> None:
        words = (
            f"{self._home.root} is on a network file system ({mount.kind}, {mount.source}): its store works without a "
            "write-ahead log, slower, and is as safe as that file system's locks are. Better is a home on this machine's "
            "own disk (SKY_HOME=<directory>), or `db: postgresql://...` in config.yaml for state that machines share"
        )
        facts = {"home": str(self._home.root), "kind": mount.kind, "source": mount.source, "warning": words}
        self._events(Event(step="state.network_home", phase=Phase.NOTE, at=time.time(), facts=facts))
        this = object()
        if _WARNED.setdefault(str(self._home.root), this) is this:
            warnings.warn(words, SkyWarning, stacklevel=2)


def _connect(path: Path, wait_s: float) -> sqlite3.Connection:
    # Closed by another thread once its own has ended; never used by two.
    return sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=wait_s, isolation_level=None, check_same_thread=False
    )


def _lacks_shared_memory(error: sqlite3.OperationalError) -> bool:
    """Whether a log cannot be used for want of what its users share: known by SQLite's code where Python tells it."""
    code = getattr(error, "sqlite_errorcode", None)  # since Python 3.11
    return code in _SHARED_MEMORY_ERRORS if isinstance(code, int) else "disk I/O error" in str(error)


def _put_in_place(beside: Path, path: Path) -> None:
    """Give the file its name, unless that is taken: a link does not replace what is there."""
    try:
        os.link(beside, path)
        beside.unlink()
    except FileExistsError:
        beside.unlink()
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EACCES):
            raise
        os.rename(beside, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
