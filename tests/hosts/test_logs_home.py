"""Logs outlive their cluster: they come home before it goes, whoever ends it."""

from __future__ import annotations

import threading
from pathlib import Path

import skylib
from tests.hosts.test_logs import kill_agent
from tests.lab import Lab, eventually, texts


def test_logs_come_home_before_a_cluster_goes(lab: Lab):
    """down while a job prints: its log, as far as it came, and the queue can be read afterwards; the copy is whole."""
    job = lab.client.launch(lab.task("for i in $(seq 5); do echo $i; done; sleep 60"), "brief")
    lines = job.logs()
    assert [next(lines).text for _ in range(5)] == ["1", "2", "3", "4", "5"]
    late: list[list[str]] = []
    reading = threading.Thread(target=lambda: late.append(texts(list(lines))))
    reading.start()
    lab.client.down("brief")
    reading.join(30)
    assert late == [[]]
    assert texts(list(job.logs())) == ["1", "2", "3", "4", "5"]
    assert texts(list(job.logs(tail=2))) == ["4", "5"]
    assert job.status() is skylib.JobStatus.CANCELLED
    folder = lab.client.download_logs("brief", job.id)[job.id]
    assert Path(folder, "run.log").read_text().splitlines()[0] == "(head, rank=0) 1"


def test_logs_come_home_although_the_agent_is_dead(lab: Lab):
    """The head's agent was killed: down finds another way to bring what its jobs printed."""
    job = lab.client.launch(lab.task("echo kept; sleep 60"), "brief")
    assert next(job.logs()).text == "kept"
    head = next(host for host in lab.hosts if host.ip == lab.client.cluster("brief").nodes()[0].internal_ip)
    kill_agent(head)
    lab.client.down("brief")
    assert texts(list(job.logs())) == ["kept"]
    eventually(lambda: lab.ours(head) == [], what="an end of all processes")
