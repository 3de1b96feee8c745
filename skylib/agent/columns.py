"""Many jobs in few bytes: a column for each field, and what repeats from job to job said once. Pure.

The other half is jobs/columns.py. A column is a list of values, one a job, or {"runs": [[value, how often], ...]}. In
the columns of TEMPLATES the character NUL stands for the job's id; in "waiting_for" it stands for the number of jobs of
this answer before it that wait, too.
"""

from __future__ import annotations

from typing import Any, Container, Dict, List, Optional, Sequence

from .job import Job
from .protocol import OWN_KEY
from .waiting import Reasons

__all__ = ["TEMPLATES", "encode_jobs"]

TEMPLATES = ("task_id", "log_dir")
_PLAIN = (
    *("job_id", "name", "status", "num_nodes", "submitted_at", "started_at", "ended_at", "exit_codes", "cause", "user"),
    *("resources", "signals", "first_cause", "attempt"),
)


def encode_jobs(jobs: Sequence[Job], queued: Container[int], waiting: Optional[Reasons]) -> Dict[str, Any]:
    """{"count": how many, "columns": {field: column}}. queued: ids of those that wait; waiting: why, None when none does."""
    columns: Dict[str, Any] = {name: _column([getattr(job, name) for job in jobs]) for name in _PLAIN}
    for name in TEMPLATES:
        columns[name] = _column([_template(getattr(job, name), str(job.job_id)) for job in jobs])
    columns["key"] = _column(["" if job.key.startswith(OWN_KEY) else job.key for job in jobs])
    columns["waiting_for"] = _column(_reasons(jobs, queued, waiting))
    return {"count": len(jobs), "columns": columns}


def _template(text: str, number: str) -> str:
    """The last place of the number as NUL; as it is when the number is not there, or a NUL is already."""
    before, found, after = text.rpartition(number)
    return f"{before}\0{after}" if found and "\0" not in text else text


def _reasons(jobs: Sequence[Job], queued: Container[int], waiting: Optional[Reasons]) -> List[str]:
    if waiting is None:
        return [""] * len(jobs)
    found = []
    ahead = 0
    for job in jobs:
        if job.job_id in queued:
            found.append(waiting.text(job, ahead if ahead < 2 else None))
            ahead += 1
        else:
            found.append("")
    return found


def _column(values: List[Any]) -> Any:
    runs: List[List[Any]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
            if len(runs) > 64 and len(runs) * 2 > len(values):
                return values
    return {"runs": runs}
