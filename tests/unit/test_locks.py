"""Named locks: who waits, who is named, and what a death or a fork does to them."""

from __future__ import annotations

import os
import pickle
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from skylib.errors import ClusterBusy, LockTimeout, StateError
from skylib.locks import LockHolder, Locks, lock_file_name
from skylib.paths import SkyHome
from tests.processes import Child, run_at_once


@pytest.fixture
def home(tmp_path: Path) -> SkyHome:
    return SkyHome(tmp_path / "home")


@pytest.fixture
def locks(home: SkyHome) -> Locks:
    return Locks(home)


def _holding(home: SkyHome, scope: str) -> Child:
    """A child that holds the lock until it is let go."""

    def hold(child: Child) -> None:
        with Locks(home).hold(scope, operation="launch"):
            child.say(b"held")
            child.wait_for_go()

    child = Child(hold)
    assert child.heard() == b"held"
    return child


def test_making_locks_makes_no_file(home: SkyHome, locks: Locks) -> None:
    """The folder comes with the first lock, private."""
    assert not home.root.exists()
    with locks.hold("pool:lab", operation="launch"):
        pass
    assert stat.S_IMODE(home.locks.stat().st_mode) == 0o700
    (file,) = home.locks.iterdir()
    assert (file.name, stat.S_IMODE(file.stat().st_mode)) == ("pool%3alab.lock", 0o600)


def test_a_timeout_names_the_holder(home: SkyHome, locks: Locks) -> None:
    """Process, machine, operation and since when, in the message and as facts."""
    began = time.time()
    child = _holding(home, "pool:lab")
    with pytest.raises(LockTimeout) as caught:
        with locks.hold("pool:lab", operation="down", timeout_s=0):
            pass
    child.go()
    assert child.ended() == 0
    holder = caught.value.holder
    assert isinstance(holder, LockHolder)
    assert (holder.pid, holder.host, holder.operation) == (child.pid, socket.gethostname(), "launch")
    assert began <= caught.value.since <= time.time()
    assert f"pid {child.pid}" in str(caught.value)
    assert caught.value.retryable
    assert isinstance(caught.value, TimeoutError)


def test_a_busy_cluster_is_cluster_busy(home: SkyHome, locks: Locks) -> None:
    """With the cluster's name, and it survives pickling."""
    child = _holding(home, "cluster:train")
    with pytest.raises(ClusterBusy) as caught:
        with locks.hold("cluster:train", operation="down", timeout_s=0.05):
            pass
    child.go()
    child.ended()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.cluster, again.holder.operation, again.since) == ("train", "launch", again.holder.since)


def test_who_waits_gets_the_lock_when_it_is_free(home: SkyHome, locks: Locks) -> None:
    """Within its timeout."""
    child = _holding(home, "x")
    threading.Timer(0.1, child.go).start()
    with locks.hold("x", operation="down", timeout_s=20):
        pass
    assert child.ended() == 0


def test_a_killed_holder_frees_the_lock(home: SkyHome, locks: Locks) -> None:
    """SIGKILL included: the kernel lets go, nobody has to clean up."""
    child = _holding(home, "cluster:train")
    child.kill()
    assert child.ended() == -9
    with locks.hold("cluster:train", operation="down", timeout_s=5):
        holder = locks.holder("cluster:train")
        assert holder is not None
        assert holder.pid == os.getpid()


def test_the_file_stays_and_names_nobody_when_free(home: SkyHome, locks: Locks) -> None:
    """Lock files are never deleted."""
    with locks.hold("x", operation="launch"):
        assert locks.holder("x") is not None
    assert locks.holder("x") is None
    assert [file.name for file in home.locks.iterdir()] == ["x.lock"]


def test_one_thread_may_take_its_lock_again(home: SkyHome, locks: Locks) -> None:
    """It is free after the outermost block, not before."""
    with locks.hold("x", operation="launch"):
        with locks.hold("x", operation="sync", timeout_s=0):
            pass
        with pytest.raises(LockTimeout), Locks(home).hold("x", operation="other", timeout_s=0):
            pass
    with Locks(home).hold("x", operation="other", timeout_s=0):
        pass


def test_threads_of_one_process_exclude_each_other(locks: Locks) -> None:
    """Eight threads, one counter that is read and written apart."""
    seen = [0]

    def work() -> None:
        for _ in range(5):
            with locks.hold("x", operation="count", timeout_s=60):
                before = seen[0]
                os.sched_yield()
                seen[0] = before + 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [40]


