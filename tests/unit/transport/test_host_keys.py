"""The record of host keys of one home."""

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest

from skylib.errors import HostKeyError, TransportError
from skylib.models.node import HostAddress
from skylib.paths import SkyHome
from skylib.session import Session
from skylib.transport.host_keys import HostKeys, preferred_order
from skylib.transport.known_hosts import fingerprint, parse, render

ED = "ssh-ed25519"


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    return SkyHome(tmp_path / "sky")


def check(home: SkyHome, name: str, blob: bytes, files: tuple[Path, ...] = ()) -> bool:
    return HostKeys(home=home).check(name, 22, ED, blob, files=[str(file) for file in files], host=name)


def test_new_host_is_accepted_once_and_written_down(home: SkyHome) -> None:
    """The first key of a host is kept with mode 0600; the second time it is known."""
    assert not check(home, "gpu", b"one")
    assert check(home, "gpu", b"one")
    assert home.known_hosts.read_text() == render("gpu", ED, b"one")
    assert stat.S_IMODE(home.known_hosts.stat().st_mode) == 0o600


def test_changed_key_stops_with_both_fingerprints_and_the_line(home: SkyHome) -> None:
    """The error says what was expected, what was seen, and where the record stands; the record stays as it was."""
    check(home, "other", b"x")
    check(home, "gpu", b"one")
    with pytest.raises(HostKeyError) as caught:
        check(home, "gpu", b"two")
    error = caught.value
    assert (error.expected, error.seen) == (fingerprint(b"one"), fingerprint(b"two"))  # type: ignore[attr-defined]
    assert (error.file, error.line) == (str(home.known_hosts), 2)  # type: ignore[attr-defined]
    assert fingerprint(b"one") in str(error)
    assert fingerprint(b"two") in str(error)
    assert "two" not in home.known_hosts.read_text()


def test_users_own_file_is_consulted_first(home: SkyHome, tmp_path: Path) -> None:
    """A host that the user's known_hosts knows is not written into ours."""
    users = tmp_path / "known_hosts"
    users.write_text(render("gpu", ED, b"one"))
    assert check(home, "gpu", b"one", (users,))
    assert not home.known_hosts.exists()


def test_users_own_file_can_refuse(home: SkyHome, tmp_path: Path) -> None:
    """A key that contradicts the user's file is refused, and the user's file is never written."""
    users = tmp_path / "known_hosts"
    users.write_text(render("gpu", ED, b"one"))
    with pytest.raises(HostKeyError) as caught:
        check(home, "gpu", b"two", (users,))
    assert caught.value.file == str(users)  # type: ignore[attr-defined]
    assert users.read_text() == render("gpu", ED, b"one")


def test_revoked_key_is_refused(home: SkyHome, tmp_path: Path) -> None:
    """@revoked refuses a key even of a host that is on record with it."""
    check(home, "gpu", b"one")
    users = tmp_path / "known_hosts"
    users.write_text("@revoked " + render("*", ED, b"one"))
    with pytest.raises(HostKeyError, match="revoked"):
        check(home, "gpu", b"one", (users,))


def test_missing_newline_at_the_end_is_mended(home: SkyHome) -> None:
    """A record that somebody edited by hand and left without a newline does not swallow the next entry."""
    home.root.mkdir()
    home.known_hosts.write_text(render("gpu", ED, b"one").rstrip("\n"))
    check(home, "new", b"two")
    assert [key.hosts for key in parse(home.known_hosts.read_text())] == [("gpu",), ("new",)]


def test_record_that_cannot_be_written_is_an_error(home: SkyHome) -> None:
    """A new host whose key cannot be kept is not accepted."""
    home.known_hosts.mkdir(parents=True)
    with pytest.raises(TransportError, match="could not write"):
        check(home, "gpu", b"one")


