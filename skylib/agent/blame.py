"""Which rank made a gang fail, and how to say so. Pure."""

from __future__ import annotations

import signal
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence

from .evidence import few, is_failure

__all__ = ["Failure", "describe", "failure_of", "first_of", "masked", "not_started", "signal_name"]

_LEAST_SECRET = 4


class Failure(NamedTuple):
    """One rank's. at: when it ended, by the head's clock that no step changes, as far as can be told."""

    at: float
    place: int
    text: str
    cause: Dict[str, Any]
    lost: bool


def signal_name(number: int) -> str:
    """ "SIGKILL" for 9; "" for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def describe(record: Mapping[str, Any], *, setup: bool) -> str:
    """What became of a rank, to follow its name: "exited 3", "was ended by signal 9 (SIGKILL)", ..."""
    if "lost" in record:
        return f"was lost: {record['lost']}"
    code, number, reason = int(record["code"]), record.get("signal"), record.get("reason")
    how = f"exited {code}"
    if number:
        name = signal_name(int(number))
        how = f"was ended by signal {number}" + (f" ({name})" if name else "")
    if reason == "oom":
        how = f"ran out of memory: the kernel ended it ({'signal 9' if number else f'exit code {code}'})"
    elif reason == "disk_full" and record.get("error"):
        how = "could not be started: the disk of its node is full"
    elif reason == "disk_full":
        how += ": the disk of its node is full" if code else ", but its disk is full: what it printed is not whole"
    elif reason == "not_started":
        how = f"could not be started: {record.get('error') or 'nobody knows why'}"
    return how + (" in setup" if setup else "")


def not_started(error: str, *, disk_full: bool) -> Dict[str, Any]:
    """The end record of a rank that never was."""
    reason = "disk_full" if disk_full else "not_started"
    return {"code": 127, "signal": None, "reason": reason, "error": error[-500:], "last_lines": [error[-500:]]}


def failure_of(
    place: int, number: int, host: str, record: Mapping[str, Any], *, now: float, setup: bool
) -> Optional[Failure]:
    """None when the rank ended well. record: protocol.py's; its age says when that was, without one it is now."""
    if not is_failure(record):
        return None
    lost = "lost" in record
    cause = {
        "rank": number,
        "node": host,
        "exit_code": None if lost else int(record["code"]),
        "signal": None if lost else record.get("signal"),
        "reason": str(record.get("reason") or ("lost" if lost else "exit")),
        "last_lines": list(record.get("last_lines") or ()),
    }
    text = f"rank {number} ({host}) {describe(record, setup=setup)}"
    return Failure(now - float(record.get("age_s") or 0.0), place, text, cause, lost)


def masked(cause: Optional[Dict[str, Any]], secrets: Iterable[str]) -> Optional[Dict[str, Any]]:
    """The first cause without the secrets that the job may have printed: it is kept in databases, as its log is not.

    A secret of several lines, as a private key is, is hidden line by line; only then are lines cut to 4 KiB.
    """
    if cause is None:
        return None
    lines = list(cause["last_lines"])
    hidden = {line for text in secrets for line in text.splitlines() if len(line) >= _LEAST_SECRET}
    for secret in sorted(hidden, key=len, reverse=True):
        lines = [line.replace(secret, "***") for line in lines]
    return {**cause, "last_lines": few(lines)}


def first_of(failures: Sequence[Failure]) -> Optional[Failure]:
    """The one that ended first, whichever was heard of first."""
    ordered: List[Failure] = sorted(failures, key=lambda failure: (failure.at, failure.place))
    return ordered[0] if ordered else None
