"""The job queue: admits jobs, starts them in order, sees each to its end, and goes on after a restart of the agent.

Everything here runs in one event loop. A job's status is in jobs.db before anyone is told of it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
from typing import Any, Callable, Coroutine, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from .admission import Admission
from .collector import Collector
from .columns import encode_jobs
from .config import AgentConfig
from .db import JobsDb
from .gang import Gang
from .identity import boot_id
from .job import Job, demand_of, format_codes, log_dir_name, task_id_of
from .link import Ranks
from .listeners import Listeners
from .orders import KillOrders
from .protocol import TERMINAL
from .refused import Refused
from .runner import Runner
from .scheduler import Cluster, Demand, Placement, Waiting, schedule
from .secretfiles import SecretFiles
from .waiting import Reasons, Situation

__all__ = ["Engine", "Refused"]

_log = logging.getLogger(__name__)
_RETRY_S = 1.0
_BOOT_KEY = "boot"


class End(NamedTuple):
    """How a job ended. codes, signals: by rank. first_cause: the protocol's, None when no rank is to blame."""

    job: Job
    status: str
    cause: str
    codes: Sequence[Optional[int]] = ()
    signals: Sequence[Optional[int]] = ()
    first_cause: Optional[Mapping[str, Any]] = None


class Engine(Listeners):
    """on_event: called whenever jobs begin or end, which is what idleness is about."""

    def __init__(self, config: AgentConfig, db: JobsDb, ranks: Ranks) -> None:
        super().__init__()
        self.config = config
        self.db = db
        self.ranks = ranks
        self.collector = Collector(config, ranks)
        self.orders = KillOrders(config, db, ranks, self._is_over)
        self.jobs: Dict[int, Job] = {}
        self.on_event: Callable[[], None] = lambda: None
        self.stopping = False
        self.end_cause = ""  # why jobs end with the cluster, where nobody cancelled them
        self._queue: Dict[int, None] = {}
        self._runners: Dict[int, Runner] = {}
        self._tasks: Set[asyncio.Task[None]] = set()
        self._secrets = SecretFiles(config.secrets)
        self._by_task: Dict[str, int] = {}
        self._unwritten: List[End] = []
        self._retry: Optional[asyncio.TimerHandle] = None
        self.collector.on_bytes = lambda task_id: self.tell(self._by_task.get(task_id, 0))

    # --- beginning

    def load(self, *, asleep: bool = False) -> None:
        """What jobs.db knows: queued jobs are queued, running ones are looked for on their nodes. Asleep, neither.

        After a reboot of this node no job goes on: those that ran have failed, and of those that waited only the ones
        that may be tried again stay.
        """
        boot, known = boot_id(), self.db.get(_BOOT_KEY)
        rebooted = not asleep and known not in (None, boot)
        ends: List[End] = []
        for row in self.db.rows():
            spec = {} if row["status"] in TERMINAL else self.db.spec(row["job_id"])
            job = Job(row, demand_of(spec))
            self.jobs[job.job_id] = job
            if asleep:
                continue
            self._name(job, row["run_timestamp"])
            if job.is_terminal:
                continue
            self._by_task[job.task_id] = job.job_id
            waits = job.status in ("INIT", "PENDING")
            if rebooted and not (waits and spec.get("max_retries")):
                ends.append(self._end_by_reboot(job))
            elif waits:
                job.placement = ()
                self._queue[job.job_id] = None
            else:
                self._run(job, resumed=True)
        self._unwritten += ends
        self._write_unwritten()
        if not asleep and not self._unwritten:
            self.db.put(_BOOT_KEY, boot)
        for end in ends:
            self._spawn(self._clear_away(end.job))
        if not asleep:
            self._tidy_secrets()
            self.orders.load()

    def _tidy_secrets(self) -> None:
        try:
            self._secrets.keep_only({job.job_id for job in self.jobs.values() if not job.is_terminal})
        except OSError as exc:
            _log.error("secrets of jobs that have ended are still on the disk: %s", exc)

    def _is_over(self, task_id: str) -> bool:
        job = self.jobs.get(self._by_task.get(task_id, 0))
        return job is None or job.is_terminal

    def _end_by_reboot(self, job: Job) -> End:
        head = self.config.nodes[0].host
        cause = f"node {head}, the head, was started anew"
        first: Dict[str, Any] = {"rank": None, "node": head, "exit_code": None, "signal": None, "reason": "lost"}
        return End(job, "FAILED_DRIVER", cause, job.exit_codes, job.signals, {**first, "last_lines": []})

    async def _clear_away(self, job: Job) -> None:
        """Ends what a job that a reboot of the head has ended may have left on other nodes, as soon as they are there."""
        nodes = [self.config.nodes[rank.node] for rank in job.placement]
        if job.phase:
            gang = Gang(self.ranks, self.orders, self.collector, job.task_id, job.phase, nodes, range(len(nodes)))
            await gang.kill_all(final=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _name(self, job: Job, stamp: str) -> None:
        """Names that follow from a job's number; missing only if the agent died while it admitted the job."""
        if not job.task_id:
            self.db.update([(job.job_id, self._give_names(job, stamp))])

    def _give_names(self, job: Job, stamp: str) -> Dict[str, Any]:
        job.task_id = task_id_of(stamp, self.config.cluster, job.job_id)
        job.log_dir = os.path.join(self.config.logs, log_dir_name(job.job_id, job.name))
        return {"task_id": job.task_id, "log_dir": job.log_dir}

    # --- requests

    def submit(self, specs: Sequence[Mapping[str, Any]], now: float) -> List[Dict[str, Any]]:
        """Queues jobs, all or none. Raises Refused: "stopping", "impossible", "invalid"; OSError, sqlite3.Error."""
        if self.stopping:
            raise Refused("stopping", "the cluster is being stopped")
        rows = self._admit(specs, now)
        new: List[Job] = []

        def made(place: int, job_id: int) -> Dict[str, Any]:
            row, demand = rows[place]
            job = Job({**row, "job_id": job_id}, demand)
            new.append(job)
            names = self._give_names(job, row["run_timestamp"])
            self._secrets.keep(job_id, specs[place].get("secrets") or {})
            return {**names, "details": row["details"]} if row["details"] else names

        try:
            admitted = self.db.insert([row for row, _ in rows], made)
        except BaseException:
            for job in new:
                self._secrets.drop(job.job_id)
            raise
        for job in new:
            self.jobs[job.job_id] = job
            self._by_task[job.task_id] = job.job_id
            self._queue[job.job_id] = None
        if new:
            self.on_event()
            self.schedule()
        return [{"job_id": job_id, "adopted": adopted, "task_id": self.jobs[job_id].task_id} for job_id, adopted in admitted]

    def _admit(self, specs: Sequence[Mapping[str, Any]], now: float) -> List[Tuple[Dict[str, Any], Demand]]:
        """Raises Refused, with the job's place among those of the request as `index`."""
        admission = Admission(self.config, now)
        rows = []
        for index, spec in enumerate(specs):
            try:
                rows.append(admission.row(spec))
            except Refused as exc:
                exc.facts["index"] = index
                raise
        return rows

    def find(self, job_id: Optional[int]) -> Job:
        """The newest job for None. Raises Refused "not_found"."""
        if job_id is None and self.jobs:
            job_id = next(reversed(self.jobs))
        job = self.jobs.get(job_id) if job_id is not None else None
        if job is None:
            message = f"there is no job {job_id} on this cluster" if job_id is not None else "there are no jobs"
            raise Refused("not_found", message, job_id=job_id)
        return job

    def show(self, job: Job) -> Dict[str, Any]:
        """The protocol's Job."""
        if job.job_id not in self._queue:
            return job.show()
        ahead = next(place for place, job_id in enumerate(self._queue) if job_id == job.job_id)
        return job.show(self._reasons().text(job, ahead))

    def queue(self, *, everything: bool) -> List[Dict[str, Any]]:
        """All jobs, or those that have not ended, as the protocol's Jobs."""
        reasons = self._reasons() if self._queue else None
        places = {job_id: ahead for ahead, job_id in enumerate(self._queue)}
        chosen = (job for job in self.jobs.values() if everything or not job.is_terminal)
        return [
            job.show(reasons.text(job, places[job.job_id]) if reasons and job.job_id in places else "") for job in chosen
        ]

    def columns(self, job_ids: Optional[Sequence[int]], *, everything: bool = True) -> Dict[str, Any]:
        """The same in the form of columns.py. job_ids: of these alone, each once; all of them are known."""
        jobs = self.jobs.values() if job_ids is None else [self.jobs[job_id] for job_id in dict.fromkeys(job_ids)]
        chosen = [job for job in jobs if everything or not job.is_terminal]
        return encode_jobs(chosen, self._queue, self._reasons() if self._queue else None)

    def _reasons(self) -> Reasons:
        """Only while there is a queue."""
        alive = set(self.ranks.alive())
        missing = [node for node in self.config.nodes if node.rank not in alive]
        problem = ""
        if self.stopping:
            problem = "the cluster, which is being stopped"
        elif not self.ranks.up or not alive:
            problem = "Ray to come up"
        whole = Cluster(self.config.nodes, [node.rank for node in self.config.nodes], self._held())
        return Reasons(self.jobs[next(iter(self._queue))], Situation(self._cluster(), whole, missing, problem))

    async def cancel(self, job_ids: Sequence[int], *, everything: bool) -> List[Dict[str, Any]]:
        """Queued jobs at once, in one transaction; the others when their processes are gone. None that had ended."""
        if everything:
            chosen = [job for job in self.jobs.values() if not job.is_terminal]
        elif job_ids:
            named = [self.find(job_id) for job_id in dict.fromkeys(job_ids)]
            chosen = [job for job in named if not job.is_terminal]
        else:
            running = [job for job in self.jobs.values() if job.status in ("SETTING_UP", "RUNNING")]
            chosen = running[-1:]
        queued = [job for job in chosen if job.job_id in self._queue]
        self._write_ends([End(job, "CANCELLED", "cancelled while it waited") for job in queued])
        for job in queued:
            del self._queue[job.job_id]
        running_now = [job for job in chosen if job.job_id in self._runners]
        results = await asyncio.gather(*(self._runners[job.job_id].cancel() for job in running_now))
        ended = {job.job_id: result for job, result in zip(running_now, results)}
        self.schedule()
        nothing: Dict[str, List[Any]] = {"ended": [], "survivors": [], "nodes_unreached": []}
        return [{"job_id": job.job_id, **ended.get(job.job_id, nothing)} for job in chosen]

    # --- scheduling

    def _held(self) -> List[Tuple[Demand, Placement]]:
        return [(self.jobs[job_id].demand, self.jobs[job_id].placement) for job_id in self._runners]

    def _cluster(self) -> Cluster:
        return Cluster(self.config.nodes, self.ranks.alive(), self._held())

    def schedule(self) -> None:
        """Starts what can start now. Called whenever something may have become free."""
        if not self._queue or self.stopping or not self.ranks.up:
            return
        waiting = (Waiting(job_id, self.jobs[job_id].num_nodes, self.jobs[job_id].demand) for job_id in self._queue)
        for job_id, placement in schedule(self._cluster(), waiting):
            job = self.jobs[job_id]
            del self._queue[job_id]
            job.placement = placement
            self._run(job, resumed=False)

    def _run(self, job: Job, *, resumed: bool) -> None:
        try:
            spec = self.db.spec(job.job_id)
            runner = Runner(self, job, spec, lambda: self._secrets.read(job.job_id) if spec.get("has_secrets") else {})
        except (OSError, ValueError, sqlite3.Error) as exc:
            self.finish(job, "FAILED_DRIVER", f"it could not be started: {exc}", job.exit_codes)
            asyncio.get_event_loop().call_soon(self.schedule)  # its place is free again
            return
        self._runners[job.job_id] = runner
        self._spawn(self._see_through(job, runner, resumed))

    async def _see_through(self, job: Job, runner: Runner, resumed: bool) -> None:
        try:
            await runner.run(resumed=resumed)
        except asyncio.CancelledError:
            raise
        except Exception as exc:  # boundary: one job's trouble is that job's
            _log.exception("job %d", job.job_id)
            self.finish(job, "FAILED_DRIVER", f"the agent failed: {exc}", job.exit_codes)
        finally:
            self._runners.pop(job.job_id, None)
        self.schedule()

    # --- what runners tell

    def change(self, job: Job, **columns: Any) -> None:
        self.db.update([(job.job_id, columns)])
        self.tell(job.job_id)

    def finish(
        self,
        job: Job,
        status: str,
        cause: str,
        codes: Sequence[Optional[int]],
        signals: Sequence[Optional[int]] = (),
        first_cause: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """The end of a job. When it cannot be written down now (a full disk), it is told later, once it is written down."""
        self._unwritten.append(End(job, status, cause, list(codes), list(signals), first_cause))
        self._write_unwritten()

    def _write_unwritten(self) -> None:
        ends, self._unwritten = self._unwritten, []
        try:
            self._write_ends(ends)
        except (OSError, sqlite3.Error) as exc:
            _log.error("the end of %d jobs cannot be written down, trying again: %s", len(ends), exc)
            self._unwritten = ends + self._unwritten
            if self._retry is not None:
                self._retry.cancel()
            self._retry = asyncio.get_event_loop().call_later(_RETRY_S, self._write_unwritten)

    def _write_ends(self, ends: Sequence[End]) -> None:
        """A job that has ended already stays as it is; of two ends the first counts. Raises sqlite3.Error."""
        now = time.time()
        first: Dict[int, End] = {}
        for end in ends:
            if end.status == "CANCELLED" and self.stopping and self.end_cause:
                end = end._replace(cause=self.end_cause)
            if not end.job.is_terminal:
                first.setdefault(end.job.job_id, end)
        if not first:
            return
        columns = {
            job_id: {
                "status": end.status,
                "cause": end.cause,
                "exit_codes": format_codes(end.codes),
                "end_at": now,
                "details": end.job.details(signals=list(end.signals), first_cause=end.first_cause),
            }
            for job_id, end in first.items()
        }
        self.db.update(columns.items())
        for job_id, end in first.items():
            job = end.job
            job.status, job.cause, job.exit_codes, job.ended_at = end.status, end.cause, list(end.codes), now
            job.signals, job.first_cause = list(end.signals), None if end.first_cause is None else dict(end.first_cause)
            self.collector.close(job.task_id)
            self.tell(job_id)
            try:
                self._secrets.drop(job_id)
            except OSError as exc:  # the end is written down: it is told, and the file goes when an agent begins
                _log.error("the secrets of job %d are still on the disk: %s", job_id, exc)
        self.on_event()

    @property
    def active(self) -> int:
        return len(self._queue) + len(self._runners)

    def active_names(self) -> List[str]:
        return [self.jobs[job_id].task_id for job_id in self._runners]

    def stop(self) -> None:
        """Lets go of everything without ending a job."""
        self.collector.stop()
        self.orders.stop()
        if self._retry is not None:
            self._retry.cancel()
        for task in list(self._tasks):
            task.cancel()
