"""A cluster heals by itself, or with `start`, beside the jobs that run on it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

import skylib
from skylib import JobStatus
from skylib.models.cluster import ClusterStatus
from skylib.session import Session
from tests.lab import Lab, eventually, texts
from tests.testbed import Host

NAME = "shared"
TRUTH_S = 2.0
WHOLE_S = 90.0
TICKS = "i=0; while [ ! -e ~/go ]; do echo tick $i; i=$((i + 1)); sleep 0.1; done; echo ended $i"


class Site:
    """The shared cluster's hosts in order of rank, and what its head's agent says."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client = lab.client
        self.session = Session(lab.home, config=lab.config)
        by_ip = {host.ip: host for host in lab.hosts}
        self.hosts = [by_ip[node.internal_ip] for node in lab.client.cluster(NAME).nodes()]

    def info(self) -> dict[str, object]:
        return self.session.agent(self.session.require(NAME)).call("info")

    def is_whole(self) -> bool:
        info = self.info()
        return bool(info["ray_ok"]) and info["alive_ranks"] == [0, 1, 2]

    def pid(self, rank: int, program: str) -> int:
        """Of our Ray's process there; 0 when there is none."""
        found = [pid for pid, line in self.hosts[rank].processes("sky") if line.split()[0].endswith(f"/{program}")]
        return found[0] if found else 0

    def holder(self, rank: int) -> dict[str, object]:
        return dict(json.loads(self.hosts[rank].sh("cat ~/.sky/agent.lock", check=True).stdout))

    def tick(self, nodes: int) -> skylib.Job:
        """A gang that prints until it is let go, and runs by now."""
        task = self.lab.task(TICKS, num_nodes=nodes, resources=skylib.Resources(infra="ssh/lab", cpus="0.5"))
        job = self.client.exec(task, NAME)
        eventually(lambda: job.status() is JobStatus.RUNNING, what="a job that runs")
        return job

    def let_go(self) -> None:
        for host in self.hosts:
            host.sh("touch ~/go", check=True)


@pytest.fixture
def site(shared: Lab) -> Iterator[Site]:
    made = Site(shared)
    for host in made.hosts:
        host.sh("rm -f ~/go", check=True)
    eventually(made.is_whole, within_s=WHOLE_S, what="a whole cluster")
    yield made
    for host in made.hosts:
        host.restore()
        host.boot()
        host.sh("touch ~/go", check=True)
    made.client.start(NAME)
    eventually(made.is_whole, within_s=WHOLE_S, what="a whole cluster again")
    made.session.close()


def went_on(job: skylib.Job, ranks: int) -> None:
    """It succeeded, and each rank's lines are there, each once, in order."""
    assert job.wait(timeout_s=60).status is JobStatus.SUCCEEDED
    lines = list(job.logs())
    for rank in range(ranks):
        said = [line.text for line in lines if line.rank == rank]
        assert said == [*(f"tick {number}" for number in range(len(said) - 1)), f"ended {len(said) - 1}"]


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "program"), [(1, "raylet"), (0, "gcs_server")])
def test_what_is_killed_is_told_and_comes_back(site: Site, rank: int, program: str):
    """kill -9: `info` says so at once, another one comes by itself, and a gang runs through it with all its lines."""
    job = site.tick(3)
    old = site.pid(rank, program)
    site.hosts[rank].sh(f"kill -9 {old}", check=True)
    eventually(lambda: not site.is_whole(), within_s=TRUTH_S, what="the truth")
    eventually(lambda: site.is_whole() and site.pid(rank, program) not in (0, old), within_s=WHOLE_S, what="Ray again")
    assert texts(list(site.client.exec("echo well", NAME).logs())) == ["well"]
    site.let_go()
    went_on(job, 3)


