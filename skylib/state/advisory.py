"""Locks of all machines that share a database: PostgreSQL's advisory locks, held by a session of the server each.

The server releases a lock when its holder's connection ends, whatever way: a killed process closes it, a dead machine is
found out by keepalives within half a minute. A table says who holds which lock, with a token that each taker writes
anew before it does anything. So a lock whose connection broke is not lost as long as its own token stands there: nobody
has had it since. It is then taken again; else, and only then, it is lost, and writes under it are refused (pg_writing.py).

A session is a connection's own, unless a pooler in transaction mode stands in between: then its session belongs to
whoever comes next, and takes the lock again for anybody. That is looked for each time, and refused.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterator

from skylib.errors import LockLost, StateError
from skylib.events import EventSink, discard
from skylib.locks import Fence, Grip, LockHolder
from skylib.models.secret import Secret
from skylib.state.pg_connections import SCHEMA, PgConnections
from skylib.state.pg_errors import Again, Away, Busy
from skylib.state.pg_link import Link
from skylib.state.pg_sql import lock_key
from skylib.state.pg_writing import check_fence, end_backend, lock_lost

__all__ = ["AdvisoryKeeper"]

_THIS_LOCK = (
    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid::bigint = ? "
    "AND objid::bigint = ? AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
# A session gets a lock that it has already. NULL: this one is not the connection's own.
_TAKE = (
    f"SELECT CASE WHEN pg_backend_pid() = ? AND NOT EXISTS ({_THIS_LOCK} AND pid = pg_backend_pid()) "
    "THEN pg_try_advisory_lock(?) END"
)
_IS_THERE = "SELECT 1 FROM pg_stat_activity WHERE pid = ? AND backend_start::text = ?"
_SAY = (
    "INSERT INTO lock_holders (key, scope, token, pid, host, operation, since, backend) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET scope = excluded.scope, token = excluded.token, pid = excluded.pid, "
    "host = excluded.host, operation = excluded.operation, since = excluded.since, backend = excluded.backend"
)
# The token stays when the lock is released: it says that nobody has had the lock since.
_RELEASE = (
    "BEGIN; SET LOCAL synchronous_commit = off; SET LOCAL search_path = {schema}; "
    "UPDATE lock_holders SET backend = 0 WHERE key = {key:d} AND token = '{token}'; COMMIT; "
    "SELECT pg_advisory_unlock({key:d}), pg_backend_pid()"
)
_HOLDER = f"SELECT pid, host, operation, since FROM lock_holders WHERE key = ? AND backend <> 0 AND EXISTS ({_THIS_LOCK})"


class AdvisoryKeeper:
    """A Keeper in one database. A connection for each lock that is held, and a few that are kept for the next."""

    def __init__(
        self,
        url: Secret | str,
        *,
        application: str = "skylib locks",
        schema: str = SCHEMA,
        bound_s: float = 30.0,
        lock_wait_s: float = 30.0,
        connect_timeout_s: float = 10.0,
        answer_s: float = 20.0,
        events: EventSink = discard,
    ) -> None:
        """bound_s: how long a database that is away is asked again. Raises ConfigError as PgConnections."""
        self._schema = schema
        self._connections = PgConnections(
            url,
            application=application,
            schema=schema,
            bound_s=bound_s,
            lock_wait_s=lock_wait_s,
            connect_timeout_s=connect_timeout_s,
            answer_s=answer_s,
            events=events,
        )

    def __repr__(self) -> str:
        return f"AdvisoryKeeper({self._connections.where!r})"

    def take(self, scope: str, holder: LockHolder) -> Grip | None:
        fence = Fence(
            place=self._connections.place, key=lock_key(self._schema, f"lock:{scope}"), scope=scope, token=uuid.uuid4().hex
        )

        sessions = _Sessions(self._connections.where, fence.key)

        def once(link: Link) -> Link | None:
            with sessions.used(link):
                if not sessions.take(link):
                    return None
                # By the session that has the lock: nobody else can have taken it when this is committed.
                self._connections.begin_write(link)
                sessions.check(link)
                told = (holder.pid, holder.host, holder.operation, holder.since)
                link.execute(_SAY, fence.key, scope, fence.token, *told, link.backend[0])
                link.simple("COMMIT")
            return link

        link = self._connections.trying(once, keep=lambda taken: taken is None)
        return None if link is None else _AdvisoryGrip(self._connections, self._schema, link, fence, holder)

    def holder(self, scope: str) -> LockHolder | None:
        """As the database says; None when nobody holds it, or the database cannot be asked."""
        key = lock_key(self._schema, f"lock:{scope}")
        try:
            rows = self._connections.read(lambda connection: connection.rows(_HOLDER, key, *_halves(key)))
        except StateError:
            return None
        return LockHolder(**dict(zip(("pid", "host", "operation", "since"), rows[0], strict=True))) if rows else None

    def close(self) -> None:
        self._connections.close()


class _Sessions:
    """The sessions of the server that were to have one lock, attempt by attempt."""

    def __init__(self, where: str, key: int, left: tuple[tuple[int, str], ...] = ()) -> None:
        """left: those (Link.backend) that may have it still, and are of no use any more."""
        self._where = where
        self._key = key
        self._left = list(left)

    @contextlib.contextmanager
    def used(self, link: Link) -> Iterator[None]:
        """Whatever goes wrong in the `with` block, this session ends, and the lock with it."""
        try:
            yield
        except BaseException:
            self._left.append(link.backend)
            link.close()
            raise

    def take(self, link: Link) -> bool:
        """Whether it has the lock now. Raises Again while only a session that is left has it; StateError."""
        for backend in self._left:
            if backend != link.backend:
                end_backend(link, backend)
        ((taken,),) = link.rows(_TAKE, link.backend[0], *_halves(self._key), self._key)
        if taken is None:
            raise _pooled(self._where)
        if not taken and any(link.rows(_IS_THERE, *backend) for backend in self._left):
            raise Again("a session of ours that broke has not ended yet")
        return bool(taken)

    def check(self, link: Link) -> None:
        """That the session is the one that has the lock. Raises StateError; the other one is ended by then."""
        ((backend,),) = link.rows("SELECT pg_backend_pid()")
        if backend != link.backend[0]:
            end_backend(link, link.backend)
            raise _pooled(self._where)


class _AdvisoryGrip:
    """A lock and the connection that holds it. Safe from the threads of its operation."""

    def __init__(self, connections: PgConnections, schema: str, link: Link, fence: Fence, holder: LockHolder) -> None:
        self.fence: Fence | None = fence
        self._fence = fence
        self._connections = connections
        self._schema = schema
        self._link = link
        self._holder = holder
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self._lost = ""

    def check(self) -> None:
        """Raises LockLost; DatabaseUnreachable when that cannot be told within the bound."""
        if os.getpid() != self._pid:
            raise self._told_lost("a forked child does not hold its parent's locks")
        with self._mutex:
            if self._lost:
                raise self._told_lost(self._lost)
            try:
                _Sessions(self._connections.where, self._fence.key).check(self._link)
            except Away as away:
                problem = str(away)
            else:
                return
            self._connections.pool.drop(self._link)
            self._link = self._take_again(problem)

    def release(self, *, wait: bool = True) -> None:
        with self._mutex:
            sql = _RELEASE.format(schema=self._schema, key=self._fence.key, token=self._fence.token)
            try:
                released, backend = self._link.simple(sql)[-1][0]
            except (Away, Again, Busy, StateError) as error:
                problem = str(error)
            except BaseException:
                self._connections.pool.drop(self._link)
                raise
            else:
                if released:
                    self._connections.pool.give_back(self._link)
                    return
                if backend != self._link.backend[0]:
                    self._end_in_pooler()
                problem = "the server did not know of it"
            self._connections.pool.drop(self._link)
            if not wait:
                raise StateError(f"whether the lock on {self._fence.scope!r} lasted is not known", evidence=problem)
            self._look_back(self._lost or problem)

    def abandon(self) -> None:
        self._link.abandon()

    def _take_again(self, problem: str) -> Link:
        """On a new connection, unless somebody else has had it. What the old one still holds on the server is ended."""
        sessions = _Sessions(self._connections.where, self._fence.key, (self._link.backend,))

        def once(link: Link) -> Link:
            with sessions.used(link):
                taken = sessions.take(link)
                self._check_fence(link)
                if not taken:
                    raise Again("another session has just taken the lock")
            return link

        try:
            return self._connections.trying(once, keep=lambda link: False)
        except LockLost as lost:
            self._lost = problem
            lost.since, lost.evidence = self._holder.since, problem
            raise

    def _look_back(self, problem: str) -> None:
        """The connection broke at some time before the release. Raises LockLost unless nobody has had the lock since."""
        try:
            self._connections.trying(self._check_fence)
        except LockLost as lost:
            lost.since, lost.evidence = self._holder.since, problem
            raise
        except StateError as error:
            unknown = error.message
        else:
            return
        raise self._told_lost(f"{problem}; {unknown}")

    def _end_in_pooler(self) -> None:
        """Raises StateError: what has the lock is a session that others use by now."""
        self._connections.pool.drop(self._link)
        self._connections.trying(lambda link: end_backend(link, self._link.backend))
        raise _pooled(self._connections.where)

    def _check_fence(self, link: Link) -> None:
        self._connections.begin_read(link)
        check_fence(link, self._fence)
        link.simple("COMMIT")

    def _told_lost(self, problem: str) -> LockLost:
        return lock_lost(self._fence.scope, None, since=self._holder.since, evidence=problem)


def _halves(key: int) -> tuple[int, int]:
    """As pg_locks shows it."""
    return (key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF


def _pooled(where: str) -> StateError:
    return StateError(
        f"{where} cannot keep locks: this connection's session on the server is shared with others",
        hint="db goes through a pooler in transaction mode; use session mode or the server itself",
    )