def test_kinds_on_record_are_asked_for_first(home: SkyHome, tmp_path: Path) -> None:
    """A host with an RSA key on record is asked for RSA before anything else."""
    users = tmp_path / "known_hosts"
    users.write_text(render("gpu", "ssh-rsa", b"one") + render("else", "ssh-dss", b"x"))
    kinds = HostKeys(home=home).kinds("gpu", 22, [str(users)])
    assert kinds == ("ssh-rsa",)
    order = preferred_order(["ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256"], kinds)
    assert order == ("rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519")


def _accept(root: str, number: int) -> None:
    HostKeys(home=SkyHome(Path(root))).check(f"h{number}", 22, ED, b"key", files=(), host="h")


def test_processes_that_meet_new_hosts_at_once_lose_no_entry(home: SkyHome) -> None:
    """Twelve processes accept twelve hosts at the same time: all are on record."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_accept, args=(str(home.root), number)) for number in range(12)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 12
    names = {key.hosts[0] for key in parse(home.known_hosts.read_text())}
    assert names == {f"h{number}" for number in range(12)}


class Shared:
    """A record that several homes have in common, in memory."""

    where = "database db/skylib"

    def __init__(self) -> None:
        self.lines: dict[str, str] = {}

    def key(self, name: str) -> str:
        return self.lines.get(name, "")

    def add(self, name: str, line: str) -> str:
        return self.lines.setdefault(name, line)

    def forget(self, name: str) -> None:
        self.lines.pop(name, None)


def test_homes_that_share_a_record_share_its_hosts(tmp_path: Path) -> None:
    """What one home has met is known to the other, and another key is refused there."""
    shared = Shared()
    one, two = (HostKeys(home=SkyHome(tmp_path / name), shared=shared) for name in ("one", "two"))
    assert not one.check("gpu", 22, ED, b"one", files=(), host="gpu")
    assert two.kinds("gpu", 22, ()) == (ED,)
    assert two.check("gpu", 22, ED, b"one", files=(), host="gpu")
    with pytest.raises(HostKeyError) as caught:
        two.check("gpu", 22, ED, b"two", files=(), host="gpu")
    assert caught.value.file == shared.where
    assert "forget_host_key('gpu')" in str(caught.value.hint)


def test_a_key_that_this_home_knew_before_is_shared(tmp_path: Path) -> None:
    """A record that was kept in files goes into the shared one as hosts are reached."""
    home = SkyHome(tmp_path / "one")
    HostKeys(home=home).check("gpu", 22, ED, b"one", files=(), host="gpu")
    shared = Shared()
    assert HostKeys(home=home, shared=shared).check("gpu", 22, ED, b"one", files=(), host="gpu")
    assert shared.lines == {"gpu": render("gpu", ED, b"one")}


def test_the_first_of_two_homes_wins(tmp_path: Path) -> None:
    """A host that shows another key to a second home at the same time is refused there, and nothing is written."""

    class Overtaken(Shared):
        def add(self, name: str, line: str) -> str:
            return self.lines.setdefault(name, render("gpu", ED, b"other"))

    home = SkyHome(tmp_path / "two")
    with pytest.raises(HostKeyError):
        HostKeys(home=home, shared=Overtaken()).check("gpu", 22, ED, b"one", files=(), host="gpu")
    assert not home.known_hosts.exists()


def test_a_forgotten_host_is_new_again(home: SkyHome) -> None:
    """forget() removes the host's line alone, and the next key is accepted."""
    check(home, "gpu", b"one")
    check(home, "other", b"x")
    assert HostKeys(home=home).forget("gpu") == 1
    assert home.known_hosts.read_text() == render("other", ED, b"x")
    assert not check(home, "gpu", b"two")


def test_a_sessions_record_is_one_for_all_its_hosts(tmp_path: Path) -> None:
    """With the locks of its files: none are made for each host."""
    session = Session(tmp_path / "sky")
    transports = [session.transport(HostAddress(kind="ssh", host=host)) for host in ("a", "b")]
    assert {id(transport._host_keys) for transport in transports} == {id(session.host_keys)}  # type: ignore[attr-defined]
    assert session.host_keys.locks is session.file_locks
