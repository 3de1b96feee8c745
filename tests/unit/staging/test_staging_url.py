"""Mounts from the web, from a real server, and from file URLs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from skylib.errors import InvalidSpecError, StagingError
from skylib.events import discard
from skylib.models.task import Task
from skylib.ops.files import staged_files
from skylib.session import Session
from skylib.staging.url_source import local_path, shown_url
from tests.unit.staging.git_server import WebServer, nobody, web_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    (tmp_path / "served").mkdir()
    (tmp_path / "served/data").write_bytes(b"data" * 5000)
    with web_server(tmp_path / "served") as server:
        yield server


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    session = Session(tmp_path / "sky")
    yield session
    session.close()


def content(session: Session, url: str) -> bytes:
    """What the snapshot of a mount has."""
    with staged_files(session, Task(run="true", file_mounts={"x": url}), discard) as files:
        return Path(files.trees[0].manifest.source).read_bytes()


def test_a_file_that_is_kept_is_not_sent_again(session: Session, server: WebServer) -> None:
    """The second time the server says that it has not changed."""
    assert [content(session, f"http://{server.at}/data") for _time in range(2)] == [b"data" * 5000] * 2
    assert server.seen == [200, 304]


def test_a_date_alone_is_enough(session: Session, server: WebServer) -> None:
    """A server without ETag is asked by Last-Modified."""
    server.etags = False
    assert [content(session, f"http://{server.at}/data") for _time in range(2)] == [b"data" * 5000] * 2
    assert server.seen == [200, 304]


def test_a_login_stays_with_its_host(tmp_path: Path, session: Session, server: WebServer) -> None:
    """After a redirect to another server that one gets the request without it."""
    with web_server(tmp_path / "served") as other:
        server.login, server.moved["/a"] = "me:s3cret", f"http://{other.at}/data"
        assert content(session, f"http://me:s3cret@{server.at}/a") == b"data" * 5000
        assert ["Authorization" in asked for asked in (*server.asked, *other.asked)] == [True, False]


def test_a_file_larger_than_what_is_kept_is_refused(tmp_path: Path, server: WebServer) -> None:
    """The setting is named, and nothing stays."""
    with closing(Session(tmp_path / "sky", config={"staging": {"max_gib": 1e-5}})) as small:
        with pytest.raises(StagingError, match="larger than") as caught:
            content(small, f"http://{server.at}/data")
        assert "staging.max_gib" in str(caught.value.hint)
    assert not [*tmp_path.glob("sky/api_server/clients/*/sources/*")]


def test_a_file_that_changed_is_fetched_anew(session: Session, server: WebServer) -> None:
    """What is staged is what the server has now."""
    content(session, f"http://{server.at}/data")
    (server.root / "data").write_bytes(b"other")
    assert content(session, f"http://{server.at}/data") == b"other"


@pytest.mark.parametrize(("path", "code"), [("none", "404"), ("data", "401")])
def test_a_refusal_names_url_and_code(session: Session, server: WebServer, path: str, code: str) -> None:
    """The URL is shown without user, password and query."""
    server.login = "me:right" if code == "401" else "me:s3cret"
    with pytest.raises(StagingError, match=code) as caught:
        content(session, f"http://me:s3cret@{server.at}/{path}?signature=s3cret")
    assert caught.value.path == f"http://{server.at}/{path}?..."
    assert "s3cret" not in f"{caught.value!r} {caught.value} {caught.value.__dict__}"


def test_a_download_that_is_cut_short_is_an_error_and_nothing_is_kept(
    tmp_path: Path, session: Session, server: WebServer
) -> None:
    """Half a file is never staged."""
    server.cut = 7
    with pytest.raises(StagingError, match="cut short: 19993 of 20000"):
        content(session, f"http://{server.at}/data")
    assert not [*tmp_path.glob("sky/api_server/clients/*/sources/*")]


def test_a_host_that_is_away_is_named(session: Session) -> None:
    """A port where nobody listens gives an error with the host."""
    with nobody() as at, pytest.raises(StagingError, match="refused") as caught:
        content(session, f"http://{at}/data")
    assert caught.value.host == "127.0.0.1"


def test_redirects_that_go_in_circles_end(session: Session, server: WebServer) -> None:
    """After a few it is an error."""
    server.moved["/a"] = "/a"
    with pytest.raises(StagingError, match="302"):
        content(session, f"http://{server.at}/a")
    assert len(server.seen) <= 6


def test_a_redirect_does_not_lead_to_files_here(session: Session, server: WebServer) -> None:
    """Only the web is followed."""
    server.moved["/a"] = "file:///etc/hostname"
    with pytest.raises(StagingError, match="302"):
        content(session, f"http://{server.at}/a")


def test_a_file_url_is_a_path_here(tmp_path: Path, session: Session) -> None:
    """%XX stands for its byte."""
    (tmp_path / "a b").write_text("here")
    assert content(session, f"file://{tmp_path}/a%20b") == b"here"


def test_a_file_url_of_another_host_is_refused() -> None:
    """Its field is named."""
    with pytest.raises(InvalidSpecError, match="this machine"):
        local_path("file://other/x", field="file_mounts.x")


def test_what_may_be_secret_in_a_url_is_not_shown() -> None:
    """User, password and query."""
    assert shown_url("https://u:p@h:1/x?sig=1#f") == "https://h:1/x?..."
