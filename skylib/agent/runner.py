"""Sees one job through: reserve its nodes, set up, run, end."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Any, Awaitable, Callable, Dict, List, Mapping, Optional, Protocol, Sequence

from .blame import masked
from .collector import Collector
from .config import AgentConfig, NodeConfig
from .db import JobsDb
from .gang import Gang, Killed, Outcome
from .job import Job, bundle_of, format_placement, run_environment, setup_environment
from .link import LinkDown, RankError, Ranks
from .orders import KillOrders
from .phases import run_phase, stream_of, wants_retry
from .refusals import LIMIT_S, pause_after

__all__ = ["Board", "Runner"]

_log = logging.getLogger(__name__)
_STARTING_S = 10.0
_RETRY_PAUSE_S = (0.0, 1.0, 2.0, 5.0, 10.0)
_RESUME_S = 5.0
_LONGEST_REASON = 500


class Board(Protocol):
    """What a runner needs of the engine."""

    config: AgentConfig
    db: JobsDb
    ranks: Ranks
    orders: KillOrders
    collector: Collector

    def change(self, job: Job, **columns: Any) -> None: ...

    def tell(self, job_id: int) -> None: ...

    def finish(
        self,
        job: Job,
        status: str,
        cause: str,
        codes: Sequence[Optional[int]],
        signals: Sequence[Optional[int]] = (),
        first_cause: Optional[Mapping[str, Any]] = None,
    ) -> None: ...


class Runner:
    """One for each job between the queue and its end. secrets: reads them; called when ranks are to be started."""

    def __init__(self, engine: Board, job: Job, spec: Mapping[str, Any], secrets: Callable[[], Mapping[str, str]]) -> None:
        self._engine = engine
        self._job = job
        self._spec = spec
        self._secrets = secrets
        self._gang: Optional[Gang] = None
        self._cancelled = False
        self._over = asyncio.Event()
        self._wake = asyncio.Event()
        self._killed: Killed = {"ended": [], "survivors": [], "nodes_unreached": []}

    async def run(self, *, resumed: bool) -> None:
        """To the job's end. Cancelled, as by an agent that leaves, it lets go: the job keeps all that it has."""
        leaves = False
        try:
            if resumed:
                await self._resume()
            else:
                await self._begin()
        except asyncio.CancelledError:
            leaves = True
            raise
        except Exception:
            if self._gang is not None:  # nobody would look after what it began
                self._killed = await self._gang.kill_all(final=True)
            raise
        finally:
            self._over.set()
            if not leaves:
                await self._release()

    async def cancel(self) -> Killed:
        """Ends the job and everything it began; answers when that is done."""
        self._cancelled = True
        self._wake.set()
        await self._over.wait()
        return self._killed

    # --- phases

    async def _begin(self) -> None:
        job, engine = self._job, self._engine
        engine.db.update([(job.job_id, {"placement": format_placement(job.placement)})])
        if not await self._reserve():
            return
        engine.collector.open(job.task_id, os.path.basename(job.log_dir))
        if await self._setup():
            await self._run()

    async def _reserve(self) -> bool:
        """Until Ray holds the resources; False when the job has ended before: cancelled, or refused by Ray for too long."""
        job, ranks = self._job, self._engine.ranks
        refusals = 0
        while not self._cancelled:
            try:
                bundles = [
                    bundle_of(self._engine.config, rank.node, job.demand, ranks.nodes[rank.node]["resources"])
                    for rank in job.placement
                ]
                if await self._unless_cancelled(ranks.reserve(job.task_id, bundles)):
                    self._wait_for("")
                    return True
                refusals = 0
                self._wait_for("")
            except (LinkDown, KeyError):
                await asyncio.sleep(0.2)
            except RankError as exc:
                refusals += 1
                why = f"Ray refuses its resources: {str(exc)[:_LONGEST_REASON]}"
                _log.warning("job %d: %s", job.job_id, why)
                pause_s = pause_after(refusals)
                if pause_s is None:
                    self._finish("FAILED_DRIVER", f"for {LIMIT_S:g} s {why}", [])
                    return False
                self._wait_for(f"its reservation: {why}")
                await self._unless_woken(pause_s)
        self._finish("CANCELLED", "cancelled while it waited", [])
        return False

    def _wait_for(self, what: str) -> None:
        """What is said of the job that has left the queue and does not run yet."""
        if self._job.waiting_for != what:
            self._job.waiting_for = what
            self._engine.tell(self._job.job_id)

    async def _unless_woken(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._wake.wait(), seconds)
        except asyncio.TimeoutError:
            pass

    async def _unless_cancelled(self, work: Awaitable[bool]) -> bool:
        task = asyncio.ensure_future(work)
        stopper = asyncio.ensure_future(self._wake.wait())
        both: List[asyncio.Future[Any]] = [task, stopper]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        stopper.cancel()
        if task.done():
            return task.result()
        task.cancel()
        return False

    async def _setup(self) -> bool:
        job, config = self._job, self._engine.config
        if not str(self._spec.get("setup") or "").strip():
            return True
        self._status("SETTING_UP", phase="setup")
        nodes = self._setup_nodes()
        todo = list(range(len(nodes)))
        marker = str(self._spec.get("setup_hash") or "")
        if marker and self._spec.get("skip_setup_if_done"):
            done = await asyncio.gather(*(self._is_done(node.rank, marker) for node in nodes))
            todo = [index for index in todo if not done[index]]
        specs, secrets = [], self._secrets()
        for index in todo:
            environment = setup_environment(config, job, self._spec, secrets, nodes, index)
            specs.append({**self._common("setup", index, str(self._spec["setup"]), environment), "marker": marker})
        gang = self._gang_of("setup", [nodes[index] for index in todo], todo)
        outcome = await self._drive(gang, specs)
        if outcome is None:
            return False
        if outcome.cause:
            self._end("FAILED_DRIVER" if outcome.lost else "FAILED_SETUP", outcome)
            return False
        return True

    async def _run(self) -> None:
        job = self._job
        if self._cancelled:
            await self._after_cancel(None)
            return
        if not str(self._spec.get("run") or "").strip():
            self._finish("SUCCEEDED", "", [0] * job.num_nodes)
            return
        while True:
            outcome = await self._drive(self._run_gang(), self._start_attempt())
            if outcome is None or not await self._again(outcome):
                return

    def _start_attempt(self) -> Sequence[Mapping[str, Any]]:
        """Writes down that the attempt begins; what its ranks are started with."""
        job, phase = self._job, run_phase(self._job.attempt)
        job.launched, job.run_at = False, time.time()
        self._status("RUNNING", phase=phase)
        specs, secrets = [], self._secrets()
        for rank in range(len(job.placement)):
            environment = run_environment(self._engine.config, job, self._spec, secrets, rank)
            specs.append(self._common(phase, rank, str(self._spec["run"]), environment))
        return specs

    async def _again(self, outcome: Outcome) -> bool:
        """After an attempt: True when the next one is to begin, now; else the job has ended."""
        job, gang = self._job, self._gang
        code = None if outcome.lost or outcome.first_cause is None else outcome.first_cause["exit_code"]
        if gang is None or not wants_retry(self._spec, attempt=job.attempt, exit_code=code):
            self._end_run(outcome)
            return False
        _log.info("job %d: %s; trying again after attempt %d", job.job_id, outcome.cause, job.attempt)
        self._killed = await gang.kill_all()  # what it left in the background would be in the next one's way
        if any(order.task_id == job.task_id for order in self._engine.orders.waiting):
            self._end_run(outcome)  # an order that is still to be carried out would end the next attempt
            return False
        job.attempt, job.launched, job.phase = job.attempt + 1, False, run_phase(job.attempt + 1)
        self._engine.change(job, phase=job.phase, launched=0, details=job.details())
        await self._unless_woken(_RETRY_PAUSE_S[min(job.attempt, len(_RETRY_PAUSE_S)) - 1])
        if self._cancelled:
            await self._after_cancel(gang)
            return False
        return True

    def _end_run(self, outcome: Outcome) -> None:
        status = "SUCCEEDED" if not outcome.cause else "FAILED_DRIVER" if outcome.lost else "FAILED"
        tried = self._job.attempt
        after = f" (after {tried} {'retry' if tried == 1 else 'retries'})" if outcome.cause and tried else ""
        self._end(status, outcome._replace(cause=outcome.cause + after))

    async def _resume(self) -> None:
        """After a restart of the agent. A gang that was started is only looked for; else what is missing is started."""
        job = self._job
        self._engine.collector.open(job.task_id, os.path.basename(job.log_dir))
        if stream_of(job.phase) != "run":
            if await self._setup():
                await self._run()
        elif not job.launched:
            await self._run()
        else:
            outcome = await self._drive(self._run_gang(), None)
            if outcome is not None and await self._again(outcome):
                await self._run()

    # --- parts

    def _setup_nodes(self) -> Sequence[NodeConfig]:
        config = self._engine.config
        if self._spec.get("setup_all_nodes"):
            return config.nodes
        return [config.nodes[rank.node] for rank in self._job.placement]

    async def _is_done(self, node: int, marker: str) -> bool:
        try:
            return bool(await self._engine.ranks.call(node, "setup_done", marker, self._job.task_id, timeout_s=10.0))
        except (RankError, asyncio.TimeoutError):
            return False

    def _common(self, phase: str, rank: int, script: str, environment: Mapping[str, str]) -> Dict[str, Any]:
        return {
            "task_id": self._job.task_id,
            "phase": phase,
            "rank": rank,
            "log_dir": os.path.basename(self._job.log_dir),
            "script": script,
            "task_env": environment,
            "workdir": str(self._spec.get("workdir") or ""),
        }

    def _run_gang(self) -> Gang:
        nodes = [self._engine.config.nodes[rank.node] for rank in self._job.placement]
        phase = run_phase(self._job.attempt)
        return self._gang_of(phase, nodes, range(len(nodes)))

    def _gang_of(self, phase: str, nodes: Sequence[NodeConfig], numbers: Sequence[int]) -> Gang:
        engine = self._engine
        return Gang(engine.ranks, engine.orders, engine.collector, self._job.task_id, phase, nodes, numbers)

    def _left_s(self, gang: Gang, *, resumed: bool) -> Optional[float]:
        """How long the gang may go on; None: for ever. The limit is on each attempt's run, setup and queue not counted.

        After a restart of the agent the ranks have a moment to tell that they ended in time.
        """
        timeout_s = self._spec.get("timeout_s")
        if timeout_s is None or stream_of(gang.phase) != "run":
            return None
        left = float(timeout_s) - (time.time() - (self._job.run_at or time.time()))
        return max(left, _RESUME_S if resumed else 0.0)

    async def _drive(self, gang: Gang, specs: Optional[Sequence[Mapping[str, Any]]]) -> Optional[Outcome]:
        """Starts (or looks for) the gang and waits for its end; None when a cancel or the job's timeout ended the job."""
        job = self._job
        self._gang = gang
        log_dir = os.path.basename(job.log_dir)
        waiter = asyncio.ensure_future(self._start_and_finish(gang, specs, log_dir))
        left = self._left_s(gang, resumed=specs is None)
        stopper = asyncio.ensure_future(self._wake.wait())
        try:
            both: List[asyncio.Future[Any]] = [waiter, stopper]
            await asyncio.wait(both, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if waiter.done():
                return waiter.result()
            gang.give_up()
            await self._wait_started(gang, waiter)
            if self._cancelled:
                await self._after_cancel(gang)
            else:
                self._killed = await gang.kill_all(final=True)
                self._time_out(gang)
            return None
        finally:
            waiter.cancel()
            stopper.cancel()

    def _time_out(self, gang: Gang) -> None:
        cause = f"timed out after {float(self._spec['timeout_s']):g} s"
        self._end("FAILED", gang.outcome._replace(cause=cause, first_cause=_TIMED_OUT))

    @staticmethod
    async def _wait_started(gang: Gang, waiter: asyncio.Future[Outcome]) -> None:
        """What is being started now is started first, so that it is there to be ended."""
        started = asyncio.ensure_future(gang.started.wait())
        both: List[asyncio.Future[Any]] = [started, waiter]
        await asyncio.wait(both, timeout=_STARTING_S, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()

    async def _start_and_finish(self, gang: Gang, specs: Optional[Sequence[Mapping[str, Any]]], log_dir: str) -> Outcome:
        if specs is not None:
            await gang.start(specs)
            self._job.launched = True
            self._engine.db.update([(self._job.job_id, {"launched": 1})])
        else:
            gang.started.set()
            for index in range(len(gang.nodes)):
                gang.watch(index, log_dir)
        return await gang.finish()

    async def _after_cancel(self, gang: Optional[Gang]) -> None:
        if gang is not None:
            self._killed = await gang.kill_all(final=True)
        survivors, hosts = self._killed["survivors"], self._killed["nodes_unreached"]
        cause = f"cancelled; processes that could not be ended: {survivors}" if survivors else "cancelled"
        cause += f"; not reached, and ended as soon as they are: {', '.join(hosts)}" if hosts else ""
        self._finish("CANCELLED", cause, gang.codes if gang is not None else [], gang.signals if gang is not None else [])

    def _status(self, status: str, *, phase: str, launched: int = 0) -> None:
        job = self._job
        job.status, job.phase = status, phase
        job.started_at = job.started_at or time.time()
        columns = {"start_at": job.started_at, "launched": launched, "details": job.details()}
        self._engine.change(job, status=status, phase=phase, **columns)

    def _finish(
        self,
        status: str,
        cause: str,
        codes: Sequence[Optional[int]],
        signals: Sequence[Optional[int]] = (),
        first_cause: Optional[Mapping[str, Any]] = None,
    ) -> None:
        self._engine.finish(self._job, status, cause, codes, signals, first_cause)

    def _end(self, status: str, outcome: Outcome) -> None:
        try:
            secrets = list(self._secrets().values()) if outcome.first_cause is not None else []
            first = masked(outcome.first_cause, secrets)
        except (OSError, ValueError):  # what may be secret is not known: nothing of it is kept
            first = {**(outcome.first_cause or {}), "last_lines": []}
        self._finish(status, outcome.cause, outcome.codes, outcome.signals, first)

    async def _release(self) -> None:
        try:
            await self._engine.ranks.release(self._job.task_id)
        except RankError as exc:
            _log.debug("job %d: its resources are not given back now: %s", self._job.job_id, exc)
        places = {rank.node for rank in self._job.placement}
        if self._spec.get("setup_all_nodes"):
            places.update(node.rank for node in self._engine.config.nodes)
        await asyncio.gather(*(self._forget(node) for node in places))

    async def _forget(self, node: int) -> None:
        try:
            await self._engine.ranks.call(node, "forget", self._job.task_id, self._job.is_terminal, timeout_s=30.0)
        except (RankError, asyncio.TimeoutError):
            return


_TIMED_OUT: Dict[str, Any] = {
    "rank": None,
    "node": "",
    "exit_code": None,
    "signal": None,
    "reason": "timeout",
    "last_lines": [],
}
