"""The next status of a cluster is a pure function of what was seen."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skylib.models.cluster import ClusterStatus
from skylib.models.node import HostAddress
from skylib.ops.look import Seen, Trace, next_status, traces_of
from skylib.session import Session
from tests.records import cluster_record, node_record

UP, INIT, STOPPED = ClusterStatus.UP, ClusterStatus.INIT, ClusterStatus.STOPPED
UNREACHABLE, AUTOSTOPPING = ClusterStatus.UNREACHABLE, ClusterStatus.AUTOSTOPPING
OURS, NONE, UNKNOWN = Trace.OURS, Trace.NONE, Trace.UNKNOWN
WANTED = 2

Row = tuple[ClusterStatus, Seen]


def _all_traces(longest: int) -> list[tuple[Trace, ...]]:
    return [each for count in range(longest + 1) for each in itertools.product(Trace, repeat=count)]


def _rows() -> Iterator[Row]:
    """Everything that can be known before and seen of a cluster of two nodes."""
    flags = [(False, True)] * 6
    for known, traces, alive, at in itertools.product(ClusterStatus, _all_traces(WANTED), range(WANTED + 2), (None, 1.0)):
        for reached, agent, ray_ok, stopped, released, stopping in itertools.product(*flags):
            yield (
                known,
                Seen(
                    reached=reached,
                    agent=agent,
                    ray_ok=ray_ok,
                    alive=alive,
                    stopped=stopped,
                    released=released,
                    stopping=stopping,
                    stopped_at=at,
                    traces=traces,
                ),
            )


def _told(known: ClusterStatus, seen: Seen) -> bool:
    """The head's host answered, and the cluster is not one that is asleep until it is started."""
    return known is not STOPPED and seen.reached


def _silent(known: ClusterStatus, seen: Seen) -> bool:
    """The head answered without an agent, and left no word of a stop."""
    return _told(known, seen) and not seen.agent and not seen.stopped


def _left_word(known: ClusterStatus, seen: Seen) -> bool:
    """The head tells that the cluster stopped by itself, and no agent is there to say otherwise."""
    return _told(known, seen) and not seen.agent and seen.stopped


def _whole(seen: Seen) -> bool:
    return seen.ray_ok and seen.alive == WANTED


# What each status means. Of all rows each is described by exactly one of them, which the test sees to.
MEANING: dict[ClusterStatus | None, Callable[[ClusterStatus, Seen], bool]] = {
    UP: lambda known, seen: _told(known, seen) and seen.agent and _whole(seen) and not seen.stopping,
    AUTOSTOPPING: lambda known, seen: _told(known, seen) and seen.agent and seen.stopping,
    INIT: lambda known, seen: (
        (_told(known, seen) and seen.agent and not _whole(seen) and not seen.stopping)
        or (_silent(known, seen) and (seen.traces == () or OURS in seen.traces))
    ),
    UNREACHABLE: lambda known, seen: (
        known is not STOPPED
        and (not seen.reached or (_silent(known, seen) and seen.traces in {(NONE,), (UNKNOWN,), *UNSURE}))
    ),
    STOPPED: lambda known, seen: known is STOPPED or (_left_word(known, seen) and not seen.released),
    None: lambda known, seen: (
        (_left_word(known, seen) and seen.released) or (_silent(known, seen) and seen.traces == (NONE, NONE))
    ),
}
UNSURE = {(NONE, UNKNOWN), (UNKNOWN, NONE), (UNKNOWN, UNKNOWN)}


def test_every_row_of_the_whole_table() -> None:
    """Each thing that can be seen has one meaning, and next_status gives that one."""
    count = 0
    for known, seen in _rows():
        count += 1
        meant = [status for status, is_meant in MEANING.items() if is_meant(known, seen)]
        assert meant == [next_status(known, WANTED, seen)], (known, seen)
    assert count == 5 * 13 * 4 * 2 * 2**6


@pytest.mark.parametrize(
    ("known", "seen", "expected"),
    [
        (UP, Seen(reached=True, agent=True, ray_ok=True, alive=2), UP),
        (INIT, Seen(reached=True, agent=True, ray_ok=True, alive=2), UP),
        (UNREACHABLE, Seen(reached=True, agent=True, ray_ok=True, alive=2), UP),
        (STOPPED, Seen(reached=True, agent=True, ray_ok=True, alive=2), STOPPED),
        (STOPPED, Seen(reached=False), STOPPED),
        (STOPPED, Seen(reached=True, traces=(NONE, NONE)), STOPPED),
        (UP, Seen(reached=True, agent=True, ray_ok=True, alive=1), INIT),
        (UP, Seen(reached=True, agent=True, ray_ok=False, alive=2), INIT),
        (UP, Seen(reached=True, agent=True, stopping=True, ray_ok=True, alive=2), AUTOSTOPPING),
        (UP, Seen(reached=True, stopped=True, stopped_at=5.0), STOPPED),
        (AUTOSTOPPING, Seen(reached=True, stopped=True), STOPPED),
        (UNREACHABLE, Seen(reached=True, stopped=True), STOPPED),
        (UP, Seen(reached=True, stopped=True, released=True), None),
        (UP, Seen(reached=False), UNREACHABLE),
        (INIT, Seen(reached=False), UNREACHABLE),
        (UP, Seen(reached=False, traces=(UNKNOWN, OURS)), UNREACHABLE),
        (UP, Seen(reached=False, traces=(UNKNOWN, NONE)), UNREACHABLE),
        (UP, Seen(reached=True), INIT),
        (UP, Seen(reached=True, traces=(OURS,)), INIT),
        (UP, Seen(reached=True, traces=(NONE, OURS)), INIT),
        (UP, Seen(reached=True, traces=(NONE, UNKNOWN)), UNREACHABLE),
        (UP, Seen(reached=True, traces=(NONE,)), UNREACHABLE),
        (UP, Seen(reached=True, traces=(NONE, NONE)), None),
        (UNREACHABLE, Seen(reached=True, traces=(NONE, NONE)), None),
    ],
)
def test_the_next_status_follows_from_what_was_seen(known, seen, expected):
    """Unreachable is not gone, parts missing is INIT, gone is said by every host, and what was stopped stays stopped."""
    assert next_status(known, WANTED, seen) is expected


