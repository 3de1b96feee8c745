"""SQLite connections: one for each thread of each process, and what goes wrong with them as StateError.

Two traps of SQLite's locks decide how this is written. The kernel drops all of a process's locks on a file when the
process closes any descriptor of it: so nothing here opens the database file but SQLite. And SQLite keeps in memory
which locks its process holds, which a forked child would inherit and believe: so all connections are closed before a
fork, and both sides open new ones.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from skylib.errors import SkyError, StateError
from skylib.events import EventSink, discard
from skylib.forks import keep_for_ever, watch
from skylib.locks import Locks
from skylib.paths import SkyHome
from skylib.state import damage
from skylib.state.backend import Connection
from skylib.state.damage import FileId
from skylib.state.filesystem import read_mounts
from skylib.state.gate import Gate
from skylib.state.opening import Moved, Opener, Suspect

if TYPE_CHECKING:
    from sqlite_utils import Database

__all__ = ["Connections"]

_T = TypeVar("_T")

# How long one statement waits inside SQLite, and how long a call goes on trying in all.
_STATEMENT_WAIT_S = 5.0
_BUSY_BOUND_S = 30.0
_TURN_S = 0.002  # how often a write asks for its turn
# How long a fork, or close(), waits for other threads to finish what they do with the store.
_FORK_WAIT_S = 15.0
_CLOSE_WAIT_S = 60.0
_LOST_TABLES = (
    "the file is not as skylib made it: restore it from a backup; or move it away, and client.discover() lists the "
    "clusters that run, client.adopt(name) takes them up"
)


class Connections:
    """The Backend in one home's file, opened and migrated at first use. Usable again after `close` and fork."""

    def __init__(
        self,
        home: SkyHome,
        locks: Locks,
        *,
        mounts: Callable[[], bytes] = read_mounts,
        events: EventSink = discard,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """mounts: gives the text of mountinfo. events: told when the home is on a network file system."""
        self._home = home
        self._locks = locks
        self._clock = clock
        self._path = home.state_db
        self._opener = Opener(home, locks, mounts=mounts, events=events)
        self._gate = Gate()
        self._mutex = threading.Lock()
        self._open: dict[threading.Thread, _Opened] = {}
        self._pid = 0

    @property
    def where(self) -> str:
        return str(self._path)

    def read(self, action: Callable[[Connection], _T]) -> _T:
        def reading(opened: _Opened) -> _T:
            with opened.transaction("BEGIN"):
                return action(_Reading(opened.raw))

        return self._trying(reading)

    def write(self, action: Callable[[Connection], _T], *, durable: bool = True) -> _T:
        def writing(opened: _Opened) -> _T:
            opened.sync(durable=durable)
            with opened.transaction("BEGIN IMMEDIATE", contended=True):
                return action(_Writing(opened.database()))

        return self._trying(writing)

    def close(self) -> None:
        """Close all connections of this process, when no thread uses one any more."""
        self._watch_forks()
        busy = self._gate.shut(timeout_s=_CLOSE_WAIT_S)
        try:
            self._close_idle(busy)
        finally:
            self._gate.open()

    def _trying(self, action: Callable[[_Opened], _T]) -> _T:
        deadline = time.monotonic() + _BUSY_BOUND_S
        wait_s = 0.005
        while True:
            try:
                return self._once(action)
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

    def _once(self, action: Callable[[_Opened], _T]) -> _T:
        """Raises _Busy, StateError."""
        self._watch_forks()
        try:
            with self._gate.inside():
                try:
                    return self._own_connection().use(action, self._path)
                except Suspect as suspect:
                    try:
                        raise self._judged(suspect) from suspect.__cause__
                    finally:
                        if suspect.at_opening and suspect.raw is not None:
                            suspect.raw.close()
        except Moved as moved:
            raise _Busy(f"{moved} was replaced again and again") from moved
        except sqlite3.Error as error:
            if _is_busy(error):
                raise _Busy(str(error)) from error
            raise _explained(error, self._path) from error
        except OSError as error:
            if isinstance(error, SkyError):
                raise
            raise StateError(
                f"cannot use {self._path}: {error.strerror or error}",
                hint=f"make {self._home.root} writable for this account",
            ) from error

    def _judged(self, suspect: Suspect) -> StateError:
        """What came of a file that seemed damaged: moved aside, by one of all that saw it, after a second look.

        Raises Moved, sqlite3.Error, OSError, LockTimeout.
        """
        clusters = damage.read_clusters(suspect.raw)
        with self._locks.hold("store", operation="look at a damaged store", timeout_s=_BUSY_BOUND_S):
            if damage.identity(self._path) != suspect.file:
                saved = damage.moved_before(self._path, suspect.file)
                if not saved:
                    raise Moved(str(self._path))
                return damage.store_damaged(self._home, str(suspect), saved, clusters)
            with damage.second_look(self._path) as wrong:
                if wrong is None:
                    return StateError(
                        f"{self._path} could not be read ({suspect}), and was whole at a second look",
                        retryable=True,
                        hint="try again",
                    )
                try:
                    saved = damage.move_aside(self._path, at=self._clock())
                except OSError as error:
                    return damage.cannot_move(self._path, wrong, error)
                return damage.store_damaged(self._home, wrong, saved, clusters)

    def _own_connection(self) -> _Opened:
        """This thread's connection to the file that is at the path now. Inside the gate."""
        thread = threading.current_thread()
        opened = self._open.get(thread)
        if opened is not None:
            if damage.identity(self._path) == opened.file:
                return opened
            # Closed when the path leads elsewhere, SQLite leaves alone what lies there now.
            with self._mutex:
                del self._open[thread]
            opened.raw.close()
        opened = _Opened(*self._opener.open(wait_s=_STATEMENT_WAIT_S))
        with self._mutex:
            ended = [other for other in self._open if not other.is_alive()]
            unused = [self._open.pop(other) for other in ended]
            self._open[thread] = opened
        for other in unused:
            other.raw.close()
        return opened

    def _close_idle(self, busy: set[int]) -> None:
        """Close the connections of all threads but those. With the gate shut."""
        with self._mutex:
            idle = [thread for thread in self._open if thread.ident not in busy]
            unused = [self._open.pop(thread) for thread in idle]
        with contextlib.ExitStack() as closing:  # all of them, whatever one says
            for opened in unused:
                closing.callback(opened.raw.close)

    def _watch_forks(self) -> None:
        """Once in each process that uses these connections: see to it that no child inherits one."""
        if self._pid == os.getpid():
            return
        if self._pid:
            self._start_in_child()
            return
        self._pid = os.getpid()
        watch(
            self,
            before=lambda each: each._close_idle(each._gate.shut(timeout_s=_FORK_WAIT_S)),
            in_parent=lambda each: each._gate.open(),
            in_child=Connections._start_in_child,
        )

    def _start_in_child(self) -> None:
        """Begin anew. A connection that could not be closed before the fork is never closed, not even at exit.

        SQLite forbids both: its child could write an old log into the file.
        """
        self._pid = os.getpid()
        self._gate = Gate()
        self._mutex = threading.Lock()
        inherited, self._open = self._open, {}
        for opened in inherited.values():
            keep_for_ever(opened.raw)


class _Busy(Exception):
    """Somebody else has the store locked; never leaves this module."""


class _Opened:
    """One open connection: to which file, and how it syncs now."""

    __slots__ = ("_database", "_has_wal", "_level", "file", "raw")

    def __init__(self, raw: sqlite3.Connection, file: FileId, has_wal: bool) -> None:
        self.raw = raw
        self.file = file
        self._has_wal = has_wal
        self._level = ""
        self._database: Database | None = None

    def use(self, action: Callable[[_Opened], _T], path: Path) -> _T:
        """What `action` returns. Raises Moved, Suspect, sqlite3.Error."""
        try:
            return action(self)
        except sqlite3.Error as error:
            if damage.is_damage(error):
                raise Suspect(str(error), self.file, self.raw) from error
            if damage.identity(path) != self.file:
                raise Moved(str(path)) from error
            raise

    def sync(self, *, durable: bool) -> None:
        """How the next transactions reach the disk; SQLite changes that between transactions only.

        Without a log, less than all could leave half a transaction after a power cut, and FULL may undo a whole one.
        """
        level = ("FULL" if durable else "NORMAL") if self._has_wal else "EXTRA"
        if level != self._level:
            self.raw.execute(f"PRAGMA synchronous = {level}")
            self._level = level

    def database(self) -> Database:
        if self._database is None:
            from sqlite_utils import Database

            self._database = Database(self.raw, recursive_triggers=False, execute_plugins=False)
        return self._database

    @contextlib.contextmanager
    def transaction(self, begin: str, *, contended: bool = False) -> Iterator[None]:
        """contended: only one at a time can be in it, of all processes."""
        if contended:
            self._take_turn(begin)
        else:
            self.raw.execute(begin)
        try:
            yield
            self.raw.execute("COMMIT")
        finally:
            if self.raw.in_transaction:
                self.raw.execute("ROLLBACK")


    def _take_turn(self, begin: str) -> None:
        """Ask often, and after a long wait as often as at first. Raises sqlite3.Error.

        SQLite's own waiting asks ever more seldom, up to 100 ms apart: where many write without a pause, who has waited
        long finds another one there every time.
        """
        deadline = time.monotonic() + _STATEMENT_WAIT_S
        self.raw.execute("PRAGMA busy_timeout = 0")
        try:
            while True:
                try:
                    self.raw.execute(begin)
                    return
                except sqlite3.OperationalError as error:
                    if not _is_busy(error) or time.monotonic() >= deadline:
                        raise
                time.sleep(_TURN_S * random.uniform(0.5, 1.5))
        finally:
            self.raw.execute(f"PRAGMA busy_timeout = {_STATEMENT_WAIT_S * 1000:.0f}")


class _Reading:
    """A Connection for queries: without sqlite-utils, whose import takes longer than most questions."""

    __slots__ = ("_raw",)

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._raw.execute(sql, parameters).fetchall()

    def execute(self, sql: str, *parameters: object) -> int:
        return self._raw.execute(sql, parameters).rowcount

    def many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        self._raw.executemany(sql, rows)


class _Writing:
    """A Connection inside a write transaction."""

    __slots__ = ("_database",)

    def __init__(self, database: Database) -> None:
        self._database = database

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._database.execute(sql, parameters).fetchall()
        return found

    def execute(self, sql: str, *parameters: object) -> int:
        return int(self._database.execute(sql, parameters).rowcount)

    def many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        self._database.conn.executemany(sql, rows)


def _is_busy(error: sqlite3.Error) -> bool:
    if not isinstance(error, sqlite3.OperationalError):
        return False
    words = str(error)
    return "locked" in words or "busy" in words or "locking protocol" in words


def _explained(error: sqlite3.Error, path: Path) -> StateError:
    words = str(error)
    if "full" in words:
        return StateError(f"no room to write {path}: {words}", hint="free space on that file system")
    if "readonly" in words or "unable to open" in words:
        return StateError(f"cannot use {path}: {words}", hint=f"make {path.parent} writable for this account")
    hint = _LOST_TABLES if "no such table" in words or "no such column" in words else None
    return StateError(f"{path} could not be used: {words}", evidence=type(error).__name__, hint=hint)
