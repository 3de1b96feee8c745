"""What a task's files amount to, what stays here and why, and when the user is warned."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import attrs
import pytest

import skylib
from skylib.errors import StagingError
from skylib.events import Event, Phase
from skylib.models.sync_report import Decider, Folder, LeftOut, Reason, TreeReport
from skylib.ops.files import staged_files
from skylib.results import SyncReport
from skylib.session import Session
from skylib.staging.manifest import Kind, Manifest
from skylib.staging.plan import plan_sync
from skylib.staging.report import MANY_FILES, largest_folders, report, warnings_about, why_ignored


def write(root: Path, *names: str, content: str = "x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def run_git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run(["git", *identity, *words], cwd=root, check=True, capture_output=True)


def one(root: Path, git: str | None = "git") -> TreeReport:
    """The report of one workdir."""
    return report(plan_sync(str(root), git=git), git=git)[0]


def why(tree: TreeReport, path: str, git: str | None = "git") -> LeftOut | None:
    return why_ignored((tree,), path, base=tree.source, git=git)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """With ignored files by each source of patterns, a tracked one that is ignored, and one that is deleted."""
    run_git(tmp_path, "init", "-q")
    write(tmp_path, "code.py", "kept.log", "out.log", "build/deep/x", "pkg/a.tmp", "pkg/b.tmp", "secret", "gone")
    write(tmp_path, ".gitignore", content="# made here\n*.log\nbuild/\n")
    write(tmp_path, "pkg/.gitignore", content="*.tmp\n!b.tmp\n")
    write(tmp_path, ".git/info/exclude", content="/secret\n")
    run_git(tmp_path, "add", "-f", "kept.log", "gone")
    (tmp_path / "gone").unlink()
    return tmp_path


PLACES = {
    "out.log": (".gitignore", 2, "*.log", ""),
    "build": (".gitignore", 3, "build/", ""),
    "build/deep/x": (".gitignore", 3, "build/", "by the directory build"),
    "build/not/there": (".gitignore", 3, "build/", "by the directory build"),
    "pkg/a.tmp": ("pkg/.gitignore", 1, "*.tmp", ""),
    "secret": (".git/info/exclude", 1, "/secret", ""),
}


@pytest.mark.parametrize("git", ["git", None])
@pytest.mark.parametrize("path", sorted(PLACES))
def test_a_pattern_is_named_by_file_and_line(repository: Path, path: str, git: str | None) -> None:
    """With git and without, for files, directories and what lies in these."""
    found = why(one(repository, git), path, git)
    assert found is not None
    file, line, pattern, detail = PLACES[path]
    assert found == LeftOut(
        path=path,
        reason=Reason.PATTERN,
        tree="workdir",
        file=f"{repository}/{file}",
        line=line,
        pattern=pattern,
        detail=detail,
    )


def test_what_goes_is_not_ignored(repository: Path) -> None:
    """None for files, directories above them and the source, for included-again ones, and for tracked ones."""
    tree = one(repository)
    goes = ["code.py", "pkg", "pkg/b.tmp", "kept.log", ".gitignore", str(repository), f"{repository}/code.py"]
    assert [why(tree, path) for path in goes] == [None] * len(goes)


def test_all_that_stays_is_listed_once_and_a_directory_stands_for_what_is_in_it(repository: Path) -> None:
    """Each with its reason, sorted by path."""
    assert [(each.path, each.reason) for each in one(repository).left_out] == [
        ("build", Reason.PATTERN),
        ("gone", Reason.DELETED),
        ("out.log", Reason.PATTERN),
        ("pkg/a.tmp", Reason.PATTERN),
        ("secret", Reason.PATTERN),
    ]


def test_what_is_no_pattern_has_a_reason_of_its_own(repository: Path) -> None:
    """git's directory, FIFOs, what lies behind a link, what is nowhere, what is empty, what is in no source."""
    os.mkfifo(repository / "pipe")
    (repository / "link").symlink_to("pkg")
    (repository / "empty").mkdir()
    tree = one(repository)
    paths = [".git/HEAD", "pipe", "link/b.tmp", "nowhere", "empty", "/etc/hostname", "gone"]
    found = [each.reason if (each := why(tree, path)) else None for path in paths]
    assert found == [
        Reason.GIT,
        Reason.SPECIAL,
        Reason.BEHIND_LINK,
        Reason.MISSING,
        Reason.EMPTY,
        Reason.OUTSIDE,
        Reason.DELETED,
    ]


