"""How a cluster ends by itself: the timer's hook, and the lease, on nodes that are folders."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skylib.agent.lease import Lease
from skylib.agent.processes import carrying, own
from tests.ray.agent_harness import AgentSaid, Client, InProcessAgent, NodeFolders, command_lines, connect, until


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[InProcessAgent]:
    agent = InProcessAgent(NodeFolders(tmp_path, count=2))
    agent.begin()
    yield agent
    agent.close()


def stopped(agent: InProcessAgent, *, timeout_s: float = 20.0) -> dict[str, Any]:
    """What the cluster left behind once all of it has ended."""
    path = Path(agent.head.sky, "stopped.json")

    def read() -> dict[str, Any] | None:
        said: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        return said if said.get("stopping") is False else None

    record: dict[str, Any] = until(read, timeout_s=timeout_s)
    until(lambda: not os.path.exists(agent.head.socket))
    return record


def hook_log(agent: InProcessAgent, event: str) -> str:
    path = Path(agent.head.sky, "hooks", f"{event}.log")
    return path.read_text() if path.is_file() else ""


@pytest.mark.parametrize(("down", "event"), [(False, "stop"), (True, "down")])
def test_a_hook_runs_before_the_end(agent: InProcessAgent, down: bool, event: str) -> None:
    """On the head, with the event's name, in the user's environment and in the account's home; its output is kept."""
    client = connect(agent)
    hook = 'echo "$SKYPILOT_HOOK_EVENT $PWD ${RAY_ADDRESS-} ${SKYPILOT_TASK_ID-}"; test -e .sky/agent.sock && echo before'
    client.call("autostop", idle_minutes=0.001, down=down, wait_for="jobs", hook=hook)
    record = stopped(agent)
    assert hook_log(agent, event) == f"{event} {agent.head.root}  \nbefore\n"
    assert (record["reason"], record["down"]) == ("autostop", down)
    assert (record["hook"]["event"], record["hook"]["code"]) == (event, 0)


def test_the_cluster_takes_no_jobs_while_its_hook_runs(agent: InProcessAgent) -> None:
    """It says that it is stopping; a job would be cut off."""
    client = connect(agent)
    client.call("autostop", idle_minutes=0.001, hook="echo on; until [ -e go ]; do sleep 0.02; done")
    until(lambda: hook_log(agent, "stop") == "on\n")
    assert client.call("info")["stopping"] is True
    with pytest.raises(AgentSaid, match="stopping"):
        client.submit("true")
    Path(agent.head.root, "go").touch()
    assert stopped(agent)["hook"]["code"] == 0


def test_a_job_that_was_there_before_comes_first(agent: InProcessAgent) -> None:
    """Neither hook nor end while it is set up or runs."""
    client = connect(agent)
    job_id = client.submit("true", setup="touch begun; until [ -e go ]; do sleep 0.01; done")
    client.call("autostop", idle_minutes=0.001, hook="echo on")
    until(lambda: Path(agent.head.root, "sky_workdir", "begun").exists())
    time.sleep(1.2)  # more than a look of the timer
    assert (client.call("info")["stopping"], hook_log(agent, "stop")) == (False, "")
    Path(agent.head.root, "sky_workdir", "go").touch()
    assert client.done(job_id)["status"] == "SUCCEEDED"
    stopped(agent)
    assert hook_log(agent, "stop") == "on\n"


def test_other_nodes_are_waited_for_while_ray_is_started_again(agent: InProcessAgent) -> None:
    """They are reached through Ray: the end goes on when it is back, so that no node is left standing."""
    client = connect(agent)
    agent.ranks.up = False
    client.call("autostop", idle_minutes=0.001, hook="echo on", down=True)
    until(lambda: hook_log(agent, "down") == "on\n")
    time.sleep(1.2)  # more than an end takes here
    assert json.loads(Path(agent.head.sky, "stopped.json").read_text())["stopping"] is True
    assert client.call("info")["stopping"] is True
    agent.ranks.up = True
    stopped(agent)


