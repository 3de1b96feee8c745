"""The queue on a cluster of three real SSH hosts: many jobs at once, keys, retries, timeouts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import skylib
from skylib.errors import InvalidSpecError
from skylib.models.job import JobStatus
from tests.lab import Lab, eventually, texts

_SUBMIT = """
import sys, skylib
with skylib.Client(sys.argv[1]) as client:
    jobs = client.submit_many(["echo " + sys.argv[2]] * 2, "shared", keys=["same-1", "same-2"])
    print([[job.id, job.adopted] for job in jobs])
"""


def test_a_thousand_jobs_are_queued_and_cancelled_by_one_call_each(shared: Lab, tmp_path: Path):
    """They share a workdir that is brought once; each says what it waits for; records are there as soon as they are."""
    cpus = shared.client.cluster("shared").nodes()[0].cpus
    blocker = shared.client.exec(
        shared.task("sleep 600", num_nodes=3, resources=skylib.Resources(infra="ssh/lab", cpus=cpus)), "shared"
    )
    eventually(lambda: blocker.status() is JobStatus.RUNNING, what="the blocker's start")
    workdir = tmp_path / "code"
    workdir.mkdir()
    (workdir / "n.txt").write_text("7")
    jobs = shared.client.submit_many([shared.task(f"echo {n}", workdir=str(workdir)) for n in range(1000)], "shared")
    assert [job.id for job in jobs] == list(range(blocker.id + 1, blocker.id + 1001))
    waiting = {record.job_id: record.waiting_for for record in shared.client.queue("shared")}
    assert waiting[jobs[0].id].startswith("0.5 CPUs on head (0 free), worker1 (0 free), worker2 (0 free)")
    assert waiting[jobs[-1].id].startswith(f"999 jobs ahead; the first, job {jobs[0].id}, waits for 0.5 CPUs on head")
    assert len(shared.client.cancel("shared", all=True)) == 1001
    assert {record.status for record in shared.client.queue("shared")[-1000:]} == {JobStatus.CANCELLED}
    last = shared.client.exec(shared.task("cat n.txt", workdir=str(workdir)), "shared")
    last.wait()
    assert texts(list(last.logs())) == ["7"]


def test_one_key_in_several_processes_is_one_job(shared: Lab):
    """Processes that submit the same keys at the same time get the same jobs, and one of them began each."""
    words = [sys.executable, "-c", _SUBMIT, str(shared.home)]
    clients = [subprocess.Popen([*words, str(n)], stdout=subprocess.PIPE, text=True) for n in range(3)]
    answers = [json.loads(client.communicate(timeout=120)[0].replace("T", "t").replace("F", "f")) for client in clients]
    for place in (0, 1):
        assert len({answer[place][0] for answer in answers}) == 1
        assert sorted(answer[place][1] for answer in answers) == [False, True, True]
    again = shared.client.exec("echo other", "shared", key="same-1")
    assert (again.id, again.adopted) == (answers[0][0][0], True)


def test_a_launch_with_a_key_on_a_cluster_that_stands(shared: Lab):
    """The same key is the same job, ended or not, whether by launch or by exec."""
    first = shared.client.launch(shared.task("echo once"), "shared", key="launched")
    first.wait()
    second = shared.client.launch(shared.task("echo twice"), "shared", key="launched")
    third = shared.client.exec("echo thrice", "shared", key="launched")
    assert [(job.id, job.adopted) for job in (first, second, third)] == [
        (first.id, False),
        (first.id, True),
        (first.id, True),
    ]


def test_retries_and_a_timeout_on_several_nodes(shared: Lab):
    """All ranks are begun again together, on the same nodes; a run that takes too long is ended everywhere."""
    count = 'echo try >> ~/tries; n=$(wc -l < ~/tries); echo "try $n"; '
    script = count + "[ $SKYPILOT_NODE_RANK = 1 ] && exit $((40 + n)); sleep 30"
    wanted = skylib.Resources(infra="ssh/lab", job_recovery={"max_restarts_on_errors": 5, "recover_on_exit_codes": [41, 42]})
    job = shared.client.exec(shared.task(script, num_nodes=3, resources=wanted), "shared")
    record = job.wait(check=False)
    assert (record.status, record.attempt, record.exit_codes[1]) == (JobStatus.FAILED, 2, 43)
    assert [line.text for line in job.logs() if line.rank == 1] == ["try 1", "try 2", "try 3"]
    late = shared.client.exec(shared.task("sleep 60 & sleep 60", num_nodes=3, timeout_s=1), "shared")
    record = late.wait(check=False)
    assert (record.status, record.cause) == (JobStatus.FAILED, "timed out after 1 s")
    assert record.first_cause is not None
    assert record.first_cause.reason == "timeout"
    for host in shared.hosts:
        assert "sleep 60" not in " ".join(line for _, line in host.processes("sky"))


def test_a_task_of_many_that_does_not_fit_refuses_all(shared: Lab):
    """By its place; nothing is queued."""
    before = len(shared.client.queue("shared"))
    with pytest.raises(InvalidSpecError, match=r"tasks\[1\]"):
        shared.client.submit_many(["true", shared.task("true", num_nodes=4)], "shared")
    assert len(shared.client.queue("shared")) == before
