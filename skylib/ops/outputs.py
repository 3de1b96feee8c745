"""A job's outputs come home: when it has ended, as far as anybody sees that, and before its cluster goes.

What a task wants is kept with the job on its cluster, so that any process of the home can fetch it. What became of it is
kept here, beside the job's kept log, in outputs.json: a receipt that is not `done` says that the next contact tries again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from skylib.errors import AgentError, JobNotFound, SkyError, StateError, TransportError
from skylib.events import EventSink
from skylib.jobs import kept, polling
from skylib.jobs.submit import Submitted
from skylib.models.cluster import ClusterRecord, ClusterStatus, NodeRecord
from skylib.models.job import JobRecord
from skylib.models.task import Task
from skylib.models.transfers import Fetched, JobOutputs, OutputsReceipt
from skylib.ops import checks
from skylib.ops.lives import Life, life_of
from skylib.paths import ensure_private_dir, write_private
from skylib.session import Session
from skylib.staging.fetch import fetch
from skylib.staging.wanted import Wanted, parse_wanted
from skylib.transport.fanout import fanout

__all__ = ["collect", "collect_ended", "expect", "fetch_outputs", "wanted_on", "with_receipts"]

_RECEIPT = "outputs.json"
_LOCK_S = 3600.0


def expect(session: Session, task: Task, record: ClusterRecord, submitted: Iterable[Submitted]) -> None:
    """Note that there will be something to fetch, so that a look at the cluster asks whether the job has ended."""
    if not task.fetched_outputs:
        return
    for each in submitted:
        path = _path(session, record.name, each.cluster_id, each.job_id)
        if not path.exists():
            with suppress(StateError):  # the job is queued: its cluster knows what it wants, and queue and wait ask
                _write(path, OutputsReceipt(cluster_name=record.name, job_id=each.job_id, at=session.clock()))


def with_receipts(session: Session, name: str, cluster_id: str, jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """The records, each with what is known here of its outputs."""
    return [
        job if job.outputs is None else attrs.evolve(job, fetched=_read(_path(session, name, cluster_id, job.job_id)))
        for job in jobs
    ]


def collect(session: Session, record: ClusterRecord, jobs: Sequence[JobRecord], *, last: bool = False) -> list[JobRecord]:
    """Fetch the outputs of those that have ended, where that is still to be done; the records, with what came.

    What does not come is told in the record's receipt and raises nothing. Outputs that another client wants on its own
    machine are left to it. last: no job goes on, whatever its status says.
    """
    jobs = with_receipts(session, record.name, record.cluster_id, jobs)
    due = [job for job in jobs if _is_due(session, job, last=last)]
    if not due:
        return jobs
    with session.operation("fetch_outputs", record.name) as events:
        fresh = {job.job_id: _fetch(session, record, job, events, final=True)[0] for job in due}
    return [attrs.evolve(job, fetched=fresh[job.job_id]) if job.job_id in fresh else job for job in jobs]


def _is_due(session: Session, job: JobRecord, *, last: bool) -> bool:
    if job.outputs is None or not (job.status.is_terminal or (last and job.outputs.nodes)):
        return False
    return not (job.fetched is not None and job.fetched.done) and job.outputs.client in ("", session.user_hash)


def collect_ended(session: Session, records: Iterable[ClusterRecord], *, patience_s: float) -> None:
    """The same for jobs of clusters that were just seen to stand, where something is known to be wanted from them.

    What takes longer than patience_s goes on alone; a cluster that does not answer now is asked another time.
    """
    waiting = {record.name: ids for record in records if (ids := _expected(session, record))}
    due = [record for record in records if record.name in waiting and record.status is ClusterStatus.UP]

    def ask(record: ClusterRecord) -> None:
        agent = session.agent(record)
        for job_id in waiting[record.name]:
            try:
                found = polling.job(agent, record.name, job_id)
            except JobNotFound:
                continue
            session.store.save_jobs(record.cluster_id, [found])
            collect(session, record, [found])

    for outcome in fanout(ask, due, patience_s=max(0.0, patience_s)):
        if outcome.error is not None and not isinstance(outcome.error, (AgentError, TransportError, TimeoutError)):
            outcome.get()


def _expected(session: Session, record: ClusterRecord) -> list[int]:
    """Jobs of the cluster whose outputs are still to come, as far as this home knows."""
    folder = _path(session, record.name, record.cluster_id, 0).parent.parent
    found = []
    for path in folder.glob(f"*/{_RECEIPT}"):
        receipt = _read(path)
        if receipt is not None and not receipt.done:
            found.append(receipt.job_id)
    return sorted(found)


def fetch_outputs(session: Session, name: str, job_id: int | None = None) -> dict[int, OutputsReceipt]:
    """Fetch now, whatever was fetched before and whether the jobs have ended; see Client.fetch_outputs."""
    job_id = checks.job_id(job_id)
    life = life_of(session, name)
    jobs = _jobs(session, life, job_id)
    found: dict[int, OutputsReceipt] = {}
    failed: list[SkyError] = []
    with session.operation("fetch_outputs", name) as events:
        for job in jobs:
            if job.outputs is None:
                continue
            if life.record is None:
                receipt = _read(_path(session, name, life.cluster_id, job.job_id))
                found.update({} if receipt is None else {job.job_id: receipt})
                continue
            found[job.job_id], error = _fetch(session, life.record, job, events, final=job.status.is_terminal)
            failed += [error] if error is not None else []
        if failed:
            raise failed[0]
    return found


def _jobs(session: Session, life: Life, job_id: int | None) -> list[JobRecord]:
    record = life.askable
    if record is None:
        seen = session.store.jobs(life.name, cluster_id=life.cluster_id)
        jobs = sorted((each for each in seen if job_id in (None, each.job_id)), key=lambda each: each.job_id)
    elif job_id is None:
        jobs = polling.queue(session.agent(record), life.name)
    else:
        jobs = [polling.job(session.agent(record), life.name, job_id)]
    if job_id is not None and not jobs:
        raise JobNotFound(f"cluster {life.name!r} has no job {job_id}", cluster=life.name, job_id=job_id)
    if record is not None:
        session.store.save_jobs(record.cluster_id, jobs)
    return jobs


def _fetch(
    session: Session, record: ClusterRecord, job: JobRecord, events: EventSink, *, final: bool
) -> tuple[OutputsReceipt, SkyError | None]:
    """One job's outputs from all its nodes at once; what came, written down, and the first error. One process at a time."""
    path = _path(session, record.name, record.cluster_id, job.job_id)
    scope = f"outputs:{record.cluster_id}:{job.job_id}"
    parts: list[Fetched] = []
    failed: list[SkyError] = []
    try:
        with session.file_locks.hold(scope, operation="fetch outputs", timeout_s=_LOCK_S):
            for outcome in fanout(lambda rank: _of_rank(session, record, job.outputs, rank, events), _ranks(record, job)):
                if outcome.error is None:
                    parts.append(outcome.get())
                elif isinstance(outcome.error, SkyError):
                    failed.append(outcome.error)
                else:
                    outcome.get()
            receipt = _receipt(record, job, parts, failed, at=session.clock(), final=final)
            _write(path, receipt)
    except SkyError as error:
        failed.append(error)
        receipt = _receipt(record, job, parts, failed, at=session.clock(), final=final)
    return receipt, failed[0] if failed else None


