"""Settings that a client changes: in the home's file, and in a database. One suite for both."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

import skylib
from skylib.config.load import Config
from skylib.config.schema import keys
from skylib.errors import ClusterNotFound, ConfigError, LockTimeout
from skylib.handles import Cluster, Job
from skylib.locks import Locks
from skylib.paths import SkyHome
from tests.postgres import PASSWORD, shared_server
from tests.processes import Child, run_at_once

KINDS = ("home", "database")
# Makes one more client of the same state.
Opener = Callable[..., skylib.Client]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(kind: str) -> str | None:
    return shared_server().new_database() if kind == "database" else None


@pytest.fixture
def client_of(tmp_path: Path, url: str | None, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Clients of one home; with a database each may have a home of its own, which `home` names."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def make(home: str = "home", **config: object) -> skylib.Client:
        given = {**config, "db": url} if url else config
        return skylib.Client(tmp_path / (home if url else "home"), config=given)

    return make


def _origin(kind: str, tmp_path: Path, url: str | None, line: int) -> str:
    return f"database {url.rpartition('@')[2]}" if url else f"{tmp_path / 'home' / 'config.yaml'}, line {line}"


def test_a_setting_is_kept_for_every_client(client_of: Opener, kind: str, url: str | None, tmp_path: Path) -> None:
    """This client has it at once, a new one from the start, an older one when it reloads; explain says where it is."""
    older, client = client_of("other"), client_of()
    assert older.config.ssh.keepalive_s == 15.0
    explained = client.config.set("ssh.keepalive_s", 5)
    assert (explained.key, explained.value, explained.default) == ("ssh.keepalive_s", 5.0, 15.0)
    assert str(explained.origin) == _origin(kind, tmp_path, url, 2)
    assert client.config.ssh.keepalive_s == client_of("third").config.ssh.keepalive_s == 5.0
    assert older.config.ssh.keepalive_s == 15.0
    assert older.config.reload().ssh.keepalive_s == older.config.ssh.keepalive_s == 5.0


def test_every_key_can_be_set_and_unset(client_of: Opener) -> None:
    """With its default as the value; then the default counts again, and nothing is left of it."""
    client = client_of()
    for key in keys():
        value = key.default or (key.choices[0] if key.choices else "3.10")
        assert client.config.set(key.name, value).value == value
    for key in keys():
        explained = client.config.unset(key.name)
        assert (explained.value, str(explained.origin)) == (key.default, "default")
    assert repr(client.config) == repr(client_of("new").config.reload())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("ssh.keep_alive", 5, "nearest valid one is 'ssh.keepalive_s'"),
        ("ssh", {}, "no configuration key 'ssh'"),
        ("", 1, "no configuration key"),
        ("ssh.keepalive_s", "fast", "a number, not 'fast'"),
        ("ssh.keepalive_s", True, "a number, not True"),
        ("ssh.keepalive_s", float("nan"), "a number, not nan"),
        ("ssh.max_channels", 2.0, "a whole number"),
        ("ssh.max_channels", 1, "at least 2"),
        ("runtime.source", "cloud", "one of client, index"),
        ("logs.keep", None, "unset"),
        ("db", "postgresql://h/x", "config.yaml"),
    ],
)
def test_what_the_schema_does_not_take_is_not_written(client_of: Opener, key: str, value: object, words: str) -> None:
    """The error says what is wrong; a client that is made afterwards has the defaults."""
    client = client_of()
    with pytest.raises(ConfigError, match=words) as caught:
        client.config.set(key, value)
    assert caught.value.key == key
    assert client_of("new").config.reload() == Config()


def test_a_later_layer_that_hides_the_value_is_told(
    client_of: Opener, kind: str, url: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """set returns what is in force, where that comes from, and what it hides."""
    monkeypatch.setenv("SKYLIB_SSH_KEEPALIVE_S", "3")
    explained = client_of(ssh={"keepalive_s": 2}).config.set("ssh.keepalive_s", 5)
    assert (explained.value, str(explained.origin)) == (2.0, "Client(config=...)")
    where = _origin(kind, tmp_path, url, 2)
    hidden = [(each.value, str(each.origin)) for each in explained.hides]
    assert hidden == [(3.0, "$SKYLIB_SSH_KEEPALIVE_S"), (5.0, where)]
    assert f"which hides 3.0 from $SKYLIB_SSH_KEEPALIVE_S and 5.0 from {where}" in str(explained)


def test_eight_processes_set_different_keys_and_none_is_lost(client_of: Opener) -> None:
    """All at once, several times over: every setting is there at the end."""
    mine = [key for key in keys() if key.kind in (int, float)][:8]
    assert len(mine) == 8

    def work(number: int) -> Callable[[], bytes]:
        def run() -> bytes:
            with client_of(f"home{number}") as client:
                for turn in range(6):
                    client.config.set(mine[number].name, 50 + turn)
            return b"done"

        return run

    assert run_at_once([work(number) for number in range(8)], timeout_s=120) == [b"done"] * 8
    config = client_of("last").config
    assert {key.name: config.explain(key.name).value for key in mine} == dict.fromkeys((key.name for key in mine), 55)


def test_one_client_is_safe_after_fork(client_of: Opener) -> None:
    """Children that were forked from a process with an open client set what they like."""
    client = client_of()
    client.config.set("logs.keep", 1)
    names = ("ssh.parallel", "ssh.max_channels", "provision.timeout_s")
    children = [Child(lambda child, name=name: _set(client, name)) for name in names]  # type: ignore[misc]
    assert [child.ended() for child in children] == [0] * 3
    client.config.reload()
    assert [client.config.explain(name).value for name in ("logs.keep", *names)] == [1, 9, 9, 9.0]


def _set(client: skylib.Client, name: str) -> None:
    client.config.set(name, 9)


def test_settings_hold_for_what_the_client_does_next(client_of: Opener, tmp_path: Path) -> None:
    """A bound that is set is the one of the next operation."""
    client = client_of()
    client.config.set("logs.keep", 2)
    for _ in range(4):
        client.check()
    assert len(list((tmp_path / "home" / "logs").iterdir())) == 2


# What only the file has.


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SkyHome:
    (tmp_path / "sky").mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path)
    return SkyHome(tmp_path / "sky")


def test_the_file_is_private_and_whole(home: SkyHome) -> None:
    """Mode 0600, written beside and renamed: nothing else is left in the home."""
    skylib.Client(home.root).config.set("logs.keep", 7)
    assert home.config.read_text() == "logs:\n  keep: 7\n"
    assert stat.S_IMODE(home.config.stat().st_mode) == 0o600
    assert sorted(path.name for path in home.root.iterdir()) == ["config.yaml", "locks"]


def test_comments_and_layout_stay(home: SkyHome) -> None:
    """What a person wrote is theirs, byte order mark and line ends included."""
    before = "# mine\r\nssh: {keepalive_s: 3, parallel: 4}  # one\r\n\r\nlogs:  # two\r\n    keep: 5 # three\r\n"
    home.config.write_bytes(b"\xef\xbb\xbf" + before.encode())
    client = skylib.Client(home.root)
    client.config.set("logs.keep", 6)
    client.config.set("ssh.keepalive_s", 1)
    client.config.unset("ssh.parallel")
    client.config.set("agent.call_timeout_s", 2)
    after = "# mine\r\nssh: {keepalive_s: 1}  # one\r\n\r\nlogs:  # two\r\n    keep: 6 # three\r\n"
    after += "agent:\r\n    call_timeout_s: 2\r\n"
    assert home.config.read_bytes() == b"\xef\xbb\xbf" + after.encode()


def test_a_link_stays_a_link(home: SkyHome, tmp_path: Path) -> None:
    """Its target is written, wherever that is."""
    target = tmp_path / "dotfiles" / "sky.yaml"
    target.parent.mkdir(mode=0o700)
    target.write_text("# kept\n")
    home.config.symlink_to("../dotfiles/sky.yaml")
    skylib.Client(home.root).config.set("logs.keep", 7)
    assert os.readlink(home.config) == "../dotfiles/sky.yaml"
    assert target.read_text() == "# kept\nlogs:\n  keep: 7\n"


def test_a_file_that_is_wrong_is_not_written(home: SkyHome) -> None:
    """Not even where the fault came after the client was made."""
    client = skylib.Client(home.root)
    assert client.config.logs.keep == 500
    home.config.write_text("shs: 1\n")
    with pytest.raises(ConfigError, match="line 1: unknown key 'shs'"):
        client.config.set("logs.keep", 7)
    assert home.config.read_text() == "shs: 1\n"
    with pytest.raises(ConfigError, match="unknown key 'shs'"):
        client.config.reload()
    assert client.config.logs.keep == 500


def test_a_form_that_cannot_be_edited_is_left_alone(home: SkyHome) -> None:
    """The error names the line and what to write there."""
    text = "ssh: &both {parallel: 3}\nprovision: {timeout_s: 4}\nlogs: {keep: &n 5}\nlocks: {timeout_s: *n}\n"
    home.config.write_text(text)
    with pytest.raises(ConfigError, match=r"line 3: logs\.keep cannot be changed here") as caught:
        skylib.Client(home.root).config.set("logs.keep", 7)
    assert "write keep: 7 under logs" in str(caught.value)
    assert home.config.read_text() == text


def test_an_empty_db_in_the_file_stays(home: SkyHome) -> None:
    """`db:` without a value says nothing and is nobody's to remove."""
    home.config.write_text("db:   # none yet\n")
    skylib.Client(home.root).config.set("logs.keep", 7)
    assert home.config.read_text() == "db:   # none yet\nlogs:\n  keep: 7\n"


