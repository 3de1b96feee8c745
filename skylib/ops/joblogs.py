"""Verbs about logs: watch them, bring them home, and keep them when the cluster goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skylib.errors import InvalidSpecError, JobNotFound
from skylib.jobs import kept, logs, polling
from skylib.jobs.rank_files import bring_file, list_files
from skylib.jobs.stream import ONE_LOOK_PATIENCE_S, PATIENCE_S, LogStream, Place, Source
from skylib.models.cluster import ClusterRecord, NodeRecord
from skylib.models.job import JobRecord
from skylib.ops import checks
from skylib.ops.execute import queue, seen_job
from skylib.ops.keeping import KEEP_TIMEOUT_S, keep_log
from skylib.ops.lives import Life, life_of
from skylib.session import Session
from skylib.transport.fanout import fanout

__all__ = ["download_logs", "tail_logs"]


def tail_logs(
    session: Session,
    name: str,
    job_id: int | None = None,
    *,
    follow: bool = True,
    offset: int = 0,
    tail: int | None = None,
    cluster_id: str | None = None,
) -> LogStream:
    """Lines of a job's merged log; None: the newest job's. From the kept copy when the cluster is stopped or gone.

    offset: of a line, or the end of one. tail: begin with the last so many lines that are there. Raises InvalidSpecError,
    ClusterNotFound, JobNotFound.
    """
    place = Place(_count(offset, "offset"), None if tail is None else _count(tail, "tail"))
    if tail is not None and offset:
        raise InvalidSpecError("give offset or tail, not both", field="tail")
    known = job_id = checks.job_id(job_id)
    life = life_of(session, name, cluster_id)
    if life.askable is None:
        known = _require_kept(session, life, job_id)

    def open_source(place: Place) -> Source:
        """Where the log is may change while it is read: it comes home when the cluster goes."""
        nonlocal known
        now = life_of(session, name, life.cluster_id)
        record = now.askable
        if record is None:
            known = _require_kept(session, now, known)
            return logs.kept_source(_kept(session, now, known), place)
        agent = session.agent(record)
        if known is None:
            known = polling.job(agent, name, None).job_id
        return logs.open_source(agent, name, known, place, follow=follow)

    return LogStream(open_source, place, patience_s=PATIENCE_S if follow else ONE_LOOK_PATIENCE_S)


def _count(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidSpecError(f"{field} must be a whole number that is not negative, not {value!r}", field=field)
    return value


def _require_kept(session: Session, life: Life, job_id: int | None) -> int:
    """The job whose log is at home. Raises JobNotFound."""
    found = seen_job(session, life, job_id)
    if not _kept(session, life, found.job_id).exists():
        raise JobNotFound(
            f"the log of job {found.job_id} of cluster {life.name!r} was not brought home",
            cluster=life.name,
            job_id=found.job_id,
            hint=f"client.start({life.name!r}) when the cluster is stopped",
        )
    return found.job_id


def download_logs(session: Session, name: str, job_ids: int | Sequence[int] | None = None) -> dict[int, Path]:
    """Bring home the merged log and each rank's own; job id -> the folder. None: all jobs of the cluster.

    What came before is not fetched again: all files go on where they end here.
    """
    ids = checks.job_ids(job_ids)
    life = life_of(session, name)
    known = queue(session, name)
    wanted = [each for each in known if ids is None or each.job_id in set(ids)]
    missing = sorted(set(ids or ()) - {each.job_id for each in wanted})
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
    return kept.kept_path(session.home.job_logs, life.name, life.cluster_id, job_id)


def _fetch_job_files(session: Session, record: ClusterRecord, job: JobRecord, target: Path) -> None:
    """Each rank's own log files into target/node<rank>/, as far as they are not there; a node may hold none of the job."""
    folder = job.log_dir.rstrip("/").rsplit("/", 1)[-1]
    if not folder:
        return

    def fetch(node: NodeRecord) -> None:
        transport = session.transport(node.address)
        source = f"{node.root}/sky_logs/{folder}/tasks"
        for name in list_files(transport, source):
            bring_file(transport, f"{source}/{name}", target / f"node{node.rank}" / name)

    scope = f"rank_logs:{record.cluster_id}:{job.job_id}"
    with session.file_locks.hold(scope, operation="download_logs", timeout_s=KEEP_TIMEOUT_S):
        for outcome in fanout(fetch, record.nodes):
            outcome.get()
