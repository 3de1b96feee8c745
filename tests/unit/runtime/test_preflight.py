"""Whether a machine can carry a node, from its facts alone."""

from __future__ import annotations

import attrs
import pytest

from skylib.errors import PreflightError
from skylib.models.node import NodeFacts, PortHolder
from skylib.runtime.ports import FIXED_BASE, HeadPorts
from skylib.runtime.preflight import (
    Problem,
    check_disk,
    choose_head_ports,
    choose_temp_dir,
    foreign_cluster,
    raise_problems,
)

FACTS = NodeFacts(
    os="Linux",
    arch="x86_64",
    libc="glibc 2.36",
    home="/home/me",
    user="me",
    uid=1000,
    hostname="host1",
    cpus=4,
    memory_gib=16.0,
    disk_free_gib=50.0,
    home_file_system="ext4",
)


def held(port: int, uid: int) -> NodeFacts:
    return attrs.evolve(FACTS, listening=(port,), port_holders=(PortHolder(port=port, uid=uid),))


def test_a_free_host_gets_skypilots_ports():
    """6380 for Ray and 8266 for the dashboard, when nobody listens there."""
    ports = choose_head_ports("host1", FACTS, base=FIXED_BASE)
    assert isinstance(ports, HeadPorts)
    assert (ports.ray, ports.dashboard) == (6380, 8266)


def test_another_users_port_moves_ours_to_the_next_free_one():
    """Another account on 6380 moves Ray to the next free port, never back to the user's 6379."""
    ports = choose_head_ports("host1", held(6380, uid=1001), base=FIXED_BASE)
    assert isinstance(ports, HeadPorts)
    assert ports.ray == 6381


def test_our_own_accounts_process_on_6380_is_a_problem_that_is_named():
    """A process of the same account on 6380 is not worked around: port, account and host are named."""
    problem = choose_head_ports("host1", held(6380, uid=1000), base=FIXED_BASE)
    assert isinstance(problem, Problem)
    assert "6380" in problem.reason
    assert "me" in problem.reason
    assert "host1" in problem.hint


def test_the_dashboard_moves_alone():
    """Another account on 8266 moves the dashboard and leaves Ray's port."""
    ports = choose_head_ports("host1", held(8266, uid=7), base=FIXED_BASE)
    assert isinstance(ports, HeadPorts)
    assert (ports.ray, ports.dashboard) == (6380, 8267)


@pytest.mark.parametrize(
    ("owners", "expected"),
    [
        ((None, None), "/tmp/ray_skypilot"),
        ((1000, 1000), "/tmp/ray_skypilot"),
        ((0, None), "/tmp/ray_skypilot_1000"),
        ((None, 5), "/tmp/ray_skypilot_1000"),
    ],
)
def test_the_temp_dir_is_one_that_belongs_to_us_on_every_node(owners, expected):
    """A temp dir of another account on any node moves all nodes to one with the head's uid."""
    facts = [attrs.evolve(FACTS, temp_dir_owner=owner) for owner in owners]
    assert choose_temp_dir(facts) == expected


def test_a_full_disk_is_a_problem_with_the_figure():
    """Too little room in the home is told in MiB."""
    problem = check_disk("host1", attrs.evolve(FACTS, disk_free_gib=0.25), min_free_gib=1.0)
    assert problem is not None
    assert "256 MiB" in problem.reason


def test_enough_disk_is_no_problem():
    """Exactly the least that is asked for is enough."""
    assert check_disk("host1", attrs.evolve(FACTS, disk_free_gib=1.0), min_free_gib=1.0) is None


def test_a_foreign_clusters_mark_is_respected():
    """Another cluster's mark on the account is a problem that names that cluster; our own is none."""
    marked = attrs.evolve(FACTS, cluster={"cluster": "theirs", "cluster_id": "b"})
    problem = foreign_cluster("host1", marked, "a")
    assert problem is not None
    assert "theirs" in problem.reason
    assert foreign_cluster("host1", marked, "b") is None


def test_every_problem_travels_with_the_error():
    """PreflightError names all hosts and carries each problem; without problems nothing is raised."""
    problems = [Problem(host="a", step="preflight.disk", reason="full"), Problem(host="b", step="x", reason="held")]
    with pytest.raises(PreflightError) as caught:
        raise_problems("train", problems)
    assert caught.value.problems == tuple(problems)
    assert caught.value.host == "a"
    assert "b: held" in str(caught.value)
    raise_problems("train", [])


def test_no_port_for_ray_is_a_problem_of_that_host():
    """Where every port from 6380 up is taken the problem names the host."""
    problem = choose_head_ports("host1", attrs.evolve(FACTS, listening=tuple(range(6380, 65536))), base=FIXED_BASE)
    assert isinstance(problem, Problem)
    assert (problem.host, problem.step) == ("host1", "preflight.ports")
