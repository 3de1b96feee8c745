"""Which nodes are lost: by what Ray and their hosts say, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.agent.portwatch import ANSWERS, REFUSED, SILENT, UNKNOWN
from skylib.agent.presence import LOST_S, RETURN_S, NodeSeen, Presence, is_lost

HOSTS = (ANSWERS, REFUSED, SILENT, UNKNOWN)


@pytest.mark.parametrize(
    ("host", "host_s", "absent_s", "ray_up_s", "first_life", "lost"),
    [
        (SILENT, LOST_S - 1, 100.0, 100.0, True, False),  # it has only just fallen silent
        (SILENT, LOST_S, 0.0, 100.0, True, True),
        (SILENT, LOST_S, 0.0, 0.0, False, True),  # Ray was begun anew, and the host is silent nevertheless
        (REFUSED, 30.0, 30.0, 100.0, True, False),  # the host is there: its Ray may come back
        (REFUSED, 90.0, RETURN_S, 100.0, True, True),
        (ANSWERS, 30.0, 30.0, 100.0, True, False),
        (ANSWERS, 90.0, RETURN_S, 100.0, True, True),
        (UNKNOWN, 0.0, 11.0, 100.0, True, False),
        (UNKNOWN, 0.0, 12.0, 100.0, True, True),
        (UNKNOWN, 0.0, 12.0, 12.0, False, False),  # after Ray was begun anew its nodes are on their way
        (UNKNOWN, 0.0, 32.0, 32.0, False, True),
    ],
)
def test_a_node_that_ray_does_not_have(
    host: str, host_s: float, absent_s: float, ray_up_s: float, first_life: bool, lost: bool
):
    """A silent host is lost soon; one that answers is left time to bring its Ray back; unknown lies between."""
    seen = NodeSeen(in_ray=False, host=host, host_s=host_s)
    assert is_lost(seen, absent_s=absent_s, ray_up_s=ray_up_s, first_life=first_life, lost_s=LOST_S) is lost


@given(host=st.sampled_from(HOSTS), host_s=st.floats(0, 1e4), absent_s=st.floats(0, 1e4), lost_s=st.floats(0.1, 100))
def test_a_node_that_ray_has_is_never_lost(host: str, host_s: float, absent_s: float, lost_s: float):
    """Whatever its host says."""
    seen = NodeSeen(in_ray=True, host=host, host_s=host_s)
    assert not is_lost(seen, absent_s=absent_s, ray_up_s=1e4, first_life=True, lost_s=lost_s)


@given(host=st.sampled_from(HOSTS), waited_s=st.floats(0, 1e3), more_s=st.floats(0, 1e3), lost_s=st.floats(0.1, 100))
def test_what_is_lost_stays_lost_with_time(host: str, waited_s: float, more_s: float, lost_s: float):
    """Nothing but news brings a node back, and within two minutes and twice lost_s every absent node is lost."""

    def lost(seconds: float) -> bool:
        seen = NodeSeen(in_ray=False, host=host, host_s=seconds)
        return is_lost(seen, absent_s=seconds, ray_up_s=seconds, first_life=False, lost_s=lost_s)

    assert not lost(waited_s) or lost(waited_s + more_s)
    assert lost(120 + 2 * lost_s)


def test_nobody_is_lost_anew_while_ray_is_down():
    """Absence counts from when Ray is up; a node that Ray has again is lost no more."""
    presence = Presence()
    gone = {0: NodeSeen(True, ANSWERS, 9.0), 1: NodeSeen(False, UNKNOWN, 0.0)}
    assert presence.observe(0.0, up=False, nodes=gone) == set()
    assert presence.observe(100.0, up=False, nodes=gone) == set()
    assert presence.observe(101.0, up=True, nodes=gone) == set()
    assert presence.observe(114.0, up=True, nodes=gone) == {1}
    assert presence.observe(115.0, up=False, nodes=gone) == {1}
    back = {**gone, 1: NodeSeen(True, ANSWERS, 1.0)}
    assert presence.observe(116.0, up=True, nodes=back) == set()


def test_the_bound_can_be_set():
    """A cluster with slow links may wait longer for a silent host."""
    patient = Presence(30.0)
    silent = {0: NodeSeen(False, SILENT, 29.0)}
    assert patient.observe(0.0, up=True, nodes=silent) == set()
    assert patient.observe(1.0, up=True, nodes={0: NodeSeen(False, SILENT, 30.0)}) == {0}
