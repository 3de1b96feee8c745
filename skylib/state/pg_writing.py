"""One write to a PostgreSQL database, made exactly once however often its connection breaks."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from skylib.errors import LockLost, StateError
from skylib.locks import Fence, LockHolder
from skylib.state.backend import Connection
from skylib.state.pg_errors import Away
from skylib.state.pg_link import Link

__all__ = ["Writer", "Writers", "Writing", "check_fence", "end_backend", "lock_lost"]

_T = TypeVar("_T")
# Only what wrote something needs a mark. A writer's name is hexadecimal digits, made here.
_COMMIT = (
    "INSERT INTO writers (writer, last, at) SELECT '{name}', {number:d}, now() WHERE txid_current_if_assigned() IS NOT NULL "
    "ON CONFLICT (writer) DO UPDATE SET last = excluded.last, at = excluded.at; COMMIT"
)
_FORGET_OLD = (
    "DELETE FROM writers WHERE at < now() - interval '1 day'; "
    "DELETE FROM lock_holders WHERE backend = 0 AND since < extract(epoch FROM now() - interval '30 days')"
)
_END_BACKEND = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = ? AND backend_start::text = ?"
_LOCKS_OF = "SELECT 1 FROM pg_locks WHERE pid = ? LIMIT 1"  # pg_stat_activity stays the same within a transaction
_BACKEND_ENDS_S = 2.0


class Writer:
    """A row of the table `writers`: `number` counts its writes. Of one write at a time."""

    __slots__ = ("name", "number")

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self.number = 0


class Writers:
    """The writers of one process: as many as it has writes at one time."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._idle: list[Writer] = []
        self._pid = os.getpid()

    def take(self) -> Writer:
        """One for the next write."""
        if self._pid != os.getpid():  # a forked child is somebody else
            self._mutex, self._idle, self._pid = threading.Lock(), [], os.getpid()
        with self._mutex:
            writer = self._idle.pop() if self._idle else Writer()
        writer.number += 1
        return writer

    def give_back(self, writer: Writer) -> None:
        """Its write is over, one way or the other."""
        if self._pid == os.getpid():
            with self._mutex:
                self._idle.append(writer)


class Writing(Generic[_T]):
    """One write and its attempts.

    sent: its COMMIT was sent, and no answer came. The next attempt has the lock of all writers, so that the lost
    transaction is over by then, and reads in `writers` how it ended.
    """

    def __init__(self, writer: Writer, action: Callable[[Connection], _T], fences: Sequence[Fence]) -> None:
        self.sent = False
        self._writer = writer
        self._action = action
        self._fences = fences
        self._result: list[_T] = []
        self._broken: list[tuple[int, str]] = []

    def attempt(self, link: Link, begin: Callable[[Link], None]) -> _T:
        """begin: begins a transaction and takes the lock. Raises Away when it may be tried again."""
        try:
            self._end_broken(link)
            begin(link)
            if self.sent and self._was_made(link):
                link.simple("ROLLBACK")
                return self._result[0]
            return self._make(link)
        except Away:
            self._broken.append(link.backend)
            raise

    def _make(self, link: Link) -> _T:
        self.sent = False
        for fence in self._fences:
            check_fence(link, fence)
        if self._writer.number == 1:
            link.simple(_FORGET_OLD)
        self._result = [self._action(link)]
        self.sent = True
        try:
            link.simple(_COMMIT.format(name=self._writer.name, number=self._writer.number))
        except Away:
            raise
        except BaseException:
            self.sent = False
            raise
        return self._result[0]

    def _was_made(self, link: Link) -> bool:
        mark = (self._writer.name, self._writer.number)
        return bool(link.rows("SELECT 1 FROM writers WHERE writer = ? AND last = ?", *mark))

    def _end_broken(self, link: Link) -> None:
        """The server may not have seen yet that our connection broke, and keep its transaction and its lock for us."""
        for backend in self._broken:
            end_backend(link, backend)


def end_backend(link: Link, backend: tuple[int, str]) -> None:
    """End what a broken connection of ours (Link.backend) has left on the server, if it is still there.

    The server answers before it has done so: its locks are waited for, as it would otherwise look as if somebody had them.
    """
    with contextlib.suppress(StateError):  # not allowed: the server finds out by itself
        if not link.rows(_END_BACKEND, *backend):
            return
        until = time.monotonic() + _BACKEND_ENDS_S
        while link.rows(_LOCKS_OF, backend[0]) and time.monotonic() < until:
            time.sleep(0.005)


def check_fence(link: Connection, fence: Fence) -> None:
    """Raises LockLost when somebody has taken the lock since. In a writer's transaction: nobody takes it meanwhile."""
    rows = link.rows("SELECT token, pid, host, operation, since FROM lock_holders WHERE key = ?", fence.key)
    if not rows or rows[0][0] != fence.token:
        raise lock_lost(fence.scope, rows[0][1:] if rows else None)


def lock_lost(
    scope: str, holder_row: Sequence[object] | None, *, since: float | None = None, evidence: str = ""
) -> LockLost:
    """holder_row: pid, host, operation, since of who took it; None: it was taken and released again, or nobody can say."""
    holder = None
    if holder_row is not None:
        pid, host, operation, began = holder_row
        holder = LockHolder(pid=int(str(pid)), host=str(host), operation=str(operation), since=float(str(began)))
    lost_at = time.time()
    told = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(lost_at))
    by = f"taken by {holder}" if holder else "another operation may have held it since"
    return LockLost(
        f"the lock on {scope!r} was lost, as was seen at {told}: {by}",
        scope=scope,
        holder=holder,
        since=since,
        lost_at=lost_at,
        evidence=evidence,
        hint="what was done since may have met what the other one did: look at the state, then try again",
    )