def test_a_hook_that_fails_keeps_nothing_from_ending(agent: InProcessAgent, caplog: pytest.LogCaptureFixture) -> None:
    """Its exit code is told in the log and in stopped.json."""
    client = connect(agent)
    client.call("autostop", idle_minutes=0.001, hook="echo no; exit 7")
    assert stopped(agent)["hook"]["code"] == 7
    assert "the stop hook ended with exit code 7" in caplog.text


def test_a_hook_has_its_time_and_no_more(agent: InProcessAgent) -> None:
    """Its whole tree is ended then, what ignores TERM as well."""
    client = connect(agent)
    hook = "(trap '' TERM; setsid sleep 3711 & while :; do sleep 0.1; done) & echo on; sleep 3712"
    client.call("autostop", idle_minutes=0.001, hook=hook, hook_timeout_s=1.0)
    assert stopped(agent)["hook"]["code"] == 124
    assert not [line for line in command_lines().values() if line.startswith((b"sleep\x003711", b"sleep\x003712"))]


def test_an_agent_that_dies_in_the_middle_of_a_hook_runs_it_once(agent: InProcessAgent) -> None:
    """The hook goes on; the next agent waits for it, takes no jobs meanwhile, and ends the cluster."""
    client = connect(agent)
    hook = "echo on >> said; until [ -e go ]; do sleep 0.02; done; echo off >> said; exit 3"
    client.call("autostop", idle_minutes=0.001, hook=hook)
    until(lambda: Path(agent.head.root, "said").exists())
    agent.stop()
    agent.begin()
    client = Client(agent.head.socket)
    until(lambda: client.call("info")["stopping"])
    with pytest.raises(AgentSaid, match="stopping"):
        client.submit("true")
    Path(agent.head.root, "go").touch()
    assert stopped(agent)["hook"]["code"] == 3
    assert Path(agent.head.root, "said").read_text() == "on\noff\n"


def test_the_next_life_has_its_hook_again(agent: InProcessAgent) -> None:
    """Once in each beginning of a cluster."""
    for standing in ("one", "two"):
        agent.stop()
        agent.head = agent.head._replace(standing=standing)
        agent.begin()
        client = connect(agent)
        client.call("autostop", idle_minutes=0.001, hook="echo on >> said")
        stopped(agent)
    assert Path(agent.head.root, "said").read_text() == "on\non\n"


def test_a_restart_of_the_agent_does_not_begin_the_time_anew(agent: InProcessAgent) -> None:
    """An idle cluster whose agent is begun anew again and again stops when it is due."""
    client = connect(agent)
    client.call("autostop", idle_minutes=0.05)
    began = time.monotonic()
    for _ in range(3):
        time.sleep(0.7)
        agent.stop()
        agent.begin()
    stopped(agent)
    assert 2.9 < time.monotonic() - began < 8


def test_with_none_running_jobs_do_not_hold_the_cluster(agent: InProcessAgent) -> None:
    """They are ended, and told why."""
    client = connect(agent)
    job_id = client.submit("sleep 3713")
    client.when(job_id, "RUNNING")
    client.call("autostop", idle_minutes=0.02, wait_for="none")
    job = client.done(job_id)
    assert (job["status"], job["cause"]) == ("CANCELLED", "the cluster was idle for 1.2 s and stopped by itself")
    stopped(agent)


# --- leases


def leased(agent: InProcessAgent, lease_s: float) -> Client:
    client = connect(agent)
    assert client.call("lease", lease_s=lease_s)["lease_s"] == lease_s
    return client


