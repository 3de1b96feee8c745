"""One phase (setup or run) of one job on its ranks: start all, wait for all, end the others when one fails."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set

from .collector import Collector
from .config import NodeConfig
from .link import LinkDown, RankError, Ranks
from .node import Key

__all__ = ["Gang", "Outcome"]

_log = logging.getLogger(__name__)
_GRACE_S = 1.0
_SETUP_WAIT_S = 30.0
_REPORT_S = 5.0
_KILLED = 137


class Outcome(NamedTuple):
    """codes: by rank. cause: "" when all ranks ended with 0. lost: the cause is that a rank could not be found."""

    codes: List[Optional[int]]
    cause: str
    lost: bool


class Gang:
    """places: where each member runs. numbers: the rank that each member is known by."""

    def __init__(
        self,
        ranks: Ranks,
        collector: Collector,
        task_id: str,
        phase: str,
        places: Sequence[NodeConfig],
        numbers: Sequence[int],
    ) -> None:
        self._ranks = ranks
        self._collector = collector
        self.task_id = task_id
        self.phase = phase
        self.nodes = [node.rank for node in places]
        self._names = [f"rank {number} ({node.host})" for number, node in zip(numbers, places)]
        self._numbers = list(numbers)
        self.started = asyncio.Event()
        self.codes: List[Optional[int]] = [None] * len(places)
        self.cause = ""
        self.lost = False
        self._over: Set[int] = set()
        self._changed = asyncio.Event()

    def key(self, rank: int) -> Key:
        return (self.task_id, self.phase, self._numbers[rank])

    def ended(self, rank: int, record: Mapping[str, Any]) -> None:
        """The collector's word that a rank has ended and all its output is in the merged log."""
        if rank in self._over:
            return
        self._over.add(rank)
        if "lost" in record:
            self.lost = self.lost or not self.cause
            self._blame(f"{self._names[rank]} was lost: {record['lost']}")
        else:
            code = int(record["code"])
            self.codes[rank] = code
            if code != 0:
                how = f"was ended by signal {record['signal']}" if record.get("signal") else f"exited {code}"
                what = f" ({record['error']})" if record.get("error") else ""
                self._blame(f"{self._names[rank]} {how}{what}" + (" in setup" if self.phase == "setup" else ""))
        self._changed.set()

    def _blame(self, cause: str) -> None:
        self.cause = self.cause or cause

    async def start(self, specs: Sequence[Mapping[str, Any]]) -> None:
        """Starts all ranks at once. One that cannot be started has failed."""
        await asyncio.gather(*(self._start(rank, spec) for rank, spec in enumerate(specs)))
        self.started.set()

    async def _start(self, rank: int, spec: Mapping[str, Any]) -> None:
        while True:
            try:
                await self._ranks.call(self.nodes[rank], "start", spec)
                break
            except LinkDown:
                await asyncio.sleep(0.2)
            except RankError as exc:
                if exc.kind == "node" and self.nodes[rank] not in self._ranks.lost:
                    await asyncio.sleep(0.2)
                    continue
                gone = exc.kind == "node"
                record = {"lost": "its node is gone"} if gone else {"code": 127, "signal": None, "error": str(exc)[-500:]}
                self.ended(rank, record)
                return
        self.watch(rank, str(spec["log_dir"]))

    def watch(self, rank: int, log_dir: str) -> None:
        if rank not in self._over:
            self._collector.add(self.nodes[rank], self.key(rank), log_dir, lambda record: self.ended(rank, record))

    async def finish(self) -> Outcome:
        """When every rank has ended. After a failure the others are ended; in setup they get some time first."""
        while len(self._over) < len(self.nodes) and not self.cause:
            await self._wait(None)
        if self.cause and self.phase == "setup" and not self.lost:
            until = time.monotonic() + _SETUP_WAIT_S
            while len(self._over) < len(self.nodes) and time.monotonic() < until:
                await self._wait(until - time.monotonic())
        if self.cause:
            await self.end_others()
        return Outcome(self.codes, self.cause, self.lost)

    async def _wait(self, timeout_s: Optional[float]) -> None:
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except asyncio.TimeoutError:
            pass

    async def end_others(self) -> None:
        left = [rank for rank in range(len(self.nodes)) if rank not in self._over]
        await asyncio.gather(*(self._end_rank(rank) for rank in left))
        await self.settle()
        for rank in left:
            self.codes[rank] = _KILLED

    async def _end_rank(self, rank: int) -> None:
        try:
            await self._ranks.call(
                self.nodes[rank], "kill", self.task_id, self.phase, [self._numbers[rank]], _GRACE_S, timeout_s=10.0
            )
        except (RankError, asyncio.TimeoutError) as exc:
            _log.warning("%s rank %d could not be ended: %s", self.task_id, rank, exc)

    async def settle(self) -> None:
        """Waits a little for the last words of ranks that were ended."""
        until = time.monotonic() + _REPORT_S
        while len(self._over) < len(self.nodes) and time.monotonic() < until:
            reachable = set(self._ranks.alive())
            if all(rank in self._over or self.nodes[rank] not in reachable for rank in range(len(self.nodes))):
                return
            await self._wait(min(0.2, max(until - time.monotonic(), 0.01)))

    async def kill_all(self) -> Dict[str, List[int]]:
        """Ends the job's whole process tree on all its nodes. {"ended", "survivors"}."""
        result: Dict[str, List[int]] = {"ended": [], "survivors": []}

        async def one(node: int) -> None:
            try:
                reply = await self._ranks.call(node, "kill", self.task_id, self.phase, None, _GRACE_S, timeout_s=15.0)
            except (RankError, asyncio.TimeoutError) as exc:
                _log.warning("%s could not be ended on node %d: %s", self.task_id, node, exc)
                return
            result["ended"] += reply["ended"]
            result["survivors"] += reply["survivors"]

        await asyncio.gather(*(one(node) for node in sorted(set(self.nodes))))
        await self.settle()
        return {"ended": sorted(set(result["ended"])), "survivors": sorted(set(result["survivors"]))}
