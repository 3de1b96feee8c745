"""Records of many jobs from the columns in which the agent tells them (agent/columns.py)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

import attrs

from skylib.errors import AgentError
from skylib.models.job import FirstCause, JobRecord, JobStatus
from skylib.models.transfers import JobOutputs

__all__ = ["decode_jobs"]

_NUL = "\0"
_NUMBER_AND_NAME = "\0-\1"
_NOT_COUNTED = "\1"
_STATUSES = {status.value: status for status in JobStatus}


def decode_jobs(cluster: str, answer: Mapping[str, Any]) -> list[JobRecord]:
    """answer: {"count", "columns"}; in the agent's order. Raises AgentError when it does not fit together."""
    try:
        count = int(answer["count"])
        columns = {name: _values(name, column) for name, column in answer["columns"].items()}
        if any(len(column) != count for column in columns.values()):
            raise ValueError("columns of unequal length")
        numbers = list(map(str, columns["job_id"]))
        columns["task_id"] = _completed(columns["task_id"], numbers)
        columns["log_dir"] = _completed(columns["log_dir"], numbers, columns["name"])
        columns["waiting_for"] = _waiting(columns["waiting_for"])
        return _records(count, {**columns, "cluster_name": [cluster] * count})
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


_SPECIAL = frozenset({"status", "exit_codes", "signals", "first_cause", "outputs"})


def _value(name: str, value: Any) -> Any:
    if name == "status":
        return _STATUSES[value]
    if name in ("exit_codes", "signals"):
        return tuple(value)
    if name == "first_cause":
        return FirstCause.from_json(value) if value else None
    if name == "outputs":
        return JobOutputs.from_json(value) if value else None
    return value


def _completed(texts: Sequence[str], numbers: Sequence[str], names: Sequence[str] | None = None) -> list[str]:
    if names is None:
        return [text.replace(_NUL, number) for text, number in zip(texts, numbers, strict=True)]
    rows = zip(texts, numbers, names, strict=True)
    return [f"{text[:-3]}{number}-{name}" if text.endswith(_NUMBER_AND_NAME) else text for text, number, name in rows]


def _records(count: int, columns: Mapping[str, Sequence[Any]]) -> list[JobRecord]:
    """Column by column, past __init__, which has nothing to check: a third of the time where there are ten thousand."""
    records = [object.__new__(JobRecord) for _ in range(count)]
    for field in attrs.fields(JobRecord):
        values = columns[field.name] if field.name in columns else repeat(field.default, count)
        deque(map(JobRecord.__dict__[field.name].__set__, records, values), maxlen=0)
    return records


def _waiting(texts: Iterable[str]) -> list[str]:
    found, ahead = [], 0
    for text in texts:
        if text.startswith(_NOT_COUNTED):
            found.append(text[len(_NOT_COUNTED) :])
        elif text:
            found.append(text.replace(_NUL, str(ahead)))
            ahead += 1
        else:
            found.append(text)
    return found