def test_what_came_after_the_report_is_said_to_have_come(tmp_path: Path) -> None:
    """Its own look at the rules says that nothing keeps it."""
    write(tmp_path, "a")
    tree = one(tmp_path, None)
    write(tmp_path, "b")
    found = why(tree, "b", None)
    assert found is not None
    assert (found.reason, found.detail) == (Reason.UNLISTED, "it came after this report")


def test_a_nested_repository_answers_for_its_own_files(repository: Path) -> None:
    """Its patterns are named, and the outer ones do not reach into it."""
    write(repository, "inner/a.log", "inner/b.o", "inner/c")
    run_git(repository / "inner", "init", "-q")
    write(repository, "inner/.gitignore", content="*.o\n")
    for git in ("git", None):
        tree = one(repository, git)
        assert why(tree, "inner/a.log", git) is None
        found = why(tree, "inner/b.o", git)
        assert found is not None
        assert (found.file, found.line) == (f"{repository}/inner/.gitignore", 1)


def test_skyignore_is_named_where_it_decides(repository: Path) -> None:
    """And .gitignore no more."""
    write(repository, ".skyignore", content="*.py\n")
    tree = one(repository)
    found = why(tree, "code.py")
    assert found is not None
    assert str(found) == f"code.py: {repository}/.skyignore:1: *.py"
    assert tree.decided_by is Decider.SKYIGNORE
    assert why(tree, "out.log") is None


def test_a_mount_that_covers_a_file_of_the_workdir_is_named(tmp_path: Path) -> None:
    """The workdir's own stays here, and the mount's goes."""
    write(tmp_path, "w/data/x", "w/data/y", "m/x")
    trees = report(plan_sync("w", {"data": "m"}, base=tmp_path))
    assert [(each.path, each.detail) for each in trees[0].left_out] == [("data/x", "data is put there")]
    found = why_ignored(trees, "w/data/x", base=str(tmp_path))
    assert found is not None
    assert found.reason is Reason.COVERED
    assert why_ignored(trees, "m/x", base=str(tmp_path)) is None


def test_a_single_file_is_a_tree_of_one(tmp_path: Path) -> None:
    """It goes whatever patterns say of it."""
    write(tmp_path, "a.log")
    write(tmp_path, ".gitignore", content="*.log\n")
    (tree,) = report(plan_sync(None, {"~/a": "a.log"}, base=tmp_path))
    assert (tree.files, tree.bytes, tree.decided_by, tree.left_out) == (1, 1, Decider.NOTHING, ())
    assert why_ignored((tree,), "a.log", base=str(tmp_path)) is None


def test_largest_directories_count_all_below_them(tmp_path: Path) -> None:
    """By bytes, the largest first; one that holds nothing but another of them is left out."""
    write(tmp_path, "a/only/x", "a/only/y", content="12345")
    write(tmp_path, "b/c/x", "b/y", content="123")
    manifest = plan_sync(str(tmp_path)).trees[0].manifest
    assert largest_folders(manifest) == (
        Folder(path="a/only", files=2, bytes=10),
        Folder(path="b", files=2, bytes=6),
        Folder(path="b/c", files=1, bytes=3),
    )
    assert len(largest_folders(manifest, most=1)) == 1


def test_many_files_are_warned_of(tmp_path: Path) -> None:
    """From the 10,001st on, with the directory that has most of them."""
    write(tmp_path, "data/a", "b")
    plan = plan_sync(str(tmp_path))
    tree = plan.trees[0]
    pattern = next(entry for entry in tree.manifest.entries if entry.kind is Kind.FILE and "/" in entry.path)

    def many(count: int) -> tuple[str, ...]:
        entries = [attrs.evolve(pattern, path=f"data/{number}") for number in range(count)]
        manifest = Manifest(source=tree.manifest.source, entries=tuple(entries))
        return warnings_about(attrs.evolve(plan, trees=(attrs.evolve(tree, manifest=manifest),)))

    assert many(MANY_FILES) == ()
    (said,) = many(MANY_FILES + 1)
    assert said.startswith(f"10,001 files are to go, more than 10,000; {tmp_path}/data has 10,001: ")
    assert ".skyignore" in said


