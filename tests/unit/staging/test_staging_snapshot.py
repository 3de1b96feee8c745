"""Snapshots: what is staged, what it costs, who may remove it, and what happens when it cannot be done."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skylib.errors import SkyError, StagingError
from skylib.events import Event, EventSink, Phase, discard
from skylib.locks import Locks
from skylib.paths import SkyHome
from skylib.staging.copying import ATTEMPTS, Copier
from skylib.staging.plan import SyncPlan, plan_sync
from skylib.staging.shelf import KEPT_OF_ONE_SOURCE, Kept, Shelf, superseded
from skylib.staging.snapshot import Snapshots
from skylib.staging.sync import SyncNode, sync
from skylib.transport.local import LocalTransport
from tests.processes import Child
from tests.unit.staging.trees import snapshot

MANY = 1 << 40
_CLONE_NEWNS = 0x20000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, or gives up being root")


class Place:
    """A folder for snapshots, and trees to take them of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "home/mounts"
        self.work = folder / "work"
        self.work.mkdir()
        self._locks = Locks(SkyHome(folder / "home"))

    def snapshots(self, *, max_bytes: float = MANY) -> Snapshots:
        return Snapshots(self.folder, hold=lambda scope: self._locks.hold(scope, operation="staging"), max_bytes=max_bytes)

    def shelf(self) -> Shelf:
        return Shelf(self.folder, alone=lambda: self._locks.hold("staging", operation="staging"))

    @contextlib.contextmanager
    def staged(
        self, source: Path | None = None, *, events: EventSink = discard, max_bytes: float = MANY
    ) -> Iterator[SyncPlan]:
        began_ns = time.time_ns()
        plan = plan_sync(str(source or self.work), git=None)
        with self.snapshots(max_bytes=max_bytes).staged(plan, scanned_ns=began_ns, events=events) as staged:
            yield staged

    def stage(self, source: Path | None = None, *, max_bytes: float = MANY) -> tuple[Path, dict[str, object]]:
        """Stage it once; its tree, and what staging says that it did."""
        seen: list[Event] = []
        with self.staged(source, events=seen.append, max_bytes=max_bytes) as staged:
            pass
        return Path(staged.trees[0].manifest.source), dict(seen[-1].facts)

    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def inodes(root: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in root.rglob("*") if path.is_file() and not path.is_symlink()}


def test_a_snapshot_is_the_tree_as_it_was(place: Place) -> None:
    """Contents, modes, times, links, odd names and empty directories; files of their own, in a folder under the home."""
    (place.work / "sub/empty").mkdir(parents=True)
    (place.work / "run.sh").write_text("#!/bin/sh\n")
    (place.work / "run.sh").chmod(0o755)
    (place.work / "sub/a b\n'").write_bytes(os.urandom(300_000))
    Path(os.fsdecode(os.fsencode(place.work) + b"/\xff")).write_text("bytes")
    (place.work / "out").symlink_to("/etc/hostname")
    os.utime(place.work / "run.sh", ns=(1_600_000_000_123_456_789,) * 2)
    with place.staged() as staged:
        tree = Path(staged.trees[0].manifest.source)
        assert tree.is_relative_to(place.folder)
        assert {path: seen for path, seen in snapshot(tree).items() if seen[0] != "dir"} == {
            path: seen for path, seen in snapshot(place.work).items() if seen[0] != "dir"
        }
        assert (tree / "sub/empty").is_dir()
        assert (tree / "run.sh").stat().st_mtime_ns == 1_600_000_000_123_456_789
        assert not set(inodes(tree).values()) & set(inodes(place.work).values())
        assert staged.trees[0].manifest.entries == plan_sync(str(place.work), git=None).trees[0].manifest.entries


def test_nobody_else_gets_at_a_snapshot(place: Place) -> None:
    """The folders are the account's alone, whatever the originals' modes."""
    (place.work / "f").write_text("x")
    place.work.chmod(0o777)
    tree, _facts = place.stage()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (tree, tree.parent, place.folder)] == [0o700] * 3


