"""Which files of a tree go."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from skylib.errors import StagingError
from skylib.staging.manifest import Kind, scan
from skylib.staging.select import select
from tests.processes import Child


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@y", "-c", "protocol.file.allow=always"]
    subprocess.run(["git", *identity, *words], cwd=root, check=True, capture_output=True)


def write(root: Path, *names: str, content: str = "x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def paths(root: Path, **options: str | None) -> list[str]:
    return [entry.path for entry in scan(root, select(root, **options)).entries if entry.path]


def test_skyignore_alone_decides(tmp_path: Path) -> None:
    """With .skyignore in the root, .gitignore does not count, and .git goes."""
    git(tmp_path, "init", "-q")
    write(tmp_path, "a.log", "b.txt", "deep/c.txt", "keep/c.txt")
    write(tmp_path, ".gitignore", content="*.log\n")
    write(tmp_path, ".skyignore", content="*.txt\n!keep/c.txt\n")
    found = paths(tmp_path)
    assert {"a.log", "keep/c.txt", ".git/HEAD"} <= set(found)
    assert not {"b.txt", "deep/c.txt"} & set(found)


def test_git_itself_never_goes(tmp_path: Path) -> None:
    """Without .skyignore, .git stays here, in a repository and beside its files."""
    git(tmp_path, "init", "-q")
    write(tmp_path, "a")
    assert paths(tmp_path) == ["a"]
    assert paths(tmp_path, git=None) == ["a"]


def test_outside_of_a_repository_gitignore_counts_and_empty_directories_go(tmp_path: Path) -> None:
    """A plain tree obeys its .gitignore files at every level."""
    write(tmp_path, ".gitignore", content="*.o\n")
    write(tmp_path, "x.o", "a/y.o", "a/z")
    write(tmp_path, "a/.gitignore", content="!y.o\n")
    (tmp_path / "empty").mkdir()
    assert paths(tmp_path) == [".gitignore", "a", "a/.gitignore", "a/y.o", "a/z", "empty"]


def test_a_directory_that_its_repository_ignores_goes_whole(tmp_path: Path) -> None:
    """Who mounts an ignored data directory means its content."""
    git(tmp_path, "init", "-q")
    write(tmp_path, ".gitignore", content="data/\n")
    write(tmp_path, "data/a", "data/b/c")
    assert paths(tmp_path / "data") == ["a", "b", "b/c"]


def test_a_directory_that_ignores_itself_goes_whole(tmp_path: Path) -> None:
    """A .gitignore with "*" alone does not make a mount empty."""
    write(tmp_path, "a", "b/c")
    write(tmp_path, ".gitignore", content="*\n")
    assert paths(tmp_path) == [".gitignore", "a", "b", "b/c"]


def test_submodules_and_nested_repositories_go_by_their_own_rules(tmp_path: Path) -> None:
    """git names them as one path; their files are asked for in turn."""
    inner, top = tmp_path / "inner", tmp_path / "top"
    for root in (inner, top):
        root.mkdir()
        git(root, "init", "-q")
    write(inner, "code.py")
    git(inner, "add", ".")
    git(inner, "commit", "-qm", "x")
    git(top, "submodule", "add", "-q", str(inner), "sub")
    write(top, "sub/new.py", "sub/junk.o", "nested/x.py", "nested/x.o", "x.o")
    git(top / "nested", "init", "-q")
    write(top, ".gitignore", content="*.log\n")
    for name in ("sub", "nested"):
        write(top, f"{name}/.gitignore", content="*.o\n")
    found = paths(top)
    assert {"sub/code.py", "sub/new.py", "nested/x.py", "x.o", ".gitmodules"} <= set(found)
    assert not {"sub/junk.o", "nested/x.o"} & set(found)
    assert not any(".git" in path.split("/") for path in found)


def test_what_the_index_has_behind_a_link_does_not_go(tmp_path: Path) -> None:
    """A directory that became a link is sent as the link alone."""
    git(tmp_path, "init", "-q")
    write(tmp_path, "real/x", "dir/x")
    git(tmp_path, "add", ".")
    (tmp_path / "dir/x").unlink()
    (tmp_path / "dir").rmdir()
    (tmp_path / "dir").symlink_to("real")
    assert paths(tmp_path) == ["dir", "real", "real/x"]


def test_links_stay_links_and_pipes_are_noted(tmp_path: Path) -> None:
    """Links are not followed, loops and ways out included; a FIFO is left out with a note."""
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "out").symlink_to("/etc")
    (tmp_path / "nowhere").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe")
    manifest = scan(tmp_path, select(tmp_path))
    assert [(entry.path, entry.target) for entry in manifest.entries if entry.kind is Kind.LINK] == [
        ("loop", "."),
        ("nowhere", "gone"),
        ("out", "/etc"),
    ]
    assert [path for path, _why in manifest.left_out] == ["pipe"]


def test_another_repository_in_the_environment_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIT_DIR, as a git hook sets it, is not what the tree is asked by."""
    other, tree = tmp_path / "other", tmp_path / "tree"
    other.mkdir()
    git(other, "init", "-q")
    write(tree, "a")
    git(tree, "init", "-q")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / "index"))
    assert paths(tree) == ["a"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up being root")
@pytest.mark.parametrize("program", ["git", None])
def test_a_users_configuration_that_is_closed_does_not_count(isolated_home: Path, program: str | None) -> None:
    """Who may not look into $HOME (sudo -u keeps it) has no patterns of a user's own, as with git."""
    write(isolated_home, ".config/git/config", content="[core]\n\texcludesFile = ~/mine\n")
    write(isolated_home, "mine", content="*\n")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        root = Path(folder)
        root.chmod(0o777)

        def work(_child: Child) -> None:
            os.setuid(65534)
            if program:
                git(root, "init", "-q")
            write(root, "a.o", "a.c")
            write(root, ".gitignore", content="*.o\n")
            assert paths(root, git=program) == [".gitignore", "a.c"]

        assert Child(work).ended() == 0


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    """The error carries the path."""
    with pytest.raises(StagingError) as caught:
        scan(tmp_path / "gone", ())
    assert caught.value.path == str(tmp_path / "gone")


def test_digests_tell_what_changed(tmp_path: Path) -> None:
    """The content digest ignores times, the quick one sees them; both see modes and names."""
    write(tmp_path, "a", "b")

    def digests() -> tuple[str, str]:
        manifest = scan(tmp_path, select(tmp_path))
        return manifest.digest(), manifest.quick_digest()

    first = digests()
    os.utime(tmp_path / "a", (1, 1))
    touched = digests()
    assert touched[0] == first[0]
    assert touched[1] != first[1]
    (tmp_path / "a").chmod(0o755)
    assert digests()[0] != first[0]
