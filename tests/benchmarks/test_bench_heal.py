"""How long a cluster takes to stand again after its Ray was stopped under it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from skylib.session import Session
from tests.benchmarks.machine import settle
from tests.benchmarks.report import Report
from tests.lab import Lab, eventually, texts

pytestmark = [pytest.mark.bench, pytest.mark.hosts, pytest.mark.ray, pytest.mark.timeout(1800)]

ROUNDS = 3
STANDS_S = 15.0  # before it is stopped: Ray that ends sooner is started again after a pause


def test_from_ray_stop_to_a_gang_that_runs(shared: Lab) -> None:
    """`ray stop` on the head, on a worker, on all: how long until Ray is well again, and until a gang has run."""
    report = Report("`ray stop` on hosts of a cluster of 3, to a cluster that is well")
    gang = shared.task("echo well", num_nodes=3)
    session = Session(shared.home, config=shared.config)
    record = session.store.cluster("shared")
    assert record is not None
    agent = session.agent(record)
    head = record.head.internal_ip
    by_role = {
        "the head": [host for host in shared.hosts if host.ip == head],
        "a worker": [host for host in shared.hosts if host.ip != head][:1],
        "all hosts": list(shared.hosts),
    }

    def well() -> bool:
        info = agent.call("info")
        return bool(info["ray_ok"]) and info["alive_ranks"] == [0, 1, 2]

    for name, hosts in by_role.items():
        for _ in range(ROUNDS):
            eventually(well, within_s=120, what="a cluster that is well")
            time.sleep(STANDS_S)
            settle()
            with ThreadPoolExecutor(len(hosts)) as pool:
                list(pool.map(lambda host: host.sh("skypilot-runtime/bin/ray stop", user="sky", check=True), hosts))
            started = time.perf_counter()
            eventually(lambda: not well(), within_s=30, what="that the agent sees it")
            report.add(f"{name}: seen", time.perf_counter() - started)
            eventually(well, within_s=120, what="a cluster that is well again")
            report.add(f"{name}: Ray is well", time.perf_counter() - started)
            job = shared.client.exec(gang, "shared")
            assert texts(list(job.logs())) == ["well"] * 3
            job.wait()
            report.add(f"{name}: a gang has run", time.perf_counter() - started)
    session.close()
    report.print()
