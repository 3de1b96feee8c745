"""Snapshots and many users at the same moment: one copy, one hash, nothing half-made, nothing taken from under anybody."""

from __future__ import annotations

import io
import json
import os
import tarfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from skylib.errors import StagingError
from skylib.events import Event
from skylib.locks import Locks
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.ops import execute, launch, lifecycle
from skylib.paths import SkyHome
from skylib.session import Session
from skylib.staging.plan import plan_sync
from skylib.staging.remote import probe
from skylib.staging.snapshot import Snapshots
from skylib.transport.base import Completed
from skylib.transport.scripted import Call
from tests.doom import Doom, Wires
from tests.processes import Child, run_at_once
from tests.scripted_node import ScriptedHost, ScriptedLab

PROCESSES, THREADS, FILES = 8, 4, 60
LAUNCHES = 10
MANY = 1 << 40
PATIENCE_S = 120.0
INFRA = "ssh/lab"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A workdir of some files."""
    root = tmp_path / "work"
    root.mkdir()
    for number in range(FILES):
        (root / f"f{number}").write_text(f"{number}")
    return root


class Stager:
    """Stages one workdir, as each process does that has this home."""

    def __init__(self, home: Path, work: Path, *, max_bytes: float = MANY) -> None:
        self.folder = home / "mounts"
        self.work = work
        locks = Locks(SkyHome(home))
        self.snapshots = Snapshots(
            self.folder,
            hold=lambda scope: locks.hold(scope, operation="staging", timeout_s=PATIENCE_S),
            max_bytes=max_bytes,
        )

    def stage(self, look: Callable[[Path], None] = lambda tree: None) -> dict[str, int]:
        """Stage it, look at the tree; trees made and hashed, files copied and linked, and the inode of the first file."""
        seen: list[Event] = []
        began_ns = time.time_ns()
        plan = plan_sync(str(self.work), git=None)
        with self.snapshots.staged(plan, scanned_ns=began_ns, events=seen.append) as staged:
            self.snapshots.content_digest(staged.trees[0], seen.append)
            tree = Path(staged.trees[0].manifest.source)
            look(tree)
            inode = (tree / "f0").stat().st_ino
        ended = {event.step: event.facts for event in seen if event.seconds is not None}
        facts = ended["files.stage"]
        return {
            **{name: int(str(facts[name])) for name in ("trees", "copied", "linked")},
            "hashed": int("files.hash" in ended),
            "inode": inode,
        }


def test_threads_and_processes_stage_one_tree_once(tmp_path: Path, work: Path) -> None:
    """All at the same moment: it is copied and hashed by one of them, and all have the very same files."""

    def run() -> bytes:
        stager = Stager(tmp_path / "home", work)
        with ThreadPoolExecutor(THREADS) as pool:
            return json.dumps([each.result() for each in [pool.submit(stager.stage) for _ in range(THREADS)]]).encode()

    said = [each for part in run_at_once([run] * PROCESSES, timeout_s=PATIENCE_S) for each in json.loads(part)]
    assert len(said) == PROCESSES * THREADS
    assert [sum(each[name] for each in said) for name in ("trees", "copied", "hashed")] == [1, FILES, 1]
    assert len({each["inode"] for each in said}) == 1
    assert len(os.listdir(tmp_path / "home/mounts")) == 1


def test_nothing_goes_while_it_is_used_and_edits_go_on(tmp_path: Path, work: Path) -> None:
    """With no room at all, a writer, and everybody sweeping: each has all files of a tree, and in the end none is left."""
    ended = threading.Event()

    def edit() -> None:
        number = 0
        while not ended.wait(0.002):
            number += 1
            (tmp_path / "beside").write_text(f"{number:06}")
            (tmp_path / "beside").replace(work / f"f{number % FILES}")

    def run() -> bytes:
        stager = Stager(tmp_path / "home", work, max_bytes=0)

        def look(tree: Path) -> None:
            time.sleep(0.01)
            assert [path.read_text().isdigit() for path in tree.iterdir()] == [True] * FILES

        for _round in range(8):
            stager.stage(look)
        return b"ok"

    writer = threading.Thread(target=edit)
    writer.start()
    try:
        assert run_at_once([run] * 4, timeout_s=PATIENCE_S) == [b"ok"] * 4
    finally:
        ended.set()
        writer.join()
    assert os.listdir(tmp_path / "home/mounts") == []


def test_a_killed_process_leaves_nothing_half_staged(tmp_path: Path, work: Path) -> None:
    """Killed at many moments: what has a name is whole, and the next removes the rest."""
    whole = {f"f{number}": f"{number}" for number in range(FILES)}

    def run(child: Child) -> None:
        child.say(b"r")
        Stager(tmp_path / "home", work).stage()

    for moment in range(12):
        os.utime(work / "f0")  # another state
        child = Child(run)
        child.heard()
        time.sleep(0.004 * moment)
        child.kill()
        child.ended()
        for folder in (tmp_path / "home/mounts").glob("[0-9a-f]*"):
            assert {path.name: path.read_text() for path in (folder / "tree").iterdir()} == whole
    Stager(tmp_path / "home", work).stage()
    assert [name for name in os.listdir(tmp_path / "home/mounts") if name.startswith(".")] == []


class Taker:
    """A host in memory that has no files yet, and keeps the files that are sent to it: path in the archive -> content."""

    def __init__(self, host: ScriptedHost) -> None:
        self.taken: dict[str, str] = {}
        self._asks = probe(()).script
        host.teach("sh", self._answer)

    def _answer(self, call: Call) -> bytes | Completed:
        if call.command.script == self._asks:
            return b"\0-\0none\0.\0"
        with tarfile.open(fileobj=io.BytesIO(call.stdin)) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content is not None and not member.name.startswith("record/"):
                    self.taken[member.name] = content.read().decode()
        return b""


def make_session(
    home: Path, lab: ScriptedLab, doom: Doom, *, events: Callable[[Event], None] | None = None, max_gib: float = 20
) -> Session:
    home.mkdir(mode=0o700, exist_ok=True)
    home.joinpath("ssh_node_pools.yaml").write_text(lab.pool_yaml())
    config: Mapping[str, object] = {"staging": {"max_gib": max_gib}}
    return Session(home, config=config, transports=Wires(lab, doom), events=events)


class Editor(Doom):
    """Does something to the workdir whenever a host is asked to do `what`."""

    def __init__(self, what: str, edit: Callable[[], object]) -> None:
        super().__init__()
        self._what = what
        self._edit = edit

    def act(self, what, effect, *, host=None):  # type: ignore[no-untyped-def]
        if what == self._what:
            self._edit()
        return super().act(what, effect, host=host)


def test_an_edit_during_provisioning_changes_nothing(tmp_path: Path, work: Path) -> None:
    """What is sent to the hosts is what was there when launch was called: no edit, no removal, no new file."""
    lab = ScriptedLab(1)
    taker = Taker(lab.hosts["h1"])

    def edit() -> None:
        (work / "f1").write_text("edited")
        (work / "f2").unlink(missing_ok=True)
        (work / "new").write_text("new")

    session = make_session(tmp_path / "sky", lab, Editor("claim", edit), max_gib=0)
    task = Task(run="true", setup="true", workdir=str(work), resources=Resources(infra=INFRA))
    launch.launch(session, task, "c", launch.Options())
    session.close()
    sent = {name.rpartition("/")[2]: content for name, content in taker.taken.items()}
    assert sent.pop("complete") == ""
    assert sent == {f"f{number}": f"{number}" for number in range(FILES)}


def test_a_launch_that_waits_for_capacity_keeps_its_snapshot(tmp_path: Path, work: Path) -> None:
    """Between the tries the workdir changes and all unused snapshots are removed: the first state is sent."""
    lab = ScriptedLab(1)
    taker = Taker(lab.hosts["h1"])
    other = make_session(tmp_path / "sky", lab, Doom(), max_gib=0)
    plain = Task(run="true", resources=Resources(infra=INFRA))
    launch.launch(other, plain, "holds", launch.Options())

    def give_way(event: Event) -> None:
        if event.step == "provision.wait_for_capacity" and (work / "f1").read_text() == "1":
            (work / "f1").write_text("edited")
            execute.exec_(other, Task(run="true", workdir=str(work)), "holds")
            taker.taken.clear()
            lifecycle.down(other, "holds")

    session = make_session(tmp_path / "sky", lab, Doom(), events=give_way, max_gib=0)
    task = Task(run="true", workdir=str(work), resources=Resources(infra=INFRA))
    launch.launch(session, task, "c", launch.Options(retry_until_up=True, timeout_s=60))
    assert [content for name, content in taker.taken.items() if name.endswith("/f1")] == ["1"]
    session.close()
    other.close()


def test_launches_of_one_workdir_stage_and_hash_it_once(tmp_path: Path, work: Path) -> None:
    """Ten at once, each to a cluster of its own: one copy, one hash, and each host has all files."""
    lab = ScriptedLab(LAUNCHES)
    takers = [Taker(host) for host in lab.hosts.values()]
    seen: list[Event] = []
    session = make_session(tmp_path / "sky", lab, Doom(), events=seen.append)
    task = Task(run="true", setup="true", workdir=str(work), resources=Resources(infra=INFRA))

    def run(number: int) -> None:
        options = launch.Options(retry_until_up=True, timeout_s=PATIENCE_S)  # a host may be taken by another launch first
        launch.launch(session, task, f"c{number}", options)

    with ThreadPoolExecutor(LAUNCHES) as pool:
        for each in [pool.submit(run, number) for number in range(LAUNCHES)]:
            each.result(PATIENCE_S)
    session.close()
    staged = [event.facts for event in seen if event.step == "files.stage" and event.seconds is not None]
    assert len(staged) == LAUNCHES
    assert sum(int(str(facts["copied"])) for facts in staged) == FILES
    assert sum(event.step == "files.hash" and event.seconds is not None for event in seen) == 1
    assert all(len(taker.taken) == FILES + 1 for taker in takers)


def test_a_home_without_room_fails_before_a_host_is_touched(tmp_path: Path, work: Path) -> None:
    """The place for snapshots cannot be made: the launch says so, and no host was claimed."""
    lab = ScriptedLab(1)
    session = make_session(tmp_path / "sky", lab, Doom())
    (tmp_path / "sky/api_server").write_text("a file")
    task = Task(run="true", workdir=str(work), resources=Resources(infra=INFRA))
    with pytest.raises(StagingError, match="cannot stage") as caught:
        launch.launch(session, task, "c", launch.Options())
    assert str(tmp_path / "sky") in str(caught.value)
    assert session.store.clusters() == []
    assert lab.hosts["h1"].left() == []
    session.close()
