"""What is refused before anything is touched."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable
from pathlib import Path

from skylib.errors import InvalidSpecError
from skylib.models.cluster import ClusterRecord, check_is_text
from skylib.models.secret import Secret
from skylib.models.task import Task
from skylib.models.unsupported import unsupported_fields
from skylib.optimizer.fit import fits_cluster
from skylib.staging.wanted import parse_wanted

__all__ = ["check_task", "job_id", "job_ids", "named", "patience", "refuse_misfit", "seconds"]

LONGEST_VARIABLE = 131072  # bytes of "name=value" and its NUL: Linux's MAX_ARG_STRLEN with pages of 4 KiB, execve(2)


def check_task(task: Task) -> None:
    """Raises InvalidSpecError that names every field of the task which skylib does not act on yet."""
    names = unsupported_fields(task)
    if names:
        raise InvalidSpecError(
            f"skylib does not act on these fields yet: {', '.join(names)}",
            field=names[0],
            fields=names,
            hint="remove them from the task; nothing is ignored silently",
        )
    if not task.run and not task.setup:
        raise InvalidSpecError("the task has neither run nor setup: there is nothing to do", field="run")
    for pattern, local in task.fetched_outputs.items():
        _check_output(pattern, local)
    for field, variables in (("envs", task.envs), ("secrets", task.secrets)):
        for name, value in variables.items():
            _check_variable(field, name, value.reveal() if isinstance(value, Secret) else value)


def _check_output(pattern: str, local: str) -> None:
    """Raises InvalidSpecError for a pattern that is none, and for a directory here that cannot be made or written."""
    field = f"outputs[{pattern}]"
    here = Path(os.path.abspath(os.path.expanduser(local)))
    parse_wanted(pattern, here, root="/", field=field)
    there = next(path for path in (here, *here.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InvalidSpecError(f"{field}: {there} is no directory", field=field)
    if not os.access(there, os.W_OK | os.X_OK):
        raise InvalidSpecError(f"{field}: this account may not write in {there}", field=field)


def _check_variable(field: str, name: str, value: str) -> None:
    """Raises InvalidSpecError for a variable with which no program can be started; its value is not shown."""
    if len(name) + len(value) < LONGEST_VARIABLE // 4:  # no character takes more than 4 bytes
        return
    size = len(f"{name}={value}\0".encode())
    if size > LONGEST_VARIABLE:
        raise InvalidSpecError(
            f"the variable {name} takes {size} bytes with its name; the kernel starts no program with one of more than "
            f"{LONGEST_VARIABLE}",
            field=f"{field}.{name}",
            hint="put it into a file of the workdir, and let the variable name that file",
        )


def refuse_misfit(task: Task, record: ClusterRecord) -> None:
    """Raises InvalidSpecError that says what the task asks for and the standing cluster does not have."""
    reasons = fits_cluster(record, task.resources, task.num_nodes)
    if reasons:
        raise InvalidSpecError(
            f"the task does not fit cluster {record.name!r}: " + "; ".join(reasons),
            field="resources",
            cluster=record.name,
            reasons=tuple(reasons),
        )


def named(names: str | Iterable[str] | None, *, field: str = "names") -> list[str] | None:
    """The names that are meant: of one, of several, or None for all. Raises InvalidSpecError for what is no text."""
    if names is None:
        return None
    if isinstance(names, str):
        return [check_is_text(names, field=field)]
    if isinstance(names, (bytes, bytearray)) or not isinstance(names, Iterable):
        raise InvalidSpecError(f"{field} must be a name or names, not {type(names).__name__}", field=field)
    return [check_is_text(name, field=field) for name in names]


def seconds(value: object, *, field: str) -> float:
    """A time above 0; math.inf is as long as it takes. Raises InvalidSpecError for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        shown = f"{value!r:.80}" if isinstance(value, (float, str)) else type(value).__name__
        raise InvalidSpecError(f"{field} must be a number of seconds above 0, not {shown}", field=field)
    try:
        return float(value)
    except OverflowError:
        return math.inf


def patience(value: object, *, field: str = "timeout_s") -> float | None:
    """How long to wait: seconds, 0 (or less) for one look; None, or math.inf, is for as long as it takes.

    Raises InvalidSpecError for everything else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        shown = f"{value!r:.80}" if isinstance(value, (float, str)) else type(value).__name__
        raise InvalidSpecError(f"{field} must be a number of seconds or None, not {shown}", field=field)
    try:
        found = float(value)
    except OverflowError:
        found = math.inf if value > 0 else 0.0
    return None if found == math.inf else found


def job_ids(ids: object, *, field: str = "job_ids") -> list[int] | None:
    """The jobs that are meant, of one id or of several; None for None. Raises InvalidSpecError for what is no id.

    Text is none: the ids in "12" are not 1 and 2.
    """
    if ids is None:
        return None
    if isinstance(ids, (str, bytes, bytearray)):
        raise InvalidSpecError(f"{field} must be a number or numbers, not {ids!r:.80}", field=field)
    return [_number(each, field) for each in (ids if isinstance(ids, Iterable) else [ids])]


def job_id(value: object, *, field: str = "job_id") -> int | None:
    """The job that is meant; None for None. Raises InvalidSpecError for what is no id."""
    return None if value is None else _number(value, field)


def _number(value: object, field: str) -> int:
    """What counts as a whole number, numpy's included, but no bool."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    shown = f"{value!r:.80}" if isinstance(value, (bool, float, str)) else type(value).__name__
    raise InvalidSpecError(f"{field} must be the number of a job, not {shown}", field=field)
