"""Intents: written down before an operation acts, settled after, and found open when its process died in between."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from skylib.errors import StateError
from skylib.state.base import IntentRecord, StateStore

__all__ = ["LOCKLESS", "PROCESS", "acting", "is_living", "left", "settle", "this_process"]

_log = logging.getLogger(__name__)
PROCESS = "process"  # the key in an intent's details
LOCKLESS = frozenset({"exec", "cancel"})  # begun without the cluster's lock, which would else say who lives; never half-done
ELSEWHERE_S = 900.0  # how long a process that cannot be looked at is taken to live
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def acting(
    store: StateStore,
    mine: set[int],
    operation: str,
    cluster: str,
    details: Mapping[str, object],
    *,
    leaves: tuple[type[Exception], ...] = (),
) -> Iterator[int]:
    """See Session.intent. mine: what the caller is at, kept up to date."""
    number = store.begin_intent(operation, cluster, {**details, PROCESS: this_process()})
    pid = os.getpid()
    outcome = "done"
    try:
        mine.add(number)
        yield number
    except BaseException as error:
        outcome = "" if isinstance(error, leaves) or _is_half_done(operation, error) else f"failed: {type(error).__name__}"
        raise
    finally:
        if os.getpid() == pid:  # a child forked within is not the one that began it
            mine.discard(number)
            if outcome:
                settle(store, number, outcome)


def _is_half_done(operation: str, error: BaseException) -> bool:
    """Ctrl-C, and a store that could not be written, stop an operation short: it has not cleaned up after itself."""
    return operation not in LOCKLESS and (isinstance(error, StateError) or not isinstance(error, Exception))


def settle(store: StateStore, number: int, outcome: str) -> None:
    """Say how it ended. One that cannot be settled now is seen again, and harms nothing."""
    try:
        store.settle_intent(number, outcome)
    except StateError as error:
        _log.warning("intent %d is not settled (%s): %s", number, outcome, error)


def left(store: StateStore, mine: Container[int], cluster: str | None, *, now: float) -> list[IntentRecord]:
    """See Session.left_intents. mine: what the caller itself is at."""
    return [
        intent
        for intent in store.open_intents(cluster)
        if intent.intent_id not in mine and not (intent.operation in LOCKLESS and is_living(intent, now=now))
    ]


def this_process() -> str:
    """What tells this process from all others that had or will have its pid: boot, process namespace, start; "" unknown."""
    start = _start(os.getpid())
    return f"{_place()} {start}" if start else ""


def is_living(intent: IntentRecord, *, now: float) -> bool:
    """Whether the process that began it may still be at it. now: unix seconds.

    Of a process on another machine, or in another container, nothing is known: it counts as living for 15 minutes.
    """
    boot, space, start = (*str(intent.details.get(PROCESS) or "").split(), "", "", "")[:3]
    here = intent.host == socket.gethostname()
    if not here or (start and space != _space()):
        return now - intent.begun_at < ELSEWHERE_S
    if start:
        return boot == _boot() and _start(intent.pid) == start
    try:
        os.kill(intent.pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _start(pid: int) -> str:
    """In clock ticks since boot; "" when there is no such process, or it waits to be buried, or nobody says."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def _place() -> str:
    return f"{_boot()} {_space()}"


@cache
def _boot() -> str:
    try:
        return _BOOT.read_text().strip() or "-"
    except OSError:
        return "-"


def _space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "-"
