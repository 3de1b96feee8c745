"""One connection to a PostgreSQL database: opened with bounds on every wait, its errors judged and masked.

psycopg's own errors carry the connection, which knows the password: they end here. None is a cause or a context of what
is raised instead.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from skylib.errors import ConfigError, StateError
from skylib.forks import keep_for_ever
from skylib.state.pg_address import Address
from skylib.state.pg_errors import Away, judged
from skylib.state.pg_sql import translated

if TYPE_CHECKING:
    import psycopg

__all__ = ["Link", "open_link"]

_T = TypeVar("_T")
_OLDEST = 120000
# How long a machine that does not answer keeps us, by TCP.
_CLIENT = {
    "keepalives": "1",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "target_session_attrs": "read-write",
}
# The server's side of the same: it frees what a dead or stopped client holds. Milliseconds where no unit is given.
_SERVER = {
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "idle_in_transaction_session_timeout": "60000",
    "statement_timeout": "0",  # ours are shorter, and a statement that is ended half-way is more to think about
    "lock_timeout": "0",
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
_SINCE = {140000: {"idle_session_timeout": "0"}, 170000: {"transaction_timeout": "0"}}


class Link:
    """A connection, for one thread at a time. Raises Away, Again, Busy (pg_errors) and StateError, nothing of psycopg."""

    def __init__(self, connection: psycopg.Connection[Any], address: Address, *, answer_s: float) -> None:
        """answer_s: how long the server may say nothing."""
        self._answer_s = answer_s
        self._connection = connection
        self._address = address
        self._pid = os.getpid()
        self._left = False
        self.backend: tuple[int, str] = (0, "")

    @property
    def broken(self) -> bool:
        return self._left or self._connection.closed

    def simple(self, sql: str, *, lock_wait_s: float = 0.0) -> list[list[tuple[Any, ...]]]:
        """Several statements in one message; the rows of each that has rows. No parameters: the text is ours alone.

        lock_wait_s: how long they may wait for a lock.
        """

        def run() -> list[list[tuple[Any, ...]]]:
            cursor = self._connection.execute(sql.encode())
            found = []
            while True:
                if cursor.description is not None:
                    found.append(cursor.fetchall())
                if not cursor.nextset():
                    return found

        return self._judging(run, lock_wait_s)

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        def run() -> list[tuple[Any, ...]]:
            cursor = self._connection.execute(_query(sql), _plain(parameters))
            return [] if cursor.description is None else cursor.fetchall()

        return self._judging(run)

    def execute(self, sql: str, *parameters: object) -> int:
        return self._judging(lambda: self._connection.execute(_query(sql), _plain(parameters)).rowcount)

    def many(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        def run() -> None:
            with self._connection.cursor() as cursor:
                cursor.executemany(_query(sql), [_plain(row) for row in rows])

        if rows:
            self._judging(run)

    def close(self) -> None:
        """Say good-bye and close; in a process that did not open it, as `abandon`."""
        self.abandon()
        if self._left:
            return
        with contextlib.suppress(Exception):  # boundary: nothing that a dying connection says matters
            self._connection.close()

    def abandon(self) -> None:
        """In a forked child: close its copy of the socket and nothing else. The parent's session goes on. Else nothing.

        The object is never freed: it would close a descriptor that has become somebody else's.
        """
        if self._left or os.getpid() == self._pid:
            return
        self._left = True
        with contextlib.suppress(Exception):  # boundary: the connection may have been closed before the fork
            os.close(self._connection.fileno())
        keep_for_ever(self._connection)
        keep_for_ever(self._connection.pgconn)

    def _judging(self, run: Callable[[], _T], lock_wait_s: float = 0.0) -> _T:
        import psycopg

        self.abandon()
        if self._left:
            raise Away("the connection belongs to the process that forked this one")
        within_s = self._answer_s + lock_wait_s
        self._connection.deadline = time.monotonic() + within_s  # type: ignore[attr-defined]
        try:
            return run()
        except psycopg.Error as error:
            problem = judged(error, self._address, broken=self._connection.closed)
        except _Silent:
            self.close()
            problem = Away(f"no answer within {within_s:g} s")
        except UnicodeError:
            problem = StateError(f"text that is no Unicode cannot be kept in {self._address.where}")
        except OSError as error:
            self.close()
            problem = Away(error.strerror or type(error).__name__)
        except BaseException:
            self.close()  # interrupted: what the server still sends must not be taken for the next answer
            raise
        raise problem


class _Silent(Exception):
    """The server did not answer in time."""


def open_link(address: Address, *, application: str, timeout_s: float, answer_s: float) -> Link:
    """A new connection. Raises Away when the database cannot be reached now, StateError when it refuses for good.

    Raises ConfigError when psycopg is not installed. timeout_s: for each host of the URL. answer_s: for each
    statement later.
    """
    try:
        import psycopg
    except ImportError as error:
        raise ConfigError(
            "`db` is set, and psycopg is not installed",
            key="db",
            evidence=str(error),
            hint='pip install "skylib[postgres]"',
        ) from error
    problem: Exception
    try:
        connection = _connection_class().connect(**_parameters(address, application, timeout_s), autocommit=True)
    except psycopg.ProgrammingError as error:
        problem = _unusable(address, error)
    except psycopg.Error as error:
        problem = judged(error, address, broken=True)
    except UnicodeError:
        problem = ConfigError("db holds text that is no Unicode", key="db")
    except OSError as error:
        problem = Away(error.strerror or type(error).__name__)
    else:
        return _made_ready(connection, address, answer_s)
    raise problem


def _made_ready(connection: psycopg.Connection[Any], address: Address, answer_s: float) -> Link:
    from psycopg.types.numeric import FloatLoader

    connection.adapters.register_loader("numeric", FloatLoader)  # what sums of integers are
    link = Link(connection, address, answer_s=answer_s)
    try:
        version = connection.info.server_version
        if version < _OLDEST:
            raise StateError(
                f"{address.where} is PostgreSQL {version // 10000}; 12 or newer is needed", hint="use a newer server"
            )
        settings = dict(_SERVER)
        for since, more in _SINCE.items():
            settings |= more if version >= since else {}
        each = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())
        own = "(SELECT backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid())"
        ((*_, pid, start),) = link.rows(f"SELECT {each}, pg_backend_pid(), {own}")
        link.backend = (pid, start)
    except BaseException:
        link.close()
        raise
    return link


def _unusable(address: Address, error: Exception) -> ConfigError:
    said = " ".join(address.masked(str(error)).split())
    return ConfigError(f"{address.where} is no address that libpq takes: {said}", key="db")


def _parameters(address: Address, application: str, timeout_s: float) -> dict[str, Any]:
    """Of the URL, and ours where it and libpq's environment say nothing."""
    from psycopg.conninfo import conninfo_to_dict

    given = conninfo_to_dict(address.url.reveal())
    ours = {**_CLIENT, "connect_timeout": str(max(2, round(timeout_s))), "application_name": application}
    if "PGGSSENCMODE" not in os.environ:
        ours["gssencmode"] = "disable"
    if "PGTARGETSESSIONATTRS" in os.environ:
        del ours["target_session_attrs"]
    return {**ours, **given}


