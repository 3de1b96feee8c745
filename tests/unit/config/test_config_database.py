"""`db`: where it is found, what is no URL, and that its password is shown nowhere."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import attrs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import skylib
from skylib.config.database import database_setting, find_database, place_of
from skylib.config.load import Config, load_config
from skylib.errors import ConfigError, SkyError
from skylib.models.secret import Secret
from skylib.paths import SkyHome

URL = "postgresql://ann:hunter2@db.example:5433/state"


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    (tmp_path / "home").mkdir()
    return SkyHome(tmp_path / "home")


def _load(
    home: SkyHome, *, overrides: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    return load_config(home, overrides=overrides, environ=environ or {}, cwd=home.root)


@pytest.mark.parametrize("text", ["", "db:\n", "db: null\nssh: {keepalive_s: 1}\n", "ssh: {}\n"])
def test_without_db_the_home_keeps_its_state(home: SkyHome, text: str) -> None:
    """No file, none in it, an empty one; an empty variable and None say nothing either."""
    home.config.write_text(text)
    assert find_database(home, {"db": None}, {"SKYLIB_DB": ""}) is None
    explained = _load(home).explain("db")
    assert (explained.value, str(explained.origin)) == ("", "default")


def test_later_sources_win(home: SkyHome) -> None:
    """config.yaml, then the variable, then Client(config=...), text or Secret."""
    file, variable, given = (f"postgresql://{name}/x" for name in ("file", "variable", "given"))
    home.config.write_text(f"db: {file}\n")
    environ = {"SKYLIB_DB": variable}
    assert find_database(home, {}, {}) == Secret(file)
    assert find_database(home, {}, environ) == Secret(variable)
    for each in (given, Secret(given)):
        assert find_database(home, {"db": each}, environ) == Secret(given)
    assert str(_load(home).explain("db").origin) == f"{home.config}, line 1"
    assert str(_load(home, environ=environ).explain("db").origin) == "$SKYLIB_DB"
    assert str(_load(home, overrides={"db": given}).explain("db").origin) == "Client(config=...)"


def test_the_variable_is_that_of_the_process_by_default(home: SkyHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """$SKYLIB_DB is read from the environment."""
    monkeypatch.setenv("SKYLIB_DB", URL)
    assert find_database(home) == Secret(URL)


@pytest.mark.parametrize("source", ["file", "variable", "client"])
def test_other_keys_beside_db_are_refused_by_name(home: SkyHome, source: str) -> None:
    """Each with its line, wherever db is set: the database keeps settings then, and none is ignored silently."""
    db = f"db: {URL}\n" if source == "file" else "\n"
    home.config.write_text(f"{db}ssh: {{keepalive_s: 3}}\n\nlogs:\n  keep: 4\nshs: 1\n")
    environ = {"SKYLIB_DB": URL} if source == "variable" else {}
    overrides = {"db": URL} if source == "client" else {}
    for read in (find_database, lambda *words: load_config(home, overrides=words[1], environ=words[2], cwd=home.root)):
        with pytest.raises(ConfigError, match=r"'ssh' \(line 2\), 'logs' \(line 4\), 'shs' \(line 6\)") as caught:
            read(home, overrides, environ)
        assert (caught.value.file, caught.value.line, caught.value.key) == (str(home.config), 2, "ssh")
        assert "client.config.set" in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_db_in_the_working_directory_is_refused(home: SkyHome, tmp_path: Path) -> None:
    """A project does not say where all of a home's state is; the error has its line."""
    (tmp_path / ".sky.yaml").write_text(f"ssh: {{}}\ndb: {URL}\n")
    with pytest.raises(ConfigError, match="'db' cannot be set here") as caught:
        load_config(home, environ={}, cwd=tmp_path)
    assert (caught.value.file, caught.value.line, caught.value.key) == (str(tmp_path / ".sky.yaml"), 2, "db")
    assert "hunter2" not in str(caught.value)


