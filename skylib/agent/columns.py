"""Many jobs in few bytes: a column for each field, and what repeats from job to job said once. Pure.

The other half is jobs/columns.py. A column is a list of values, one a job, or {"runs": [[value, how often], ...]}. In
"task_id" and "log_dir" the character NUL stands for the job's id, and in "log_dir" the character 1 for its name; in
"waiting_for" NUL stands for the number of jobs of this answer before it that wait, too; a text that begins with the
character 1 is of a job that has left the queue and is not counted.
"""

from __future__ import annotations

from itertools import groupby
from operator import attrgetter
from typing import Any, Container, Dict, List, Optional, Sequence, Tuple

from .job import Job
from .protocol import OWN_KEY
from .waiting import Reasons

__all__ = ["encode_jobs"]

_SAMPLE = 64
_PLAIN = (
    *("job_id", "name", "status", "num_nodes", "submitted_at", "started_at", "ended_at", "exit_codes", "cause", "user"),
    *("resources", "signals", "first_cause", "attempt"),
)


def encode_jobs(jobs: Sequence[Job], queued: Container[int], waiting: Optional[Reasons]) -> Dict[str, Any]:
    """{"count": how many, "columns": {field: column}}. queued: ids of those that wait; waiting: why, None when none does."""
    columns: Dict[str, Any] = {name: _column(list(map(attrgetter(name), jobs))) for name in _PLAIN}
    columns["task_id"] = _column([_without_end(job.task_id, str(job.job_id), "\0") for job in jobs])
    columns["log_dir"] = _column([_without_end(job.log_dir, f"{job.job_id}-{job.name}", "\0-\1") for job in jobs])
    columns["key"] = _column(["" if job.key.startswith(OWN_KEY) else job.key for job in jobs])
    columns["waiting_for"] = _column(_reasons(jobs, queued, waiting))
    if any(job.outputs for job in jobs):
        columns["outputs"] = _column([job.show_outputs() for job in jobs])
    return {"count": len(jobs), "columns": columns}


def _without_end(text: str, end: str, mark: str) -> str:
    """The text with the mark in the place of its end; as it is when it ends otherwise."""
    return text[: -len(end)] + mark if text.endswith(end) else text


def _reasons(jobs: Sequence[Job], queued: Container[int], waiting: Optional[Reasons]) -> List[str]:
    if waiting is None:
        return [_itself(job) for job in jobs]
    found = []
    ahead = 0
    shared: Dict[Tuple[int, int], str] = {}  # by what is asked for; equal demands are mostly one object
    for job in jobs:
        if job.job_id not in queued:
            found.append(_itself(job))
            continue
        kind = (job.num_nodes, id(job.demand))
        if ahead < 2:
            text = waiting.text(job, ahead)
        elif kind in shared:
            text = shared[kind]
        else:
            text = shared[kind] = waiting.text(job, None)
        found.append(text)
        ahead += 1
    return found


def _itself(job: Job) -> str:
    """Of a job that is not in the queue."""
    return "" if job.is_terminal or not job.waiting_for else "\1" + job.waiting_for


def _column(values: List[Any]) -> Any:
    if not values:
        return values
    if values.count(values[0]) == len(values):
        return {"runs": [[values[0], len(values)]]}
    sample = values[:_SAMPLE]
    if sum(1 for _ in groupby(sample)) * 2 > len(sample):
        return values
    return {"runs": [[value, sum(1 for _ in group)] for value, group in groupby(values)]}