def test_writing_waits_for_the_lock_of_the_configuration(home: SkyHome) -> None:
    """As long as locks.timeout_s, then LockTimeout says who holds it."""
    client = skylib.Client(home.root, config={"locks": {"timeout_s": 0.05}})
    with Locks(home).hold("config", operation="other"), pytest.raises(LockTimeout, match="other"):
        client.config.set("logs.keep", 7)
    assert not home.config.exists()


# What only the database has.


def test_the_password_is_shown_nowhere(database: str, tmp_path: Path) -> None:
    """Not by explain, reprs, handles, nor in any file under the home."""
    with skylib.Client(tmp_path / "home", config={"db": database}) as client:
        explained = client.config.explain("db")
        client.config.set("logs.keep", 7)
        handle = Job(client.home, "train", 1, session=client._session)
        with pytest.raises(ClusterNotFound) as caught:
            client.down("train")
        shown = [explained, client, client.config, client._session, client._session.store, client._session.locks]
        words = "".join(f"{each}{each!r}" for each in (*shown, caught.value, vars(caught.value)))
        words += handle.to_json()
    encoded = database.partition("sky:")[2].partition("@")[0]
    files = b"".join(path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file())
    for secret in (PASSWORD, encoded):
        assert secret not in words
        assert secret.encode() not in files
    assert str(explained.value).startswith("postgresql://sky:<redacted>@127.0.0.1:")