_traces = st.lists(st.sampled_from(Trace), max_size=5).map(tuple)
_seen = st.builds(
    Seen,
    reached=st.booleans(),
    agent=st.booleans(),
    ray_ok=st.booleans(),
    alive=st.integers(0, 5),
    stopped=st.booleans(),
    released=st.booleans(),
    stopping=st.booleans(),
    stopped_at=st.none() | st.floats(0, 10),
    traces=_traces,
)
_awake = st.sampled_from([status for status in ClusterStatus if status is not STOPPED])


@given(known=_awake, wanted=st.integers(1, 5), seen=_seen)
def test_doubt_ends_nothing(known: ClusterStatus, wanted: int, seen: Seen) -> None:
    """Only the node's own word stops a cluster, and only that or every host's clear no lets it go."""
    found = next_status(known, wanted, seen)
    if not seen.reached:
        assert found is UNREACHABLE
    if found is STOPPED:
        assert seen.stopped
    if found is None and not seen.stopped:
        assert len(seen.traces) >= wanted
        assert set(seen.traces) == {NONE}


@given(known=_awake, wanted=st.integers(1, 5), seen=_seen)
def test_an_agent_that_answers_keeps_its_cluster(known: ClusterStatus, wanted: int, seen: Seen) -> None:
    """Whatever else there is: one that speaks is neither gone nor stopped."""
    if seen.agent:
        assert next_status(known, wanted, seen) not in (None, STOPPED)


@given(first=_awake, second=_awake, wanted=st.integers(1, 5), seen=_seen)
def test_what_was_known_is_no_witness(first: ClusterStatus, second: ClusterStatus, wanted: int, seen: Seen) -> None:
    """A cluster that is awake is what was seen of it; so one that was UNREACHABLE recovers by itself."""
    assert next_status(first, wanted, seen) is next_status(second, wanted, seen)


@given(wanted=st.integers(1, 5), seen=_seen, data=st.data())
def test_one_host_less_never_makes_gone(wanted: int, seen: Seen, data: st.DataObject) -> None:
    """Where a host is no longer reached, nothing that was kept is dropped."""
    if not seen.traces:
        return
    lost = data.draw(st.integers(0, len(seen.traces) - 1))
    traces = (*seen.traces[:lost], UNKNOWN, *seen.traces[lost + 1 :])
    worse = Seen(reached=seen.reached and lost > 0, agent=seen.agent, traces=traces)
    assert next_status(UP, wanted, worse) in (INIT, UNREACHABLE)


OTHERS = "theirs01"


def local_traces(session: Session, home: Path, owner: str) -> tuple[Trace, ...]:
    """Of a `local` cluster whose node's folder in that home is not there."""
    node = node_record(root=str(home / "local" / "k" / "rank0"), address=HostAddress(kind="local"))
    return traces_of(session, cluster_record("k", nodes=(node,), infra="local", owner=owner))


def test_a_local_node_of_this_home_is_gone_when_its_folder_is(tmp_path: Path) -> None:
    """The home is here, whether or not it ever had a `local` cluster; so is another that can be listed."""
    session = Session(tmp_path / "sky")
    other = tmp_path / "other"
    other.joinpath("local").mkdir(parents=True)
    for home in (session.home.root, other):
        assert local_traces(session, home, session.user_hash) == (NONE,)


def test_a_local_node_in_a_home_that_is_not_to_be_seen_may_be_there(tmp_path: Path) -> None:
    """A home that is not there, or not mounted, or another account's, says nothing."""
    session = Session(tmp_path / "sky")
    assert local_traces(session, tmp_path / "missing", session.user_hash) == (UNKNOWN,)
    assert local_traces(session, tmp_path / "missing", OTHERS) == (UNKNOWN,)


def test_a_path_of_this_home_says_nothing_of_another_homes_node(tmp_path: Path) -> None:
    """Two machines of one name and id have a home of the same path each: the owner's is known by its hash."""
    session = Session(tmp_path / "sky")
    assert session.user_hash != OTHERS
    session.home.root.joinpath("local").mkdir()
    assert local_traces(session, session.home.root, OTHERS) == (UNKNOWN,)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    theirs.joinpath("user_hash").write_text(f"{OTHERS}\n")
    assert local_traces(session, theirs, OTHERS) == (NONE,)
