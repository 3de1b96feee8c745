"""What every Keeper does for `Locks`, whatever it keeps them in: who waits, who is named, what a death or a fork does."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skylib.errors import ClusterBusy, LockTimeout
from skylib.locks import LockHolder, Locks, held_grips
from skylib.paths import SkyHome
from skylib.state.advisory import AdvisoryKeeper
from tests.postgres import shared_server
from tests.processes import Child, run_at_once

# Locks of another process, Client or machine that shares them.
Opener = Callable[[], Locks]


@pytest.fixture(params=["file", "advisory"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens further Locks of the same place."""
    opened: list[Locks] = []
    home = SkyHome(tmp_path / "home")
    url = shared_server().new_database() if request.param == "advisory" else ""

    def opener() -> Locks:
        locks = Locks(home, keeper=AdvisoryKeeper(url, bound_s=10) if url else None)
        opened.append(locks)
        return locks

    yield opener
    for locks in opened:
        locks.close()


@pytest.fixture
def locks(other: Opener) -> Locks:
    return other()


def _holding(other: Opener, scope: str) -> Child:
    """A child that holds the lock until it is let go."""

    def hold(child: Child) -> None:
        with other().hold(scope, operation="launch"):
            child.say(b"held")
            child.wait_for_go()

    child = Child(hold)
    assert child.heard() == b"held"
    return child


def test_a_timeout_names_the_holder(other: Opener, locks: Locks) -> None:
    """Process, machine, operation and since when, in the message and as facts."""
    began = time.time()
    child = _holding(other, "pool:lab")
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


def test_a_busy_cluster_is_cluster_busy(other: Opener, locks: Locks) -> None:
    """With the cluster's name, and it survives pickling."""
    child = _holding(other, "cluster:train")
    with pytest.raises(ClusterBusy) as caught:
        with locks.hold("cluster:train", operation="down", timeout_s=0.05):
            pass
    child.go()
    child.ended()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.cluster, again.holder.operation, again.since) == ("train", "launch", again.holder.since)


def test_who_waits_gets_the_lock_when_it_is_free(other: Opener, locks: Locks) -> None:
    """Within its timeout."""
    child = _holding(other, "x")
    threading.Timer(0.1, child.go).start()
    with locks.hold("x", operation="down", timeout_s=20):
        pass
    assert child.ended() == 0


def test_a_killed_holder_frees_the_lock(other: Opener, locks: Locks) -> None:
    """SIGKILL included: the kernel lets go, nobody has to clean up."""
    child = _holding(other, "cluster:train")
    child.kill()
    assert child.ended() == -9
    with locks.hold("cluster:train", operation="down", timeout_s=5):
        holder = locks.holder("cluster:train")
        assert holder is not None
        assert holder.pid == os.getpid()


def test_one_thread_may_take_its_lock_again(other: Opener, locks: Locks) -> None:
    """It is free after the outermost block, not before."""
    with locks.hold("x", operation="launch"):
        with locks.hold("x", operation="sync", timeout_s=0):
            pass
        with pytest.raises(LockTimeout), other().hold("x", operation="other", timeout_s=0):
            pass
    with other().hold("x", operation="other", timeout_s=0):
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


def test_processes_exclude_each_other(other: Opener, tmp_path: Path) -> None:
    """Four processes, 50 increments each of a number in a file: exact."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def work() -> bytes:
        locks = other()
        for _ in range(50):
            with locks.hold("counter", operation="count", timeout_s=60):
                counter.write_text(str(int(counter.read_text()) + 1))
        return b"ok"

    run_at_once([work] * 4)
    assert counter.read_text() == "200"


def test_a_forked_child_holds_nothing(other: Opener, locks: Locks) -> None:
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
        with pytest.raises(LockTimeout), other().hold("x", operation="other", timeout_s=0):
            pass


def test_leaving_the_block_in_a_child_does_not_free_the_parents_lock(other: Opener, locks: Locks) -> None:
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
    with other().hold("x", operation="other", timeout_s=0):
        pass


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(other: Opener) -> None:
    """The descriptor that it inherited is closed at the fork: the holder's death frees the lock."""
    pids: list[int] = []

    def hold(child: Child) -> None:
        with other().hold("x", operation="launch"):
            grandchild = Child(lambda inner: inner.wait_for_go())
            child.say(str(grandchild.pid).encode())
            child.wait_for_go()

    child = Child(hold)
    pids.append(int(child.heard()))
    child.kill()
    child.ended()
    with other().hold("x", operation="down", timeout_s=5):
        pass


def test_nobody_is_named_once_it_is_free(locks: Locks) -> None:
    """Before, during and after."""
    assert locks.holder("x") is None
    with locks.hold("x", operation="launch"):
        assert locks.holder("x") is not None
    assert locks.holder("x") is None


def test_a_lock_that_is_held_can_be_asked_for(locks: Locks) -> None:
    """Its grip says nothing while all is well; code inside finds the grips of its operation, and none outside."""
    with locks.hold("x", operation="launch") as outer:
        with locks.hold("y", operation="launch") as inner:
            outer.check()
            inner.check()
            assert held_grips() == (outer, inner)
        assert held_grips() == (outer,)
    assert held_grips() == ()


def test_two_scopes_do_not_know_of_each_other(other: Opener, locks: Locks) -> None:
    """Names that differ in one letter are two locks; strange ones are locks, too."""
    with locks.hold("cluster:a", operation="launch"):
        for scope in ("cluster:b", "cluster:A", "pool:a", "cluster:a ", "cluster:\u00fc/../x", "c" * 500):
            with other().hold(scope, operation="launch", timeout_s=0):
                pass


def test_sixteen_threads_with_locks_of_their_own(locks: Locks) -> None:
    """They do not wait for each other."""
    failures: list[BaseException] = []
    inside = threading.Barrier(16)

    def work(number: int) -> None:
        try:
            with locks.hold(f"cluster:{number}", operation="launch", timeout_s=0):
                inside.wait(30)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
