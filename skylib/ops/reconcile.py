"""Operations whose process died: each is finished, undone, or kept open when nobody can tell."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import CancelledError

import attrs

from skylib.errors import AgentError, ClusterBusy, SkyError, TransportError
from skylib.events import Event, EventSink, Phase, span
from skylib.models.cluster import AutostopRecord, ClusterRecord, ClusterStatus, NodeRecord
from skylib.models.receipts import Reconciled, Settled
from skylib.ops.checks import named, seconds
from skylib.ops.cleanup import end_everywhere, take_away
from skylib.ops.endings import clean_again, down_cluster, give_up, stop_cluster
from skylib.ops.look import Seen, look
from skylib.ops.pen import Pen
from skylib.ops.recovery import Act, Decision, decide, never_up
from skylib.ops.standing import settle_standing
from skylib.ops.timer import apply_lease, apply_timer
from skylib.session import Session
from skylib.state.base import IntentRecord
from skylib.state.intents import is_living
from skylib.transport.command import Command
from skylib.transport.fanout import fanout

__all__ = ["reconcile", "settle_clusters", "settle_left"]

CLUSTERS_AT_ONCE = 16
COMING_UP_S = 6.0  # what a bring-up that nobody watches any more gets to come to its end by itself
REACH_S = 10.0
AGAIN_S = 3.0
FREED_S = 2.0  # within which a database hears that the holder of a lock is dead; a file's lock is free at once
_LONGEST_OUTCOME = 300


def reconcile(session: Session, names: str | Iterable[str] | None = None) -> list[Reconciled]:
    """All clusters (or those of `names`) that a dead process left something begun of, at once; by name.

    Waits for no operation, but up to 2 s for a dead one's lock: a cluster that is held is told as busy. Safe from any
    number of processes. Raises ClusterNotFound, InvalidSpecError.
    """
    wanted = named(names)
    left = {intent.cluster for intent in session.left_intents()}
    known = left.union(session.store.names()) if wanted else left
    for name in wanted or ():
        if name not in known:
            raise session.not_found(name)
    if not left:
        return []
    with session.operation("reconcile") as events:
        return settle_clusters(session, wanted, events)


def settle_clusters(
    session: Session, names: Iterable[str] | None, events: EventSink, *, patience_s: float | None = None
) -> list[Reconciled]:
    """As `reconcile`, within an operation. patience_s: how long to wait; what takes longer goes on alone, under its
    cluster's lock, and is told as busy.
    """
    wanted = None if names is None else {names} if isinstance(names, str) else set(names)
    left = [each for each in session.left_intents() if wanted is None or each.cluster in wanted]
    clusters = sorted({each.cluster for each in left})
    pen = Pen()
    sink = pen.sink(events)
    outcomes = fanout(
        lambda name: _settle_cluster(session, name, sink), clusters, limit=CLUSTERS_AT_ONCE, patience_s=patience_s
    )
    pen.put_down()
    found: list[Reconciled] = []
    for outcome in outcomes:
        if isinstance(outcome.error, (TimeoutError, CancelledError)) and not isinstance(outcome.error, SkyError):
            late = Decision(act=Act.KEEP, why=f"it takes longer than {patience_s:g} s")
            mine = [intent for intent in left if intent.cluster == outcome.item]
            found += [_told(intent, session.store.cluster(intent.cluster), Settled.BUSY, late) for intent in mine]
        else:
            found += outcome.get()
    return found


def _settle_cluster(session: Session, name: str, events: EventSink) -> list[Reconciled]:
    dead = any(not is_living(intent, now=session.clock()) for intent in session.left_intents(name))
    try:
        with session.hold(name, "reconcile", FREED_S if dead else 0.0):
            return settle_left(session, name, events)
    except ClusterBusy as busy:
        record = session.store.cluster(name)
        decision = Decision(act=Act.KEEP, why=busy.message)
        return [_told(intent, record, Settled.BUSY, decision) for intent in session.left_intents(name)]


def settle_left(session: Session, name: str, events: EventSink) -> list[Reconciled]:
    """Settle what is left of one cluster, the newest first: what was begun within another operation comes before it.

    Call it under the cluster's lock. An error of a node keeps the intent open; others are raised.
    """
    found = []
    sight = _Sight(session)
    for intent in reversed(session.left_intents(name)):
        with span(events, "reconcile.intent", cluster=name, operation=intent.operation) as step:
            done = _settle(session, intent, sight, events)
            step.note(done=done.done.value, why=done.why)
        if done.done is not Settled.KEPT:
            outcome = f"{done.done.value} by another process: {done.why}"
            session.settle_intent(intent.intent_id, outcome[:_LONGEST_OUTCOME])
        found.append(done)
    return found


class _Sight:
    """What the nodes of a cluster say; asked when it is first needed, and again when something was done to them."""

    __slots__ = ("_asked", "_seen", "_session")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._asked: bool | None = None  # whether patiently; None: not yet
        self._seen: Seen | None = None

    def of(self, record: ClusterRecord, *, patient: bool) -> Seen | None:
        """patient: what still comes up by itself gets a little time to do so."""
        if not record.nodes:
            return None
        if self._asked is None or (patient and not self._asked):
            self._seen, self._asked = _seen(self._session, record, patient=patient), patient
        return self._seen

    def is_old(self) -> None:
        """Something was done to the nodes."""
        self._asked = None


def _seen(session: Session, record: ClusterRecord, *, patient: bool) -> Seen | None:
    seen = look(session, record)
    if seen is None or not seen.reached:
        return seen
    if patient and seen.agent and not seen.stopping:
        try:
            session.agent(record).call("ready", answer_within_s=COMING_UP_S + 10, timeout_s=COMING_UP_S)
            seen = attrs.evolve(seen, ray_ok=True, alive=record.num_nodes)
        except (AgentError, TransportError):
            seen = attrs.evolve(seen, ray_ok=False)

    def reach(node: NodeRecord) -> None:
        session.transport(node.address).run(Command.of("true"), timeout_s=REACH_S)

    return attrs.evolve(seen, reached=all(outcome.ok for outcome in fanout(reach, record.nodes)))


def _settle(session: Session, intent: IntentRecord, sight: _Sight, events: EventSink) -> Reconciled:
    record = session.store.cluster(intent.cluster)
    if record is not None and record.cluster_id != intent.details.get("cluster_id"):
        record = None
    seen = None
    if record is not None and not (intent.operation == "clean" or intent.details.get("purge")):
        seen = sight.of(record, patient=intent.operation == "start" or (intent.operation == "launch" and never_up(record)))
    decision = decide(intent, record, seen)
    job_id: int | None = None
    try:
        if decision.act is Act.KEEP:
            done = Settled.KEPT
            if record is None or session.can_reach(record):
                _settle_unreachable(session, record, seen)
        elif decision.act is Act.NOTE:
            done = Settled.NOTED
            decision, job_id = _with_job(session, intent, record, seen, decision)
        else:
            done, problem = _act_patiently(session, intent, record, decision, events)
            sight.is_old()
            if problem:
                done, decision = Settled.KEPT, attrs.evolve(decision, why=problem)
    except SkyError as error:  # a node went away meanwhile, or will not be cleaned: it is tried again
        sight.is_old()
        done, decision = Settled.KEPT, attrs.evolve(decision, why=error.message)
    now = session.store.cluster(intent.cluster)
    return attrs.evolve(_told(intent, now, done, decision), job_id=job_id)


def _told(intent: IntentRecord, record: ClusterRecord | None, done: Settled, decision: Decision) -> Reconciled:
    return Reconciled(
        cluster=intent.cluster,
        operation=intent.operation,
        pid=intent.pid,
        host=intent.host,
        begun_at=intent.begun_at,
        done=done,
        why=decision.why,
        status=record.status if record is not None else None,
        blocks=decision.blocks and done is Settled.KEPT,
    )


def _act_patiently(
    session: Session, intent: IntentRecord, record: ClusterRecord | None, decision: Decision, events: EventSink
) -> tuple[Settled, str]:
    """As `_act`, and once more when that did not do: what a dead client had begun on a node may go on for a while."""
    try:
        done, problem = _act(session, intent, record, decision, events)
        if not problem:
            return done, ""
    except (AgentError, TransportError) as error:
        problem = error.message
    events(Event(step="reconcile.again", phase=Phase.NOTE, at=time.time(), facts={"reason": problem}))
    time.sleep(AGAIN_S)
    return _act(session, intent, record, decision, events)


def _act(
    session: Session, intent: IntentRecord, record: ClusterRecord | None, decision: Decision, events: EventSink
) -> tuple[Settled, str]:
    """What was done, and what stands in the way of the rest, "" when nothing does. Raises SkyError."""
    if intent.operation == "clean":
        return Settled.FINISHED, _clean(session, intent, events)
    if record is None:
        return Settled.UNDONE, ""
    if decision.act is Act.UNDO:
        return Settled.UNDONE, _undo(session, intent, record, events)
    cancel = intent.details.get("was") != ClusterStatus.STOPPED.value
    told = intent.details.get("used_until")
    until = float(told) if isinstance(told, (int, float)) else None
    if intent.operation in ("launch", "start"):
        settle_standing(session, record, events)
    elif intent.operation == "stop":
        stop_cluster(session, record, events, cancel=cancel, used_until=until)
    elif intent.operation == "down":
        down_cluster(session, record, events, cancel=cancel, purge=bool(intent.details.get("purge")))
    elif intent.operation == "release":
        left = give_up(session, record, events, release=True, used_until=until)
        if left is not None and left.status is not ClusterStatus.STOPPED:
            return Settled.FINISHED, "a node could not be cleaned"
    elif intent.operation == "lease":
        apply_lease(session, record, seconds(intent.details.get("lease_s"), field="lease_s"))
    else:
        timer = intent.details.get("timer")
        apply_timer(session, record, AutostopRecord(**timer) if isinstance(timer, dict) else None)
    return Settled.FINISHED, ""


def _undo(session: Session, intent: IntentRecord, record: ClusterRecord, events: EventSink) -> str:
    if intent.operation == "launch":
        return "; ".join(take_away(session, record, events, touched=bool(record.nodes)))
    if intent.operation == "adopt":
        session.store.forget_cluster(record.name, record.cluster_id)
        return ""
    problems = [receipt for receipt in end_everywhere(session, record, events) if not receipt.clean]
    if problems:
        return "; ".join(f"{each.host}: {each.error or ', '.join(each.leftovers)}" for each in problems)
    session.store.settle(record.name, ClusterStatus.STOPPED, at=session.clock(), cluster_id=record.cluster_id)
    return ""


def _clean(session: Session, intent: IntentRecord, events: EventSink) -> str:
    for past in session.store.history(name=intent.cluster):
        if past.cluster_id == intent.details.get("cluster_id"):
            clean_again(session, past.record, events)
    return ""


def _settle_unreachable(session: Session, record: ClusterRecord | None, seen: Seen | None) -> None:
    """Without an answer of its head a cluster is UNREACHABLE; one that was stopped stays so, and is not said to be more."""
    if record is None or seen is None or seen.reached or seen.agent or record.status is ClusterStatus.STOPPED:
        return
    session.store.settle(record.name, ClusterStatus.UNREACHABLE, at=session.clock(), cluster_id=record.cluster_id)


def _with_job(
    session: Session, intent: IntentRecord, record: ClusterRecord | None, seen: Seen | None, decision: Decision
) -> tuple[Decision, int | None]:
    """What became of the submission, by its key, or of the jobs that were to end."""
    if record is None or seen is None or not seen.agent or record.status is ClusterStatus.STOPPED:
        return decision, None
    key, ids = intent.details.get("key"), intent.details.get("job_ids")
    if not key and not isinstance(ids, list):
        return decision, None
    jobs = session.agent(record).call("queue", all=True)["jobs"]
    if isinstance(ids, list):
        ended = ", ".join(f"job {job['job_id']} is {job['status']}" for job in jobs if job["job_id"] in ids)
        return attrs.evolve(decision, why=ended or decision.why), None
    for job in jobs:
        if job.get("key") == key:
            return attrs.evolve(decision, why=f"job {job['job_id']} was queued"), int(job["job_id"])
    return attrs.evolve(decision, why="its job was not queued"), None