def test_a_lease_ends_the_cluster_and_its_jobs(agent: InProcessAgent) -> None:
    """Whatever runs; with its reason, and the hosts to be given back."""
    client = leased(agent, 1.5)
    job_id = client.submit("sleep 3714", num_nodes=2)
    task = client.when(job_id, "RUNNING")["task_id"]
    record = stopped(agent)
    assert (record["reason"], record["down"], record["lease_s"]) == ("lease", True, 1.5)
    assert not carrying(own().values(), {"SKYPILOT_TASK_ID": task})
    agent.options = {"asleep": True}
    agent.begin()
    job = Client(agent.head.socket).job(job_id)
    assert (job["status"], job["cause"]) == ("CANCELLED", "the lease of 1.5 s ran out")


def test_contact_keeps_it(agent: InProcessAgent) -> None:
    """Any request does, from whoever it comes."""
    client = leased(agent, 1.0)
    for _ in range(12):
        time.sleep(0.25)
        left = client.call("info")["lease_left_s"]
        assert 0.9 < left <= 1.0
    stopped(agent)


def test_one_who_waits_is_asked_and_one_who_says_nothing_is_not_waited_for(agent: InProcessAgent) -> None:
    """A client whose request is open answers by a ping; one that does not answer any more is as good as gone."""
    client = leased(agent, 1.6)
    job_id = client.submit("sleep 3715")
    client.send("wait", job_id=job_id, timeout_s=None)
    until_s = time.monotonic() + 4
    while time.monotonic() < until_s:
        assert client.line() == {"id": None, "ask": "ping"}
        client.raw({"id": 0, "verb": "ping", "args": {}})
        assert client.line() == {"id": 0, "ok": {}}
    stopped(agent)


def test_a_lease_is_hard_and_runs_no_hook(agent: InProcessAgent) -> None:
    """A hook might take an hour."""
    client = leased(agent, 1.0)
    client.call("autostop", idle_minutes=30, hook="touch hooked")
    assert "hook" not in stopped(agent)
    assert not Path(agent.head.root, "hooked").exists()


def test_a_lease_ends_the_cluster_that_cannot_write_down_why(agent: InProcessAgent) -> None:
    """As on a full disk: here a directory stands in the way of the record."""
    Path(agent.head.sky, "stopped.json").mkdir()
    client = leased(agent, 1.0)
    task = client.job(client.submit("sleep 3716"))["task_id"]
    until(lambda: not os.path.exists(agent.head.socket), timeout_s=20.0)
    assert not carrying(own().values(), {"SKYPILOT_TASK_ID": task})


def test_a_lease_goes_on_over_a_restart_of_the_agent(agent: InProcessAgent) -> None:
    """That an agent is begun anew is no contact."""
    leased(agent, 2.0).close()
    began = time.monotonic()
    for _ in range(3):
        time.sleep(0.4)
        agent.stop()
        agent.begin()
    assert stopped(agent)["reason"] == "lease"
    assert 1.8 < time.monotonic() - began < 6


def test_workers_are_told(agent: InProcessAgent) -> None:
    """Each node keeps the deadline for itself, and is told again and again."""
    client = leased(agent, 4.0)
    path = Path(agent.configs[1].sky, "lease.json")
    first = until(lambda: path.is_file() and json.loads(path.read_text())["until"])
    client.call("ping")
    until(lambda: json.loads(path.read_text())["until"] > first)
    client.call("lease", lease_s=None)
    assert client.call("info")["lease_left_s"] is None
    until(lambda: json.loads(path.read_text())["lease_s"] is None)


def test_a_worker_ends_itself_when_the_head_is_lost(tmp_path: Path) -> None:
    """Its own agent does so at the deadline, and says why."""
    worker = InProcessAgent(NodeFolders(tmp_path / "other", count=2))
    worker.head = worker.configs[1]._replace(lease_s=30.0)
    worker.begin()
    try:
        assert Client(worker.head.socket).call("info")["role"] == "worker"
        Lease(worker.head).told(1.0, 1.0)
        record = stopped(worker)
        assert (record["reason"], record["lease_s"], record["down"]) == ("lease", 1.0, True)
    finally:
        worker.close()
