"""Clusters that end by themselves on real hosts: terminals, hooks, killed agents, leases."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import skylib
from skylib.models.cluster import AutostopRecord
from skylib.session import Session
from tests.lab import Lab, eventually
from tests.testbed import Host

_LAUNCH = """
import sys, time, skylib
client = skylib.Client(sys.argv[1])
resources = skylib.Resources(infra="ssh/lab")
task = skylib.Task(run=sys.argv[4], num_nodes=int(sys.argv[3]), resources=resources)
job = client.launch(task, "leased", lease=sys.argv[2])
while job.status() is not skylib.JobStatus.RUNNING:
    time.sleep(0.1)
print("runs", flush=True)
time.sleep(3600)
"""


@contextmanager
def terminal(lab: Lab, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell on the head's terminal over SSH."""
    words = shlex.split(lab.client.cluster(name).ssh_command(0))
    options = ["-tt", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={lab.home / 'known_hosts'}"]
    process = subprocess.Popen(
        [words[0], *options, *words[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"echo $((40 + 2))-sits\n")
    process.stdin.flush()
    said = b""
    while b"42-sits" not in said:
        line = process.stdout.readline()
        assert line, said.decode()
        said += line
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def by_rank(lab: Lab, name: str) -> list[Host]:
    """The hosts of the cluster's nodes."""
    nodes = lab.client.status(name)[0].nodes
    return [next(host for host in lab.hosts if host.ip == node.internal_ip) for node in nodes]


def kill_agent(host: Host) -> None:
    """SIGKILL to the node's agent, as the machine's kernel might."""
    holder = json.loads(host.sh("cat ~/.sky/agent.lock", check=True).stdout)
    host.sh(f"kill -9 {holder['pid']}", check=True)


def info(lab: Lab, name: str) -> dict[str, object]:
    session = Session(lab.home, config=lab.config)
    try:
        return dict(session.agent(session.require(name)).call("info"))
    finally:
        session.close()


def agent_came_back(host: Host, before: str) -> Callable[[], bool]:
    def look() -> bool:
        text = host.sh("cat ~/.sky/agent.lock").stdout
        return text not in ("", before) and bool(json.loads(text)["listens"])

    return look


@pytest.mark.slow
def test_it_stops_when_due_with_a_hook_whoever_was_killed(lab: Lab):
    """A terminal keeps the cluster awake; after it the time is exact, a killed agent changes nothing, the hook runs once."""
    autostop = {"idle_minutes": 30, "wait_for": "jobs_and_ssh", "hook": "echo $SKYPILOT_HOOK_EVENT >> ~/hooked; hostname"}
    resources = skylib.Resources(infra="ssh/lab", autostop=autostop)
    lab.client.launch(lab.task("true", resources=resources), "idle").wait()
    assert lab.client.status("idle")[0].autostop == AutostopRecord(idle_minutes=30, hook=autostop["hook"])
    head = by_rank(lab, "idle")[0]
    with terminal(lab, "idle"):
        lab.client.autostop("idle", 0.2, hook=str(autostop["hook"]))
        time.sleep(8)
        lock = head.sh("cat ~/.sky/agent.lock").stdout
        kill_agent(head)
        eventually(agent_came_back(head, lock), what="the agent")
        time.sleep(8)
        assert lab.ours(head) != []
        assert info(lab, "idle")["stopping"] is False
    left_at = time.monotonic()
    eventually(lambda: "stop" in head.sh("cat ~/hooked").stdout, within_s=30, what="the hook")
    late_s = time.monotonic() - left_at - 12.0
    assert -5.0 < late_s < 5.0
    eventually(lambda: lab.ours(head) == [], within_s=30, what="the stop")
    assert head.sh("cat ~/hooked ~/.sky/hooks/stop.log").stdout == f"stop\n{head.sh('hostname').stdout}"
    assert lab.client.status("idle", refresh=True)[0].status is skylib.ClusterStatus.STOPPED
    head.sh("rm ~/hooked")


def launched_by_another(lab: Lab, lease: str, num_nodes: int, run: str) -> subprocess.Popen[str]:
    """An orchestrator that has launched a cluster `leased` whose job runs."""
    words = [sys.executable, "-c", _LAUNCH, str(lab.home), lease, str(num_nodes), run]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    assert process.stdout.readline() == "runs\n"
    return process


def test_a_killed_orchestrator_leaks_nothing_even_with_a_crashed_head(lab: Lab):
    """Each worker ends itself at the deadline; when the head is back, a look finds the cluster gone and its hosts free."""
    orchestrator = launched_by_another(lab, "20s", 3, "echo begun; sleep 3601")
    orchestrator.kill()
    orchestrator.communicate()
    hosts = by_rank(lab, "leased")
    hosts[0].crash()
    for worker in hosts[1:]:
        eventually(lambda worker=worker: lab.ours(worker) == [], within_s=60, what=f"{worker.name}'s own end")
        assert json.loads(worker.sh("cat ~/.sky/stopped.json").stdout)["reason"] == "lease"
    hosts[0].boot()
    hosts[0].wait_ssh()
    assert lab.client.status(refresh=True) == []
    lab.assert_nothing_left()


@pytest.mark.slow
def test_a_lease_that_ran_out_is_told_and_outlives_the_agent(lab: Lab):
    """The agent was killed; its successor ends job and cluster when they are due. Log and cause stay."""
    orchestrator = launched_by_another(lab, "15s", 2, "echo begun; sleep 3602")
    orchestrator.send_signal(signal.SIGKILL)
    orchestrator.communicate()
    gone_at = time.monotonic()
    hosts = by_rank(lab, "leased")
    kill_agent(hosts[0])
    eventually(lambda: not any(lab.ours(host) for host in hosts), within_s=60, what="the end of the lease")
    assert time.monotonic() - gone_at > 10
    assert lab.client.status(refresh=True) == []
    job = skylib.Job(lab.home, "leased", 1)
    assert job.status() is skylib.JobStatus.CANCELLED
    assert lab.client.queue("leased")[0].cause == "the lease of 15 s ran out"
    assert {line.text for line in job.logs()} == {"begun"}
    lab.assert_nothing_left()


@pytest.mark.slow
def test_one_who_waits_keeps_the_lease(lab: Lab):
    """A wait or a followed log is contact as long as it lasts; a start has the same lease again."""
    job = lab.client.launch(lab.task("sleep 24"), "waited", lease="12s")
    assert lab.client.status("waited")[0].lease_s == 12
    assert job.wait().status is skylib.JobStatus.SUCCEEDED
    lab.client.stop("waited")
    lab.client.start("waited")
    assert info(lab, "waited")["lease_s"] == 12
