"""Records of many jobs from the columns in which the agent tells them (agent/columns.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import repeat
from typing import Any

from skylib.errors import AgentError
from skylib.models.job import FirstCause, JobRecord, JobStatus

__all__ = ["decode_jobs"]

_NUL = "\0"
_STATUSES = {status.value: status for status in JobStatus}


def decode_jobs(cluster: str, answer: Mapping[str, Any]) -> list[JobRecord]:
    """answer: {"count", "columns"}; in the agent's order. Raises AgentError when it does not fit together."""
    try:
        count = int(answer["count"])
        columns = {name: _values(name, column) for name, column in answer["columns"].items()}
        for name in ("task_id", "log_dir"):
            columns[name] = [
                text.replace(_NUL, str(job_id)) for text, job_id in zip(columns[name], columns["job_id"], strict=True)
            ]
        columns["waiting_for"] = _waiting(columns["waiting_for"])
        names = tuple(columns)
        if any(len(column) != count for column in columns.values()):
            raise ValueError("columns of unequal length")
        return [
            JobRecord(cluster_name=cluster, **dict(zip(names, row, strict=True)))
            for row in zip(*columns.values(), strict=True)
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AgentError(
            f"the agent of cluster {cluster!r} told its jobs in a way that cannot be read: {error!r}", cluster=cluster
        ) from error


def _values(name: str, column: Any) -> list[Any]:
    if not isinstance(column, Mapping):
        return [_value(name, value) for value in column] if name in _SPECIAL else list(column)
    found: list[Any] = []
    for value, times in column["runs"]:
        found.extend(repeat(_value(name, value), times))
    return found


_SPECIAL = frozenset({"status", "exit_codes", "signals", "first_cause"})


def _value(name: str, value: Any) -> Any:
    if name == "status":
        return _STATUSES[value]
    if name in ("exit_codes", "signals"):
        return tuple(value)
    if name == "first_cause":
        return FirstCause.from_json(value) if value else None
    return value


def _waiting(texts: Iterable[str]) -> list[str]:
    found, ahead = [], 0
    for text in texts:
        if text:
            found.append(text.replace(_NUL, str(ahead)))
            ahead += 1
        else:
            found.append(text)
    return found
