"""How long a job takes on a cluster that stands, and what asking for the queue costs."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import pytest

import skylib
from tests.benchmarks.floor import Floor
from tests.benchmarks.machine import settle
from tests.benchmarks.report import Report, seconds_of
from tests.lab import Lab

pytestmark = [pytest.mark.bench, pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(1800)]

ROUNDS = 10
SUBMIT_ROUNDS = 3
EXEC_LIMIT_S = 0.15
QUEUE_LIMIT_S = 0.05


def seconds_to_line(argv: list[str], wanted: bytes) -> float:
    """Seconds until a program of this machine has printed this line; its end is waited for."""
    started, seconds, printed = time.perf_counter(), None, []
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as done:
            assert done.stdout is not None
            for line in done.stdout:
                printed.append(line)
                if seconds is None and line.strip() == wanted:
                    seconds = time.perf_counter() - started
        errors.seek(0)
        assert done.returncode == 0, b"".join([*printed, errors.read()]).decode(errors="replace")
    assert seconds is not None, printed
    return seconds


def exec_line(client: skylib.Client, task: skylib.Task | str) -> float:
    """Seconds from exec to the first line of its log, on whatever rank; the job is waited for."""
    started = time.perf_counter()
    job = client.exec(task, "shared")
    line = next(iter(job.logs()))
    seconds = time.perf_counter() - started
    assert line.text == "hello"
    job.wait()
    return seconds


def exec_ended(client: skylib.Client, task: skylib.Task) -> float:
    return seconds_of(lambda: client.exec(task, "shared").wait())


def test_exec_to_the_first_line(shared: Lab, tmp_path: Path) -> None:
    """At most 0.15 s on a warm cluster, on one host and on three, on an open connection and on a new one."""
    head = shared.client.cluster("shared").nodes()[0]
    host = next(each for each in shared.hosts if each.ip == head.address.host)
    floor = Floor(shared.hosts, tmp_path)
    one, three = shared.task("echo hello"), shared.task("echo hello", num_nodes=3)
    client = shared.client
    exec_line(client, three)
    report = Report("exec on a warm cluster of 3 hosts, to the first line")
    names = ["exec, 1 host", "exec, 3 hosts", "exec, 1 host, new client", "ssh echo"]
    ended = "exec, 3 hosts, to its end"
    submit = "ray job submit, by ssh"

    def fresh() -> float:
        with skylib.Client(shared.home) as other:
            return exec_line(other, one)

    works = [
        lambda: exec_line(client, one),
        lambda: exec_line(client, three),
        fresh,
        lambda: seconds_to_line(floor.ssh(host, "echo hello"), b"hello"),
    ]
    settle()
    for _ in range(ROUNDS):
        for name, work in zip(names, works, strict=True):
            report.add(name, work())
        report.add(ended, exec_ended(client, three))
    line = "exec skypilot-runtime/bin/ray job submit --address http://127.0.0.1:8266 -- echo hello"
    for _ in range(SUBMIT_ROUNDS):
        report.add(submit, seconds_to_line(floor.ssh(host, line), b"hello"))
    for name in names[:2]:
        report.bound(name, EXEC_LIMIT_S)
    for name in names[:3]:
        report.against(name, submit)
    report.print()
    assert max(report.median(name) for name in names[:2]) <= EXEC_LIMIT_S


def test_queue_on_an_open_connection(shared: Lab) -> None:
    """At most 50 ms, with some tens of jobs in it; beside a command on the same connection."""
    client = shared.client
    while len(client.queue("shared")) < 50:
        client.exec("true", "shared").wait()
    cluster = client.cluster("shared")
    cluster.run("true")
    report = Report(f"queue of {len(client.queue('shared'))} jobs on an open connection", unit="ms")
    settle()
    for _ in range(ROUNDS * 3):
        report.add("queue", seconds_of(lambda: client.queue("shared")))
        report.add("job", seconds_of(lambda: client.job("shared", 1)))
        report.add("a command on all 3 hosts", seconds_of(lambda: cluster.run("true")))
    report.bound("queue", QUEUE_LIMIT_S)
    report.against("queue", "a command on all 3 hosts")
    report.print()
    assert report.median("queue") <= QUEUE_LIMIT_S
