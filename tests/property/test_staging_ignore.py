"""Which files go, compared with what git itself says."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from skylib.staging.ignore import PatternList, parse_patterns
from skylib.staging.manifest import Kind, scan
from skylib.staging.repository import parse_config
from skylib.staging.select import select

NAMES = st.sampled_from(
    [
        "a", "b", "ab", "foo", "foo.o", "bar", "a b", "[x]", "x*", "é", "#c", "!d", ".hid", "a\\b", "z ", "z", "A", "Foo",
        "-", "\udcff\udc80", "n\nl", 'q"\'', "\t", "~",
    ]
)  # fmt: skip
FOLDERS = st.sampled_from(["a", "b", "foo", "a/b", "foo/a", "a/b/a", "A"])
PATHS = st.builds(
    lambda folder, names: "/".join([*folder, *names]),
    st.one_of(st.just([]), FOLDERS.map(lambda folder: [folder])),
    st.lists(NAMES, min_size=1, max_size=3),
)
ATOMS = st.sampled_from(
    [
        "a", "b", "foo", "bar", "o", ".", "*", "**", "?", "/", "/", "**/", "/**", "/**/", "[ab]", "[!a]", "[^b]", "[a-z]",
        "[]a]", "[[:alpha:]]", "[[:upper:]x]", "[a", "[!", "\\", "\\*", "\\ ", " ", "#", "!", "x", "é", "***", "[a\\]b]",
        "[z-a]", "[/]", "\\/", "**\\/", "A", "Foo", "[A-C]", "[A]", "[[:foo:]]", "[[:a]", "[[:]", "[a-\\b]", "[--a]",
        "[a-b-z]", "[\\", "]", "\udcff", "[\udc80-\udcff]", "\r", "\t", "[!]]", "[^]a-]", "\\a", "?[^/]",
    ]
)  # fmt: skip
LINES = st.lists(ATOMS, max_size=5).map("".join)
PATTERNS = st.tuples(st.sampled_from(["", "", "", "!", "/"]), LINES, st.sampled_from(["", "", "/", " ", "\r"])).map("".join)
CONTENTS = st.lists(PATTERNS, max_size=6).map("\n".join)
RULES = st.dictionaries(st.one_of(st.just(""), FOLDERS), CONTENTS, max_size=4)
OTHERS = ("--others", "--exclude-standard")


def run_git(root: Path, *words: str, stdin: bytes = b"", check: bool = True) -> bytes:
    """What git says, with the test's own configuration."""
    identity = ["-c", "user.name=x", "-c", "user.email=x@y", "-c", "protocol.file.allow=always"]
    words = (*identity, *words)
    return subprocess.run(["git", *words], cwd=root, check=check, input=stdin, capture_output=True).stdout


def write(path: Path, content: str) -> None:
    """Made where its name allows: a path may be a directory already, or lie in a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(content))
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        return


def make(root: Path, files: Iterable[str], rules: dict[str, str]) -> None:
    """Files, and .gitignore in each directory of `rules` that is there."""
    for name in files:
        write(root / name, name)
    for folder, content in rules.items():
        if (root / folder).is_dir():
            write(root / folder / ".gitignore", content)


def make_repository(root: Path, *, ignore_case: bool = False) -> None:
    """An empty one, with little work."""
    run_git(root, "init", "-q", "--template=")
    if ignore_case:
        with open(root / ".git/config", "a") as file:
            file.write("[core]\n\tignoreCase = true\n")


def sent(root: Path, git: str | None) -> set[str]:
    """The files and links that would go."""
    return {entry.path for entry in scan(root, select(root, git=git)).entries if entry.kind is not Kind.DIR}


def listed(root: Path, *which: str) -> set[str]:
    """git's own answer, less what is deleted; what it names whole is a repository, and asked likewise."""
    found: set[str] = set()
    for raw in run_git(root, "ls-files", "-z", *(which or ("--cached", *OTHERS))).split(b"\0"):
        path = os.fsdecode(raw.rstrip(b"/"))
        place = root / path
        if not raw or not os.path.lexists(place) or any(above.is_symlink() for above in place.parents if above != root):
            continue
        if place.is_dir() and not place.is_symlink():
            if (place / ".git").exists():
                found |= {f"{path}/{below}" for below in listed(place, *which)}
        else:
            found.add(path)
    return found


