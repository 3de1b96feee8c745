"""A client that is killed in the middle: the next verb on that cluster converges."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

import skylib
from skylib.errors import ClusterNotUp
from skylib.models.cluster import ClusterStatus
from skylib.models.receipts import Settled
from tests.lab import Lab

# Does a verb and dies: at a step's phase, or right before the store's method ("store", name).
VERB = """
import os, sys
import skylib
from skylib.state.sqlite import SqliteStore

home, verb, step, phase, number = sys.argv[1:6]

def die(*args, **kwargs):
    os.kill(os.getpid(), int(number))

def sink(event):
    if (event.step, event.phase.value) == (step, phase):
        die()

client = skylib.Client(home, events=sink)
task = skylib.Task(run="true", num_nodes=2, resources=skylib.Resources(infra="ssh/lab"))
act = {
    "launch": lambda: client.launch(task, "c"),
    "stop": lambda: client.stop("c"),
    "start": lambda: client.start("c"),
    "down": lambda: client.down("c"),
    "autostop": lambda: client.autostop("c", 30, down=True),
    "exec": lambda: client.exec("echo here", "c", key="mine"),
}[verb]
if step == "store":
    setattr(SqliteStore, phase, die)
act()
"""


def _run(lab: Lab, verb: str, step: str, phase: str, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", VERB, str(lab.home), verb, step, phase, str(int(number))]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=False)


def _killed(lab: Lab, verb: str, step: str, phase: str) -> None:
    """A client that does the verb is killed there."""
    died = _run(lab, verb, step, phase, signal.SIGKILL)
    assert died.returncode == -signal.SIGKILL, died.stderr


def _settled(lab: Lab) -> skylib.Reconciled:
    """What reconcile() does of the one thing that is left; a second time there is nothing to do."""
    (done,) = lab.client.reconcile()
    assert lab.client.reconcile() == [], done
    return done


def _on_demand(step: str, phase: str) -> object:
    """A point that the kill sweep draws from as well: left out of the suite, run by `-m slow`."""
    return pytest.param(step, phase, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("step", "phase"),
    [_on_demand("runtime.files", "started"), ("runtime.ready", "started"), _on_demand("runtime.start", "finished")],
)
def test_a_killed_launch_is_undone_or_finished_by_the_next(lab: Lab, step: str, phase: str):
    """kill -9 of the client at a step of the launch: the same launch again comes up, and down leaves nothing."""
    _killed(lab, "launch", step, phase)
    job = lab.client.launch(lab.task("echo here", num_nodes=2), "c")
    assert job.wait(timeout_s=60).status is skylib.JobStatus.SUCCEEDED
    lab.client.down("c")
    lab.assert_nothing_left()


def test_a_killed_launch_can_be_taken_down(lab: Lab):
    """kill -9 while Ray starts: down finds and ends what was begun, and releases the hosts."""
    _killed(lab, "launch", "runtime.ready", "started")
    assert lab.client.status("c")[0].status is skylib.ClusterStatus.INIT
    lab.client.down("c")
    lab.assert_nothing_left()


def test_an_interrupted_launch_leaves_nothing(lab: Lab):
    """Ctrl-C while Ray starts: the launch undoes itself before KeyboardInterrupt leaves it."""
    died = _run(lab, "launch", "runtime.ready", "started", signal.SIGINT)
    assert "KeyboardInterrupt" in died.stderr
    lab.assert_nothing_left()


def test_a_killed_launch_that_stands_is_finished_as_it_would_have_been(lab: Lab):
    """kill -9 when Ray has answered: reconcile() reads from the nodes what the launch would have written down."""
    lab.client.launch(lab.task("true", num_nodes=2), "c").wait()
    (usual,) = lab.client.status("c")
    lab.client.down("c")
    _killed(lab, "launch", "runtime.start", "finished")
    done = _settled(lab)
    assert (done.done, done.status) == (Settled.FINISHED, ClusterStatus.UP)
    (record,) = lab.client.status("c")
    assert _lasting(record) == _lasting(usual)
    assert all(node.ray_node_id for node in record.nodes)
    assert lab.client.exec("echo here", "c").wait(timeout_s=60).status is skylib.JobStatus.SUCCEEDED
    lab.client.down("c")
    lab.assert_nothing_left()


def _lasting(record: skylib.ClusterRecord) -> skylib.ClusterRecord:
    """Without what is another one's in each life of a cluster."""
    nodes = tuple(attrs.evolve(node, ray_node_id="") for node in record.nodes)
    return attrs.evolve(record, nodes=nodes, cluster_id="", launched_at=0.0, status_since=0.0)


