"""Git workdirs from real repositories: by file, and over HTTP with a login."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from skylib.errors import InvalidSpecError, StagingError
from skylib.events import Event, discard
from skylib.models.task import Task
from skylib.ops.files import staged_files
from skylib.session import Session
from skylib.staging.git_source import parse_remote
from tests.unit.staging.git_server import WebServer, nobody, web_server

TOKEN = "tok3n-that-nobody-may-see"
ME = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")


def git(place: Path, *argv: str) -> str:
    done = subprocess.run(["git", *ME, "-C", str(place), *argv], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits on main, a tag on the first, and a branch whose file differs."""
    place = tmp_path / "served/code.git"
    place.mkdir(parents=True)
    git(place, "init", "-q")
    for text in ("one", "two"):
        (place / "f").write_text(text)
        git(place, "add", "f")
        git(place, "commit", "-q", "-m", text)
    git(place, "tag", "-a", "v1", "-m", "v1", "HEAD~1")
    git(place, "branch", "work/side", "HEAD~1")
    return place


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    for name in ("GIT_TOKEN", "GIT_SSH_KEY_PATH"):
        monkeypatch.delenv(name, raising=False)
    session = Session(tmp_path / "sky")
    yield session
    session.close()


@pytest.fixture
def server(repository: Path) -> Iterator[WebServer]:
    with web_server(repository.parent) as server:
        yield server


def content(session: Session, url: str, ref: str | None = None, *, events: list[Event] | None = None, **more: object) -> str:
    """What the snapshot of a git workdir has in f."""
    task = Task(run="true", workdir={"url": url, "ref": ref}, **more)
    with staged_files(session, task, events.append if events is not None else discard, workdir_only=True) as files:
        (tree,) = files.trees
        return (Path(tree.manifest.source) / "f").read_text()


@pytest.mark.parametrize(
    ("ref", "expected"), [(None, "two"), ("main", "two"), ("v1", "one"), ("work/side", "one"), ("refs/tags/v1", "one")]
)
def test_a_branch_and_a_tag_are_what_is_staged(session: Session, repository: Path, ref: str | None, expected: str) -> None:
    """The default branch, a branch, a tag and a full ref each give their own tree."""
    assert content(session, f"file://{repository}", ref) == expected


@pytest.mark.parametrize("length", [8, 40])
def test_a_commit_can_be_named_in_whole_or_in_part(session: Session, repository: Path, length: int) -> None:
    """A commit that is not the newest is found by its hash or the start of it."""
    assert content(session, f"file://{repository}", git(repository, "rev-parse", "HEAD~1")[:length]) == "one"


def test_the_commit_is_told_and_cloned_once(session: Session, repository: Path) -> None:
    """The event names the exact commit, and the second time says that it was there."""
    events: list[Event] = []
    for _time in range(2):
        content(session, f"file://{repository}", "main", events=events)
    told = [event.facts for event in events if event.step == "files.git" and event.seconds is not None]
    commit = git(repository, "rev-parse", "main")
    assert [(facts["commit"], facts["cached"]) for facts in told] == [(commit, False), (commit, True)]


def test_a_branch_that_moved_is_staged_anew(session: Session, repository: Path) -> None:
    """What a branch is at is asked each time."""
    assert content(session, f"file://{repository}", "main") == "two"
    (repository / "f").write_text("three")
    git(repository, "commit", "-q", "-a", "-m", "three")
    assert content(session, f"file://{repository}", "main") == "three"


def test_an_unknown_ref_is_an_error_that_names_it(session: Session, repository: Path) -> None:
    """URL and ref are named, with what to look at."""
    with pytest.raises(StagingError, match="no branch, tag or commit nowhere") as caught:
        content(session, f"file://{repository}", "nowhere")
    assert (caught.value.path, "workdir.ref" in str(caught.value.hint)) == (f"file://{repository}", True)


