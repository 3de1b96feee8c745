"""Verbs about logs: watch them, bring them home, and keep them when the cluster goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from skylib.errors import AgentError, JobNotFound, SkyError
from skylib.jobs import logs, polling
from skylib.models.cluster import ClusterRecord, NodeRecord
from skylib.models.job import JobRecord, LogLine
from skylib.ops.execute import queue, seen_job
from skylib.ops.lives import Life, life_of
from skylib.runtime.agent_client import daemon_command
from skylib.runtime.teardown import layout_of
from skylib.session import Session
from skylib.transport.command import Command
from skylib.transport.fanout import fanout

__all__ = ["bring_logs_home", "download_logs", "tail_logs"]

WAKE_TIMEOUT_S = 30.0
KEEP_TIMEOUT_S = 600.0


def tail_logs(
    session: Session,
    name: str,
    job_id: int | None = None,
    *,
    follow: bool = True,
    offset: int = 0,
    cluster_id: str | None = None,
) -> Iterator[LogLine]:
    """Lines of a job's merged log; None: the newest job's. From the kept copy when the cluster is stopped or gone."""
    life = life_of(session, name, cluster_id)
    record = life.askable
    if record is not None:
        return logs.follow(session.agent(record), name, job_id, offset=offset, follow=follow)
    found = seen_job(session, life, job_id)
    path = _kept(session, life, found.job_id)
    if not path.exists():
        raise JobNotFound(
            f"the log of job {found.job_id} of cluster {name!r} was not brought home",
            cluster=name,
            job_id=found.job_id,
            hint=f"client.start({name!r}) when the cluster is stopped",
        )
    return logs.kept_lines(path, offset=offset)


def download_logs(session: Session, name: str, job_ids: Sequence[int] | None = None) -> dict[int, Path]:
    """Bring home the merged log and each rank's own; job id -> the folder. None: all jobs of the cluster."""
    life = life_of(session, name)
    known = queue(session, name)
    wanted = [each for each in known if job_ids is None or each.job_id in set(job_ids)]
    missing = sorted(set(job_ids or ()) - {each.job_id for each in wanted})
    if missing:
        raise JobNotFound(f"cluster {name!r} has no job {missing[0]}", cluster=name, job_id=missing[0])
    found: dict[int, Path] = {}
    with session.operation("download_logs", name):
        for each in wanted:
            path = _kept(session, life, each.job_id)
            if life.askable is not None:
                _keep(session, life.askable, each.job_id)
                _fetch_job_files(session, life.askable, each, path.parent)
            if path.exists():
                found[each.job_id] = path.parent
    return found


def bring_logs_home(session: Session, record: ClusterRecord, *, cancel: bool = False) -> str:
    """What the cluster's jobs were and printed, before it goes. "" when all is here, else what is missing, in words.

    cancel: end all jobs first, so that nothing is printed after the copy. The agent of a cluster that stopped by itself
    is woken to be read, and to do nothing else; who asks ends it with all the rest.
    """
    if not record.nodes:
        return ""
    try:
        try:
            if cancel:
                polling.cancel(session.agent(record), record.name, None, all_jobs=True)
            _bring(session, record)
        except AgentError:
            if not _has_jobs(session, record):
                return ""
            _wake(session, record)
            _bring(session, record)
    except SkyError as error:
        return error.message
    return ""


def _bring(session: Session, record: ClusterRecord) -> None:
    jobs = polling.queue(session.agent(record), record.name)
    session.store.save_jobs(record.cluster_id, jobs)
    for each in jobs:
        _keep(session, record, each.job_id)


def _has_jobs(session: Session, record: ClusterRecord) -> bool:
    head = record.head
    return session.transport(head.address).run(Command.of("test", "-s", layout_of(head).jobs_db), timeout_s=20).ok


def _wake(session: Session, record: ClusterRecord) -> None:
    head = record.head
    session.forget_agent(record.cluster_id)
    command = daemon_command(head.python, layout_of(head), record.cluster_id, asleep=True)
    session.transport(head.address).run(command, timeout_s=WAKE_TIMEOUT_S).check()


def _kept(session: Session, life: Life, job_id: int) -> Path:
    return logs.kept_path(session.home.job_logs, life.name, life.cluster_id, job_id)


def _keep(session: Session, record: ClusterRecord, job_id: int) -> None:
    """One process at a time writes a kept log."""
    path = logs.kept_path(session.home.job_logs, record.name, record.cluster_id, job_id)
    scope = f"joblog:{record.cluster_id}:{job_id}"
    with session.file_locks.hold(scope, operation="keep log", timeout_s=KEEP_TIMEOUT_S):
        logs.keep(session.agent(record), record.name, job_id, path)


def _fetch_job_files(session: Session, record: ClusterRecord, job: JobRecord, target: Path) -> None:
    """Each rank's own log files into target/node<rank>/; a node that holds none of the job gives none."""
    folder = job.log_dir.rstrip("/").rsplit("/", 1)[-1]
    if not folder:
        return

    def fetch(node: NodeRecord) -> None:
        transport = session.transport(node.address)
        source = f"{node.root}/sky_logs/{folder}/tasks"
        listed = transport.run(Command.sh('cd "$1" 2>/dev/null && ls -A || true', source)).check()
        for name in listed.stdout.decode("utf-8", "surrogateescape").splitlines():
            transport.get(f"{source}/{name}", target / f"node{node.rank}" / name)

    for outcome in fanout(fetch, record.nodes):
        outcome.get()
