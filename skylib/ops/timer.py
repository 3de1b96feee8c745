"""How a cluster ends without anybody's word: the timer of one that has nothing to do, and the lease."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from datetime import timedelta
from typing import Any

import attrs

from skylib.errors import AgentError, TransportError
from skylib.models.autostop import parse_hook, parse_wait_for
from skylib.models.cluster import AutostopRecord, ClusterRecord
from skylib.models.converters import boolean
from skylib.models.spec_errors import spec_error, within
from skylib.models.units import parse_lease_s, positive_number
from skylib.session import Session

__all__ = [
    "apply_lease",
    "apply_timer",
    "kept_busy",
    "kept_leased",
    "lease_seconds",
    "minutes_of",
    "set_lease",
    "set_timer",
    "timer_of",
]

_LONGEST_PAUSE_S = 15.0


def timer_of(
    idle_minutes: float, *, down: bool, wait_for: str, hook: str | None, hook_timeout_s: float | None
) -> AutostopRecord | None:
    """What the arguments of `autostop` mean; None for never. 0 minutes count as one. Raises InvalidSpecError."""
    with within("idle_minutes"):
        minutes = minutes_of(idle_minutes)
        if minutes is None:
            return None
    with within("down"):
        down = boolean(down)
    with within("wait_for"):
        kind = parse_wait_for(wait_for)
    with within("hook"):
        script = parse_hook(hook)
    with within("hook_timeout_s"):
        timeout_s = None if hook_timeout_s is None else positive_number(hook_timeout_s)
    return AutostopRecord(idle_minutes=minutes, down=down, wait_for=kind, hook=script, hook_timeout_s=timeout_s)


def minutes_of(idle_minutes: object) -> float | None:
    """An idle time: 0 counts as one minute, None for a negative one, which is never. Raises InvalidSpecError."""
    if isinstance(idle_minutes, bool) or not isinstance(idle_minutes, (int, float)) or idle_minutes != idle_minutes:
        raise spec_error(f"expected minutes, got {idle_minutes!r:.60}")
    return None if idle_minutes < 0 else positive_number(idle_minutes or 1)


def lease_seconds(lease: str | float | timedelta | None) -> float | None:
    """Raises InvalidSpecError."""
    with within("lease"):
        return parse_lease_s(lease)


def set_timer(session: Session, record: ClusterRecord, setting: AutostopRecord | None) -> ClusterRecord:
    """Tell the agent, then the store; None: no timer. What another process began to set is over then.

    Call it under the cluster's lock.
    """
    wanted = attrs.asdict(setting) if setting is not None else None
    with _setting(session, record, "autostop", timer=wanted):
        return apply_timer(session, record, setting)


@contextmanager
def _setting(session: Session, record: ClusterRecord, operation: str, **wanted: object) -> Iterator[None]:
    """Written down while it is set, since agent and store are told one after the other; then older ones are over."""
    older = [each for each in session.left_intents(record.name) if each.operation == operation]
    with session.intent(operation, record.name, cluster_id=record.cluster_id, **wanted):
        yield
    for intent in older:
        session.settle_intent(intent.intent_id, f"replaced by {operation}")


def apply_timer(session: Session, record: ClusterRecord, setting: AutostopRecord | None) -> ClusterRecord:
    """As set_timer, with the intent written down. Raises AgentError, TransportError; the store is as it was then."""
    session.agent(record).call("autostop", **_words(setting))
    at = session.clock()
    return session.store.settle(record.name, record.status, at=at, cluster_id=record.cluster_id, autostop=setting)


def _words(setting: AutostopRecord | None) -> dict[str, Any]:
    """As the agent is told."""
    return attrs.asdict(setting) if setting is not None else {"idle_minutes": -1, "down": False}


def set_lease(session: Session, record: ClusterRecord, lease_s: float) -> ClusterRecord:
    """Tell the agent, then the store. What another process began to set is over then. Call it under the cluster's lock."""
    with _setting(session, record, "lease", lease_s=lease_s):
        return apply_lease(session, record, lease_s)


def apply_lease(session: Session, record: ClusterRecord, lease_s: float) -> ClusterRecord:
    """As set_lease, with the intent written down. Raises AgentError, TransportError; the store is as it was then."""
    session.agent(record).call("lease", lease_s=lease_s)
    at = session.clock()
    return session.store.settle(record.name, record.status, at=at, cluster_id=record.cluster_id, lease_s=lease_s)


@contextmanager
def kept_busy(session: Session, record: ClusterRecord) -> Iterator[None]:
    """While files are on their way the cluster is not idle: its timer is set again and again to what it is.

    That is contact, too, which renews a lease.
    """
    timer = record.autostop
    if timer is None:
        with kept_leased(session, record):
            yield
        return
    pause_s = min(20.0 * timer.idle_minutes, _lease_pause_s(record))
    with _repeated(session, record, pause_s, "autostop", _words(timer)):
        yield


@contextmanager
def kept_leased(session: Session, record: ClusterRecord) -> Iterator[None]:
    """While a launch is at work its lease does not run out. Its agent may have to come up first."""
    if record.lease_s is None:
        yield
        return
    with _repeated(session, record, _lease_pause_s(record), "ping", {}, at_once=False):
        yield


def _lease_pause_s(record: ClusterRecord) -> float:
    return _LONGEST_PAUSE_S if record.lease_s is None else min(_LONGEST_PAUSE_S, record.lease_s / 4)


@contextmanager
def _repeated(
    session: Session, record: ClusterRecord, pause_s: float, verb: str, args: dict[str, Any], *, at_once: bool = True
) -> Iterator[None]:
    """The agent is told so whenever pause_s have passed, until the block ends; at_once: and now."""
    done = threading.Event()
    agent = session.agent(record)

    def renew() -> None:
        pause = min(pause_s, _LONGEST_PAUSE_S)
        over = not at_once and done.wait(pause)
        while not over:
            with suppress(AgentError, TransportError):  # the delivery itself will tell what is wrong
                agent.call(verb, **args)
            over = done.wait(pause)

    renewing = threading.Thread(target=copy_context().run, args=(renew,), name="skylib-busy", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
