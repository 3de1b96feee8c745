"""What clusters cost: exact to the second, from the times they were in use and the prices of then."""

from __future__ import annotations

import math
from pathlib import Path

import attrs
import pytest

import skylib
from skylib.errors import InvalidSpecError
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.ops.cost import costs, costs_since
from skylib.results import CostReport
from skylib.session import Session
from skylib.state.base import HistoryRecord, UsageInterval
from tests.records import cluster_record, node_record

HOUR = 3600.0
DAY = 24 * HOUR
UP, STOPPED, INIT = ClusterStatus.UP, ClusterStatus.STOPPED, ClusterStatus.INIT


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000 * DAY)


@pytest.fixture
def session(tmp_path: Path, clock: Clock) -> Session:
    made = Session(tmp_path / "sky", clock=clock)
    yield made
    made.close()


def _record(name: str, *prices: float | None, at: float, **fields: object) -> ClusterRecord:
    nodes = tuple(node_record(rank, price_per_hour=price) for rank, price in enumerate(prices))
    values = {"nodes": nodes, "num_nodes": len(nodes), "launched_at": at, "status_since": at, **fields}
    return cluster_record(name, f"{name}-{at:.0f}", **values)


def _life(record: ClusterRecord, *spans: tuple[float, float | None]) -> HistoryRecord:
    return HistoryRecord(
        cluster_id=record.cluster_id,
        name=record.name,
        launched_at=record.launched_at,
        ended_at=None,
        record=record,
        intervals=tuple(UsageInterval(start=start, end=end) for start, end in spans),
    )


def _report(session: Session, days: float = 30) -> CostReport:
    rows, since, until = costs_since(session, days)
    return CostReport(clusters=rows, since=since, until=until)


def _live(session: Session, clock: Clock, record: ClusterRecord, *moves: tuple[ClusterStatus, float]) -> None:
    """Launched now; each status is kept for so many seconds."""
    session.store.begin_launch(record)
    for status, seconds in moves:
        session.store.settle(record.name, status, at=clock.now)
        clock.now += seconds


def test_a_cluster_costs_its_node_hours(session: Session, clock: Clock) -> None:
    """Two nodes at 1.50 and 0.50 dollars, for an hour and a second: to the second."""
    _live(session, clock, _record("train", 1.5, 0.5, at=clock.now), (UP, HOUR + 1))
    session.store.remove_cluster("train", at=clock.now)
    clock.now += HOUR
    (row,) = _report(session)
    assert (row.seconds, row.running) == (HOUR + 1, False)
    assert row.node_hours == pytest.approx(2 * (HOUR + 1) / HOUR, rel=1e-12)
    assert row.cost == pytest.approx(2.0 * (HOUR + 1) / HOUR, rel=1e-12)


def test_what_is_not_in_use_costs_nothing(session: Session, clock: Clock) -> None:
    """Provisioning, a broken time and a stopped time are not counted; what never came up is no row."""
    moves = [(INIT, 100), (UP, 10), (INIT, 1000), (UP, 20), (STOPPED, 5000), (INIT, 100), (UP, 30), (STOPPED, 7)]
    _live(session, clock, _record("nap", 1.0, at=clock.now), *moves)
    _live(session, clock, _record("never", 1.0, at=clock.now), (INIT, 50))
    assert [(row.name, row.seconds, row.running) for row in _report(session)] == [("nap", 60.0, False)]


def test_what_runs_counts_up_to_now(session: Session, clock: Clock) -> None:
    """An open interval is marked as running and grows with the clock; a doubt that stands counts."""
    _live(session, clock, _record("long", 2.0, at=clock.now), (UP, HOUR), (ClusterStatus.UNREACHABLE, HOUR))
    (row,) = _report(session)
    assert (row.running, row.cost) == (True, 4.0)
    clock.now += HOUR
    assert _report(session).cost == 6.0


