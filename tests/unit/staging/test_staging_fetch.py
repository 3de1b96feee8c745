"""Fetching from a node that is a folder of this machine: what comes, what does not come twice, what is not believed."""

from __future__ import annotations

import glob
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.errors import InvalidSpecError, StagingError
from skylib.models.transfers import Fetched
from skylib.staging.fetch import fetch
from skylib.staging.listing import Listed, read_listing
from skylib.staging.wanted import Wanted, matches, parse_wanted
from skylib.transport.base import Completed
from skylib.transport.local import LocalTransport
from tests.unit.staging.trees import snapshot

ODD = ("-rf", "new\nline", "'quoted' \"x\" $x `y`", "*", " ", "n" * 255, os.fsdecode(b"\xff\xfe"), "tab\t\\n")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LocalTransport]:
    """A node whose root is tmp_path/node."""
    (tmp_path / "node/sky_workdir").mkdir(parents=True)
    transport = LocalTransport()
    yield transport
    transport.close()


@pytest.fixture
def work(tmp_path: Path, node: LocalTransport) -> Path:
    return tmp_path / "node/sky_workdir"


def want(tmp_path: Path, pattern: str, *, into: bool = True, here: str = "here") -> Wanted:
    return parse_wanted(pattern, tmp_path / here, root=str(tmp_path / "node"), into=into)


def test_a_directory_comes_whole_and_not_twice(tmp_path: Path, node: LocalTransport, work: Path) -> None:
    """Odd names, modes, times, links and empty directories are as they were; again, nothing comes; an edit comes alone."""
    tree = work / "results"
    (tree / "sub/empty").mkdir(parents=True)
    for name in ODD:
        (tree / name).write_bytes(os.fsencode(name))
        (tree / "sub" / name).write_text("sub")
    (tree / "run.sh").touch(mode=0o755)
    os.utime(tree / "run.sh", ns=(1, 1_234_567_890_123_456_789))
    (tree / "sub/up").symlink_to("../run.sh")
    os.chmod(tree / "sub", 0o750)
    first = fetch(node, [want(tmp_path, "results")])
    here = tmp_path / "here"
    assert snapshot(here) == snapshot(tree)
    assert (here / "run.sh").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert (first.files, first.unchanged) == (2 * len(ODD) + 2, 0)
    again = fetch(node, [want(tmp_path, "results")])
    assert (again.files, again.bytes, again.unchanged) == (0, 0, first.files)
    (tree / "run.sh").write_text("edited")
    assert fetch(node, [want(tmp_path, "results")]).files == 1
    assert snapshot(here) == snapshot(tree)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("results/a.json", {"a.json"}),
        ("results/*.json", {"a.json"}),
        ("results/**/*.json", {"a.json", "r1/b.json", "r1/deep/c.json"}),
        ("results/*/b.*", {"r1/b.json", "r2/b.txt"}),
        ("results/r[12]", {"r1/b.json", "r1/deep/c.json", "r2/b.txt"}),
        ("results/**", {"a.json", "r1/b.json", "r1/deep/c.json", "r2/b.txt"}),
        ("**/deep", {"results/r1/deep/c.json"}),
        ("results/[a]x.json", set()),
        ("nothing*", set()),
        ("nothing/at/all", set()),
    ],
)
def test_patterns(tmp_path: Path, node: LocalTransport, work: Path, pattern: str, expected: set[str]) -> None:
    """What a pattern matches keeps its path below the last directory before the pattern; no match is told, no error."""
    for name in ("a.json", "r1/b.json", "r1/deep/c.json", "r2/b.txt", ".hidden.json"):
        (work / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        (work / "results" / name).write_text(name)
    found = fetch(node, [want(tmp_path, pattern)])
    here = tmp_path / "here"
    got = {str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()}
    assert got - {".hidden.json"} == expected
    assert found.missing == (() if expected else (pattern,))


def test_a_file_gets_the_name_that_is_wanted(tmp_path: Path, node: LocalTransport, work: Path) -> None:
    """One file goes to the path that is given, what the node's link leads to included."""
    (work / "model-3").write_text("three")
    (work / "latest").symlink_to("model-3")
    fetch(node, [want(tmp_path, "latest", into=False, here="models/best")])
    best = tmp_path / "models/best"
    assert (best.read_text(), best.is_symlink()) == ("three", False)


def test_two_names_of_one_file_and_a_hole(tmp_path: Path, node: LocalTransport, work: Path) -> None:
    """A hard link becomes a file of its own; what is sparse on the node takes no room here."""
    (work / "r").mkdir()
    (work / "r/a").write_text("same")
    os.link(work / "r/a", work / "r/b")
    with (work / "r/hole").open("wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"island")
    fetch(node, [want(tmp_path, "r")])
    here = tmp_path / "here"
    assert (here / "b").read_text() == "same"
    assert (here / "hole").read_bytes() == (work / "r/hole").read_bytes()
    assert (here / "hole").stat().st_blocks * 512 < 1 << 20


def test_what_cannot_come_is_told(tmp_path: Path, node: LocalTransport, work: Path) -> None:
    """A FIFO, and links that lead out of the tree, are left out by name; the rest comes."""
    (work / "r/sub").mkdir(parents=True)
    (work / "r/a").write_text("a")
    os.mkfifo(work / "r/fifo")
    (work / "r/passwd").symlink_to("/etc/passwd")
    (work / "r/sub/up").symlink_to("../../outside")
    (work / "r/sub/turn").symlink_to("x/../../../outside")
    found = fetch(node, [want(tmp_path, "r")])
    assert sorted(path.name for path in (tmp_path / "here").rglob("*")) == ["a", "sub"]
    assert {Path(path).name for path, _why in found.left_out} == {"fifo", "passwd", "up", "turn"}


def test_what_is_here_already_is_not_lost(tmp_path: Path, node: LocalTransport, work: Path) -> None:
    """A directory here stays one, and no link here is followed: a typed error with the path, and the rest comes."""
    (work / "r/sub").mkdir(parents=True)
    (work / "r/sub/x").write_text("x")
    (work / "r/a").write_text("a")
    (work / "r/b").write_text("b")
    (tmp_path / "here/a").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here/sub").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "here/own").write_text("own")
    with pytest.raises(StagingError, match="directory here") as caught:
        fetch(node, [want(tmp_path, "r")])
    assert (caught.value.host, caught.value.path) in {
        ("localhost", f"{tmp_path}/here/{name}") for name in ("a", "sub", "sub/x")
    }
    assert (tmp_path / "here/b").read_text() == "b"
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / "here/own").read_text() == "own"
    assert not [path for path in (tmp_path / "here").iterdir() if path.name.startswith(".skylib")]


def test_a_pattern_that_is_none_is_refused(tmp_path: Path) -> None:
    """Climbing, URLs, other accounts and NULs are refused before any node is asked."""
    for wrong in ("", "../x", "a/../../x", "s3://bucket/x", "~root/x", "a\0b"):
        with pytest.raises(InvalidSpecError):
            want(tmp_path, wrong)


def answer(rows: list[tuple[str, str]]) -> Completed:
    text = "".join(f"{head}\0{target}\0" for head, target in [("= 0", ""), *rows, ("= end", "")])
    return Completed(returncode=0, stdout=os.fsencode(text), stderr=b"")


def listed(tmp_path: Path, pattern: str, rows: list[tuple[str, str]]) -> Listed:
    return read_listing([want(tmp_path, pattern)], answer(rows), "node1")[0][0]


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "./../x", "./r/../../x", "./r/..", "./r//x", "./other/x", "x", "./rest", "./r/./x"]
)
@pytest.mark.parametrize("pattern", ["r", "r/*"])
def test_a_name_that_was_not_asked_for_is_not_believed(tmp_path: Path, pattern: str, path: str) -> None:
    """A node that names a file outside of what is wanted gets nothing put in place: a typed error with host and path."""
    rows = [("d 755 0 1.0 0 ./r", "")] if pattern == "r" else []
    with pytest.raises(StagingError, match="not asked for") as caught:
        listed(tmp_path, pattern, [*rows, (f"f 644 1 1.0 8 {path}", "")])
    assert (caught.value.host, caught.value.path) == ("node1", path)


