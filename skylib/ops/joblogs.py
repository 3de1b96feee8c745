"""Verbs about logs: watch them, bring them home, and keep them when the cluster goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from skylib.errors import JobNotFound
from skylib.jobs import logs
from skylib.models.cluster import ClusterRecord, NodeRecord
from skylib.models.job import JobRecord, LogLine
from skylib.ops.execute import queue, seen_job
from skylib.ops.keeping import keep_log
from skylib.ops.lives import Life, life_of
from skylib.session import Session
from skylib.transport.command import Command
from skylib.transport.fanout import fanout

__all__ = ["download_logs", "tail_logs"]


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
                keep_log(session, life.askable, each.job_id)
                _fetch_job_files(session, life.askable, each, path.parent)
            if path.exists():
                found[each.job_id] = path.parent
    return found


def _kept(session: Session, life: Life, job_id: int) -> Path:
    return logs.kept_path(session.home.job_logs, life.name, life.cluster_id, job_id)


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
