"""Ports: every one given, none twice, none that the user's own Ray wants."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.errors import InvalidSpecError, PreflightError
from skylib.runtime.ports import FIXED_BASE, MAX_NODES_ON_MACHINE, RAY_DEFAULTS, HeadPorts, NodePorts, free_base, next_free

RAY_WORKERS = range(10002, 20000)
EPHEMERAL = range(32768, 61000)
BASES = st.sampled_from(range(FIXED_BASE, 23700, 300))


def every_port(base: int, nodes: int) -> list[int]:
    """All that a machine's nodes and head listen on, the worker ports spelled out."""
    ports = list(HeadPorts.at(base).fixed())
    for rank in range(nodes):
        node = NodePorts.for_rank(rank, base, nodes_on_machine=nodes)
        ports += [*node.fixed(), *range(node.worker_min, node.worker_max + 1)]
    return ports


@given(BASES, st.integers(1, MAX_NODES_ON_MACHINE))
def test_no_port_is_given_twice_or_is_one_of_rays(base: int, nodes: int) -> None:
    """Head and nodes of one machine share no port, and none lies where Ray's defaults or the kernel's choices lie."""
    ports = every_port(base, nodes)
    assert len(ports) == len(set(ports))
    assert not RAY_DEFAULTS & set(ports)
    assert not [port for port in ports if port in RAY_WORKERS or port in EPHEMERAL]


def test_the_first_node_has_skypilots_object_manager_port() -> None:
    """Firewalls that were opened for SkyPilot fit."""
    assert NodePorts.for_rank(0).object_manager == 8076
    assert (HeadPorts.at().ray, HeadPorts.at().dashboard) == (6380, 8266)


@pytest.mark.parametrize(("rank", "nodes"), [(-1, 1), (1, 1), (32, 33), (0, 33)])
def test_too_many_nodes_on_a_machine_are_refused(rank: int, nodes: int) -> None:
    """A rank outside the machine's share is the caller's mistake, by name."""
    with pytest.raises(InvalidSpecError, match="at most 32 nodes"):
        NodePorts.for_rank(rank, nodes_on_machine=nodes)


@given(st.sets(st.integers(1, 65535), max_size=40), st.integers(1, 4))
def test_a_base_is_free_of_what_others_hold(taken: set[int], nodes: int) -> None:
    """Whatever listens already, no fixed port of ours meets it."""
    base = free_base(taken, nodes_on_machine=nodes)
    wanted = set(HeadPorts.at(base).inner())
    for rank in range(nodes):
        wanted.update(NodePorts.for_rank(rank, base, nodes_on_machine=nodes).fixed())
    assert not wanted & taken


def test_no_free_base_is_told() -> None:
    """A machine whose every block is taken gives PreflightError with what is in the way."""
    with pytest.raises(PreflightError, match="no free block of ports") as caught:
        free_base(range(8000, 24000))
    assert "20100" in str(caught.value.evidence)


@given(st.sets(st.integers(6375, 6390)), st.sampled_from([6378, 6379, 6380, 8264, 8266, 10001]))
def test_the_next_free_port_is_never_rays_own(taken: set[int], wanted: int) -> None:
    """At or above what is wanted, free, and not a default of Ray's."""
    port = next_free(wanted, taken)
    assert port >= wanted
    assert port not in taken
    assert port not in RAY_DEFAULTS
    assert port not in RAY_WORKERS


def test_no_port_left_is_told() -> None:
    """When all above is taken, PreflightError says from where it looked."""
    with pytest.raises(PreflightError, match="no free port from 65530 up"):
        next_free(65530, range(65530, 65536))