def test_a_path_through_a_link_is_not_believed(tmp_path: Path) -> None:
    """A node cannot name a link and then a file behind it."""
    rows = [("d 755 0 1.0 0 ./r", ""), ("l 777 4 1.0 0 ./r/l", "sub"), ("f 644 1 1.0 8 ./r/l/x", "")]
    with pytest.raises(StagingError, match="not asked for"):
        listed(tmp_path, "r", rows)


@given(data=st.binary(max_size=200))
def test_any_answer_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Whatever a node answers, what is read of it lies within, or the error is typed and names the host."""
    wanted = parse_wanted("r/*", Path("/here"), root="/root")
    done = Completed(returncode=0, stdout=b"= 0\0\0" + data + b"= end\0\0", stderr=b"")
    try:
        found, _problems = read_listing([wanted], done, "node1")
    except StagingError as error:
        found, where = (), error.host
    else:
        where = "node1"
    assert where == "node1"
    assert all(".." not in offered.entry.path.split("/") for each in found for offered in each.offered)


PARTS = st.sampled_from(["a", "*", "?", "**", "[ab]*", "*.c", "[!a]*", "[", "[z-a]"])


@given(
    path=st.lists(st.sampled_from(["a", "b.c", ".h", "ab", "[x"]), min_size=1, max_size=4).map("/".join),
    pattern=st.lists(PARTS, min_size=1, max_size=4).filter(lambda parts: parts[-1] != "**").map("/".join),
)
def test_matching_is_the_shells(tmp_path_factory: pytest.TempPathFactory, path: str, pattern: str) -> None:
    """A pattern with `**` matches what Python's own glob does, or lies in a directory that it matches."""
    base = tmp_path_factory.mktemp("tree")
    whole = base / path
    whole.parent.mkdir(parents=True, exist_ok=True)
    whole.touch()
    if "**" not in pattern:
        pattern = f"**/{pattern}"
    hits = {os.path.relpath(hit, base) for hit in glob.glob(f"{glob.escape(str(base))}/{pattern}", recursive=True)} - {"."}
    expected = any(path == hit or path.startswith(f"{hit}/") for hit in hits)
    shutil.rmtree(base)
    assert matches(path, pattern) == expected


def test_a_mode_that_lets_nobody_write_travels(tmp_path: Path, node: LocalTransport, work: Path) -> None:
    """A read-only file is fetched, and fetched again when it changes."""
    (work / "r").mkdir()
    for text in ("one", "two!"):
        (work / "r/a").unlink(missing_ok=True)
        (work / "r/a").write_text(text)
        (work / "r/a").chmod(0o444)
        assert fetch(node, [want(tmp_path, "r")]) == Fetched(files=1, bytes=len(text))
        here = tmp_path / "here/a"
        assert (here.read_text(), stat.S_IMODE(here.stat().st_mode)) == (text, 0o444)
