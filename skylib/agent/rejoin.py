"""What the head does when Ray, or one of its nodes, has come back: reservations are made again, leftovers are ended."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Callable, Coroutine, Dict, Iterable, List, Protocol

from .config import AgentConfig
from .job import Job, bundle_of
from .link import LinkDown, RankError, Ranks

__all__ = ["Rejoin"]

_log = logging.getLogger(__name__)
_GRACE_S = 1.0
_ASK_S = 20.0
_LOOKS = 2
_PAUSES_S = (0.0, 5.0, 5.0, 10.0, 20.0, 40.0)


class _Engine(Protocol):
    config: AgentConfig
    ranks: Ranks
    jobs: Dict[int, Job]

    def active_names(self) -> List[str]: ...


class Rejoin:
    """hold_off: whether nothing is to be done just now, because the cluster is being ended."""

    def __init__(self, engine: _Engine, hold_off: Callable[[], bool]) -> None:
        self._engine = engine
        self._hold_off = hold_off
        self._tasks: Dict[str, asyncio.Task[None]] = {}

    def ray_is_back(self) -> None:
        self._begin("ray", self._reserve_again())

    def node_is_back(self, rank: int) -> None:
        self._begin(f"node {rank}", self._end_leftovers(rank))

    def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        known = self._tasks.get(name)
        if known is not None:
            known.cancel()
        self._tasks[name] = asyncio.ensure_future(work)

    async def _reserve_again(self) -> None:
        """With a new connection: what Ray holds for jobs that have ended is given back; what runs is reserved again."""
        engine = self._engine
        names = set(engine.active_names())
        try:
            await engine.ranks.keep(sorted(names))
            await asyncio.gather(*(self._reserve(job) for job in engine.jobs.values() if job.task_id in names))
        except RankError as exc:
            _log.warning("reservations may not be what they should: %s", exc)

    async def _reserve(self, job: Job) -> None:
        """Of a job that has been started; one that still waits for its reservation asks by itself."""
        if job.status not in ("SETTING_UP", "RUNNING"):
            return
        engine = self._engine
        while not job.is_terminal:
            try:
                nodes = engine.ranks.nodes
                places = [rank.node for rank in job.placement]
                bundles = [bundle_of(engine.config, node, job.demand, nodes[node]["resources"]) for node in places]
                if await engine.ranks.reserve(job.task_id, bundles):
                    break
            except KeyError:  # a node that is not there yet
                await asyncio.sleep(1.0)
            except LinkDown:
                return
        if job.is_terminal:
            await engine.ranks.release(job.task_id)

    async def _end_leftovers(self, rank: int) -> None:
        """What still runs there of jobs that have ended. Looked for twice: a start may have been under way."""
        looks = 0
        for pause_s in _PAUSES_S:
            await asyncio.sleep(pause_s)
            if self._hold_off() or looks == _LOOKS:
                return
            try:
                names = await self._engine.ranks.call(rank, "running", timeout_s=_ASK_S)
                for task_id in self._ended(names):
                    ended = await self._engine.ranks.call(rank, "kill", task_id, "run", None, _GRACE_S, timeout_s=_ASK_S)
                    _log.info("ended on node %d what was left of %s: %s", rank, task_id, ended)
                looks += 1
            except (RankError, asyncio.TimeoutError) as exc:  # its actor is still on its way
                why = str(exc).partition("\n")[0] or repr(exc)
                _log.info("node %d cannot be asked for what is left there: %s", rank, why)

    def _ended(self, names: Iterable[str]) -> List[str]:
        over = {job.task_id for job in self._engine.jobs.values() if job.is_terminal}
        return sorted(over & set(names))