def test_an_edit_in_place_does_not_reach_a_snapshot(place: Place) -> None:
    """A file that is written to, and one that is removed, are there as they were."""
    (place.work / "a").write_text("old")
    (place.work / "b").write_text("b")
    with place.staged() as staged:
        with open(place.work / "a", "r+") as file:
            file.write("new")
        (place.work / "b").unlink()
        tree = Path(staged.trees[0].manifest.source)
        assert ((tree / "a").read_text(), (tree / "b").read_text()) == ("old", "b")


def test_the_same_tree_is_staged_once(place: Place) -> None:
    """The second time nothing is copied or linked, and the same folder is used."""
    (place.work / "a").write_text("a")
    first, facts = place.stage()
    again, nothing = place.stage()
    assert (facts["trees"], facts["copied"]) == (1, 1)
    assert (nothing["trees"], nothing["copied"], nothing["linked"]) == (0, 0, 0)
    assert first == again


def test_one_edit_costs_one_file(place: Place) -> None:
    """What the earlier snapshot has unchanged is linked from it, and the edited file alone is copied."""
    for name in "abc":
        (place.work / name).write_text(name)
    first, _facts = place.stage()
    (place.work / "b").write_text("B")
    second, facts = place.stage()
    assert (facts["copied"], facts["linked"], facts["copied_bytes"]) == (1, 2, 1)
    old, new = inodes(first), inodes(second)
    assert {name for name in old if old[name] == new[name]} == {"a", "c"}
    assert ((first / "b").read_text(), (second / "b").read_text()) == ("b", "B")


def test_an_edit_that_keeps_size_and_time_is_seen(place: Place) -> None:
    """As archives, checkouts and `touch -r` leave it: the change time tells."""
    file = place.work / "a"
    file.write_text("one")
    os.utime(file, (1, 1))
    place.stage()
    file.write_text("two")
    os.utime(file, (1, 1))
    tree, _facts = place.stage()
    assert (tree / "a").read_text() == "two"


def test_an_edit_in_the_next_instant_is_seen(place: Place) -> None:
    """However coarse the clock of the file system is: forty edits of one size, right after each other."""
    file = place.work / "a"
    for number in range(40):
        file.write_text(f"{number:02}")
        tree, _facts = place.stage()
        assert (tree / "a").read_text() == f"{number:02}"


def test_two_trees_that_look_the_same_are_two(place: Place, tmp_path: Path) -> None:
    """Equal names, sizes and times under two sources do not make one tree."""
    other = tmp_path / "other"
    other.mkdir()
    for root, text in ((place.work, "one"), (other, "two")):
        (root / "a").write_text(text)
        os.utime(root / "a", (1, 1))
    assert (place.stage()[0] / "a").read_text() == "one"
    assert (place.stage(other)[0] / "a").read_text() == "two"


def test_a_changed_mode_is_a_change(place: Place) -> None:
    """The earlier snapshot keeps its own."""
    (place.work / "a").write_text("a")
    first, _facts = place.stage()
    (place.work / "a").chmod(0o755)
    second, _facts = place.stage()
    assert [stat.S_IMODE((tree / "a").stat().st_mode) for tree in (first, second)] == [0o644, 0o755]


def test_a_single_file_is_staged(place: Place) -> None:
    """A mount of one file has a snapshot like a tree."""
    (place.work / "one").write_text("1")
    plan = plan_sync(None, {"~/one": str(place.work / "one")})
    with place.snapshots().staged(plan, scanned_ns=time.time_ns()) as staged:
        (place.work / "one").write_text("2")
        assert Path(staged.trees[0].manifest.source).read_text() == "1"


