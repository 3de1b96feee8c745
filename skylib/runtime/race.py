"""Steps that run at once, where the first failure ends the wait for all."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["Race"]


class Race:
    """Steps that run at once, each in a thread of its own; the first failure, or the one that counts, ends the wait."""

    def __init__(self) -> None:
        self._ends: queue.SimpleQueue[tuple[str, Any, BaseException | None]] = queue.SimpleQueue()

    def go(self, name: str, act: Callable[[], Any]) -> None:
        """Begin a step. What it still does after the wait is over, it does unseen."""
        def run() -> None:
            try:
                self._ends.put((name, act(), None))
            except BaseException as error:  # handed to the thread that waits, which raises it
                self._ends.put((name, None, error))

        threading.Thread(target=run, name=f"skylib-{name}", daemon=True).start()

    def until(self, names: Iterable[str], timeout_s: float) -> dict[str, Any]:
        """What these steps gave, by name. Raises what any step raised before that; queue.Empty at the timeout."""
        deadline = time.monotonic() + timeout_s
        awaited = set(names)
        given: dict[str, Any] = {}
        while awaited - given.keys():
            ended, value, error = self._ends.get(timeout=max(0.0, deadline - time.monotonic()))
            if error is not None:
                raise error
            given[ended] = value
        return given
