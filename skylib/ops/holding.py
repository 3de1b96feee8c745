"""The cluster's lock for a verb: what a dead process left of the cluster is finished or undone before the verb goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from skylib.errors import ClusterNotFound, ClusterNotUp
from skylib.events import EventSink
from skylib.models.receipts import Reconciled, Settled
from skylib.ops.reconcile import settle_left
from skylib.session import Session

__all__ = ["hold"]

_MAKING = frozenset({"launch", "adopt"})  # they need no cluster of that name


@contextmanager
def hold(
    session: Session,
    name: str,
    operation: str,
    events: EventSink,
    timeout_s: float | None = None,
    *,
    replaces: bool = False,
) -> Iterator[None]:
    """The cluster's lock, and nothing half-done behind it.

    replaces: the operation does more than finish or undo what was left: that is not done before, but over with its
    success. Raises ClusterBusy with who holds the lock; ClusterNotUp when what was left cannot be settled now;
    ClusterNotFound when settling it took the cluster away, which launch and adopt do not mind.
    """
    with session.hold(name, operation, timeout_s):
        left = session.left_intents(name)
        if left and replaces and session.store.cluster(name) is not None:
            yield
            for intent in left:
                session.settle_intent(intent.intent_id, f"replaced by {operation}")
            return
        if left:
            _refuse(session, name, operation, settle_left(session, name, events), replaces=replaces)
        yield


def _refuse(session: Session, name: str, operation: str, settled: list[Reconciled], *, replaces: bool) -> None:
    stuck = next((each for each in settled if each.blocks), None)
    if stuck is not None and not replaces:
        record = session.store.cluster(name)
        raise ClusterNotUp(
            f"a {stuck.operation} of cluster {name!r} was not ended (by {stuck.began}), and cannot be settled: {stuck.why}",
            cluster=name,
            status=record.status if record is not None else None,
            since=record.status_since if record is not None else None,
            step=f"{operation}.reconcile",
            left=stuck,
            hint=f"try again when its hosts answer; client.down({name!r}, purge=True) forgets it",
            retryable=True,
        )
    gone = next((each for each in settled if each.status is None and each.done is not Settled.NOTED), None)
    anew = f"client.launch(task, {name!r}) makes a new one"
    if gone is not None and operation not in _MAKING and not replaces and session.store.cluster(name) is None:
        raise ClusterNotFound(
            f"cluster {name!r} is gone: a {gone.operation} that was not ended (by {gone.began}) is {gone.done.value} now",
            cluster=name,
            left=gone,
            hint=f"client.adopt({name!r}) takes it up" if gone.operation == "adopt" else anew,
        )
