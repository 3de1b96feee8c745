"""What `start` does for a cluster that is not whole, and verbs that find no agent; on hosts in memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skylib.errors import AgentError, ClusterNotUp
from skylib.models.cluster import ClusterStatus
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.ops import execute, launch, lifecycle
from skylib.ops.revive import HEAL_S
from skylib.session import Session
from tests.doom import Doom, Wires
from tests.scripted_node import ScriptedHost, ScriptedLab

TASK = Task(run="true", num_nodes=2, resources=Resources(infra="ssh/lab"))


@pytest.fixture
def lab() -> ScriptedLab:
    return ScriptedLab(2)


@pytest.fixture
def session(tmp_path: Path, lab: ScriptedLab) -> Iterator[Session]:
    """With a cluster `c` on both hosts."""
    home = tmp_path / "sky"
    home.mkdir(mode=0o700)
    home.joinpath("ssh_node_pools.yaml").write_text(lab.pool_yaml())
    home.joinpath("config.yaml").write_text("provision:\n  timeout_s: 5\nagent:\n  call_timeout_s: 2\n")
    made = Session(home, transports=Wires(lab, Doom()))
    launch.launch(made, TASK, "c", launch.Options())
    yield made
    made.close()


def end(host: ScriptedHost, kind: str) -> None:
    with host.lab.changed:
        host.kill([each for each in host.processes.values() if each.kind == kind])


def test_a_start_of_what_is_whole_does_nothing(session: Session):
    """No action, and the cluster as it is."""
    receipt = lifecycle.start(session, "c")
    assert (receipt.name, receipt.status, receipt.actions) == ("c", ClusterStatus.UP, ())


@pytest.mark.parametrize("hosts", [("h1",), ("h2",), ("h1", "h2")])
def test_agents_that_died_are_started_and_told(session: Session, lab: ScriptedLab, hosts: tuple[str, ...]):
    """On head and worker alike; Ray's processes stay."""
    rays = [host.kinds(session.require("c").cluster_id).count("ray") for host in lab.hosts.values()]
    for name in hosts:
        end(lab.hosts[name], "agent")
    receipt = lifecycle.start(session, "c")
    assert receipt.actions == tuple(f"started the agent on {name}" for name in hosts)
    assert [host.kinds(session.require("c").cluster_id).count("ray") for host in lab.hosts.values()] == rays


def test_what_cannot_be_healed_is_brought_up_anew_and_told(session: Session, lab: ScriptedLab):
    """A Ray that nobody brings back: everything is ended, node by node, and begun again."""
    end(lab.hosts["h2"], "ray")
    receipt = lifecycle.start(session, "c")
    assert receipt.status is ClusterStatus.UP
    assert receipt.actions[-1] == "brought it up on h1, h2"
    assert receipt.actions[0].startswith("ended what was left of it on h1")


@pytest.mark.parametrize("failing", ["h1", "h2"])
def test_a_node_that_cannot_start_its_ray_is_not_waited_for(session: Session, lab: ScriptedLab, failing: str):
    """Head or worker: its own agent says so, and why, which is told with the host; the rest of the time is not waited."""
    for host in lab.hosts.values():
        host.ray_said = {"state": "up", "restarts": 0, "last_error": ""}
    lab.hosts[failing].ray_said = {"state": "failing", "restarts": 2, "last_error": "`ray start` exited 1: no space"}
    end(lab.hosts[failing], "ray")
    execute.exec_(session, "sleep", "c")
    began = time.monotonic()
    with pytest.raises(ClusterNotUp, match="jobs may still run") as caught:
        launch.launch(session, TASK, "c", launch.Options())
    assert time.monotonic() - began < HEAL_S / 3
    assert caught.value.evidence == f"{failing}: `ray start` exited 1: no space"


def test_a_worker_that_still_tries_is_waited_for(session: Session, lab: ScriptedLab):
    """Its Ray starts just now: it is there a moment later, and nothing is ended for it."""
    for host in lab.hosts.values():
        host.ray_said = {"state": "up", "restarts": 0, "last_error": ""}
    worker, cluster_id = lab.hosts["h2"], session.require("c").cluster_id
    worker.ray_said = {"state": "starting", "restarts": 1, "last_error": "`ray start` exited 1: no space"}
    end(worker, "ray")
    end(worker, "agent")

    def come_up() -> None:
        with lab.changed:
            worker.begin("ray", cluster_id)

    later = threading.Timer(1.0, come_up)
    later.start()
    try:
        receipt = lifecycle.start(session, "c")
    finally:
        later.join()
    assert receipt.actions == ("started the agent on h2", "brought Ray back on h2")


@pytest.mark.parametrize(
    "verb",
    [
        lambda session: execute.queue(session, "c"),
        lambda session: execute.job(session, "c", 1),
        lambda session: execute.wait(session, "c", 1),
        lambda session: execute.cancel(session, "c", [1]),
        lambda session: execute.exec_(session, "true", "c"),
    ],
    ids=["queue", "job", "wait", "cancel", "exec"],
)
def test_a_verb_that_finds_no_agent_brings_it_back(session: Session, lab: ScriptedLab, verb: Callable[[Session], object]):
    """On a cluster that is UP; the verb is answered."""
    end(lab.hosts["h1"], "agent")
    verb(session)
    assert lab.hosts["h1"].agent is not None


def test_an_agent_that_left_by_itself_is_not_brought_back(session: Session, lab: ScriptedLab):
    """The cluster has stopped for want of work: a question does not wake it."""
    execute_autostop(lab)
    with pytest.raises(AgentError, match="does not answer"):
        execute.queue(session, "c")
    assert lab.hosts["h1"].agent is None


def execute_autostop(lab: ScriptedLab) -> None:
    """As the head's agent does, given a timer."""
    head = lab.hosts["h1"].agent
    assert head is not None
    head._autostop({"idle_minutes": 1, "down": False}, lambda item: None)
    head.idle()


def test_an_agent_is_left_alone_while_another_operation_is_on_the_cluster(session: Session, lab: ScriptedLab):
    """Whoever ends the cluster just now would not see the new one."""
    end(lab.hosts["h1"], "agent")
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with session.hold("c", "down"):
            held.set()
            go.wait(20)

    other = threading.Thread(target=hold)
    other.start()
    assert held.wait(10)
    try:
        with pytest.raises(AgentError, match="does not answer"):
            execute.queue(session, "c")
    finally:
        go.set()
        other.join()
    assert lab.hosts["h1"].agent is None


def test_a_cluster_that_was_not_whole_is_asked_again(session: Session, lab: ScriptedLab):
    """INIT since a look while Ray was healing: exec looks again before it refuses."""
    record = session.require("c")
    session.store.settle("c", ClusterStatus.INIT, at=session.clock(), cluster_id=record.cluster_id)
    assert execute.exec_(session, "true", "c").job_id == 2
    assert session.require("c").status is ClusterStatus.UP
    session.store.settle("c", ClusterStatus.INIT, at=session.clock(), cluster_id=record.cluster_id)
    end(lab.hosts["h2"], "ray")
    with pytest.raises(ClusterNotUp, match="INIT"):
        execute.exec_(session, "true", "c")
