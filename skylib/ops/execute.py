"""Verbs about jobs on a cluster that stands: exec, queue, job, wait, cancel, logs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from skylib.errors import AgentError, ClusterNotUp, JobNotFound, TransportError
from skylib.jobs import logs, polling
from skylib.jobs.submit import Submitted, job_spec, submit
from skylib.models.cluster import ClusterRecord, ClusterStatus
from skylib.models.job import JobRecord, LogLine
from skylib.models.resources import Resources
from skylib.models.task import Task
from skylib.ops.checks import check_task, refuse_misfit
from skylib.ops.files import deliver, prepare_files
from skylib.ops.joblogs import fetch_job_files
from skylib.runtime.agent_client import daemon_command
from skylib.runtime.teardown import layout_of
from skylib.session import Session

__all__ = [
    "as_task",
    "bring_logs_home",
    "cancel",
    "download_logs",
    "exec_",
    "job",
    "queue",
    "require_up",
    "tail_logs",
    "wait",
]

WAKE_TIMEOUT_S = 30.0


def as_task(task_or_command: Task | str) -> Task:
    """A command line becomes a task that runs it on one node."""
    return task_or_command if isinstance(task_or_command, Task) else Task(run=task_or_command, resources=Resources())


def require_up(session: Session, name: str) -> ClusterRecord:
    """The record of a cluster that takes jobs. Raises ClusterNotFound, ClusterNotUp."""
    record = session.require(name)
    if record.status is not ClusterStatus.UP:
        raise ClusterNotUp(
            f"cluster {name!r} is {record.status.value}",
            cluster=name,
            status=record.status,
            since=record.status_since,
            hint=f"client.start({name!r}) brings it up",
        )
    return record


def exec_(session: Session, task_or_command: Task | str, name: str, *, key: str | None = None) -> Submitted:
    """Submit to a cluster that is UP: the workdir is brought up to date; no provisioning, no setup, no other files."""
    task = as_task(task_or_command)
    check_task(task)
    record = require_up(session, name)
    refuse_misfit(task, record)
    with session.operation("exec", name) as events:
        files = prepare_files(task, events, workdir_only=True)
        deliver(session, files, record, events)
        spec = job_spec(task, record, user=session.user, key=key, setup=False)
        return submit(session.agent(record), spec, record)


def queue(session: Session, name: str, *, include_ended: bool = True) -> list[JobRecord]:
    """All jobs of the cluster, oldest first; those that were seen, when the cluster is gone or cannot be asked."""
    record = session.store.cluster(name)
    if record is None:
        seen = session.store.jobs(name)
        if not seen:
            session.require(name)
        return sorted(seen, key=lambda each: each.job_id)
    if record.status in (ClusterStatus.UP, ClusterStatus.AUTOSTOPPING):
        jobs = polling.queue(session.agent(record), name, include_ended=include_ended)
        session.store.save_jobs(record.cluster_id, jobs)
        return jobs
    return sorted(session.store.jobs(name, cluster_id=record.cluster_id), key=lambda each: each.job_id)


def job(session: Session, name: str, job_id: int | None) -> JobRecord:
    """One job as it is now; as it was seen last, when the cluster is gone. Raises JobNotFound, ClusterNotFound."""
    record = session.store.cluster(name)
    if record is not None and record.status in (ClusterStatus.UP, ClusterStatus.AUTOSTOPPING):
        found = polling.job(session.agent(record), name, job_id)
        session.store.save_jobs(record.cluster_id, [found])
        return found
    seen = session.store.jobs(name)
    wanted = [each for each in seen if job_id is None or each.job_id == job_id]
    if not wanted:
        session.require(name)
        raise JobNotFound(f"cluster {name!r} has no job {job_id}", cluster=name, job_id=job_id)
    return wanted[0]


def wait(session: Session, name: str, job_id: int, *, timeout_s: float | None = None, check: bool = True) -> JobRecord:
    """The job when it has ended. Raises JobFailed when `check` and it did not succeed, TransportTimeout."""
    record = session.store.cluster(name)
    if record is None:
        found = job(session, name, job_id)
    else:
        found = polling.wait(session.agent(record), name, job_id, timeout_s=timeout_s)
        session.store.save_jobs(record.cluster_id, [found])
    return polling.raise_unless_succeeded(found) if check else found


def cancel(
    session: Session, name: str, job_ids: Sequence[int] | None = None, *, all_jobs: bool = False
) -> list[polling.Cancelled]:
    """End jobs and every process of theirs, on all nodes. Without ids or all: the newest running one."""
    record = require_up(session, name)
    with session.operation("cancel", name):
        return polling.cancel(session.agent(record), name, job_ids, all_jobs=all_jobs)


def tail_logs(
    session: Session, name: str, job_id: int | None = None, *, follow: bool = True, offset: int = 0
) -> Iterator[LogLine]:
    """Lines of a job's merged log; None: the newest job's. From the kept copy when the cluster is gone or stopped."""
    record = session.store.cluster(name)
    if record is not None and record.status in (ClusterStatus.UP, ClusterStatus.AUTOSTOPPING):
        return logs.follow(session.agent(record), name, job_id, offset=offset, follow=follow)
    if job_id is None:
        job_id = job(session, name, None).job_id
    path = logs.kept_path(session.home.job_logs, name, job_id)
    if not path.exists():
        job(session, name, job_id)  # says that there is no such job, when there is none
        raise JobNotFound(
            f"the log of job {job_id} of cluster {name!r} was not brought home",
            cluster=name,
            job_id=job_id,
            hint=f"client.start({name!r}) when the cluster is stopped",
        )
    return logs.kept_lines(path, offset=offset)


def download_logs(session: Session, name: str, job_ids: Sequence[int] | None = None) -> dict[int, Path]:
    """Bring home the merged log and each rank's own; job id -> the folder. None: all jobs of the cluster."""
    record = session.store.cluster(name)
    standing = record is not None and record.status in (ClusterStatus.UP, ClusterStatus.AUTOSTOPPING)
    known = queue(session, name)
    wanted = [each for each in known if job_ids is None or each.job_id in set(job_ids)]
    missing = sorted(set(job_ids or ()) - {each.job_id for each in wanted})
    if missing:
        raise JobNotFound(f"cluster {name!r} has no job {missing[0]}", cluster=name, job_id=missing[0])
    found: dict[int, Path] = {}
    with session.operation("download_logs", name):
        for each in wanted:
            path = logs.kept_path(session.home.job_logs, name, each.job_id)
            if record is not None and standing:
                agent = session.agent(record)
                logs.keep(agent, name, each.job_id, path)
                fetch_job_files(session, record, each, path.parent)
            if path.exists():
                found[each.job_id] = path.parent
    return found


def bring_logs_home(session: Session, record: ClusterRecord) -> str:
    """Before a cluster goes: what its jobs printed. "" when done, else why something is missing, in words.

    The agent of a cluster that stopped by itself is woken for it; who asks ends it with all the rest.
    """
    if not record.nodes:
        return ""
    try:
        try:
            _bring(session, record)
        except AgentError:
            head = record.head
            command = daemon_command(head.python, layout_of(head), record.cluster_id)
            session.transport(head.address).run(command, timeout_s=WAKE_TIMEOUT_S).check()
            _bring(session, record)
    except (AgentError, TransportError) as error:
        return error.message
    return ""


def _bring(session: Session, record: ClusterRecord) -> None:
    agent = session.agent(record)
    jobs = polling.queue(agent, record.name)
    session.store.save_jobs(record.cluster_id, jobs)
    for each in jobs:
        logs.keep(agent, record.name, each.job_id, logs.kept_path(session.home.job_logs, record.name, each.job_id))
