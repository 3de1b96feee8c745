"""How much of a stream may be under way: who reads slowly, or not at all, costs a bounded amount of memory."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Deque

__all__ = ["LEAST_WINDOW", "Window"]

LEAST_WINDOW = 1 << 20
_ITEM_COST = 256


class Window:
    """Of one stream. limit: bytes that the other side has not yet taken; None: as many as come."""

    def __init__(self, limit: object) -> None:
        self._limit = max(int(limit), LEAST_WINDOW) if isinstance(limit, (int, float)) else None
        self._costs: Deque[int] = deque()
        self._under_way = 0
        self._room = asyncio.Event()
        self._room.set()

    async def wait(self) -> None:
        """Until more may be sent."""
        await self._room.wait()

    def sent(self, size: int) -> None:
        """One item of so many bytes is under way."""
        if self._limit is None:
            return
        self._costs.append(size + _ITEM_COST)
        self._under_way += self._costs[-1]
        if self._under_way >= self._limit:
            self._room.clear()

    def taken(self, count: int) -> None:
        """The other side has taken the first `count` of those under way."""
        for _ in range(min(count, len(self._costs))):
            self._under_way -= self._costs.popleft()
        if self._limit is not None and self._under_way < self._limit:
            self._room.set()