@cache
def _connection_class() -> type[psycopg.Connection[Any]]:
    """A connection that does not wait for ever for a server that was stopped but not closed."""
    import psycopg
    from psycopg.waiting import Ready, Wait

    class BoundedConnection(psycopg.Connection[Any]):
        deadline = 0.0

        def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
            """Run what psycopg does in steps that each need the socket, until the deadline. An interrupt ends it."""
            try:
                wanted = next(gen)
                while True:
                    readable, writable = _ready(
                        self.fileno(), wanted & Wait.R, wanted & Wait.W, within_s=self.deadline - time.monotonic()
                    )
                    if not (readable or writable):
                        raise _Silent
                    wanted = gen.send(Ready.RW if readable and writable else Ready.R if readable else Ready.W)
            except StopIteration as end:
                return end.value

    return BoundedConnection


def _ready(descriptor: int, read: int, write: int, *, within_s: float) -> tuple[bool, bool]:
    """Whether it can be read, and written, as asked for; neither when the time is up. A broken one can."""
    poll = select.poll()
    poll.register(descriptor, (select.POLLIN if read else 0) | (select.POLLOUT if write else 0))
    for _, seen in poll.poll(max(0.0, within_s) * 1000):
        broken = select.POLLERR | select.POLLHUP | select.POLLNVAL
        return bool(read and seen & (select.POLLIN | broken)), bool(write and seen & (select.POLLOUT | broken))
    return False, False


def _query(sql: str) -> bytes:
    return translated(sql).encode()


def _plain(parameters: Sequence[object]) -> list[object]:
    """PostgreSQL does not take a bool for a number, SQLite has nothing else."""
    return [int(each) if isinstance(each, bool) else each for each in parameters]