@pytest.mark.parametrize(
    ("step", "phase"),
    [("provision.survey", "finished"), _on_demand("runtime.files", "started"), ("runtime.ready", "started")],
)
def test_a_killed_launch_is_settled_without_another_launch(lab: Lab, step: str, phase: str):
    """reconcile() alone finishes what stands and undoes the rest; after a down nothing is left of it."""
    _killed(lab, "launch", step, phase)
    for done in lab.client.reconcile():
        assert done.done in (Settled.FINISHED, Settled.UNDONE)
        assert (done.status is None) == (done.done is Settled.UNDONE)
    assert lab.client.reconcile() == []
    for record in lab.client.status():
        lab.client.down(record.name)
    lab.assert_nothing_left()


@pytest.fixture
def cluster(lab: Lab) -> Lab:
    """A cluster `c` on two of the hosts."""
    lab.client.launch(lab.task("true", num_nodes=2), "c").wait()
    return lab


@pytest.mark.parametrize(
    ("step", "phase"),
    [_on_demand("teardown.end", "started"), ("teardown.end", "finished"), _on_demand("store", "settle")],
)
def test_a_killed_stop_is_finished(cluster: Lab, step: str, phase: str):
    """Every process ends, the cluster is STOPPED, and it can be started again."""
    _killed(cluster, "stop", step, phase)
    done = _settled(cluster)
    assert (done.operation, done.done, done.status) == ("stop", Settled.FINISHED, ClusterStatus.STOPPED)
    assert [cluster.ours(host) for host in cluster.hosts] == [[], [], []]
    assert cluster.client.start("c").status is ClusterStatus.UP
    cluster.client.down("c")
    cluster.assert_nothing_left()


@pytest.mark.parametrize(
    ("step", "phase"),
    [_on_demand("runtime.files", "started"), ("runtime.ready", "started"), _on_demand("runtime.start", "finished")],
)
def test_a_killed_start_is_up_or_stopped(cluster: Lab, step: str, phase: str):
    """What stands is UP; else everything is ended, and the next start brings it up."""
    cluster.client.stop("c")
    _killed(cluster, "start", step, phase)
    done = _settled(cluster)
    assert (done.done, done.status) in (
        (Settled.FINISHED, ClusterStatus.UP),
        (Settled.UNDONE, ClusterStatus.STOPPED),
    )
    assert cluster.client.start("c").status is ClusterStatus.UP
    cluster.client.down("c")
    cluster.assert_nothing_left()


@pytest.mark.parametrize(
    ("step", "phase"),
    [
        ("teardown.end", "finished"),
        _on_demand("teardown.release", "started"),
        _on_demand("teardown.release", "finished"),
        ("store", "remove_cluster"),
    ],
)
def test_a_killed_down_is_finished(cluster: Lab, step: str, phase: str):
    """Nothing is left of the cluster, and its job's log is here."""
    _killed(cluster, "down", step, phase)
    done = _settled(cluster)
    assert (done.operation, done.done, done.status) == ("down", Settled.FINISHED, None)
    cluster.assert_nothing_left()


def test_a_killed_autostop_is_set(cluster: Lab):
    """kill -9 after the agent was told and before it was written down: both have the timer."""
    _killed(cluster, "autostop", "store", "settle")
    assert _settled(cluster).done is Settled.FINISHED
    (record,) = cluster.client.status("c")
    assert record.autostop is not None
    assert (record.autostop.idle_minutes, record.autostop.down) == (30, True)
    cluster.client.down("c")
    cluster.assert_nothing_left()


def test_a_killed_exec_is_told_by_its_job(cluster: Lab):
    """kill -9 after the job was queued: reconcile() says which one it is, and it runs once."""
    _killed(cluster, "exec", "store", "settle_intent")
    done = _settled(cluster)
    assert (done.operation, done.done) == ("exec", Settled.NOTED)
    again = cluster.client.exec("echo here", "c", key="mine")
    assert (again.adopted, again.id) == (True, done.job_id)
    cluster.client.down("c")
    cluster.assert_nothing_left()


@pytest.mark.parametrize(
    ("verb", "step", "phase"), [("launch", "runtime.start", "finished"), ("down", "teardown.end", "started")]
)
def test_what_cannot_be_told_is_kept_until_the_host_is_back(lab: Lab, verb: str, step: str, phase: str):
    """With a host cut off nothing is dropped, verbs say why they do not go on, and once it is back it is settled."""
    if verb != "launch":
        lab.client.launch(lab.task("true", num_nodes=2), "c").wait()
    _killed(lab, verb, step, phase)
    (record,) = lab.client.status("c")
    cut = next(host for host in lab.hosts if record.nodes[1].host in (host.name, host.ip))
    cut.cut()
    try:
        (done,) = lab.client.reconcile()
        assert (done.done, done.status) == (Settled.KEPT, record.status)
        with pytest.raises(ClusterNotUp, match="was not ended"):
            lab.client.launch(lab.task("true", num_nodes=2), "c")
    finally:
        cut.restore()
    cut.wait_ssh()
    done = _settled(lab)
    assert done.done in (Settled.FINISHED, Settled.UNDONE)
    for left in lab.client.status():
        lab.client.down(left.name)
    lab.assert_nothing_left()
