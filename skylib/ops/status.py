"""What is known of clusters, and what their nodes say when they are asked."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack

import attrs

from skylib.errors import ClusterBusy, SkyError
from skylib.events import EventSink
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.receipts import InfraStatus, Settled
from skylib.ops.cleanup import end_and_release, end_everywhere, give_back
from skylib.ops.keeping import bring_logs_home
from skylib.ops.look import Seen, Trace, look, mark_of, next_status, note, traces_of
from skylib.ops.pen import Pen, TooLate
from skylib.ops.reconcile import settle_clusters
from skylib.session import Session
from skylib.transport.fanout import Outcome, fanout

__all__ = ["Seen", "check", "next_status", "refresh", "status"]

ENDINGS_AT_ONCE = 8
_NOWHERE = "every host was reached, and nothing of the cluster is on any"
_STOPPED_BY_ITSELF = "idle for long enough, it stopped by itself and gave its hosts back"


class _Unclean(Exception):
    """Not all of it could be taken away."""


@attrs.frozen(kw_only=True)
class _Ending:
    """A cluster that is gone, or stopped by itself, as far as the look at it tells."""

    record: ClusterRecord
    seen: Seen


def status(
    session: Session,
    names: Iterable[str] | None = None,
    *,
    refresh_first: bool = False,
    timeout_s: float = 30.0,
) -> list[ClusterRecord]:
    """All clusters, the newest launch first, or those of `names` in that order. Raises ClusterNotFound.

    refresh_first: their nodes are asked, all at once; what has not answered after timeout_s is UNREACHABLE for now, and
    what could not even be asked is as it was.
    """
    if names is None:
        records = session.store.clusters()
    else:
        wanted = [names] if isinstance(names, str) else list(names)
        found = {record.name: record for record in session.store.clusters(wanted)}
        for name in wanted:
            if name not in found:
                found[name] = session.require(name)
        records = [found[name] for name in wanted]
    if not refresh_first or not records:
        return records
    with session.operation("status") as events:
        settled = settle_clusters(session, [record.name for record in records], events, patience_s=timeout_s / 2)
        if settled:  # what a dead process had begun is finished or undone now, or the cluster is left to it
            known = {record.name: record for record in session.store.clusters([record.name for record in records])}
            records = [known[record.name] for record in records if record.name in known]
        stuck = {each.cluster for each in settled if each.blocks or each.done is Settled.BUSY}
        fresh = _refresh(session, records, events, timeout_s, stuck=stuck)
    return [record for record in fresh if record is not None]


def refresh(session: Session, record: ClusterRecord, events: EventSink, *, timeout_s: float = 30.0) -> ClusterRecord | None:
    """Ask one cluster, within an operation; None when it is gone."""
    return _refresh(session, [record], events, timeout_s)[0]


def _refresh(
    session: Session,
    records: Sequence[ClusterRecord],
    events: EventSink,
    timeout_s: float,
    *,
    stuck: Collection[str] = (),
) -> list[ClusterRecord | None]:
    """Ask and settle. Threads only look; what they see is written here, and what takes longer under the pen."""
    deadline = time.monotonic() + timeout_s
    asked = {record.name: record for record in records if _is_asked(record) and record.name not in stuck}
    fresh: dict[str, ClusterRecord | None] = {}
    endings: list[_Ending] = []
    for outcome in fanout(lambda record: look(session, record), asked.values(), patience_s=timeout_s):
        seen = _seen(outcome)
        if seen is None:
            continue
        record = outcome.item
        found = next_status(record.status, record.num_nodes, seen)
        if found is None or found is ClusterStatus.STOPPED:
            endings.append(_Ending(record=record, seen=seen))
        elif found is not record.status:
            fresh[record.name] = note(session, record, found)
    fresh.update(_end_all(session, endings, events, deadline))
    return [fresh.get(record.name, record) for record in records]


def _is_asked(record: ClusterRecord) -> bool:
    """What was stopped stays so until it is started; without nodes there is nobody to ask."""
    return record.status is not ClusterStatus.STOPPED and bool(record.nodes)


def _seen(outcome: Outcome[ClusterRecord, Seen | None]) -> Seen | None:
    """None when nothing can be said: not asked, or not understood. Raises what is no trouble of one cluster."""
    if outcome.ok:
        return outcome.value
    if isinstance(outcome.error, CancelledError):
        return None
    if isinstance(outcome.error, (SkyError, TimeoutError)):
        return Seen(reached=False)
    return outcome.get()


def _end_all(
    session: Session, endings: Sequence[_Ending], events: EventSink, deadline: float
) -> dict[str, ClusterRecord | None]:
    """What became of them; those not done in time are asked again the next time."""
    left_s = deadline - time.monotonic()
    if not endings or left_s <= 0:
        return {}
    pen = Pen()
    try:
        outcomes = fanout(
            lambda ending: _end(session, ending, pen.sink(events), pen),
            endings,
            limit=ENDINGS_AT_ONCE,
            patience_s=left_s,
        )
    finally:
        pen.put_down()
    done: dict[str, ClusterRecord | None] = {}
    for outcome in outcomes:
        if outcome.error is not None and not isinstance(outcome.error, (CancelledError, TimeoutError, SkyError)):
            raise outcome.error
        name = outcome.item.record.name
        done[name] = outcome.value if outcome.ok else session.store.cluster(name)
    return done


def _end(session: Session, ending: _Ending, events: EventSink, pen: Pen) -> ClusterRecord | None:
    """Under the cluster's lock. What an operation is on, or a dead one left half-done, is not ours to end."""
    record = ending.record
    try:
        with session.hold(record.name, "status", 0.0):
            now = session.store.cluster(record.name)
            if now is None or mark_of(now) != mark_of(record) or session.left_intents(record.name):
                return now
            if ending.seen.stopped:
                return _give_up(session, ending, events, pen)
            return _forget(session, record, events, pen)
    except (ClusterBusy, _Unclean):
        return session.store.cluster(record.name)


