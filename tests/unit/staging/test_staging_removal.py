"""What a sync removes from a node, and what it never touches; through the real shell, find and tar."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import attrs
import pytest

from skylib.errors import StagingError
from skylib.staging.plan import SyncPlan, plan_sync
from skylib.staging.sync import SyncNode, SyncOutcome, sync
from skylib.transport.local import LocalTransport
from tests.unit.staging.trees import snapshot

ODD = (b"new\nline", b"-rf", b"quote'\"$(x)", b"not \xff utf-8", b" space ")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workdir with two files, one of them in a directory of its own."""
    (tmp_path / "work/sub").mkdir(parents=True)
    (tmp_path / "work/keep").write_text("keep")
    (tmp_path / "work/sub/gone").write_text("gone")
    return tmp_path / "work"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node's root."""
    (tmp_path / "node").mkdir()
    return tmp_path / "node"


def deliver(node: Path, plan: SyncPlan) -> SyncOutcome:
    (outcome,) = sync([SyncNode(transport=LocalTransport(), root=str(node))], plan)
    return outcome


def again(node: Path, work: Path) -> SyncOutcome:
    return deliver(node, plan_sync(str(work), git=None))


def test_what_was_removed_here_goes_there(node: Path, work: Path) -> None:
    """A file and the directory that it leaves empty; what stays is not sent again, and after that nothing is to do."""
    again(node, work)
    shutil.rmtree(work / "sub")
    outcome = again(node, work)
    assert (outcome.files, outcome.removed) == (0, 1)
    assert snapshot(node / "sky_workdir") == snapshot(work)
    assert again(node, work).skipped


def test_what_a_job_made_stays(node: Path, work: Path) -> None:
    """Its output stays where it is, and so does the directory that holds it."""
    again(node, work)
    (node / "sky_workdir/sub/output").write_text("result")
    shutil.rmtree(work / "sub")
    again(node, work)
    assert os.listdir(node / "sky_workdir/sub") == ["output"]


def test_what_a_job_changed_stays(node: Path, work: Path) -> None:
    """A file that is not as it was put is the job's from then on."""
    again(node, work)
    (node / "sky_workdir/sub/gone").write_text("changed there")
    (work / "sub/gone").unlink()
    assert again(node, work).removed == 0
    assert (node / "sky_workdir/sub/gone").read_text() == "changed there"


def test_what_was_sent_later_goes_too(node: Path, work: Path) -> None:
    """A file that was sent in a second version is known in that one."""
    again(node, work)
    (work / "sub/gone").write_text("second version")
    again(node, work)
    (work / "sub/gone").unlink()
    assert again(node, work).removed == 1
    assert not (node / "sky_workdir/sub/gone").exists()


def test_a_link_that_was_made_anew_goes(node: Path, work: Path) -> None:
    """Links are known by what they point to, and not by their time."""
    (work / "link").symlink_to("keep")
    again(node, work)
    (work / "link").unlink()
    (work / "link").symlink_to("keep")
    (work / "keep").write_text("other")
    again(node, work)
    (work / "link").unlink()
    again(node, work)
    assert not os.path.lexists(node / "sky_workdir/link")


@pytest.mark.parametrize("name", ODD)
def test_odd_names_go(node: Path, work: Path, name: bytes) -> None:
    """Names that a shell would take for something else."""
    odd = os.path.join(os.fsencode(work), name)
    Path(os.fsdecode(odd)).write_text("odd")
    again(node, work)
    os.unlink(odd)
    assert again(node, work).removed == 1
    assert snapshot(node / "sky_workdir") == snapshot(work)


def test_a_file_takes_the_place_of_a_directory_that_was_ours(node: Path, work: Path) -> None:
    """What was put in it goes first; the file is then put."""
    again(node, work)
    shutil.rmtree(work / "sub")
    (work / "sub").write_text("a file now")
    again(node, work)
    assert (node / "sky_workdir/sub").read_text() == "a file now"