def _ranks(record: ClusterRecord, job: JobRecord) -> list[int]:
    """Ranks of the job whose node there is; none when it never began."""
    nodes = job.outputs.nodes if job.outputs is not None else ()
    return [rank for rank, node in enumerate(nodes) if node < len(record.nodes)]


def _of_rank(session: Session, record: ClusterRecord, outputs: JobOutputs | None, rank: int, events: EventSink) -> Fetched:
    if outputs is None:
        return Fetched()
    node = record.nodes[outputs.nodes[rank]]
    wanted = [
        wanted_on(record, node, pattern, Path(local, f"rank-{rank}") if rank else Path(local), field=f"outputs[{pattern}]")
        for pattern, local in outputs.wanted.items()
    ]
    return fetch(session.transport(node.address), wanted, events=events)


def wanted_on(
    record: ClusterRecord, node: NodeRecord, remote: str, local: Path, *, into: bool = True, field: str = "remote"
) -> Wanted:
    """The pattern as that node has it. On `local` the `~` of jobs is this account's own home."""
    home = os.path.expanduser("~") if record.infra == "local" else None
    return parse_wanted(remote, local, root=node.root, account_home=home, into=into, field=field)


def _receipt(
    record: ClusterRecord, job: JobRecord, parts: Sequence[Fetched], failed: Sequence[SkyError], *, at: float, final: bool
) -> OutputsReceipt:
    """Of all ranks together. A pattern is missing when none of them has a match."""
    missing = [set(part.missing) for part in parts]
    wanted = tuple(job.outputs.wanted) if job.outputs is not None else ()
    return OutputsReceipt(
        cluster_name=record.name,
        job_id=job.job_id,
        at=at,
        final=final,
        error=failed[0].message if failed else "",
        files=sum(part.files for part in parts),
        bytes=sum(part.bytes for part in parts),
        unchanged=sum(part.unchanged for part in parts),
        missing=tuple(each for each in wanted if all(each in of for of in missing)) if missing or not failed else (),
        left_out=tuple(pair for part in parts for pair in part.left_out),
        unsettled=tuple(name for part in parts for name in part.unsettled),
    )


def _path(session: Session, name: str, cluster_id: str, job_id: int) -> Path:
    return kept.kept_path(session.home.job_logs, name, cluster_id, job_id).with_name(_RECEIPT)


def _read(path: Path) -> OutputsReceipt | None:
    """None when there is none, or none that can be read: what it says is found out anew then."""
    try:
        return OutputsReceipt.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write(path: Path, receipt: OutputsReceipt) -> None:
    """Raises StateError when it cannot be written."""
    try:
        ensure_private_dir(path.parent)
    except OSError as error:
        raise StateError(f"cannot make {path.parent}: {error.strerror or error}", path=str(path.parent)) from error
    write_private(path, json.dumps(receipt.to_json()).encode())
