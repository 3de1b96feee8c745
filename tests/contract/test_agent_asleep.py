"""What an agent promises that is woken only to be read: it answers from what is written down, and begins nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.agent_harness import AgentSaid, Client, InProcessAgent, NodeFolders, end_everything, run_daemon, until


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[InProcessAgent]:
    agent = InProcessAgent(NodeFolders(tmp_path, count=2))
    agent.begin()
    yield agent
    agent.close()


def fall_asleep(agent: InProcessAgent) -> Client:
    agent.stop()
    agent.options = {"asleep": True}
    agent.begin()
    return Client(agent.head.socket)


def jobs_table(agent: InProcessAgent) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(Path(agent.head.sky, "jobs.db"))
    try:
        return connection.execute("SELECT * FROM jobs").fetchall() + connection.execute("SELECT * FROM config").fetchall()
    finally:
        connection.close()


def test_history_is_read(agent: InProcessAgent) -> None:
    """Jobs and their logs are as they were; who asks can see that the agent is asleep."""
    client = Client(agent.head.socket)
    job = client.done(client.submit("echo one; exit 3"))
    client = fall_asleep(agent)
    assert client.hello["hello"]["asleep"] is True
    assert client.call("info")["asleep"] is True
    assert client.call("queue", all=True)["jobs"] == [job]
    assert client.call("job", job_id=None)["job"] == job
    assert client.done(job["job_id"]) == job
    assert client.text(job["job_id"]) == "one\n"
    assert "run.log" in [file["name"] for file in client.call("log_files", job_id=job["job_id"])["files"]]


def test_nothing_begins_and_nothing_changes(agent: InProcessAgent) -> None:
    """Queued and running jobs stay what they are, and the record of the stop stays where it is."""
    client = Client(agent.head.socket)
    running = client.submit("echo up; sleep 60", num_nodes=2, demand={"CPU": 4})
    until(lambda: len(client.log(running, follow=False)) == 2)
    queued = client.submit("touch began")
    agent.stop()
    before = jobs_table(agent)
    stopped = Path(agent.head.sky, "stopped.json")
    stopped.write_text('{"reason": "autostop"}')
    client = fall_asleep(agent)
    assert [job["status"] for job in client.call("queue", all=True)["jobs"]] == ["RUNNING", "PENDING"]
    assert client.done(queued)["status"] == "PENDING"
    assert len(client.log(running, follow=True)) == 2
    assert client.call("info")["active_jobs"] == 0
    agent.stop()
    assert jobs_table(agent) == before
    assert stopped.exists()
    assert not Path(agent.head.root, "sky_workdir", "began").exists()


@pytest.mark.parametrize(
    ("verb", "args"),
    [
        ("submit", {"job": {"run": "true"}}),
        ("cancel", {"all": True}),
        ("autostop", {"idle_minutes": 1}),
        ("stop_nodes", {}),
        ("local_stop", {}),
        ("ready", {}),
    ],
)
def test_what_would_change_something_is_refused(agent: InProcessAgent, verb: str, args: dict[str, object]) -> None:
    """With a kind of its own, so that the caller knows that the cluster is to be started first."""
    client = fall_asleep(agent)
    with pytest.raises(AgentSaid) as caught:
        client.call(verb, **args)
    assert caught.value.kind == "asleep"


def test_it_leaves_when_nobody_reads(agent: InProcessAgent) -> None:
    """Some time after the last connection has gone, not before."""
    agent.stop()
    agent.options = {"asleep": True, "asleep_s": 0.05}
    agent.begin()
    client = Client(agent.head.socket)
    assert client.call("info")["asleep"] is True
    client.close()
    until(lambda: not os.path.exists(agent.head.socket))


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[NodeFolders]:
    folders = NodeFolders(tmp_path, count=1)
    yield folders
    end_everything(folders.write())


def holder(folders: NodeFolders) -> tuple[int, bool]:
    said = json.loads((folders.base / "n0" / ".sky" / "agent.lock").read_text())
    return said["pid"], said["asleep"]


def test_one_that_is_awake_takes_the_place_of_one_that_is_not(folders: NodeFolders) -> None:
    """And forgets the stop; the sleeper is single while it is there, and never replaces an agent that works."""
    config = folders.write()[0]
    stopped = Path(config.sky, "stopped.json")
    stopped.write_text("{}")
    run_daemon(sys.executable, config, "--asleep")
    first = holder(folders)
    run_daemon(sys.executable, config, "--asleep")
    assert holder(folders) == first
    assert first[1] is True
    assert stopped.exists()
    run_daemon(sys.executable, config)
    awake = holder(folders)
    assert (awake[0] != first[0], awake[1]) == (True, False)
    assert not stopped.exists()
    assert Client(config.socket).call("info")["asleep"] is False
    run_daemon(sys.executable, config, "--asleep")
    assert holder(folders) == awake


def test_a_sleeper_of_another_cluster_makes_room(folders: NodeFolders) -> None:
    """One who reads another cluster's history on the same node is not in the way."""
    run_daemon(sys.executable, folders.write()[0], "--asleep")
    other = dataclasses.replace(folders, cluster_id="another")
    config = other.write()[0]
    try:
        run_daemon(sys.executable, config, "--asleep")
        assert Client(config.socket).hello["hello"]["cluster_id"] == "another"
    finally:
        end_everything([config])