def test_a_file_edited_after_the_scan_is_taken_as_it_is(place: Place) -> None:
    """Manifest and content are of the same moment; what is gone by then is left out."""
    (place.work / "a").write_text("short")
    (place.work / "b").write_text("b")
    plan = plan_sync(str(place.work), git=None)
    (place.work / "a").write_text("much longer")
    (place.work / "b").unlink()
    with place.snapshots().staged(plan, scanned_ns=time.time_ns()) as staged:
        (tree,) = staged.trees
        assert [(entry.path, entry.size) for entry in tree.manifest.entries] == [("", 0), ("a", 11)]
        assert Path(tree.manifest.source, "a").read_text() == "much longer"


def test_a_source_that_is_gone_after_the_scan_is_named(place: Place) -> None:
    """Nothing is left of the attempt."""
    (place.work / "one").write_text("1")
    plan = plan_sync(None, {"~/one": str(place.work / "one")})
    (place.work / "one").unlink()
    with pytest.raises(StagingError, match="removed") as caught, place.snapshots().staged(plan, scanned_ns=0):
        pass
    assert caught.value.path == str(place.work / "one")
    assert place.names() == []


def test_a_file_that_changes_once_is_copied_again(place: Place) -> None:
    """The copy is of the state that stood still."""
    file = place.work / "a"
    file.write_bytes(b"1" * 1_000_000)
    changes = iter([b"2" * 500_000])

    def change(_count: int) -> None:
        for content in changes:
            file.write_bytes(content)

    entry = Copier(progress=change).copy(str(file), str(place.work / "copy"), "a")
    assert entry is not None
    assert entry.size == 500_000
    assert (place.work / "copy").read_bytes() == b"2" * 500_000


def test_a_file_that_never_rests_is_named(place: Place) -> None:
    """After a few copies, however often it changes; with what to do."""
    file = place.work / "a"
    file.write_bytes(bytes(200_000))
    copies: list[int] = []

    def touch(count: int) -> None:
        copies.append(count)
        os.utime(file)

    with pytest.raises(StagingError, match="kept changing") as caught:
        Copier(progress=touch).copy(str(file), str(place.work / "copy"), "a")
    assert (caught.value.path, caught.value.retryable) == (str(file), True)
    assert ".skyignore" in str(caught.value.hint)
    assert sum(copies) == ATTEMPTS * 200_000


def test_holes_stay_holes(place: Place) -> None:
    """A sparse file takes no more room in the snapshot, and reads the same."""
    file = place.work / "sparse"
    with open(file, "wb") as sparse:
        sparse.truncate(1 << 30)
        sparse.seek(1 << 29)
        sparse.write(b"data")
    tree, _facts = place.stage()
    found = (tree / "sparse").stat()
    assert (found.st_size, found.st_blocks * 512 < 1 << 20) == (1 << 30, True)
    with open(tree / "sparse", "rb") as copy:
        copy.seek(1 << 29)
        assert copy.read(8) == b"data\0\0\0\0"


@pytest.mark.parametrize("size", [0, 1, 4095, 128 * 1024, 128 * 1024 + 1, 40_000_000])
def test_files_of_all_sizes_are_copied_whole(place: Place, size: int) -> None:
    """Whichever way of copying a size takes."""
    content = os.urandom(1000) * (size // 1000 + 1)
    (place.work / "f").write_bytes(content[:size])
    tree, _facts = place.stage()
    assert (tree / "f").read_bytes() == content[:size]


def test_a_file_is_copied_between_file_systems(tmp_path: Path) -> None:
    """Where the kernel shares nothing."""
    content = os.urandom(500_000)
    source = Path("/dev/shm") / f"skylib-{os.getpid()}"
    source.write_bytes(content)
    try:
        assert Copier().copy(str(source), str(tmp_path / "f"), "f") is not None
    finally:
        source.unlink()
    assert (tmp_path / "f").read_bytes() == content


@needs_root
def test_an_unreadable_file_is_named() -> None:
    """By its own path, and nothing of the attempt is left."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        place = Place(Path(folder))
        (place.work / "secret").write_text("x")
        (place.work / "secret").chmod(0)

        def work(_child: Child) -> None:
            os.setuid(65534)
            with pytest.raises(StagingError, match="Permission denied") as caught:
                place.stage()
            assert caught.value.path == str(place.work / "secret")
            assert place.names() == []

        assert Child(work).ended() == 0


def test_a_full_disk_says_so(place: Place) -> None:
    """A limit on the size of files stands for the disk: the error names folder and remedy, and nothing is left."""
    (place.work / "a").write_bytes(bytes(2_000_000))

    def work(_child: Child) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        with pytest.raises(StagingError, match="cannot stage") as caught:
            place.stage()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EFBIG
        assert "SKY_HOME" in str(caught.value.hint)
        assert place.names() == []

    assert Child(work).ended() == 0


def mounted(folder: Path, kind: str) -> None:
    """In a child: mount a file system that it alone sees. kind: options of mount(8)."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", *kind.split(), "tmpfs", str(folder)], check=True)


