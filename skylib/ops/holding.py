"""The cluster's lock for a verb: what a dead process left of the cluster is finished or undone before the verb goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from skylib.events import EventSink
from skylib.session import Session

__all__ = ["hold"]


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
    """The cluster's lock, and nothing half-done behind it. Raises ClusterBusy with who holds the lock.

    replaces: the operation does more than finishing or undoing what was left; that is settled when it succeeds.
    """
    with session.hold(name, operation, timeout_s):
        left = session.left_intents(name)
        try:
            yield
        finally:
            for intent in left:
                session.settle_intent(intent.intent_id, f"given up; seen by {operation}")
