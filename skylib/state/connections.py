"""SQLite connections: one for each thread of each process, and what goes wrong with them as StateError."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from skylib.errors import StateError
from skylib.locks import Locks
from skylib.paths import SkyHome, ensure_private_dir
from skylib.state.migrations import SCHEMA_VERSION, check_version, migrate, schema_version

__all__ = ["Connections"]

_T = TypeVar("_T")

# How long one statement waits inside SQLite, and how long a call goes on trying in all.
_STATEMENT_WAIT_S = 5.0
_BUSY_BOUND_S = 30.0
_MIGRATION_BOUND_S = 120.0
_MAGIC = b"SQLite format 3\x00"


class _Handle:
    """A connection, and the lock that keeps `close` from another thread out while it is in use."""

    __slots__ = ("connection", "in_use", "thread")

    def __init__(self, connection: sqlite3.Connection, thread: threading.Thread) -> None:
        self.connection = connection
        self.thread = thread
        self.in_use = threading.RLock()


class Connections:
    """Connections to the store of one home, opened and migrated at first use. Usable again after `close` and fork."""

    def __init__(self, home: SkyHome, locks: Locks) -> None:
        self._home = home
        self._locks = locks
        self._path = home.state_db
        self._mutex = threading.Lock()
        self._handles: dict[threading.Thread, _Handle] = {}
        self._pid = 0

    def read(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        """What `action` returns; it may be called again when the store was busy, so it must do nothing else."""

        def reading(connection: sqlite3.Connection) -> _T:
            return action(connection)

        return self._trying(reading)

    def write(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        """`action` as one transaction, begun IMMEDIATE; on disk when this returns. Any error undoes all of it."""

        def writing(connection: sqlite3.Connection) -> _T:
            with _transaction(connection):
                return action(connection)

        return self._trying(writing)

    def close(self) -> None:
        """Close all connections of this process; waits for those in use."""
        self._watch_forks()
        with self._mutex:
            handles, self._handles = list(self._handles.values()), {}
        for handle in handles:
            with handle.in_use:
                handle.connection.close()

    def _trying(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        deadline = time.monotonic() + _BUSY_BOUND_S
        wait_s = 0.005
        while True:
            try:
                with self._errors_told(), self._own_connection() as connection:
                    return action(connection)
            except _Busy as busy:
                if time.monotonic() >= deadline:
                    raise StateError(
                        f"{self._path} was busy for {_BUSY_BOUND_S:g} s",
                        retryable=True,
                        evidence=str(busy),
                        hint="another process keeps the store locked; see who has it open",
                    ) from busy.__cause__
            time.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(wait_s * 2, 0.2)

    @contextlib.contextmanager
    def _own_connection(self) -> Iterator[sqlite3.Connection]:
        self._watch_forks()
        thread = threading.current_thread()
        handle = self._handles.get(thread)
        if handle is None:
            handle = self._opened(thread)
        with handle.in_use:
            yield handle.connection

    def _opened(self, thread: threading.Thread) -> _Handle:
        handle = _Handle(self._connect(), thread)
        with self._mutex:
            ended = [other for other in self._handles if not other.is_alive()]
            stale = [self._handles.pop(other) for other in ended]
            self._handles[thread] = handle
        for other in stale:
            other.connection.close()
        return handle

    def _connect(self) -> sqlite3.Connection:
        self._make_file()
        # Closed by another thread once its own has ended; never used by two.
        connection = sqlite3.connect(
            self._path, timeout=_STATEMENT_WAIT_S, isolation_level=None, check_same_thread=False
        )
        try:
            version = schema_version(connection)
            check_version(version, self._path)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            if version < SCHEMA_VERSION:
                with self._locks.hold("store", operation="migrate the store", timeout_s=_MIGRATION_BOUND_S):
                    connection.execute("PRAGMA journal_mode = WAL")
                    migrate(connection, where=self._path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_file(self) -> None:
        """An empty file of mode 0600 where there is none; SQLite gives its -wal and -shm the same mode."""
        ensure_private_dir(self._home.root)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            seen = os.fstat(descriptor)
            if stat.S_IMODE(seen.st_mode) & 0o077 and seen.st_uid == os.geteuid():
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _errors_told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if _is_busy(error):
                raise _Busy(str(error)) from error
            raise _explained(error, self._path) from error
        except OSError as error:
            raise StateError(
                f"cannot use {self._path}: {error.strerror or error}",
                hint=f"make {self._home.root} writable for this account",
            ) from error

    def _watch_forks(self) -> None:
        """Once in each process that uses these connections: see to it that a forked child leaves them alone."""
        if self._pid == os.getpid():
            return
        if self._pid == 0:
            self._pid = os.getpid()
            mine = weakref.ref(self)

            def abandon() -> None:
                connections = mine()
                if connections is not None:
                    connections._abandon()

            os.register_at_fork(after_in_child=abandon)
        else:
            self._abandon()

    def _abandon(self) -> None:
        """In a forked child: forget the parent's connections without closing them, now or at exit.

        SQLite forbids it: a child that closes one may write an old log into the file once the parent is gone.
        """
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        inherited, self._handles = self._handles, {}
        for handle in inherited.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle.connection))


class _Busy(Exception):
    """Somebody else has the store locked; never leaves this module."""


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _is_busy(error: sqlite3.Error) -> bool:
    if not isinstance(error, sqlite3.OperationalError):
        return False
    words = str(error)
    return "locked" in words or "busy" in words


def _explained(error: sqlite3.Error, path: Path) -> StateError:
    words = str(error)
    if "malformed" in words or "not a database" in words:
        return StateError(
            f"{path} is damaged: {words}",
            evidence=_first_bytes(path),
            hint=(
                f"nothing was deleted. Move {path.name}, {path.name}-wal and {path.name}-shm out of {path.parent} and "
                "keep them, or put a copy from a backup in their place; the clusters themselves are not touched"
            ),
        )
    if "full" in words:
        return StateError(f"no room to write {path}: {words}", hint="free space on that file system")
    if "readonly" in words or "unable to open" in words:
        return StateError(f"cannot use {path}: {words}", hint=f"make {path.parent} writable for this account")
    return StateError(f"{path} could not be used: {words}", evidence=type(error).__name__)


def _first_bytes(path: Path) -> str:
    try:
        with path.open("rb") as file:
            first = file.read(len(_MAGIC))
    except OSError as error:
        return f"unreadable: {error}"
    return "begins as a SQLite file" if first == _MAGIC else f"begins with {first!r}, not as a SQLite file"
