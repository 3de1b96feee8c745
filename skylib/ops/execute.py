"""Verbs about jobs: exec, queue, job, wait, cancel."""

from __future__ import annotations

from collections.abc import Sequence

from skylib.errors import ClusterBusy, ClusterNotFound, InvalidSpecError, JobNotFound
from skylib.events import EventSink
from skylib.jobs import polling
from skylib.jobs.submit import Submitted, job_spec, key_for, submit
from skylib.models.cluster import ClusterRecord
from skylib.models.job import JobRecord
from skylib.models.task import Task
from skylib.ops import checks, outputs
from skylib.ops.checks import check_task, refuse_misfit
from skylib.ops.files import deliver, staged_files
from skylib.ops.holding import hold
from skylib.ops.lives import Life, life_of, require_up
from skylib.session import Session
from skylib.state.intents import is_living

__all__ = ["as_task", "cancel", "deliver_workdir", "exec_", "finish_left", "job", "queue", "seen_job", "wait"]


def as_task(task_or_command: Task | str) -> Task:
    """A command line becomes a task that runs it on one node. Raises InvalidSpecError for anything else."""
    if isinstance(task_or_command, Task):
        return task_or_command
    if not isinstance(task_or_command, str):
        kind = type(task_or_command).__name__
        raise InvalidSpecError(f"expected a Task or a command line, got {kind}", field="task")
    return Task(run=task_or_command)


def exec_(session: Session, task_or_command: Task | str, name: str, *, key: str | None = None) -> Submitted:
    """Submit to a cluster that is UP: the workdir is brought up to date; no provisioning, no setup, no other files."""
    task = as_task(task_or_command)
    check_task(task)
    session = session.tuned(task)
    record = require_up(session, name)
    refuse_misfit(task, record)
    key = key_for(key)
    with session.operation("exec", name) as events:
        record = finish_left(session, record, "exec", events)
        with session.intent("exec", name, cluster_id=record.cluster_id, key=key):
            record = deliver_workdir(session, task, record, "exec", events)
            spec = job_spec(task, record, user=session.user, key=key, setup=False, client=session.user_hash)
            done = submit(session.agent(record), spec, record)
            outputs.expect(session, task, record, [done])
            return done


def deliver_workdir(session: Session, task: Task, record: ClusterRecord, operation: str, events: EventSink) -> ClusterRecord:
    """Brings the task's workdir up to date on all nodes, under the cluster's lock; the record as it is then."""
    with staged_files(session, task, events, workdir_only=True) as files:
        if files:
            with hold(session, record.name, operation, events):  # nothing is sent to hosts that a down beside us gives back
                record = require_up(session, record.name)
                deliver(session, files, record, events)
    return record


def queue(session: Session, name: str, *, include_ended: bool = True) -> list[JobRecord]:
    """All jobs of the cluster, oldest first; those that were seen, when it is stopped or gone."""
    life = life_of(session, name)
    record = life.askable
    if record is not None:
        jobs = polling.queue(session.agent(record), name, include_ended=include_ended)
        session.store.save_jobs(record.cluster_id, jobs)
        return outputs.collect(session, record, jobs)
    seen = sorted(session.store.jobs(name, cluster_id=life.cluster_id), key=lambda each: each.job_id)
    return outputs.with_receipts(session, name, life.cluster_id, seen)


def job(session: Session, name: str, job_id: int | None, *, cluster_id: str | None = None) -> JobRecord:
    """One job as it is now (None: the newest); as it was seen last, when the cluster is stopped or gone.

    Raises JobNotFound, ClusterNotFound, InvalidSpecError.
    """
    job_id = checks.job_id(job_id)
    life = life_of(session, name, cluster_id)
    record = life.askable
    if record is not None:
        found = polling.job(session.agent(record), name, job_id)
        session.store.save_jobs(record.cluster_id, [found])
    else:
        found = seen_job(session, life, job_id)
    return outputs.with_receipts(session, name, life.cluster_id, [found])[0]


def seen_job(session: Session, life: Life, job_id: int | None) -> JobRecord:
    """What the store knows of a job; None: the newest. Raises JobNotFound."""
    for each in session.store.jobs(life.name, cluster_id=life.cluster_id):
        if job_id is None or each.job_id == job_id:
            return each
    raise JobNotFound(f"cluster {life.name!r} has no job {job_id or ''}".rstrip(), cluster=life.name, job_id=job_id)


def wait(
    session: Session,
    name: str,
    job_id: int,
    *,
    timeout_s: float | None = None,
    check: bool = True,
    cluster_id: str | None = None,
) -> JobRecord:
    """The job when it has ended, its outputs fetched; as it was seen last, when the cluster is stopped or gone.

    Outputs that do not come change nothing about the job: `fetched` of the record says why, the next contact tries again.
    Raises JobFailed when `check` and it did not succeed, TransportTimeout, JobNotFound, InvalidSpecError,
    AgentError, TransportError.
    """
    timeout_s = checks.patience(timeout_s)
    life = life_of(session, name, cluster_id)
    record = life.askable
    if record is None:
        found = outputs.with_receipts(session, name, life.cluster_id, [seen_job(session, life, job_id)])[0]
    else:
        found = polling.wait(session.agent(record), name, job_id, timeout_s=timeout_s)
        session.store.save_jobs(record.cluster_id, [found])
        found = outputs.collect(session, record, [found])[0]
    return polling.raise_unless_succeeded(found) if check else found


def cancel(
    session: Session,
    name: str,
    job_ids: int | Sequence[int] | None = None,
    *,
    all_jobs: bool = False,
    cluster_id: str | None = None,
) -> list[polling.Cancelled]:
    """End jobs and every process of theirs, on all nodes. Without ids or all: the newest running one.

    An empty list means none. A job of a cluster that is gone has ended: nothing is to be done. Raises InvalidSpecError
    for what is no id, JobNotFound, ClusterNotUp.
    """
    jobs = checks.job_ids(job_ids)
    if jobs == [] and not all_jobs:
        return []
    if cluster_id is not None and life_of(session, name, cluster_id).record is None:
        return []
    record = require_up(session, name)
    with session.operation("cancel", name) as events:
        try:
            record = finish_left(session, record, "cancel", events)
        except ClusterNotFound:
            if cluster_id is None:
                raise
            return []
        with session.intent("cancel", name, cluster_id=record.cluster_id, job_ids=jobs, all=all_jobs):
            return polling.cancel(session.agent(record), name, jobs, all_jobs=all_jobs)


def finish_left(session: Session, record: ClusterRecord, operation: str, events: EventSink) -> ClusterRecord:
    """The cluster, UP after what dead processes had begun with it was finished or undone; `record` when nothing was.

    An operation under way is not waited for, unless a dead one is there, too. Raises as `hold` and `require_up`.
    """
    left = session.left_intents(record.name)
    if not left:
        return record
    dead = any(not is_living(intent, now=session.clock()) for intent in left)
    try:
        with hold(session, record.name, operation, events, None if dead else 0.0):
            return require_up(session, record.name)
    except ClusterBusy:
        if dead:
            raise
        return record
