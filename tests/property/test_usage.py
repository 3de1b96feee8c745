"""Time in use, over any life of a cluster, is what a second-by-second model says."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.paths import SkyHome
from skylib.state.base import HistoryRecord, UsageInterval
from skylib.state.sqlite import SqliteStore
from skylib.state.transitions import changed, usage_change
from tests.records import cluster_record

UP, UNREACHABLE, AUTOSTOPPING = ClusterStatus.UP, ClusterStatus.UNREACHABLE, ClusterStatus.AUTOSTOPPING

# (status, seconds until then, how many of them it was not in use any more, as the node tells; None: it does not tell)
Step = tuple[ClusterStatus, int, "int | None"]
_told = st.none() | st.integers(0, 5)
_steps = st.lists(st.tuples(st.sampled_from(ClusterStatus), st.integers(0, 5), _told), max_size=25)
_ends = st.none() | st.tuples(st.integers(0, 5), _told)
BEGIN = 100


def _model(steps: list[Step], end: tuple[int, int | None] | None) -> int:
    """Seconds in use. A second is counted at once, or stands in doubt until the cluster is UP again."""
    counted = 0
    now: list[str] = []  # for each second since the last UP that may count: "sure" or "doubt"
    status, in_use = ClusterStatus.INIT, False
    moves: list[tuple[ClusterStatus | None, int, int | None]] = list(steps)
    if end is not None:
        moves.append((None, *end))
    for after, seconds, told in moves:
        if in_use:
            now += ["doubt" if status is UNREACHABLE else "sure"] * seconds
        if after is UP:
            now = ["sure"] * len(now)  # it was there all the time
            in_use = True
        elif after not in (UNREACHABLE, AUTOSTOPPING):
            if in_use and told is not None:
                counted += max(0, len(now) - told)
            elif in_use:
                ending = len(now)
                while status is UNREACHABLE and ending and now[ending - 1] == "doubt":
                    ending -= 1
                counted += ending
            now, in_use = [], False
        status = after if after is not None else status
    return counted + len(now)


def _check(intervals: tuple[UsageInterval, ...], at: float) -> None:
    """In order, apart from each other, not negative, the last one alone may be open."""
    moment = 0.0
    for number, span in enumerate(intervals):
        assert span.start >= moment
        if span.end is None:
            assert number == len(intervals) - 1
        else:
            assert span.start <= span.end <= at
            moment = span.end


def _pure(steps: list[Step], end: tuple[int, int | None] | None) -> tuple[tuple[UsageInterval, ...], int]:
    record: ClusterRecord = cluster_record(status_since=float(BEGIN), launched_at=float(BEGIN))
    intervals: list[UsageInterval] = []
    at = BEGIN
    moves: list[tuple[ClusterStatus | None, int, int | None]] = [*steps, *([(None, *end)] if end is not None else [])]
    for status, seconds, told in moves:
        at += seconds
        last = intervals[-1] if intervals else None
        until = None if told is None else float(at - told)
        change = usage_change(record, status, at=float(at), last=last, used_until=until)
        if change.closes_at is not None:
            assert last is not None
            intervals[-1] = UsageInterval(start=last.start, end=change.closes_at)
        if change.opens_at is not None:
            intervals.append(UsageInterval(start=change.opens_at))
        _check(tuple(intervals), float(at))
        if status is not None:
            record = changed(record, status, float(at), {})
    return tuple(intervals), at


def _used(intervals: tuple[UsageInterval, ...], at: int) -> float:
    return sum(span.seconds(now=float(at)) for span in intervals)


@given(steps=_steps, end=_ends)
@settings(max_examples=500)
def test_used_seconds_are_the_models(steps: list[Step], end: tuple[int, int | None] | None) -> None:
    """Any sequence of settles, with or without a removal: the pure function and the model count the same seconds."""
    intervals, at = _pure(steps, end)
    assert _used(intervals, at) == _model(steps, end)


@given(steps=_steps, end=_ends)
@settings(max_examples=25, deadline=None)
def test_the_store_counts_as_the_pure_function_does(steps: list[Step], end: tuple[int, int | None] | None) -> None:
    """The same sequence through the store: the same intervals."""
    with TemporaryDirectory() as folder:
        store = SqliteStore(SkyHome(Path(folder)))
        store.begin_launch(cluster_record(status_since=float(BEGIN), launched_at=float(BEGIN)))
        at = BEGIN
        for status, seconds, told in steps:
            at += seconds
            store.settle("train", status, at=float(at), used_until=None if told is None else float(at - told))
        if end is not None:
            at += end[0]
            store.remove_cluster("train", at=float(at), used_until=None if end[1] is None else float(at - end[1]))
        (life,) = store.history()
        store.close()
    assert life.intervals == _pure(steps, end)[0]


@given(
    spans=st.lists(st.integers(0, 50), max_size=12),
    is_open=st.booleans(),
    window=st.tuples(st.integers(0, 300), st.integers(0, 300)),
)
def test_a_window_takes_its_own_part(spans: list[int], is_open: bool, window: tuple[int, int]) -> None:
    """Seconds of a window are those of its parts, counted one by one."""
    since, now = min(window), max(window)
    moments = [sum(spans[: index + 1]) for index in range(len(spans))]
    pairs = list(zip(moments[::2], moments[1::2], strict=False))
    intervals = [UsageInterval(start=float(start), end=float(end)) for start, end in pairs]
    if is_open and len(moments) % 2:
        intervals.append(UsageInterval(start=float(moments[-1])))
    record = cluster_record()
    life = HistoryRecord(
        cluster_id="c", name="train", launched_at=0.0, ended_at=None, record=record, intervals=tuple(intervals)
    )
    ticks = {tick for span in intervals for tick in range(int(span.start), int(span.end if span.end is not None else now))}
    assert life.used_seconds(now=float(now), since=float(since)) == len([t for t in ticks if since <= t < now])