def test_db_in_a_task_is_refused(home: SkyHome) -> None:
    """The state of a client is not a task's to say."""
    task = skylib.Task.from_yaml_str(f"run: x\nconfig:\n  db: {URL}\n", file="t.yaml")
    with skylib.Client(home.root) as client, pytest.raises(ConfigError, match="t.yaml, line 3: 'db' cannot") as caught:
        client.plan(task)
    assert "hunter2" not in str(caught.value)


def test_db_in_what_the_database_keeps_is_refused(home: SkyHome) -> None:
    """It would say where it is itself."""
    with pytest.raises(ConfigError, match="database db.example:5433/state: 'db' cannot"):
        load_config(home, overrides={"db": URL}, environ={}, cwd=home.root, stored={"db": URL})


@pytest.mark.parametrize(
    ("url", "label", "masked"),
    [
        (URL, "db.example:5433/state", "postgresql://ann:<redacted>@db.example:5433/state"),
        ("postgres://h", "h/", "postgres://h/"),
        ("postgresql:///x?host=/run/pg&password=hunter2", "localhost/x", "postgresql:///x?..."),
        ("postgresql://ann@[::1]:5432/x", "[::1]:5432/x", "postgresql://ann@[::1]:5432/x"),
        ("postgresql://a:b@h1:1,h2:2/x?sslmode=require", "h1:1,h2:2/x", "postgresql://a:<redacted>@h1:1,h2:2/x?..."),
        ("postgresql://%2Frun%2Fpg/x", "/run/pg/x", "postgresql://%2Frun%2Fpg/x"),
        ("postgresql://a:p%40s%2Fs@h/x", "h/x", "postgresql://a:<redacted>@h/x"),
        ("postgresql://a:b#c:d@h/x", "h/x", "postgresql://a:<redacted>@h/x"),
    ],
)
def test_what_of_a_url_is_shown(home: SkyHome, url: str, label: str, masked: str) -> None:
    """Host and name for people; all but password and parameters for explain."""
    place = place_of(Secret(url))
    assert (place.label, place.masked) == (label, masked)
    assert _load(home, overrides={"db": url}).explain("db").value == masked


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://ann:hunter2@h/x", "begins with postgresql://"),
        ("postgresql+psycopg://ann:hunter2@h/x", "begins with postgresql://"),
        ("host=h password=hunter2", "begins with postgresql://"),
        ("hunter2", "begins with postgresql://"),
        ("postgresql://ann:hunter2 @h/x", "a blank"),
        ("postgresql://ann:hunter2\n@h/x", "a blank"),
        ("postgresql://ann:hunter2%zz@h/x", "a %"),
        ("postgresql://ann:hun@ter2@h/x", "percent-encoded"),
        ("postgresql://ann:hun/ter2@h/x", "percent-encoded"),
        ("postgresql://ann:hun?ter2@h/x", "percent-encoded"),
        ("postgresql://ann:hunter2@h:port/x", "host:port"),
        ("postgresql://ann:hunter2@h:1:2/x", "host:port"),
        ("postgresql://ann:hunter2", "host:port"),
    ],
)
def test_what_is_no_url_is_refused_unseen(home: SkyHome, url: str, words: str) -> None:
    """The error says what is wrong, and nothing of what was written; nor does its cause."""
    with pytest.raises(ConfigError) as caught:
        find_database(home, {"db": url}, {})
    said = "".join(traceback.format_exception(caught.value))
    assert f"Client(config=...): db {words.split()[0]}" in said or words in said
    assert words in str(caught.value)
    assert not [part for part in ("hunter2", "ter2", "hun@") if part in str(caught.value)]


@pytest.mark.parametrize("value", [5, True, {"a": 1}, ["postgresql://h"], 1.5])
def test_db_is_text(home: SkyHome, value: object) -> None:
    """Anything else is refused by its kind."""
    with pytest.raises(ConfigError, match="db is a URL as text, not"):
        find_database(home, {"db": value}, {})


def test_a_variable_that_was_meant_for_db_is_refused(home: SkyHome) -> None:
    """SKYLIB_DB_URL would be ignored silently."""
    with pytest.raises(ConfigError, match="nearest valid one is 'SKYLIB_DB'"):
        _load(home, environ={"SKYLIB_DB_URL": URL})


