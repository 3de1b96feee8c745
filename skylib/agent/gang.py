"""One phase (setup or run) of one job on its ranks: start all, wait for all, end the others when one fails."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

from .blame import Failure, failure_of, first_of, not_started
from .collector import Collector
from .config import NodeConfig
from .evidence import speaks_of_a_full_disk
from .link import LinkDown, RankError, Ranks
from .node import Key
from .orders import KillOrders, Order
from .phases import stream_of

__all__ = ["Gang", "Killed", "Outcome"]

Killed = Dict[str, Any]  # "ended", "survivors": pids; "nodes_unreached": hosts
_GRACE_S = 1.0
_SETUP_WAIT_S = 30.0
_REPORT_S = 5.0
_LAST_WORDS_S = 60.0
_LAST_WORDS_OF_CANCELLED_S = 15.0  # somebody waits for the answer
_KILLED = 137


class Outcome(NamedTuple):
    """codes, signals: by rank. cause: "" when all ranks ended with 0. lost: the cause is that a rank could not be found.

    first_cause: the protocol's, of the rank that failed first; None when all ended well.
    """

    codes: List[Optional[int]]
    cause: str
    lost: bool
    signals: List[Optional[int]]
    first_cause: Optional[Dict[str, Any]]


class Gang:
    """places: where each member runs. numbers: the rank that each member is known by."""

    def __init__(
        self,
        ranks: Ranks,
        orders: KillOrders,
        collector: Collector,
        task_id: str,
        phase: str,
        places: Sequence[NodeConfig],
        numbers: Sequence[int],
    ) -> None:
        self._ranks = ranks
        self._orders = orders
        self._collector = collector
        self.task_id = task_id
        self.phase = phase
        self.nodes = [node.rank for node in places]
        self._hosts = [node.host for node in places]
        self._numbers = list(numbers)
        self.started = asyncio.Event()
        self.codes: List[Optional[int]] = [None] * len(places)
        self.signals: List[Optional[int]] = [None] * len(places)
        self._failures: List[Failure] = []
        self._unreached: List[str] = []
        self._ended_at: Dict[int, float] = {}
        self._giving_up = False
        self._changed = asyncio.Event()

    @property
    def _setup(self) -> bool:
        return stream_of(self.phase) == "setup"

    def key(self, rank: int) -> Key:
        return (self.task_id, self.phase, self._numbers[rank])

    def ended(self, rank: int, record: Mapping[str, Any]) -> None:
        """The collector's word that a rank has ended and all its output is in the merged log."""
        if rank in self._ended_at:
            return
        self._ended_at[rank] = time.monotonic() - float(record.get("age_s") or 0.0)
        self.failing(rank, record)
        if "lost" not in record:
            self.codes[rank], self.signals[rank] = int(record["code"]), record.get("signal")
        self._changed.set()

    def failing(self, rank: int, record: Mapping[str, Any]) -> None:
        """The collector's word that a rank has failed, whose output may still come in."""
        if any(failure.place == rank for failure in self._failures):
            return
        host, now = self._hosts[rank], time.monotonic()
        failure = failure_of(rank, self._numbers[rank], host, record, now=now, setup=self._setup)
        if failure is not None:
            self._failures.append(failure)
            self._changed.set()

    @property
    def outcome(self) -> Outcome:
        """As far as it is known."""
        first = first_of(self._failures)
        if first is None:
            return Outcome(self.codes, "", False, self.signals, None)
        silent = [host for host in self._unreached if host != first.cause["node"]]
        text = first.text + (f"; {', '.join(silent)} could not be reached" if silent else "")
        return Outcome(self.codes, text, first.lost, self.signals, first.cause)

    async def start(self, specs: Sequence[Mapping[str, Any]]) -> None:
        """Starts all ranks at once. One that cannot be started has failed."""
        await asyncio.gather(*(self._start(rank, spec) for rank, spec in enumerate(specs)))
        self.started.set()

    async def _start(self, rank: int, spec: Mapping[str, Any]) -> None:
        while True:
            try:
                await self._ranks.call(self.nodes[rank], "start", spec)
                break
            except RankError as exc:
                passes = isinstance(exc, LinkDown) or (exc.kind == "node" and self.nodes[rank] in self._ranks.alive())
                if passes and not self._giving_up:
                    await asyncio.sleep(0.2)
                    continue
                if passes or exc.kind == "node":
                    self.ended(rank, {"lost": "it was ended while it was started" if passes else "its node is gone"})
                else:
                    self.ended(rank, not_started(str(exc), disk_full=speaks_of_a_full_disk([str(exc)])))
                return
        self.watch(rank, str(spec["log_dir"]))

    def give_up(self) -> None:
        """Ranks that cannot be started just now are not waited for any longer."""
        self._giving_up = True

    def watch(self, rank: int, log_dir: str) -> None:
        if rank not in self._ended_at:
            self._collector.add(
                self.nodes[rank],
                self.key(rank),
                log_dir,
                lambda record: self.ended(rank, record),
                lambda record: self.failing(rank, record),
            )

    @property
    def _left(self) -> List[int]:
        return [rank for rank in range(len(self.nodes)) if rank not in self._ended_at]

    async def finish(self) -> Outcome:
        """When every rank has ended. After a failure the others are ended; in setup they get some time first."""
        while self._left and not self._failures:
            await self._wait(None)
        if self._failures and self._setup and not self.outcome.lost:
            until = time.monotonic() + _SETUP_WAIT_S
            while self._left and time.monotonic() < until:
                await self._wait(until - time.monotonic())
        if self._failures:
            await self.end_others()
        return self.outcome

    async def _wait(self, timeout_s: Optional[float]) -> None:
        self._changed.clear()
        try:
            await asyncio.wait_for(self._changed.wait(), timeout_s)
        except asyncio.TimeoutError:
            pass

    async def end_others(self) -> None:
        """Ranks that go on, and what those that failed have left behind."""
        sent = time.monotonic()
        failed = {failure.place for failure in self._failures}
        left = [rank for rank in self._left if rank not in failed]
        whose: Dict[int, List[int]] = {}
        for rank in sorted({*left, *failed}):
            whose.setdefault(self.nodes[rank], []).append(rank)
        await asyncio.gather(*(self._end_ranks(node, ranks) for node, ranks in whose.items()))
        await self.settle()
        for rank in left:
            if self._ended_at.get(rank, sent) >= sent:  # else it had ended by itself, unheard of
                self.codes[rank] = _KILLED

    async def _end_ranks(self, node: int, ranks: Sequence[int]) -> None:
        numbers = [self._numbers[rank] for rank in ranks]
        order = Order(node, self.task_id, self.phase, numbers, _GRACE_S, False)
        if await self._orders.end(order) is None:
            self._unreached.append(self._hosts[ranks[0]])

    async def settle(self, *, within_s: float = _LAST_WORDS_S) -> None:
        """Waits a little for the last words of ranks that were ended, and for as long as they still come in."""
        began = time.monotonic()
        while self._left:
            now = time.monotonic()
            still = max(began, self._collector.moved_at(self.task_id))
            if now - still > _REPORT_S or now - began > within_s:
                return
            reachable = set(self._ranks.alive())
            if not any(self.nodes[rank] in reachable for rank in self._left):
                return
            await self._wait(0.2)

    async def kill_all(self, *, final: bool = False) -> Killed:
        """Ends the job's whole process tree on all its nodes. final: for good, see Order."""
        hosts = dict(zip(self.nodes, self._hosts))
        orders = [Order(node, self.task_id, self.phase, None, _GRACE_S, final) for node in sorted(hosts)]
        replies = await asyncio.gather(*(self._orders.end(order) for order in orders))
        await self.settle(within_s=_LAST_WORDS_OF_CANCELLED_S)
        found = [reply for reply in replies if reply is not None]
        return {
            "ended": sorted({pid for reply in found for pid in reply["ended"]}),
            "survivors": sorted({pid for reply in found for pid in reply["survivors"]}),
            "nodes_unreached": [hosts[order.node] for order, reply in zip(orders, replies) if reply is None],
        }