@needs_root
def test_a_disk_that_fills_says_so(place: Place) -> None:
    """What, where and what to do; nothing of the attempt is left to fill it."""
    (place.work / "a").write_bytes(bytes(2_000_000))
    place.folder.mkdir(mode=0o700, parents=True)

    def work(_child: Child) -> None:
        mounted(place.folder, "-t tmpfs -o size=1m")
        with pytest.raises(StagingError, match="no room to stage") as caught:
            place.stage()
        assert str(place.folder) in str(caught.value)
        assert str(place.work) in str(caught.value)
        assert "df -h" in str(caught.value.hint)
        assert place.names() == []

    assert Child(work).ended() == 0


@needs_root
def test_unused_snapshots_give_way_on_a_full_disk(place: Place, tmp_path: Path) -> None:
    """Whatever may be kept: what the next launch needs now comes first."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "b").write_bytes(bytes(2_000_000))
    (place.work / "a").write_bytes(bytes(2_000_000))
    place.folder.mkdir(mode=0o700, parents=True)

    def work(_child: Child) -> None:
        mounted(place.folder, "-t tmpfs -o size=3m")
        place.stage()
        tree, _facts = place.stage(other)
        assert (tree / "b").stat().st_size == 2_000_000
        assert place.names() == [tree.parent.name]

    assert Child(work).ended() == 0


@needs_root
def test_a_disk_that_cannot_be_written_says_so(place: Place) -> None:
    """A read-only home."""
    (place.work / "a").write_text("a")
    place.folder.mkdir(mode=0o700, parents=True)

    def work(_child: Child) -> None:
        mounted(place.folder, "-r -t tmpfs")
        with pytest.raises(StagingError, match="Read-only file system") as caught:
            place.stage()
        assert f"ls -ld {place.folder}" in str(caught.value.hint)

    assert Child(work).ended() == 0


def test_a_folder_that_cannot_be_made_says_so(place: Place) -> None:
    """Something else is in its place: what, where, and what to do."""
    place.folder.parent.mkdir(mode=0o700)
    place.folder.write_text("a file")
    (place.work / "a").write_text("a")
    with pytest.raises(StagingError, match="cannot stage") as caught:
        place.stage()
    assert str(place.folder) in str(caught.value)
    assert "SKY_HOME" in str(caught.value.hint)
    assert isinstance(caught.value, SkyError)


def test_nobody_removes_what_is_in_use(place: Place, tmp_path: Path) -> None:
    """However little room there is, for as long as somebody uses it; then it goes."""
    (place.work / "a").write_text("a")
    other = tmp_path / "other"
    other.mkdir()
    (other / "b").write_text("b")
    with place.staged(max_bytes=0) as staged:
        place.stage(other, max_bytes=0)
        assert Path(staged.trees[0].manifest.source, "a").read_text() == "a"
        assert len(place.names()) == 1
    assert place.names() == []


def test_the_longest_unused_goes_first(place: Place, tmp_path: Path) -> None:
    """Of three, with room for two, the one that was used last but longest ago."""
    trees = []
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_bytes(bytes(100_000))
    for number, name in enumerate(("one", "two", "one")):
        trees.append(place.stage(tmp_path / name)[0].parent)
        os.utime(trees[-1] / "lock", (number + 1, number + 1))
    third = place.stage(tmp_path / "three", max_bytes=250_000)[0].parent
    assert [folder.exists() for folder in (trees[0], trees[1], third)] == [True, False, True]


def test_old_states_of_one_source_go(place: Place) -> None:
    """The newest few stay, whatever room there is: old times of files do not come back."""
    for number in range(KEPT_OF_ONE_SOURCE + 3):
        (place.work / "f").write_text(str(number))
        tree, _facts = place.stage()
    assert len(place.names()) == KEPT_OF_ONE_SOURCE
    assert (tree / "f").exists()


def test_superseded_are_the_old_of_each_source() -> None:
    """Counted by source and boot."""
    kept = [
        Kept(name=f"{source}{number}", source=source, boot="b", bytes=1, used_at=number)
        for number in range(KEPT_OF_ONE_SOURCE + 1)
        for source in "xy"
    ]
    assert superseded(kept) == {"x0", "y0"}


def test_what_a_dead_process_left_is_removed(place: Place) -> None:
    """One that was killed while it staged leaves nothing that counts, and the next removes it."""
    (place.work / "a").write_text("a")

    def work(child: Child) -> None:
        use = place.shelf().begin()
        use.tree.mkdir()
        (use.tree / "half").write_text("half")
        child.say(b"begun")
        child.wait_for_go()

    child = Child(work)
    child.heard()
    place.stage()
    assert sum(name.endswith(".part") for name in place.names()) == 1  # it lives
    child.kill()
    child.ended()
    place.stage()
    assert [name for name in place.names() if name.startswith(".")] == []


@pytest.mark.parametrize("name", [".0123456789abcdef.part", ".0123456789abcdef.gone", "0123456789abcdef" * 2])
def test_a_folder_that_nobody_locked_is_removed(place: Place, name: str) -> None:
    """Its maker died before that, or its remover after that; what a person keeps beside is let be."""
    (place.folder / name / "tree").mkdir(parents=True)
    (place.folder / "notes").mkdir()
    (place.work / "a").write_text("a")
    tree, _facts = place.stage()
    assert set(place.names()) == {"notes", tree.parent.name}


def test_a_snapshot_of_an_earlier_boot_is_not_trusted(place: Place) -> None:
    """What was not written to the disk when the power went could be half: neither used nor linked from."""
    (place.work / "a").write_text("a")
    tree, _facts = place.stage()
    about = json.loads((tree.parent / "about").read_text())
    (tree.parent / "about").write_text(json.dumps({**about, "boot": "another"}))
    (place.work / "b").write_text("b")
    _again, facts = place.stage()
    assert (facts["copied"], facts["linked"]) == (2, 0)


def test_a_broken_snapshot_is_made_anew(place: Place) -> None:
    """Its lock was removed by hand."""
    (place.work / "a").write_text("a")
    tree, _facts = place.stage()
    (tree.parent / "lock").unlink()
    (tree / "a").unlink()
    again, facts = place.stage()
    assert (again, facts["copied"], (again / "a").read_text()) == (tree, 1, "a")


def test_a_file_taken_out_of_a_snapshot_is_an_error_and_no_gap(place: Place, tmp_path: Path) -> None:
    """A node never gets a tree that lacks it in silence."""
    (place.work / "a").write_text("a")
    with place.staged() as staged:
        Path(staged.trees[0].manifest.source, "a").unlink()
        node = SyncNode(transport=LocalTransport(), root=str(tmp_path / "node"))
        with pytest.raises(StagingError, match="taken out"):
            sync([node], staged)


def test_two_edits_within_a_second_both_arrive(place: Place, tmp_path: Path) -> None:
    """Also when the first is sent long after it was staged: its time goes to the nanosecond."""
    file = place.work / "a"
    node = SyncNode(transport=LocalTransport(), root=str(tmp_path / "node"))
    second_ns = time.time_ns() // 10**9 * 10**9
    with place.staged():
        pass
    file.write_text("one")
    os.utime(file, ns=(second_ns + 1000, second_ns + 1000))
    with place.staged() as staged:
        deadline = second_ns + 3 * 10**9
        while time.time_ns() < deadline:  # until pack() by itself takes the file for settled
            time.sleep(0.05)
        sync([node], staged)
    file.write_text("two")
    os.utime(file, ns=(second_ns + 2000, second_ns + 2000))
    with place.staged() as staged:
        sync([node], staged)
    assert (tmp_path / "node/sky_workdir/a").read_text() == "two"


def test_the_content_is_hashed_once(place: Place) -> None:
    """The digest is the original's; the second time no file is read."""
    (place.work / "a").write_text("a")
    (place.work / "l").symlink_to("a")
    wanted = plan_sync(str(place.work), git=None).trees[0].manifest.digest()
    with place.staged() as staged:
        assert place.snapshots().content_digest(staged.trees[0]) == wanted
        Path(staged.trees[0].manifest.source, "a").unlink()  # would be missed if it were read
        assert place.snapshots().content_digest(staged.trees[0]) == wanted