@pytest.mark.slow
def test_a_reservation_is_made_again(site: Site):
    """After Ray was begun anew a job that runs still has its place, so that one that wants all there is waits for it."""
    job = site.tick(3)
    restarts = dict(site.info()["ray"])["restarts"]  # type: ignore[call-overload]
    site.hosts[0].sh("env -u SKYLIB_CLUSTER_ID ~/skypilot-runtime/bin/ray stop", timeout_s=90, check=True)
    eventually(lambda: dict(site.info()["ray"])["restarts"] > restarts, what="a restart")  # type: ignore[call-overload]
    eventually(site.is_whole, within_s=WHOLE_S, what="a whole cluster")
    cpus = site.client.cluster(NAME).nodes()[0].cpus
    everything = site.lab.task("echo all", num_nodes=3, resources=skylib.Resources(infra="ssh/lab", cpus=cpus))
    waiting = site.client.exec(everything, NAME)
    assert waiting.status() is JobStatus.PENDING
    site.let_go()
    went_on(job, 3)
    assert waiting.wait(timeout_s=60).status is JobStatus.SUCCEEDED


def test_an_agent_without_its_guardian_is_brought_back_by_the_next_verb(site: Site):
    """kill -9 of both on the head: the next call starts the agent, jobs have gone on, and a log is whole."""
    job = site.tick(2)
    holder = site.holder(0)
    guardian, _ = holder["guardian"]  # type: ignore[misc]
    site.hosts[0].sh(f"kill -9 {guardian} {holder['pid']}", check=True)
    assert [each.status for each in site.client.queue(NAME) if each.job_id == job.id] == [JobStatus.RUNNING]
    assert site.holder(0)["pid"] != holder["pid"]
    site.let_go()
    went_on(job, 2)


@pytest.mark.slow
def test_an_agent_that_dies_is_begun_anew_by_its_guardian(site: Site):
    """kill -9 on a worker: another one is there within moments, and nobody had to ask."""
    holder = site.holder(1)
    site.hosts[1].sh(f"kill -9 {holder['pid']}", check=True)
    eventually(lambda: site.holder(1)["pid"] != holder["pid"] and bool(site.holder(1)["listens"]), what="another agent")
    assert site.holder(1)["guardian"] == holder["guardian"]
    assert site.client.start(NAME).actions == ()


def test_start_heals_a_node_that_was_booted_beside_the_jobs_of_the_others(site: Site):
    """A worker that crashed and is up again gets its agent and its Ray; what ran elsewhere runs on; start says so."""
    job = site.tick(1)
    place = _rank_of(site, job)
    crashed = next(rank for rank in (2, 1) if rank != place)
    _reboot(site.hosts[crashed])
    receipt = site.client.start(NAME)
    assert receipt.status is ClusterStatus.UP
    assert receipt.actions[0] == f"started the agent on {site.client.cluster(NAME).nodes()[crashed].host}"
    assert site.is_whole()
    gang = site.lab.task("echo here", num_nodes=3, resources=skylib.Resources(infra="ssh/lab", cpus="0.5"))
    assert site.client.exec(gang, NAME).wait(timeout_s=60).status is JobStatus.SUCCEEDED
    site.let_go()
    went_on(job, 1)
    assert site.client.start(NAME).actions == ()


@pytest.mark.slow
def test_a_node_that_was_cut_off_comes_back_without_what_it_ran(site: Site):
    """Its gang fails within 15 s; when the link is back it joins by itself, and nothing of the job is left on it."""
    job = site.tick(3)
    began = time.time()
    site.hosts[2].cut()
    record = job.wait(timeout_s=40, check=False)
    assert record.status is JobStatus.FAILED_DRIVER
    assert record.ended_at is not None
    assert record.ended_at - began < 15
    assert site.client.cluster(NAME).nodes()[2].host in record.cause
    site.hosts[2].restore()
    eventually(site.is_whole, within_s=WHOLE_S, what="the node in the cluster")
    eventually(lambda: not _ticking(site.hosts[2]), within_s=WHOLE_S, what="nothing of the job on the node")


def _ticking(host: Host) -> list[int]:
    return [pid for pid, line in host.processes("sky") if line == "sleep 0.1"]


def _rank_of(site: Site, job: skylib.Job) -> int:
    """The node that a job of one rank runs on."""
    found: list[int] = []

    def seen() -> bool:
        found[:] = [rank for rank, host in enumerate(site.hosts) if _ticking(host)]
        return len(found) == 1

    eventually(seen, what=f"where job {job.id} runs")
    return found[0]


def _reboot(host: Host) -> None:
    host.crash()
    host.boot()