def test_threads_of_one_operation_share_by_owner(locks: Locks) -> None:
    """A token makes them one; without it the other thread has to wait."""
    answers: list[object] = []

    def take(owner: object) -> None:
        try:
            with locks.hold("x", operation="sync", timeout_s=0, owner=owner):
                answers.append("held")
        except LockTimeout:
            answers.append("refused")

    with locks.hold("x", operation="launch", owner="operation-1"):
        for owner in ("operation-1", "operation-2", None):
            thread = threading.Thread(target=take, args=(owner,))
            thread.start()
            thread.join(30)
    assert answers == ["held", "refused", "refused"]


def test_an_error_inside_releases(locks: Locks) -> None:
    """And is not changed on the way."""
    with pytest.raises(KeyError):
        with locks.hold("x", operation="launch"):
            raise KeyError("mine")
    assert locks.holder("x") is None


def test_processes_exclude_each_other(home: SkyHome, tmp_path: Path) -> None:
    """Four processes, 50 increments each of a number in a file: exact."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def work() -> bytes:
        locks = Locks(home)
        for _ in range(50):
            with locks.hold("counter", operation="count", timeout_s=60):
                counter.write_text(str(int(counter.read_text()) + 1))
        return b"ok"

    run_at_once([work] * 4)
    assert counter.read_text() == "200"


def test_a_forked_child_holds_nothing(home: SkyHome, locks: Locks) -> None:
    """It is refused while the parent holds the lock, and its leaving the block does not free the parent's."""

    def in_child(child: Child) -> None:
        try:
            with locks.hold("x", operation="child", timeout_s=0):
                child.say(b"held")
        except LockTimeout:
            child.say(b"refused")

    with locks.hold("x", operation="launch"):
        child = Child(in_child)
        assert child.heard() == b"refused"
        assert child.ended() == 0
        with pytest.raises(LockTimeout), Locks(home).hold("x", operation="other", timeout_s=0):
            pass


def test_leaving_the_block_in_a_child_does_not_free_the_parents_lock(home: SkyHome, locks: Locks) -> None:
    """A fork inside the block ends the block twice; only the parent's end counts."""
    read, write = os.pipe()
    child = 0
    with locks.hold("x", operation="launch"):
        child = os.fork()
    if child == 0:
        os.write(write, b"left")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 10) == b"left"
    os.close(read)
    os.close(write)
    with Locks(home).hold("x", operation="other", timeout_s=0):
        pass


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(home: SkyHome) -> None:
    """The descriptor that it inherited is closed at the fork: the holder's death frees the lock."""
    pids: list[int] = []

    def hold(child: Child) -> None:
        with Locks(home).hold("x", operation="launch"):
            grandchild = Child(lambda inner: inner.wait_for_go())
            child.say(str(grandchild.pid).encode())
            child.wait_for_go()

    child = Child(hold)
    pids.append(int(child.heard()))
    child.kill()
    child.ended()
    with Locks(home).hold("x", operation="down", timeout_s=5):
        pass


def test_a_lock_file_that_was_removed_is_made_anew(home: SkyHome, locks: Locks) -> None:
    """Somebody who clears the folder does not break what comes after."""
    with locks.hold("x", operation="launch"):
        pass
    (home.locks / "x.lock").unlink()
    with locks.hold("x", operation="launch"), pytest.raises(LockTimeout):
        with Locks(home).hold("x", operation="other", timeout_s=0):
            pass


def test_a_home_that_cannot_be_used_is_a_state_error(tmp_path: Path) -> None:
    """It says which path."""
    (tmp_path / "home").write_text("a file")
    with pytest.raises(StateError, match="cannot lock"):
        with Locks(SkyHome(tmp_path / "home")).hold("x", operation="launch", timeout_s=0):
            pass


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        ("cluster:train", "cluster%3atrain.lock"),
        ("cluster:Train", "cluster%3a%54rain.lock"),
        ("a/b", "a%2fb.lock"),
        ("../x", "..%2fx.lock"),
        ("%2f", "%252f.lock"),
        ("ü", "%c3%bc.lock"),
    ],
)
def test_scopes_become_file_names(scope: str, name: str) -> None:
    """Every byte that is not plain is written as %xx, capitals too."""
    assert lock_file_name(scope) == name


def test_the_empty_scope_is_refused() -> None:
    """It would name nothing."""
    with pytest.raises(ValueError, match="scope"):
        lock_file_name("")


def test_importing_does_not_import_portalocker() -> None:
    """It is loaded with the first lock."""
    code = "import sys, skylib.locks, skylib.state.sqlite; print({'portalocker', 'sqlite_utils'} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
