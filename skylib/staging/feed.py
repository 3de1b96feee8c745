"""One stream for several readers, with bounded memory: the writer waits for the slowest reader that is still there."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

__all__ = ["Feed"]


class Feed:
    """The blocks on their way to one reader. One thread writes, one reads."""

    __slots__ = ("_blocks", "_changed", "_closed", "_ended", "_limit")

    def __init__(self, limit: int = 8) -> None:
        """limit: blocks that may wait."""
        self._blocks: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._limit = limit
        self._ended = False
        self._closed = False

    def put(self, block: bytes) -> bool:
        """Hand on a block, waiting for room; False when the reader has gone."""
        with self._changed:
            while len(self._blocks) >= self._limit and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            self._blocks.append(block)
            self._changed.notify_all()
            return True

    def end(self) -> None:
        """No more will come."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def close(self) -> None:
        """The reader wants no more; what waits is dropped."""
        with self._changed:
            self._closed = True
            self._blocks.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                while not self._blocks and not self._ended and not self._closed:
                    self._changed.wait()
                if not self._blocks:
                    return
                block = self._blocks.popleft()
                self._changed.notify_all()
            yield block
