"""What is known of clusters, and what their nodes say when they are asked."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError

import attrs

from skylib.errors import AgentError, ClusterBusy, TransportError
from skylib.events import EventSink
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.receipts import InfraStatus, Settled
from skylib.ops.checks import named, seconds
from skylib.ops.cleanup import end_and_release, end_everywhere, give_back
from skylib.ops.keeping import bring_logs_home
from skylib.ops.look import Seen, Trace, look, mark_of, next_status, note, traces_of
from skylib.ops.outputs import collect_ended
from skylib.ops.pen import Pen
from skylib.ops.reconcile import settle_clusters
from skylib.session import Session
from skylib.transport.fanout import Outcome, fanout

__all__ = ["check", "status"]

_NOWHERE = "every host was reached, and nothing of the cluster is on any"
_STOPPED_BY_ITSELF = "idle for long enough, it stopped by itself and gave its hosts back"
_LEASE_RAN_OUT = "its lease ran out: it ended by itself and gave its hosts back"


@attrs.frozen(kw_only=True)
class _Asking:
    """One refresh, and names of clusters. busy: an operation is on it. stuck: what a dead process began is still to be
    settled; no look but a doubt changes its record. ending: found gone, or stopped by itself.
    """

    session: Session
    events: EventSink
    busy: frozenset[str] = frozenset()
    stuck: frozenset[str] = frozenset()
    pen: Pen = attrs.field(factory=Pen)
    ending: set[str] = attrs.field(factory=set)

    @property
    def sink(self) -> EventSink:
        return self.pen.sink(self.events)


def status(
    session: Session,
    names: str | Iterable[str] | None = None,
    *,
    refresh_first: bool = False,
    timeout_s: float = 30.0,
) -> list[ClusterRecord]:
    """All clusters, the newest launch first, or those of `names` in that order. Raises ClusterNotFound, InvalidSpecError.

    refresh_first: their nodes are asked, all at once; what has not answered after timeout_s is UNREACHABLE for now, and
    what could not even be asked is as it was: there was no time left for it, or it is `local` to another machine.
    """
    timeout_s = seconds(timeout_s, field="timeout_s")
    wanted = named(names)
    if wanted is None:
        records = session.store.clusters()
    else:
        found = {record.name: record for record in session.store.clusters(wanted)}
        for name in wanted:
            if name not in found:
                found[name] = session.require(name)
        records = [found[name] for name in wanted]
    if not refresh_first or not records:
        return records
    with session.operation("status") as events:
        fresh = _refresh_all(session, records, events, timeout_s)
    return [record for record in fresh if record is not None]


def _refresh_all(
    session: Session, records: Sequence[ClusterRecord], events: EventSink, timeout_s: float
) -> list[ClusterRecord | None]:
    """What dead processes had begun is finished or undone first, for up to half of the time, or left to itself."""
    deadline = time.monotonic() + timeout_s
    names = [record.name for record in records]
    settled = settle_clusters(session, names, events, patience_s=timeout_s / 2)
    if settled:
        known = {record.name: record for record in session.store.clusters(names)}
        records = [known[name] for name in names if name in known]
    busy = frozenset(each.cluster for each in settled if each.done is Settled.BUSY)
    stuck = frozenset(each.cluster for each in settled if each.blocks)
    asking = _Asking(session=session, events=events, busy=busy, stuck=stuck)
    return _refresh(asking, records, max(0.0, deadline - time.monotonic()))


def _refresh(asking: _Asking, records: Sequence[ClusterRecord], timeout_s: float) -> list[ClusterRecord | None]:
    """Each cluster is asked by a thread, which settles what it saw. The pen is put down when the time is over."""
    deadline = time.monotonic() + timeout_s
    may_ask = (record for record in records if _is_asked(asking.session, record) and record.name not in asking.busy)
    asked = {record.name: record for record in may_ask}
    try:
        outcomes = fanout(lambda record: _ask(asking, record), asked.values(), patience_s=timeout_s)
    finally:
        asking.pen.put_down()
    fresh = {outcome.item.name: _outcome(asking, outcome) for outcome in outcomes}
    found = [fresh.get(record.name, record) for record in records]
    standing = [record for record in found if record is not None and record.name in asked]
    collect_ended(asking.session, standing, patience_s=deadline - time.monotonic())
    return found


def _is_asked(session: Session, record: ClusterRecord) -> bool:
    """What was stopped stays so until it is started; without nodes, or nodes within reach, there is nobody to ask."""
    return record.status is not ClusterStatus.STOPPED and bool(record.nodes) and session.can_reach(record)


def _ask(asking: _Asking, record: ClusterRecord) -> ClusterRecord | None:
    seen = look(asking.session, record, pen=asking.pen)
    if seen is None:
        return record
    found = next_status(record.status, record.num_nodes, seen)
    if record.name in asking.stuck and found is not ClusterStatus.UNREACHABLE:
        return record
    if found is None or found is ClusterStatus.STOPPED:
        asking.ending.add(record.name)
        return _end(asking, record, seen)
    if found is record.status:
        return record
    return note(asking.session, record, found, events=asking.sink, pen=asking.pen)


def _outcome(asking: _Asking, outcome: Outcome[ClusterRecord, ClusterRecord | None]) -> ClusterRecord | None:
    """What is late could not tell how it is; what had no turn is as it was, and what is about to end is asked again."""
    record = outcome.item
    if outcome.ok:
        return outcome.value
    if isinstance(outcome.error, CancelledError):
        return record
    if not isinstance(outcome.error, (AgentError, TransportError)) and type(outcome.error) is not TimeoutError:
        return outcome.get()
    if record.name in asking.ending:
        return asking.session.store.cluster(record.name)
    if record.status is ClusterStatus.UNREACHABLE:
        return record
    return note(asking.session, record, ClusterStatus.UNREACHABLE)


def _end(asking: _Asking, record: ClusterRecord, seen: Seen) -> ClusterRecord | None:
    """Under the cluster's lock. What an operation is on, or a dead one left half-done, is not ours to end."""
    session = asking.session
    try:
        with session.hold(record.name, "status", 0.0):
            now = session.store.cluster(record.name)
            if now is None or mark_of(now) != mark_of(record) or session.left_intents(record.name):
                return now
            return _give_up(asking, record, seen) if seen.stopped else _forget(asking, record)
    except ClusterBusy:
        return session.store.cluster(record.name)


