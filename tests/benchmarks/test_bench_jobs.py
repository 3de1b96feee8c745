"""Many jobs at once on a cluster that stands: how fast they are taken, run and told of, beside the least that could be."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

import skylib
from skylib.runtime.agent_client import AgentClient
from skylib.session import Session
from tests.benchmarks.machine import settle, watch
from tests.benchmarks.report import Report, seconds_of
from tests.lab import Lab, eventually
from tests.testbed import Testbed

pytestmark = [pytest.mark.bench, pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(1800)]

SHORT_JOBS = 1000
JOBS_A_SECOND = 20.0
SUBMITS_A_SECOND = 500.0
QUEUED_JOBS = 10_000
QUEUE_LIMIT_S = 0.1
AGENT_LIMIT_MIB = 200.0


@contextmanager
def the_agent(lab: Lab) -> Iterator[AgentClient]:
    """A channel of its own to the agent of the standing cluster."""
    session = Session(lab.home, config=lab.config)
    try:
        record = session.store.cluster("shared")
        assert record is not None
        yield session.agent(record)
    finally:
        session.close()


def agent_memory_mib(lab: Lab, agent: AgentClient) -> float:
    """Resident memory of the head's agent, without the process that holds its connection to Ray."""
    pid = agent.call("info")["pid"]
    head = lab.client.cluster("shared").nodes()[0].internal_ip
    host = next(each for each in lab.hosts if each.ip == head)
    line = next(line for line in host.sh(f"cat /proc/{pid}/status").stdout.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def wait_all(agent: AgentClient, job_ids: list[int]) -> None:
    for job_id in reversed(job_ids):
        agent.call("wait", answer_within_s=None, job_id=job_id, timeout_s=None)


def shells(lab: Lab, count: int, at_once: int) -> None:
    """The floor: as many login shells that do nothing, on all hosts, as many at once."""
    each = count // len(lab.hosts)
    command = f"seq {each} | xargs -P {at_once} -I _ bash -lc true _"
    with ThreadPoolExecutor(len(lab.hosts)) as pool:
        list(pool.map(lambda host: host.sh(command, check=True), lab.hosts))


def test_a_thousand_short_jobs(shared: Lab, testbed: Testbed) -> None:
    """A thousand jobs that do nothing: at least 500 taken a second, 20 run a second, with none lost or failed."""
    report = Report(f"{SHORT_JOBS} jobs of `true` on 3 hosts")
    task = shared.task("true")
    client = shared.client
    cpus = int(client.cluster("shared").nodes()[0].cpus)
    with the_agent(shared) as agent:
        wait_all(agent, [job.id for job in client.submit_many([task] * 50, "shared")])
        settle()
        report.add("login shells by hand", seconds_of(lambda: shells(shared, SHORT_JOBS, 2 * cpus)))
        with watch(testbed.keeper_pid) as usage:
            started = time.perf_counter()
            job_ids = [job.id for job in client.submit_many([task] * SHORT_JOBS, "shared")]
            report.add("submitted", time.perf_counter() - started)
            wait_all(agent, job_ids)
            report.add("all ended", time.perf_counter() - started)
        wanted = set(job_ids)
        ended = [job.status for job in client.queue("shared") if job.job_id in wanted]
        report.note(f"agent: {agent_memory_mib(shared, agent):.0f} MiB")
    report.bound("submitted", SHORT_JOBS / SUBMITS_A_SECOND)
    report.bound("all ended", SHORT_JOBS / JOBS_A_SECOND)
    report.against("all ended", "login shells by hand")
    submits, ends = (SHORT_JOBS / report.median(name) for name in ("submitted", "all ended"))
    report.note(
        f"{submits:.0f} submits/s, {ends:.1f} jobs/s, {1000 * usage.own_seconds / SHORT_JOBS:.0f} ms of a processor each"
    )
    report.print()
    print(usage.text("where the time went"), flush=True)
    assert ended == [skylib.JobStatus.SUCCEEDED] * SHORT_JOBS
    assert report.median("submitted") <= SHORT_JOBS / SUBMITS_A_SECOND
    assert report.median("all ended") <= SHORT_JOBS / JOBS_A_SECOND


def test_ten_thousand_queued_jobs(shared: Lab) -> None:
    """With ten thousand jobs waiting, the queue is told in 0.1 s, the agent stays under 200 MiB, one call ends them all."""
    report = Report(f"{QUEUED_JOBS} jobs in the queue", unit="ms")
    client = shared.client
    cpus = client.cluster("shared").nodes()[0].cpus
    whole = shared.task("sleep 600", num_nodes=3, resources=skylib.Resources(infra="ssh/lab", cpus=cpus))
    with the_agent(shared) as agent:
        before = agent_memory_mib(shared, agent)
        blocker = client.exec(whole, "shared")
        eventually(lambda: blocker.status() is skylib.JobStatus.RUNNING, what="the job that holds all nodes")
        task = shared.task("true")
        for _ in range(QUEUED_JOBS // SHORT_JOBS):
            report.add(f"submit_many of {SHORT_JOBS}", seconds_of(lambda: client.submit_many([task] * SHORT_JOBS, "shared")))
        settle()
        for _ in range(5):
            report.add("client.queue()", seconds_of(lambda: client.queue("shared")))
            report.add("the agent's answer", seconds_of(lambda: agent.call("queue", all=True)))
            report.add("client.job(blocker)", seconds_of(lambda: client.job("shared", blocker.id)))
        after = agent_memory_mib(shared, agent)
        report.add("cancel all", seconds_of(lambda: client.cancel("shared", all=True)))
        queued = [job.job_id for job in client.queue("shared") if not job.status.is_terminal]
    report.bound("client.queue()", QUEUE_LIMIT_S)
    report.note(f"agent: {before:.0f} MiB before, {after:.0f} MiB with {QUEUED_JOBS} jobs; bound {AGENT_LIMIT_MIB:.0f}")
    report.print()
    assert queued == []
    assert after <= AGENT_LIMIT_MIB
    assert report.median("client.queue()") <= QUEUE_LIMIT_S
