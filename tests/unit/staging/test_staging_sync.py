"""Delivery to this machine's own directories, through the real shell and tar."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from skylib.errors import StagingError
from skylib.events import Event
from skylib.staging.feed import Feed
from skylib.staging.plan import plan_sync
from skylib.staging.sync import SyncNode, SyncOutcome, sync
from skylib.transport.base import Completed
from skylib.transport.command import Command
from skylib.transport.local import LocalTransport
from tests.unit.staging.trees import snapshot

STALE = (1_600_000_000, 1_600_000_000)


class Counting(LocalTransport):
    """Counts the commands that it runs, and the bytes that they are fed."""

    def __init__(self) -> None:
        super().__init__()
        self.commands = 0
        self.fed = 0

    def run(
        self, command: Command, *, stdin: bytes | Iterable[bytes] | None = None, timeout_s: float | None = None
    ) -> Completed:
        self.commands += 1
        pieces = [stdin] if isinstance(stdin, bytes) else stdin or ()

        def counted() -> Iterable[bytes]:
            for piece in pieces:
                self.fed += len(piece)
                yield piece

        return super().run(command, stdin=counted(), timeout_s=timeout_s)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workdir of some files, links and directories, not touched lately."""
    root = tmp_path / "work"
    (root / "sub/deep").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o750)
    for name in ("a", "sub/b", "sub/deep/c d\n'\"", "-rf", "*"):
        (root / name).write_text(name)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    Path(os.fsdecode(os.fsencode(root) + b"/\xff\xfe")).write_text("bytes")
    (root / "link").symlink_to("sub/b")
    (root / "out").symlink_to("/etc/hostname")
    age(root)
    return root


def age(root: Path) -> None:
    for folder, directories, files in os.walk(root):
        for name in [*directories, *files]:
            os.utime(Path(folder, name), STALE, follow_symlinks=False)


def deliver(
    transport: LocalTransport, root: Path, workdir: Path | None, mounts: dict[str, str] | None = None
) -> SyncOutcome:
    plan = plan_sync(str(workdir) if workdir else None, mounts or {})
    (outcome,) = sync([SyncNode(transport=transport, root=str(root))], plan)
    return outcome


def test_a_tree_arrives_as_it_is(tmp_path: Path, work: Path) -> None:
    """Contents, modes, times, links, odd names and empty directories are the same on the node; no rest is left."""
    outcome = deliver(LocalTransport(), tmp_path / "node", work)
    assert snapshot(tmp_path / "node/sky_workdir") == snapshot(work)
    assert (outcome.files, outcome.skipped) == (9, False)
    assert list((tmp_path / "node/.sky/incoming").iterdir()) == []


def test_nothing_to_do_is_one_question(tmp_path: Path, work: Path) -> None:
    """The second sync of an unchanged tree asks once and sends no archive; no files at all ask nothing."""
    transport = Counting()
    deliver(transport, tmp_path / "node", work)
    transport.commands = 0
    assert deliver(transport, tmp_path / "node", work).skipped
    assert transport.commands == 1
    assert deliver(transport, tmp_path / "node", None).skipped
    assert transport.commands == 1


def test_only_what_changed_is_sent(tmp_path: Path, work: Path) -> None:
    """One edited file of many goes alone."""
    (work / "big").write_bytes(os.urandom(3_000_000))
    transport = Counting()
    deliver(transport, tmp_path / "node", work)
    (work / "sub/b").write_text("edited")
    transport.fed = 0
    assert deliver(transport, tmp_path / "node", work).files == 1
    assert transport.fed < 30_000
    assert snapshot(tmp_path / "node/sky_workdir") == snapshot(work)


def test_an_edit_within_the_same_second_is_seen(tmp_path: Path, work: Path) -> None:
    """Two states of one size and one second differ on the node too."""
    path, transport = work / "a", LocalTransport()
    second = int(time.time())
    for nanoseconds, text in ((100, "1"), (200, "2"), (300, "3")):
        path.write_text(text)
        os.utime(path, ns=(second * 10**9 + nanoseconds,) * 2)
        deliver(transport, tmp_path / "node", work)
        assert (tmp_path / "node/sky_workdir/a").read_text() == text