ODD = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1, max_size=12)
# A word that no message of ours has, in the middle of what is odd.
PASSWORDS = st.tuples(ODD, ODD).map(lambda odd: f"{odd[0]}Zq7{odd[1]}")
FORMS: list[Callable[[str], str]] = [
    lambda url: f"db: {url}\n",
    lambda url: f"db:\n  - {url}\n",
    lambda url: f"db: {{url: {url}}}\n",
    lambda url: f"{{db: {url}, ssh: 5}}\n",
    lambda url: f"db {url}\n",
    lambda url: f"{url}: 1\n",
    lambda url: f"db: &{url}\n",
    lambda url: f"db: !{url}\n",
    lambda url: f"db: '{url}'\ndb: \"{url}\"\n",
    lambda url: f"ssh:\n  keepalive_s: {url}\n",
    lambda url: f"ssh:\n  {url}: 1\n",
    lambda url: f"ssh: {url}\n",
    lambda url: f"runtime: {{source: {url}}}\n",
    lambda url: f"db: {url}\nssh: 5\nlogs: {{keep: 0}}\n",
]


def _shown(action: Callable[[], object]) -> str:
    """What a call that may fail shows of itself: its result, or its error with facts and causes."""
    try:
        result = action()
    except SkyError as error:
        causes = [error, error.__cause__, error.__context__ if not error.__suppress_context__ else None]
        return "".join(f"{each}{each!r}{vars(each) if each else ''}" for each in causes) + str(
            [str(each) for each in traceback.TracebackException.from_exception(error).format()][-1]
        )
    return f"{result}{result!r}"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(password=PASSWORDS, form=st.sampled_from(FORMS), encoded=st.booleans(), project=st.booleans())
@example(password="a, Zq7: b", form=FORMS[3], encoded=False, project=False)
@example(password="a: Zq7 #b", form=FORMS[0], encoded=False, project=False)
def test_no_password_in_a_file_is_ever_shown(
    home: SkyHome, password: str, form: Callable[[str], str], encoded: bool, project: bool
) -> None:
    """Whatever a file with a URL looks like: not in reprs, errors, their facts or causes."""
    word = quote(password, safe="") if encoded else password
    path = home.root / ".sky.yaml" if project else home.config
    path.write_text(form(f"postgresql://ann:{word}@h/x"), encoding="utf-8")
    try:
        shown = _shown(lambda: database_setting(home, {}, {}))
        shown += _shown(lambda: _load(home))
        shown += _shown(lambda: str(_load(home).explain("db")))
    finally:
        path.unlink()
    assert "Zq7" not in shown


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(password=PASSWORDS, encoded=st.booleans(), way=st.sampled_from(["environ", "overrides", "section"]))
def test_no_password_from_elsewhere_is_ever_shown(home: SkyHome, password: str, encoded: bool, way: str) -> None:
    """Nor one of a variable or of Client(config=...), in the right place or in a wrong one."""
    url = f"postgresql://ann:{quote(password, safe='') if encoded else password}@h/x"
    environ = {"SKYLIB_DB": url} if way == "environ" else {}
    given_: dict[str, object] = {"overrides": {"db": url}, "section": {"ssh": {"parallel": url}}}.get(way, {})
    shown = _shown(lambda: database_setting(home, given_, environ))
    shown += _shown(lambda: _load(home, overrides=given_, environ=environ))
    shown += _shown(lambda: _load(home, overrides=given_, environ=environ).explain("db"))
    client = skylib.Client(home.root, config=given_)
    shown += _shown(lambda: client) + _shown(lambda: client._session)
    shown += repr(vars(client._session)) if way == "overrides" else ""
    assert "Zq7" not in shown


def test_a_config_hides_its_database(home: SkyHome) -> None:
    """Neither its repr nor its fields as data have the URL; `database` gives it as a Secret."""
    config = _load(home, overrides={"db": URL})
    assert "hunter2" not in repr(config) + repr(attrs.asdict(config)) + repr(config.explain("db"))
    assert config.database == Secret(URL)