def test_a_token_opens_a_repository_and_is_nowhere_afterwards(tmp_path: Path, session: Session, server: WebServer) -> None:
    """Neither an event nor any file below the home holds the token."""
    server.login = f"x-access-token:{TOKEN}"
    events: list[Event] = []
    assert content(session, f"http://{server.at}/code.git", events=events, secrets={"GIT_TOKEN": TOKEN}) == "two"
    assert TOKEN not in repr(events)
    assert not [path for path in (tmp_path / "sky").rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_no_command_line_has_the_token(session: Session, server: WebServer) -> None:
    """While git asks the server, no process of this machine shows it among its arguments."""
    lines: list[bytes] = []

    def look() -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                lines.append(path.read_bytes())

    server.login, server.during = f"x-access-token:{TOKEN}", look
    content(session, f"http://{server.at}/code.git", secrets={"GIT_TOKEN": TOKEN})
    assert [line for line in lines if server.at.encode() in line]  # git was among them
    assert not [line for line in lines if TOKEN.encode() in line]


def test_a_login_in_a_url_is_not_shown_with_the_task() -> None:
    """Neither in a workdir nor in a mount; written as YAML the task reads back as it is."""
    url = f"https://me:{TOKEN}@h/x.git"
    task = Task(run="true", workdir={"url": url}, file_mounts={"x": f"https://me:{TOKEN}@h/data"})
    assert TOKEN not in f"{task!r} {task.workdir!r}"
    assert Task.from_yaml_str(task.to_yaml()) == task


def test_a_token_in_the_url_is_used_and_not_shown(session: Session, server: WebServer) -> None:
    """It opens the repository; a refusal shows the URL without it."""
    server.login = f"me:{TOKEN}"
    assert content(session, f"http://me:{TOKEN}@{server.at}/code.git") == "two"
    server.login = "me:another"
    with pytest.raises(StagingError, match="GIT_TOKEN") as caught:
        content(session, f"http://me:{TOKEN}@{server.at}/code.git")
    assert caught.value.path == f"http://{server.at}/code.git"
    assert TOKEN not in f"{caught.value!r} {caught.value} {caught.value.__dict__}"


def test_a_refused_login_says_what_to_set(session: Session, server: WebServer) -> None:
    """Without a token the hint names GIT_TOKEN, and nothing waits for a person to type."""
    server.login = "a:b"
    with pytest.raises(StagingError) as caught:
        content(session, f"http://{server.at}/code.git")
    assert "GIT_TOKEN" in str(caught.value.hint)
    assert caught.value.host == "127.0.0.1"


def test_a_host_that_is_away_is_named(session: Session) -> None:
    """A port where nobody listens gives an error with the host."""
    with nobody() as at, pytest.raises(StagingError, match="workdir") as caught:
        content(session, f"http://{at}/code.git")
    assert "does not answer" in str(caught.value.hint)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path, session: Session) -> None:
    """Before any host is asked."""
    key = tmp_path / "key"
    key.write_text("x")
    key.chmod(0o644)
    with pytest.raises(StagingError, match="others may read"):
        content(session, "git@127.0.0.1:code.git", envs={"GIT_SSH_KEY_PATH": str(key)})


@pytest.mark.parametrize(
    "url", ["", "--upload-pack=x", "ext::sh -c id", "ext::id", "ftp://h/x", "https:///x", "./here", "a b"]
)
def test_what_is_no_repository_is_refused(url: str) -> None:
    """Other transports, options and paths are none."""
    with pytest.raises(InvalidSpecError, match=r"workdir\.url"):
        parse_remote(url)


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("https://u:p@h:8443/x.git", "https://h:8443/x.git"),
        ("https://h/x?token=p", "https://h/x"),
        ("ssh://git@h:22/x", "ssh://git@h:22/x"),
        ("git@h:a/x.git", "git@h:a/x.git"),
    ],
)
def test_the_url_that_git_gets_has_no_secret(url: str, plain: str) -> None:
    """User, password and query of a web URL are left out; the account of an SSH one stays."""
    assert parse_remote(url).url == plain
