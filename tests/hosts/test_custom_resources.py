"""Countable resources that the pool file names, on real SSH hosts."""

from __future__ import annotations

import pytest

import skylib
from skylib.errors import InvalidSpecError
from skylib.models.job import JobStatus
from tests.lab import Lab, eventually


def test_a_custom_resource_chooses_the_host_and_is_counted(lab: Lab):
    """A launch takes the host that has it; the queue gives it to as many jobs as there are of it."""
    host = lab.hosts[1]
    pool = lab.home.joinpath("ssh_node_pools.yaml").read_text()
    named = pool.replace(f"- ip: {host.ip}\n", f"- ip: {host.ip}\n      resources: {{License: 1}}\n")
    assert named != pool
    lab.pool(named)
    task = lab.task("sleep 600", resources=skylib.Resources(infra="ssh/lab", accelerators="license"))
    first = lab.client.launch(task, "c")
    (node,) = lab.client.cluster("c").nodes()
    assert (node.internal_ip, dict(node.custom)) == (host.ip, {"License": 1.0})
    eventually(lambda: first.status() is JobStatus.RUNNING, what="the first job's start")
    second = lab.client.exec(task, "c")
    assert second.record().waiting_for == "1 x License on head (0 free)"
    first.cancel()
    eventually(lambda: second.status() is JobStatus.RUNNING, what="the second job's start")
    with pytest.raises(InvalidSpecError, match="has 1 x License, 2 asked"):
        lab.client.exec(lab.task("true", resources=skylib.Resources(accelerators="license:2")), "c")
    lab.client.down("c")