def test_a_file_takes_no_place_of_a_directory_with_output(node: Path, work: Path) -> None:
    """A job's output is in the way: an error, and the output stays."""
    again(node, work)
    (node / "sky_workdir/sub/output").write_text("result")
    shutil.rmtree(work / "sub")
    (work / "sub").write_text("a file now")
    with pytest.raises(StagingError):
        again(node, work)
    assert (node / "sky_workdir/sub/output").read_text() == "result"


def test_nothing_behind_a_link_goes(node: Path, work: Path, tmp_path: Path) -> None:
    """A job moved a directory away and put a link in its place: what is there is not ours any more."""
    again(node, work)
    (node / "sky_workdir/sub").rename(tmp_path / "elsewhere")
    (node / "sky_workdir/sub").symlink_to(tmp_path / "elsewhere")
    shutil.rmtree(work / "sub")
    assert again(node, work).removed == 0
    assert (tmp_path / "elsewhere/gone").read_text() == "gone"


def test_a_mount_in_the_workdir_is_not_the_workdirs(node: Path, work: Path, tmp_path: Path) -> None:
    """What the workdir had and a mount puts there now stays."""
    again(node, work)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/gone").write_text("gone")
    shutil.copystat(work / "sub/gone", tmp_path / "other/gone")
    shutil.rmtree(work / "sub")
    plan = plan_sync(str(work), {"sub": str(tmp_path / "other")}, git=None)
    assert deliver(node, plan).removed == 0
    assert (node / "sky_workdir/sub/gone").read_text() == "gone"


def test_without_a_record_nothing_goes(node: Path, work: Path) -> None:
    """Whose the files are is then not known; the next record has what is sent now."""
    again(node, work)
    shutil.rmtree(node / ".sky/synced")
    (work / "sub/gone").unlink()
    assert again(node, work).removed == 0
    assert (node / "sky_workdir/sub/gone").exists()
    assert again(node, work).skipped


def test_a_damaged_record_removes_nothing(node: Path, work: Path) -> None:
    """One that cannot be read is replaced."""
    again(node, work)
    (record,) = (node / ".sky/synced").iterdir()
    record.write_bytes(b"what\nf 4 five six\0")
    (work / "sub/gone").unlink()
    assert again(node, work).removed == 0
    assert again(node, work).skipped


def test_a_record_reaches_nothing_outside_of_its_tree(node: Path, work: Path) -> None:
    """A path in it that climbs is none."""
    again(node, work)
    (record,) = (node / ".sky/synced").iterdir()
    (node / "victim").write_text("four")
    found = (node / "victim").stat()
    record.write_bytes(b"what\nf %d %d ../victim\0" % (found.st_size, found.st_mtime_ns))
    again(node, work)
    assert (node / "victim").exists()


def test_a_tree_that_is_no_mirror_removes_nothing(node: Path, work: Path) -> None:
    """What is merely put somewhere leaves what an earlier one put."""

    def put() -> None:
        plan = plan_sync(str(work), git=None)
        trees = tuple(attrs.evolve(tree, mirror=False) for tree in plan.trees)
        deliver(node, attrs.evolve(plan, trees=trees))

    put()
    (work / "sub/gone").unlink()
    put()
    assert (node / "sky_workdir/sub/gone").exists()
    assert not (node / ".sky/synced").exists()


def test_a_mount_does_not_overwrite_foreign_files(node: Path, work: Path) -> None:
    """Where nothing was ever put, a file of the same name is somebody's: an error with host and path, and it stays."""
    (node / "data").mkdir()
    (node / "data/keep").write_text("somebody's")
    with pytest.raises(StagingError, match="did not put there") as caught:
        deliver(node, plan_sync(None, {"~/data": str(work)}, git=None))
    assert caught.value.path == str(node / "data/keep")
    assert (node / "data/keep").read_text() == "somebody's"


def test_a_mount_lies_beside_foreign_files(node: Path, work: Path) -> None:
    """Files with other names are let be, then and later."""
    (node / "data").mkdir()
    (node / "data/theirs").write_text("somebody's")
    for _time in range(2):
        deliver(node, plan_sync(None, {"~/data": str(work)}, git=None))
        (work / "sub/gone").unlink(missing_ok=True)
    assert sorted(os.listdir(node / "data")) == ["keep", "sub", "theirs"]