def test_settings_survive_the_loss_of_the_home(database: str, tmp_path: Path) -> None:
    """They are in the database alone: a home that never saw them has them, and config.yaml holds db and nothing else."""
    home = tmp_path / "first"
    home.mkdir(mode=0o700)
    (home / "config.yaml").write_text(f"db: {database}\n")
    skylib.Client(home).config.set("ssh.keepalive_s", 5)
    assert (home / "config.yaml").read_text() == f"db: {database}\n"
    assert skylib.Client(tmp_path / "second", config={"db": database}).config.ssh.keepalive_s == 5.0


def test_what_the_database_keeps_is_checked_when_it_is_read(database: str, tmp_path: Path) -> None:
    """A key of another skylib is refused with the database as its place."""
    client = skylib.Client(tmp_path, config={"db": database})
    client._session.store.config_set("config", {"ssh": {"keep": 1}})
    where = f"database {database.rpartition('@')[2]}"
    with pytest.raises(ConfigError, match="nearest valid one is") as caught:
        _ = client.config.ssh
    assert str(caught.value).startswith(f"{where}: unknown key 'ssh.keep'")


def test_another_db_than_at_first_needs_another_client(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client does not change its database under way."""
    client = skylib.Client(tmp_path)
    assert client.status() == []
    monkeypatch.setenv("SKYLIB_DB", database)
    with pytest.raises(ConfigError, match="make a new Client"):
        client.config.reload()


def test_a_handle_elsewhere_says_which_database_it_lacks(database: str, tmp_path: Path) -> None:
    """Its recipe has host and name; a process without that db is told so when the cluster is not found."""
    with skylib.Client(tmp_path, config={"db": database}) as client:
        texts = [Job(tmp_path, "train", 1, session=client._session).to_json()]
        texts.append(Cluster(tmp_path, "train", session=client._session).to_json())
        assert json.loads(texts[0])["database"] == database.rpartition("@")[2]
        found = Job.from_json(texts[0])
        assert found.to_json() == texts[0]
    for handle in (found, Cluster.from_json(texts[1])):
        with pytest.raises(ClusterNotFound, match="handles do not carry Client") as caught:
            handle.status() if isinstance(handle, Job) else handle.queue()
        assert "SKYLIB_DB" in str(caught.value)


def test_showing_the_settings_reads_nothing(client_of: Opener) -> None:
    """Not even a file or a database that cannot be used: what is not known yet is said so."""
    client = client_of("one")
    assert repr(client.config) == "Settings(<not read yet>)"
    client.config.reload()
    assert repr(client.config).startswith("Config(ssh=")
    assert repr(skylib.Client("/proc/none", config={"db": "postgresql://127.0.0.1:1/x"}).config).startswith("Settings(")


@pytest.mark.parametrize("key", [None, 5, [], b"ssh.parallel"], ids=repr)
def test_a_key_that_is_no_text_is_refused(client_of: Opener, key: object) -> None:
    """By set, unset and explain alike."""
    config = client_of("one").config
    for call in (lambda: config.set(key, 5), lambda: config.unset(key), lambda: config.explain(key)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="key is text"):
            call()


@pytest.mark.parametrize("value", [int("9" * 400), -int("9" * 400), 10**5000], ids=["high", "low", "unprintable"])
@pytest.mark.parametrize("key", ["ssh.parallel", "ssh.keepalive_s"])
def test_a_number_beyond_all_bounds_is_refused(client_of: Opener, key: str, value: int) -> None:
    """As any other that is out of bounds, or no number of that kind."""
    with pytest.raises(ConfigError, match=key):
        client_of("one").config.set(key, value)
