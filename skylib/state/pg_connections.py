"""A Backend in PostgreSQL. Writers take one lock of the database each, so that what a transaction has read stays true.

Two facts of PostgreSQL carry this. A transaction's lock is released after its commit has become visible, and at READ
COMMITTED each statement sees what was committed before it began: so whoever has the lock sees all earlier writes, as
with BEGIN IMMEDIATE. And a row is there if and only if its transaction was committed: each transaction says in the table
`writers` which write of this process it is; when the answer to a COMMIT was lost, the next transaction (which has the
lock, so the lost one is over) reads whether it was. A transaction's number would not do for that: after a crash, or on
another server, it can be given again.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from skylib.errors import DatabaseUnreachable, StateError
from skylib.events import Event, EventSink, Phase, discard
from skylib.locks import held_grips
from skylib.models.secret import Secret
from skylib.state.backend import Connection
from skylib.state.pg_address import address_of
from skylib.state.pg_errors import Again, Away, Busy
from skylib.state.pg_link import Link
from skylib.state.pg_migrations import WRITE_LOCK, migrate
from skylib.state.pg_pool import LinkPool
from skylib.state.pg_sql import lock_key
from skylib.state.pg_writing import Writers, Writing

__all__ = ["SCHEMA", "PgConnections"]

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
SCHEMA = "skylib"
_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 2.0
_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = {schema}"
_WRITE = (
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL search_path = {schema}; "
    "SET LOCAL lock_timeout = {wait_ms:d}; {commit}; SELECT pg_advisory_xact_lock({key:d})"
)
_DURABLE = "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
_QUICK = "SET LOCAL synchronous_commit = off"


class PgConnections:
    """Transactions on one database, opened and migrated at first use. Usable again after `close` and fork."""

    def __init__(
        self,
        url: Secret | str,
        *,
        application: str = "skylib",
        schema: str = SCHEMA,
        bound_s: float = 30.0,
        lock_wait_s: float = 30.0,
        connect_timeout_s: float = 10.0,
        answer_s: float = 20.0,
        events: EventSink = discard,
    ) -> None:
        """bound_s: how long a database that is away is asked again. lock_wait_s: how long for other writers.

        connect_timeout_s, answer_s: how long one try may take to connect, and each statement to be answered.
        events: told when the database is away. Raises ConfigError when `url` is no URL of a PostgreSQL database.
        """
        if not re.fullmatch("[a-z_][a-z0-9_]*", schema):
            raise ValueError("a schema is named with lower-case letters, digits and _")
        self._address = address_of(url)
        self._schema = schema
        self._bound_s = bound_s
        self._lock_wait_s = lock_wait_s
        self._events = events
        self._writers = Writers()
        self.pool = LinkPool(
            self._address,
            application=application,
            connect_timeout_s=connect_timeout_s,
            answer_s=answer_s,
            prepare=lambda link: migrate(link, schema, where=self.where),
        )

    def __repr__(self) -> str:
        return f"PgConnections({self.where!r})"

    @property
    def where(self) -> str:
        return self._address.where

    @property
    def place(self) -> str:
        """Which state this is, for a Fence."""
        return f"{self.where} {self._schema}"

    def read(self, action: Callable[[Connection], _T]) -> _T:
        def once(link: Link) -> _T:
            self.begin_read(link)
            found = action(link)
            link.simple("COMMIT")
            return found

        return self.trying(once)

    def write(self, action: Callable[[Connection], _T], *, durable: bool = True) -> _T:
        """Locks that the running operation holds in this database (locks.held_grips) are checked first: LockLost."""
        fences = [grip.fence for grip in held_grips() if grip.fence is not None and grip.fence.place == self.place]
        writer = self._writers.take()
        writing = Writing(writer, action, fences)

        def once(link: Link) -> _T:
            return writing.attempt(link, lambda each: self.begin_write(each, durable=durable))

        try:
            return self.trying(once, unsettled=lambda: writing.sent)
        finally:
            self._writers.give_back(writer)

    def begin_read(self, link: Link) -> None:
        """Begin a transaction that sees one state throughout."""
        link.simple(_READ.format(schema=self._schema))

    def begin_write(self, link: Link, *, durable: bool = True) -> None:
        """Begin a transaction that no other writer is inside of."""
        sql = _WRITE.format(
            schema=self._schema,
            wait_ms=max(1, round(self._lock_wait_s * 1000)),
            commit=_DURABLE if durable else _QUICK,
            key=lock_key(self._schema, WRITE_LOCK),
        )
        link.simple(sql, lock_wait_s=self._lock_wait_s)

    def close(self) -> None:
        self.pool.close()

    def trying(
        self,
        once: Callable[[Link], _T],
        *,
        unsettled: Callable[[], bool] = lambda: False,
        keep: Callable[[_T], bool] = lambda done: True,
    ) -> _T:
        """`once` on a connection, again while the database is away, within the bound.

        Raises DatabaseUnreachable, StateError. keep: whether the connection goes back to the pool; else it stays borrowed.
        """
        began = time.monotonic()
        wait_s = 0.0
        while True:
            try:
                return self._once(once, keep, self._bound_s - (time.monotonic() - began))
            except (Away, Again) as error:
                problem = error
            except Busy as error:
                raise self._busy(str(error)) from None
            waited_s = time.monotonic() - began
            if waited_s + wait_s >= self._bound_s:
                break
            if wait_s:  # a connection that broke while nobody used it is no news
                self._tell(problem, waited_s, first=wait_s == _FIRST_WAIT_S)
            time.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(max(wait_s * 2, _FIRST_WAIT_S), _LONGEST_WAIT_S)
        raise self._given_up(problem, time.monotonic() - began, unsettled())

    def _once(self, once: Callable[[Link], _T], keep: Callable[[_T], bool], left_s: float) -> _T:
        link = self.pool.borrow(within_s=left_s)
        try:
            done = once(link)
        except Away:
            self.pool.drop(link)
            self.pool.close()
            raise
        except BaseException:
            self._roll_back(link)
            raise
        if keep(done):
            self.pool.give_back(link)
        return done

    def _roll_back(self, link: Link) -> None:
        try:
            link.simple("ROLLBACK")
        except (Away, StateError):
            self.pool.drop(link)
        except BaseException:
            self.pool.drop(link)
            raise
        else:
            self.pool.give_back(link)

    def _tell(self, problem: Exception, waited_s: float, *, first: bool) -> None:
        facts = {"database": self.where, "error": str(problem), "waited_s": round(waited_s, 3)}
        _log.log(logging.WARNING if first else logging.DEBUG, "%s is away, trying again: %s", self.where, problem)
        self._events(Event(step="state.database", phase=Phase.NOTE, at=time.time(), facts=facts))

    def _busy(self, said: str) -> StateError:
        return StateError(
            f"{self.where} was busy for {self._lock_wait_s:g} s",
            retryable=True,
            evidence=said,
            hint="another process is in a transaction for that long; see pg_stat_activity of the server",
        )

    def _given_up(self, problem: Exception, waited_s: float, unsettled: bool) -> StateError:
        if isinstance(problem, Again):
            message = f"{self.where} was busy for {waited_s:.1f} s"
            return StateError(message, retryable=True, evidence=str(problem))
        unknown = "; the last change was sent, and whether it was made is not known" if unsettled else ""
        return DatabaseUnreachable(
            f"{self.where} could not be reached within {waited_s:.1f} s{unknown}",
            evidence=str(problem),
            waited_s=waited_s,
            unsettled=unsettled,
            hint="see that the server runs and takes connections from here; then try again",
        )
