"""The timer after which a cluster that has nothing to do stops by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context

import attrs

from skylib.errors import AgentError, TransportError
from skylib.models.cluster import AutostopRecord, ClusterRecord
from skylib.session import Session

__all__ = ["apply_timer", "kept_busy", "set_timer"]


def set_timer(session: Session, record: ClusterRecord, setting: AutostopRecord | None) -> ClusterRecord:
    """Tell the agent, then the store; None: no timer. What another process began to set is over then.

    Call it under the cluster's lock.
    """
    older = [each for each in session.left_intents(record.name) if each.operation == "autostop"]
    wanted = attrs.asdict(setting) if setting is not None else None
    with session.intent("autostop", record.name, cluster_id=record.cluster_id, timer=wanted):
        timed = apply_timer(session, record, setting)
    for intent in older:
        session.settle_intent(intent.intent_id, "replaced by autostop")
    return timed


def apply_timer(session: Session, record: ClusterRecord, setting: AutostopRecord | None) -> ClusterRecord:
    """As set_timer, with the intent written down. Raises AgentError, TransportError; the store is as it was then."""
    idle = setting.idle_minutes if setting is not None else -1
    session.agent(record).call("autostop", idle_minutes=idle, down=bool(setting and setting.down))
    at = session.clock()
    return session.store.settle(record.name, record.status, at=at, cluster_id=record.cluster_id, autostop=setting)


@contextmanager
def kept_busy(session: Session, record: ClusterRecord) -> Iterator[None]:
    """While files are on their way the cluster is not idle: its timer is set again and again to what it is."""
    timer = record.autostop
    if timer is None:
        yield
        return
    done = threading.Event()
    agent = session.agent(record)
    pause_s = min(15.0, 20.0 * timer.idle_minutes)

    def renew() -> None:
        while True:
            with suppress(AgentError, TransportError):  # the delivery itself will tell what is wrong
                agent.call("autostop", idle_minutes=timer.idle_minutes, down=timer.down)
            if done.wait(pause_s):
                return

    renewing = threading.Thread(target=copy_context().run, args=(renew,), name="skylib-busy", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
