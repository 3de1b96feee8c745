"""The logs of a cluster's jobs, kept at home: brought there before the cluster goes."""

from __future__ import annotations

import attrs

from skylib.errors import AgentError, SkyError, StagingError
from skylib.jobs import kept, logs, polling
from skylib.models.cluster import ClusterRecord
from skylib.models.job import JobRecord, JobStatus
from skylib.ops.outputs import collect
from skylib.ops.pen import FREE, Pen
from skylib.runtime.agent_client import daemon_command
from skylib.runtime.teardown import layout_of
from skylib.session import Session
from skylib.transport.command import Command
from skylib.transport.fanout import fanout

__all__ = ["KEEP_TIMEOUT_S", "Brought", "bring_home", "bring_logs_home", "keep_log"]

WAKE_TIMEOUT_S = 60.0
KEEP_TIMEOUT_S = 600.0
AT_ONCE = 8


@attrs.frozen(kw_only=True)
class Brought:
    """missing: what did not come home, in words; "" when all did. cancelled: the agent, not asleep, ended all jobs."""

    missing: str
    cancelled: bool = False


def bring_logs_home(session: Session, record: ClusterRecord, *, pen: Pen = FREE) -> str:
    """What the cluster's jobs were and printed, and their outputs, before it goes.

    "" when all is here, else what is missing, in words.

    The agent of a cluster that stopped by itself is woken to be read, and to do nothing else; who asks ends it with all
    the rest. pen: for what is written down.
    """
    return bring_home(session, record, cancel=False, pen=pen).missing


def bring_home(session: Session, record: ClusterRecord, *, cancel: bool, pen: Pen = FREE) -> Brought:
    """As bring_logs_home. cancel: end all jobs first, so that nothing is printed after the copy."""
    if not record.nodes:
        return Brought(missing="")
    cancelled = False
    try:
        try:
            if cancel:
                polling.cancel(session.agent(record), record.name, None, all_jobs=True)
                cancelled = True
            _bring(session, record, pen)
        except AgentError:
            if not _has_jobs(session, record):
                return Brought(missing="", cancelled=cancelled)
            _wake(session, record)
            _bring(session, record, pen)
    except SkyError as error:
        return Brought(missing=error.message, cancelled=cancelled)
    return Brought(missing="", cancelled=cancelled)


def _bring(session: Session, record: ClusterRecord, pen: Pen) -> None:
    jobs = polling.queue(session.agent(record), record.name)
    with pen:
        session.store.save_jobs(record.cluster_id, jobs)

    def keep(job: JobRecord) -> None:
        pen.check()
        keep_log(session, record, job.job_id, final=job.status not in (JobStatus.INIT, JobStatus.PENDING))

    for outcome in fanout(keep, jobs, limit=AT_ONCE):
        outcome.get()
    pen.check()
    for job in collect(session, record, jobs, last=True):
        if job.outputs is not None and job.fetched is not None and job.fetched.error:
            raise StagingError(f"outputs of job {job.job_id}: {job.fetched.error}", job_id=job.job_id)


def _has_jobs(session: Session, record: ClusterRecord) -> bool:
    head = record.head
    return session.transport(head.address).run(Command.of("test", "-s", layout_of(head).jobs_db), timeout_s=20).ok


def _wake(session: Session, record: ClusterRecord) -> None:
    head = record.head
    session.forget_agent(record.cluster_id)
    command = daemon_command(head.python, layout_of(head), record.cluster_id, asleep=True)
    session.transport(head.address).run(command, timeout_s=WAKE_TIMEOUT_S).check()


def keep_log(session: Session, record: ClusterRecord, job_id: int, *, final: bool = False) -> None:
    """One process at a time writes a kept log. final: the job prints no more, whatever its status says."""
    path = kept.kept_path(session.home.job_logs, record.name, record.cluster_id, job_id)
    if kept.is_complete(path):
        return
    scope = f"joblog:{record.cluster_id}:{job_id}"
    with session.file_locks.hold(scope, operation="keep log", timeout_s=KEEP_TIMEOUT_S):
        logs.keep(session.agent(record), record.name, job_id, path, final=final)
