"""Ends ranks on nodes; what cannot be reached now is written down and done when its node is back.

The head's own node needs no Ray for it: its processes are looked for and ended right here.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence

from .config import AgentConfig
from .db import JobsDb
from .identity import boot_id
from .link import RankError, Ranks
from .tree import JobTree

__all__ = ["KillOrders", "Order"]

_log = logging.getLogger(__name__)
_KEY = "kill_orders"
_ASK_S = 12.0
_LOOK_S = 0.25


class Order(NamedTuple):
    """ranks: None for the whole job. final: the job is over, nothing of it is to be started there any more."""

    node: int
    task_id: str
    phase: str
    ranks: Optional[Sequence[int]]
    grace_s: float
    final: bool


class KillOrders:
    """is_over: whether the job of that task id has ended; an order for the end of a job that goes on is dropped."""

    def __init__(self, config: AgentConfig, db: JobsDb, ranks: Ranks, is_over: Callable[[str], bool]) -> None:
        self._config = config
        self._db = db
        self._ranks = ranks
        self._is_over = is_over
        self._orders: List[Order] = []
        self._task: Optional[asyncio.Task[None]] = None

    def load(self) -> None:
        """Orders that an agent before this one left."""
        self._orders = [Order(*entry) for entry in self._db.get(_KEY) or []]
        self._begin()

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    @property
    def waiting(self) -> List[Order]:
        return list(self._orders)

    async def end(self, order: Order) -> Optional[Mapping[str, List[int]]]:
        """{"ended", "survivors"} once that is done; None when the node cannot be reached: then it is written down."""
        try:
            return await self._carry_out(order)
        except (RankError, asyncio.TimeoutError) as exc:
            _log.warning("%s cannot be ended on node %d now: %s", order.task_id, order.node, exc)
        self._keep(order)
        return None

    async def _carry_out(self, order: Order) -> Mapping[str, List[int]]:
        if order.node == self._config.rank:
            return await asyncio.get_event_loop().run_in_executor(None, self._end_here, order)
        args = (order.task_id, order.phase, order.ranks, order.grace_s, order.final)
        reply: Mapping[str, List[int]] = await self._ranks.call(order.node, "kill", *args, timeout_s=_ASK_S)
        return reply

    def _end_here(self, order: Order) -> Dict[str, List[int]]:
        tree = JobTree(self._config.jobs_state, boot_id(), order.task_id)
        return tree.kill(order.phase, order.ranks, order.grace_s, final=order.final)

    # --- what could not be done

    def _keep(self, order: Order) -> None:
        self._orders = [known for known in self._orders if not _covers(order, known)]
        self._orders.append(order)
        self._write()
        self._begin()

    def _write(self) -> None:
        try:
            self._db.put(_KEY, [list(order) for order in self._orders])
        except (OSError, sqlite3.Error) as exc:  # a full disk: it is known as long as this agent lives
            _log.error("what is still to be ended cannot be written down: %s", exc)

    def _begin(self) -> None:
        if self._orders and (self._task is None or self._task.done()):
            self._task = asyncio.ensure_future(self._deliver())

    async def _deliver(self) -> None:
        while self._orders:
            alive = set(self._ranks.alive()) if self._ranks.up else set()
            due = [order for order in self._orders if order.node in alive]
            if due:
                await asyncio.gather(*(self._try(order) for order in due))
            await asyncio.sleep(_LOOK_S)

    async def _try(self, order: Order) -> None:
        if not order.final or self._is_over(order.task_id):
            try:
                result = await self._carry_out(order)
            except (RankError, asyncio.TimeoutError) as exc:
                _log.info("%s on node %d: not yet: %s", order.task_id, order.node, exc)
                await asyncio.sleep(_LOOK_S)
                return
            _log.info("%s on node %d: ended at last: %s", order.task_id, order.node, dict(result))
        if order in self._orders:
            self._orders.remove(order)
            self._write()


def _covers(order: Order, known: Order) -> bool:
    """Whether a known order need not be kept beside this one."""
    same = (order.node, order.task_id) == (known.node, known.task_id)
    return same and (order.final or (order.phase, order.ranks) == (known.phase, known.ranks))