@given(
    files=st.lists(PATHS, min_size=1, max_size=14),
    rules=RULES,
    exclude=CONTENTS,
    mine=CONTENTS,
    ignore_case=st.booleans(),
    nested=st.lists(FOLDERS, max_size=2),
    junk=st.lists(FOLDERS, max_size=1),
)
@example(
    files=["a/b/foo", "foo", "b/foo/a"],
    rules={"": "foo/**\n!foo/a\n/a/**/foo"},
    exclude="",
    mine="",
    ignore_case=False,
    nested=[],
    junk=[],
)
@example(files=["foo.o"], rules={"": "*.o"}, exclude="", mine="", ignore_case=False, nested=["a"], junk=[])
@example(files=["z ", "z"], rules={"": "z\\ \n[z-a]"}, exclude="", mine="", ignore_case=False, nested=[], junk=[])
@example(files=["A", "a", "é"], rules={"": "[A]\n!A"}, exclude="", mine="", ignore_case=True, nested=[], junk=[])
def test_the_matcher_says_what_git_says(
    files: list[str],
    rules: dict[str, str],
    exclude: str,
    mine: str,
    ignore_case: bool,
    nested: list[str],
    junk: list[str],
) -> None:
    """Without git, patterns of all sources pick the files that git picks, in repositories within a repository, too."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        root = Path(directory, "root")
        root.mkdir()
        write(Path(directory, "mine"), mine)
        patch.setenv("GIT_CONFIG_COUNT", "1")
        patch.setenv("GIT_CONFIG_KEY_0", "core.excludesFile")
        patch.setenv("GIT_CONFIG_VALUE_0", f"{directory}/mine")
        make_repository(root, ignore_case=ignore_case)
        make(root, files, rules)
        for folder in nested:
            if (root / folder).is_dir():
                make_repository(root / folder)
        for folder in junk:
            write(root / folder / ".git/junk", "no repository")
        write(root / ".git/info/exclude", exclude)
        expected = listed(root, *OTHERS)
        if expected:
            assert sent(root, None) == expected
            assert sent(root, "git") == expected


@given(
    files=st.lists(PATHS, min_size=1, max_size=10),
    content=CONTENTS,
    exclude=CONTENTS,
    below=st.sampled_from(["a", "a/b", "foo"]),
)
def test_rules_from_above_the_tree_hold(files: list[str], content: str, exclude: str, below: str) -> None:
    """A tree that is a directory of a repository obeys its rules, without git too; one that they ignore goes whole."""
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        make_repository(top)
        make(top, [f"{below}/{name}" for name in files], {"": content})
        write(top / ".git/info/exclude", exclude)
        root = top / below
        if not root.is_dir():
            return
        everything = {f"{folder}/{name}" for folder, _, names in os.walk(root) for name in names}
        expected = listed(root) or {path[len(f"{root}/") :] for path in everything}
        assert sent(root, "git") == expected
        if listed(root) or run_git(top, "check-ignore", "-z", "--stdin", stdin=os.fsencode(below), check=False):
            assert sent(root, None) == expected


@given(
    files=st.lists(PATHS, min_size=2, max_size=12, unique=True),
    rules=RULES,
    nested=st.lists(FOLDERS, max_size=2),
    data=st.data(),
)
def test_with_git_the_index_counts(files: list[str], rules: dict[str, str], nested: list[str], data: st.DataObject) -> None:
    """Tracked files go although a pattern ignores them, deleted ones and those that the index alone has do not."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        make_repository(root)
        make(root, files, {})
        there = sorted(path for path in files if (root / path).is_file())
        some = st.lists(st.sampled_from(there), unique=True)
        for folder in nested:
            if (root / folder).is_dir() and not (root / folder / ".git").exists():
                make_repository(root / folder)
                if data.draw(st.booleans()):  # a submodule, since it has a commit to point to
                    run_git(root / folder, "commit", "-q", "--allow-empty", "-m", "x")
                    run_git(root, "add", "-f", "--", folder, check=False)
        for path in data.draw(some):
            run_git(root, "add", "-f", "--", f":(literal){path}", check=False)
        tracked = run_git(root, "ls-files", "-z").split(b"\0")
        skipped = [path for path in data.draw(some) if os.fsencode(path) in tracked]
        run_git(root, "update-index", "-z", "--skip-worktree", "--stdin", stdin=os.fsencode("\0".join(skipped)))
        for path in {*skipped[:2], *data.draw(st.lists(st.sampled_from(there), max_size=2, unique=True))}:
            (root / path).unlink()
        make(root, [], rules)
        expected = listed(root)
        if expected:
            assert sent(root, "git") == expected