def test_only_the_part_in_the_window_counts(session: Session, clock: Clock) -> None:
    """Of a cluster that ran for ten days a report of one day has one day, and one that ended before has no row."""
    _live(session, clock, _record("old", 1.0, at=clock.now), (UP, HOUR))
    session.store.remove_cluster("old", at=clock.now)
    clock.now += DAY
    _live(session, clock, _record("long", 1.0, at=clock.now), (UP, 10 * DAY))
    assert [(row.name, row.seconds) for row in _report(session, days=1)] == [("long", DAY)]
    assert [(row.name, row.seconds) for row in _report(session, days=20)] == [("long", 10 * DAY), ("old", HOUR)]
    assert _report(session, days=20).cost == 241.0


def test_each_life_of_a_name_is_a_row_newest_first(session: Session, clock: Clock) -> None:
    """A name that was used twice is two rows, each with the price of its time."""
    for price in (1.0, 3.0):
        _live(session, clock, _record("again", price, at=clock.now), (UP, HOUR))
        session.store.remove_cluster("again", at=clock.now)
    assert [(row.price_per_hour, row.cost) for row in _report(session)] == [(3.0, 3.0), (1.0, 1.0)]


def test_no_price_is_not_no_cost(session: Session, clock: Clock) -> None:
    """A cluster with a node without a price has no cost of its own; the total has what is known, and says what is not."""
    _live(session, clock, _record("some", 1.0, None, at=clock.now), (UP, 2 * HOUR), (STOPPED, 1))
    _live(session, clock, _record("none", None, at=clock.now), (UP, HOUR), (STOPPED, 1))
    _live(session, clock, _record("all", 4.0, 0.0, at=clock.now), (UP, HOUR), (STOPPED, 1))
    report = _report(session)
    assert [(row.name, row.price_per_hour, row.cost) for row in report] == [
        ("all", 4.0, 4.0),
        ("none", None, None),
        ("some", None, None),
    ]
    assert (report.cost, report.node_hours, report.unpriced_node_hours) == (6.0, 7.0, 3.0)


def test_without_any_price_there_is_no_total(session: Session, clock: Clock) -> None:
    """None, not zero dollars; an empty report costs nothing."""
    assert _report(session).cost == 0
    _live(session, clock, _record("none", None, at=clock.now), (UP, HOUR))
    assert _report(session).cost is None


@pytest.mark.parametrize("days", [0, -1, math.nan, math.inf, 1e308, 10**400, -(10**400), "30", True])
def test_days_are_a_time(session: Session, days: object) -> None:
    """Anything else is an InvalidSpecError that names the field."""
    with pytest.raises(InvalidSpecError) as caught:
        costs_since(session, days)  # type: ignore[arg-type]
    assert caught.value.field == "days"


def test_many_windows_add_up() -> None:
    """Windows that follow each other have all of the seconds, each once."""
    life = _life(_record("a", 1.0, at=0.0), (3.0, 11.0), (11.0, 12.0), (20.0, None))
    parts = [costs([life], since=float(at), now=float(at + 5)) for at in range(0, 40, 5)]
    (whole,) = costs([life], since=0.0, now=40.0)
    assert sum(row.seconds for rows in parts for row in rows) == whole.seconds == 29.0


def test_the_client_reports(tmp_path: Path) -> None:
    """client.cost_report() is a CostReport; pandas can take its dicts."""
    with skylib.Client(tmp_path / "sky") as client:
        report = client.cost_report()
    assert isinstance(report, skylib.CostReport)
    assert (list(report), report.to_dicts(), len(report)) == ([], [], 0)


def test_it_shows_itself() -> None:
    """One line in a terminal; a table in a notebook, in which names are escaped."""
    life = _life(_record("a", 1.5, None, at=0.0), (0.0, 2 * HOUR))
    life = attrs.evolve(life, name="<b>&")
    report = CostReport(clusters=costs([life], since=0.0, now=DAY), since=0.0, until=DAY)
    assert repr(report) == "<CostReport clusters=1 days=1.0 node_hours=4.0 cost='$3.00' unpriced_node_hours=2.0>"
    html = report._repr_html_()
    assert "<td>&lt;b&gt;&amp;</td>" in html
    assert "<b>" not in html
    assert "$3.00 + 2.00 node-hours without a price" in html
    assert report.to_dicts()[0]["cost"] is None
    assert report.to_dicts()[0]["node_hours"] == 4.0
