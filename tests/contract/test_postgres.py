"""Transactions in PostgreSQL, also when things go wrong: servers that die, connections cut at COMMIT, forks, rights."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skylib.errors import ConfigError, DatabaseUnreachable, MigrationError, StateError
from skylib.events import Event
from skylib.paths import SkyHome
from skylib.state.backend import Connection
from skylib.state.migrations import SCHEMA_VERSION
from skylib.state.pg_connections import PgConnections
from skylib.state.pg_migrations import MIGRATIONS
from skylib.state.sqlite import SqliteStore
from tests.pg_proxy import CuttingProxy
from tests.postgres import PASSWORD, Server, running_server
from tests.processes import Child, run_at_once

Opener = Callable[..., PgConnections]


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that these tests may stop; each starts it again."""
    with running_server() as server:
        yield server


@pytest.fixture
def connect() -> Iterator[Opener]:
    opened: list[PgConnections] = []

    def opener(url: str, **options: object) -> PgConnections:
        opened.append(PgConnections(url, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield opener
    for each in opened:
        each.close()


def _count_up(connection: Connection) -> int:
    """Reads, then writes: a number, and an event of that number."""
    rows = connection.rows("SELECT value FROM config WHERE key = 'n'")
    number = int(rows[0][0]) + 1 if rows else 1
    connection.execute(
        "INSERT INTO config (key, value) VALUES ('n', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", str(number)
    )
    connection.execute(
        "INSERT INTO events (cluster, cluster_id, kind, at, details) VALUES ('c', 'c-1', 'count', ?, '{}')", float(number)
    )
    return number


def _counted(connections: PgConnections) -> tuple[int, int]:
    """The number, and how many events there are."""

    def read(connection: Connection) -> tuple[int, int]:
        rows = connection.rows("SELECT value FROM config WHERE key = 'n'")
        ((events,),) = connection.rows("SELECT COUNT(*) FROM events")
        return int(rows[0][0]) if rows else 0, events

    return connections.read(read)


# Transactions.


def test_increments_of_many_processes_are_exact(database: str, connect: Opener) -> None:
    """Reading and then writing is one step, durable or not."""

    def work() -> bytes:
        connections = PgConnections(database)
        for turn in range(25):
            connections.write(_count_up, durable=turn % 5 == 0)
        return b"ok"

    run_at_once([work] * 4)
    assert _counted(connect(database)) == (100, 100)


def test_an_error_inside_undoes_all(database: str, connect: Opener) -> None:
    """And comes out unchanged; the next transaction is not disturbed."""
    connections = connect(database)

    def fail(connection: Connection) -> None:
        _count_up(connection)
        raise KeyError("mine")

    with pytest.raises(KeyError):
        connections.write(fail)
    assert connections.write(_count_up) == 1
    assert _counted(connections) == (1, 1)


def test_a_read_sees_one_state(database: str, connect: Opener) -> None:
    """What others commit in between is not seen, and nothing can be written."""
    connections, others = connect(database), connect(database)

    def read(connection: Connection) -> tuple[int, int]:
        before = len(connection.rows("SELECT id FROM events"))
        others.write(_count_up)
        return before, len(connection.rows("SELECT id FROM events"))

    assert connections.read(read) == (0, 0)
    assert _counted(connections) == (1, 1)


def test_a_writer_that_takes_too_long_is_named_busy(database: str, connect: Opener) -> None:
    """Who waits for it gets an error that may be retried, in time."""
    patient = connect(database)
    hurried = connect(database, lock_wait_s=0.3)
    hurried.read(_nothing)

    def write(connection: Connection) -> None:
        began = time.monotonic()
        with pytest.raises(StateError, match="busy") as caught:
            hurried.write(_count_up)
        assert caught.value.retryable
        assert time.monotonic() - began < 5

    patient.write(write)
    assert hurried.write(_count_up) == 1


def test_question_marks_and_percent_signs_are_kept(database: str, connect: Opener) -> None:
    """In literals, in parameters, and as operators of LIKE."""
    connections = connect(database)
    sql = "SELECT ?, 'is it? 100%', \"key\" FROM config WHERE key LIKE 'a%' -- really?\n AND value = ?"
    connections.write(lambda each: each.execute("INSERT INTO config (key, value) VALUES ('a?%s', ?)", "%s ?"))
    assert connections.read(lambda each: each.rows(sql, 7, "%s ?")) == [(7, "is it? 100%", "a?%s")]


@pytest.mark.parametrize("value", [0, -1, 2**62, 1.5, 1e300, -0.0, 1700000000.123456, "", "ü🚀\t'\"\\%?", None])
def test_values_read_back_as_they_were(database: str, connect: Opener, value: object) -> None:
    """Numbers, text and nothing."""
    connections = connect(database)
    kind = {int: "BIGINT", float: "DOUBLE PRECISION"}.get(type(value), "TEXT")
    connections.write(lambda each: each.execute(f"CREATE TABLE probe (value {kind})"))
    connections.write(lambda each: each.many("INSERT INTO probe (value) VALUES (?)", [(value,), (value,)]))
    assert connections.read(lambda each: each.rows("SELECT value FROM probe")) == [(value,)] * 2


@pytest.mark.parametrize("value", ["a\0b", "\ud800"])
def test_text_that_cannot_be_kept_is_a_state_error(database: str, connect: Opener, value: str) -> None:
    """And changes nothing."""
    connections = connect(database)
    with pytest.raises(StateError):
        connections.write(lambda each: each.execute("INSERT INTO config (key, value) VALUES ('k', ?)", value))
    assert connections.write(_count_up) == 1


def _nothing(connection: Connection) -> None:
    pass


# A server that goes away.


def test_writes_survive_a_server_that_dies_and_comes_back(own_server: Server, connect: Opener) -> None:
    """Killed twice in the midst of writes by 4 processes: each write is made once and whole."""
    url = own_server.new_database()
    each, writers = 60, 4
    connect(url).read(_nothing)

    def work(child: Child) -> None:
        connections = PgConnections(url, bound_s=60)
        child.say(b"r")
        for _ in range(each):
            connections.write(_count_up)

    children = [Child(work) for _ in range(writers)]
    for child in children:
        assert child.heard() == b"r"
    watching = connect(url, bound_s=60)
    for at in (30, 120):
        while _counted(watching)[0] < at:
            time.sleep(0.005)
        own_server.kill()
        own_server.start()
    assert [child.ended(timeout_s=120) for child in children] == [0] * writers
    assert _counted(watching) == (each * writers, each * writers)


def test_a_server_that_stays_away_is_an_error_within_the_bound(own_server: Server, connect: Opener) -> None:
    """DatabaseUnreachable, retryable, events on the way; when the server is back, so is the store."""
    events: list[Event] = []
    connections = connect(own_server.new_database(), bound_s=0.6, events=events.append)
    connections.write(_count_up)
    own_server.kill()
    try:
        for call in (connections.read, connections.write):
            began = time.monotonic()
            with pytest.raises(DatabaseUnreachable) as caught:
                call(_nothing)
            assert time.monotonic() - began < 5
            assert caught.value.retryable
            assert not caught.value.unsettled
            assert connections.where in str(caught.value)
    finally:
        own_server.start()
    assert {event.step for event in events} == {"state.database"}
    assert connections.write(_count_up) == 2


def test_a_server_that_says_nothing_is_away(own_server: Server, connect: Opener) -> None:
    """Its process was stopped: no wait is without a bound."""
    connections = connect(own_server.new_database(), bound_s=0.5, answer_s=0.5)
    ((backend,),) = connections.read(lambda each: each.rows("SELECT pg_backend_pid()"))
    os.kill(backend, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(DatabaseUnreachable, match="could not be reached"):
            connections.read(_nothing)
        assert time.monotonic() - began < 10
    finally:
        os.kill(backend, signal.SIGCONT)
    assert connections.write(_count_up) == 1


def test_a_server_that_takes_no_writes_is_away(postgres: Server, connect: Opener) -> None:
    """As a standby before it is promoted: who waits gets through when it is, else DatabaseUnreachable."""
    url = postgres.new_database()
    name = url.rpartition("/")[2]
    connections = connect(url, bound_s=0.4)
    connections.write(_count_up)
    postgres.run(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    connections.close()
    with pytest.raises(DatabaseUnreachable):
        connections.write(_count_up)
    waiting = connect(url, bound_s=30)
    promotion = threading.Timer(0.5, postgres.run, [f"ALTER DATABASE {name} RESET default_transaction_read_only"])
    promotion.start()
    assert waiting.write(_count_up) == 2
    promotion.join()


@pytest.mark.parametrize(
    "cuts", [("before",), ("after",), ("silent",), ("before", "after"), ("silent", "before", "after")], ids="-".join
)
def test_a_connection_cut_at_commit_writes_once(postgres: Server, connect: Opener, cuts: tuple[str, ...]) -> None:
    """Whether the server got the COMMIT or not, the write is made once, and its result is the one that was made."""
    with CuttingProxy(postgres.port) as proxy:
        url = postgres.new_database().replace(f":{postgres.port}/", f":{proxy.port}/")
        connections = connect(url, lock_wait_s=20)
        connections.read(_nothing)
        for number in (1, 2, 3):
            proxy.arm(*cuts)
            assert connections.write(_count_up) == number
            assert proxy.armed == []
        assert _counted(connections) == (3, 3)
        assert proxy.cuts == 3 * len(cuts)


def test_a_commit_whose_answer_nobody_can_give_is_told_so(postgres: Server, connect: Opener) -> None:
    """The server got it, the answer was lost, and the database stays away: the error says that nobody knows."""
    url = postgres.new_database()
    with CuttingProxy(postgres.port) as proxy:
        connections = connect(url.replace(f":{postgres.port}/", f":{proxy.port}/"), bound_s=0.4)
        connections.read(_nothing)
        proxy.arm("after")
        proxy.after_cut = proxy.close
        with pytest.raises(DatabaseUnreachable, match="not known") as caught:
            connections.write(_count_up)
    assert caught.value.unsettled
    assert _counted(connect(url)) == (1, 1)


def test_a_write_that_changed_nothing_needs_no_mark(database: str, connect: Opener) -> None:
    """Only what wrote something says so in `writers`."""
    connections = connect(database)
    connections.write(_nothing)
    assert connections.read(lambda each: each.rows("SELECT last FROM writers")) == []
    connections.write(_count_up)
    assert connections.read(lambda each: each.rows("SELECT last FROM writers")) == [(2,)]


def test_the_server_ends_a_client_that_stands_still(database: str, connect: Opener) -> None:
    """A stopped process must not keep the lock of all writers: the server was told how long it may."""
    connections = connect(database)
    names = ("idle_in_transaction_session_timeout", "tcp_keepalives_idle", "tcp_user_timeout")
    settings = connections.read(lambda each: [each.rows(f"SHOW {name}")[0][0] for name in names])
    assert settings == ["1min", "15", "30000"]


# Processes.


def test_a_child_neither_uses_nor_closes_its_parents_connection(database: str, connect: Opener) -> None:
    """It opens its own; the parent's session goes on when the child has ended."""
    connections = connect(database)

    def backend() -> int:
        ((pid,),) = connections.read(lambda each: each.rows("SELECT pg_backend_pid()"))
        return int(pid)

    ours = backend()

    def in_child(child: Child) -> None:
        child.say(str(backend()).encode())
        connections.write(_count_up)
        connections.close()

    child = Child(in_child)
    theirs = int(child.heard())
    assert child.ended() == 0
    assert theirs != ours
    assert backend() == ours
    assert _counted(connections) == (1, 1)


def test_a_fork_inside_a_transaction_leaves_it_to_the_parent(database: str, connect: Opener) -> None:
    """Of another thread, or the forking one itself: the child's copy is of no use to it, and its end harms nothing."""
    connections = connect(database)
    inside, forked = threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def write(connection: Connection) -> int:
        number = _count_up(connection)
        inside.set()
        forked.wait(30)
        return number

    def work() -> None:
        try:
            assert connections.write(write) == 1
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(30)
    child = Child(lambda child: child.say(str(_counted(connections)).encode()))
    assert child.heard() == b"(0, 0)"
    assert child.ended() == 0
    forked.set()
    thread.join(30)
    assert failures == []

    def fork_inside(connection: Connection) -> int:
        def in_child(child: Child) -> None:
            with contextlib.suppress(Exception):
                connection.rows("SELECT 1")
            else_used = _counted(connections)
            child.say(str(else_used).encode())

        number = _count_up(connection)
        child = Child(in_child)
        assert child.heard() == b"(1, 1)"
        assert child.ended() == 0
        return number

    assert connections.write(fork_inside) == 2
    assert _counted(connections) == (2, 2)


def test_threads_share_one_object(database: str, connect: Opener) -> None:
    """16 threads, 10 increments each; few connections stay open."""
    connections = connect(database)

    def work() -> None:
        for _ in range(10):
            connections.write(_count_up, durable=False)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert _counted(connections) == (160, 160)
    ((left,),) = connections.read(
        lambda each: each.rows("SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()")
    )
    assert left <= 8


# The schema.


def test_eight_processes_make_the_schema_at_once(database: str, connect: Opener) -> None:
    """One does it, the others wait; each step is recorded once."""

    def work() -> bytes:
        PgConnections(database).write(_count_up)
        return b"ok"

    run_at_once([work] * 8)
    connections = connect(database)
    assert _counted(connections) == (8, 8)
    rows = connections.read(lambda each: each.rows("SELECT version, name FROM migrations ORDER BY version"))
    assert rows == [(number, name) for number, (name, _) in enumerate(MIGRATIONS, 1)]


def test_the_tables_are_those_of_sqlite(database: str, connect: Opener, tmp_path: Path) -> None:
    """The same tables, columns, needed values and number of steps; two tables are of a shared database alone."""
    import sqlite3

    assert len(MIGRATIONS) == SCHEMA_VERSION
    home = SkyHome(tmp_path / "home")
    store = SqliteStore(home)
    store.clusters()
    store.close()
    with contextlib.closing(sqlite3.connect(home.state_db)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        kinds = {"TEXT": "text", "INTEGER": "bigint", "FLOAT": "double precision", "REAL": "double precision"}
        ours = {
            (table, name, kinds[kind], bool(needed or key))
            for table in tables
            if not table.startswith("sqlite_")
            for _, name, kind, needed, _, key in db.execute(f'PRAGMA table_info("{table}")')
        }
    rows = connect(database).read(
        lambda each: each.rows(
            "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns "
            "WHERE table_schema = 'skylib' AND table_name NOT IN ('writers', 'lock_holders')"
        )
    )
    theirs = {(table, name, kind, nullable == "NO") for table, name, kind, nullable in rows}
    both = {"migrations"}
    assert {row for row in theirs if row[0] not in both} == {row for row in ours if row[0] not in both}


def test_an_older_schema_gets_the_missing_steps(database: str, postgres: Server, connect: Opener) -> None:
    """What is there stays, and is numbered as lives are."""
    name = database.rpartition("/")[2]
    postgres.run("CREATE SCHEMA skylib", database=name)
    path = "SET search_path = skylib; "
    postgres.run(path + "CREATE TABLE migrations (version BIGINT PRIMARY KEY, name TEXT, applied_at FLOAT)", database=name)
    for number, (step, statements) in enumerate(MIGRATIONS[:2], 1):
        postgres.run(path + "; ".join(statements), database=name)
        postgres.run(f"INSERT INTO skylib.migrations VALUES ({number}, '{step}', 0)", database=name)
    for number in (2, 1):
        postgres.run(
            f"INSERT INTO skylib.cluster_history VALUES ('c-{number}', 'c', {number}, NULL, 1, '{{}}')", database=name
        )
    rows = connect(database).read(lambda each: each.rows("SELECT cluster_id, seq FROM cluster_history ORDER BY seq"))
    assert rows == [("c-1", 1), ("c-2", 2)]


def test_a_newer_schema_is_refused_and_left_alone(database: str, postgres: Server, connect: Opener) -> None:
    """The error says which versions, and nothing was changed."""
    connect(database).write(_count_up)
    name = database.rpartition("/")[2]
    postgres.run("INSERT INTO skylib.migrations VALUES (99, 'of tomorrow', 0)", database=name)
    with pytest.raises(MigrationError, match="nothing was changed") as caught:
        connect(database).write(_count_up)
    assert (caught.value.ours, caught.value.theirs) == (len(MIGRATIONS), 99)
    assert postgres.run("SELECT value FROM skylib.config", database=name) == [("1",)]


def test_an_account_that_may_not_make_tables_is_told_what_to_do(database: str, postgres: Server, connect: Opener) -> None:
    """And gets on once an administrator has made the schema for it."""
    name = database.rpartition("/")[2]
    with contextlib.suppress(Exception):
        postgres.run(f"CREATE ROLE plain LOGIN PASSWORD '{PASSWORD}'")
    url = postgres.url(name, user="plain")
    with pytest.raises(StateError, match="may not make the tables") as caught:
        connect(url).read(_nothing)
    assert not caught.value.retryable
    assert "CREATE SCHEMA skylib AUTHORIZATION" in str(caught.value.hint)
    postgres.run("CREATE SCHEMA skylib AUTHORIZATION plain", database=name)
    assert connect(url).write(_count_up) == 1


# What cannot be used.


@pytest.mark.parametrize(
    ("user", "name", "password", "said"),
    [
        ("sky", "postgres", "wrong-one", "password authentication failed"),
        ("sky", "nowhere", PASSWORD, '"nowhere" does not exist'),
        ("nobody", "postgres", PASSWORD, "password authentication failed"),
    ],
)
def test_what_will_not_change_is_not_tried_again(
    postgres: Server, connect: Opener, user: str, name: str, password: str, said: str
) -> None:
    """A wrong password, user or name is said at once, with what to do."""
    events: list[Event] = []
    began = time.monotonic()
    with pytest.raises(StateError, match=said) as caught:
        connect(postgres.url(name, user=user, password=password), events=events.append).read(_nothing)
    assert time.monotonic() - began < 5
    assert not isinstance(caught.value, DatabaseUnreachable)
    assert not caught.value.retryable
    assert caught.value.hint
    assert events == []


@pytest.mark.parametrize(
    "url",
    [
        "postgres//sky:hush-hush@host/name",
        "sqlite:////tmp/hush-hush.db",
        "hush-hush",
        "",
        "host=db password=hush-hush",
        "postgresql://sky:hush-hush@host:port/name",
        "postgresql://sky:hush-hush@host/name?nonsense=hush-hush",
        "postgresql://sky:hush@hush-hush@host/name",
        17,
        None,
    ],
)
def test_a_bad_url_is_a_config_error_that_does_not_show_it(url: object) -> None:
    """Whatever is wrong with it."""
    with pytest.raises(ConfigError) as caught:
        PgConnections(url, bound_s=0.2).read(_nothing)  # type: ignore[arg-type]
    assert "hush-hush" not in f"{caught.value} {caught.value!r} {caught.value.__dict__}"
    assert caught.value.key == "db"


def test_a_missing_psycopg_names_the_extra(tmp_path: Path) -> None:
    """It is asked for at the first use, not before."""
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from skylib.state.postgres import PostgresStore\n"
        "store = PostgresStore('postgresql://sky:pw@127.0.0.1/x')\n"
        "try: store.clusters()\n"
        "except Exception as error: print(type(error).__name__, error.hint)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'ConfigError pip install "skylib[postgres]"'