def test_what_a_job_changed_is_restored_and_what_it_made_stays(tmp_path: Path, work: Path) -> None:
    """Our files are ours; others are let be, and files removed here go there, too."""
    target, transport = tmp_path / "node/sky_workdir", LocalTransport()
    deliver(transport, tmp_path / "node", work)
    (target / "a").write_text("scribbled over")
    (target / "sub/b").unlink()
    (target / "result.txt").write_text("precious")
    (target / "sub/deep/result.txt").write_text("precious")
    (target / "run.sh").chmod(0o600)
    (work / "-rf").unlink()
    deliver(transport, tmp_path / "node", work)
    assert (target / "a").read_text() == "a"
    assert (target / "sub/b").read_text() == "sub/b"
    assert (target / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (target / "result.txt").read_text() == (target / "sub/deep/result.txt").read_text() == "precious"
    assert not (target / "-rf").exists()


def test_kinds_that_changed_are_replaced(tmp_path: Path, work: Path) -> None:
    """File to directory, link to directory with its files, file to link: the node follows."""
    target, transport = tmp_path / "node/sky_workdir", LocalTransport()
    deliver(transport, tmp_path / "node", work)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (target / "sub/b").rename(elsewhere / "b")
    (target / "sub/deep").rename(elsewhere / "deep")
    (target / "sub").rmdir()
    (target / "sub").symlink_to(elsewhere)
    (work / "a").unlink()
    (work / "a").mkdir()
    (work / "a/inner").write_text("x")
    (work / "run.sh").unlink()
    (work / "run.sh").symlink_to("link")
    deliver(transport, tmp_path / "node", work)
    assert snapshot(target) == snapshot(work)
    assert (elsewhere / "b").read_text() == "sub/b"


def test_a_directory_of_the_node_is_not_replaced_by_a_file(tmp_path: Path, work: Path) -> None:
    """It may hold a job's output: an error with the path, and the output stays."""
    target = tmp_path / "node/sky_workdir"
    (target / "a").mkdir(parents=True)
    (target / "a/output").write_text("precious")
    with pytest.raises(StagingError) as caught:
        deliver(LocalTransport(), tmp_path / "node", work)
    assert caught.value.host == "localhost"
    assert caught.value.path == f"{target}/a"
    assert (target / "a/output").read_text() == "precious"
    assert list((tmp_path / "node/.sky/incoming").iterdir()) == []


def test_modes_of_directories_follow(tmp_path: Path, work: Path) -> None:
    """A directory's changed mode is set on the node without sending its files."""
    deliver(LocalTransport(), tmp_path / "node", work)
    (work / "sub").chmod(0o700)
    outcome = deliver(LocalTransport(), tmp_path / "node", work)
    assert outcome.files == 0
    assert (tmp_path / "node/sky_workdir/sub").stat().st_mode & 0o777 == 0o700
    assert deliver(LocalTransport(), tmp_path / "node", work).skipped


def test_a_read_only_directory_can_be_synced_again(tmp_path: Path, work: Path) -> None:
    """On the node its owner may write in it, so the next sync and the take-down work."""
    (work / "sub").chmod(0o555)
    try:
        deliver(LocalTransport(), tmp_path / "node", work)
        assert (tmp_path / "node/sky_workdir/sub").stat().st_mode & 0o777 == 0o755
        assert deliver(LocalTransport(), tmp_path / "node", work).skipped
    finally:
        (work / "sub").chmod(0o755)


def test_mounts_reach_their_places(tmp_path: Path, work: Path) -> None:
    """Files and directories go below the root and into the workdir; once there, nothing is sent again."""
    node = tmp_path / "node"
    mounts = {"~/f": str(work / "a"), "in/side": str(work / "sub"), "~/d/e": str(work / "empty")}
    deliver(LocalTransport(), node, work, mounts)
    assert (node / "f").read_text() == "a"
    assert snapshot(node / "sky_workdir/in/side") == snapshot(work / "sub")
    assert (node / "d/e").is_dir()
    assert deliver(LocalTransport(), node, work, mounts).skipped


def test_a_single_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """A reader that holds the old file keeps it whole; a directory in its place is an error."""
    source, node = tmp_path / "source", tmp_path / "node"
    source.write_text("one")
    deliver(LocalTransport(), node, None, {"~/x": str(source)})
    with (node / "x").open() as reader:
        source.write_text("two!")
        deliver(LocalTransport(), node, None, {"~/x": str(source)})
        assert reader.read() == "one"
    assert (node / "x").read_text() == "two!"
    (node / "y").mkdir()
    with pytest.raises(StagingError, match="is a directory"):
        deliver(LocalTransport(), node, None, {"~/y": str(source)})


def test_a_target_that_is_a_link_to_a_directory_is_followed(tmp_path: Path, work: Path) -> None:
    """A home may keep its data elsewhere: the link stays, the files go where it leads."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "node").mkdir()
    (tmp_path / "node/sky_workdir").symlink_to(tmp_path / "scratch")
    deliver(LocalTransport(), tmp_path / "node", work)
    assert (tmp_path / "node/sky_workdir").is_symlink()
    assert snapshot(tmp_path / "scratch") == snapshot(work)
    assert deliver(LocalTransport(), tmp_path / "node", work).skipped


def test_several_ranks_on_one_root_are_served_at_once(tmp_path: Path, work: Path) -> None:
    """One transport is served once; two transports to one directory do not hurt each other."""
    shared = Counting()
    plan = plan_sync(str(work))
    outcomes = sync([SyncNode(transport=shared, root=str(tmp_path / "one"))] * 3, plan)
    assert (len(outcomes), shared.commands) == (3, 2)
    nodes = [SyncNode(transport=LocalTransport(f"rank{rank}"), root=str(tmp_path / "two")) for rank in range(4)]
    assert len(sync(nodes, plan)) == 4
    assert snapshot(tmp_path / "two/sky_workdir") == snapshot(work)


def test_nodes_in_different_states_get_what_each_lacks(tmp_path: Path, work: Path) -> None:
    """One has all, one lacks a file, one has nothing."""
    roots = [tmp_path / name for name in ("full", "partial", "fresh")]
    for root in roots[:2]:
        deliver(LocalTransport(), root, work)
    (roots[1] / "sky_workdir/a").unlink()
    nodes = [SyncNode(transport=LocalTransport(root.name), root=str(root)) for root in roots]
    assert [outcome.files for outcome in sync(nodes, plan_sync(str(work)))] == [0, 1, 9]
    assert all(snapshot(root / "sky_workdir") == snapshot(work) for root in roots)


def test_a_failing_node_is_named_and_the_others_are_served(tmp_path: Path, work: Path) -> None:
    """The error has host and path; the good nodes have the files."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    bad.mkdir()
    (bad / ".sky").mkdir()
    (bad / ".sky/incoming").write_text("a file in the way")
    nodes = [SyncNode(transport=LocalTransport(root.name), root=str(root)) for root in (good, bad)]
    with pytest.raises(StagingError) as caught:
        sync(nodes, plan_sync(str(work)))
    assert caught.value.host == "bad"
    assert list(vars(caught.value)["failures"]) == ["bad"]
    assert snapshot(good / "sky_workdir") == snapshot(work)


def test_a_file_that_cannot_be_read_leaves_the_nodes_as_they_were(tmp_path: Path, work: Path) -> None:
    """The archive then lacks its end, and no node puts any of it in place; what came is kept aside for the next sync."""
    plan = plan_sync(str(work))
    (work / "sub/b").unlink()
    (work / "sub/b").symlink_to("/etc/passwd")
    with pytest.raises(StagingError) as caught:
        sync([SyncNode(transport=LocalTransport(), root=str(tmp_path / "node"))], plan)
    assert caught.value.path == str(work / "sub/b")
    assert not (tmp_path / "node/sky_workdir").exists()
    assert [kept.name[:5] for kept in (tmp_path / "node/.sky/incoming").iterdir()] == ["rest-"]


def test_steps_are_events(tmp_path: Path, work: Path) -> None:
    """Probe and sending start and finish, with seconds and bytes."""
    seen: list[Event] = []
    sync([SyncNode(transport=LocalTransport(), root=str(tmp_path / "node"))], plan_sync(str(work)), events=seen.append)
    assert [(event.step, event.phase.value) for event in seen] == [
        ("staging.probe", "started"),
        ("staging.probe", "finished"),
        ("staging.send", "started"),
        ("staging.send", "finished"),
    ]
    assert seen[-1].facts["bytes"]


def test_a_feed_waits_for_its_reader_and_lets_go_when_it_leaves() -> None:
    """At most `limit` blocks wait; a writer is told when nobody reads any more."""
    feed = Feed(limit=2)
    written: list[bool] = []
    writer = threading.Thread(target=lambda: written.extend(feed.put(b"%d" % number) for number in range(5)))
    writer.start()
    blocks = iter(feed)
    assert next(blocks) == b"0"
    feed.close()
    writer.join(10)
    assert not writer.is_alive()
    assert written[-1] is False
    assert list(blocks) == []
