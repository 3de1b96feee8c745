"""A lease on one node."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from skylib.agent.config import AgentConfig
from skylib.agent.lease import Lease, in_words, margin_s, pause_s, spread_every_s
from tests.ray.agent_harness import NodeFolders


class Clock:
    """Seconds since a boot, as told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def head(tmp_path: Path) -> AgentConfig:
    return NodeFolders(tmp_path, count=2).write()[0]._replace(lease_s=100.0)


def test_without_one_nothing_runs_out(head: AgentConfig, clock: Clock) -> None:
    """And nothing is written down."""
    lease = Lease(head._replace(lease_s=None), clock=clock)
    lease.renew()
    lease.save()
    assert (lease.lease_s, lease.left_s) == (None, None)
    assert not Path(head.sky, "lease.json").exists()


def test_contact_renews_it(head: AgentConfig, clock: Clock) -> None:
    """It runs out so long after the last contact, and not before."""
    lease = Lease(head, clock=clock)
    clock.now += 60
    lease.renew()
    assert lease.left_s == 100
    clock.now += 99.5
    assert lease.left_s == 0.5
    clock.now += 1
    assert lease.left_s == 0


def test_an_agent_that_comes_back_goes_on_a_little_late_and_never_early(head: AgentConfig, clock: Clock) -> None:
    """However often it was renewed, the disk holds a deadline that is not before the real one."""
    lease = Lease(head, clock=clock)
    for _ in range(200):
        clock.now += 0.7
        lease.renew()
        lease.save()
        kept = Lease(head, clock=clock).left_s
        assert kept is not None
        assert 100 <= kept <= 100 + margin_s(100)
    clock.now += 50
    again = Lease(head, clock=clock)
    assert again.left_s is not None
    assert 50 <= again.left_s <= 50 + margin_s(100)


def test_a_file_of_another_beginning_says_nothing(head: AgentConfig, clock: Clock) -> None:
    """A cluster that is started again does not end with what an earlier lease left."""
    old = Lease(head, clock=clock)
    old.set(20.0)
    clock.now += 1000
    assert Lease(head, clock=clock).left_s == 0
    fresh = Lease(head._replace(standing="another"), clock=clock)
    assert (fresh.lease_s, fresh.left_s) == (100.0, 100.0)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"identity": 1}', '{"identity": "x", "lease_s": "y"}'])
def test_a_damaged_file_is_none(head: AgentConfig, clock: Clock, text: str) -> None:
    """The configuration's lease begins anew then."""
    Path(head.sky, "lease.json").write_text(text)
    assert Lease(head, clock=clock).left_s == 100


def test_a_worker_waits_longer_for_its_first_word(tmp_path: Path, clock: Clock) -> None:
    """Ray may take its time to come up before the head can tell anything."""
    worker = NodeFolders(tmp_path, count=2).write()[1]._replace(lease_s=20.0)
    assert Lease(worker, clock=clock).left_s == 600


def test_what_the_head_told_is_taken_up_by_a_workers_agent(tmp_path: Path, clock: Clock) -> None:
    """Shorter or longer; a little later than at the head, which ends all of them in good order."""
    worker = NodeFolders(tmp_path, count=2).write()[1]._replace(lease_s=100.0)
    agents = Lease(worker, clock=clock)
    for left_s in (100.0, 30.0, 80.0):
        clock.now += 1
        Lease(worker, clock=clock).told(100.0, left_s)
        assert agents.read()
        assert not agents.read()
        assert agents.left_s == left_s + margin_s(100)
    Lease(worker, clock=clock).told(None, 0.0)
    assert agents.read()
    assert agents.left_s is None


def test_a_new_length_counts_at_once_and_stays(head: AgentConfig, clock: Clock) -> None:
    """Also over a restart; a shorter one, too."""
    lease = Lease(head, clock=clock)
    lease.set(7200.0)
    assert Lease(head, clock=clock).left_s == 7200
    lease.set(30.0)
    assert (Lease(head, clock=clock).lease_s, Lease(head, clock=clock).left_s) == (30, 30)
    assert json.loads(Path(head.sky, "lease.json").read_text())["lease_s"] == 30
    with pytest.raises(ValueError, match="a lease of"):
        lease.set(float("nan"))


def test_a_length_that_cannot_be_written_down_does_not_count(head: AgentConfig, clock: Clock) -> None:
    """The caller has the error, and all is as it was."""
    lease = Lease(head, clock=clock)
    lease.set(7200.0)
    clock.now += 100
    shutil.rmtree(head.sky)
    with pytest.raises(OSError, match=r"lease\.json"):
        lease.set(30.0)
    assert (lease.lease_s, lease.left_s) == (7200, 7100)


@pytest.mark.parametrize(
    ("lease_s", "margin", "pause", "spread"), [(10.0, 1.0, 2.5, 1.0), (7200.0, 10.0, 30.0, 30.0), (60.0, 6.0, 15.0, 6.0)]
)
def test_how_often_it_is_looked_after(lease_s: float, margin: float, pause: float, spread: float) -> None:
    """Several times in a lease, and twice a minute at least."""
    assert (margin_s(lease_s), pause_s(lease_s), spread_every_s(lease_s)) == (margin, pause, spread)


@pytest.mark.parametrize(
    ("seconds", "words"), [(7200, "2 h"), (5400, "90 min"), (45, "45 s"), (86400, "1 d"), (3.6, "3.6 s"), (90, "90 s")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    """In the largest unit that is whole."""
    assert in_words(seconds) == words