def _forget(session: Session, record: ClusterRecord, events: EventSink, pen: Pen) -> ClusterRecord | None:
    """Nothing of it is anywhere: into history with it, its hosts are free. All nodes are asked once more, under the lock."""
    traces = traces_of(session, record)
    if len(traces) < record.num_nodes or any(trace is not Trace.NONE for trace in traces):
        return record
    with pen:
        session.forget_agent(record.cluster_id)
        give_back(session, record, events)
        session.store.remove_cluster(record.name, at=session.clock(), cluster_id=record.cluster_id, reason=_NOWHERE)
    return None


def _give_up(session: Session, ending: _Ending, events: EventSink, pen: Pen) -> ClusterRecord | None:
    """It stopped by itself: its logs come home, what still runs is ended, and, if it said so, it is released.

    Until that is done it is AUTOSTOPPING, and asked again; with logs that do not come it stays, STOPPED. What is late
    late, or not clean, leaves its intent open: whoever holds the cluster next goes on with it.
    """
    record = ending.record
    operation = "release" if ending.seen.released else "stop"
    with ExitStack() as intent:
        with pen:
            details = {"cluster_id": record.cluster_id, "was": record.status.value}
            intent.enter_context(session.intent(operation, record.name, (TooLate, _Unclean), **details))
            if record.status is not ClusterStatus.AUTOSTOPPING:
                settle = session.store.settle
                record = settle(record.name, ClusterStatus.AUTOSTOPPING, at=session.clock(), cluster_id=record.cluster_id)
        try:
            missing = bring_logs_home(session, record, pen=pen)
            pen.check()
            release = ending.seen.released and not missing
            receipts = (end_and_release if release else end_everywhere)(session, record, events)
        except SkyError:
            pen.check()
            raise
        with pen, intent:
            until = _used_until(session, ending)
            if not release:
                settle = session.store.settle
                return settle(record.name, ClusterStatus.STOPPED, at=until, cluster_id=record.cluster_id, used_until=until)
            if not all(receipt.clean for receipt in receipts):
                raise _Unclean
            give_back(session, record, events)
            session.store.remove_cluster(
                record.name,
                at=session.clock(),
                cluster_id=record.cluster_id,
                used_until=until,
                reason=_STOPPED_BY_ITSELF,
            )
            return None


def _used_until(session: Session, ending: _Ending) -> float:
    """When it stopped, as the node says; else when it was last known to be in use."""
    now = session.clock()
    if ending.seen.stopped_at is not None:
        return min(ending.seen.stopped_at, now)
    return ending.record.status_since if ending.record.status is ClusterStatus.UNREACHABLE else now


def check(session: Session) -> list[InfraStatus]:
    """Every infra that is configured, and whether nodes can be had there; problems name host and reason."""
    with session.operation("check") as events:
        return list(session.providers.check(session.provider_context(events)))
