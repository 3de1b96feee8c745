"""Which files go, compared with what git itself says."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skylib.staging.manifest import Kind, scan
from skylib.staging.select import select

NAMES = st.sampled_from(["a", "b", "ab", "foo", "foo.o", "bar", "a b", "[x]", "x*", "é", "#c", "!d", ".hid", "a\\b", "z "])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
ATOMS = st.sampled_from(
    [
        "a", "b", "foo", "bar", "o", ".", "*", "**", "?", "/", "/", "**/", "/**", "/**/", "[ab]", "[!a]", "[^b]", "[a-z]",
        "[]a]", "[[:alpha:]]", "[[:upper:]x]", "[a", "[!", "\\", "\\*", "\\ ", " ", "#", "!", "x", "é", "***", "[a\\]b]",
        "[z-a]", "[/]",
    ]
)  # fmt: skip
LINES = st.lists(ATOMS, max_size=5).map("".join)
PATTERNS = st.tuples(st.sampled_from(["", "", "", "!", "/"]), LINES, st.sampled_from(["", "", "/", " ", "\r"])).map("".join)
CONTENTS = st.lists(PATTERNS, max_size=6).map("\n".join)


def run_git(root: Path, *words: str) -> bytes:
    """What git says, with nobody's configuration."""
    env = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    return subprocess.run(["git", *words], cwd=root, env=env, check=True, capture_output=True).stdout


def make(root: Path, files: list[str], rules: dict[str, str]) -> None:
    """Files as far as their names allow (a path may be a directory already), and .gitignore files."""
    for name in files:
        path = root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
    for folder, content in rules.items():
        if (root / folder).is_dir():
            (root / folder / ".gitignore").write_text(content)


def sent(root: Path, git: str | None) -> set[str]:
    """The files and links that would go."""
    return {entry.path for entry in scan(root, select(root, git=git)).entries if entry.kind is not Kind.DIR}


def listed(root: Path) -> set[str]:
    """git's own answer, less what is deleted."""
    paths = run_git(root, "ls-files", "-z", "--others", "--cached", "--exclude-standard").split(b"\0")
    return {os.fsdecode(path) for path in paths if path and os.path.lexists(os.path.join(os.fsencode(root), path))}


@given(
    files=st.lists(PATHS, min_size=1, max_size=12),
    rules=st.dictionaries(st.sampled_from(["", "a", "foo", "a/b", "foo/a"]), CONTENTS, min_size=1, max_size=3),
    exclude=CONTENTS,
)
@example(files=["a/b/foo", "foo", "b/foo/a"], rules={"": "foo/**\n!foo/a\n/a/**/foo"}, exclude="")
@example(files=["foo.o", "a/foo.o"], rules={"": "*.o", "a": "!foo.o"}, exclude="")
@example(files=["z ", "z"], rules={"": "z\\ \nz "}, exclude="")
def test_the_matcher_says_what_git_says(files: list[str], rules: dict[str, str], exclude: str) -> None:
    """Without git, patterns at every level and info/exclude pick the files that git picks."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        run_git(root, "init", "-q")
        make(root, files, rules)
        (root / ".git/info/exclude").write_text(exclude)
        expected = listed(root)
        if expected:
            assert sent(root, None) == expected


@given(files=st.lists(PATHS, min_size=1, max_size=10), content=CONTENTS, below=st.sampled_from(["a", "a/b", "foo"]))
def test_rules_from_above_the_tree_hold(files: list[str], content: str, below: str) -> None:
    """A tree that is a directory of a repository obeys the repository's rules, without git too."""
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        run_git(top, "init", "-q")
        make(top, [f"{below}/{name}" for name in files], {"": content})
        root = top / below
        if not root.is_dir():
            return
        expected = listed(root)
        ignored_itself = subprocess.run(["git", "check-ignore", "-q", "."], cwd=root, check=False).returncode == 0
        if expected and not ignored_itself:
            assert sent(root, None) == expected


@given(files=st.lists(PATHS, min_size=2, max_size=10, unique=True), content=CONTENTS, data=st.data())
def test_with_git_the_index_counts(files: list[str], content: str, data: st.DataObject) -> None:
    """Tracked files go although a pattern ignores them, deleted ones do not."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        run_git(root, "init", "-q")
        make(root, files, {})
        there = sorted(path for path in files if (root / path).is_file())
        for path in data.draw(st.lists(st.sampled_from(there), unique=True)):
            run_git(root, "add", "-f", "--", f":(literal){path}")
        for path in data.draw(st.lists(st.sampled_from(there), max_size=2, unique=True)):
            (root / path).unlink()
        (root / ".gitignore").write_text(content)
        expected = listed(root)
        if expected:
            assert sent(root, "git") == expected


@pytest.mark.parametrize("git", ["git", None])
def test_a_global_excludes_file_counts(tmp_path: Path, isolated_home: Path, git: str | None) -> None:
    """core.excludesFile of the user's configuration is honoured with git and without."""
    (isolated_home / ".gitconfig").write_text("[user]\n\tname = x\n[core]\n\texcludesFile = ~/mine\n")
    (isolated_home / "mine").write_text("*.swp\n")
    run_git(tmp_path, "init", "-q")
    make(tmp_path, ["a.swp", "a.txt"], {})
    assert sent(tmp_path, git) == {"a.txt"}
