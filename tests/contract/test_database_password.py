"""The password of the database's URL is in nothing that anybody sees: errors and all they hold, logs, journals, reprs."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

import tests
from skylib.errors import SkyError
from skylib.events import Event
from skylib.locks import Locks
from skylib.models.secret import Secret
from skylib.paths import SkyHome
from skylib.session import Session
from skylib.state.advisory import AdvisoryKeeper
from skylib.state.pg_address import address_of
from skylib.state.pg_connections import PgConnections
from skylib.state.postgres import PostgresStore
from tests.pg_proxy import CuttingProxy
from tests.postgres import PASSWORD, Server
from tests.records import cluster_record

_TESTS = str(Path(tests.__file__).parent)


def forms(password: str) -> set[str]:
    """How a password may be written."""
    quoted = quote(password, safe="")
    return {password, quoted, quoted.lower(), quote(password), quote_plus(password), repr(password)[1:-1], password[:5]}


def shown_by(error: BaseException) -> Iterator[str]:
    """All that a person, a log or another process can get out of an error: texts, facts, causes, locals of our frames."""
    yield from (str(error), repr(error), repr(error.__dict__), repr(error.args))
    yield "".join(traceback.format_exception(error))
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if not frame.f_code.co_filename.startswith(_TESTS):
            yield from (repr(value) for value in frame.f_locals.values())
    if isinstance(error, SkyError):
        yield pickle.dumps(error).decode("latin-1")
    for other in (error.__cause__, error.__context__):
        if other is not None:
            assert not type(other).__module__.startswith("psycopg"), "psycopg's errors hold the connection"
            yield from shown_by(other)


def assert_hidden(texts: Iterator[str] | list[str], password: str) -> None:
    for text in texts:
        assert not [form for form in forms(password) if form in text]


def _error_of(call: Callable[[], object]) -> SkyError:
    try:
        call()
    except SkyError as error:
        return error
    raise AssertionError("no error")


def test_errors_of_every_kind_hide_it(postgres: Server, database: str, caplog: pytest.LogCaptureFixture) -> None:
    """Refused, unknown, away, cut, read-only, wrong SQL, wrong values: in texts, facts, causes, pickles and locals."""
    caplog.set_level(logging.DEBUG)
    events: list[Event] = []
    options = {"bound_s": 0.3, "lock_wait_s": 0.2, "events": events.append}
    name = database.rpartition("/")[2]
    wrong = PASSWORD + "-wrong"
    good = PgConnections(Secret(database), **options)  # type: ignore[arg-type]

    def through(url: str) -> PgConnections:
        return PgConnections(Secret(url), **options)  # type: ignore[arg-type]

    def busy() -> object:
        return good.write(lambda each: through(database).write(lambda other: None))

    with CuttingProxy(postgres.port) as proxy:
        cut = through(postgres.url(name, port=proxy.port))
        cut.read(lambda each: None)
        proxy.arm("after")
        proxy.after_cut = proxy.close
        calls: list[Callable[[], object]] = [
            lambda: cut.write(lambda each: each.execute("INSERT INTO config (key, value) VALUES ('a', '1')")),
            lambda: cut.read(lambda each: None),
            lambda: through(postgres.url(name, password=wrong)).read(lambda each: None),
            lambda: through(postgres.url("nowhere")).read(lambda each: None),
            lambda: through(postgres.url(name, port=1)).read(lambda each: None),
            lambda: through(database + "?sslmode=require").read(lambda each: None),
            lambda: through(database + "?nonsense=" + quote(PASSWORD, safe="")).read(lambda each: None),
            lambda: good.read(lambda each: each.rows("SELEKT ?", PASSWORD[:1])),
            lambda: good.write(lambda each: each.execute("INSERT INTO config (key, value) VALUES (NULL, 'x')")),
            lambda: good.read(lambda each: each.execute("DELETE FROM config")),
            busy,
        ]
        for call in calls:
            assert_hidden(shown_by(_error_of(call)), PASSWORD)
    assert events
    assert_hidden([str(event) for event in events], PASSWORD)
    assert_hidden([record.getMessage() for record in caplog.records], PASSWORD)
    assert_hidden([str(record.__dict__) for record in caplog.records], PASSWORD)


@pytest.mark.parametrize("where", ["?password={}", "?sslmode=disable&password={}&application_name=x"])
def test_a_password_among_the_parameters_is_hidden(postgres: Server, database: str, where: str) -> None:
    """It works there, and is as secret."""
    name = database.rpartition("/")[2]
    base = f"postgresql://sky@127.0.0.1:{postgres.port}"
    store = PostgresStore(Secret(f"{base}/{name}" + where.format(quote(PASSWORD, safe=""))))
    store.begin_launch(cluster_record("a"))
    assert_hidden([repr(store)], PASSWORD)
    store.close()
    wrong = PASSWORD + "-wrong"
    failing = PostgresStore(Secret(f"{base}/{name}" + where.format(quote(wrong, safe=""))))
    assert_hidden(shown_by(_error_of(failing.clusters)), PASSWORD)


def test_libpqs_own_ways_of_giving_it_work(
    postgres: Server, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PGPASSWORD and a password file: skylib never sees the password."""
    name = database.rpartition("/")[2]
    bare = f"postgresql://sky@127.0.0.1:{postgres.port}/{name}"
    file = tmp_path / "pgpass"
    file.write_text(f"127.0.0.1:{postgres.port}:*:sky:{PASSWORD.replace(':', chr(92) + ':')}\n")
    file.chmod(0o600)
    store = PostgresStore(Secret(f"{bare}?passfile={quote(str(file), safe='')}"))
    assert store.clusters() == []
    store.close()
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    store = PostgresStore(Secret(bare))
    assert store.clusters() == []
    store.close()


def test_reprs_hide_it(database: str, tmp_path: Path) -> None:
    """Of all that holds the URL, and of what hangs on it."""
    connections = PgConnections(Secret(database))
    keeper = AdvisoryKeeper(Secret(database))
    locks = Locks(SkyHome(tmp_path), keeper=keeper)
    address = address_of(Secret(database))
    link = connections.pool.borrow(within_s=10)
    with locks.hold("cluster:a", operation="launch") as grip:
        things = [connections, keeper, locks, grip, grip.fence, address, link, link.backend, connections.pool]
        things += [PostgresStore(Secret(database)), connections.where, connections.place]
        assert_hidden([repr(each) for each in things], PASSWORD)
        for each in (connections, keeper, locks, grip, link, connections.pool):
            assert_hidden([repr(vars(each))], PASSWORD)
    connections.pool.drop(link)
    locks.close()


def test_sessions_journals_and_homes_hide_it(
    postgres: Server, database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One home, an operation that works and one whose database goes away: no file below it holds the password."""
    caplog.set_level(logging.DEBUG)
    home = tmp_path / "home"
    with CuttingProxy(postgres.port) as proxy:
        url = database.replace(f":{postgres.port}/", f":{proxy.port}/")
        session = Session(home, config={"db": url})
        with session.operation("launch", "a"):
            session.store.begin_launch(cluster_record("a"))
            proxy.cut_all()
            session.store.clusters()
        assert_hidden([repr(session), repr(session.store), repr(session.config)], PASSWORD)
        session.close()
    for file in home.rglob("*"):
        if file.is_file():
            assert_hidden([file.read_bytes().decode("utf-8", "replace")], PASSWORD)
    assert_hidden([str(record.__dict__) for record in caplog.records], PASSWORD)
