"""Submitting over a real channel to a real agent: in bulk, twice, and with a channel that breaks; nodes are folders."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from skylib.agent.protocol import MAX_LINE_BYTES
from skylib.errors import InvalidSpecError
from skylib.jobs import polling
from skylib.jobs.submit import Submitted, job_spec, submit, submit_many
from skylib.models.cluster import ClusterRecord
from skylib.models.job import JobStatus
from skylib.models.task import Task
from skylib.runtime.agent_client import AgentClient
from skylib.transport.base import Process, Transport
from skylib.transport.command import Command
from skylib.transport.local import LocalTransport
from tests.ray.agent_harness import Client, InProcessAgent, NodeFolders, until
from tests.records import cluster_record


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[InProcessAgent]:
    made = InProcessAgent(NodeFolders(tmp_path, count=2))
    made.begin()
    plain = Client(made.head.socket)
    plain.call("ready", timeout_s=10)
    plain.close()
    yield made
    made.close()


def channel(agent: InProcessAgent, transport: Transport | None = None) -> AgentClient:
    head = agent.head
    words = (sys.executable, "-S", "-E", head.bundle_of(head.me), "bridge", "--socket", head.socket)
    transport = transport or LocalTransport()
    return AgentClient(transport, Command.of(*words), cluster="train", cluster_id=head.cluster_id, version="test")


@pytest.fixture
def client(agent: InProcessAgent) -> Iterator[AgentClient]:
    made = channel(agent)
    yield made
    made.close()


@pytest.fixture
def cluster(agent: InProcessAgent) -> ClusterRecord:
    return attrs.evolve(cluster_record("train", agent.head.cluster_id), infra="ssh/lab")


def spec(cluster: ClusterRecord, run: str = "true", key: str | None = None, **task: object) -> dict[str, object]:
    return job_spec(Task(run=run, **task), cluster, user="me", key=key, setup=False)  # type: ignore[arg-type]


class Cut(LocalTransport):
    """Breaks the first channel that carries a submit, once the agent has the job; the answer is held back."""

    def __init__(self, agent: InProcessAgent) -> None:
        super().__init__()
        self._agent = agent
        self.cuts = 0

    def open(self, command: Command) -> Process:
        process = super().open(command)
        return process if self.cuts else CutProcess(process, self)

    def has_taken(self, jobs: int) -> None:
        plain = Client(self._agent.head.socket)
        until(lambda: len(plain.call("queue")["jobs"]) == jobs)
        plain.close()


class CutProcess:
    """A process whose output stops with the first submit."""

    def __init__(self, process: Process, transport: Cut) -> None:
        self._process = process
        self._transport = transport
        self._held = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)

    def receive(self, max_bytes: int = 65536) -> bytes:
        data = self._process.receive(max_bytes)
        return b"" if self._held.is_set() else data

    def send(self, data: bytes) -> None:
        if b'"verb":"submit' not in data:
            self._process.send(data)
            return
        self._held.set()
        self._process.send(data)
        self._transport.cuts += 1
        self._transport.has_taken(data.count(b'"setup_hash"'))
        self._process.close()


def test_a_thousand_jobs_are_one_request(client: AgentClient, cluster: ClusterRecord) -> None:
    """All are told with their records, which are those of the queue."""
    holder = submit(client, spec(cluster, "sleep 60", num_nodes=2, resources={"cpus": 4}), cluster)
    done, records = submit_many(client, [spec(cluster, name=f"n{n}") for n in range(1000)], cluster)
    assert [each.job_id for each in done] == list(range(holder.job_id + 1, holder.job_id + 1001))
    assert {record.status for record in records} == {JobStatus.PENDING}
    assert polling.queue(client, "train")[1:] == records
    assert len(polling.cancel(client, "train", None, all_jobs=True)) == 1001


def test_a_job_that_can_never_run_is_named(client: AgentClient, cluster: ClusterRecord) -> None:
    """None is queued."""
    wanted = [spec(cluster), spec(cluster, resources={"cpus": 64})]
    with pytest.raises(InvalidSpecError, match=r"can never run tasks\[1\]: .*64 CPUs on head \(4 there\)") as caught:
        submit_many(client, wanted, cluster)
    assert (caught.value.index, caught.value.field) == (1, "tasks[1].resources")  # type: ignore[attr-defined]
    assert polling.queue(client, "train") == []


def test_jobs_that_are_too_large_together_are_refused_here(client: AgentClient, cluster: ClusterRecord) -> None:
    """The channel's longest line is known."""
    script = "#" * (MAX_LINE_BYTES // 4)
    with pytest.raises(InvalidSpecError, match="5 jobs of 80 MiB together are too large for one call"):
        submit_many(client, [spec(cluster, script)] * 5, cluster)


@pytest.mark.parametrize("key", [None, "mine"])
@pytest.mark.parametrize("many", [False, True])
def test_a_channel_that_breaks_after_the_submit_changes_nothing(
    agent: InProcessAgent, cluster: ClusterRecord, key: str | None, many: bool
) -> None:
    """It is asked again on a new channel: each job is there once, and is new, not adopted."""
    transport = Cut(agent)
    client = channel(agent, transport)
    if many:
        wanted = [spec(cluster, key=key and f"{key}{n}") for n in range(3)]
        assert [each.adopted for each in submit_many(client, wanted, cluster)[0]] == [False] * 3
    else:
        assert not submit(client, spec(cluster, key=key), cluster).adopted
    assert transport.cuts == 1
    assert len(polling.queue(client, "train")) == (3 if many else 1)
    client.close()


def test_a_key_gives_its_job_for_ever(client: AgentClient, cluster: ClusterRecord, agent: InProcessAgent) -> None:
    """Whatever the task, after the job has ended, from another channel, and after a restart of the agent."""
    first = submit(client, spec(cluster, key="k"), cluster)
    polling.wait(client, "train", first.job_id, timeout_s=30)
    other = channel(agent)
    adopted = attrs.evolve(first, adopted=True)
    assert submit(other, spec(cluster, "another task", key="k", num_nodes=2), cluster) == adopted
    other.close()
    agent.stop()
    agent.begin()
    assert submit(client, spec(cluster, key="k"), cluster) == adopted


def test_many_who_submit_with_one_key_have_one_job(cluster: ClusterRecord, agent: InProcessAgent) -> None:
    """At the same time, each on a channel of its own: one begins it, the others adopt it."""
    found: list[Submitted] = []

    def work() -> None:
        mine = channel(agent)
        found.append(submit(mine, spec(cluster, key="k"), cluster))
        mine.close()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({each.job_id for each in found}) == 1
    assert sorted(each.adopted for each in found) == [False] + [True] * 5