@given(lines=st.lists(PATTERNS, min_size=1, max_size=1), paths=st.lists(PATHS, min_size=1, max_size=30), fold=st.booleans())
@example(lines=["a**/b"], paths=["a/x/b", "ax/y/b", "ab"], fold=False)
@example(lines=["x**\\/b"], paths=["x/a/b", "xb", "x/b"], fold=False)
def test_a_pattern_matches_the_paths_that_git_says(lines: list[str], paths: list[str], fold: bool) -> None:
    """Of one pattern: every path by which git says that it decides, and no other."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        make_repository(root, ignore_case=fold)
        write(root / ".gitignore", "\n".join(lines))
        assert ours(lines, paths, fold=fold) == theirs(root, paths)


def theirs(root: Path, paths: list[str]) -> dict[str, str]:
    """Path -> the pattern that decides, by git. None of the paths exists."""
    asked = os.fsencode("\0".join(paths))
    said = run_git(root, "check-ignore", "--no-index", "-v", "-z", "--stdin", stdin=asked, check=False).split(b"\0")
    return {os.fsdecode(path): os.fsdecode(text) for text, path in zip(said[2::4], said[3::4], strict=False)}


def ours(lines: list[str], paths: list[str], *, fold: bool) -> dict[str, str]:
    """The same by ours, the directories above a path first."""
    rules = PatternList(parse_patterns(os.fsencode("\n".join(lines)), fold=fold), fold=fold)
    found = {}
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            pattern = rules.decide(os.fsencode("/".join(parts[:depth])), is_dir=depth < len(parts))
            if pattern is not None and (depth == len(parts) or not pattern.negated):
                found[path] = pattern.text
                break
    return found


CLASSES = "alnum alpha blank cntrl digit graph lower print punct space upper xdigit".split()


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", CLASSES)
def test_a_class_has_the_bytes_that_git_says(tmp_path: Path, name: str, fold: bool) -> None:
    """Each of the 254 bytes that can be in a name, for and against each class, with and without its case."""
    make_repository(tmp_path, ignore_case=fold)
    lines = [f"k[[:{name}:]]", f"n[^[:{name}:]]"]
    write(tmp_path / ".gitignore", "\n".join(lines))
    paths = [letter + os.fsdecode(bytes([code])) for letter in "kn" for code in range(1, 256) if code != 0x2F]
    assert ours(lines, paths, fold=fold) == theirs(tmp_path, paths)


WORDS = st.sampled_from(
    [
        "[core]", '[a "B c"]', "[A.B]", "\n", "\n", "\n", "x", "excludesFile", " = ", "=", " ", "\t", "#c", ";c", '"', "\\n",
        "\\\n", "\\\\", '\\"', "é", "~/x", "/y z", "\r\n", "[x", "]", "-", "1",
    ]
)  # fmt: skip


@given(st.lists(WORDS, max_size=14).map("".join))
@example('[core] x = "a # b" c # d\n\ty\n')
@example("[a]\nx = a \\\n  b\n")
def test_a_configuration_file_says_what_git_reads(text: str) -> None:
    """Names and values of every file that git takes."""
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory, "config"), text)
        ask = ["git", "config", "--no-includes", "--list", "-z", "--file", "config"]
        said = subprocess.run(ask, cwd=directory, capture_output=True, check=False)
        if said.returncode == 0:
            settings = [entry.partition("\n") for entry in os.fsdecode(said.stdout).split("\0")[:-1]]
            assert parse_config(text) == [(name, value if has_value else None) for name, has_value, value in settings]


@pytest.mark.parametrize("git", ["git", None])
def test_a_global_excludes_file_counts(tmp_path: Path, isolated_home: Path, git: str | None) -> None:
    """core.excludesFile of the user's configuration is honoured with git and without."""
    (isolated_home / ".gitconfig").write_text("[user]\n\tname = x\n[core]\n\texcludesFile = ~/mine\n")
    (isolated_home / "mine").write_text("*.swp\n")
    make_repository(tmp_path)
    make(tmp_path, ["a.swp", "a.txt"], {})
    assert sent(tmp_path, git) == {"a.txt"}
