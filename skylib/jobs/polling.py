"""Asking after jobs: records, waiting, ending them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NoReturn

import attrs

from skylib.agent.protocol import OWN_KEY
from skylib.errors import AgentError, AgentReplyError, JobFailed, JobNotFound, TransportError, TransportTimeout
from skylib.jobs.columns import decode_jobs
from skylib.models.job import JobRecord, JobStatus
from skylib.runtime.agent_client import AgentClient

__all__ = ["Cancelled", "cancel", "job", "queue", "raise_not_found", "raise_unless_succeeded", "wait"]

PATIENCE_S = 120.0
LONG_POLL_S = 30.0
ANSWER_S = 10.0
_SHOWN = 200


@attrs.frozen(kw_only=True)
class Cancelled:
    """What a cancel did to one job. ended: pids that are gone; survivors: pids that would not go.

    nodes_unreached: hosts whose processes could not be ended now; they are ended as soon as those can be reached.
    """

    job_id: int
    ended: tuple[int, ...] = ()
    survivors: tuple[int, ...] = ()
    nodes_unreached: tuple[str, ...] = ()


def queue(agent: AgentClient, cluster: str, *, include_ended: bool = True) -> list[JobRecord]:
    """All jobs of the cluster, oldest first."""
    answer = agent.call("queue", all=include_ended, form="columns")
    if "columns" in answer:
        return decode_jobs(cluster, answer)
    return [_record(cluster, entry) for entry in answer["jobs"]]


def job(agent: AgentClient, cluster: str, job_id: int | None) -> JobRecord:
    """One job; None asks for the newest. Raises JobNotFound."""
    try:
        return _record(cluster, agent.call("job", job_id=job_id)["job"])
    except AgentReplyError as error:
        raise_not_found(error, cluster, job_id)


def wait(agent: AgentClient, cluster: str, job_id: int, *, timeout_s: float | None = None) -> JobRecord:
    """The job when it has ended. A channel that breaks is opened again for up to two minutes.

    Raises TransportTimeout when it has not ended after timeout_s, JobNotFound, AgentError, TransportError.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    broken_since: float | None = None
    seen = "not known to have ended"
    pause_s = 0.2
    while True:
        left_s = LONG_POLL_S if deadline is None else min(LONG_POLL_S, max(0.0, deadline - time.monotonic()))
        cause: Exception | None = None
        try:
            answer = agent.call("wait", answer_within_s=left_s + ANSWER_S, job_id=job_id, timeout_s=left_s)
        except AgentReplyError as error:
            raise_not_found(error, cluster, job_id)
        except (AgentError, TransportError) as error:
            now = time.monotonic()
            broken_since = broken_since or now
            if not error.retryable or now - broken_since > PATIENCE_S:
                raise
            cause = error
        else:
            broken_since, pause_s = None, 0.2
            record = _record(cluster, answer["job"])
            if record.status.is_terminal:
                return record
            seen = f"still {record.status.value}"
        if deadline is not None and time.monotonic() >= deadline:
            raise TransportTimeout(
                f"job {job_id} of cluster {cluster!r} is {seen} after {timeout_s:g} s",
                cluster=cluster,
                job_id=job_id,
                timeout_s=timeout_s,
                hint="the job goes on; wait again, or job.cancel()",
            ) from cause
        if cause is not None:
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 5.0)


def raise_unless_succeeded(record: JobRecord) -> JobRecord:
    """The record, when the job succeeded. Raises JobFailed with exit codes by rank and the first cause."""
    if record.status is JobStatus.SUCCEEDED:
        return record
    raise JobFailed(
        f"job {record.job_id} of cluster {record.cluster_name!r} ended {record.status.value}"
        + (f": {record.cause}" if record.cause else "")
        + _last_words(record),
        cluster=record.cluster_name,
        job_id=record.job_id,
        status=record.status,
        exit_codes=record.exit_codes,
        cause=record.cause,
        first_cause=record.first_cause,
        log_path=record.log_dir,
        hint=f"client.tail_logs({record.cluster_name!r}, {record.job_id})",
    )


def _last_words(record: JobRecord) -> str:
    """The last line that the failed rank printed, unless the message has it already."""
    cause = record.first_cause
    line = next((line.strip() for line in reversed(cause.last_lines) if line.strip()), "") if cause is not None else ""
    if not line or line in record.cause:
        return ""
    return f'; the last it printed: "{line if len(line) <= _SHOWN else line[:_SHOWN] + "..."}"'


def cancel(agent: AgentClient, cluster: str, job_ids: Sequence[int] | None, *, all_jobs: bool) -> list[Cancelled]:
    """End jobs with all their processes; neither ids nor all means the newest running one. Raises JobNotFound."""
    try:
        named = bool(job_ids) or all_jobs  # "the newest running one" is another job the second time
        answer = agent.call("cancel", answer_within_s=120.0, repeatable=named, job_ids=list(job_ids or ()), all=all_jobs)
    except AgentReplyError as error:
        raise_not_found(error, cluster, list(job_ids or ()))
    return [
        Cancelled(
            job_id=entry["job_id"],
            ended=tuple(entry["ended"]),
            survivors=tuple(entry["survivors"]),
            nodes_unreached=tuple(entry.get("nodes_unreached") or ()),
        )
        for entry in answer["cancelled"]
    ]


def _record(cluster: str, entry: dict[str, object]) -> JobRecord:
    key = str(entry.get("key") or "")
    return JobRecord.from_json({**entry, "cluster_name": cluster, "key": "" if key.startswith(OWN_KEY) else key})


def raise_not_found(error: AgentReplyError, cluster: str, job_id: object) -> NoReturn:
    """The agent's "not found" as JobNotFound, any other refusal as it is."""
    if error.kind != "not_found":
        raise error
    raise JobNotFound(
        f"cluster {cluster!r} has no such job: {error.message}",
        cluster=cluster,
        job_id=job_id,
        hint=f"client.queue({cluster!r}) lists its jobs",
    ) from error