def test_what_was_hashed_is_not_read_again_after_an_edit(place: Place) -> None:
    """Of three files the edited one alone is read; the digest is that of all content."""
    for name in ("a", "b/x", "c"):
        (place.work / name).parent.mkdir(exist_ok=True)
        (place.work / name).write_text(name)
    (place.work / "l").symlink_to("a")
    read = []
    for text in ("before", "after"):
        (place.work / "c").write_text(text)
        seen: list[Event] = []
        with place.staged() as staged:
            found = place.snapshots().content_digest(staged.trees[0], seen.append)
        assert found == plan_sync(str(place.work), git=None).trees[0].manifest.digest()
        read.append(seen[-1].facts["read"])
    assert read == [3, 1]


def test_a_forked_child_does_not_keep_a_snapshot(place: Place) -> None:
    """The parent lets go, and it can be removed, while the child lives on."""
    (place.work / "a").write_text("a")
    with place.staged(max_bytes=0):
        child = Child(lambda child: child.wait_for_go())
    assert place.names() == []
    child.go()
    assert child.ended() == 0


def test_the_use_is_a_lock_that_others_see(place: Place) -> None:
    """Another process cannot lock it exclusively."""
    (place.work / "a").write_text("a")
    with place.staged() as staged, open(Path(staged.trees[0].snapshot, "lock"), "r+") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_staging_tells_how_far_it_is(place: Place) -> None:
    """One span with what it came to; notes on the way are few."""
    for number in range(200):
        (place.work / f"f{number}").write_text("x")
    seen: list[Event] = []
    with place.staged(events=seen.append):
        pass
    assert [event.phase for event in seen if event.phase is not Phase.NOTE] == [Phase.STARTED, Phase.FINISHED]
    assert seen[-1].step == "files.stage"
    assert seen[-1].facts["copied"] == 200
    assert len(seen) < 20


def test_a_file_that_is_touched_all_the_time_passes_for_no_other(place: Place) -> None:
    """A later edit could have the very same times: its copy has a change time of its own, each time another."""
    file = place.work / "a"
    file.write_text("a")
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(0.001):
            os.utime(file)

    toucher = threading.Thread(target=touch)
    toucher.start()
    doubtful: list[int] = []
    deadline = time.monotonic() + 30
    try:
        while len(doubtful) < 2 and time.monotonic() < deadline:
            with contextlib.suppress(StagingError):  # it kept changing
                found = Copier().copy(str(file), str(place.work / "copy"), "a")
                if found is not None and found.ctime_ns < 0:
                    doubtful.append(found.ctime_ns)
    finally:
        ended.set()
        toucher.join()
    assert len(set(doubtful)) == 2