def _forget(asking: _Asking, record: ClusterRecord) -> ClusterRecord | None:
    """Nothing of it is anywhere: into history with it, its hosts are free. All nodes are asked once more, under the lock."""
    session = asking.session
    traces = traces_of(session, record)
    if len(traces) < record.num_nodes or any(trace is not Trace.NONE for trace in traces):
        return record
    with asking.pen:
        session.forget_agent(record.cluster_id)
        give_back(session, record, asking.sink)
        session.store.remove_cluster(record.name, at=session.clock(), cluster_id=record.cluster_id, reason=_NOWHERE)
    return None


def _give_up(asking: _Asking, record: ClusterRecord, seen: Seen) -> ClusterRecord | None:
    """It stopped by itself: its logs come home, what still runs is ended, and, if it said so, it is released.

    Until that is done it is AUTOSTOPPING; with logs that do not come it stays, STOPPED. What is late, fails or is not
    clean leaves its intent open: whoever holds the cluster next goes on with it.
    """
    session, pen = asking.session, asking.pen
    operation = "release" if seen.released else "stop"
    until = _used_until(session, record, seen)
    name, cluster_id, settle = record.name, record.cluster_id, session.store.settle
    with pen:
        details = {"cluster_id": cluster_id, "was": record.status.value, "used_until": until}
        intent = session.store.begin_intent(operation, name, details)
        if record.status is not ClusterStatus.AUTOSTOPPING:
            record = settle(name, ClusterStatus.AUTOSTOPPING, at=session.clock(), cluster_id=cluster_id)
    missing = bring_logs_home(session, record, pen=pen)
    pen.check()
    release = seen.released and not missing
    receipts = (end_and_release if release else end_everywhere)(session, record, asking.sink)
    left: ClusterRecord | None = None
    with pen:
        if not release:
            left = settle(name, ClusterStatus.STOPPED, at=until, cluster_id=cluster_id, used_until=until)
        elif not all(receipt.clean for receipt in receipts):
            return session.store.cluster(name)
        else:
            give_back(session, record, asking.sink)
            at, reason = session.clock(), _LEASE_RAN_OUT if seen.reason == "lease" else _STOPPED_BY_ITSELF
            session.store.remove_cluster(name, at=at, cluster_id=cluster_id, used_until=until, reason=reason)
        session.settle_intent(intent, "done")
    return left


def _used_until(session: Session, record: ClusterRecord, seen: Seen) -> float:
    """When it stopped, as the node says; else when it was last known to be in use."""
    now = session.clock()
    if seen.stopped_at is not None:
        return min(seen.stopped_at, now)
    return record.status_since if record.status is ClusterStatus.UNREACHABLE else now


def check(session: Session) -> list[InfraStatus]:
    """Every infra that is configured, and whether nodes can be had there; problems name host and reason."""
    with session.operation("check") as events:
        return list(session.providers.check(session.provider_context(events)))