def test_many_bytes_are_warned_of(tmp_path: Path) -> None:
    """From one byte above 1 GiB on, with the directory that has most of them."""
    write(tmp_path, "data/big")
    os.truncate(tmp_path / "data/big", 1 << 30)
    assert warnings_about(plan_sync(str(tmp_path))) == ()
    os.truncate(tmp_path / "data/big", (1 << 30) + 1)
    (said,) = warnings_about(plan_sync(str(tmp_path)))
    assert said.startswith(f"1.0 GiB are to go, more than 1.0 GiB; {tmp_path}/data has 1.0 GiB: ")


def test_a_file_that_cannot_travel_is_warned_of(tmp_path: Path) -> None:
    """With the target and the first of them."""
    write(tmp_path, "a")
    os.mkfifo(tmp_path / "p")
    os.mkfifo(tmp_path / "q")
    assert warnings_about(plan_sync(str(tmp_path))) == (
        "workdir: p and 1 more cannot travel: no file, directory or link",
    )


def test_git_that_is_not_at_hand_any_more_is_an_error_with_the_path(repository: Path) -> None:
    """The tree that it decided about is named."""
    tree = one(repository)
    with pytest.raises(StagingError, match="git is not at hand") as caught:
        why(tree, "out.log.new", None)
    assert caught.value.path == str(repository)


def test_the_client_reports_without_touching_a_node(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """client.plan_sync(task): files, bytes, paths and reasons of a task that has no cluster."""
    home = tmp_path_factory.mktemp("sky") / "home"
    monkeypatch.chdir(repository.parent)
    with skylib.Client(home) as client:
        found = client.plan_sync(skylib.Task(workdir=repository.name, file_mounts={"~/one": f"{repository.name}/out.log"}))
    assert isinstance(found, skylib.SyncReport)
    assert [tree.dst for tree in found] == ["workdir", "~/one"]
    assert found.trees[0].paths == (".gitignore", "code.py", "kept.log", "pkg", "pkg/.gitignore", "pkg/b.tmp")
    assert (found.files, found.bytes) == (6, 3 + 25 + 13 + 1)
    assert found.why_ignored("code.py") is None
    why_log = found.why_ignored("build/deep/x")
    assert why_log is not None
    assert (why_log.line, why_log.pattern) == (3, "build/")
    assert found.why_ignored(repository / "out.log") is None  # a mount of its own
    assert found.warnings == ()


def test_a_launch_tells_its_warnings_as_events(tmp_path: Path) -> None:
    """Each is a note of the step that looks at the files, in plan_sync as well."""
    write(tmp_path, "w/a")
    os.mkfifo(tmp_path / "w/pipe")
    seen: list[Event] = []
    task = skylib.Task(workdir=str(tmp_path / "w"))
    with skylib.Client(tmp_path / "home", events=seen.append) as client:
        found = client.plan_sync(task)
    session = Session(tmp_path / "home")
    with staged_files(session, task, seen.append):
        session.close()
    notes = [event.facts["warning"] for event in seen if event.step == "files.scan" and event.phase is Phase.NOTE]
    assert found.warnings == ("workdir: pipe cannot travel: no file, directory or link",)
    assert tuple(notes) == found.warnings * 2


def shown(count: int) -> SyncReport:
    """A report with so many ignored paths, one name of which is no UTF-8."""
    left_out = [LeftOut(path=f"<{number}>\udcff", reason=Reason.GIT, tree="workdir") for number in range(count)]
    tree = TreeReport(
        dst="workdir",
        source="/w",
        given=".",
        decided_by=Decider.GIT,
        files=1200,
        bytes=1536,
        largest=(Folder(path="data", files=7, bytes=1024),),
        left_out=tuple(left_out),
    )
    return SyncReport(trees=(tree,), base="/w", warnings=("too much",))


def test_a_report_shows_itself_in_a_line() -> None:
    """Sums, not lists."""
    assert repr(shown(3)) == "<SyncReport files=1200 bytes=1536 trees=1 left_out=3 warnings=1>"


def test_a_report_shows_itself_in_a_notebook() -> None:
    """Targets, largest directories, the first ignored paths and the warnings, escaped and encodable."""
    text = shown(25)._repr_html_()
    text.encode()
    for part in ("1,200", "1.5 KiB", "data", "&lt;0&gt;\\udcff", "5 more, see left_out", "too much"):
        assert part in text
    assert "&lt;20&gt;" not in text
